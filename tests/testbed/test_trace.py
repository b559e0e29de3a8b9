# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces replay to the same state, and refuse what they cannot mean."""

import io

import pytest

from machine.firmware import Rmrr
from machine.network.peer import PeerWire
from testbed.build import NIC, build
from testbed.config import MIB, Config
from testbed.guest import Guest
from testbed.packets import bring_up, run
from testbed.tables import flat, tree
from testbed.trace import TraceError, TraceWriter, read, replay


def _record(config, path):
    with path.open("w") as stream:
        testbed = build(config)
        guest = Guest(testbed, TraceWriter(stream, testbed))
        bring_up(testbed, guest, PeerWire())
    return testbed


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
@pytest.mark.parametrize("profile", ["v7-fixed", "v3-fixed"])
def test_a_replayed_trace_leaves_the_same_tables(tmp_path, backend, profile):
    path = tmp_path / "run.trace"
    original = _record(Config(backend=backend, profile=profile), path)
    again = replay(path)
    for number in (0, *original.dom0.iommu.contexts):
        left = tree(original.memory, original.dom0.iommu.get(number))
        right = tree(again.memory, again.dom0.iommu.get(number))
        assert [(x.iova, x.maddr, x.count, x.rights) for x in flat(left)] == [
            (x.iova, x.maddr, x.count, x.rights) for x in flat(right)
        ]
    assert original.xen.frames.refs == again.xen.frames.refs


def test_a_trace_names_its_configuration(tmp_path):
    path = tmp_path / "run.trace"
    _record(Config(backend="smmuv3", seed=9), path)
    config, lines = read(path)
    assert (config.backend, config.guest, config.seed) == ("smmuv3", "pvh", 9)
    assert [line.name for line in lines][:2] == ["query_capabilities", "init"]


def test_a_prefix_of_a_trace_is_the_state_at_that_point(tmp_path):
    path = tmp_path / "run.trace"
    _record(Config(), path)
    _, lines = read(path)
    allocs = [position for position, line in enumerate(lines) if line.name == "alloc_context"]
    assert len(replay(path, until=allocs[0]).dom0.iommu.contexts) == 0
    assert len(replay(path, until=allocs[0] + 1).dom0.iommu.contexts) == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nonsense\n", ":1: not a trace"),
        ('# pviommu trace 1\n# {"backend":"none"}\n', ":2: unknown backend"),
        ('# pviommu trace 1\n# {"colour":"red"}\n', ":2: unknown setting 'colour'"),
        ("# pviommu trace 1\n# backend=vtd\n", ":2: JSON"),
        ('# pviommu trace 1\n# {"ram":"much"}\n', ":2: Expected `int`"),
        ('# pviommu trace 1\n# {"ram":4096}\n', ":2: RAM of 0x1000 bytes"),
        ("# pviommu trace 1\n# {}\nnoop\n", ":3: expected"),
        ("# pviommu trace 1\n# {}\nfrobnicate = 0\n", ":3: v7 has no sub-op"),
        ("# pviommu trace 1\n# {}\ninit max=1 = 0\n", ":3: init has no field"),
        ("# pviommu trace 1\n# {}\ninit max_ctx_no=x = 0\n", ":3: 'max_ctx_no=x' is not"),
        ("# pviommu trace 1\n# {}\ninit max_ctx_no=0x1ffffffff arena_order=1 = 0\n", ":3: init.max_ctx_no is"),
        ("# pviommu trace 1\n# {}\nalloc_context ctx_no=0 flags=0 = 0 ctx_no=1\n", ":3: alloc_context now"),
    ],
)
def test_a_bad_trace_is_one_line_with_file_and_line(tmp_path, text, complaint):
    path = tmp_path / "bad.trace"
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        replay(path)
    assert f"{path}{complaint}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreadable_trace_is_one_line(tmp_path):
    with pytest.raises(TraceError, match="cannot be read"):
        replay(tmp_path / "absent")


def test_a_whole_run_can_be_traced():
    stream = io.StringIO()
    report = run(Config(), PeerWire(), [56], watch=lambda testbed: TraceWriter(stream, testbed))
    calls = sum(sum(results.values()) for results in report.hypercalls.values())
    assert report.ok
    assert calls > 100


def test_reserved_regions_are_part_of_a_trace(tmp_path):
    path = tmp_path / "run.trace"
    region = Rmrr(96 * MIB, 96 * MIB + 0x1FFF, (NIC,))
    original = _record(Config(rmrrs=(region,)), path)
    assert read(path)[0].rmrrs == (region,)
    assert replay(path).xen.frames.refs == original.xen.frames.refs

# SPDX-License-Identifier: GPL-2.0-or-later
"""Random records, answered by a second reading of the observed rules, replay on profile v3 without a difference."""

import json
import random
from pathlib import Path

import pytest
from record_writer import Writer
from second_reading import Tree

from testbed.golden.records import RecordError
from testbed.golden.replay import replay

RECORDS = Path(__file__).parent / "xen-v3"
ENDS = ("exhaust", "unknown", "superpage", "devices", "default")


def written(tmp_path, seed, calls, end="", order=9, **machine):
    """A random record of about ``calls`` calls, a dump after every tenth."""
    writer = Writer(seed, order, **machine)
    for step in range(calls):
        writer.step()
        if step % 10 == 9:
            writer.state()
    writer.state()
    writer.end(end)
    path = tmp_path / f"random-{seed}.jsonl"
    path.write_text(writer.text())
    return path


@pytest.mark.parametrize("order", [3, 4, 9])
@pytest.mark.parametrize("guest", ["pv", "pvh"])
def test_random_calls_are_answered_alike(tmp_path, order, guest):
    for seed in range(2):
        path = written(tmp_path, 100 * order + seed, 110, order=order, pvh=guest == "pvh")
        result = replay(path, "v3")
        assert [str(difference) for difference in result.differences] == []
        assert result.calls > 90 and not result.stopped


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("debug", [False, True])
def test_both_stop_at_the_same_call(tmp_path, end, debug):
    result = replay(written(tmp_path, 7, 20, end, debug=debug), "v3")
    assert [str(difference) for difference in result.differences] == []
    assert result.stopped


@pytest.mark.parametrize("end", ["reattach", "free"])
@pytest.mark.parametrize("debug", [False, True])
def test_a_context_without_a_root(tmp_path, end, debug):
    writer = Writer(1, 2, debug=debug)
    writer.call("alloc", ctx=0, flags=0)
    writer.call("map", ctx=1, flags=3, gfn="F0", dfn="0x0", nr=1, mapped=0)
    writer.call("alloc", ctx=0, flags=0)
    writer.call("map", ctx=2, flags=3, gfn="F1", dfn="0x0", nr=1, mapped=5)
    if end == "reattach":
        goes_on = writer.call("reattach", ctx=2, flags=0, seg=0, bus=0, devfn=0x18)
        assert goes_on is not debug
        if goes_on:
            writer.call("lookup", ctx=1, flags=0, gfn="0x0", dfn="0x0")
            writer.call("reattach", ctx=1, flags=0, seg=0, bus=0, devfn=0x20)
    else:
        writer.call("free", ctx=2, flags=0)
    assert "hang" in writer.lines[-1]
    path = tmp_path / "rootless.jsonl"
    path.write_text(writer.text())
    result = replay(path, "v3")
    assert [str(difference) for difference in result.differences] == []


def test_a_reading_that_is_wrong_is_noticed(tmp_path, monkeypatch):
    """The comparison has teeth: a model in which removed tables are free at once disagrees."""

    def at_once(tree, page):
        del tree.tables[page]
        tree.pool.give(page)

    monkeypatch.setattr(Tree, "remove_table", at_once)
    found = [replay(written(tmp_path, seed, 100, order=3), "v3").differences for seed in range(3)]
    assert any(found)


def spoiled(rng, lines):
    """One member of one line gone, or of another kind."""
    place = lines[0 if rng.random() < 0.3 else rng.randrange(len(lines))]
    while True:
        keys = [*place] if isinstance(place, dict) else [*range(len(place))]
        key = rng.choice(keys)
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    if rng.random() < 0.4:
        del place[key]
    else:
        place[key] = rng.choice((None, -1, 1 << 70, "", "0x", "F99999999", "=F", "arena+z", [], {}, [1], True, 1.5))


@pytest.mark.parametrize("seed", range(4))
def test_a_spoiled_record_is_refused_in_one_line_or_replayed(tmp_path, seed):
    rng = random.Random(seed)
    names = ("destr-free_flag_2dev-release", "arena3-free-release", "destr-did-release", "sys-release")
    path = tmp_path / "spoiled.jsonl"
    refused = 0
    for _ in range(10):
        lines = [json.loads(line) for line in (RECORDS / f"{rng.choice(names)}.jsonl").read_text().splitlines()][:40]
        spoiled(rng, lines)
        path.write_text("\n".join(map(json.dumps, lines)))
        try:
            replay(path, "v3")
        except RecordError as error:
            refused += 1
            assert str(error).startswith(f"{path}:") and "\n" not in str(error)
    assert refused

# SPDX-License-Identifier: GPL-2.0-or-later
"""Callers of 32 bits: what they hand over is what 32-bit code would, and the oracle reads it so."""

from dataclasses import replace

import pytest

from base.units import U32_MAX
from fuzz.concurrent import Concurrent
from fuzz.engines.raw import Raw
from fuzz.engines.swarm import Swarm, benches
from fuzz.program import Bench, Program
from fuzz.run import Runner
from fuzz.target import Target
from fuzz.verbs import ARGUMENTS, ProgramError, op

BENCH = Bench("vtd", "v7-fixed", "pv", 4, 6, machine="32-bit")
MAPPED = (op("alloc"), op("map", ctx=1, frame=("ram", 8), at=0x10))


@pytest.mark.parametrize("guest", ["pv", "pvh"])
@pytest.mark.parametrize("profile", ["v3-fixed", "v7-fixed"])
def test_registers_hold_what_32_bits_can(profile, guest, monkeypatch):
    seen = set()
    target = Target(replace(BENCH, guest=guest, profile=profile))
    entry = type(target.xen.entry)
    enter = entry.enter
    monkeypatch.setattr(
        entry, "enter", lambda self, xen, vcpu, args: seen.add((vcpu.narrow, *args)) or enter(self, xen, vcpu, args)
    )
    for where in ARGUMENTS:
        target.call("alloc_context", (0, 0), where)
    assert len(seen) == len(ARGUMENTS)
    assert all(narrow and max(args) <= U32_MAX for narrow, *args in seen)


@pytest.mark.parametrize("profile", ["v3-fixed", "v7-fixed"])
def test_structs_are_those_of_i386(profile):
    target = Target(replace(BENCH, profile=profile))
    for name, row in target.abi.by_name.items():
        wide = target.xen.abi.by_name[name]
        assert row.codec is (wide.codec and wide.codec_on("i386"))
    usual = Target(replace(BENCH, profile=profile, machine="usual"))
    assert usual.abi is usual.xen.abi


@pytest.mark.parametrize(
    ("operation", "answer"),
    [
        *((op("alloc", arg=where), "EFAULT") for where in ("readonly", "unmapped", "noncanonical")),
        (op("alloc", arg="split"), "0"),
        (op("regions", device="copier"), "ENOSYS"),
    ],
)
def test_what_a_call_answers_is_what_the_oracle_expects(operation, answer):
    runner = Runner(BENCH)
    runner.begin()
    assert runner.step(operation) == (answer, None)


@pytest.mark.parametrize("engine", [Swarm, Raw])
@pytest.mark.parametrize("profile", ["v3-fixed", "v7-fixed"])
def test_a_sound_hypervisor_has_no_finding(profile, engine):
    over = [replace(bench, machine="32-bit") for bench in benches("vtd", profile)]
    assert [hit for hit in engine(over, 5).findings(1200, 8000) if hit is not None] == []


def _writes_behind(bed):
    """The count lies where it has to, and where the 64-bit layout has it as well: behind the struct."""
    subops = bed.xen.narrow_entry()._subops
    number = bed.xen.abi.by_name["map_pages"].number
    handler, decode, put_out, size, *rest = subops[number]

    def put_out_twice(buffer, out):
        put_out(memoryview(buffer)[:size], out)
        buffer[size : size + 4] = out[0].to_bytes(4, "little")

    subops[number] = (handler, lambda buffer: decode(buffer[:size]), put_out_twice, size + 4, *rest)


def test_what_is_written_behind_a_short_struct_is_seen():
    assert Runner(BENCH).run(MAPPED) is None
    found = Runner(BENCH, _writes_behind).run(MAPPED)
    assert found is not None and found.clause == "guest-memory"


def test_one_vcpu_runs_at_a_time():
    with pytest.raises(ProgramError, match="machine=32-bit runs one vCPU at a time"):
        Concurrent(Program(replace(BENCH, vcpus=2), (op("vcpu", number=0), op("alloc"))))

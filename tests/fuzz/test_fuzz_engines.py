# SPDX-License-Identifier: GPL-2.0-or-later
"""Every engine finds planted faults, is quiet without them, and does the same again under the same seed."""

import pytest

from base.units import PAGE_SIZE
from fuzz.blocks import Blocks
from fuzz.engines.differential import Differential
from fuzz.engines.engine import ENGINES, make
from fuzz.engines.greybox import Greybox
from fuzz.engines.swarm import Swarm, benches
from fuzz.machines import MACHINES
from fuzz.program import Bench, parse
from fuzz.raw import SHORT, RawGenerator
from fuzz.resync import is_swept
from fuzz.run import Runner, replay, runner_for
from fuzz.shrink import Shrinker
from fuzz.target import Target
from fuzz.toolstack import STRUCT_END
from fuzz.verbs import ProgramError
from hypervisor.iommu.pool import Arena

PV = Bench("vtd", "v7-fixed", "pv", 4, 6)


SCHEDULED = {"together": 240}
"""Operations where each program runs under many schedules; others get what a test asks for."""


def writes_always_allowed(bed):
    permissions = bed.xen.map_permissions
    for flags in permissions:
        permissions[flags] = permissions[3 | flags]


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "together"])  # it builds its own benches
def test_an_engine_finds_a_planted_fault(engine):
    found = next(hit for hit in make(engine, [PV], 3, writes_always_allowed).findings(6000) if hit is not None)
    runner, finding = found
    small = Shrinker(runner).shrink(runner.locate(finding.program.ops) or finding)
    assert len(small.program.ops) <= 8, str(small.program)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("backend", "profile", "guest"), [("vtd", "v7-fixed", "pvh"), ("smmuv3", "v3-fixed", "pv")])
def test_an_engine_is_quiet_on_fixed_profiles(engine, backend, profile, guest):
    for hit in make(engine, [Bench(backend, profile, guest, 4, 5)], 5).findings(
        6000, max_ops=SCHEDULED.get(engine, 2000)
    ):
        assert hit is None, f"{hit[1].program}{hit[1].clause}: {hit[1].what}"


@pytest.mark.parametrize(
    ("backend", "machine"),
    [(backend, name) for name, machine in MACHINES.items() for backend in ("vtd", "smmuv3") if machine.is_of(backend)],
)
def test_the_swarm_is_quiet_on_every_machine(backend, machine):
    profile = "v3-fixed" if MACHINES[machine].command_line else "v7-fixed"
    over = benches(backend, profile, machine=machine)[::2]
    assert over
    for hit in Swarm(over, 5).findings(6000, max_ops=600):
        assert hit is None, f"{hit[1].program}{hit[1].clause}: {hit[1].what}"


@pytest.mark.parametrize("engine", ENGINES)
def test_equal_seeds_do_the_same(engine):
    runs = []
    for _ in range(2):
        worker = make(engine, [PV], 11)
        list(worker.findings(6000, max_ops=SCHEDULED.get(engine, 1500)))
        runs.append((worker.programs, worker.ops, worker.runners[0].coverage))
    assert runs[0] == runs[1]
    assert {verb for verb, _, _ in runs[0][2]} >= {"alloc", "free"} if engine != "raw" else runs[0][2]


def test_greybox_keeps_what_showed_something_new():
    worker = Greybox([PV], 2)
    list(worker.findings(600, max_ops=4000))
    (kept,) = worker.kept
    assert 0 < len(kept.programs) < worker.programs
    assert kept.blocks.bit_count() > 200


def test_blocks_are_counted_and_the_code_is_put_back():
    code = Arena.allocate.__code__
    blocks = Blocks(("hypervisor",))
    try:
        assert Arena.allocate.__code__ is not code
        runner = Runner(PV)
        blocks.clear()
        runner.run(parse("# pviommu program 1\nbench\nalloc\n").ops)
        short = blocks.taken()
        runner.run(parse("# pviommu program 1\nbench\nalloc\nmap ctx=1 frame=ram:9 at=0x400\n").ops)
        assert 0 < short.bit_count() < blocks.taken().bit_count()
        ran = {module for hit, (module, _) in zip(blocks.hits, blocks.places) if hit}
        assert "hypervisor.pviommu.mappings" in ran
    finally:
        blocks.remove()
    assert Arena.allocate.__code__ is code


def test_a_posted_version_differs_from_its_fixed_twin_and_the_program_replays():
    engine = Differential([Bench("vtd", "v3", "pv", 4, 6, against="v3-fixed")], 1)
    runner, found = next(hit for hit in engine.findings(600) if hit is not None and is_swept(hit[1].clause))
    small = Shrinker(runner).shrink(runner.locate(found.program.ops) or found)
    again = replay(parse(str(small.program)))
    assert again is not None and again.key == small.key


def test_drivers_are_compared_too():
    agreeing = Differential([Bench("vtd", "v7-fixed", "pvh", level="driver")], 1)
    assert not [hit for hit in agreeing.findings(600, max_ops=150) if hit is not None]
    posted = Differential([Bench("vtd", "v7-fixed", "pvh", level="driver", against="rfc-v3")], 1)
    _, found = next(hit for hit in posted.findings(600) if hit is not None)
    again = replay(parse(str(found.program)))
    assert again is not None and again.clause == found.clause and "rfc-v3" in found.what


def test_what_nobody_knows_cannot_be_compared_with():
    with pytest.raises(ProgramError, match="'toaster'"):
        runner_for(Bench(against="toaster"))
    with pytest.raises(ProgramError, match="'toaster'"):
        runner_for(Bench(level="driver", against="toaster"))


def test_programs_of_bytes_are_mostly_wrong_calls_and_few_of_them_long():
    target = Target(PV)
    programs = [program for _ in range(2) for program in _of_bytes(target, 15)]
    assert programs[:15] == programs[15:]
    refused = lengths = runs = calls = 0
    for program in programs[:15]:
        target.reset()
        for operation in program:
            if operation[0] == "raw":
                call = target.raw(*operation[1:])
                calls, refused = calls + 1, refused + (call.result < 0)
                if call.name in ("map_pages", "unmap_pages"):
                    pages = target.abi.by_name[call.name].codec.as_dict(call.before)["nr_pages"]
                    runs, lengths = runs + 1, lengths + (SHORT < pages <= 4096)
    assert 0.6 < refused / calls < 0.95
    assert 0 < lengths / runs < 0.1


def test_a_call_made_of_bytes_lies_where_the_guest_has_its_struct_and_leaves_with_its_program():
    target = Target(PV)
    ram, page = target.caller.ram, STRUCT_END & -PAGE_SIZE
    target.reset()
    fresh = ram.read(page, PAGE_SIZE)
    for subop in target.abi.by_name.values():
        call = target.raw(subop.number, b"\x5a" * 64, "plain")
        assert len(call.before) == (subop.codec.size if subop.codec and subop.implemented else 0)
        assert call.after == ram.read(STRUCT_END - len(call.before), len(call.before))
    assert ram.read(page, PAGE_SIZE) != fresh
    target.reset()
    assert ram.read(page, PAGE_SIZE) == fresh


def _of_bytes(target, number):
    generator = RawGenerator(target, 4)
    return [generator.program(200) for _ in range(number)]

# SPDX-License-Identifier: GPL-2.0-or-later
"""The quick judge against the executable specification: every call of random programs, whatever goes wrong in them."""

import copy
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import settings

import fuzz.specified as specified
from abi import predicates
from abi.contract_fixed import EVERY
from fuzz.engines.swarm import benches
from fuzz.generate import Generator
from fuzz.program import Bench, parse
from fuzz.raw import RawGenerator
from fuzz.run import runner_for
from fuzz.target import Call
from fuzz.verbs import ProgramError

FIXED = tuple(f"{version}-fixed" for version in ("v1", "v2", "v3", "v4", "v5", "v6", "v7", "e3"))
PROGRAMS = max(settings.default.max_examples // 8, 12)
"""For each profile: 12, and 250 under ``HYPOTHESIS_PROFILE=nightly``."""
FAILS = ("copy-in", "copy-out", "arena", "heap", "xenheap", "tag", "confirm", "any")


def spiced(ops, rng):
    """A program with more going wrong in it: one place of every kind now and then."""
    for operation in ops:
        if rng.random() < 0.04:
            yield "fault", f"{rng.choice(FAILS)}:{rng.randint(1, 6)}"
        yield operation


def programs(profile, seed, level="typed"):
    """(runner, program) without end, benches in turn."""
    rng = random.Random(seed)
    over = []
    for backend in ("vtd", "smmuv3"):
        for bench in benches(backend, profile, level):
            runner = runner_for(replace(bench, against="specification"))
            make = RawGenerator(runner.target, seed) if level == "raw" else Generator(bench, runner.abi, seed)
            over.append((runner, make))
    rng.shuffle(over)
    while True:
        for runner, make in over:
            yield runner, tuple(spiced(make.program(60), rng))


def first(sequence, number):
    return (each for _, each in zip(range(number), sequence))


@pytest.mark.parametrize(
    ("profile", "level"), [*((profile, "typed") for profile in FIXED), ("v3-fixed", "raw"), ("v7-fixed", "raw")]
)
def test_both_judges_say_the_same_of_every_call(profile, level):
    for runner, ops in first(programs(profile, 11, level), PROGRAMS):
        found = runner.run(ops)
        assert found is None, f"{found.clause}: {found.what}\n{found.program}"


STATE = ("initialised", "limit", "spaces", "homes", "odd", "dying", "unsure", "scattered", "moved", "regions")
RESULTS = (0, -1, -2, -5, -7, -12, -14, -16, -17, -19, -22, -28, -95, -98, -99)
BESIDE = ("let-go", "idle", "yields")
"""Clauses about what happened meanwhile, not about the answer."""


def other_answers(made, codec):
    """Answers that the call did not give: another result, a field that reads otherwise, both."""
    yield from ((result, made.after) for result in RESULTS if result != made.result)
    if codec is None or not codec.out:
        return
    fields = codec.as_dict(made.after)
    for name in codec.out:
        for by in (-512, -256, -1, 1):
            if not 0 <= fields[name] + by < 1 << 16:
                continue
            after = bytearray(made.after)
            codec.put_out(after, tuple(fields[other] + by * (other == name) for other in codec.out))
            yield from ((result, bytes(after)) for result in (made.result, -1, -5, -12, -14))


@pytest.mark.parametrize("profile", ["v3-fixed", "v7-fixed"])
def test_what_one_judge_would_take_for_an_answer_the_other_would_take_too(profile):
    asked = Counter()
    rng = random.Random(5)

    def doubtful(oracle, judge):
        def judged(made):
            if rng.random() < 0.2 and made.inner is None and made.name:
                for result, after in other_answers(made, oracle._codecs[made.name]):
                    shadow, state = {name: copy.deepcopy(getattr(oracle.shadow, name)) for name in STATE}, oracle._state
                    faults = oracle.target.faults
                    failed = faults.copy if faults is not None else ""
                    other = Call(made.number, made.name, made.argument, made.before, result, after, made.progress, None)
                    quick = oracle._judge(other)
                    for name, value in shadow.items():
                        setattr(oracle.shadow, name, value)
                    slow = oracle._hold(other)
                    oracle._state = state
                    if faults is not None:
                        faults.copy = failed
                    takes = quick is None or quick.clause in BESIDE
                    assert takes == (slow is None), (made.name, result, quick, slow)
                    asked[takes] += 1
            return judge(made)

        return judged

    doubted = set()
    for runner, ops in first(programs(profile, 3), PROGRAMS):
        if id(runner) not in doubted:
            doubted.add(id(runner))
            runner.oracle.judge = doubtful(runner.oracle, runner.oracle.judge)
        found = runner.run(ops)
        assert found is None, found
    assert asked[False] > 1000 and asked[True] > 5, asked


NEVER = {
    "unusable": "dom0 may use PV-IOMMU in every bench",
    "unimplemented": "no number of this version is without a handler",
    "entry-changed": "hardware's own tables are Xen's alone",
    "phantom": "no device of the test bed has phantom functions",
    "reserved-overlap": "there is one reserved region",
    "not-privileged": "the caller is the hardware domain",
    "target-unusable": "the only target is the caller",
}
"""Conditions that no program on these benches meets, and why."""
MEET = {
    "pv contexts=none arena=4": """
        init contexts=0xffff arena=1
        init contexts=2 arena=60
        init contexts=2 arena=3 arg=readonly
        init contexts=2 arena=3
        init contexts=2 arena=3
        query arg=unmapped
        alloc arg=readonly
        raw subop=0x63
        alloc flags=0x40
        alloc flags=0x1
        fault plan=tag:1
        alloc
        fail allocation=1
        alloc
        alloc
        alloc
        alloc
        free ctx=0
        free ctx=7
        attach nic ctx=1 pasid=1
        attach foreign ctx=1
        attach nic ctx=9
        attach nic ctx=0
        map ctx=2 frame=ram:8 at=0xc02
        attach copier ctx=2
        unmap ctx=2 at=0xc02
        attach copier ctx=2
        map ctx=2 frame=ram:8 at=0xc02
        free ctx=2
        fault plan=confirm:1+
        attach nic ctx=1
        attach nic ctx=0
        fault plan=xenheap:1
        free ctx=2 flags=0x1
        fault
        free ctx=2 flags=0x1 arg=unmapped
        free ctx=2 flags=0x1
        fail allocation=1
        attach copier ctx=1
        map ctx=0 frame=ram:8 at=0x400
        map ctx=1 frame=ram:8 at=0x400 size=0x3000
        map ctx=1 frame=ram:8 at=0x401 size=2M
        map ctx=1 frame=ram:8 at=0xffffffffffffffff
        map ctx=1 frame=ram:0 at=0x0 pages=0x800001 size=2M
        map ctx=1 frame=ram:8 at=0x400 access=0x4
        map ctx=1 frame=ram:8 at=0x400 holes=1
        map ctx=1 frame=gfn:0xffffffffff at=0x400
        map ctx=1 frame=xen:1 at=0x400
        fail allocation=1
        map ctx=1 frame=ram:8 at=0x9000000
        fail
        map ctx=1 frame=ram:0 at=0x400 pages=512
        map ctx=1 frame=ram:8 at=0x401
        fail allocation=1
        unmap ctx=1 at=0x408
        unmap ctx=1 at=0x4040
        progress pages=0x1000
        unmap ctx=1 at=0x400
        fail flush=1
        unmap ctx=1 at=0x400
        fail flush=1
        free ctx=1
        attach rogue ctx=1
        remote domain=1
        noop
        raw subop=0x8 bytes=00000800000000000000000000000000
    """,
}


def test_there_are_programs_that_meet_every_condition_of_the_contract(monkeypatch):
    met = set()

    def noted(contract, state, request, *chances):
        state, outcome = genuine(contract, state, request, *chances)
        met.add(outcome.condition)
        return state, outcome

    genuine = specified.call
    monkeypatch.setattr(specified, "call", noted)
    conditions = {row.condition for table in EVERY["v7-fixed"].tables.values() for row in table}
    for bench, text in MEET.items():
        head = f"# pviommu program 1\nbench backend=vtd profile=v7-fixed guest={bench} against=specification\n"
        program = parse(head + "\n".join(map(str.strip, text.strip().splitlines())) + "\n")
        found = runner_for(program.bench).run(program.ops)
        assert found is None, found
    assert conditions - met == set(NEVER)


HEAD = "# pviommu program 1\nbench backend=vtd profile=v7-fixed guest=pv contexts=4 arena=8 against=specification\n"
MAP = "alloc\nmap ctx=1 frame=ram:8 at=0x400\n"


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ("bad-flags", "alloc flags=0x40\n"),
        ("frame-refused", "alloc\nmap ctx=1 frame=xen:1 at=0x400\n"),
        ("occupied", MAP + "map ctx=1 frame=ram:9 at=0x400\n"),
        ("bad-progress", MAP + "progress pages=0x1000\nunmap ctx=1 at=0x400\n"),
        ("no-table-memory", "alloc\nfail allocation=1\nmap ctx=1 frame=ram:8 at=0x400\n"),
    ],
)
def test_a_judge_who_forgets_a_condition_is_noticed(condition, text, monkeypatch):
    program = parse(HEAD + text)
    assert runner_for(program.bench).run(program.ops) is None
    for tests in (predicates.TESTS, predicates.PAGE_TESTS):
        if condition in tests:
            monkeypatch.setitem(tests, condition, lambda *asked: False)
    found = runner_for(program.bench).run(program.ops)
    assert found is not None and found.clause == "specified", found


def test_a_shadow_that_lost_a_page_is_noticed_by_the_sweep():
    program = parse(HEAD + MAP)
    runner = runner_for(program.bench)
    assert runner.run(program.ops) is None
    runner.oracle.shadow.spaces[1].remove(0x400, 1)
    broken = runner.oracle.sweep()
    assert broken is not None and broken.clause == "specified"


def test_a_profile_with_defects_has_no_specification_to_be_held_against():
    with pytest.raises(ProgramError, match="v6"):
        runner_for(Bench("vtd", "v6", "pv", 4, 8, against="specification"))


def test_a_machine_with_a_device_that_no_unit_covers_is_not_held_against_it():
    with pytest.raises(ProgramError, match="no unit covers"):
        runner_for(Bench("vtd", "v7-fixed", against="specification", machine="uncovered"))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Schedules: sound code survives all of them, a missing lock does not, and what is printed replays."""

import json

import pytest
from typer.testing import CliRunner

from fuzz.concurrent import Concurrent
from fuzz.engines.schedules import STRATEGIES, Explorer, simplify
from fuzz.linearize import Call, linearize
from fuzz.program import parse
from fuzz.run import replay
from fuzz.verbs import ProgramError
from hypervisor.locking.guards import GUARDS, nothing
from pviommu.cli import app

RACE = """# pviommu program 1
bench backend={backend} profile={profile} guest=pv contexts=4 arena=6
alloc
vcpu 0
map ctx=1 frame=ram:9 at=0x400
unmap ctx=1 at=0x400
vcpu 1
free ctx=1 flags=0x1
alloc
"""


ACCESS = """# pviommu program 1
bench backend=vtd profile=v7-fixed guest=pv contexts=4 arena=6
alloc
attach nic ctx=1
{before}vcpu 0
{first}vcpu 1
dma nic at=0x400 pages=2
"""
A_LOOK = ACCESS.format(before="", first="map ctx=1 frame=ram:9 at=0x400\nunmap ctx=1 at=0x400\n")


def attempts(concurrent, strategy, runs, full=True):
    explorer = Explorer(concurrent, full)
    found = list(explorer.attempts(strategy, runs, 1, 3, 2))
    return explorer.explored, found


@pytest.mark.parametrize(("backend", "profile"), [("vtd", "v7-fixed"), ("smmuv3", "v3-fixed")])
def test_sound_code_survives_every_schedule(backend, profile):
    concurrent = Concurrent(parse(RACE.format(backend=backend, profile=profile)))
    for strategy in STRATEGIES:
        explored, found = attempts(concurrent, strategy, 200 if strategy == "exhaustive" else 50)
        assert not [f"{attempt.schedule}: {attempt.broken}" for attempt in found if attempt.broken is not None]
        assert explored.complete == (strategy == "exhaustive")
        assert len({str(attempt.run.results) for attempt in found}) > 1, "the schedules made no difference"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_missing_lock_is_found_and_its_schedule_replays(strategy, monkeypatch):
    for name in ("map_pages", "unmap_pages", "free_context"):
        monkeypatch.setitem(GUARDS, name, nothing)
    concurrent = Concurrent(parse(RACE.format(backend="vtd", profile="v7-fixed")))
    tried = Explorer(concurrent).attempts(strategy, 200, 1, 3, 2)
    broken = next(attempt for attempt in tried if attempt.broken is not None)
    simple = simplify(concurrent, broken)
    assert len(simple.run.schedule.switches) <= min(2, len(broken.run.schedule.switches))
    again = Concurrent(parse(RACE.format(backend="vtd", profile="v7-fixed"))).attempt(simple.schedule)
    assert (again.broken, again.run.points) == (simple.broken, simple.run.points)


@pytest.mark.parametrize("text", [RACE.format(backend="vtd", profile="v7-fixed"), A_LOOK])
def test_partial_order_reduction_loses_no_outcome(text, monkeypatch):
    def outcomes():
        concurrent = Concurrent(parse(text))
        explored, found = attempts(concurrent, "exhaustive", 2000, full=False)
        assert explored.complete
        return explored, {str(attempt.run.results) for attempt in found}

    reduced, some = outcomes()
    monkeypatch.setattr(Explorer, "_matters", lambda self, steps, k, vcpu: True)
    whole, every = outcomes()
    assert some == every
    assert reduced.schedules < whole.schedules and not whole.skipped


def test_schedules_that_differ_by_a_look_without_a_lock_are_explored():
    """The device's access takes no lock and changes nothing; between the map and the unmap it meets the page."""
    explorer = Explorer(Concurrent(parse(A_LOOK)), full=False)
    met = {attempt.run.results[1][0][0] is not None for attempt in explorer.attempts("exhaustive", 100, 0, 2, 1)}
    assert explorer.explored.complete and explorer.explored.skipped and met == {True, False}


def test_a_query_amid_what_makes_the_contexts_is_explored():
    text = "# pviommu program 1\nbench profile=v7-fixed contexts=none\nvcpu 0\ninit contexts=3 arena=4\nvcpu 1\nquery\n"
    explorer = Explorer(Concurrent(parse(text)), full=False)
    limits = {
        attempt.run.results[1][0].fields["max_ctx_no"] for attempt in explorer.attempts("exhaustive", 50, 0, 2, 1)
    }
    assert explorer.explored.complete and limits == {0, 3}


HALF_REMEMBERED = ACCESS.format(
    before="map ctx=1 frame=ram:9 at=0x400 pages=2\ndma nic at=0x401\n", first="unmap ctx=1 at=0x400 pages=2\n"
)


def test_an_access_amid_an_unmap_may_meet_one_page_of_two():
    """The second is still remembered, the first is out of the table: no order of access and unmap says so."""
    found = list(Explorer(Concurrent(parse(HALF_REMEMBERED)), full=False).attempts("exhaustive", 100, 0, 2, 1))
    assert not [attempt for attempt in found if attempt.broken is not None]
    pages = {tuple(page is not None for page in attempt.run.results[1][0]) for attempt in found}
    assert pages == {(True, True), (False, True), (False, False)}


def test_an_access_that_no_pass_overlaps_is_held(monkeypatch):
    count = iter(range(1000))
    monkeypatch.setattr(Concurrent, "_dma", lambda self, *access: (next(count),))
    broken = Concurrent(parse(HALF_REMEMBERED)).attempt("", full=False).broken
    assert broken is not None and broken.clause == "linearizable"


def test_an_order_is_found_if_there_is_one():
    """A register: writes return the value before."""

    def in_order(order):
        value, answers = 0, []
        for vcpu, _ in order:
            answers.append(value)
            value = vcpu + 1
        return answers, value

    overlapping = [[Call(0, 9, 2)], [Call(1, 8, 0)]]
    assert linearize(overlapping, 1, in_order) == [(1, 0), (0, 0)]
    assert linearize(overlapping, 2, in_order) is None, "it ended otherwise"
    one_after_the_other = [[Call(0, 3, 2)], [Call(4, 8, 0)]]
    assert linearize(one_after_the_other, 1, in_order) is None, "the second cannot come first"
    assert linearize([[Call(0, 9, 0)], [Call(1, 8, 0)]], 1, in_order) is None, "both saw the start"


def test_a_program_without_vcpus_is_dealt_out(tmp_path):
    path = tmp_path / "program.txt"
    path.write_text(
        "# pviommu program 1\nbench\nalloc\nas domain=0\nalloc\nmap ctx=1 frame=ram:9 at=0x400\ndma nic at=0x400\n"
    )
    done = CliRunner().invoke(app, ["explore", str(path), "--strategy", "random", "--runs", "20", "--json"])
    report = json.loads(done.stdout)
    assert done.stderr == f"{path}: dealt out without as\n"
    assert done.exit_code == 0 and report["strategies"]["random"]["schedules"] == 20


def test_the_command_prints_a_schedule_and_writes_a_program_that_names_it(tmp_path, monkeypatch):
    path, output = tmp_path / "program.txt", tmp_path / "found.txt"
    path.write_text(RACE.format(backend="vtd", profile="v7-fixed"))
    for name in ("map_pages", "unmap_pages", "free_context"):
        monkeypatch.setitem(GUARDS, name, nothing)
    arguments = ["explore", str(path), "--strategy", "exhaustive", "--runs", "150", "-o", str(output)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1, done.stdout
    schedule = next(line for line in done.stdout.splitlines() if line.startswith("schedule: "))[10:]
    again = CliRunner().invoke(app, ["explore", str(path), "--schedule", schedule])
    assert again.exit_code == 1 and f"schedule: {schedule}" in again.stdout
    assert f"schedule order={schedule.replace(' ', ',')}" in output.read_text()
    assert CliRunner().invoke(app, ["explore", str(output)]).exit_code == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alloc\nvcpu 3\nalloc\n", "none of number 3"),
        ("alloc\nvcpu 0\nfail allocation=1\n", "before the first vcpu"),
        ("schedule order=4\n", "no schedule"),
        ("fail allocation=9\nvcpu 0\nalloc\n", "fail is over before the vCPUs start"),
    ],
)
def test_what_cannot_run_at_once_is_said(text, says):
    with pytest.raises(ProgramError, match=says):
        Concurrent(parse(f"# pviommu program 1\nbench vcpus=2\n{text}"))


def test_programs_of_several_vcpus_are_replayed_under_schedules():
    program = parse(RACE.format(backend="vtd", profile="v7-fixed"))
    assert program.bench.vcpus == 2 and parse(str(program)) == program
    assert replay(program) is None


def test_a_wrong_schedule_is_one_line(tmp_path):
    path = tmp_path / "program.txt"
    path.write_text(RACE.format(backend="vtd", profile="v7-fixed"))
    assert CliRunner().invoke(app, ["explore", str(path), "--schedule", "soon"]).exit_code == 2


def test_a_number_that_its_field_does_not_hold_is_no_finding(tmp_path):
    program = tmp_path / "program.txt"
    program.write_text(f"# pviommu program 1\nbench\nvcpu 0\nfree ctx={1 << 16}\nvcpu 1\nalloc\n")
    done = CliRunner().invoke(app, ["explore", str(program)])
    assert done.exit_code == 2 and "16 bits wide" in str(done.output)

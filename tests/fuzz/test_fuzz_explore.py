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


def test_partial_order_reduction_loses_no_outcome(monkeypatch):
    def outcomes():
        concurrent = Concurrent(parse(RACE.format(backend="vtd", profile="v7-fixed")))
        explored, found = attempts(concurrent, "exhaustive", 2000, full=False)
        assert explored.complete
        return explored, {str(attempt.run.results) for attempt in found}

    reduced, some = outcomes()
    monkeypatch.setattr(Explorer, "_matters", lambda self, steps, k, vcpu: True)
    whole, every = outcomes()
    assert some == every
    assert reduced.schedules < whole.schedules and not whole.skipped


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
    path.write_text("# pviommu program 1\nbench\nalloc\nalloc\nmap ctx=1 frame=ram:9 at=0x400\ndma nic at=0x400\n")
    done = CliRunner().invoke(app, ["explore", str(path), "--strategy", "random", "--runs", "20", "--json"])
    report = json.loads(done.stdout)
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns: what is found is on disk whoever is killed, and a campaign goes on where it was."""

import errno
import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fuzz import campaign, worker
from fuzz.generate import Generator
from fuzz.naming import name
from fuzz.program import Bench, Program, ProgramError, parse
from fuzz.run import Runner, runner_for
from fuzz.spawn import start
from fuzz.store import Store, keep_pending, pending
from fuzz.worker import work
from pviommu.cli import app

DEFECT = "# pviommu program 1\nbench backend=vtd profile=v6 guest=pv contexts=4 arena=6\n"


def command(directory, *more):
    return [sys.executable, "-m", "pviommu", "fuzz", "--profile", "v6", "--corpus", str(directory), *more]


def rows(directory):
    with sqlite3.connect(directory / "campaign.sqlite") as db:
        return db.execute("select clause, path, names from findings").fetchall()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def finding():
    found = runner_for(Bench("vtd", "v6")).run(parse(DEFECT + "map ctx=1 frame=ram:8 at=0x10\n").ops)
    assert found is not None
    return found


def children(pid):
    """Processes that ``pid`` started itself."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def say_half_a_word_in_the_first_worker(job, mouth):
    if job.seed % 10_000 == 0:
        os.write(mouth.fileno(), (1000).to_bytes(4, "big") + b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    work(job, mouth)


def tell_what_is_blocked(mouth):
    mouth.send(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))


def test_a_finding_is_a_directory_with_everything_to_go_on(tmp_path):
    store = Store(tmp_path)
    store.begin()
    found = finding()
    path = store.file(found, name(found))
    store.close()
    assert {p.suffix for p in path.iterdir()} == {".txt", ".py", ".json"}
    story = (path / "story.txt").read_text()
    for part in (
        "Catalogue: A9",
        "First seen",
        "State before",
        "The operation",
        "State after",
        "Replay: pviommu replay",
    ):
        assert part in story
    program = parse((path / "program.txt").read_text())
    again = runner_for(program.bench).run(program.ops)
    assert again is not None and again.key == found.key
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, path.glob("test_*.py"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "1 failed" in done.stdout


@pytest.mark.parametrize("address", ["toaster", "tcp://toaster", "http://toaster/8786", "tcp://:x"])
def test_an_address_that_is_none_is_told_in_a_line(address, tmp_path):
    done = CliRunner().invoke(app, ["fuzz", "--corpus", str(tmp_path / "new"), "--scheduler", address])
    assert done.exit_code == 2 and "tcp://host:8786" in done.output and not list(tmp_path.iterdir())


def test_a_campaign_that_was_moved_knows_where_its_findings_are(tmp_path):
    store, found = Store(tmp_path / "old"), finding()
    store.file(found, name(found))
    store.close()
    (tmp_path / "old").rename(tmp_path / "new")
    store = Store(tmp_path / "new")
    known, names = store.known(), store.names()
    store.close()
    assert list(known.values()) == list(names) and (Path(known[found.key]) / "program.txt").is_file()


def test_a_programs_of_a_dead_campaign_is_filed_by_the_next(tmp_path):
    store = Store(tmp_path)
    store.begin()
    store.close()
    keep_pending(tmp_path, finding().program)
    (tmp_path / "pending" / "torn.txt").write_text("# pviommu pro")
    progress = campaign.run(["vtd"], "v7-fixed", tmp_path, seconds=0.1, jobs=1, seed=0, max_ops=1)
    assert [key[0] for key in progress.findings] == ["written-back"]
    assert [names[0] for names in progress.names.values()] == ["A9"]
    assert not list(pending(tmp_path)) and not progress.unconfirmed


def test_a_program_that_breaks_nothing_any_more_is_told(tmp_path):
    store = Store(tmp_path)
    store.begin()
    store.close()
    keep_pending(tmp_path, parse(DEFECT.replace("v6", "v7-fixed") + "alloc\n"))
    done = subprocess.run(
        command(tmp_path, "--profile", "v7-fixed", "--time", "0.1", "--jobs", "1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "0 findings, 1 unconfirmed" in done.stdout
    assert [path.suffix for path in (tmp_path / "unconfirmed").iterdir()] == [".txt"]


def test_killing_everything_loses_nothing_and_resume_goes_on(tmp_path):
    directory = tmp_path / "campaign"
    running = subprocess.Popen(
        command(directory, "--time", "100", "--jobs", "1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: (directory / "pending").exists() and any((directory / "pending").glob("*.txt")))
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    waiting = {program.ops[-1][0] for _, program in pending(directory)}
    assert waiting
    before = len(rows(directory))
    done = subprocess.run(
        [*command(directory, "--resume", "--time", "0.1", "--jobs", "1")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert len(rows(directory)) > before and not list(pending(directory))


def test_a_killed_worker_is_replaced(tmp_path, monkeypatch):
    hired = []
    genuine = campaign.Campaign._hire

    def hire(self, seconds):
        genuine(self, seconds)
        _, worker = list(self._workers.values())[-1]
        hired.append(worker)
        if len(hired) == 1:
            os.kill(worker.pid, signal.SIGKILL)

    monkeypatch.setattr(campaign.Campaign, "_hire", hire)
    progress = campaign.run(["vtd"], "v7-fixed", tmp_path, seconds=300, jobs=1, seed=0, max_ops=400)
    assert len(hired) == 2 and progress.killed == 1 and progress.lost == 0
    assert progress.ops >= 400
    store = Store(tmp_path)
    assert sum(store.coverage().values()) == progress.ops
    store.close()


def eat(*_):
    """A fault that wants a tebibyte."""
    return bytearray(1 << 40)


def eat_in_the_first_worker(job, mouth):
    if job.seed % 10_000 == 0:
        Runner._dma = eat
    work(job, mouth)


def hoard_in_the_first_worker(job, mouth):
    """As much memory as there is goes bit by bit, and no program is to blame."""
    genuine, hoard = Generator.program, []

    def program(self, length):
        hoard.append(b"?" * (16 << 20))
        return genuine(self, length)

    if job.seed % 10_000 == 0:
        Generator.program = program
    work(job, mouth)


def test_a_worker_without_memory_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "work", hoard_in_the_first_worker)
    monkeypatch.setattr(campaign, "MEMORY", 600 << 20)
    progress = campaign.run(["vtd"], "v7-fixed", tmp_path, seconds=300, jobs=1, seed=0, max_ops=12_000)
    assert (progress.outgrown, progress.killed, progress.lost) == (1, 0, 0)
    assert progress.ops > 12_000 and not progress.findings and not list(pending(tmp_path))


def test_a_program_that_eats_memory_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "work", eat_in_the_first_worker)
    monkeypatch.setattr(campaign, "MEMORY", 2 << 30)
    monkeypatch.setattr(Runner, "_dma", eat)  # the coordinator looks at what is left
    progress = campaign.run(["vtd"], "v7-fixed", tmp_path, seconds=300, jobs=1, seed=0, max_ops=400)
    assert (progress.outgrown, progress.killed, progress.lost) == (1, 0, 0)
    assert [key[:3] for key in progress.findings] == [("exception", "dma", "MemoryError")]
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 2 << 30


def test_a_worker_ends_with_its_campaign(tmp_path):
    """However it went: its next word finds nobody to hear it."""
    running = subprocess.Popen(
        command(tmp_path, "--time", "100", "--jobs", "2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: any((tmp_path / "pending").glob("*.txt")))
        workers = children(running.pid)
    finally:
        running.kill()
        running.wait()
    assert len(workers) >= 2
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_a_worker_killed_in_the_middle_of_a_word_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "work", say_half_a_word_in_the_first_worker)
    progress = campaign.run(["vtd"], "v7-fixed", tmp_path, seconds=300, jobs=2, seed=0, max_ops=400)
    assert (progress.killed, progress.lost) == (1, 0) and progress.ops >= 800


def test_a_worker_that_fails_by_itself_is_a_fault_of_ours(tmp_path):
    progress = campaign.run(["vtd"], "v7-fixed", tmp_path, seconds=5, jobs=1, seed=0, engine="there is none")
    assert progress.lost == 1


def test_a_campaign_on_another_machine_finds_what_shows_there(tmp_path):
    directory = tmp_path / "c"
    asked = ["--profile", "v7-fixed", "--defect", "S2", "--machine", "few-ids", "--jobs", "1", "--time", "100"]
    done = subprocess.run([*command(directory), *asked, "--stop-on-first"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found = parse(next(directory.glob("findings/*/program.txt")).read_text())
    assert (found.bench.backend, found.bench.machine) == ("vtd", "few-ids")
    assert Store(directory).options()["machine"] == "few-ids"


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["--machine", "narow"], "unknown machine 'narow'; there are: usual, narrow"),
        (["--machine", "narrow", "--backend", "smmuv3"], "--machine narrow is of vtd, not of smmuv3"),
        (["--machine", "narrow", "--profile", "v9"], "unknown profile 'v9'; there are: "),
        (["--machine", "narrow", "--level", "driver"], "--machine is for hypercalls"),
        (["--machine", "command-line", "--profile", "v7-fixed"], "those of v7-fixed call init"),
    ],
)
def test_a_machine_that_cannot_be_had_is_told_before_anything_is_made(tmp_path, asked, complaint):
    done = subprocess.run([*command(tmp_path / "c"), *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and complaint in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_interrupting_leaves_a_campaign_to_resume(tmp_path):
    directory = tmp_path / "campaign"
    running = subprocess.Popen(command(directory, "--time", "100", "--jobs", "1"), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (directory / "campaign.sqlite").exists() and any(directory.glob("findings/*/finding.json")))
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 130 and "--resume" in said
    assert rows(directory)


@pytest.mark.parametrize(("defect", "line"), [("A9", "map ctx=1 frame=ram:8 at=0x10"), ("A6", "alloc flags=0x1")])
def test_a_finding_is_named_by_the_defect_that_makes_it(defect, line):
    found = runner_for(Bench("vtd", "v6")).run(parse(DEFECT + line + "\n").ops)
    assert found is not None and defect in name(found)[:2] and name(found) == name(found)


def test_what_no_entry_explains_is_new():
    bench = Bench("vtd", "v7-fixed")
    found = runner_for(bench, lambda bed: setattr(bed.xen.frames, "get", lambda mfn, count, ref: None)).run(
        parse(DEFECT.replace("v6", "v7-fixed") + "alloc\nmap ctx=1 frame=ram:8 at=0x10\n").ops
    )
    assert found is not None and name(found) == ()


def test_what_a_sweep_finds_can_be_known_too():
    bench = Bench("vtd", "v7-fixed", known="invariant:references/*/*,answer/map/0")
    assert parse(str(Program(bench, ()))).bench == bench and runner_for(bench).run(()) is None
    with pytest.raises(ProgramError, match="no fault that can be known"):
        runner_for(Bench(known="xen-bug/map/XenBug"))


def test_what_is_known_is_passed_over_and_the_program_says_so():
    runner = runner_for(Bench("vtd", "v6", known="written-back/map/0"))
    found = runner.run(parse(DEFECT + "map ctx=1 frame=ram:8 at=0x10\nalloc flags=0x1\n").ops)
    assert found is not None and found.clause == "answer" and len(found.program.ops) == 2
    assert found.program.bench.known == "written-back/map/0"
    assert parse(str(Program(found.program.bench, found.program.ops))) == found.program


def test_a_finding_that_takes_two_defects_is_named_by_both():
    program = parse(
        "# pviommu program 1\nbench profile=v6 guest=pv contexts=4 arena=8 known=written-back/map/0\n"
        "map ctx=1 frame=ram:0 at=0x40200 pages=512\nfail allocation=1\nunmap ctx=1 at=0x40200\n"
    )
    found = runner_for(program.bench).run(program.ops)
    assert found is not None and found.clause == "short-of-memory"
    assert name(found) == ("S1", "A9")


def test_interrupts_are_blocked_in_a_worker_before_its_first_instruction():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=tell_what_is_blocked, args=(theirs,))
    start(worker)
    assert ours.recv() and signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    worker.join()


def test_a_campaign_with_findings_goes_on_until_there_is_another(tmp_path):
    more = {"seconds": 300, "jobs": 1, "seed": 0, "max_ops": 3000, "stop_on_first": True}
    first = campaign.run(["vtd"], "v6", tmp_path, **more)
    second = campaign.run(["vtd"], "v6", tmp_path, **more)
    assert len(second.findings) > len(first.findings) and second.ops


def test_a_campaign_is_resumed_as_it_was_started(tmp_path):
    campaign.run(["vtd"], "v7-fixed", tmp_path, seconds=200, jobs=1, seed=3, max_ops=400)
    resumed = ["fuzz", "--resume", "--corpus", str(tmp_path)]
    for odd in (["--profile", "v6"], ["--backend", "both"], ["--level", "driver"], ["--seed", "4"], ["--defect", "A5"]):
        done = CliRunner().invoke(app, [*resumed, *odd])
        assert done.exit_code == 2 and odd[0] in done.output, odd
    assert CliRunner().invoke(app, [*resumed, "--profile", "v7-fixed", "--seed", "3"]).exit_code == 0
    store = Store(tmp_path)
    kept = store.options()
    store.close()
    assert (kept["seconds"], kept["jobs"], kept["max_ops"], kept["seed"]) == (200, 1, 400, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--machine", "narrow", "--engine", "differential"], "machine=narrow is of vtd"),
        (["--machine", "32-bit", "--engine", "together"], "machine=32-bit runs one vCPU at a time"),
        (
            ["--machine", "command-line", "--profile", "v2-fixed", "--engine", "differential", "--against", "v4-fixed"],
            "v4-fixed",
        ),
    ],
    ids=["narrow", "32-bit", "command-line"],
)
def test_engines_and_machines_that_do_not_go_together_are_told_in_a_line(options, says, tmp_path):
    done = CliRunner().invoke(app, ["fuzz", "--corpus", str(tmp_path / "new"), "--time", "1", "--jobs", "1", *options])
    assert done.exit_code == 2 and says in done.output and not list(tmp_path.iterdir())


def test_what_a_defect_needs_is_named_too():
    program = parse(
        "# pviommu program 1\nbench profile=v7-fixed guest=pv contexts=4 arena=8 defects=A5\n"
        "alloc\nmap ctx=1 frame=ram:512 at=0x200 pages=512\n"
    )
    found = runner_for(program.bench).run(program.ops)
    assert found is not None and (found.clause, name(found)) == ("idle", ("S1",))


@pytest.mark.parametrize(
    "options", [["--driver", "rfc-v3"], ["--engine", "differential", "--against", "rfc-v3"]], ids=["driver", "against"]
)
def test_a_driver_takes_driver_level(options, tmp_path):
    done = CliRunner().invoke(app, ["fuzz", "--corpus", str(tmp_path / "new"), *options])
    assert done.exit_code == 2 and "--level driver" in done.output and not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [[], ["--resume"]], ids=["begun", "resumed"])
def test_a_directory_with_something_else_in_the_databases_place_is_told_in_a_line(options, tmp_path):
    (tmp_path / "campaign.sqlite").write_text("no database " * 100)
    done = CliRunner().invoke(app, ["fuzz", "--corpus", str(tmp_path), "--time", "1", "--jobs", "1", *options])
    assert done.exit_code == 2 and "campaign.sqlite: file is not a database" in done.output


def find_no_room(job, mouth):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "pending")

    worker.keep_pending = full
    work(job, mouth)


def test_a_disk_that_is_full_is_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "work", find_no_room)
    with pytest.raises(OSError, match="No space left"):
        campaign.run(["vtd"], "v6", tmp_path, seconds=300, jobs=2, seed=0)


def test_a_worker_that_fails_says_so_without_a_traceback(tmp_path, capfd):
    campaign.run(["vtd"], "v7-fixed", tmp_path, seconds=5, jobs=1, seed=0, engine="there is none")
    said = capfd.readouterr().err
    assert "pviommu: a worker failed: KeyError: 'there is none'" in said and "Traceback" not in said

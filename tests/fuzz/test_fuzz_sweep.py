# SPDX-License-Identifier: GPL-2.0-or-later
"""Fail-nth: every place fails once, sound code takes it, and code that does not is found."""

import json

import pytest
from typer.testing import CliRunner

from fuzz.engines.fail_nth import FailNth
from fuzz.program import parse
from fuzz.run import replay
from fuzz.session import Session
from fuzz.verbs import ProgramError
from hypervisor.iommu.pool import Arena
from pviommu.cli import app

TEXT = """# pviommu program 1
bench backend={backend} profile={profile} guest=pv contexts=4 arena=6{more}
alloc
attach copier ctx=1
attach nic ctx=1
map ctx=1 frame=ram:0 at=0x400 pages=256
map ctx=1 frame=ram:256 at=0x500 pages=256
dma copier at=0x400 pages=512
unmap ctx=1 at=0x483
dma copier at=0x483
remove frame=ram:600
free ctx=1 flags=0x1
dma nic at=0x200
"""


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
@pytest.mark.parametrize("profile", ["v7-fixed", "v3-fixed"])
def test_every_place_may_fail_in_sound_code(backend, profile):
    engine = FailNth(parse(TEXT.format(backend=backend, profile=profile, more="")))
    assert engine.plain is None
    assert {"copy-in", "copy-out", "arena", "tag", "confirm", "xenheap"} <= engine.reached.keys()
    runs = list(engine.runs())
    assert len(runs) == engine.places > 25
    assert not [f"{run.plan}: {run.finding}" for run in runs if run.finding is not None]


def test_a_failure_is_a_line_of_a_program_and_does_what_it_says():
    text = TEXT.format(backend="vtd", profile="v7-fixed", more="").replace("alloc\n", "fault plan=arena:1\nalloc\n")
    engine = FailNth(parse(text))  # takes it out again
    assert engine.plain is None
    session = Session(parse(text))
    session.goto(3)
    assert [step.answer for step in session.steps] == ["0", "ENOMEM", "ENOENT"]
    assert session.broken is None


def test_code_that_cannot_take_a_failure_is_found(monkeypatch):
    monkeypatch.setattr(Arena, "free", lambda self, page: None)
    engine = FailNth(parse("# pviommu program 1\nbench\nalloc\n"))
    assert engine.plain is None, "nothing is wrong while nothing fails"
    found = {run.plan: run.finding.clause for run in engine.runs() if run.finding is not None}
    assert found == {"tag:1": "invariant:arenas_are_accounted_for"}


def test_the_command_says_what_it_did(tmp_path):
    (tmp_path / "one.txt").write_text(TEXT.format(backend="vtd", profile="v7-fixed", more=""))
    (tmp_path / "story.txt").write_text("no program\n")
    done = CliRunner().invoke(app, ["sweep", str(tmp_path), "--json"])
    report = json.loads(done.stdout)
    assert done.exit_code == 0 and report["findings"] == 0
    assert report["places"] == sum(report["programs"][0]["places"].values()) > 25


def test_what_cannot_be_swept_is_one_line(tmp_path):
    assert CliRunner().invoke(app, ["sweep", str(tmp_path)]).exit_code == 2
    with pytest.raises(ProgramError, match="one machine"):
        FailNth(parse("# pviommu program 1\nbench against=smmuv3\nalloc\n"))
    with pytest.raises(ProgramError, match="no fault"):
        replay(parse("# pviommu program 1\nbench\nfault plan=toaster:1\n"))


def test_a_directory_is_swept_as_far_as_its_programs_can_be(tmp_path):
    (tmp_path / "first.txt").write_text("# pviommu program 1\nbench against=smmuv3\nalloc\n")
    (tmp_path / "later.txt").write_text("# pviommu program 1\nbench\nalloc\nvcpu 0\nalloc\nvcpu 1\nquery\n")
    (tmp_path / "plain.txt").write_text("# pviommu program 1\nbench profile=v6\nalloc flags=0x1\n")
    (tmp_path / "sound.txt").write_text("# pviommu program 1\nbench\nalloc\n")
    done = CliRunner().invoke(app, ["sweep", str(tmp_path), "--json"])
    report = json.loads(done.stdout)
    assert done.exit_code == 1 and report["findings"] == 1
    said = {program["program"].rpartition("/")[2]: program for program in report["programs"]}
    assert said.keys() == {"plain.txt", "sound.txt"}
    assert said["plain.txt"]["findings"][0]["clause"] == "answer" and said["sound.txt"]["places"]
    assert done.stderr.count("one machine and one vCPU; not swept") == 2
    assert CliRunner().invoke(app, ["sweep", str(tmp_path / "later.txt")]).exit_code == 2

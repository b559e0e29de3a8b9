# SPDX-License-Identifier: GPL-2.0-or-later
"""A program walked through: the state after any operation, by command and at a prompt."""

import subprocess
import sys

import pytest

from fuzz import state
from fuzz.program import parse
from fuzz.session import Session

TEXT = """# pviommu program 1
bench backend=vtd profile=v7-fixed guest=pv contexts=4 arena=6
alloc
attach copier ctx=1
map ctx=1 frame=ram:0 at=0x400 pages=512
dma copier at=0x400 pages=512
unmap ctx=1 at=0x483
remove frame=ram:1000
"""
FAULTY = TEXT.replace("arena=6", "arena=6 defects=A5")


def pviommu(*args, given=""):
    command = [sys.executable, "-m", "pviommu", *map(str, args)]
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def program(tmp_path):
    def write(text):
        path = tmp_path / "program.txt"
        path.write_text(text)
        return path

    return write


def test_a_session_goes_forwards_and_backwards():
    session = Session(parse(TEXT))
    session.goto(5)
    later = list(state.overview(session.bed))
    session.goto(3)
    middle = list(state.overview(session.bed))
    session.goto(5)
    assert list(state.overview(session.bed)) == later != middle
    assert [step.answer for step in session.steps] == ["0"] * 5


def test_the_state_says_what_the_program_did():
    session = Session(parse(TEXT))
    session.goto(3)
    text = "\n".join(state.overview(session.bed))
    assert "dfn 0x400 to 0x5ff -> frame 0x200 RW 2 MiB x 1" in text
    assert "copier (0000:00:04.0): context 1, reserved dfns 0xc00 to 0xc03" in text
    assert "ram:0 to ram:511: 2 references, 1 of them to write" in text
    session.goto(6)
    assert "ram:1000: 0 references, 0 of them to write, taken from the guest" in list(state.references(session.bed))
    assert any("reaches 0x204000, rw, a page of 4 KiB" in line for line in state.walk(session.bed, 0x20, 0x404, True))
    assert any("blocked" in line for line in state.walk(session.bed, 0x20, 0x483, False))


def test_looking_changes_nothing():
    plain, watched = Session(parse(TEXT)), Session(parse(TEXT))
    for session, looks in ((plain, False), (watched, True)):
        while session.position < len(session.ops):
            session.step()
            if looks:
                list(state.overview(session.bed))
                list(state.walk(session.bed, 0x20, 0x500, True))
    assert bytes(plain.bed.memory.read(0, 16 << 20)) == bytes(watched.bed.memory.read(0, 16 << 20))
    assert plain.bed.unit.counters == watched.bed.unit.counters


def test_replay_shows_the_state_after_an_operation(program):
    status, out, _ = pviommu("replay", program(TEXT), "--at", 3)
    assert status == 0
    assert out.index("map ctx=1") < out.index("  |   level 3 table") < out.index("dma copier")


def test_replay_finds_what_is_broken_and_stops_there(program):
    status, out, _ = pviommu("replay", program(FAULTY))
    assert status == 1
    assert out.splitlines()[-1].startswith("# broken: ")


@pytest.mark.parametrize("option", ["--at", "--until"])
def test_a_place_beyond_the_end_is_one_line(program, option):
    status, out, err = pviommu("replay", program(TEXT), option, 7)
    assert status == 2 and not out
    assert err.count("\n") == 1 and "6 operations" in err


def test_the_prompt_walks_looks_and_survives_mistakes(program):
    given = "step 3\ntables 1\nwalk copier 0x401 w\nrefs 3\nwalk toaster 1\nstep x\nfly\ngoto 1\nop alloc\nlist\nlog\n"
    status, out, err = pviommu("replay", program(TEXT), "--shell", given=given)
    assert status == 0 and not err
    for said in (
        "3: map ctx=1 frame=ram:0 at=0x400 pages=512  # 0",
        "2 MiB x 1",
        "reaches 0x201000, rw",
        "ram:3 is frame 0x203: 2 references",
        "walk takes a device",
        "no command 'fly'",
        "2: alloc  # 0",
        "dmar0: 0 faults",
    ):
        assert said in out, said


def test_the_prompt_answers_1_when_something_broke(program):
    assert pviommu("replay", program(FAULTY), "--shell", given="run\nquit\n")[0] == 1


POSTED = """# pviommu program 1
bench backend=vtd profile=v6 guest=pv contexts=4 arena=8 known=written-back/map/0
map ctx=1 frame=ram:0 at=0x40200 pages=512
fail allocation=1
unmap ctx=1 at=0x40200
"""
"""Of posted v6: what is known is passed, and only sweeps see the references that the first call lost."""


def test_a_replay_passes_what_is_known_and_ends_at_the_programs_own_finding(program):
    status, out, err = pviommu("replay", program(POSTED))
    assert status == 1 and not err and "written-back" not in out
    assert "# broken: invariant:references" in out
    assert out.endswith(
        "unmap ctx=1 at=0x40200  # ENOMEM\n# broken: short-of-memory: unmap_pages answered ENOMEM, not 0\n"
    )


def test_going_back_to_the_start_forgets_no_finding(program):
    assert pviommu("replay", program(FAULTY), "--at", 0)[0] == 1


def test_a_state_behind_the_end_of_the_replay_is_one_line(program):
    status, out, err = pviommu("replay", program(TEXT), "--at", 5, "--until", 3)
    assert status == 2 and not out
    assert err == "pviommu: --at 5 is after --until 3, where the replay ends\n"


AT_ONCE = """# pviommu program 1
bench backend=smmuv3 profile=v7-fixed guest=pv contexts=4 arena=8 defects=S7 vcpus=2
create_domain domain=1
assign rogue domain=1
vcpu 0
assign copier domain=1
deassign rogue domain=0
"""


def test_what_breaks_under_a_schedule_is_told_by_a_replay(program):
    status, out, _ = pviommu("replay", program(AT_ONCE))
    assert status == 1 and "# broken: lock-order: " in out
    status, out, _ = pviommu("replay", program(AT_ONCE.replace(" defects=S7", "")))
    assert status == 0 and "broken" not in out


def test_the_prompt_takes_no_operation_that_cannot_be_run_here(program):
    given = "op map ctx=0x10000 frame=ram:0 at=0x1\nop vcpu 1\nop iommu_unmap domain=0 iova=0x1000\n"
    given += "list\nwalk nic -1\ngoto x\n"
    status, out, err = pviommu("replay", program(TEXT), "--shell", given=given)
    assert status == 0 and not err
    for said in (
        "map_pages.ctx_no is 16 bits wide",
        "the program is of one vCPU",
        "iommu_unmap is no operation of 'typed' level",
        "'-1' is not a number",
        "'x' is not a number",
    ):
        assert said in out, said
    assert "7: " not in out, "it became longer"


def test_an_operation_that_does_not_end_is_stopped(monkeypatch):
    def for_ever(*_):
        while True:
            pass

    monkeypatch.setattr("fuzz.session.PATIENCE", 0.2)
    session = Session(parse(TEXT))
    session.runner.steps["alloc"] = for_ever
    assert session.step().answer == "hang" and session.broken is not None


HIDDEN = """# pviommu program 1
bench backend=vtd profile=v7-fixed guest=pv contexts=4 arena=6 defects=T1
alloc
map ctx=1 frame=ram:9 at=0x400 pages=4
free ctx=1 flags=0x1
"""


def test_what_a_later_operation_hides_is_shrunk_too(program):
    assert pviommu("replay", program(HIDDEN))[0] == 1
    status, out, _ = pviommu("shrink", program(HIDDEN))
    assert status == 1 and out.endswith("\nalloc\nmap ctx=1 frame=ram:8 at=0x0\n")


def test_an_operation_that_cannot_be_expressed_is_named(program):
    status, _, said = pviommu("replay", program(TEXT.replace("attach copier ctx=1", "attach copier ctx=0x10000")))
    assert status == 2 and "attach copier ctx=65536: reattach_device.ctx_no is 16 bits wide" in said


def test_a_byte_order_mark_is_no_part_of_a_program(program):
    path = program(TEXT)
    path.write_text(TEXT, encoding="utf-8-sig")
    assert pviommu("replay", path)[0] == 0

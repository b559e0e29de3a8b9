# SPDX-License-Identifier: GPL-2.0-or-later
"""A program as a C file: it compiles without warnings, and its answers are the emulator's."""

import shutil
import subprocess
from pathlib import Path

import pytest
from privcmd_standin import Standin
from typer.testing import CliRunner

from abi import versions
from fuzz.export.c_program import CProgram
from fuzz.generate import Generator
from fuzz.program import Bench, Program, ProgramError, parse
from fuzz.raw import RawGenerator
from fuzz.target import Target
from pviommu.cli import app

CC = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler")
STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1")
HERE = Path(__file__).parent

TEXT = """# pviommu program 1
bench backend=vtd profile={profile} guest={guest} contexts=4 arena=6
query
alloc
alloc flags=0x80000000
attach copier ctx=1
attach foreign ctx=1
map ctx=1 frame=ram:0 at=0x400 pages=256
dma copier at=0x400 pages=2
map ctx=1 frame=ram:9 at=0x800 arg=readonly
map ctx=1 frame=ram:9 at=0x800 arg=split
map ctx=1 frame=ram:9 at=0x801 arg=unmapped
map ctx=1 frame=xen:9 at=0x802 arg=noncanonical
map ctx=1 frame=xen:9 at=0x802
unmap ctx=1 at=0x483
free ctx=1
free ctx=1 flags=1
raw subop=0x44 bytes=01
"""
REMOTE = """# pviommu program 1
bench backend=vtd profile=v7-fixed guest=pv contexts=4 arena=6
remote domain=0
alloc
remote domain=0
map ctx=1 frame=ram:9 at=0x400 pages=3
progress pages=0x100
map ctx=1 frame=ram:9 at=0x800 pages=300
remote domain=77
unmap ctx=1 at=0x400
remote domain=0
unmap ctx=1 at=0x400 arg=readonly
"""


def build(text, directory, *more):
    source, output = directory / "replay.c", directory / "replay"
    source.write_text(text)
    subprocess.run([CC, *STRICT, *more, "-o", output, source], check=True)
    return output


@pytest.fixture(scope="module")
def interposer(tmp_path_factory):
    output = tmp_path_factory.mktemp("privcmd") / "interposer.so"
    subprocess.run([CC, *STRICT, "-shared", "-fPIC", "-o", output, HERE / "privcmd_interposer.c", "-ldl"], check=True)
    return output


@pytest.mark.parametrize(("profile", "guest"), [("v7-fixed", "pv"), ("v3-fixed", "pvh")])
def test_the_answers_are_the_emulators(profile, guest, interposer, tmp_path):
    program = parse(TEXT.format(profile=profile, guest=guest))
    standin = Standin(interposer, program.bench, tmp_path)
    status, output = standin.run(build(CProgram(program).text(), tmp_path))
    assert status == 0, output
    assert "# skipped" in output and "a device's access has no counterpart in user space" in output
    made = len(program.ops) - 1 + (profile != "v3-fixed")
    assert f"{made} compared, 0 different, 1 without a counterpart here" in output
    assert standin.calls >= made


def test_calls_may_be_carried_and_may_claim_progress(interposer, tmp_path):
    program = parse(REMOTE)
    status, output = Standin(interposer, program.bench, tmp_path).run(build(CProgram(program).text(), tmp_path))
    assert status == 0, output
    assert "6 operations: 6 compared" in output
    assert "unmap ctx=1 at=0x400: -2" in output, "there is no domain 77"


def test_another_hypervisor_gives_other_answers(interposer, tmp_path):
    program = parse(TEXT.format(profile="v6", guest="pv"))
    fixed = Bench("vtd", "v6-fixed", "pv", 4, 6)
    status, output = Standin(interposer, fixed, tmp_path).run(build(CProgram(program).text(), tmp_path))
    assert status == 1
    assert "DIFFERENT" in output


def test_contexts_may_have_other_numbers_there(interposer, tmp_path):
    program = parse(
        "# pviommu program 1\nbench backend=vtd profile=v7-fixed guest=pv contexts=4 arena=6\n"
        "alloc\nmap ctx=1 frame=ram:9 at=0x400\nunmap ctx=1 at=0x400\nunmap ctx=1 at=0x400\n"
    )
    standin = Standin(interposer, program.bench, tmp_path)
    target = standin.target
    target.call("init", (4, 6))
    target.call("alloc_context", (0, 0))
    status, output = standin.run(build(CProgram(program).text(), tmp_path))
    assert status == 0, output
    assert "# context 1 of the program is 2 here" in output
    assert sorted(target.bed.dom0.iommu.contexts) == [1], "what the program made is gone again"


REGIONS = """# pviommu program 1
bench backend=vtd profile={profile} guest=pv contexts=4 arena=6
regions copier
regions copier slots=0
regions nic all=1 slots=1
regions nic
regions foreign all=2
"""


@pytest.mark.parametrize("profile", ["v7-fixed", "v3-fixed"])
def test_reserved_regions_are_asked_of_memory_op_and_compared(profile, interposer, tmp_path):
    program = parse(REGIONS.format(profile=profile))
    status, output = Standin(interposer, program.bench, tmp_path).run(build(CProgram(program).text(), tmp_path))
    assert status == 0, output
    made = len(program.ops) + (profile != "v3-fixed")
    assert f"{made} operations: {made} compared, 0 different, 0 without" in output
    assert "regions copier slots=0: -105" in output and "regions foreign all=2: -22" in output


def _another_count(answer):
    answer.struct[4] += 1


def _another_flag(answer):
    answer.struct[0] ^= 1


def _another_region(answer):
    answer.entries[0] += 1


def _one_more_region(answer):
    answer.entries[16] += 1


WRONG = {
    "nr_entries is 0x2, expected 0x1": _another_count,
    "byte 0 was written": _another_flag,
    "region 0 is 0xc01+0x4, expected 0xc00+0x4": _another_region,
    "byte 16 of the entries was written": _one_more_region,
}


class Answer:
    """What the stand-in's hypervisor left: the struct and 64 bytes of entries."""

    def __init__(self, memory, address):
        self._memory, self._address = memory, address
        self.struct = bytearray(memory.read(address, 24))
        self._buffer = int.from_bytes(self.struct[8:16], "little")
        self.entries = bytearray(memory.read(self._buffer, 64))

    def store(self):
        assert self._memory.write(self._address, self.struct) and self._memory.write(self._buffer, self.entries)


@pytest.mark.parametrize("seen", WRONG)
def test_whatever_is_written_back_about_regions_is_looked_at(seen, interposer, tmp_path):
    program = parse("# pviommu program 1\nbench profile=v7-fixed guest=pv contexts=4 arena=6\nregions copier\n")
    standin = Standin(interposer, program.bench, tmp_path)
    xen = standin.bed.xen
    genuine = xen.hypercall

    def differs(vcpu, number, *args):
        result = genuine(vcpu, number, *args)
        if number == 12:
            answer = Answer(vcpu.memory, args[1])
            WRONG[seen](answer)
            answer.store()
        return result

    xen.hypercall = differs
    status, output = standin.run(build(CProgram(program).text(), tmp_path))
    assert status == 1
    assert f"DIFFERENT 2: regions copier: {seen}" in output


DRIVER = """# pviommu program 1
bench backend=vtd profile={profile} guest={guest} level=driver driver={driver}
domain_alloc domain=0 copier
domain_attach domain=0 copier
iommu_map domain=0 iova=0x40000000 frames=near pages=8
fail_call unmap_pages errno=EIO page=3
iommu_unmap domain=0 iova=0x40000000 pages=8
dma copier at=0x40000
get_resv_regions copier
dma_map_page slot=1 nic bytes=5000
shutdown
"""
DRIVERS = [("v7-fixed", "pv", "reference"), ("v3-fixed", "pvh", "reference"), ("v4-fixed", "pv", "rfc-v3")]


@pytest.mark.parametrize(("profile", "guest", "driver"), DRIVERS)
def test_of_driver_level_it_is_what_the_driver_asked_of_the_hypervisor(profile, guest, driver, interposer, tmp_path):
    program = parse(DRIVER.format(profile=profile, guest=guest, driver=driver))
    text = CProgram(program).text()
    said = "These are the hypercalls that the guest's driver made in a program of driver level"
    assert text.count(said) == 2, "in the comment at its head, and in what it prints"
    standin = Standin(interposer, program.bench, tmp_path)
    status, output = standin.run(build(text, tmp_path), PVIOMMU_KEEP="1")
    assert status == 0, output
    assert f"# {said}" in output
    assert f"{standin.calls} compared, 0 different" in output and standin.calls > 10
    assert "get_resv_regions copier: reserved_device_memory_map: 0" in output
    assert "1 without a counterpart here" in output


def test_calls_of_a_driver_are_compared_with_what_another_hypervisor_answers(interposer, tmp_path):
    text = CProgram(parse(DRIVER.format(profile="v6", guest="pv", driver="reference"))).text()
    fixed = parse(DRIVER.format(profile="v6-fixed", guest="pv", driver="reference")).bench
    status, output = Standin(interposer, fixed, tmp_path).run(build(text, tmp_path))
    assert status == 1 and "DIFFERENT" in output


def test_a_device_that_was_pulled_out_stays_there_and_the_file_says_so():
    text = CProgram(parse("# pviommu program 1\nbench guest=pv level=driver\nunplug nic\n")).text()
    assert 'skip("unplug nic", "the device stays where it is here; later answers may differ");' in text


def test_a_machine_that_is_not_the_usual_one_is_explained():
    text = CProgram(parse("# pviommu program 1\nbench machine=narrow\nquery\n")).text()
    assert "(the unit walks trees of three levels only, 39 bits): others may answer otherwise" in text


def test_a_program_of_32_bit_callers_is_refused():
    with pytest.raises(ProgramError, match="C is for 64-bit callers"):
        CProgram(parse("# pviommu program 1\nbench machine=32-bit\nquery\n"))


def test_a_program_of_two_machines_is_refused():
    for bench in ("against=smmuv3", "vcpus=2", "level=driver against=smmuv3"):
        with pytest.raises(ProgramError, match="one machine"):
            CProgram(parse(f"# pviommu program 1\nbench guest=pv {bench}\n"))


@pytest.mark.parametrize("level", ["typed", "raw"])
@pytest.mark.parametrize("profile", ["v7-fixed", "v3-fixed"])
def test_generated_programs_get_the_same_answers(level, profile, interposer, tmp_path):
    bench = Bench("smmuv3", profile, "pvh", 4, 8)
    if level == "typed":
        source = Generator(bench, versions.get(profile[:2]), 8)
    else:
        source = RawGenerator(Target(bench), 8)
    inside = ("fail", "remove", "preempt", "init", "p2m", "hang", "fault")
    ops = tuple(operation for operation in source.program(60) if operation[0] not in inside)
    program = Program(bench, ops)
    status, output = Standin(interposer, bench, tmp_path).run(build(CProgram(program).text(), tmp_path, "-Wno-unused"))
    assert status == 0, output


def test_a_call_that_stopped_the_emulator_is_not_made_unasked(interposer, tmp_path, monkeypatch):
    program = parse("# pviommu program 1\nbench\nalloc\nfree ctx=1\nalloc\n")
    exported = CProgram(program)
    target = exported._session.runner.target
    genuine = target._hypercall

    def stops(vcpu, number, *args):
        if args[0] == 4:
            raise RuntimeError("the emulator stopped")
        return genuine(vcpu, number, *args)

    target._hypercall = stops
    text = exported.text()
    standin = Standin(interposer, program.bench, tmp_path)
    binary = build(text, tmp_path)
    status, output = standin.run(binary)
    assert status == 0 and "# not made 3: free ctx=1: it stopped the emulated hypervisor" in output
    standin = Standin(interposer, program.bench, tmp_path)
    status, output = standin.run(binary, PVIOMMU_STOP="1")
    assert "ok 3: free ctx=1: 0" in output


def test_without_the_device_it_says_so(tmp_path):
    path = tmp_path / "program.txt"
    path.write_text("# pviommu program 1\nbench\nalloc\n")
    source = tmp_path / "out.c"
    assert CliRunner().invoke(app, ["export", str(path), "--to", "c", "-o", str(source)]).exit_code == 0
    done = subprocess.run([build(source.read_text(), tmp_path)], capture_output=True, text=True)
    if done.returncode == 2:  # on a Xen it would have run
        assert done.stderr.startswith("/dev/xen/privcmd: ") and done.stderr.count("\n") == 1


def test_an_unknown_form_is_wrong_usage(tmp_path):
    path = tmp_path / "program.txt"
    path.write_text("# pviommu program 1\nbench\nalloc\n")
    assert CliRunner().invoke(app, ["export", str(path), "--to", "perl"]).exit_code == 2


def test_what_is_known_of_a_program_ends_no_comment(tmp_path):
    text = TEXT.format(profile="v7-fixed", guest="pv").replace("arena=6", "arena=6 known=invariant:references/*/*")
    build(CProgram(parse(text)).text(), tmp_path)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs on the Python iommufd: compiled C over every machine, ends of all kinds, and what users get wrong."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from guest_driver.iommufd import c_header, uapi
from testbed.serve import description, seccomp
from testbed.serve.description import Description
from testbed.serve.run import serve
from testbed.serve.seccomp import Unsupported

PROGRAMS = Path(__file__).parent / "programs"
COMMAND = [sys.executable, "-m", "pviommu", "serve-iommufd"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Compile a program; skips where there is no compiler or no user notification."""
    try:
        seccomp.check()
    except Unsupported as missing:
        pytest.skip(str(missing))
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("programs")
    (folder / "iommufd.h").write_text(c_header.header())

    def build(name):
        out = folder / name
        if not out.exists():
            flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{folder}", f"-I{PROGRAMS}", "-lpthread"]
            subprocess.run([compiler, str(PROGRAMS / f"{name}.c"), "-o", str(out), *flags], check=True)
        return str(out)

    return build


def run(*arguments, **options):
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=300, **options)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("machine", ["mock", "vtd", "smmuv3"])
def test_a_program_works_on_every_machine(built, machine):
    assert run("--machine", machine, "--", built("client"), "dirty" if machine == "mock" else "") == (0, "")


@pytest.mark.parametrize("machine", ["mock", "vtd"])
def test_sizes_that_a_program_makes_up_cost_nothing(built, machine):
    """Neither memory of the supervisor nor its life; and no call on a served file waits for ever."""
    assert run("--machine", machine, "--", built("hostile"), "dirty" if machine == "mock" else "") == (0, "")


def test_a_conformance_program_with_test_commands(built):
    assert run("--test", "--", built("selftest")) == (0, "")
    status, out = run("--", built("selftest"))
    assert status == 1 and "failures" in out, "without --test there is no such ioctl"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_it_needs_no_privileges(built):
    script = (
        "import encodings.ascii, os, sys, testbed.backends\n"
        "from testbed.serve import run, description\n"
        "program = os.open(sys.argv[1], os.O_RDONLY)  # its folder is root's\n"
        "os.set_inheritable(program, True)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "outcome = run.serve(description.Description(), [f'/proc/self/fd/{program}', 'dirty'])\n"
        "sys.exit(outcome.status or len(outcome.left + outcome.warnings))"
    )
    done = subprocess.run([sys.executable, "-c", script, built("client")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_program_that_is_killed_leaves_nothing(built):
    lines = []
    server = subprocess.Popen([*COMMAND, "--trace", "--", built("client"), "hang"], stdout=-1, stderr=-1, text=True)
    for line in server.stdout:
        lines.append(line)
        if line == "ready\n":
            break
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    out, err = server.communicate(timeout=300)
    assert server.returncode == 128 + signal.SIGKILL and lines == ["ready\n"] and out == ""
    assert "left behind" not in err and "ioctl 0x3b81 = 0" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_told_to_end_takes_its_program_along(built, number):
    server = subprocess.Popen([*COMMAND, "--", "sh", "-c", "echo ready; exec sleep 300"], stdout=-1, text=True)
    assert server.stdout.readline() == "ready\n"
    server.send_signal(number)
    assert server.communicate(timeout=120)[0] == "", "that it comes back says that nobody has the pipe any more"
    assert server.returncode in (128 + number, -number)


def test_the_outcome_names_warnings_and_leaks(built, monkeypatch):
    from guest_driver.iommufd.vfio_device import VfioDevice

    monkeypatch.setattr(VfioDevice, "release", lambda self: None)
    outcome = serve(Description(), [built("client")])
    assert outcome.status and outcome.left and any("owned" in line for line in outcome.left)


def test_a_released_kernel_can_be_asked_for(built):
    status, out = run("--kernel", "6.6", "--", built("client"))
    assert status == 1 and "IOMMU_IOAS_MAP_FILE" in out, "6.6 has no such ioctl"


def test_other_files_are_the_programs_own(built, tmp_path):
    (tmp_path / "iommu").write_text("mine")
    script = "print(open('iommu').read(), open('/proc/self/comm').read().strip() != '')"
    assert run("--", sys.executable, "-c", script, cwd=tmp_path)[1].split()[0] == "mine"
    script = "import os; os.chdir('/dev'); print(os.readlink(f'/proc/self/fd/{os.open(\"iommu\", 2)}'))"
    assert run("--", sys.executable, "-c", script)[1].startswith("socket:")


def test_a_program_that_cannot_be_executed(built):
    status, out = run("--", "/nonexistent")
    assert status == 127 and out.count("\n") == 1


def test_without_user_notification_it_is_one_line_and_2(monkeypatch, capsys):
    from typer.testing import CliRunner

    from pviommu.cli import app

    def missing():
        raise Unsupported("no such thing here")

    monkeypatch.setattr(seccomp, "check", missing)
    result = CliRunner().invoke(app, ["serve-iommufd", "--", "true"])
    assert result.exit_code == 2 and "no such thing here" in result.output


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("machine = 'amd'", "unknown machine"),
        ("kernel = '5.0'", "unknown kernel"),
        ("color = 1", "unknown entry 'color'"),
        ("memory = '3M'", "multiple of 2M"),
        ("memory = 5", "number with K, M or G"),
        ("[[device]]\ngroup = 'a'", "group is a int"),
        ("[[device]]\nreserved = [{ start = 0, length = 4096, type = 'big' }]", "unknown region type"),
        ("[[device]]\nreserved = [{ start = 5, length = 4096 }]", "whole pages"),
        ("device = 3", "[[device]]"),
        ("[", "Invalid"),
    ],
)
def test_a_wrong_description_is_one_line(tmp_path, text, complaint):
    path = tmp_path / "devices.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"devices\.toml") as caught:
        description.read(path)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--machine", "amd", "--", "true"], "unknown machine"),
        (["--kernel", "5.0", "--", "true"], "unknown kernel"),
        (["--devices", "x.toml", "--machine", "vtd", "--", "true"], "said in the file"),
        ([], "Missing argument"),
    ],
)
def test_wrong_usage_is_one_line(arguments, complaint):
    from typer.testing import CliRunner

    from pviommu.cli import app

    result = CliRunner().invoke(app, ["serve-iommufd", *arguments])
    assert result.exit_code == 2 and complaint in result.output


def test_the_example_is_a_description():
    read = description.read(Path(__file__).parents[2] / "examples" / "iommufd-devices.toml")
    assert read.machine == "vtd" and [spec.group for spec in read.devices] == [0, 0, 1]


def test_a_description_is_what_the_program_finds(tmp_path):
    path = tmp_path / "devices.toml"
    path.write_text(
        "machine = 'mock'\nkernel = '6.12'\nas_released = true\nmemory = '16M'\n"
        "[[device]]\nname = 'a'\ngroup = 3\ncoherent = false\n"
        "[[device]]\ngroup = 3\nreserved = [{ start = 0x8000000, length = 0x1000, type = 'msi' }]\n"
    )
    read = description.read(path)
    machine = read.build()
    assert read.release.name == "6.12" and read.release.defects
    assert machine.kernel.pages.allocated == 0 and machine.kernel.ram.pages == 4096
    a, b = machine.devices
    assert a.iommu_group is b.iommu_group and a.name in machine.mock.incoherent
    assert machine.regions[b.name][0].start == 0x8000000


def test_the_header_has_the_sizes_of_the_tables(built, tmp_path):
    asserts = "".join(
        f'_Static_assert(sizeof(struct {c_header.struct_name(row.name)}) == {row.layout.size}, "");\n'
        f'_Static_assert(IOMMU_{row.name} == {row.request:#x}, "");\n'
        for row in uapi.BY_NUMBER.values()
    )
    asserts += '_Static_assert(sizeof(struct iommu_test_cmd) == 72, "");\n'
    asserts += '_Static_assert(sizeof(struct iommu_hwpt_pgfault) == 40, "");\n'
    built("client")
    system = Path("/usr/include/linux/iommufd.h")
    headers = [f"{c_header.header()}"]
    if system.exists() and "IOMMU_HW_QUEUE_ALLOC" in system.read_text():
        headers.append("#include <linux/iommufd.h>")
    for number, header in enumerate(headers):
        source = tmp_path / f"sizes{number}.c"
        source.write_text(
            header + (asserts if not number else asserts.split("_Static_assert(sizeof(struct iommu_test")[0])
        )
        subprocess.run(["gcc", "-fsyntax-only", str(source)], check=True)

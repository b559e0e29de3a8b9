# SPDX-License-Identifier: GPL-2.0-or-later
"""No model process outlives the command, whatever happens to it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from oracle.process import ModelDied, ModelMissing, ModelProcess, find_program
from oracle.qtest import Qtest
from oracle.shared_ram import SharedRam

CHILD = """
import sys, time
from oracle.process import ModelProcess
model = ModelProcess(["sleep", "1000"])
print(model.pid, flush=True)
{end}
"""


def gone(pid, seconds=60.0):
    """Whether the process ends within the time (a zombie has ended)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


def owner(end):
    """A program that starts a model and then does ``end``; (the program, the model's pid)."""
    process = subprocess.Popen([sys.executable, "-c", CHILD.format(end=end)], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_model_dies_with_the_program_that_is_killed(how):
    process, model = owner("time.sleep(1000)")
    process.send_signal(how)
    process.communicate()
    assert gone(model)


@pytest.mark.parametrize("end", ["sys.exit(0)", "raise RuntimeError", "import os; os._exit(3)", "pass"])
def test_a_model_dies_with_the_program_that_ends(end):
    process, model = owner(f"sys.stderr.close(); {end}")
    process.communicate()
    assert gone(model)


def test_stopping_twice_is_harmless_and_leaves_nothing():
    model = ModelProcess(["sleep", "1000"])
    assert model.alive
    model.stop()
    model.stop()
    assert not model.alive
    assert gone(model.pid)


def test_a_killed_run_of_the_command_leaves_no_qemu():
    try:
        find_program(("qemu-system-x86_64",), "qemu-system-x86", "PVIOMMU_QEMU_X86_64")
    except ModelMissing as missing:
        pytest.skip(str(missing))
    command = "from pviommu.__main__ import main; main()"
    run = subprocess.Popen(
        [sys.executable, "-c", command, "oracle", "run", "qemu-vtd", "--time", "60"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    children = f"/proc/{run.pid}/task/{run.pid}/children"
    deadline = time.monotonic() + 120
    pids = []
    while not pids and time.monotonic() < deadline:
        time.sleep(0.05)
        with open(children) as listed:
            pids = [int(pid) for pid in listed.read().split()]
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert pids
    assert all(gone(pid) for pid in pids)


def test_a_model_that_is_not_installed_is_one_line_that_names_the_package():
    with pytest.raises(ModelMissing, match=r"^no-such-model is missing; install the package some-package[^\n]*$"):
        find_program(("no-such-model",), "some-package", "PVIOMMU_NO_SUCH_VARIABLE")


@pytest.mark.parametrize(
    "command",
    ["oracle run qemu-vtd", "oracle run qemu-smmuv3", "oracle run qemu-cpu-s2", "conformance qemu-vtd"],
)
def test_a_command_without_its_model_is_one_line_and_status_2(command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pviommu", *command.split()],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "install the package qemu-system-" in done.stderr


def test_a_model_that_cannot_start_says_why():
    ram = SharedRam(1 << 20)
    try:
        model = Qtest("false", [], ram)
        with pytest.raises(ModelDied, match="false ended with status 1"):
            model.read(0, 4)
        model.close()
    finally:
        ram.close()


@pytest.mark.parametrize("program", ["true", "cat"])
def test_a_program_that_is_not_qemu_is_refused(monkeypatch, program):
    monkeypatch.setenv("PVIOMMU_QEMU_X86_64", program)
    with pytest.raises(ModelMissing, match=f"PVIOMMU_QEMU_X86_64={program}: that is not QEMU"):
        find_program(("qemu-system-x86_64",), "qemu-system-x86", "PVIOMMU_QEMU_X86_64")

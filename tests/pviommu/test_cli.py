# SPDX-License-Identifier: GPL-2.0-or-later
"""The command as a user runs it: exit statuses, one-line errors, JSON that says what happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer


def pviommu(*arguments, env=None):
    return subprocess.run(
        [sys.executable, "-c", "from pviommu.__main__ import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
    )


def test_run_json_reports_both_backends_clean():
    done = pviommu("run", "--json", "--count", "5", "--wire", "in-process")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["ok"]
    assert [backend["backend"] for backend in result["backends"]] == ["vtd", "smmuv3"]
    for backend in result["backends"]:
        assert backend["packets"]["sent"] == backend["packets"]["returned"] == 5
        assert backend["packets"]["bytes_compared"] > 0
        assert backend["leaked"] == 0
        assert len(backend["blocked"]) == 3
        assert all(blocked["reported_by_hypervisor"] for blocked in backend["blocked"])


def test_run_prints_a_summary_for_people():
    done = pviommu("run", "--backend", "vtd", "--count", "3", "--wire", "in-process")
    assert done.returncode == 0, done.stderr
    assert "3 of 3 packets came back" in done.stdout
    assert "clean" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "--backend", "amd"], "unknown backend 'amd'; there are: vtd, smmuv3"),
        (["run", "--profile", "v9"], "unknown profile 'v9'; there are: "),
        (["run", "--guest", "hvm"], "unknown guest kind 'hvm'"),
        (["run", "--wire", "string"], "unknown wire 'string'"),
        (["run", "--count", "0"], "--count"),
        (["run", "--pcap", "/dev/null"], "/dev/null"),
        (["run", "--pcap", "/nonexistent.pcap"], "/nonexistent.pcap"),
        (["run", "--frobnicate"], "--frobnicate"),
        (["run", "--backend", "vtd", "--trace", "/nonexistent/file"], "cannot write"),
        (["walk", "01:00"], "is not a PCI address"),
        (["walk", "09:00.0"], "there is no device 0000:09:00.0"),
        (["walk", "01:00.0", "somewhere"], "is not an address"),
        (["walk", "01:00.0", "-1"], ""),
        (["walk", "01:00.0", "--until", "3"], "--trace"),
        (["run", "--pcap", "/dev/null", "--count", "3"], "--count counts pings"),
        (["run", "--trace", "/tmp"], "it is a folder"),
        (["run", "--trace", ""], "it is a folder"),
        (["walk", "01:00.0", "--format", "xml"], "unknown format"),
        (["dump", "--context", "99"], "there is no context 99"),
        (["dump", "--trace", "/nonexistent"], "cannot be read"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments, complaint):
    done = pviommu(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("pviommu: ")
    assert done.stderr.count("\n") == 1
    assert complaint in done.stderr


def test_walk_explains_a_mapped_address_of_a_replayed_trace(tmp_path):
    trace = tmp_path / "run.trace"
    assert pviommu("run", "--backend", "smmuv3", "--count", "1", "--trace", str(trace)).returncode == 0
    mapped = next(
        line for line in trace.read_text().splitlines() if line.startswith("map_pages") and "flags=0x7" in line
    )
    dfn = int(next(word for word in mapped.split() if word.startswith("dfn=")).removeprefix("dfn="), 0)
    calls = [line for line in trace.read_text().splitlines() if not line.startswith("#")]
    until = calls.index(mapped) + 1
    done = pviommu(
        "walk", "01:00.0", hex(dfn << 12 | 0x10), "--trace", str(trace), "--until", str(until), "--format", "json"
    )
    assert done.returncode == 0, done.stderr
    walk = json.loads(done.stdout)
    assert walk["blocked"] is None
    assert walk["readable"] and walk["writable"]
    assert int(walk["maddr"], 16) & 0xFFF == 0x10
    assert [step["name"] for step in walk["steps"]][1] == "STE"


def test_walk_of_an_unmapped_address_is_status_1():
    done = pviommu("walk", "01:00.0", "0x1000")
    assert done.returncode == 1
    assert "blocked" in done.stdout


def test_dump_shows_every_context_as_a_tree():
    done = pviommu("dump", "--backend", "vtd")
    assert done.returncode == 0, done.stderr
    assert "context 0" in done.stdout
    assert "2 MiB" in done.stdout
    as_json = pviommu("dump", "--backend", "smmuv3", "--format", "json")
    tables = json.loads(as_json.stdout)
    assert tables["0"]["table"]["used"] > 0


def test_a_capture_is_sent_and_comes_back(tmp_path):
    from machine.network.pcap import PcapWriter, read_capture

    capture, crossed = tmp_path / "in.pcap", tmp_path / "out.pcap"
    with PcapWriter(capture) as writer:
        for number in range(5):
            writer.write(bytes([number]) * (60 + 300 * number))
    done = pviommu(
        "run", "--backend", "vtd", "--wire", "in-process", "--pcap", str(capture), "--pcap-out", str(crossed), "--json"
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)["backends"][0]["packets"]["returned"] == 5
    assert len(list(read_capture(crossed))) == 10


def test_help_names_the_commands():
    done = pviommu("--help")
    assert done.returncode == 0
    for command in ("run", "walk", "dump"):
        assert command in done.stdout


def test_a_reader_that_goes_away_is_not_a_fault_found():
    command = f"{sys.executable} -m pviommu dump | head -c 20; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 141
    assert done.stderr == ""


def test_output_that_cannot_be_written_is_one_line_and_status_2():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pviommu", "dump"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=300
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 1.0])
def test_an_interrupt_at_any_moment_is_one_line_and_status_130(delay):
    start = "from pviommu.__main__ import main; print('up', flush=True); main()"
    process = subprocess.Popen(
        [sys.executable, "-c", start, "run", "--count", "100000", "--wire", "in-process"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=300)
    assert (process.returncode, complaint) == (130, "pviommu: interrupted\n")


def test_an_interrupt_while_the_streams_are_set_up_leaves_them_able_to_complain():
    start = (
        "import codecs, os, signal, sys\n"
        "made = codecs.IncrementalEncoder.__init__\n"
        "def interrupted(self, errors='strict'):\n"
        "    if sys.stdout.errors == 'replace':\n"  # standard error is next
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    made(self, errors)\n"
        "codecs.IncrementalEncoder.__init__ = interrupted\n"
        "from pviommu.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", start, "dump"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "pviommu: interrupted\n")


CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"


@pytest.mark.parametrize(
    "command",
    [
        ("driver", "validate", "--junit"),
        ("hunt", "--out"),
        ("explore", str(CORPUS / "free_against_map.txt"), "-o"),
        ("export", str(CORPUS / "arena_runs_dry.txt"), "-o"),
    ],
    ids=lambda command: command[0],
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(command):
    done = pviommu(*command, "/nonexistent/out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pviommu: /nonexistent/out: cannot be written: No such file or directory\n"


def test_looking_whether_a_file_can_be_written_changes_nothing(tmp_path):
    from pviommu.options import UsageError, check_writable

    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("kept")
    check_writable(old, new, None, Path("/dev/null"))
    assert old.read_text() == "kept" and not new.exists()
    with pytest.raises(UsageError, match="Is a directory"):
        check_writable(tmp_path)


@pytest.mark.parametrize(
    "command", ["oracle run golden --time inf", "fuzz --time inf", "hunt --time inf", "fuzz --time nan"]
)
def test_a_time_is_a_number_of_seconds(command):
    done = pviommu(*command.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "--time" in done.stderr


@pytest.mark.parametrize("columns", ["40", "60", "200"])
def test_no_digit_is_lost_in_a_narrow_terminal(columns):
    done = pviommu("walk", "01:00.0", "--backend", "smmuv3", env={**os.environ, "COLUMNS": columns})
    as_json = pviommu("walk", "01:00.0", "--backend", "smmuv3", "--format", "json")
    assert done.returncode == 0
    for step in json.loads(as_json.stdout)["steps"]:
        assert step["maddr"] in done.stdout
        assert f"{int(step['words'][0], 16):016x}" in done.stdout


def test_a_terminal_that_cannot_show_a_character_gets_another(tmp_path):
    done = pviommu("dump", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr


def test_a_trace_brings_its_own_configuration(tmp_path):
    trace = tmp_path / "run.trace"
    assert pviommu("run", "--backend", "vtd", "--count", "1", "--trace", str(trace)).returncode == 0
    for option in (["--backend", "smmuv3"], ["--profile", "v3-fixed"], ["--seed", "1"], ["--guest", "pvh"]):
        done = pviommu("dump", "--trace", str(trace), *option)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "hypercalls" in pviommu("dump", "--trace", str(trace), "--until", "1000000").stderr


def test_several_backends_write_a_file_each_and_say_so(tmp_path):
    trace = tmp_path / "run.trace"
    done = pviommu("run", "--count", "1", "--wire", "in-process", "--trace", str(trace), "--json")
    assert json.loads(done.stdout)["written"] == [str(tmp_path / f"run.{name}.trace") for name in ("vtd", "smmuv3")]
    assert not trace.exists()


def test_the_capture_to_be_sent_is_never_overwritten(tmp_path):
    from machine.network.pcap import PcapWriter

    capture = tmp_path / "in.pcap"
    with PcapWriter(capture) as writer:
        writer.write(bytes(64))
    before = capture.read_bytes()
    done = pviommu("run", "--backend", "vtd", "--pcap", str(capture), "--pcap-out", str(capture))
    assert done.returncode == 2
    assert capture.read_bytes() == before


def test_no_command_is_imported_for_another():
    code = (
        "import sys; from pviommu.__main__ import main\n"
        "try: main()\n"
        "finally: print(*(name for name in sys.modules if name.endswith('_cli')), 'testbed' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, timeout=300)
    version, loaded = done.stdout.splitlines()
    assert version.startswith("pviommu ") and loaded == "False"
    done = subprocess.run([sys.executable, "-c", code, "abi", "list"], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "pviommu.abi_cli False"


def test_every_command_is_where_the_registry_says():
    from pviommu.cli import HOMES, app

    group = typer.main.get_command(app)
    for name in HOMES:
        command = group.get_command(None, name)
        assert command.name == name and command.help


def test_a_misspelt_command_is_told_what_was_meant():
    done = pviommu("rum")
    assert done.returncode == 2
    assert done.stderr == "pviommu: No such command 'rum'. Did you mean 'run'?\n"

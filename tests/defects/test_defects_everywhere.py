# SPDX-License-Identifier: GPL-2.0-or-later
"""``--defect`` on every command that builds a test bed, and one line for an id that is unknown or cannot be shown."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pviommu.cli import app
from testbed.config import SWITCHED_ON, Config

RECORD = str(Path(__file__).parents[1] / "golden" / "xen-v3" / "destr-did-release.jsonl")
PROGRAM = """# pviommu program 1
bench backend=vtd profile=v7-fixed guest=pv contexts=4 arena=6
alloc
attach nic ctx=1
map ctx=1 frame=ram:9 at=0x10
unmap ctx=1 at=0x10
"""
COMMANDS = {
    "run": ("run",),
    "walk": ("walk", "00:04.0", "0x1000"),
    "dump": ("dump",),
    "golden": ("golden", RECORD),
    "fuzz": ("fuzz", "--time", "1"),
    "validate": ("driver", "validate"),
    "partial-unmap": ("driver", "partial-unmap"),
    "ownership": ("driver", "ownership"),
    "replay": ("replay", "{program}"),
    "shrink": ("shrink", "{program}"),
    "export": ("export", "{program}"),
    "sweep": ("sweep", "{program}"),
    "explore": ("explore", "{program}"),
}


@pytest.fixture(autouse=True)
def as_before():
    token = SWITCHED_ON.set(())
    yield
    SWITCHED_ON.reset(token)


def pviommu(tmp_path, *arguments):
    file = tmp_path / "program.txt"
    file.write_text(PROGRAM)
    return CliRunner().invoke(app, [argument.format(program=file) for argument in arguments])


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_id_is_one_line(tmp_path, name):
    done = pviommu(tmp_path, *COMMANDS[name], "--defect", "Z9")
    assert done.exit_code == 2, done.output
    assert "unknown defect 'Z9'" in done.output and "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("dump", "--defect", "S2", "--backend", "smmuv3"), "S2 is in the vtd driver"),
        (
            ("dump", "--defect", "A2", "--profile", "v3-fixed"),
            "A2 cannot be shown by v3-fixed, whose interface has no init",
        ),
        (("golden", RECORD, "--defect", "T4"), "T4 cannot be shown by v3"),
    ],
)
def test_an_id_that_cannot_be_shown_is_one_line(tmp_path, arguments, why):
    done = pviommu(tmp_path, *arguments)
    assert done.exit_code == 2
    assert why in done.output


def test_a_record_is_answered_otherwise_with_a_defect_more(tmp_path):
    assert pviommu(tmp_path, "golden", RECORD).exit_code == 0
    done = pviommu(tmp_path, "golden", RECORD, "--defect", "F6,G6")
    assert done.exit_code == 1, done.output


def test_a_replayed_program_meets_the_defect(tmp_path):
    assert pviommu(tmp_path, "replay", "{program}").exit_code == 0
    assert pviommu(tmp_path, "replay", "{program}", "--defect", "F6").exit_code == 1


def test_configurations_have_what_is_switched_on():
    assert Config().defects == ()
    SWITCHED_ON.set(("T5",))
    assert Config().defects == ("T5",)
    assert Config(defects=()).defects == ()

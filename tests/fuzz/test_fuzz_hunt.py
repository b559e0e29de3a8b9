# SPDX-License-Identifier: GPL-2.0-or-later
"""Catalogued defects are found one by one; what is not hunted says why."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from typer.testing import CliRunner

from fuzz.hunt import OUT_OF_SIGHT, Hunt, look, quarries, sound
from fuzz.hunt_pool import AGAIN, _Pool, hunt
from fuzz.hunt_table import conclusion, page, summary
from fuzz.program import parse
from fuzz.run import replay, runner_for
from guest_driver import drivers
from hypervisor.defects.catalogue import DEFECTS
from pviommu.cli import app

PATIENCE = 1200
"""Seconds on the wall; a hunt ends when it has found its entry, however busy the machine is."""


@pytest.mark.parametrize("defect", ["A5", "A7", "C7", "D3", "F6", "T4", "K3", "L1.2-1", "L8.1"])
def test_a_catalogued_defect_is_found_and_its_program_replays(defect):
    result = look(*quarries([defect]), PATIENCE, 0)
    assert result.found and 1 <= result.length <= 8
    program = parse(result.program)
    found = runner_for(program.bench).run(program.ops)
    assert found is not None and found.clause == result.clause
    assert replay(program) is not None
    without = runner_for(sound(program.bench)).run(program.ops)
    assert without is None or not without.like(found), "it has to be the defect, not the test bed"


def test_every_entry_of_both_catalogues_is_hunted_or_says_why_not():
    every = quarries()
    assert {quarry.defect for quarry in every} == {*DEFECTS, *drivers.DEFECTS}
    assert all(quarry.over for quarry in every)
    assert set(OUT_OF_SIGHT) <= {quarry.defect for quarry in every if quarry.out_of_sight}
    with pytest.raises(ValueError, match="unknown defect 'Z9'"):
        quarries(["Z9"])


def test_a_missed_entry_is_counted_as_missed():
    entries = {quarry.defect: quarry for quarry in quarries(["A4", "H4"])}
    hunts = [look(entries["H4"], 1, 0), look(entries["A4"], PATIENCE, 0)]
    assert summary(hunts).missed == () and summary(hunts).out_of_sight == ("H4",)
    quarry = entries["A4"]
    hunts.append(look(replace(quarry, over=tuple(map(sound, quarry.over))), 0.5, 0))
    assert summary(hunts).missed == ("A4",)


def test_what_is_not_hunted_is_named_if_there_is_any():
    hunts = [Hunt("A4", "hypervisor", "", True, 1, 1, 9, 99), replace(look(*quarries(["H4"]), 1, 0), title="")]
    assert "; 1 not hunted (H4); " in conclusion(summary(hunts)) and "\n* H4: " in page(hunts, 1)
    assert "not hunted" not in conclusion(summary(hunts[:1])) and "Not hunted" not in page(hunts[:1], 1)


def test_the_command_prints_a_table_and_its_status_says_whether_all_were_found(tmp_path):
    out, page, text = (tmp_path / f"hunt.{form}" for form in ("json", "md", "txt"))
    asked = ["hunt", "--defect", "A4", "--defect", "B2", "--time", str(PATIENCE), "--jobs", "2", "--out", str(out)]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0 and "2 hunted, none missed" in done.output, done.output
    hunts = {hunt["defect"]: hunt for hunt in json.loads(out.read_text())["hunts"]}
    assert hunts["A4"]["found"] and 1 <= hunts["B2"]["length"] <= 3
    for form in (page, text):
        again = CliRunner().invoke(app, ["hunt", "--read", str(out), "--read", str(out), "--out", str(form)])
        assert again.exit_code == 0 and "4 hunted, none missed" in again.output, again.output
    assert "| 2/2 |" in page.read_text() and f"--read {out.name} --read {out.name}" in page.read_text()
    assert "bench backend=" in text.read_text()


def test_the_status_says_that_one_was_missed(tmp_path):
    (missed := tmp_path / "missed.json").write_text(
        json.dumps({"seconds": 1, "hunts": [asdict(Hunt("A4", "hypervisor", "", False, 1, 1, 9, 99))]})
    )
    done = CliRunner().invoke(app, ["hunt", "--read", str(missed)])
    assert done.exit_code == 1 and "missed: A4" in done.output


@pytest.mark.parametrize(
    "asked",
    [["--defect", "Z9"], ["--read", "no-such-file.json"], ["--read", __file__], ["--read", __file__, "--defect", "A4"]],
)
def test_what_cannot_be_hunted_is_one_line(asked):
    wrong = CliRunner().invoke(app, ["hunt", *asked])
    assert wrong.exit_code == 2 and "Traceback" not in wrong.output


def test_a_hunt_goes_on_with_what_it_has(tmp_path):
    out = tmp_path / "hunt.json"
    out.write_text(json.dumps({"seconds": 1, "hunts": [asdict(Hunt("A4", "hypervisor", "kept", True, 1, 1, 9, 99))]}))
    asked = ["hunt", "--time", str(PATIENCE), "--jobs", "1", "--no-shrink", "--resume"]
    done = CliRunner().invoke(app, [*asked, "--defect", "A4", "--defect", "B2", "--out", str(out)])
    assert done.exit_code == 0 and "2 hunted, none missed" in done.output, done.output
    hunts = [(hunt["defect"], hunt["title"] == "kept") for hunt in json.loads(out.read_text())["hunts"]]
    assert hunts == [("A4", True), ("B2", False)]
    assert CliRunner().invoke(app, asked).exit_code == 2


def test_a_hunt_for_others_keeps_what_it_has(tmp_path):
    out = tmp_path / "hunt.json"
    out.write_text(json.dumps({"seconds": 1, "hunts": [asdict(Hunt("A4", "hypervisor", "kept", True, 1, 1, 9, 99))]}))
    asked = ["hunt", "--time", str(PATIENCE), "--jobs", "1", "--no-shrink", "--resume", "--defect", "S6"]
    done = CliRunner().invoke(app, [*asked, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert [hunt["defect"] for hunt in json.loads(out.read_text())["hunts"]] == ["A4", "S6"]


ABANDONED = """
import multiprocessing, os, signal
from fuzz.hunt_pool import _end_with_parent
if __name__ == "__main__":
    pool = multiprocessing.get_context("spawn").Pool(1, _end_with_parent)
    print(pool.apply(os.getpid), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_ends_with_its_hunt(tmp_path):
    script = tmp_path / "abandoned.py"
    script.write_text(ABANDONED)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as hunt:
        worker, _ = hunt.communicate(timeout=PATIENCE)  # ends when the worker, which has the pipe too, does
    assert int(worker) != hunt.pid and hunt.returncode < 0


def never_found():
    """Two entries, nothing to be found where they are hunted."""
    return [replace(quarry, over=tuple(map(sound, quarry.over))) for quarry in quarries(["A4", "A10"])]


def hunted(monkeypatch, killed, seconds=1.0):
    """What the hunt for them comes to if the first ``killed`` workers are, and what it says."""
    said, employ, left = [], _Pool._employ, [True] * killed

    def deadly(pool, pipe, process):
        employ(pool, pipe, process)
        if left and left.pop():
            process.kill()

    monkeypatch.setattr(_Pool, "_employ", deadly)
    return list(hunt(never_found(), seconds, 0, 2, say=said.append)), said


def test_an_entry_whose_worker_is_killed_is_hunted_again(monkeypatch):
    hunts, said = hunted(monkeypatch, killed=1)
    assert sorted(found.defect for found in hunts) == ["A10", "A4"]
    assert all(found.programs for found in hunts)
    assert said == ["the worker that hunted A4 was killed (signal 9): it is hunted again"]


def test_an_entry_whose_workers_are_killed_again_and_again_is_missed(monkeypatch):
    hunts, said = hunted(monkeypatch, killed=2 * (AGAIN + 1))
    assert [(found.found, found.programs) for found in hunts] == [(False, 0)] * 2
    assert len(said) == 2 * (AGAIN + 1) and sum(line.endswith("it counts as missed") for line in said) == 2


def test_an_entry_whose_worker_fails_by_itself_is_missed():
    said = []
    entries = [replace(quarry, over=()) for quarry in quarries(["A4", "A10"])]
    assert not any(found.found for found in hunt(entries, 1, 0, 2, say=said.append))
    assert [line.partition(" failed ")[2] for line in said] == ["(exit status 1): it counts as missed"] * 2

# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu defects`` and ``pviommu golden`` as a user runs them, and the generated page."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guest_driver import drivers
from hypervisor.defects.absent import ABSENT
from hypervisor.defects.catalogue import DEFECTS
from hypervisor.defects.pages import PAGE, page
from pviommu.cli import app
from testbed.validate.show import show

RECORDS = Path(__file__).parents[1] / "golden" / "xen-v3"


def pviommu(*arguments):
    return CliRunner().invoke(app, arguments)


def test_list_names_the_defects_of_both_sides():
    done = pviommu("defects", "list", "--json")
    listed = {entry["id"]: entry["side"] for entry in json.loads(done.stdout)}
    assert listed["T1"] == "hypervisor" and "driver" in listed.values()
    assert set(DEFECTS) <= set(listed)
    assert pviommu("defects", "list").stdout.count("\n") == len(listed)


def test_show_says_what_it_is_and_where_it_was_read():
    done = pviommu("defects", "show", "T1")
    assert done.exit_code == 0
    assert "seen:" in done.stdout and "golden record" in done.stdout


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_run_shows_one_beside_the_sound_hypervisor(backend):
    done = pviommu("defects", "run", "F6", "--backend", backend, "--json")
    assert done.exit_code == 0
    shown = json.loads(done.stdout)
    assert shown["differs"] and shown["with"] != shown["without"]


def test_run_of_a_deadlock_ends_with_its_name():
    done = pviommu("defects", "run", "B2")
    assert done.exit_code == 0
    assert (
        "XenDeadlock: d0v0 (alloc_context) waits for d0 hd->lock, which it has held itself since free_context"
        in done.stdout
    )


@pytest.mark.parametrize(
    "arguments", [("defects", "show", "Z1"), ("defects", "run", "S2", "--backend", "smmuv3"), ("defects", "run", "K8")]
)
def test_wrong_names_are_refused(arguments):
    assert pviommu(*arguments).exit_code == 2


@pytest.mark.parametrize("name", [d.id for d in drivers.DEFECTS.values() if not d.judged])
def test_every_defect_of_a_driver_happens_and_does_not_without_it(name):
    found = show(drivers.DEFECTS[name])
    assert found is not None and len(found.program) <= 8
    assert found.with_it != found.without


def test_a_drivers_defect_by_another_name_is_each_that_is_called_so():
    done = pviommu("defects", "run", "K12", "--json")
    assert done.exit_code == 0
    (shown,) = json.loads(done.stdout)
    assert (shown["id"], shown["differs"]) == ("L1.2-8", True)
    assert any("does not hold" in line for line in shown["with"]) and not any(
        "hold" in line for line in shown["without"]
    )
    assert "also: K12" in pviommu("defects", "show", "K12").stdout


def test_golden_answers_with_its_status():
    record = str(RECORDS / "destr-did-release.jsonl")
    assert pviommu("golden", record).exit_code == 0
    done = pviommu("golden", record, "--profile", "v3-fixed", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["files"][0]["difference"]["line"] > 1
    assert pviommu("golden", "/nonexistent").exit_code == 2
    assert pviommu("golden", record, "--profile", "v7").exit_code == 2


def test_the_page_of_defects_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_id_is_either_an_entry_or_explained():
    assert not set(DEFECTS) & set(ABSENT)
    families = {"A": 11, "B": 5, "C": 10, "D": 6, "T": 8, "F": 8, "G": 7, "H": 10, "R": 7}
    expected = {f"{letter}{number}" for letter, last in families.items() for number in range(1, last + 1)}
    assert set(ABSENT) | {name for name in DEFECTS if not name.startswith("S")} == expected

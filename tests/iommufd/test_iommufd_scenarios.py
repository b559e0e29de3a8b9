# SPDX-License-Identifier: GPL-2.0-or-later
"""Every scenario ends as it says, everywhere it runs; released faults change the verdict."""

import pytest
from typer.testing import CliRunner

from guest_driver.defects.iommufd import IOMMUFD
from guest_driver.iommufd.release import RELEASES, as_released, release
from pviommu.iommufd_defects import run_iommufd_defect
from pviommu.scenario_cli import app
from testbed.scenarios.catalogue import SCENARIOS
from testbed.scenarios.fail_nth import fail_nth

RUNNER = CliRunner()
EVERY = [(name, place) for name, scenario in SCENARIOS.items() for place in scenario.places]


@pytest.mark.parametrize(("name", "place"), EVERY)
def test_scenario_ends_as_it_says(name, place):
    scenario = SCENARIOS[name]
    steps = list(scenario.steps(place, release()))
    wrong = [step for step in steps if not step.ok]
    assert bool(wrong) == scenario.shows_flaw, wrong


@pytest.mark.parametrize("kernel", RELEASES)
@pytest.mark.parametrize(
    "name", [n for n, s in SCENARIOS.items() if "mock" in s.places and not n.startswith("coherency")]
)
def test_every_mended_release_agrees(name, kernel):
    if release(kernel).version < SCENARIOS[name].since:
        assert RUNNER.invoke(app, ["run", name, "--kernel", kernel]).exit_code == 2
        return
    wrong = [step for step in SCENARIOS[name].steps("mock", release(kernel)) if not step.ok]
    assert bool(wrong) == SCENARIOS[name].shows_flaw, wrong


@pytest.mark.parametrize("place", ["mock", "vtd", "smmuv3"])
def test_a_released_kernel_loses_reservations(place):
    wrong = [step for step in SCENARIOS["replace-fails"].steps(place, as_released("6.12")) if not step.ok]
    assert any("reserved page" in step.text for step in wrong)


@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if "mock" in scenario.places])
def test_every_allocation_of_every_scenario_fails_once(name):
    report = fail_nth(SCENARIOS[name], "mock", release())
    assert report.found == [] and (report.allocations > 9 or name == "ownership-sketch")


@pytest.mark.parametrize("place", ["vtd", "smmuv3"])
def test_allocations_fail_on_real_tables(place):
    report = fail_nth(SCENARIOS["replace-2"], place, release(), stride=7)
    assert report.found == [] and report.allocations > 30


def test_a_call_that_leaves_something_is_seen(monkeypatch):
    from guest_driver.iommufd import attach

    monkeypatch.setattr(attach, "remove_reserved", lambda iopt, idev: None)
    assert any("reserved ranges" in line for line in fail_nth(SCENARIOS["replace-1"], "mock", release()).found)


@pytest.mark.parametrize("defect", IOMMUFD, ids=lambda defect: defect.id)
def test_every_upstream_fault_is_seen_in_its_scenario(defect, capsys):
    assert run_iommufd_defect(defect, as_json=False) == 0
    assert defect.word in capsys.readouterr().out
    shown = RUNNER.invoke(app, ["run", defect.scenario, "--kernel", defect.kernels[-1], "--defect", defect.id])
    assert "<--" in shown.stdout


def test_command_line():
    listed = RUNNER.invoke(app, ["list"])
    assert listed.exit_code == 0 and all(name in listed.stdout for name in SCENARIOS)
    run = RUNNER.invoke(app, ["run", "replace-1"])
    assert run.exit_code == 0 and "verdict: merged code moves" in run.stdout
    assert RUNNER.invoke(app, ["run", "replace-fails", "--kernel", "6.14", "--as-released", "--quiet"]).exit_code == 1
    for wrong in (["nothing"], ["replace-1", "--kernel", "5.0"], ["objects", "--backend", "bare-smmuv3"]):
        assert RUNNER.invoke(app, ["run", *wrong]).exit_code == 2
        assert RUNNER.invoke(app, ["fail-nth", *wrong]).exit_code == 2, "nothing ran, so nothing passed"


def test_every_scenario_is_on_both_backends_or_says_why_not():
    for scenario in SCENARIOS.values():
        assert {"vtd", "smmuv3"} <= {*scenario.places, *scenario.absent} and not {*scenario.places} & {*scenario.absent}
    for verb in ("run", "fail-nth"):
        said = RUNNER.invoke(app, [verb, "sva-others", "--backend", "vtd"])
        assert said.exit_code == 0 and said.stdout.startswith("sva-others on vtd: not there: ")
    swept = RUNNER.invoke(app, ["fail-nth", "sva-list"]).stdout
    assert swept.startswith("sva-list on bare-smmuv3: ") and " 0 allocations" not in swept

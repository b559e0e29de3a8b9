# SPDX-License-Identifier: GPL-2.0-or-later
"""Every scenario ends as it says, everywhere it runs; released faults change the verdict."""

import pytest
from typer.testing import CliRunner

from guest_driver.iommufd.release import RELEASES, as_released, release
from pviommu.scenario_cli import app
from testbed.scenarios.catalogue import SCENARIOS

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


def test_command_line():
    listed = RUNNER.invoke(app, ["list"])
    assert listed.exit_code == 0 and all(name in listed.stdout for name in SCENARIOS)
    run = RUNNER.invoke(app, ["run", "replace-1"])
    assert run.exit_code == 0 and "verdict: merged code moves" in run.stdout
    assert RUNNER.invoke(app, ["run", "replace-fails", "--kernel", "6.14", "--as-released", "--quiet"]).exit_code == 1
    for wrong in (["nothing"], ["replace-1", "--kernel", "5.0"], ["doorbell-parent", "--backend", "vtd"]):
        assert RUNNER.invoke(app, ["run", *wrong]).exit_code == 2

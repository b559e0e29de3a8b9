# SPDX-License-Identifier: GPL-2.0-or-later
"""The faults of SVA happen, are seen by a property, and do not happen without them; the command line knows them."""

import pytest
from typer.testing import CliRunner

from guest_driver.defects.sva import DEFECTS
from pviommu.defects_cli import app
from testbed.defects.shows_sva import happen_sva


@pytest.mark.parametrize("name", DEFECTS)
def test_a_fault_breaks_a_property_and_its_absence_none(name):
    assert not happen_sva(name, present=True).holds
    assert happen_sva(name, present=False).holds


def test_the_command_line_lists_and_runs_them():
    runner = CliRunner()
    listed = runner.invoke(app, ["list"]).stdout
    assert all(name in listed for name in DEFECTS)
    run = runner.invoke(app, ["run", "SVA-2"])
    assert run.exit_code == 0 and "property 71" in run.stdout
    assert "ctx-desc-v5" in runner.invoke(app, ["show", "SVA-1"]).stdout

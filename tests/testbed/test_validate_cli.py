# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu driver``: exit statuses, one-line errors, machine-readable output."""

import json

import pytest
from typer.testing import CliRunner

from guest_driver import drivers
from pviommu import driver_cli
from pviommu.driver_cli import app
from testbed.validate import scenarios, validate

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def few_areas(monkeypatch):
    few = tuple(area for area in scenarios.AREAS if area.name in ("boot", "hotplug"))
    real = validate.validate

    def only_few(*args, **options):
        return real(*args, **options, areas=few)

    monkeypatch.setattr(driver_cli, "validate", only_few)


def invoke(*args):
    return RUNNER.invoke(app, list(args))


def test_list_names_every_driver_and_defect():
    result = invoke("list", "--defects")
    assert result.exit_code == 0
    for word in ("rfc-v1", "rfc-v2", "rfc-v3", "edera", "reference", "L1.2-1", "K12", "L8.1"):
        assert word in result.stdout
    catalogue = json.loads(invoke("list", "--json").stdout)
    assert [driver["name"] for driver in catalogue["drivers"]][-2:] == ["reference", "lazy"]


def test_list_has_two_columns_whatever_the_names():
    names = drivers.names()
    margin = max(map(len, names)) + 1
    for line in invoke("list").stdout.splitlines():
        assert line[:margin].rstrip() in (*names, "")
        assert line[margin - 1] == " " and line[margin] != " "


def test_clean_is_0_and_findings_are_1(tmp_path):
    clean = invoke("validate", "--guest", "pvh")
    assert (clean.exit_code, "nothing was found" in clean.stdout) == (0, True)
    junit = tmp_path / "out.xml"
    found = invoke("validate", "--driver", "rfc-v3", "--guest", "pvh", "--json", "--junit", str(junit))
    assert found.exit_code == 1
    (report,) = json.loads(found.stdout)
    assert "L1.2-6" in report["defects"]
    assert junit.read_text().startswith("<?xml")


def test_a_driver_that_declines_is_no_finding():
    result = invoke("validate", "--driver", "rfc-v1", "--profile", "v7-fixed")
    assert (result.exit_code, "declined" in result.stdout) == (0, True)


@pytest.mark.parametrize(
    "args",
    [
        ("validate", "--driver", "rfc-v9"),
        ("validate", "--driver", "reference+K99"),
        ("validate", "--profile", "v99"),
        ("validate", "--backend", "none"),
        ("validate", "--guest", "windows"),
        ("validate", "--guest", "pvh", "--junit", "/nowhere/at/all.xml"),
        ("partial-unmap", "--cause", "boredom"),
        ("partial-unmap", "--driver", "rfc-v1"),
        ("ownership", "--driver", "rfc-v3", "--profile", "v3-fixed"),
    ],
)
def test_wrong_arguments_are_2(args):
    assert invoke(*args).exit_code == 2


def test_partial_unmap_and_ownership():
    assert invoke("partial-unmap", "--pages", "3").exit_code == 0
    wrong = invoke("partial-unmap", "--driver", "rfc-v3", "--pages", "3", "--cause", "no memory", "--json")
    assert wrong.exit_code == 1
    assert [position["reached"] for position in json.loads(wrong.stdout)] == [3, 2, 1]
    assert invoke("ownership").exit_code == 0

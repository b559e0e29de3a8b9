# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixed profiles pass every clause; posted ones fail exactly those that their defects explain."""

import pytest
from typer.testing import CliRunner

from hypervisor import profile as profiles
from pviommu.cli import app
from testbed.conformance.profile import SHOWS_TOO, check_profile, clauses, expected_failures

FIXED = [name for name in profiles.names() if name.endswith("-fixed")]
POSTED = [name for name in profiles.names() if not name.endswith("-fixed")]
REST = [("v3", "smmuv3"), ("v7", "smmuv3"), ("v7-fixed", "smmuv3"), ("v3-fixed", "smmuv3")]


@pytest.mark.parametrize(("profile", "backend"), [*((name, "vtd") for name in (*FIXED, *POSTED)), *REST])
def test_exactly_the_explained_clauses_fail(profile, backend):
    results = list(check_profile(profile, backend))
    assert len(results) > 30
    assert {result.clause for result in results if result.failure is not None} == expected_failures(profile, backend)


@pytest.mark.parametrize("profile", FIXED)
def test_a_fixed_profile_has_nothing_to_explain(profile):
    assert expected_failures(profile, "vtd") == frozenset()


@pytest.mark.parametrize("profile", profiles.POSTED)
def test_a_posted_profile_is_asked_about_each_of_its_defects(profile):
    has = set(profiles.get(profile).defects)
    assert has - set(clauses(profile, "vtd")) <= {"T7"}, "T7 is shown with IOMMU_init"


def test_what_shows_too_is_of_the_catalogue():
    assert all(set(others) <= set(SHOWS_TOO) | set(clauses("v7", "vtd")) for others in SHOWS_TOO.values())


def test_the_command_tells_what_is_explained_from_what_is_not():
    done = CliRunner().invoke(app, ["conformance", "vtd", "--profile", "v7"])
    assert done.exit_code == 0, done.output
    assert "T1" in done.output and "explained" in done.output
    assert CliRunner().invoke(app, ["conformance", "vtd", "--profile", "v9"]).exit_code == 2

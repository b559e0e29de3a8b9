# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixed profiles pass every clause; posted ones fail exactly those that their defects explain."""

import pytest
from typer.testing import CliRunner

from hypervisor import profile as profiles
from pviommu.cli import app
from testbed.config import SWITCHED_ON
from testbed.conformance.profile import SHOWS_TOO, check_profile, clauses, expected_failures

FIXED = [name for name in profiles.names() if name.endswith("-fixed")]
POSTED = [name for name in profiles.names() if not name.endswith("-fixed")]
REST = [("v3", "smmuv3"), ("v7", "smmuv3"), ("v7-fixed", "smmuv3"), ("v3-fixed", "smmuv3")]


@pytest.fixture
def as_before():
    token = SWITCHED_ON.set(())
    yield
    SWITCHED_ON.reset(token)


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


@pytest.mark.parametrize(
    ("backend", "defect", "clause"),
    [
        ("vtd", "T5", "a_context_costs_its_root_and_returns_it"),
        ("smmuv3", "T5", "a_context_costs_its_root_and_returns_it"),
        ("vtd", "T3", "a_context_without_memory_is_refused_and_keeps_nothing"),
    ],
)
def test_the_suites_of_a_backend_meet_what_is_in_its_driver(as_before, backend, defect, clause):
    done = CliRunner().invoke(app, ["conformance", backend, "--suite", "software", "--defect", defect])
    assert done.exit_code == 1, done.output
    assert [line.split(": ")[1] for line in done.output.splitlines() if "FAILS" in line] == [clause]
    assert CliRunner().invoke(app, ["conformance", backend, "--suite", "software"]).exit_code == 0


def test_a_defect_is_explained_beside_those_of_the_profile():
    done = CliRunner().invoke(app, ["conformance", "vtd", "--profile", "v7-fixed", "--defect", "F6,T5"])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines() if "fails, explained" in line] == ["T5", "F6"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("vtd", "--defect", "Z9"), "unknown defect 'Z9'"),
        (("smmuv3", "--defect", "G5,T3"), "T3 is in the vtd driver"),
        (("vtd", "--profile", "v3", "--defect", "T4"), "T4 cannot be shown by v3"),
        (("qemu-vtd", "--defect", "T5"), "qemu-vtd has none of it"),
    ],
)
def test_a_defect_that_does_not_fit_is_one_line(as_before, arguments, why):
    done = CliRunner().invoke(app, ["conformance", *arguments])
    assert done.exit_code == 2 and why in done.output and "Traceback" not in done.output

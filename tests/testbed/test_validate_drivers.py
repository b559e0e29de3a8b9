# SPDX-License-Identifier: GPL-2.0-or-later
"""Validation names every defect of a posted driver and nothing else, and finds nothing in the reference.

The full set of programs takes a quarter of a minute for each driver; here every area is thinned out.
"""

from dataclasses import replace
from itertools import islice
from xml.etree import ElementTree

import pytest

from abi.errno import ENOMEM
from guest_driver import drivers
from hypervisor import profile as profiles
from pviommu.driver_view import outcome_lines, report_as_dict, report_as_junit, report_lines
from testbed.validate.calls import perform
from testbed.validate.laboratory import Laboratory
from testbed.validate.ownership import ownership, rows_as_lines
from testbed.validate.partial import CAUSES, partial_unmap
from testbed.validate.program import call, text
from testbed.validate.running import run
from testbed.validate.scenarios import AREAS, BASE
from testbed.validate.specified import SPECIFIED
from testbed.validate.validate import MOST_CALLS, validate
from testbed.validate.world import World

FIXED = profiles.sound()
FITS = {"rfc-v1": "v3-fixed", "rfc-v2": "v3-fixed", "rfc-v3": "v7-fixed", "edera": "v7-fixed"}


def thin(area, step):
    return replace(area, programs=lambda traits: islice(area.programs(traits), 0, None, step))


THIN = tuple(thin(area, 13 if area.name == "mapping" else 16 if area.name == "partial" else 1) for area in AREAS)
REPORTS = {}


def report_of(name):
    if name not in REPORTS:
        chosen = (*THIN, replace(AREAS[3], programs=lambda traits: islice(AREAS[3].programs(traits), 78, None, 2)))
        REPORTS[name] = validate(name, FITS[name], guests=("pv",), areas=chosen if name == "rfc-v3" else THIN)
    return REPORTS[name]


@pytest.mark.parametrize("name", FITS)
def test_every_defect_of_a_posted_driver_is_named_and_nothing_else(name):
    report = report_of(name)
    assert set(report.defects) == {defect.id for defect in drivers.get(name).defects}
    assert not report.not_seen
    assert all(finding.defects for finding in report.findings), [str(f) for f in report.findings if not f.defects]


@pytest.mark.parametrize("name", FITS)
def test_every_finding_is_shown_in_at_most_eight_calls(name):
    for finding in report_of(name).findings:
        assert 0 < len(finding.program) <= MOST_CALLS, text(finding.program)


@pytest.mark.parametrize("guest", ["pv", "pvh", "hvm"])
@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
@pytest.mark.parametrize("profile", FIXED)
def test_the_reference_driver_is_clean_on_every_fixed_profile(profile, backend, guest):
    thinner = tuple(thin(area, 29 if area.name in ("mapping", "partial") else 2) for area in AREAS)
    report = validate("reference", profile, backend, (guest,), thinner)
    assert not report.findings, [(f.key, f.what, text(f.program)) for f in report.findings]
    assert report.clean and not report.declined


POSTED = {
    **{name: {"R6"} for name in ("v1", "v2")},
    "v3": {"R6", "B1", "D3", "D6"},
    **{name: {"A2"} for name in ("v4", "v5", "v7")},
    "v6": {"A2", "D2"},
}
TELLING = tuple(
    replace(area, programs=lambda traits, area=area, few=few: islice(area.programs(traits), few))
    for area in AREAS
    if (few := {"boot": 1, "exhaustion": 1, "rmrr": 4, "release": 1}.get(area.name))
)


@pytest.mark.parametrize("profile", POSTED)
def test_the_reference_driver_degrades_as_specified_on_a_posted_profile(profile):
    """What it meets is explained by a defect of that hypervisor, and for each there is a sentence."""
    areas = TELLING if len(POSTED[profile]) > 1 else TELLING[:1]
    report = validate("reference", profile, guests=("pvh",), areas=areas)
    assert report.clean and not report.own, [(f.key, f.defects) for f in report.findings]
    assert set(report.hypervisor_defects) == POSTED[profile]
    lines = "\n".join(report_lines(report))
    assert lines.count("as specified") == len(report.others) and "not specified" not in lines


def test_a_page_mapped_behind_a_reserved_region_has_its_sentences():
    report = validate("reference", "e2", guests=("pv",), areas=tuple(area for area in TELLING if area.rmrr))
    assert report.clean and "D4" in report.hypervisor_defects


def test_what_nobody_has_specified_is_a_finding(monkeypatch):
    monkeypatch.delitem(SPECIFIED, ("A2", "leak"))
    report = validate("reference", "v6", guests=("pvh",), areas=TELLING[:1])
    assert not report.clean and [f.defects for f in report.unspecified] == [["A2"]]
    assert "not specified" in "\n".join(report_lines(report))
    (suite,) = ElementTree.fromstring(report_as_junit([report]))
    assert suite.attrib["failures"] == "1"


def test_a_fault_of_the_hypervisor_does_not_hide_the_drivers():
    """Posted hypervisors leak context 1 by themselves; the context that the driver forgets is told from it."""
    few = tuple(replace(a, programs=lambda traits, a=a: islice(a.programs(traits), 6, 7)) for a in AREAS[2:3])
    report = validate("rfc-v3", "v6", guests=("pvh",), areas=few)
    assert "L1.2-8" in report.defects and report.hypervisor_defects == ["A2"]
    leaks = {f.key.about for f in report.findings if f.key.invariant == "leak"}
    assert len(leaks) > 1 and "context 1" in leaks


def test_kinds_of_guests_in_processes_of_their_own_give_the_same_report():
    one, two = (validate("edera", areas=AREAS[:2], jobs=jobs) for jobs in (1, 2))
    assert [(f.key, f.defects, f.guest, f.program) for f in one.findings] == [
        (f.key, f.defects, f.guest, f.program) for f in two.findings
    ]
    assert [(a.programs, a.calls, a.failed) for a in one.areas] == [(a.programs, a.calls, a.failed) for a in two.areas]


def test_a_driver_declines_what_it_does_not_speak():
    report = validate("rfc-v1", "v7-fixed")
    assert report.declined and not report.findings
    assert "declined" in "\n".join(report_lines(report))


def test_a_mended_driver_no_longer_shows_the_defect():
    holes = tuple(thin(area, 3) for area in AREAS if area.name == "holes")
    assert "L1.2-5" in validate("rfc-v3", "v7-fixed", guests=("pvh",), areas=holes).defects
    assert "L1.2-5" not in validate("rfc-v3~L1.2-5", "v7-fixed", guests=("pvh",), areas=holes).defects


def test_a_kernel_fault_is_told_from_the_drivers():
    partial = tuple(thin(area, 7) for area in AREAS if area.name == "partial")
    report = validate("reference+L8.1", guests=("pvh",), areas=partial)
    assert report.defects == ["L8.1"]
    assert {"24"} <= {finding.key.invariant for finding in report.findings}


def test_reports_for_people_and_machines():
    report = report_of("edera")
    lines = "\n".join(report_lines(report))
    assert "L1.2-1 (K4, L8.7)" in lines and "alloc 0 copier" in lines
    assert report_as_dict(report)["clean"] is False
    root = ElementTree.fromstring(report_as_junit([report]))
    (suite,) = root
    assert int(suite.attrib["tests"]) == len(suite)
    assert int(suite.attrib["failures"]) == sum(case.find("failure") is not None for case in suite)


@pytest.mark.parametrize("guest", ["pv", "pvh"])
@pytest.mark.parametrize("profile", FIXED)
def test_partial_unmap_the_reference_driver_and_the_device_agree_at_every_position(profile, guest):
    outcomes = list(partial_unmap("reference", profile, guest=guest, pages=5))
    assert {outcome.cause for outcome in outcomes} == set(CAUSES)
    assert all(outcome.honest for outcome in outcomes)
    assert all(outcome.noticed in ("caller", "-") for outcome in outcomes)
    assert any(outcome.mapped for outcome in outcomes)


def test_partial_unmap_rfc_v3_believes_that_everything_is_gone():
    outcomes = [o for o in partial_unmap("rfc-v3", pages=4) if o.cause == "refused"]
    assert [(o.told, o.believed, o.mapped, o.reached) for o in outcomes] == [(4, 0, 4 - k, 4 - k) for k in range(4)]
    assert {o.noticed for o in outcomes} == {"log"}
    assert "wrong" in "\n".join(outcome_lines("rfc-v3", "v7-fixed", "pvh", outcomes))


@pytest.mark.parametrize("driver, told", [("reference", [0, 1, 2, 3]), ("rfc-v3", [4, 4, 4, 4])])
def test_partial_unmap_a_superpage_that_cannot_be_split_is_met_at_every_position(driver, told):
    """No injected fault: the arena is empty, and the hypervisor's own table code refuses."""
    outcomes = list(partial_unmap(driver, pages=4, causes=("no memory",)))
    assert [(o.k, o.mapped, o.reached, o.errno) for o in outcomes] == [(k, 4 - k, 4 - k, "ENOMEM") for k in range(4)]
    assert [o.told for o in outcomes] == told


def test_partial_unmap_rfc_v1_tells_nobody():
    outcomes = [o for o in partial_unmap("rfc-v1", "v3-fixed", pages=4) if o.cause == "refused"]
    assert {o.noticed for o in outcomes} == {"nobody"}
    assert not any(o.honest for o in outcomes)


def test_preemption_is_not_seen_by_anybody():
    for outcome in partial_unmap("edera", pages=6, causes=("preemption",)):
        assert (outcome.told, outcome.mapped, outcome.reached, outcome.errno) == (6, 0, 0, "0")


def test_a_fault_plan_fails_where_it_says():
    world = World(drivers.get("reference"))
    for name, *args in (("boot",), ("alloc", 0, "copier"), ("map", 0, BASE, "near", 8)):
        assert perform(world, name, tuple(args)).result == 0
    perform(world, "fail", ("unmap_pages", -ENOMEM, 5, 0, 9))
    assert perform(world, "unmap", (0, BASE, 8)).result == 5 * 4096
    world.faults.faults.clear()
    assert perform(world, "unmap", (0, BASE + 5 * 4096, 3)).result == 3 * 4096


def test_a_program_can_be_run_again_with_the_same_outcome():
    world = World(drivers.get("rfc-v3"), guest="pv")
    program = (call("boot"), call("alloc", 0, "copier"), call("map", 0, BASE, "far", 2))
    assert run(world, program) == run(world, program) != []


@pytest.mark.parametrize("name", drivers.names())
def test_a_group_of_two_as_thread_002_discusses_it(name):
    """Drivers of one device keep user space out of the whole group; the merged errno is -EPERM, not -EBUSY."""
    rows = list(ownership(name, FITS.get(name, "v7-fixed")))
    assert [row.result for row in rows] == [row.merged for row in rows]
    assert len(rows) > 10 and "-EPERM" in "\n".join(rows_as_lines(rows))
    if name == "reference":
        assert all(row.ok for row in rows)


def test_what_a_hypervisor_shows_again_by_the_same_key_is_explained_once(monkeypatch):
    blamed = []
    genuine = Laboratory._blame_hypervisor

    def blame(self, finding, known):
        blamed.append(finding.key)
        genuine(self, finding, known)

    monkeypatch.setattr(Laboratory, "_blame_hypervisor", blame)
    boot = tuple(area for area in AREAS if area.name == "boot")
    report = validate("reference", "v1", guests=("pv",), areas=boot)
    assert report.others and set(report.also) < set(blamed)
    assert len(blamed) == len(set(blamed))

# SPDX-License-Identifier: GPL-2.0-or-later
"""The same claims about iommufd over the mock driver and over the real tables of both backends; and they can fail."""

import json

import pytest
from typer.testing import CliRunner

from guest_driver.iommufd import attach
from guest_driver.iommufd.io_pagetable import IoPagetable
from guest_driver.linux.mock_domain import MockIommu
from guest_driver.xen_iommu import XenIommu
from pviommu.cli import app
from testbed.conformance import iommufd
from testbed.conformance.iommufd import CLAUSES, run_clause


@pytest.mark.parametrize("place", ["mock", "vtd", "smmuv3"])
@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.__name__)
def test_the_claim_holds_everywhere(place, clause):
    assert run_clause(place, clause).failure is None


def everything_is_writable(original):
    return lambda self, domain, iova, paddr, size, count, prot, gfp: original(
        self, domain, iova, paddr, size, count, 7, gfp
    )


def nothing_is_unmapped(original):
    return lambda self, domain, iova, size, count, gather: size * count


def only_large_areas(original):
    return lambda self, area: original(self, area) if area.length > 8192 else 0


def does_nothing(original):
    return lambda *arguments: 0


BREAKS = {
    "rights_are_kept": (MockIommu, "map_pages", everything_is_writable),
    "an_unmapped_page_is_out_of_reach": (MockIommu, "unmap_pages", nothing_is_unmapped),
    "a_late_table_shows_everything": (IoPagetable, "_fill_new", does_nothing),
    "a_bound_device_is_blocked_until_attached": (attach, "iommu_detach_group_handle", does_nothing),
    "replace_shows_the_new_table_only": (attach, "iommu_replace_group_handle", does_nothing),
    "random_programs_do_what_a_dict_does": (IoPagetable, "_fill", only_large_areas),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_claim_that_is_broken_fails(name, monkeypatch):
    owner, attribute, make = BREAKS[name]
    monkeypatch.setattr(owner, attribute, make(getattr(owner, attribute)))
    clause = getattr(iommufd, name)
    try:
        failure = run_clause("mock", clause).failure
    except (AssertionError, KeyError, ValueError) as error:
        failure = repr(error)
    assert failure is not None


@pytest.mark.parametrize("place", ["vtd", "smmuv3"])
def test_a_driver_that_does_not_map_is_seen_on_real_tables(place, monkeypatch):
    def pretend(self, domain, iova, paddr, size, count, prot, gfp):
        return 0, size * count

    monkeypatch.setattr(XenIommu, "xen_iommu_map_pages", pretend)
    assert run_clause(place, iommufd.a_mapping_is_reached_and_nothing_beside_it).failure is not None


def test_the_command_line_offers_the_suite():
    runner = CliRunner()
    done = runner.invoke(app, ["conformance", "mock", "--suite", "iommufd", "--json"])
    assert done.exit_code == 0 and [row["failure"] for row in json.loads(done.stdout)] == [None] * len(CLAUSES)
    for wrong in (["mock"], ["mock", "--suite", "pair"], ["qemu-vtd", "--suite", "iommufd"], ["vtd", "--suite", "x"]):
        assert runner.invoke(app, ["conformance", *wrong]).exit_code == 2

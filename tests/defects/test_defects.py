# SPDX-License-Identifier: GPL-2.0-or-later
"""Every defect shows itself where it is switched on, and nowhere else; posted profiles have theirs."""

import pytest

from hypervisor import profile as profiles
from hypervisor.defects import catalogue
from testbed.build import build
from testbed.config import Config
from testbed.defects.run import SHOWS, happen

CASES = [(defect, backend) for defect in catalogue.DEFECTS.values() for backend in defect.backends]


def ids(case):
    return case if isinstance(case, str) else case.id


@pytest.mark.parametrize(("defect", "backend"), CASES, ids=ids)
def test_without_the_defect_the_guarantee_holds(defect, backend):
    happening = happen(defect, backend, present=False)
    assert happening.holds, "\n".join(happening.lines)


@pytest.mark.parametrize(("defect", "backend"), CASES, ids=ids)
def test_with_the_defect_the_guarantee_is_broken(defect, backend):
    happening = happen(defect, backend, present=True)
    assert not happening.holds, "\n".join(happening.lines)


def test_no_two_entries_have_the_same_id():
    listed = [defect.id for family in catalogue._FAMILIES for defect in family.DEFECTS]
    assert len(listed) == len(catalogue.DEFECTS)


def test_every_defect_has_a_demonstration():
    assert set(SHOWS) == set(catalogue.DEFECTS)


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v4", "v5", "v6", "v7"])
def test_a_posted_profile_has_the_defects_of_its_version(version):
    assert set(profiles.get(version).defects) == set(catalogue.of_version(version))
    assert profiles.get(f"{version}-fixed").defects == ()


@pytest.mark.parametrize("profile", profiles.names())
@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_every_profile_can_be_built(profile, backend):
    assert build(Config(profile=profile, backend=backend, ram=32 << 20, guest_ram=16 << 20)).dom0.iommu


def test_an_unknown_defect_is_refused():
    with pytest.raises(ValueError, match="unknown defect 'Z9' of the hypervisor; there are: S1"):
        build(Config(defects=("Z9",)))


def test_what_a_defect_needs_comes_with_it_and_first():
    assert [defect.id for defect in catalogue.complete(["T1", "H1"])] == ["S1", "T1", "H1"]

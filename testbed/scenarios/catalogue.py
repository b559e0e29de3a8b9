# SPDX-License-Identifier: GPL-2.0-or-later
"""Every scenario by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from guest_driver.iommufd.release import Release
from testbed.iommufd_machine import MOCK
from testbed.scenarios import coherency, faults, nesting, nesting_vtd, objects, ownership, replace, sva
from testbed.scenarios.step import Scenario, Step
from testbed.sva.linux import BARE

EVERYWHERE: Final = (MOCK, "vtd", "smmuv3")
PLACES: Final = (*EVERYWHERE, BARE)
_REPLACE = "iommufd/device: Use iommu_group_replace_domain() (February 2023)"
_OWNER = "iommu: Add iommu_at[de]tach_device_shared() for multi-device groups (December 2021)"
_CC = "iommufd: Always setup MSI and enforce cc on kernel-managed domains (September 2023)"
_CD = "iommu/arm-smmu-v3: Refactor write_ctx_desc (August 2023)"
_KNOWN = "known upstream faults, and where kernels differ"
_NO_SNOOP = "no entry of an SMMUv3 enforces coherency (that would take S2FWB): nothing to promote"
_NO_CD = "VT-d has no context descriptors; first stages and PASIDs there are in nesting-vtd"
_AT_ONCE = "merged code moves the group, its references and its reserved regions in one call"


def by_backend(place: str, release: Release, **forms: Callable[[str, Release], Iterator[Step]]) -> Iterator[Step]:
    """A scenario whose steps are other ones on each backend."""
    return forms[place](place, release)


_ALL: Final = (
    Scenario("replace-1", _REPLACE, "all three attached", partial(replace.merged, detached=()), _AT_ONCE, EVERYWHERE),
    Scenario(
        "replace-2", _REPLACE, "dev3 detached first", partial(replace.merged, detached=("dev3",)), _AT_ONCE, EVERYWHERE
    ),
    Scenario(
        "replace-3",
        _REPLACE,
        "dev3 and dev2 detached first",
        partial(replace.merged, detached=("dev3", "dev2")),
        _AT_ONCE,
        EVERYWHERE,
    ),
    Scenario(
        "replace-auto",
        _REPLACE,
        "by address space: automatic tables",
        replace.automatic,
        _AT_ONCE,
        EVERYWHERE,
    ),
    Scenario(
        "replace-posted",
        _REPLACE,
        "the flow as first posted, all three attached",
        partial(replace.posted, detached=()),
        "between the calls two devices use a table whose address space does not know their reserved regions",
        EVERYWHERE,
        shows_flaw=True,
    ),
    Scenario(
        "replace-posted-2",
        _REPLACE,
        "the flow as first posted, dev3 detached first",
        partial(replace.posted, detached=("dev3",)),
        "between the calls a device uses a table whose address space does not know its reserved regions",
        EVERYWHERE,
        shows_flaw=True,
    ),
    Scenario(
        "attach-fails",
        _REPLACE,
        "attach, failing at each step",
        replace.attach_failing,
        "a failed attach leaves the device out and the group where it was",
        EVERYWHERE,
    ),
    Scenario(
        "replace-fails",
        _REPLACE,
        "refused at each device, by each reserved region, at each allocation",
        replace.failing,
        "a failed replace changes nothing (released kernels from 6.12 drop reservations within one IOAS)",
        EVERYWHERE,
    ),
    Scenario(
        "ownership",
        _OWNER,
        "user space takes a group device by device",
        ownership.one_after_another,
        "counting per group answers the thread's question; -EPERM for a claim, -EBUSY for a bind",
        EVERYWHERE,
    ),
    Scenario(
        "ownership-sketch",
        _OWNER,
        "the thread's two sketches",
        ownership.sketches,
        "a flag in place of a count: the second driver of a group cannot bind, and the first to leave frees the group",
        EVERYWHERE,
        shows_flaw=True,
    ),
    Scenario(
        "objects",
        _KNOWN,
        "every kind of object",
        objects.life,
        "every object is made, used and given back, and refused where it must be",
        EVERYWHERE,
        since=(6, 17),
    ),
    Scenario(
        "map-error",
        _KNOWN,
        "a mapping that the driver refuses",
        faults.map_error,
        "the error reaches user space and nothing is left (Linux 7.0 lost it until it was fixed)",
        EVERYWHERE,
    ),
    Scenario(
        "dirty-hole",
        _KNOWN,
        "a dirty bitmap of a range with a hole",
        faults.dirty_hole,
        "an incomplete bitmap is an error (released kernels from 6.12 answer 0), and no bitmap where nothing tracks",
        EVERYWHERE,
        since=(6, 7),
    ),
    Scenario(
        "unmap-race",
        _KNOWN,
        "a map during an unmap",
        faults.unmap_race,
        "what is mapped behind an unmap's back stays (kernels up to 6.14 take it away)",
        EVERYWHERE,
    ),
    Scenario(
        "attach-twice",
        _KNOWN,
        "one device attached twice",
        faults.attach_twice,
        "as its kernel does: -EBUSY from 6.15 on, a WARN before",
        EVERYWHERE,
    ),
    Scenario(
        "coherency-order",
        _CC,
        "both orders of attaching",
        coherency.order,
        "settled when a table is made: the number of tables depends on the order, correctness does not",
        EVERYWHERE,
    ),
    Scenario(
        "coherency-upgrade",
        _CC,
        "promotion on attach, and a driver that does not look",
        coherency.upgrade,
        "promotion leaves old entries incoherent, and an enforcing table faults on a unit without snoop control",
        (MOCK, "vtd"),
        shows_flaw=True,
        absent={"smmuv3": _NO_SNOOP},
    ),
    Scenario(
        "doorbell-parent",
        _CC,
        "nested table attached first",
        coherency.doorbell,
        "doorbell page and reserved regions are the paging parent's",
        EVERYWHERE,
        since=(6, 7),
    ),
    Scenario(
        "nesting",
        _CC,
        "a virtual SMMU over Xen's stage 2",
        nesting.through_viommu,
        "both stages translate; each fault goes to who made the stage, each command stays within its guest",
        ("smmuv3",),
        absent={"vtd": "a virtual SMMU is of an SMMUv3; the same story there is nesting-vtd"},
    ),
    Scenario(
        "nesting-vtd",
        _CC,
        "a guest's first stage over Xen's second, and a PASID",
        nesting_vtd.first_stage,
        "both stages translate; a PASID has a context of its own; each fault goes to who made the stage",
        ("vtd",),
        absent={"smmuv3": "an x86-64 first stage is of VT-d; the same story there is nesting"},
    ),
    Scenario(
        "nesting-refused",
        _CC,
        "tables and entries that a guest may not have",
        partial(by_backend, smmuv3=nesting.refused, vtd=nesting_vtd.refused),
        "whatever the guest writes, its devices reach what the parent maps or nothing",
        ("smmuv3", "vtd"),
    ),
    Scenario(
        "sva",
        _CD,
        "two devices share a process that ends",
        sva.merged,
        "a table for each master, a pair on the list before its descriptor, quiet descriptors at the end",
        (BARE, "smmuv3"),
        absent={"vtd": _NO_CD},
    ),
    Scenario(
        "sva-undo",
        _CD,
        "an update of several masters fails",
        sva.undo,
        "an undo under a second taking of the lock misses whoever left in between",
        (BARE, "smmuv3"),
        absent={"vtd": _NO_CD},
        shows_flaw=True,
    ),
    Scenario(
        "sva-others",
        _CD,
        "a device that nobody bound",
        sva.others,
        "writing for every master of the domain gives the process's memory to devices that did not ask",
        (BARE, "smmuv3"),
        absent={"vtd": _NO_CD},
        shows_flaw=True,
    ),
    Scenario(
        "sva-list",
        _CD,
        "the notifier goes through an empty list",
        sva.list_never_filled,
        "without quiet descriptors a device that reads while the process ends reads its successor's pages",
        (BARE, "smmuv3"),
        absent={"vtd": _NO_CD},
        shows_flaw=True,
    ),
)
SCENARIOS: Final = {scenario.name: scenario for scenario in _ALL}


def get(name: str) -> Scenario:
    """``ValueError`` lists what there is."""
    if name not in SCENARIOS:
        raise ValueError(f"unknown scenario {name!r}; there are: {', '.join(SCENARIOS)}")
    return SCENARIOS[name]

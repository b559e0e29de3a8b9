# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults of map, unmap and iova_to_phys."""

from typing import Final

from abi.versions import Abi
from guest_driver.defects.loops import posted_loops
from guest_driver.defects.model import Defect
from guest_driver.linux.iommu import IOMMU_CACHE, IOMMU_CAP_CACHE_COHERENCY
from guest_driver.xen_iommu import XenIommu

SHADOWED: Final = ("rfc-v3", "edera")
"""Drivers for ABI versions without lookup_page."""
ASKING: Final = ("rfc-v1", "rfc-v2")
"""Drivers that ask lookup_page."""


def _unmap_claims_all(driver: XenIommu) -> None:
    posted_loops(driver).unmap_claims_all = True


def _adds_stale_count(driver: XenIommu) -> None:
    loops = posted_loops(driver)
    loops.keeps_struct = loops.adds_stale_count = True


def _reports_last_call(driver: XenIommu) -> None:
    loops = posted_loops(driver)
    loops.keeps_struct = loops.reports_last_call = True


def _one_frame_steps(driver: XenIommu) -> None:
    posted_loops(driver).one_frame_steps = True
    # The posted driver passes the hypervisor's page sizes on, to PV guests too.
    driver.pgsize_bitmap = driver.pgsize_mask


def _shadow_believes_request(driver: XenIommu) -> None:
    posted_loops(driver).shadow_believes_request = True


def _unmap_trusts_shadow(driver: XenIommu) -> None:
    posted_loops(driver).unmap_trusts_shadow = True


def _unmap_counts_absent(driver: XenIommu) -> None:
    loops = posted_loops(driver)
    loops.unmap_trusts_shadow = loops.unmap_counts_absent = True


def _page_by_page(driver: XenIommu) -> None:
    posted_loops(driver).page_by_page = True


def _always_coherent(driver: XenIommu) -> None:
    driver.ops.capable = lambda dev, cap: cap == IOMMU_CAP_CACHE_COHERENCY
    abi: Abi = driver.abi
    for prot, flags in enumerate(driver.flags_of_prot):
        if prot & IOMMU_CACHE:
            driver.flags_of_prot[prot] = flags | abi.map_cache


MAPPINGS: Final = (
    Defect(
        id="K3",
        versions=ASKING,
        title="unmap_pages ignores what the hypercalls answer and always reports the full size",
        seen="unmap of a hole, or one that fails half-way, returns the size asked for; pages stay mapped in silence",
        source="Robin Murphy on RFC v2: bytes, total failure is 0, and return short so that the caller finds out",
        build=_unmap_claims_all,
    ),
    Defect(
        id="K4",
        versions=ASKING,
        title="one struct serves all hypercalls of a map, so an early error adds the previous call's `mapped` again",
        seen="a map of two calls whose second fails at its start reports the first call's pages twice",
        source="reading of the posted loops; needs a hypervisor that leaves `mapped` alone on early errors",
        build=_adds_stale_count,
    ),
    Defect(
        id="L1.2-1",
        also=("K4", "L8.7"),
        versions=SHADOWED,
        title="`*mapped` is assigned from the last hypercall instead of summed up",
        seen="PV, scattered frames: a map of n pages reports the last run only; the core maps the rest again, is "
        "refused, unwinds what was reported and leaks the rest",
        source="reading of RFC v3 and the Edera tree; hidden by hypervisors that add to `mapped`",
        build=_reports_last_call,
    ),
    Defect(
        id="L1.2-2",
        versions=("rfc-v3", "edera-single-page"),
        needs=("K10",),
        title="the page-by-page loop advances by one 4 KiB frame whatever the page size is",
        seen="PV, 2 MiB pages: the second page of a call lands 4 KiB behind the first and is refused",
        source="reading of RFC v3; in the Edera tree only with its single-page module parameter",
        build=_one_frame_steps,
    ),
    Defect(
        id="L1.2-3",
        also=("K5", "L8.7"),
        versions=SHADOWED,
        title="the shadow takes the whole range of a map, although the hypercall failed or did part of it",
        seen="iova_to_phys answers for pages that Xen has not mapped",
        source="reading of RFC v3 and the Edera tree; iommufd unpins by these answers",
        build=_shadow_believes_request,
    ),
    Defect(
        id="L1.2-4",
        also=("K5",),
        versions=SHADOWED,
        title="a partial unmap WARNs, yet the shadow is cleared for all of it and its count goes to the core",
        seen="unmap that fails at page k returns all n pages; iova_to_phys says 0 for pages that devices still reach",
        source="Jason Gunthorpe and Robin Murphy on RFC v2: unmap must not fail silently",
        build=_unmap_trusts_shadow,
    ),
    Defect(
        id="L1.2-5",
        also=("K5",),
        versions=SHADOWED,
        title="the shadow drops a 2 MiB leaf when 4 KiB of it are unmapped, and counts leaves that were not there",
        seen="unmap of a hole returns its size; iova_to_phys says 0 beside an unmapped slice of a superpage",
        source="reading of RFC v3 and the Edera tree",
        build=_unmap_counts_absent,
    ),
    Defect(
        id="K10",
        versions=("rfc-v1", "rfc-v2", "rfc-v3", "edera-single-page"),
        title="PV guests map page by page, one hypercall each, although frames are neighbours",
        seen="PV: n contiguous pages take n map_pages calls",
        source="reading of the posted loops; the Edera tree groups runs",
        build=_page_by_page,
    ),
    Defect(
        id="K7",
        also=("L1.2-9",),
        versions=("rfc-v1", "rfc-v2", "rfc-v3", "edera"),
        title="CACHE_COHERENCY is answered true whatever the hypervisor says, and the cache flag is sent all the same",
        seen="capable(CACHE_COHERENCY) without IOMMUCAP_cache; map_pages carries IOMMU_MAP_cache",
        source="Robin Murphy and Jason Gunthorpe on RFC v2: it is a property of the hardware",
        build=_always_coherent,
    ),
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""F: references on the frames that devices reach."""

from typing import Final

from hypervisor.defects.model import V1_TO_3, V1_TO_7, Defect
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain
from hypervisor.iommu.context import IommuContext
from hypervisor.pagetable.radix import Changes


def failed_map_keeps_reference(seams: Seams) -> None:
    """F1."""
    replace(seams.loop, "map_failed", lambda mfn, reference: None)


def dropped_before_flush(seams: Seams) -> None:
    """F6."""
    loop = seams.loop

    def page_unmapped(domain: Domain, context: IommuContext, changes: Changes) -> None:
        loop.drop(domain, changes)

    replace(loop, "page_unmapped", page_unmapped)


def read_only_is_not_looked_at(seams: Seams) -> None:
    """F7."""
    loop = seams.loop
    frame = loop.frame
    replace(loop, "frame", lambda domain, gfn, write: frame(domain, gfn, write and domain.pv))


DEFECTS: Final = (
    Defect(
        "F1",
        V1_TO_3,
        "a map that fails for want of a table keeps the reference on its frame",
        "one reference more after every -ENOMEM",
        "catalogue F1; golden records arena3-*",
        failed_map_keeps_reference,
    ),
    Defect(
        "F6",
        V1_TO_7,
        "unmap_pages drops references before the IOTLB is flushed",
        "when the flush is queued, the frame has already lost its reference",
        "catalogue F6",
        dropped_before_flush,
    ),
    Defect(
        "F7",
        V1_TO_7,
        "frames that the guest may only read can be mapped writable",
        "map_pages of read-only RAM with the write flag answers 0",
        "catalogue F7",
        read_only_is_not_looked_at,
    ),
)

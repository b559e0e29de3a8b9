# SPDX-License-Identifier: GPL-2.0-or-later
"""F: references on the frames that devices reach."""

from typing import Final

from hypervisor.defects.locking import P2M_STAYS_LOCKED
from hypervisor.defects.model import V1_TO_3, V1_TO_7, V4_TO_7, Defect
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain
from hypervisor.frames import DOMID_NONE, DOMID_XEN
from hypervisor.iommu.context import IommuContext
from hypervisor.p2m import IS_RAM
from hypervisor.pagetable.radix import Changes
from hypervisor.xen import Xen


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


def _puts_every_page(seams: Seams) -> None:
    """A leaf that holds no reference loses one all the same, if its frame has a page_info."""
    loop, frames = seams.loop, seams.xen.frames

    def unreferenced(mfn: int, count: int) -> None:
        if mfn + count <= frames.frames:
            frames.put(mfn, count, loop.reference_kind(False))

    replace(loop, "unreferenced", unreferenced)


def no_reference_is_no_obstacle(seams: Seams) -> None:
    """F2."""
    loop, xen = seams.loop, seams.xen
    frame = loop.frame

    def anybodys(domain: Domain, gfn: int, write: bool) -> tuple[int, int, int]:
        mfn, reference, error = frame(domain, gfn, write)
        if error and _leads_to_a_page(xen, domain, gfn):
            return mfn, 0, 0
        return mfn, reference, error

    replace(loop, "frame", anybodys)
    _puts_every_page(seams)


def _leads_to_a_page(xen: Xen, domain: Domain, gfn: int) -> bool:
    mfn, kind, _ = domain.translation.run(gfn, 1)
    return bool(IS_RAM[kind]) and mfn < xen.frames.frames


def what_was_not_taken_is_put(seams: Seams) -> None:
    """F3."""
    _puts_every_page(seams)


def nobodys_frame_is_mapped(seams: Seams) -> None:
    """F5."""
    loop, xen = seams.loop, seams.xen
    frame = loop.frame

    def without_owner(domain: Domain, gfn: int, write: bool) -> tuple[int, int, int]:
        mfn, reference, error = frame(domain, gfn, write)
        if not error or not domain.hardware or not _leads_to_a_page(xen, domain, gfn):
            return mfn, reference, error
        nobodys = xen.frames.owner[mfn] in (DOMID_NONE, DOMID_XEN)
        return (mfn, 0, 0) if nobodys else (mfn, reference, error)

    replace(loop, "frame", without_owner)
    _puts_every_page(seams)


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
        "F2",
        ("v4", "v5", "v6"),
        "a frame of which no reference can be had is mapped all the same, and loses one when it is unmapped",
        "map of another domain's, of Xen's or of a free frame answers 0; unmap drops a reference never taken",
        "catalogue F2 and 2.6",
        no_reference_is_no_obstacle,
    ),
    Defect(
        "F3",
        V4_TO_7,
        "the frame's type decides whether a reference is taken, its having a page_info whether one is dropped",
        "unmapping MMIO or a firmware's frame that has a page_info drops a reference never taken",
        "catalogue F3",
        what_was_not_taken_is_put,
    ),
    Defect(
        "F5",
        ("v7",),
        "the hardware domain may map a frame without an owner, whose reference is dropped without having been taken",
        "map of a free frame answers 0, unmap drops a reference that nobody held",
        "catalogue F5",
        nobodys_frame_is_mapped,
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
    P2M_STAYS_LOCKED,
)

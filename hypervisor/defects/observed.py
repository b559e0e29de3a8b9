# SPDX-License-Identifier: GPL-2.0-or-later
"""R: seen on a running RFC v3."""

from typing import Final

from abi.errno import EINVAL
from base.units import U64_MAX
from hypervisor.defects.model import V1_TO_3, Defect
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain
from hypervisor.errors import XenBug
from hypervisor.frames import REF
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.pagetable.radix import Changes
from hypervisor.vtd.driver import VtdBackend
from machine.pci import BRIDGES, PortType


def frame_without_page_info(seams: Seams) -> None:
    """R1."""
    loop, frames = seams.loop, seams.xen.frames
    after = loop.page_unmapped

    def page_unmapped(domain: Domain, context: IommuContext, changes: Changes) -> None:
        mfn = changes.removed[-1][0] if changes.removed else 0
        if mfn >= frames.frames:
            raise XenBug(f"fatal page fault: frame {mfn:#x} has no page_info whose reference could be dropped")
        after(domain, context, changes)

    replace(loop, "page_unmapped", page_unmapped)


def queue_of_tables(seams: Seams) -> None:
    """R3."""
    loop = seams.loop
    finish = loop.finish

    def drain(domain: Domain, context: IommuContext, dfn: int, requested: int, done: int, changes: Changes) -> int:
        if not changes.added and not changes.modified:
            return 0
        if dfn == U64_MAX:
            loop.queued.setdefault(context, []).extend(changes.tables)
            loop.drop(domain, changes)
            return -EINVAL
        result: int = finish(domain, context, dfn, requested, done, changes)
        if not result:
            for table in loop.queued.pop(context, ()):
                context.pool.free(table)
        return result

    replace(loop, "finish", drain)


def shared_table_swallows_maps(seams: Seams) -> None:
    """R4."""
    domains = seams.xen.domains
    others = seams.loop.opaque

    def opaque(context: IommuContext) -> bool:
        return others(context) or (
            context.number == 0
            and any(
                domain.iommu is not None and domain.iommu.default is context and not domain.pv
                for domain in domains.values()
            )
        )

    replace(seams.loop, "opaque", opaque)


def no_type_reference(seams: Seams) -> None:
    """R5."""
    loop = seams.loop
    frame = loop.frame
    replace(loop, "frame", lambda domain, gfn, write: frame(domain, gfn, write and not domain.pv))
    replace(loop, "reference_kind", lambda writable: REF)


def is_bridge(device: PciDevice) -> bool:
    """Whether the device is on no context's list."""
    return device.function.port_type in BRIDGES or device.function.port_type is PortType.HOST_BRIDGE


def bridges_have_entries(seams: Seams) -> None:
    """R6."""
    xen, contexts = seams.xen, seams.contexts
    move, attach = contexts.move, xen.attach_device

    def move_bridge(domain: Domain, device: PciDevice, target: IommuContext) -> int:
        if is_bridge(device):
            return xen.backend.attach(device, target)
        result: int = move(domain, device, target)
        return result

    def attach_device(domain: Domain, device: PciDevice, number: int = 0) -> int:
        if not is_bridge(device):
            result: int = attach(domain, device, number)
            return result
        domain.devices[device.sbdf] = device
        return 0

    replace(contexts, "move", move_bridge)
    replace(xen, "attach_device", attach_device)


def flush_as_requested(seams: Seams) -> None:
    """R7."""
    loop, xen, backend = seams.loop, seams.xen, seams.xen.backend
    loop.flushes_additions = True
    finish = loop.finish

    def whole_request(
        domain: Domain, context: IommuContext, dfn: int, requested: int, done: int, changes: Changes
    ) -> int:
        result: int = finish(domain, context, dfn, requested, requested, changes)
        return result

    def finish_pass(domain: Domain, context: IommuContext, dfn: int, pages: int, changes: Changes) -> int:
        error = backend.flush(context, dfn, pages, changes)
        if error:
            xen.kept.append((domain, context, changes))
            return error
        xen._let_go(domain, context, changes)
        return 0

    replace(loop, "finish", whole_request)
    replace(xen, "finish_pass", finish_pass)
    if isinstance(backend, VtdBackend):
        _flush_by_shape(backend)


def _flush_by_shape(backend: VtdBackend) -> None:
    def flush(context: IommuContext, dfn: int, pages: int, changes: Changes) -> int:
        for unit, did in context.hw.used:
            if pages & pages - 1 or dfn & pages - 1:
                error = unit.flush_did(did)
            elif changes.modified or unit.caching_mode:
                error = unit.flush_pages(did, dfn, pages)
            else:
                error = 0
            if error:
                return int(error)
        return 0

    replace(backend, "flush", flush)


DEFECTS: Final = (
    Defect(
        "R1",
        V1_TO_3,
        "unmapping an MMIO frame of the default context stops the host",
        "one unmap_pages in context 0 at a frame without page_info",
        "section 8, 10",
        frame_without_page_info,
        needs=("A1",),
    ),
    Defect(
        "R3",
        V1_TO_3,
        "the flush of a call at device frame 2^64-1 is refused, and removed tables stay queued",
        "unmap answers 0, the tables stay in use; freeing the context leaks them",
        "section 8, 12; golden records destr-queue_free, freequeue",
        queue_of_tables,
        needs=("H2", "H7"),
    ),
    Defect(
        "R4",
        V1_TO_3,
        "with a default context that shares the p2m, map_pages there counts and references, but maps nothing",
        "PVH, context 0: map 0, lookup -ENOENT, one reference more per page",
        "section 8, 15",
        shared_table_swallows_maps,
        needs=("A1",),
    ),
    Defect(
        "R5",
        V1_TO_3,
        "a PV domain may let devices write to its page tables: no type reference is taken",
        "map_pages of a page-table frame with the write flag answers 0",
        "section 8, 16; golden record sys",
        no_type_reference,
    ),
    Defect(
        "R6",
        V1_TO_3,
        "bridges get a context entry but are on no context's list",
        "free_context answers 0 while the bridge's entry points to its tables, and goes on pointing there",
        "section 8, 1; golden records sys, destr-bridge_free",
        bridges_have_entries,
    ),
    Defect(
        "R7",
        V1_TO_3,
        "flushes cover the range that was asked for, and pure additions flush the whole domain if it is not aligned",
        "mapping 2 pages at an odd device frame queues a domain-selective invalidation",
        "section 8, 2 to 4; golden records sys, destr-flush_sticky",
        flush_as_requested,
    ),
)

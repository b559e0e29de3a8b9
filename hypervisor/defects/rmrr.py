# SPDX-License-Identifier: GPL-2.0-or-later
"""D: reserved memory regions."""

from typing import Final

from abi.errno import EINVAL
from hypervisor.defects.model import V1_TO_3, V4_TO_7, Defect
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain
from hypervisor.errors import XenBug
from hypervisor.iommu.context import IdentityRange, IommuContext, PciDevice
from hypervisor.pagetable.radix import Changes
from hypervisor.xen import Xen


def _first_page_only(context: IommuContext, first: int, dfn: int) -> bool:
    return context.identity_offset(first, 1) is not None


def _drops_all(seams: Seams) -> None:
    """References are dropped whether or not they were taken."""
    loop, frames = seams.loop, seams.xen.frames

    def unreferenced(mfn: int, count: int) -> None:
        if mfn + count <= frames.frames:
            frames.put(mfn, count, loop.reference_kind(False))

    replace(loop, "unreferenced", unreferenced)


def map_tests_the_first_page(seams: Seams) -> None:
    """D1."""
    loop = seams.loop
    replace(loop, "reserved_for_unmap", loop.reserved)
    replace(loop, "reserved", _first_page_only)


def unmap_tests_the_first_page(seams: Seams) -> None:
    """D2."""
    replace(seams.loop, "reserved_for_unmap", _first_page_only)
    _drops_all(seams)


def nothing_is_reserved(seams: Seams) -> None:
    """D3."""
    loop = seams.loop
    replace(loop, "reserved", lambda context, first, dfn: False)
    replace(loop, "reserved_for_unmap", lambda context, first, dfn: False)
    _drops_all(seams)


class PagesBehind:
    """Pages right behind reserved regions that are mapped like them: how many devices want each, by context."""

    def __init__(self) -> None:
        self.users: dict[tuple[IommuContext, int], int] = {}

    def save(self) -> object:
        return dict(self.users)

    def restore(self, state: object) -> None:
        assert isinstance(state, dict)
        self.users = dict(state)


def one_page_too_many(seams: Seams) -> None:
    """D4."""
    xen, contexts, behind = seams.xen, seams.contexts, PagesBehind()
    seams.stateful.append(behind)
    move = contexts.move

    def move_with_more(domain: Domain, device: PciDevice, target: IommuContext) -> int:
        source = device.context
        result: int = move(domain, device, target)
        if result or source is target:
            return result
        for _, last in device.reserved:
            key = target, last + 1
            behind.users[key] = behind.users.get(key, 0) + 1
            if target.number:
                _map_identity(xen, domain, target, last + 1)
            if source is not None:
                left = behind.users.get((source, last + 1), 1) - 1
                behind.users[source, last + 1] = left
                if not left:
                    _take_away(xen, domain, source, last + 1)
        return 0

    replace(contexts, "move", move_with_more)
    _drops_all(seams)


def _map_identity(xen: Xen, domain: Domain, context: IommuContext, dfn: int) -> None:
    table = context.table
    if table is not None and table.lookup(dfn) is None:
        changes = Changes()
        table.map(dfn, dfn, 1, table.format.permission[3], changes)
        xen.finish_pass(domain, context, dfn, 1, changes)


def _take_away(xen: Xen, domain: Domain, context: IommuContext, dfn: int) -> None:
    """Out of a context, of context 0 too: there it was the domain's own."""
    table = context.table
    if table is not None and table.lookup(dfn) is not None:
        changes = Changes()
        table.unmap(dfn, 1, changes)
        changes.removed.clear()
        xen.finish_pass(domain, context, dfn, 1, changes)


def regions_map_over_the_guests_pages(seams: Seams) -> None:
    """S4, and the first half of D5."""
    xen, contexts = seams.xen, seams.contexts
    move = contexts.move

    def move_over(domain: Domain, device: PciDevice, target: IommuContext) -> int:
        there = {(region.first, region.last) for region in target.identity}
        for first, last in device.reserved if target.number and target.table is not None else ():
            if (first, last) not in there:
                for dfn in range(first, last + 1):
                    _take_away(xen, domain, target, dfn)
        result: int = move(domain, device, target)
        return result

    replace(contexts, "move", move_over)


def regions_in_a_shared_table(seams: Seams) -> None:
    """D5."""
    regions_map_over_the_guests_pages(seams)
    xen = seams.xen
    attach = xen.backend.attach

    def every_second_page(device: PciDevice, context: IommuContext) -> int:
        error: int = attach(device, context)
        domain = next((d for d in xen.domains.values() if d.iommu is not None and d.iommu.default is context), None)
        if not error and domain is not None and not domain.pv:
            for first, last in device.reserved:
                for step in range(last - first + 1):
                    _map_identity(xen, domain, context, first + 2 * step)
                    if step & 1:
                        _take_away(xen, domain, context, first + step)
        return error

    replace(xen.backend, "attach", every_second_page)


def regions_page_by_page(seams: Seams) -> None:
    """S5."""
    xen, contexts = seams.xen, seams.contexts

    def move(domain: Domain, device: PciDevice, target: IommuContext) -> int:
        for first, last in device.reserved if target.number and target.table is not None else ():
            error = _map_region(xen, domain, target, first, last)
            if error:
                return error
        if device.translated:
            error = xen.backend.attach(device, target)
            if error:
                return error
        if device.context is not None:
            device.context.devices.remove(device)
        target.devices.append(device)
        device.context = target
        return 0

    replace(contexts, "move", move)


def _map_region(xen: Xen, domain: Domain, context: IommuContext, first: int, last: int) -> int:
    """What is mapped one to one already is left as it is, anything else is in the way: -EINVAL with the pages before
    it kept."""
    table = context.table
    assert table is not None
    changes, error = Changes(), 0
    for dfn in range(first, last + 1):
        found = table.lookup(dfn)
        if found is None:
            _, error = table.map(dfn, dfn, 1, table.format.permission[3], changes)
        elif found[0] != dfn or not (table.format.readable(found[1]) and table.format.writable(found[1])):
            error = -EINVAL
        if error:
            break
    xen.finish_pass(domain, context, first, last - first + 1, changes)
    if not error:
        known = next((r for r in context.identity if (r.first, r.last) == (first, last)), None)
        if known is not None:
            known.users += 1
        else:
            context.identity.append(IdentityRange(first, last))
    return error


def lookup_trusts_the_m2p(seams: Seams) -> None:
    """D6."""
    loop = seams.loop
    guest_frame = loop.guest_frame

    def or_bug(domain: Domain, mfn: int) -> int | None:
        gfn: int | None = guest_frame(domain, mfn)
        if gfn is None:
            raise XenBug(f"BUG_ON in lookup_page: machine frame {mfn:#x} has no entry in the M2P")
        return gfn

    replace(loop, "guest_frame", or_bug)


DEFECTS: Final = (
    Defect(
        "S4",
        ("v4", "v5", "v6"),
        "a reserved region is mapped without a look at what is there",
        "reattach_device into a context with a page mapped in the region answers 0, and the page's reference is lost",
        "section 3, RMRR (D5 is the rest of it, read in v7)",
        regions_map_over_the_guests_pages,
    ),
    Defect(
        "S5",
        V1_TO_3,
        "reserved regions are mapped page by page, over what is one to one already, and stay when the device goes",
        "with a page of the guest's in the region reattach_device is -EINVAL, and the pages before it stay mapped",
        "section 3, RMRR",
        regions_page_by_page,
    ),
    Defect(
        "D1",
        V4_TO_7,
        "map_pages looks for a reserved region at the first page of the call only",
        "a range that enters a region stops with -EADDRINUSE instead of -EADDRNOTAVAIL",
        "catalogue D1",
        map_tests_the_first_page,
    ),
    Defect(
        "D2",
        ("v4", "v5", "v6"),
        "unmap_pages looks for a reserved region at the first page of the call only",
        "a range that enters a region removes its identity mapping and drops references never taken",
        "catalogue D2",
        unmap_tests_the_first_page,
    ),
    Defect(
        "D3",
        V1_TO_3,
        "map_pages and unmap_pages do not know reserved regions",
        "unmapping a reserved region answers 0 and drops references never taken",
        "catalogue D3; golden record destr-unmap_ctx0",
        nothing_is_reserved,
    ),
    Defect(
        "D4",
        ("v7",),
        "each reserved region is mapped with the page behind it, which is not protected as part of the region",
        "map of the page behind the region of a device in the context is -EADDRINUSE, unmap takes it; when the device "
        "leaves context 0, the hardware domain's own mapping of that page goes",
        "catalogue D4",
        one_page_too_many,
    ),
    Defect(
        "D5",
        ("v7",),
        "a reserved region replaces what the guest mapped there; in a shared context 0 every second page is mapped",
        "reattach_device into a context with a page mapped in the region answers 0, and the page's reference is lost",
        "catalogue D5",
        regions_in_a_shared_table,
    ),
    Defect(
        "D6",
        V1_TO_3,
        "lookup_page stops the host if the frame that it finds has no number in the guest any more",
        "lookup of a page that a translated domain gave back since it was mapped",
        "catalogue D6; section 8, 14: a PV domain has no M2P to be looked into",
        lookup_trusts_the_m2p,
        subops=("lookup_page",),
    ),
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Moving devices between contexts, with the reserved regions (RMRR) that have to move with them.

A move is: map the device's reserved regions in the target, reprogram the device, drop the regions from where it
came.  What fails is undone beside it, and the device stays where it was.
"""

from typing import TYPE_CHECKING

from abi.errno import EADDRINUSE, ENOMEM
from hypervisor.domain import Domain
from hypervisor.errors import XenBug
from hypervisor.iommu.context import IdentityRange, IommuContext, PciDevice
from hypervisor.pagetable.radix import Changes

if TYPE_CHECKING:
    from hypervisor.xen import Xen


def move_device(xen: "Xen", domain: Domain, device: PciDevice, target: IommuContext) -> int:
    """Put ``device`` into ``target``; 0, or an errno with the device where it was."""
    source = device.context
    if source is target and not (device.translated and xen.backend.cut_off(device)):
        return 0
    error = reserve(xen, domain, device, target.stage2)
    if error:
        return error
    if device.translated:
        error = xen.backend.attach(device, target)
        if error:
            release(xen, domain, device, target.stage2)
            return error
    if source is not None:
        source.devices.remove(device)
        release(xen, domain, device, source.stage2)
    target.devices.append(device)
    device.context = target
    return 0


def reserve(xen: "Xen", domain: Domain, device: PciDevice, context: IommuContext) -> int:
    """Map the device's reserved regions one to one in ``context``.

    -EADDRINUSE if one overlaps another region or something that the guest mapped; -ENOMEM; nothing kept then.
    """
    made: list[tuple[int, int]] = []
    error = 0
    for first, last in device.reserved:
        error = _reserve(xen, domain, context, first, last)
        if error:
            break
        made.append((first, last))
    if error:
        for first, last in made:
            _release(xen, domain, context, first, last)
    return error


def release(xen: "Xen", domain: Domain, device: PciDevice, context: IommuContext) -> None:
    """Undo :meth:`reserve`."""
    for first, last in device.reserved:
        _release(xen, domain, context, first, last)


def _reserve(xen: "Xen", domain: Domain, context: IommuContext, first: int, last: int) -> int:
    for region in context.identity:
        if (region.first, region.last) == (first, last):
            region.users += 1
            return 0
        if first <= region.last and region.first <= last:
            return -EADDRINUSE
    table = context.table
    if context.number and table is not None and any(map(table.lookup, range(first, last + 1))):
        return -EADDRINUSE  # whether or not there is memory
    if not xen.xmalloc("reserved region"):
        return -ENOMEM
    if context.table is not None:
        changes = Changes()
        fmt = context.table.format
        pages = last - first + 1
        done, error = context.table.map(first, first, pages, fmt.permission[3], changes)
        if error and context.number == 0 and error == -EADDRINUSE:
            # Xen's own identity table already covers it: reserved all the same, nothing to map or to remove.
            context.table.unmap(first, done, changes)
            error = _fill_identity(context, first, last, changes)
        elif error:
            undone, undo_error = context.table.unmap(first, done, changes)
            if undo_error or undone != done:
                raise XenBug("a reserved region that was just mapped could not be unmapped")
        changes.removed.clear()  # firmware's frames: nobody took a reference
        flushed = xen.finish_pass(domain, context, first, pages, changes)
        if flushed and not error and context.number:
            _unmap(xen, domain, context, first, pages)
        if error or flushed:
            return error or flushed
    context.identity.append(IdentityRange(first, last))
    return 0


def _fill_identity(context: IommuContext, first: int, last: int, changes: Changes) -> int:
    """Map those frames of the region that the identity table of context 0 does not have yet.

    -EADDRINUSE for one that it maps to something else.
    """
    assert context.table is not None
    for dfn in range(first, last + 1):
        found = context.table.lookup(dfn)
        if found is not None and found[0] != dfn:
            return -EADDRINUSE
        if found is None:
            _, error = context.table.map(dfn, dfn, 1, context.table.format.permission[3], changes)
            if error:
                return error
    return 0


def _release(xen: "Xen", domain: Domain, context: IommuContext, first: int, last: int) -> None:
    for region in context.identity:
        if (region.first, region.last) == (first, last):
            break
    else:
        raise XenBug(f"{context}: reserved region {first:#x}-{last:#x} was never mapped here")
    region.users -= 1
    if region.users:
        return
    context.identity.remove(region)
    if context.table is None or context.number == 0:
        return  # context 0 is an identity table: the region simply stays mapped
    _unmap(xen, domain, context, first, last - first + 1)


def _unmap(xen: "Xen", domain: Domain, context: IommuContext, first: int, pages: int) -> None:
    """Take a region out again.  Firmware's frames are never used otherwise: what is not confirmed harms nobody.

    Like Xen it goes on past a page that cannot be taken out, which only a guest that got at the region brings about,
    and logs it.
    """
    assert context.table is not None
    changes = Changes()
    end, at, missed = first + pages, first, 0
    while at < end:
        done, error = context.table.unmap(at, end - at, changes)
        at += done
        if error:
            at, missed = at + 1, missed + 1
    if missed:
        xen.log(f"{context}: reserved region {first:#x}+{pages:#x}: {missed} pages could not be unmapped")
    changes.removed.clear()  # no reference was taken, so none is dropped
    xen.finish_pass(domain, context, first, pages, changes)

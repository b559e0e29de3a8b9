# SPDX-License-Identifier: GPL-2.0-or-later
"""map_pages, unmap_pages, flush_pages and lookup_page.

A call is worked off in *passes*.  A pass changes tables, then flushes once, and only then drops references and
frees tables: until hardware has confirmed, a device may still reach the old frames.  Between passes the hypercall
may be preempted; how far it got travels in the re-issued call (see ``entry``), not in the guest's struct.

Checks come in this order: the request itself (size limit, context, flags, page size, alignment, range), and then
for each page: reserved region, frame, existing mapping, memory for tables.  The pages before the first that fails
stay mapped (or unmapped) and are what ``mapped`` (``unmapped``) counts.

Where the interface has ``IOMMU_MAP_no_flush``, a map with it leaves out the flush that is only for what it added; what
it took away (a table that a superpage replaced) is flushed all the same, because it is used again.  The caller asks
for the rest with flush_pages, before a device uses the range.
"""

from typing import TYPE_CHECKING, Final

from abi.errno import E2BIG, EADDRINUSE, EADDRNOTAVAIL, EINVAL, ENOENT, ENOMEM
from hypervisor.domain import Domain, Vcpu
from hypervisor.errors import XenBug
from hypervisor.iommu.context import IommuContext
from hypervisor.pagetable.radix import Changes
from hypervisor.pviommu.frame_rights import frame_rights
from hypervisor.pviommu.result import RESTART, Result

if TYPE_CHECKING:
    from hypervisor.xen import Xen

PASS_PAGES: Final = 4096
"""Pages between two looks at whether the vCPU should yield."""
RESUME_GRAIN: Final = 256
"""A preempted call resumes at a device frame that is a multiple of this (of a superpage unit, where those are larger),
so that superpages in its way are passed as a whole."""
MAX_PAGES: Final = 1 << 32
"""Most 4 KiB pages that one call may cover: what a resumed call can name."""


def map_pages(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], progress: int) -> Result:
    """Map frames ``gfn``.. of the caller at ``dfn``.. in a context."""
    number, gfn, dfn, flags, pgsize, nr_pages, _ = args
    context, unit, total, error = _checked(xen, domain, number, dfn, pgsize, nr_pages, gfn)
    if context is None:
        return error, (0,)
    permission = xen.map_permissions.get(flags)
    if permission is None:
        return -EINVAL, (0,)
    bits, write = permission
    start = _first_page(dfn, unit, progress) if progress else 0
    if not 0 <= start < total:
        return (-EINVAL if progress else 0), (0,)
    table = context.table
    if table is None:
        return _guests_own(context), (0,)

    frames = xen.frames
    preempt = xen.preempt
    identity = context.identity
    changes = Changes()
    done = start
    limit = total - done
    if limit > 512:
        limit = min(limit, PASS_PAGES - (dfn & 511))
    while True:
        if identity:
            reserved = context.identity_offset(dfn + done, limit)
            if reserved is not None:
                if not reserved:
                    error = -EADDRNOTAVAIL
                    break
                limit = reserved
        mfn, count, reference, error = frame_rights(xen.profile, frames, domain, gfn + done, limit, write)
        if error:
            break
        if reference:
            vacant = 1 if count == 1 else table.vacant(dfn + done, count)
            if vacant:
                frames.get(mfn, vacant, reference)
                step, error = table.map(dfn + done, mfn, vacant, bits | xen.referenced, changes)
                if step != vacant:
                    frames.put(mfn + step, vacant - step, reference)
            else:
                step = 0
            if vacant != count and not error:
                error = -EADDRINUSE
        else:
            step, error = table.map(dfn + done, mfn, count, bits, changes)
        done += step
        if error or done >= total:
            break
        limit = min(total - done, PASS_PAGES - (dfn + done & 511))
        if preempt is not None and preempt(vcpu):
            to_grain = _to_grain(dfn + done, unit)
            if not to_grain and _can_resume(xen, vcpu, dfn, done):
                changes.added = changes.added and not flags & xen.map_no_flush
                flushed = xen.finish_pass(domain, context, dfn + start, done - start, changes)
                return flushed or RESTART, (done // unit,)
            limit = min(limit, to_grain or limit)

    if unit > 1 and done % unit:  # a superpage unit is mapped as a whole or not at all
        part = done % unit
        undone, undo_error = table.unmap(dfn + done - part, part, changes)
        if undo_error or undone != part:
            raise XenBug("what this call mapped could not be unmapped again")
        touched, done = done, done - part
    else:
        touched = done
    if changes.modified or (changes.added and xen.flushes_additions and not flags & xen.map_no_flush):
        error = xen.finish_pass(domain, context, dfn + start, max(touched - start, 1), changes) or error
    return error, (done // unit,)


def unmap_pages(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], progress: int) -> Result:
    """Remove what is mapped at ``dfn``.. in a context."""
    number, dfn, pgsize, nr_pages, _ = args
    context, unit, total, error = _checked(xen, domain, number, dfn, pgsize, nr_pages)
    if context is None:
        return error, (0,)
    start = _first_page(dfn, unit, progress) if progress else 0
    if not 0 <= start < total:
        return (-EINVAL if progress else 0), (0,)
    table = context.table
    if table is None:
        return _guests_own(context), (0,)
    preempt = xen.preempt
    changes = Changes()
    done = start
    pause = total - done if preempt is None else PASS_PAGES
    while True:
        left = total - done if unit == 1 else unit
        if context.identity:
            reserved = context.identity_offset(dfn + done, left)
            if reserved is not None:
                if not reserved or unit > 1:
                    error = _whole_unit(table.lookup, dfn + done, reserved) or -EADDRNOTAVAIL
                    break
                left = reserved
        if unit > 1:
            error = _whole_unit(table.lookup, dfn + done, unit)
            if error:
                break
        step, error = table.unmap(dfn + done, left, changes, pause if pause < left and unit == 1 else left)
        done += step
        if error == -ENOMEM and changes.tables:  # a table is wanted, and this call has emptied some
            error = xen.finish_pass(domain, context, dfn + start, done - start, changes)
            changes = Changes()
            if not error:
                continue
        if error or done >= total:
            break
        if preempt is not None:
            pause = PASS_PAGES
            if preempt(vcpu):
                to_grain = _to_grain(dfn + done, unit)
                if not to_grain and _can_resume(xen, vcpu, dfn, done):
                    flushed = xen.finish_pass(domain, context, dfn + start, done - start, changes)
                    return flushed or RESTART, (done // unit,)
                pause = to_grain or pause
    if changes.modified:
        error = xen.finish_pass(domain, context, dfn + start, max(done - start, 1), changes) or error
    return error, (done // unit,)


def flush_pages(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """Let hardware see what was mapped within a range with the flush left out; pages that are not mapped do not
    matter.  -EIO if hardware does not confirm."""
    number, dfn, pgsize, nr_pages = args
    context, _, total, error = _checked(xen, domain, number, dfn, pgsize, nr_pages)
    if context is None or not total:
        return error, ()
    changes = Changes()
    changes.added = True
    return xen.finish_pass(domain, context, dfn, total, changes), ()


def lookup_page(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """Which of the caller's frames ``dfn`` maps to."""
    number, dfn, _ = args
    assert domain.iommu is not None
    context = domain.iommu.contexts.get(number)
    if context is None or context.dying or context.table is None:
        return -EINVAL, (0,)
    found = context.table.lookup(dfn) if dfn <= xen.max_dfn else None
    if found is None:
        return -ENOENT, (0,)
    gfn = xen.machine_to_guest(domain, found[0])
    return (-ENOENT, (0,)) if gfn is None else (0, (gfn,))


def _checked(
    xen: "Xen", domain: Domain, number: int, dfn: int, pgsize: int, nr_pages: int, gfn: int = 0
) -> tuple[IommuContext | None, int, int, int]:
    """(context, 4 KiB pages in a page, 4 KiB pages in all, 0), or (``None``, 0, 0, errno) for a request that is wrong
    in itself.

    The default context belongs to Xen and is refused like an unknown one.
    """
    if nr_pages > xen.max_nr_pages:
        return None, 0, 0, -E2BIG
    assert domain.iommu is not None
    context = domain.iommu.contexts.get(number)
    unit = xen.page_units.get(pgsize)
    if context is None or context.dying or unit is None:
        return None, 0, 0, -EINVAL
    total = nr_pages * unit
    if (dfn | gfn) & unit - 1 or dfn + total - 1 > xen.max_dfn:
        return None, 0, 0, -EINVAL
    if total > MAX_PAGES:
        return None, 0, 0, -E2BIG
    return context, unit, total, 0


def _guests_own(context: IommuContext) -> int:
    """What a context without a table of Xen's answers: a nested one's mappings are in its guest's table."""
    if context.parent is None:
        raise XenBug(f"{context} has no table")
    return -EINVAL


def _first_page(dfn: int, unit: int, progress: int) -> int:
    """The first page that is still to do, or -1 for progress that this hypervisor would never have noted.

    ``progress`` is a multiple of :data:`RESUME_GRAIN` that counts from the multiple at or below ``dfn``.
    """
    done = progress - dfn % RESUME_GRAIN
    return -1 if done % unit else done


def _to_grain(dfn: int, unit: int) -> int:
    """Pages from ``dfn`` to where a call can resume, 0 if that is here."""
    return -dfn % max(unit, RESUME_GRAIN)


def _can_resume(xen: "Xen", vcpu: Vcpu, dfn: int, done: int) -> bool:
    """Note that ``done`` pages are done, if that many can be noted and the re-issued call can carry the note."""
    progress = done + dfn % RESUME_GRAIN
    vcpu.restart = (progress,)
    return xen.entry.carries_progress and progress < MAX_PAGES


def _whole_unit(lookup: "Lookup", dfn: int, unit: int) -> int:
    """-ENOENT unless each of ``unit`` pages from ``dfn`` on is mapped."""
    page = dfn
    while page < dfn + unit:
        found = lookup(page)
        if found is None:
            return -ENOENT
        page = (page >> found[2]) + 1 << found[2]
    return 0


if TYPE_CHECKING:
    from collections.abc import Callable

    Lookup = Callable[[int], tuple[int, int, int] | None]

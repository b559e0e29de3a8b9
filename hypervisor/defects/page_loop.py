# SPDX-License-Identifier: GPL-2.0-or-later
"""map_pages, unmap_pages and lookup_page one 4 KiB page at a time, as posted code works, every step replaceable.

Left alone it answers as :mod:`hypervisor.pviommu.mappings` does (without preemption, which comes with A9); a defect
replaces one of the methods below on the instance.  Superpage units are left to the original handlers.
"""

from typing import TYPE_CHECKING, Any, Final

from abi.errno import E2BIG, EADDRINUSE, EADDRNOTAVAIL, EINVAL, ENOENT, ENOMEM
from base.units import U64_MAX
from hypervisor.domain import Domain, Vcpu
from hypervisor.errors import XenBug
from hypervisor.frames import REF, WRITABLE_REF
from hypervisor.iommu.context import IommuContext
from hypervisor.pagetable.radix import Changes, PageTable
from hypervisor.pviommu import mappings
from hypervisor.pviommu.frame_rights import frame_rights
from hypervisor.pviommu.result import Result

if TYPE_CHECKING:
    from hypervisor.xen import Xen


class PageLoop:
    """The three sub-ops that work on pages, and how references are dropped afterwards."""

    def __init__(self, xen: "Xen") -> None:
        self.xen: Final = xen
        self.mark = xen.referenced
        """Software bit of a leaf that holds a reference; 0: every leaf is taken to hold one."""
        self.refuses_dying = True
        self.flushes_additions = xen.flushes_additions
        self.by_guest = False
        """A guest's call is what takes pages out of a context now."""
        self.flags_on_absent: int | None = None
        """What the backend's lookup leaves in its flags where nothing is mapped; ``None``: it leaves them alone."""
        self.queued: dict[IommuContext, list[int]] = {}
        """Removed tables that wait for a flush."""

    # ------------------------------------------------------------------------------------------- sub-ops

    def map_pages(self, xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], progress: int) -> Result:
        number, gfn, dfn, flags, pgsize, nr_pages, given = args
        context, unit, error = self.admit(domain, number, dfn, pgsize, nr_pages, gfn)
        permission = self.permission(flags)
        if context is None or permission is None:
            return error or -EINVAL, (self.untouched(given),)
        if unit > 1:
            return mappings.map_pages(xen, vcpu, domain, args, progress)
        bits, write = permission
        changes = Changes()
        done = 0
        paused = False
        while done < nr_pages and not error and not paused:
            error = self.map_one(domain, context, dfn, done, gfn, bits, write, changes)
            paused = not error and self.pauses(vcpu, done)
            done += not error
        flushed = self.report(self.finish(domain, context, dfn, nr_pages, done, changes))
        if paused:
            rest = (number, gfn + done & U64_MAX, dfn + done & U64_MAX, flags, pgsize, nr_pages - done)
            return self.go_on_later(vcpu, (*rest, self.count(done, given)))
        return flushed or error, (self.count(done, given),)

    def map_one(
        self,
        domain: Domain,
        context: IommuContext,
        dfn: int,
        done: int,
        gfn: int,
        bits: int,
        write: bool,
        changes: Changes,
    ) -> int:
        """One page, ``done`` pages into the call: 0 or the errno that stops it."""
        at = self.place(dfn + done & U64_MAX)
        if self.reserved(context, dfn, at):
            return -EADDRNOTAVAIL
        mfn, reference, error = self.frame(domain, gfn + done & U64_MAX, write)
        if error:
            return error
        frames = self.xen.frames
        if reference:
            frames.get(mfn, 1, reference)
        if self.opaque(context):
            return 0
        assert context.table is not None
        if self.look(context.table, at) is not None:
            error = -EADDRINUSE
            if reference:
                frames.put(mfn, 1, reference)
            return error
        bits = self.after_look(bits)
        bits |= self.mark if reference and bits else 0
        error = self.enter(domain, context, at, mfn, bits, changes)
        if error == -ENOMEM and self.regain(domain, context, dfn, done, changes):
            error = self.enter(domain, context, at, mfn, bits, changes)
        if error and reference:
            self.map_failed(mfn, reference)
        self.page_done(context, changes)
        return error

    def unmap_pages(self, xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], progress: int) -> Result:
        number, dfn, pgsize, nr_pages, given = args
        context, unit, error = self.admit(domain, number, dfn, pgsize, nr_pages)
        if context is None:
            return error, (self.untouched(given),)
        if unit > 1:
            return mappings.unmap_pages(xen, vcpu, domain, args, progress)
        table = context.table
        changes = Changes()
        done = 0
        paused = False
        while done < nr_pages and not error and not paused:
            at = self.place(dfn + done & U64_MAX)
            if self.reserved_for_unmap(context, dfn, at):
                error = -EADDRNOTAVAIL
            elif table is None or self.opaque(context) or self.look(table, at) is None:
                error = -ENOENT
            else:
                _, error = table.unmap(at, 1, changes)
                if error == -ENOMEM and self.regain(domain, context, dfn, done, changes):
                    _, error = table.unmap(at, 1, changes)
                self.page_unmapped(domain, context, changes)
                self.page_done(context, changes)
            paused = not error and self.pauses(vcpu, done)
            done += not error
        flushed = self.report(self.finish(domain, context, dfn, nr_pages, done, changes))
        if paused:
            rest = (number, dfn + done & U64_MAX, pgsize, nr_pages - done)
            return self.go_on_later(vcpu, (*rest, self.count(done, given)))
        return flushed or error, (self.count(done, given),)

    def lookup_page(self, xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
        number, dfn, given = args
        context = self.find(domain, number)
        if context is None or (context.dying and self.refuses_dying):
            return -EINVAL, (self.untouched(given),)
        found = None
        if context.table is not None and self.in_range(dfn, 1) and not self.opaque(context):
            found = self.look(context.table, self.place(dfn))
        if found is None:
            return -ENOENT, (self.untouched(given),)
        gfn = self.guest_frame(domain, found[0])
        return (-ENOENT, (self.untouched(given),)) if gfn is None else (0, (gfn,))

    # ---------------------------------------------------------------------------------- steps to replace

    def admit(
        self, domain: Domain, number: int, dfn: int, pgsize: int, nr_pages: int, gfn: int = 0
    ) -> tuple[IommuContext | None, int, int]:
        """(context, 4 KiB pages in a page, 0), or (``None``, 0, errno) for a request that is wrong in itself."""
        if nr_pages > self.xen.max_nr_pages:
            return None, 0, -E2BIG
        context = self.find(domain, number)
        unit = self.unit(pgsize)
        if context is None or unit is None or (context.dying and self.refuses_dying):
            return None, 0, -EINVAL
        if (dfn | gfn) & unit - 1 or not self.in_range(dfn, nr_pages * unit):
            return None, 0, -EINVAL
        if nr_pages * unit > mappings.MAX_PAGES:
            return None, 0, -E2BIG
        return context, unit, 0

    def find(self, domain: Domain, number: int) -> IommuContext | None:
        """The context that the guest may work on."""
        assert domain.iommu is not None
        return domain.iommu.contexts.get(number)

    def opaque(self, context: IommuContext) -> bool:
        """Whether the context has no table that is the PV-IOMMU's to change: maps and unmaps do nothing then."""
        return context.passes_through

    def unit(self, pgsize: int) -> int | None:
        """4 KiB pages in a page of that size, ``None`` for a size that there is not."""
        return self.xen.page_units.get(pgsize)

    def in_range(self, dfn: int, pages: int) -> bool:
        return dfn + pages - 1 <= self.xen.max_dfn

    def place(self, dfn: int) -> int:
        """Where the table keeps a device frame."""
        return dfn

    def permission(self, flags: int) -> tuple[int, bool] | None:
        """(leaf bits, whether devices may write), ``None`` for flags that are refused."""
        return self.xen.map_permissions.get(flags)

    def reserved(self, context: IommuContext, first: int, dfn: int) -> bool:
        """Whether ``dfn``, of a call that begins at ``first``, lies in a reserved region."""
        return bool(context.identity) and context.identity_offset(dfn, 1) is not None

    def reserved_for_unmap(self, context: IommuContext, first: int, dfn: int) -> bool:
        return self.reserved(context, first, dfn)

    def frame(self, domain: Domain, gfn: int, write: bool) -> tuple[int, int, int]:
        """(machine frame, reference to take, errno) of one of the domain's frames."""
        mfn, _, reference, error = frame_rights(self.xen.profile, self.xen.frames, domain, gfn, 1, write)
        return mfn, reference, error

    def enter(self, domain: Domain, context: IommuContext, at: int, mfn: int, bits: int, changes: Changes) -> int:
        """Write one page's entry."""
        assert context.table is not None
        return context.table.map(at, mfn, 1, bits, changes)[1]

    def regain(self, domain: Domain, context: IommuContext, dfn: int, done: int, changes: Changes) -> bool:
        """A table could not be had: whether those that this call took out of use are free now."""
        if not changes.tables or self.finish(domain, context, dfn, max(done, 1), done, changes):
            return False
        changes.tables.clear()
        changes.added = changes.modified = changes.folded = False
        return True

    def page_done(self, context: IommuContext, changes: Changes) -> None:
        """A page was mapped or unmapped; tables that it left wait for the flush."""

    def map_failed(self, mfn: int, reference: int) -> None:
        """The page could not be entered: nothing holds on to its frame."""
        self.xen.frames.put(mfn, 1, reference)

    def look(self, table: PageTable, at: int) -> tuple[int, int, int] | None:
        """(machine frame, entry, order) of what is mapped at ``at``, as the backend's lookup says."""
        return table.lookup(at)

    def after_look(self, bits: int) -> int:
        """A map's leaf bits after the lookup for something in the way found nothing."""
        return bits

    def looks_up(self, index: int) -> bool:
        """Whether a loop that can be preempted asks, behind page number ``index``, if it should be."""
        return not index + 1 & 0xFF

    def pauses(self, vcpu: Vcpu, index: int) -> bool:
        """Whether the call is preempted behind page number ``index`` of this pass."""
        return False

    def go_on_later(self, vcpu: Vcpu, struct: tuple[int, ...]) -> Result:
        """Issue the call again with the guest's struct as ``struct`` says."""
        raise XenBug("a loop that is never preempted was")

    def page_unmapped(self, domain: Domain, context: IommuContext, changes: Changes) -> None:
        """A page left the table; references wait for the flush."""

    def count(self, done: int, given: int) -> int:
        """What ``mapped`` says after the loop."""
        return done

    def untouched(self, given: int) -> int:
        """What an OUT field says when the call was refused; ``given`` is what the guest had there."""
        return 0

    def guest_frame(self, domain: Domain, mfn: int) -> int | None:
        return self.xen.machine_to_guest(domain, mfn)

    def finish(
        self, domain: Domain, context: IommuContext, dfn: int, requested: int, done: int, changes: Changes
    ) -> int:
        """Flush and let go of what went away; the errno for the guest."""
        if not changes.modified and not (changes.added and self.flushes_additions):
            return 0
        self.by_guest = True
        try:
            return self.xen.finish_pass(domain, context, dfn, max(done, 1), changes)
        finally:
            self.by_guest = False

    def report(self, flush_error: int) -> int:
        """What the guest is told of a failing flush."""
        return flush_error

    # --------------------------------------------------------------------------------------- references

    def let_go(self, domain: Domain, context: IommuContext, changes: Changes) -> None:
        """Hardware has forgotten ``changes``: drop their references, return their tables.

        What the toolstack takes out of the default context by itself never held a reference.
        """
        if context.number or self.by_guest:
            self.drop(domain, changes)
        for table in (*self.queued.pop(context, ()), *changes.tables):
            context.pool.free(table)

    def drop(self, domain: Domain, changes: Changes) -> None:
        """Drop the references of what was removed, once."""
        for mfn, count, entry in changes.removed:
            self.put(domain, mfn, count, entry)
        changes.removed.clear()

    def put(self, domain: Domain, mfn: int, count: int, entry: int) -> None:
        if self.mark and not entry & self.mark:
            self.unreferenced(mfn, count)
            return
        if not self.mark and mfn >= self.xen.frames.frames:
            return  # no page_info, not even to those who take every leaf to hold a reference
        writable = domain.pv and entry & self.xen.backend.format.write
        self.xen.frames.put(mfn, count, self.reference_kind(bool(writable)))

    def reference_kind(self, writable: bool) -> int:
        return WRITABLE_REF if writable else REF

    def unreferenced(self, mfn: int, count: int) -> None:
        """A leaf went away that held no reference."""

    def save(self) -> Any:
        return {context: tables[:] for context, tables in self.queued.items()}

    def restore(self, state: Any) -> None:
        self.queued = {context: tables[:] for context, tables in state.items()}

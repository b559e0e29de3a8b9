# SPDX-License-Identifier: GPL-2.0-or-later
"""The assembled hypervisor.

``hypercall(vcpu, nr, *args)`` is the one way in for guests.  Everything else here is what a toolstack or the boot
code would do: create domains, give them memory and devices, take pages away.

Optional seams, ``None`` unless somebody listens: ``preempt`` (should the calling vCPU yield?) and ``rescheduled`` (a
preempted call is about to be issued again: other vCPUs may run now).
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from abi.errno import ENOSYS
from abi.memory_op import MEMORY_OP
from abi.versions import Abi
from base.units import U64_MAX, CtxNo, DomId, Sbdf
from hypervisor.dom0_options import Dom0Options
from hypervisor.domain import Domain, DomainIommu, Vcpu
from hypervisor.domain_state import restore_domain, save_domain
from hypervisor.errors import XenBug
from hypervisor.frames import DOMID_IO, DOMID_XEN, REF, WRITABLE_REF, FrameTable
from hypervisor.guest_access import GuestMemory
from hypervisor.iommu import assignment, default_context, destruction
from hypervisor.iommu.backend import Backend, FaultReport
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.iommu.nesting import forget_nested
from hypervisor.iommu.pool import Arena, HeapPool
from hypervisor.locking.locks import Locks
from hypervisor.memory_op import memory_op
from hypervisor.narrow import hypercall32
from hypervisor.p2m import P2m, PvFrames, Translation
from hypervisor.pagetable.format import Format
from hypervisor.pagetable.radix import Changes
from hypervisor.platform import Platform
from hypervisor.profile import Profile
from hypervisor.pviommu import contexts as pviommu_contexts
from hypervisor.pviommu.contexts import MAX_CONTEXTS
from hypervisor.pviommu.entry import Entry, entry_for
from hypervisor.pviommu.result import RESTART

XEN_FRAMES: Final = 256
"""Frames at the bottom of RAM that Xen itself occupies (1 MiB)."""


GUEST_ARENA: Final = 512
"""Pages (2 MiB) that a guest domain may reserve for PV-IOMMU unless its toolstack says otherwise."""


class Xen:
    """One host's hypervisor: ``platform`` underneath, ``profile`` for the hypercall, a backend for the IOMMUs."""

    def __init__(
        self,
        platform: Platform,
        profile: Profile,
        make_backend: Callable[[Platform, "FrameTable"], Backend],
        options: Dom0Options = Dom0Options(),  # noqa: B008 - a value
    ) -> None:
        self.options = options
        self.platform: Final = platform
        self.profile: Final = profile
        self.abi: Final = profile.abi
        self.frames: Final = FrameTable(platform.memory.frames)
        self.frames.allocate_at(DOMID_XEN, 0, XEN_FRAMES)
        self.heap: Final = HeapPool(self.frames)
        self.backend: Final = make_backend(platform, self.frames)
        self.entry: Entry = entry_for(profile.abi)
        self._iommu_op: Final = profile.abi.hypercall
        self.pgsize_mask: Final = sum(
            4096 << order for order in (self.backend.orders if profile.superpage_units else (0,))
        )
        self.page_units: Final = {1 << bit: 1 << bit - 12 for bit in range(12, 64) if self.pgsize_mask >> bit & 1}
        """4 KiB pages in a page of each size that a call may name."""
        self.max_nr_pages: Final = U64_MAX if self.abi.max_nr_pages is None else self.abi.max_nr_pages
        self.max_dfn: Final = self.backend.max_iova >> 12
        self.flushes_additions: Final = self.backend.flushes_additions
        self.map_no_flush: Final = self.abi.map_no_flush
        """The flag with which a caller puts the flush of a map off; 0 where there is none."""
        self.map_permissions: Final = _map_permissions(self.abi, self.backend.format)
        """By the flags of a map call: the leaf's permission bits, and whether a device may write."""
        self.referenced: Final = self.backend.format.referenced
        self.domains: Final[dict[int, Domain]] = {}
        self.retired = (0, 0)
        """(folds, splits) of trees that are gone."""
        self.quarantined: Domain | None = None
        """dom_io, once there was a device in quarantine."""
        self.quarantine_contexts = MAX_CONTEXTS
        """How many contexts dom_io may have beside context 0."""
        self.faults: list[FaultReport] = []
        """What the units reported and no guest is to be told."""
        self.kept: list[tuple[Domain, IommuContext, Changes]] = []
        """What hardware did not confirm to have forgotten: its frames and tables are never used again."""
        self.preempt: Callable[[Vcpu], bool] | None = None
        self.rescheduled: Callable[[Vcpu], None] | None = None
        self.locks: Locks | None = None
        """Its locks, once :func:`hypervisor.locking.install.install_locks` has put them in place."""
        self._console: list[str] = []
        error = self.backend.enable()
        if error:
            raise XenBug(f"the {self.backend.name} units could not be enabled ({error})")

    # ------------------------------------------------------------------------------------------ hypercalls

    def hypercall(self, vcpu: Vcpu, number: int, *args: int) -> int:
        """Hypercall ``number`` with the given argument registers; returns what the guest finds in its result
        register, as a signed number: 0 or a negative errno."""
        if len(args) < 2:
            args = (*args, 0, 0)
        if number != self._iommu_op:
            return memory_op(self, vcpu, args[0], args[1]) if number == MEMORY_OP else -ENOSYS
        result = self.entry.enter(self, vcpu, args)
        while result == RESTART:
            args = self.entry.again(args, vcpu.restart)
            if self.rescheduled is not None:
                self.rescheduled(vcpu)
            result = self.entry.enter(self, vcpu, args)
        return result

    def hypercall32(self, vcpu: Vcpu, number: int, *args: int) -> int:
        """The same from 32-bit code (:mod:`hypervisor.narrow`)."""
        return hypercall32(self, vcpu, number, args)

    def entry_of(self, vcpu: Vcpu) -> Entry:
        """The way in for what ``vcpu`` is executing."""
        return self.narrow_entry() if vcpu.narrow else self.entry

    def narrow_entry(self) -> Entry:
        """The way in for 32-bit code."""
        return self.entry.narrow()

    # -------------------------------------------------------------------------------------------- allocations

    def xmalloc(self, what: str) -> bool:
        """Room on Xen's own heap for a small object; ``False`` if there is none."""
        return True

    def new_arena(self, domain: Domain, base: int, pages: int) -> Arena | None:
        """The arena of ``domain`` over ``pages`` frames from ``base`` on; ``None`` without room for its bitmap."""
        return Arena(base, pages) if self.xmalloc("arena bitmap") else None

    # ---------------------------------------------------------------------------------- what a pass leaves

    def finish_pass(self, domain: Domain, context: IommuContext, dfn: int, pages: int, changes: Changes) -> int:
        """Tell hardware about ``changes`` within ``pages`` pages from ``dfn``, then let go of what went away.

        If hardware does not confirm (-EIO), frames and tables stay allocated until it does when the context is freed:
        losing memory is better than a device that writes into somebody else's.
        """
        if not changes.modified and not (changes.added and self.flushes_additions):
            return 0
        error = self.backend.flush(context, dfn, pages, changes)
        if error:
            context.unconfirmed = True
            self.kept.append((domain, context, changes))
            self.log(f"{context}: flush of dfn {dfn:#x}+{pages:#x} failed ({error}); its frames are kept")
            return error
        if changes.removed or changes.tables:
            self._let_go(domain, context, changes)
        return 0

    def finish_teardown_pass(self, domain: Domain, context: IommuContext, changes: Changes) -> int:
        """The same for a context that goes away: everything it ever translated is forgotten first."""
        if not changes.modified:
            return 0
        error = self.backend.flush_all(context)
        if error:
            context.unconfirmed = True
            self.kept.append((domain, context, changes))
            self.log(f"{context}: flush failed ({error}) while tearing down; its frames are kept")
            return error
        self._let_go(domain, context, changes)
        return 0

    def settle(self, context: IommuContext) -> int:
        """Make sure that hardware has forgotten all that it was ever told to forget of ``context``, and let go of what
        was kept until then; -EIO if it does not confirm."""
        if context.unconfirmed:
            error = self.backend.flush_all(context)
            if error:
                return error
            context.unconfirmed = False
        for kept in [kept for kept in self.kept if kept[1] is context]:
            self.kept.remove(kept)
            self._let_go(*kept)
        return 0

    def forget_context(self, context: IommuContext) -> int:
        """Give an emptied context back once hardware has forgotten it; -EIO, and it stays, if that is not confirmed."""
        error = self.settle(context)
        if not error:
            self.release_context(context)
        return error

    def _let_go(self, domain: Domain, context: IommuContext, changes: Changes) -> None:
        frames, referenced = self.frames, self.referenced
        write = self.backend.format.write if domain.pv else 0
        for mfn, count, entry in changes.removed:
            if entry & referenced:
                frames.put(mfn, count, WRITABLE_REF if entry & write else REF)
        if changes.tables:
            free = context.pool.free
            for table in changes.tables:
                free(table)

    # ------------------------------------------------------------------------------------ domains, devices

    def create_domain(
        self,
        domid: int,
        *,
        hardware: bool = False,
        pv: bool = False,
        p2m_frames: int = 0,
        iommu: bool = True,
        mmio: Iterable[tuple[int, int]] = (),
        arena_pages: int | None = None,
    ) -> Domain:
        """A domain without memory, vCPUs and devices.  ``mmio``: (first, last) frames that it may access;
        ``arena_pages``: what it may reserve for PV-IOMMU (:data:`GUEST_ARENA` unless it is the hardware domain)."""
        if domid in self.domains or not 0 <= domid < 0x7FF0:
            raise ValueError(f"domain id {domid} is taken or reserved")
        mmio_ranges = list(mmio)
        translation: Translation
        if pv:
            last = max((last for _, last in mmio_ranges), default=self.frames.frames - 1)
            translation = PvFrames(self.frames, domid, last)
        else:
            translation = P2m(p2m_frames, tuple(mmio_ranges))
        domain_iommu = None
        if iommu:
            context = IommuContext(CtxNo(0), self.heap, passes_through=hardware and default_context.untranslated(self))
            error = self.backend.context_init(context)
            if error:
                raise ValueError(f"no memory for the default context of domain {domid} ({error})")
            domain_iommu = DomainIommu(
                context, allowed=not self.options.none if hardware else self.profile.every_domain
            )
            domain_iommu.arena_pages = self.frames.frames if hardware else GUEST_ARENA
            if arena_pages is not None:
                domain_iommu.arena_pages = arena_pages
        domain = Domain(DomId(domid), translation, domain_iommu, hardware, pv)
        domain.mmio.extend(mmio_ranges)
        self.domains[domid] = domain
        if domain_iommu is not None and self.profile.contexts_at_creation and hardware and domain_iommu.allowed:
            contexts, order = self.options.contexts, self.options.arena_order
            contexts = self.profile.contexts_at_creation if contexts is None else contexts
            order = self.profile.arena_order_at_creation if order is None else order
            error = pviommu_contexts.set_up(self, domain, contexts, order)
            if error:
                raise ValueError(f"no memory for the PV-IOMMU arena of domain {domid} ({error})")
        return domain

    def add_vcpu(self, domain: Domain, memory: GuestMemory) -> Vcpu:
        vcpu = Vcpu(domain, len(domain.vcpus), memory)
        domain.vcpus.append(vcpu)
        return vcpu

    def map_default(self, domain: Domain, dfn: int, mfn: int, count: int) -> None:
        """Let the domain's devices in context 0 reach ``count`` frames from ``mfn`` at ``dfn`` (boot-time)."""
        default_context.map_default(self, domain, dfn, mfn, count)

    def unmap_default(self, domain: Domain, dfn: int, count: int) -> int:
        """The reverse; 0 or the errno that stopped it."""
        return default_context.unmap_default(self, domain, dfn, count)

    def remove_page(self, domain: Domain, gfn: int) -> int:
        """Take a RAM page away from a domain: see :func:`hypervisor.iommu.default_context.remove_page`."""
        return default_context.remove_page(self, domain, gfn)

    def attach_device(self, domain: Domain, device: PciDevice, number: int = 0) -> int:
        """A device that no domain had before joins one, in that context: at boot, or when it is plugged in."""
        return assignment.attach_device(self, domain, device, number)

    def detach_device(self, domain: Domain, device: PciDevice) -> int:
        """A device is about to be taken out of the machine: it reaches nothing from now on and is no domain's."""
        return assignment.detach_device(self, domain, device)

    def remove_device(self, device: PciDevice) -> int:
        """The same of a device of whatever domain."""
        return assignment.remove_device(self, device)

    def assign_device(self, domain: Domain, device: PciDevice) -> int:
        """Give a device to a domain, wherever it is; it starts in the domain's default context."""
        return assignment.assign_device(self, domain, device)

    def deassign_device(self, domain: Domain, device: PciDevice) -> int:
        """Take a device away from a domain, into quarantine."""
        return assignment.deassign_device(self, domain, device)

    def deassign_devices(self, domain: Domain) -> int:
        """The same of all its devices."""
        return assignment.deassign_devices(self, domain)

    def quarantine(self, device: PciDevice) -> int:
        """Put a device where it reaches nothing but its reserved regions."""
        return assignment.quarantine(self, device)

    def dom_io(self) -> Domain:
        """The domain that devices in quarantine belong to; made when it is first needed."""
        if self.quarantined is None:
            self.quarantined = assignment.dom_io(self)
        return self.quarantined

    def all_domains(self) -> tuple[Domain, ...]:
        """Those that guests run in, and dom_io if it is there."""
        return (*self.domains.values(), *([self.quarantined] if self.quarantined is not None else ()))

    def destroy_domain(self, domain: Domain) -> int:
        """Take a domain apart, pass after pass: 0, or the errno of what has to be tried again.

        It leaves :attr:`domains` with its last frame: what others map of it stays until they let go.
        """
        while (error := self.relinquish(domain)) == RESTART:
            if self.rescheduled is not None and domain.vcpus:
                self.rescheduled(domain.vcpus[0])
        if not error and domain.domid not in self.frames.owner:
            self.domains.pop(domain.domid, None)
        return error

    def relinquish(self, domain: Domain) -> int:
        """One pass of it; may answer :data:`RESTART`."""
        return destruction.relinquish(self, domain)

    def begin_dying(self, domain: Domain) -> None:
        """From now on nobody uses PV-IOMMU for the domain."""
        destruction.begin_dying(domain)

    def relinquish_contexts(self, domain: Domain) -> int:
        """Give up a dying domain's own contexts and its arena; may answer :data:`RESTART`."""
        return destruction.relinquish_contexts(self, domain)

    def relinquish_default(self, domain: Domain) -> int:
        """The same of its default context."""
        return destruction.relinquish_default(self, domain)

    def find_device(self, domain: Domain, sbdf: int) -> PciDevice | None:
        """The domain's device at ``sbdf``: the guest's own address where the profile reads those, or the machine's."""
        address = Sbdf(sbdf)
        virtual = domain.vpci.get(address, address) if self.profile.guests_addresses else address
        return domain.devices.get(virtual) or domain.devices.get(address)

    def machine_to_guest(self, domain: Domain, mfn: int) -> int | None:
        """The guest frame number of machine frame ``mfn`` in ``domain``, ``None`` if it has none."""
        return mfn if domain.pv else domain.p2m.gfn_of(mfn)

    def reserve_for_firmware(self, first: int, last: int) -> None:
        """Frames ``first`` to ``last`` belong to firmware (E820 reserved)."""
        self.frames.allocate_at(DOMID_IO, first, last - first + 1)

    # --------------------------------------------------------------------------------------- observability

    def log(self, line: str) -> None:
        """A line on Xen's console."""
        self._console.append(line)

    def superpages(self) -> tuple[int, int]:
        """(folds, splits) in all contexts so far."""
        folds, splits = self.retired
        for domain in self.all_domains():
            if domain.iommu is not None:
                for context in (domain.iommu.default, *domain.iommu.contexts.values()):
                    if context.table is not None:
                        folds, splits = folds + context.table.folds, splits + context.table.splits
        return folds, splits

    def release_context(self, context: IommuContext) -> None:
        """Give an emptied context's root and tags back."""
        if context.table is not None:
            folds, splits = self.retired
            self.retired = (folds + context.table.folds, splits + context.table.splits)
        self.backend.context_release(context)
        forget_nested(self, context)

    @property
    def console(self) -> tuple[str, ...]:
        return tuple(self._console)

    def save(self) -> Any:
        """All state beside the bytes of RAM and the units' registers; see the test bed's snapshots."""
        return (
            self.frames.save(),
            self.backend.save(),
            {domid: (domain, save_domain(domain)) for domid, domain in self.domains.items()},
            (self.quarantined, save_domain(self.quarantined) if self.quarantined is not None else None),
            self.retired,
            len(self._console),
            self.kept[:],
            self.faults[:],
            self.locks.save() if self.locks is not None else None,
        )

    def restore(self, state: Any) -> None:
        frames, backend, domains, (self.quarantined, quarantined), self.retired, console, kept, faults, locks = state
        if self.locks is not None:
            self.locks.restore(locks or [])
        self.frames.restore(frames)
        self.backend.restore(backend)
        self.domains.clear()
        for domid, (domain, saved) in domains.items():
            self.domains[domid] = domain
            restore_domain(domain, saved)
        if self.quarantined is not None:
            restore_domain(self.quarantined, quarantined)
        del self._console[console:]
        self.kept[:] = kept
        self.faults[:] = faults


def _map_permissions(abi: Abi, entry_format: Format) -> dict[int, tuple[int, bool]]:
    """Every combination of flags that a map call may carry: some of the version's flags, reading or writing among
    them."""
    permissions: dict[int, tuple[int, bool]] = {}
    flags = abi.map_flags_mask
    while flags:
        read, write = bool(flags & abi.map_readable), bool(flags & abi.map_writeable)
        if read or write:
            permissions[flags] = (entry_format.permission[read | write << 1], write)
        flags = flags - 1 & abi.map_flags_mask
    return permissions

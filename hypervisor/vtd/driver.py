# SPDX-License-Identifier: GPL-2.0-or-later
"""The VT-d backend: contexts and devices over all remapping units of the machine.

Every context has the same tree for all units, as deep as the deepest that each of them can walk; superpage sizes
are those that every unit can walk.  A context's domain ids (one per unit) are taken when the context is made.
"""

from typing import Any, Final, NamedTuple

from abi.errno import EINVAL, ENODEV, ENOMEM, ENOSPC
from hypervisor.frames import FrameTable
from hypervisor.iommu.backend import FaultReport
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.pagetable.format import Format
from hypervisor.pagetable.radix import Changes, PageTable
from hypervisor.platform import Platform
from hypervisor.vtd import layouts as reg
from hypervisor.vtd.format import SECOND_STAGE, SNOOPED
from hypervisor.vtd.unit import DEVICE_TLB, INVALID_DID, Unit

FIRST_VECTOR: Final = 0xE0
"""Interrupt data of unit 0's fault event; the units count upwards from it."""

PASS_THROUGH: Final = reg.ContextEntryLow.pack(p=1, tt=2)
"""Lower word of the context entry of a device whose requests are not translated."""


class VtdContext(NamedTuple):
    """What the driver keeps in ``IommuContext.hw``."""

    dids: tuple[int, ...]
    """Domain id on each unit."""
    used: tuple[tuple[Unit, int], ...] = ()
    """Units behind which the context ever had a device, with its domain id there: their caches may know it."""


class VtdBackend:
    """Xen's VT-d driver over the units in the DMAR table."""

    name: Final = "vtd"
    format: Final[Format] = SECOND_STAGE

    def __init__(self, platform: Platform, frames: FrameTable) -> None:
        if not platform.firmware.drhds:
            raise ValueError("firmware describes no VT-d unit (no DRHD)")
        self._memory: Final = platform.memory
        self._pci: Final = platform.pci
        self._write_back: Final = platform.bus.write_back
        self.units: Final = tuple(
            Unit(platform, frames, drhd, index, FIRST_VECTOR + index)
            for index, drhd in enumerate(platform.firmware.drhds)
        )
        depths = [depth for depth in (4, 3) if all(depth in unit.levels for unit in self.units)]
        if not depths:
            raise ValueError("the VT-d units have no depth of tree in common")
        self.levels: Final = depths[0]
        self.page_table: type[PageTable] = PageTable
        """What a context's tree is made with."""
        self.orders: tuple[int, ...] = tuple(o for o in (0, 9, 18) if all(o in unit.orders for unit in self.units))
        self.refuses_unsnooped = True
        """Devices behind units that fault on the snoop bit do not get into contexts that set it."""
        self.passes_through: Final = all(unit.pass_through for unit in self.units)
        self.flushes_additions: bool = any(unit.caching_mode or unit.write_buffer for unit in self.units)
        self._coherent: Final = all(unit.coherent for unit in self.units)
        self._scopes: Final = {sbdf: unit for unit in reversed(self.units) for sbdf in unit.drhd.scope}
        width = min(12 + 9 * self.levels, *(unit.address_width for unit in self.units))
        self.max_iova: int = (1 << width) - 1
        for unit in self.units:
            platform.interrupts.connect(FIRST_VECTOR + unit.index, unit.on_fault_interrupt)

    def enable(self) -> int:
        for unit in self.units:
            error = unit.enable()
            if error:
                return error
        return 0

    def context_init(self, context: IommuContext) -> int:
        if context.enforces_cache and not any(unit.snoop_control for unit in self.units):
            return -EINVAL
        if context.passes_through:
            dids = self.take_dids()
            if isinstance(dids, int):
                return dids
            context.hw = VtdContext(dids)
            return 0
        root = context.pool.allocate()
        if root is None:
            return -ENOMEM
        dids = self.take_dids()
        if isinstance(dids, int):
            context.pool.free(root)
            return dids
        self._memory.zero_frame(root)
        entries = SNOOPED if context.enforces_cache else self.format
        context.table = self.page_table(self._memory, entries, self.levels, root, context.pool, self.orders)
        if not self._coherent:
            self._publish(root << 9, 512)
            context.table.written = self._publish
        context.hw = VtdContext(dids)
        return 0

    def take_dids(self) -> tuple[int, ...] | int:
        """A domain id on each unit, or -ENOSPC."""
        dids: list[int] = []
        for unit in self.units:
            did = unit.take_did()
            if did == INVALID_DID:
                for other, taken in zip(self.units, dids):
                    other.give_did(taken)
                return -ENOSPC
            dids.append(did)
        return tuple(dids)

    def context_release(self, context: IommuContext) -> None:
        hw: VtdContext = context.hw
        # What was not confirmed to be forgotten has to be before the domain id and the root are used again.
        kept = {unit.index for unit, did in hw.used if context.unconfirmed and unit.flush_did(did)}
        for unit, did in zip(self.units, hw.dids):
            if unit.index not in kept:
                unit.give_did(did)
        if not kept and context.table is not None:
            context.pool.free(context.table.root)
        context.table = None
        context.hw = None

    def _publish(self, word: int, count: int) -> None:
        self._write_back(word << 3, count << 3)

    def attach(self, device: PciDevice, context: IommuContext) -> int:
        """A device that did not answer an invalidation once is blocked for good; it can be put back into the default
        context all the same, so that others can be given up, and gets -EIO in any other."""
        unit = self.covering(device)
        if unit is None:
            return -ENODEV
        hw: VtdContext = context.hw
        if context.enforces_cache and self.refuses_unsnooped and not unit.snoop_control:
            return -EINVAL
        if context.number == 0 and not unit.broken.isdisjoint(device.requester_ids):
            return self.detach(device)
        if context.table is None:  # pass-through, which wants the widest that the unit has (9.3)
            low, levels = PASS_THROUGH, unit.levels[0]
        else:
            low, levels = reg.ContextEntryLow.pack(p=1, slptptr=context.table.root), self.levels
            if unit.device_tlb and device.function.ats:
                low |= DEVICE_TLB
        high = reg.ContextEntryHigh.pack(aw=levels - 2, did=hw.dids[unit.index])
        use = (unit, hw.dids[unit.index])
        if use not in hw.used:
            context.hw = VtdContext(hw.dids, (*hw.used, use))
        error = self._write_all(unit, device, low, high)
        if error and unit.unsure:
            context.unconfirmed = True  # memory does not lead there any more, and hardware still may
        return error

    def enforces_cache(self, device: PciDevice) -> bool:
        """Whether the device may enter a context that enforces coherent DMA: its unit knows the snoop bit."""
        unit = self.covering(device)
        return unit is not None and unit.snoop_control

    def detach(self, device: PciDevice) -> int:
        unit = self.covering(device)
        return 0 if unit is None else self._write_all(unit, device, 0, 0)

    def cut_off(self, device: PciDevice) -> bool:
        """What failed is put back whether or not the unit confirms, and until then it may act on what was tried."""
        unit = self.covering(device)
        return unit is not None and any(rid in unit.unsure and rid not in unit.broken for rid in device.requester_ids)

    def flush(self, context: IommuContext, dfn: int, pages: int, changes: Changes) -> int:
        hw: VtdContext = context.hw
        for unit, did in hw.used:
            if changes.modified or unit.caching_mode:
                error = unit.flush_pages(did, dfn, pages)
            else:
                error = unit.flush_write_buffer() if unit.write_buffer else 0
            if error:
                return error
        return 0

    def flush_all(self, context: IommuContext) -> int:
        hw: VtdContext = context.hw
        for unit, did in hw.used:
            error = unit.flush_did(did)
            if error:
                return error
        return 0

    def take_faults(self) -> list[FaultReport]:
        return [report for unit in self.units for report in unit.take_faults()]

    def save(self) -> Any:
        return [unit.save() for unit in self.units]

    def restore(self, state: Any) -> None:
        for unit, saved in zip(self.units, state):
            unit.restore(saved)

    def unit_of(self, device: PciDevice) -> Unit:
        """The unit that covers the device; ``ValueError`` if none does."""
        unit = self.covering(device)
        if unit is None:
            raise ValueError(f"no VT-d unit covers {device.function}")
        return unit

    def covering(self, device: PciDevice) -> Unit | None:
        """The unit whose scope names the device or the nearest bridge above it, else the segment's catch-all unit;
        ``None`` if no unit covers it."""
        found = self._scopes.get(device.sbdf)
        if found is not None:
            return found
        for bridge in self._pci.bridges_above(device.sbdf):
            if bridge.sbdf in self._scopes:
                return self._scopes[bridge.sbdf]
        segment = device.sbdf >> 16
        for unit in self.units:
            if unit.drhd.include_all and unit.drhd.segment == segment:
                return unit
        return None

    def _write_all(self, unit: Unit, device: PciDevice, low: int, high: int) -> int:
        """Write the context entries of every id of the device; on failure put back what was there."""
        written: list[int] = []
        previous: tuple[int, int] = device.hw or (0, 0)
        for rid in device.requester_ids:
            written.append(rid)
            error = unit.write_context(rid, low, high)
            if error:
                for undo in written:  # memory says what it said, whether or not the unit confirms
                    unit.write_context(undo, *previous)
                return error
        device.hw = (low, high)
        return 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""The VT-d backend where every unit has scalable mode: address spaces by PASID, guests' first stages (3.4.3, 3.8).

A context is what a PASID entry says: its tree as second stage, or a guest's table as first stage in front of the
parent's tree.  A nested context has domain ids of its own, so what two guests' tables give is never cached under one
tag; a change of the parent's tree is flushed under its own ids and under those of every context nested over it.
"""

from collections.abc import Sequence
from typing import Any, Final

from abi.errno import EINVAL, EIO
from abi.x1 import NestedFlags, NestedFormat
from base.units import Sbdf
from hypervisor.domain import GuestFault
from hypervisor.frames import FrameTable
from hypervisor.iommu.backend import FaultReport
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.iommu.nesting import Command, Stage1Features
from hypervisor.pagetable.radix import Changes
from hypervisor.platform import Platform
from hypervisor.vtd import layouts as reg
from hypervisor.vtd.driver import VtdBackend, VtdContext
from hypervisor.vtd.pasid_tables import ABSENT, PASID_BITS, PasidTables, Words
from hypervisor.vtd.unit import Unit

SCALABLE: Final = 1 << 10
"""RTADDR.TTM."""
_SECOND: Final = 2
_NESTED: Final = 3
_PASS_THROUGH: Final = 4
"""PASID entry, PGTT."""
_FIRST_STAGE_FAULTS: Final = frozenset({0x70, 0x71, 0x72, 0x73, 0x74, 0x80, 0x81, 0x90, 0x91})
"""What a first-stage walk finds wrong in its own entries and addresses."""
_PERMISSION: Final = frozenset({0x85, 0x86})
"""Refused by either stage; the record does not say which.  The guest's table is asked first, so the guest is told."""
_PASID_IOTLB: Final = 6


class ScalableVtdBackend(VtdBackend):
    """Over units that all have scalable mode with nested translation."""

    pasid_bits: int = PASID_BITS

    def __init__(self, platform: Platform, frames: FrameTable) -> None:
        super().__init__(platform, frames)
        self.tables: Final = tuple(PasidTables(unit, platform.memory, frames) for unit in self.units)
        self.nesting: Final = VtdNesting(self)
        self._nested: list[IommuContext] = []
        for unit in self.units:
            unit.root_mode = SCALABLE

    # -- contexts

    def context_init(self, context: IommuContext) -> int:
        if context.parent is None:
            return super().context_init(context)
        dids = self.take_dids()
        if isinstance(dids, int):
            return dids
        context.hw = VtdContext(dids)
        self._nested.append(context)
        return 0

    def context_release(self, context: IommuContext) -> None:
        if context in self._nested:
            self._nested.remove(context)
        super().context_release(context)

    # -- devices

    def attach(self, device: PciDevice, context: IommuContext) -> int:
        unit = self.unit_of(device)
        if context.enforces_cache and self.refuses_unsnooped and not unit.snoop_control:
            return -EINVAL
        error = self._write_spaces(unit, device, self._entry(unit, context))
        if error and unit.unsure:
            context.unconfirmed = True
        return error

    def detach(self, device: PciDevice) -> int:
        return self._write_spaces(self.unit_of(device), device, ABSENT)

    def set_pasid(self, device: PciDevice, pasid: int, context: IommuContext | None) -> int:
        """Requests of the device with ``pasid`` go through ``context``, or are refused."""
        unit = self.unit_of(device)
        if context is not None and context.enforces_cache and self.refuses_unsnooped and not unit.snoop_control:
            return -EINVAL
        tables = self.tables[unit.index]
        entry = ABSENT if context is None else self._entry(unit, context)
        error = tables.prepare(device.sbdf, pasid) or tables.write(device.sbdf, pasid, entry)
        if error and context is not None and unit.unsure:
            context.unconfirmed = True
        return error

    def _entry(self, unit: Unit, context: IommuContext) -> Words:
        """The PASID entry for ``context`` on ``unit``, which uses it from now on."""
        hw: VtdContext = context.hw
        table, nested = context.stage2.table, context.nested
        did = hw.dids[unit.index]
        if (unit, did) not in hw.used:
            context.hw = VtdContext(hw.dids, (*hw.used, (unit, did)))
        if table is None:
            low = reg.PasidEntry0.pack(p=1, pgtt=_PASS_THROUGH, aw=unit.levels[0] - 2)
            return low, reg.PasidEntry1.pack(did=did), 0
        kind = _SECOND if nested is None else _NESTED
        low = reg.PasidEntry0.pack(p=1, pgtt=kind, aw=self.levels - 2, ssptptr=table.root)
        return low, reg.PasidEntry1.pack(did=did), 0 if nested is None else nested.address

    def _write_spaces(self, unit: Unit, device: PciDevice, entry: Words) -> int:
        """The entry of requests without a PASID, for every id of the device; on failure what was there."""
        tables = self.tables[unit.index]
        previous: Words = device.hw or ABSENT
        done: list[int] = []
        for rid in device.requester_ids:
            error = tables.prepare(rid, 0) or tables.write(rid, 0, entry)
            if error:
                for undo in done:
                    tables.write(undo, 0, previous, anyway=True)
                return error
            done.append(rid)
        device.hw = entry
        return 0

    # -- flushes

    def flush(self, context: IommuContext, dfn: int, pages: int, changes: Changes) -> int:
        return super().flush(context, dfn, pages, changes) or (self._flush_nested(context) if context.children else 0)

    def flush_all(self, context: IommuContext) -> int:
        return super().flush_all(context) or (self._flush_nested(context) if context.children else 0)

    def _flush_nested(self, parent: IommuContext) -> int:
        for context in self._nested:
            error = super().flush_all(context) if context.parent is parent else 0
            if error:
                return error
        return 0

    def save(self) -> Any:
        return (super().save(), [tables.save() for tables in self.tables], self._nested[:])

    def restore(self, state: Any) -> None:
        units, tables, nested = state
        super().restore(units)
        for own, saved in zip(self.tables, tables):
            own.restore(saved)
        self._nested[:] = nested


class VtdNesting:
    """A :class:`hypervisor.iommu.nesting.Nesting`: x86-64 tables of guests as first stage."""

    def __init__(self, backend: ScalableVtdBackend) -> None:
        self._backend: Final = backend

    def features(self, device: PciDevice) -> Stage1Features:
        cap, ecap = self._backend.unit_of(device).capabilities
        info = (cap & 0xFFFF_FFFF, cap >> 32, ecap & 0xFFFF_FFFF, ecap >> 32)
        return Stage1Features(NestedFormat.VTD_FIRST_STAGE, PASID_BITS, info)

    def table_bytes(self, flags: int) -> int:
        return 4096 if flags == NestedFlags.pack(format=NestedFormat.VTD_FIRST_STAGE) else 0

    def invalidate(self, context: IommuContext, commands: Sequence[Command]) -> tuple[int, int]:
        for done, (low, high) in enumerate(commands):
            error = self._run(context, low, high)
            if error:
                return error, done
        return 0, len(commands)

    def _run(self, context: IommuContext, low: int, high: int) -> int:
        """PASID-based IOTLB invalidations; domain id and PASID are those under which Xen uses the table."""
        granularity = reg.PasidIotlbInvalidate.g.get(low)
        order = reg.IotlbInvalidateHigh.am.get(high)
        if reg.PasidIotlbInvalidate.type.get(low) != _PASID_IOTLB or granularity not in (2, 3):
            return -EINVAL
        fields = reg.IotlbInvalidateHigh
        high = high & (fields.addr.mask | fields.ih.mask | fields.am.mask) if granularity == 3 else 0
        pasids = {0, *(pasid for _, pasid in context.pasids)}
        for unit, did in context.hw.used:
            if granularity == 3 and 1 << order > max(unit.max_pages, 1):
                return -EINVAL
            for pasid in pasids:
                word = reg.PasidIotlbInvalidate.pack(type=6, g=granularity, did=did, pasid=pasid)
                if unit.queue.submit(word, high):
                    return -EIO
        return 0

    def guests_fault(self, report: FaultReport) -> tuple[int, GuestFault] | None:
        if report.code not in _FIRST_STAGE_FAULTS | _PERMISSION:
            return None
        high = report.record[1]
        requester = report.sid | self._backend.units[report.unit].drhd.segment << 16
        pasid = reg.FaultRecordHigh.pasid.get(high) if reg.FaultRecordHigh.pp.get(high) else None
        return requester, GuestFault(Sbdf(requester), report.iova, report.write, pasid, report.code)


def vtd_backend(platform: Platform, frames: FrameTable) -> VtdBackend:
    """Xen's VT-d driver: in scalable mode where every unit has it with both stages, else in legacy mode."""
    bits = reg.ExtendedCapability
    wanted = bits.smts.mask | bits.nest.mask | bits.fsts.mask | bits.ssts.mask | bits.pasid.mask
    ecaps = [platform.bus.read64(drhd.base + reg.ECAP) for drhd in platform.firmware.drhds]
    scalable = bool(ecaps) and all(ecap & wanted == wanted for ecap in ecaps)
    return ScalableVtdBackend(platform, frames) if scalable else VtdBackend(platform, frames)

# SPDX-License-Identifier: GPL-2.0-or-later
"""One remapping unit as the driver handles it: switching it on, its root and context tables, domain ids, faults."""

from array import array
from typing import Any, Final

from abi.errno import ENOMEM
from base.units import PAGE_SHIFT
from hypervisor.errors import XenBug
from hypervisor.frames import DOMID_XEN, FrameTable
from hypervisor.iommu.backend import FaultReport
from hypervisor.platform import Platform
from hypervisor.vtd import layouts as reg
from hypervisor.vtd.queue import InvalidationQueue
from machine.firmware import Drhd

INVALID_DID: Final = -1


class Unit:
    """The unit that firmware describes as ``drhd``, number ``index`` of the machine."""

    def __init__(self, platform: Platform, frames: FrameTable, drhd: Drhd, index: int, vector: int) -> None:
        self.index: Final = index
        self.drhd: Final = drhd
        self._memory: Final = platform.memory
        self._bus: Final = platform.bus
        self._frames: Final = frames
        self._doorbell: Final = platform.doorbell
        self._vector: Final = vector
        cap = self._bus.read64(drhd.base + reg.CAP)
        ecap = self._bus.read64(drhd.base + reg.ECAP)
        if not reg.ExtendedCapability.qi.get(ecap):
            raise ValueError(f"the VT-d unit at {drhd.base:#x} has no queued invalidation (ECAP {ecap:#x})")
        self.levels: Final = (4,) * reg.Capability.sagaw_48.get(cap) + (3,) * reg.Capability.sagaw_39.get(cap)
        """Depths of tree that it can walk, deepest first."""
        self.address_width: Final = reg.Capability.mgaw.get(cap) + 1
        self.orders: Final = (0,) + (9,) * reg.Capability.slps_2m.get(cap) + (18,) * reg.Capability.slps_1g.get(cap)
        self.caching_mode: Final = bool(reg.Capability.cm.get(cap))
        self.max_pages: Final = 1 << reg.Capability.mamv.get(cap) if reg.Capability.psi.get(cap) else 0
        """Most pages that a page-selective invalidation can name."""
        drains = reg.IotlbInvalidate.pack(type=2, dr=reg.Capability.drd.get(cap), dw=reg.Capability.dwd.get(cap))
        self._flush_everything: Final = drains | reg.IotlbInvalidate.g.put(1)
        self._flush_did: Final = drains | reg.IotlbInvalidate.g.put(2)
        self._flush_pages: Final = drains | reg.IotlbInvalidate.g.put(3)
        self._fault_registers: Final = drhd.base + reg.Capability.fro.get(cap) * 16
        self._fault_count: Final = reg.Capability.nfr.get(cap) + 1
        self.dids: Final = 1 << 4 + 2 * reg.Capability.nd.get(cap)
        self._did_used: Final = bytearray(self.dids)
        self._did_used[0] = self.caching_mode  # 0 tags not-present entries in caching mode
        self._root: Final = self._new_table("root table")
        self._context_tables: dict[int, int] = {}
        self.queue: Final = InvalidationQueue(
            self._memory,
            self._bus,
            drhd.base,
            self._new_table("invalidation queue"),
            self._new_table("wait status page"),
        )
        self._reports: list[FaultReport] = []

    # --------------------------------------------------------------------------------------------- enabling

    def enable(self) -> int:
        """Queue, root table, clean caches, fault interrupt, translation, in this order; 0 or -EIO."""
        bus, base = self._bus, self.drhd.base
        command = reg.GlobalCommand
        self.queue.start()
        bus.write32(base + reg.GCMD, command.qie.mask)
        bus.write64(base + reg.RTADDR, self._root << PAGE_SHIFT)
        bus.write32(base + reg.GCMD, command.qie.mask | command.srtp.mask)
        error = self.queue.submit(reg.ContextCacheInvalidate.pack(type=1, g=1)) or self.flush_everything()
        if error:
            return error
        bus.write32(base + reg.FEDATA, self._vector)
        bus.write32(base + reg.FEADDR, self._doorbell & 0xFFFF_FFFF)
        bus.write32(base + reg.FEUADDR, self._doorbell >> 32)
        bus.write32(base + reg.FECTL, 0)
        bus.write32(base + reg.GCMD, command.qie.mask | command.te.mask)
        status = bus.read32(base + reg.GSTS)
        if not status & command.te.mask or not status & command.qie.mask:
            raise XenBug(f"the VT-d unit at {base:#x} did not switch on (GSTS {status:#x})")
        return 0

    # ------------------------------------------------------------------------------------------ domain ids

    def take_did(self) -> int:
        """The lowest free domain id, or :data:`INVALID_DID`."""
        did = self._did_used.find(0)
        if did >= 0:
            self._did_used[did] = 1
        return did

    def give_did(self, did: int) -> None:
        self._did_used[did] = 0

    # -------------------------------------------------------------------------------------- context entries

    def write_context(self, rid: int, low: int, high: int) -> int:
        """Set the context entry of requester ``rid``; -ENOMEM without a context table for its bus, -EIO.

        Hardware may have cached the old entry, present or (caching mode) not, so what it says is invalidated:
        the entry itself by device, and everything translated under its domain id.
        """
        word = self._context_word(rid, bool(low))
        if word is None:
            return -ENOMEM if low else 0
        words = self._memory.words
        old_low, old_high = words[word], words[word + 1]
        if not self._memory.touched[word >> 9]:
            self._memory.touch(word >> 9)
        words[word : word + 2] = array("Q", [low, high])
        present = reg.ContextEntryLow.p.get(old_low)
        if not present and not self.caching_mode:
            return 0
        did = reg.ContextEntryHigh.did.get(old_high) if present else 0
        error = self.queue.submit(reg.ContextCacheInvalidate.pack(type=1, g=3, sid=rid & 0xFFFF, did=did))
        return error or self.flush_did(did)

    def _context_word(self, rid: int, make: bool) -> int | None:
        """Index of the context entry's lower word, with the bus's context table made on demand."""
        bus = rid >> 8 & 0xFF
        table = self._context_tables.get(bus)
        if table is None:
            if not make:
                return None
            frame = self._frames.allocate(DOMID_XEN)
            if frame is None:
                return None
            self._memory.zero_frame(frame)
            table = self._context_tables[bus] = frame
            entry = (self._root << 9) + (bus << 1)
            if not self._memory.touched[self._root]:
                self._memory.touch(self._root)
            self._memory.words[entry] = frame << PAGE_SHIFT | reg.RootEntryLow.p.mask
        return (table << 9) + ((rid & 0xFF) << 1)

    # ----------------------------------------------------------------------------------------------- flushes

    def flush_pages(self, did: int, dfn: int, pages: int) -> int:
        """Forget translations of ``pages`` pages from ``dfn`` under ``did``: exactly these if the range is an aligned
        power of two within the unit's limits, else everything of the domain."""
        if pages & pages - 1 or dfn & pages - 1 or pages > self.max_pages:
            return self.flush_did(did)
        return self.queue.submit(self._flush_pages | did << 16, dfn << PAGE_SHIFT | pages.bit_length() - 1)

    def flush_did(self, did: int) -> int:
        return self.queue.submit(self._flush_did | did << 16)

    def flush_everything(self) -> int:
        return self.queue.submit(self._flush_everything)

    # ------------------------------------------------------------------------------------------------ faults

    def on_fault_interrupt(self) -> None:
        """Move the pending fault records to the driver's list and free their registers."""
        bus, base = self._bus, self.drhd.base
        status = bus.read32(base + reg.FSTS)
        index = reg.FaultStatus.fri.get(status)
        for _ in range(self._fault_count):
            address = self._fault_registers + 16 * index
            low, high = bus.read64(address), bus.read64(address + 8)
            if not reg.FaultRecordHigh.f.get(high):
                break
            code = reg.FaultRecordHigh.fr.get(high)
            self._reports.append(
                FaultReport(
                    unit=self.index,
                    sid=reg.FaultRecordHigh.sid.get(high),
                    iova=low,
                    write=not reg.FaultRecordHigh.t.get(high),
                    code=code,
                    name=reg.FAULT_REASONS.get(code, f"fault reason {code:#x}"),
                    record=(low, high),
                )
            )
            bus.write32(address + 12, reg.FaultRecordHigh.f.mask >> 32)
            index = (index + 1) % self._fault_count
        bus.write32(base + reg.FSTS, status & reg.FaultStatus.pfo.mask)

    def take_faults(self) -> list[FaultReport]:
        self.on_fault_interrupt()
        reports, self._reports = self._reports, []
        return reports

    def save(self) -> Any:
        return (bytes(self._did_used), dict(self._context_tables), self.queue.save(), self._reports[:])

    def restore(self, state: Any) -> None:
        self._did_used[:], tables, queue, reports = state
        self._context_tables = dict(tables)
        self.queue.restore(queue)
        self._reports = reports[:]

    def _new_table(self, what: str) -> int:
        frame = self._frames.allocate(DOMID_XEN)
        if frame is None:
            raise ValueError(f"no memory for the {what} of the VT-d unit at {self.drhd.base:#x}")
        self._memory.zero_frame(frame)
        return frame

# SPDX-License-Identifier: GPL-2.0-or-later
"""One remapping unit as the driver handles it: switching it on, its root and context tables, domain ids, faults."""

from array import array
from itertools import product
from typing import Any, Final

from abi.errno import EIO, ENOMEM, ETIMEDOUT
from base.units import PAGE_SHIFT
from hypervisor.errors import XenBug
from hypervisor.frames import DOMID_XEN, FrameTable
from hypervisor.iommu.backend import FaultReport
from hypervisor.iommu.tags import Tags
from hypervisor.platform import Platform
from hypervisor.vtd import layouts as reg
from hypervisor.vtd.queue import InvalidationQueue
from machine.firmware import Drhd

INVALID_DID: Final = -1
FLUSH_POLLS: Final = 256
"""Reads of GSTS before a write-buffer flush counts as not answered."""
DEVICE_TLB: Final = reg.ContextEntryLow.tt.put(1)
"""In a context entry: the device may ask for translations and keep them."""
_WHOLE_ADDRESS_SPACE: Final = 0x7FFF_FFFF_FFFF_F000 | reg.DeviceTlbInvalidateHigh.s.mask


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
        self.capabilities: Final = (cap, ecap)
        self.levels: Final = (4,) * reg.Capability.sagaw_48.get(cap) + (3,) * reg.Capability.sagaw_39.get(cap)
        """Depths of tree that it can walk, deepest first."""
        self.address_width: Final = reg.Capability.mgaw.get(cap) + 1
        self.orders: Final = (0,) + (9,) * reg.Capability.slps_2m.get(cap) + (18,) * reg.Capability.slps_1g.get(cap)
        self.caching_mode: Final = bool(reg.Capability.cm.get(cap))
        self.coherent: Final = bool(reg.ExtendedCapability.coherent.get(ecap))
        """Table walks see stores without a write-back of their cache lines."""
        self.snoop_control: Final = bool(reg.ExtendedCapability.sc.get(ecap))
        """Bit 11 of a second-stage leaf makes accesses snooped; without it the bit is reserved."""
        self.pass_through: Final = bool(reg.ExtendedCapability.pt.get(ecap))
        self.write_buffer: Final = bool(reg.Capability.rwbf.get(cap))
        """Stores to tables reach the unit only when it is told, unless an invalidation goes there anyway."""
        self.device_tlb: Final = bool(reg.ExtendedCapability.dt.get(ecap))
        self._caching: dict[int, tuple[int, ...]] = {}
        """Requester ids that may keep translations of their own, by the domain id that they are under."""
        self.broken: frozenset[int] = frozenset()
        """Requester ids that did not answer an invalidation; they stay blocked."""
        self.unsure: frozenset[int] = frozenset()
        """Requester ids for which hardware may act on an entry that is no longer in memory."""
        self.max_pages: Final = 1 << reg.Capability.mamv.get(cap) if reg.Capability.psi.get(cap) else 0
        """Most pages that a page-selective invalidation can name."""
        drains = reg.IotlbInvalidate.pack(type=2, dr=reg.Capability.drd.get(cap), dw=reg.Capability.dwd.get(cap))
        self._flush_everything: Final = drains | reg.IotlbInvalidate.g.put(1)
        self._flush_did: Final = drains | reg.IotlbInvalidate.g.put(2)
        self._flush_pages: Final = drains | reg.IotlbInvalidate.g.put(3)
        self._fault_registers: Final = drhd.base + reg.Capability.fro.get(cap) * 16
        self._fault_count: Final = reg.Capability.nfr.get(cap) + 1
        self.dids: Final = 1 << 4 + 2 * reg.Capability.nd.get(cap)
        self._dids: Final = Tags(self.dids)
        if self.caching_mode:
            self._dids.take()  # 0 tags not-present entries then
        self.root: Final = self._new_table("root table")
        self.root_mode = 0
        """What RTADDR says beside the address: legacy mode unless somebody knows better."""
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
        bus.write64(base + reg.RTADDR, self.root << PAGE_SHIFT | self.root_mode)
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
        did = self._dids.take()
        return INVALID_DID if did is None else did

    def give_did(self, did: int) -> None:
        self._dids.give(did)

    # -------------------------------------------------------------------------------------- context entries

    def write_context(self, rid: int, low: int, high: int) -> int:
        """Set the context entry of requester ``rid``; -ENOMEM without a context table for its bus, -EIO.

        Hardware may have cached the old entry, present or (caching mode) not, so what it says is invalidated:
        the entry itself by device, and everything translated under its domain id, in the device's own cache too.
        A broken requester is blocked whatever the entry is to be, and -EIO says so.  Where hardware does not confirm,
        the requester is unsure until a later flush, of whatever, has made it forget.
        """
        word = self._context_word(rid, bool(low))
        if word is None:
            return -ENOMEM if low else 0
        refused = low and rid in self.broken
        words = self._memory.words
        old_low, old_high = words[word], words[word + 1]
        self._store_entry(word, 0 if refused else low, 0 if refused else high)
        present = reg.ContextEntryLow.p.get(old_low)
        old = reg.ContextEntryHigh.did.get(old_high) if present else 0
        if present or self.caching_mode or self.unsure:
            error = self._forget_context(rid, old) or self.flush_did(old)
        else:
            error = self.flush_write_buffer() if self.write_buffer else 0
        if error:
            self.unsure |= {rid}
        if self.device_tlb:
            self._note_caching(rid, -1 if error else old, words[word], words[word + 1])
        return error or (-EIO if low and rid in self.broken else 0)

    def _store_entry(self, word: int, low: int, high: int) -> None:
        """Both halves of a root or context entry in one 128-bit store, as far as hardware can tell."""
        if not self._memory.touched[word >> 9]:
            self._memory.touch(word >> 9)
        self._memory.words[word : word + 2] = array("Q", [low, high])
        self.publish(word, 2)

    def publish(self, word: int, count: int) -> None:
        """Write back the cache lines of ``count`` words of a table, if the unit reads past the caches."""
        if not self.coherent:
            self._bus.write_back(word << 3, count << 3)

    def _forget_context(self, rid: int, did: int) -> int:
        return self.queue.submit(reg.ContextCacheInvalidate.pack(type=1, g=3, sid=rid & 0xFFFF, did=did))

    def _note_caching(self, rid: int, old: int, low: int, high: int) -> None:
        """The entry of ``rid``, under ``old`` before (-1: perhaps still), is now what ``low`` and ``high`` say."""
        caching = dict(self._caching)
        if old in caching:
            caching[old] = tuple(other for other in caching[old] if other != rid)
            if not caching[old]:
                del caching[old]
        if low & DEVICE_TLB:
            did = reg.ContextEntryHigh.did.get(high)
            caching[did] = (*(other for other in caching.get(did, ()) if other != rid), rid)
        self._caching = caching

    def read_context(self, rid: int) -> tuple[int, int] | None:
        """The context entry of ``rid`` as it is in memory; ``None`` without a context table for its bus."""
        word = self._context_word(rid, False)
        return None if word is None else (self._memory.words[word], self._memory.words[word + 1])

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
            self.publish(frame << 9, 512)
            table = self._context_tables[bus] = frame
            self._store_entry((self.root << 9) + (bus << 1), frame << PAGE_SHIFT | reg.RootEntryLow.p.mask, 0)
        return (table << 9) + ((rid & 0xFF) << 1)

    # ----------------------------------------------------------------------------------------------- flushes

    def flush_pages(self, did: int, dfn: int, pages: int) -> int:
        """Forget translations of ``pages`` pages from ``dfn`` under ``did``: exactly these if the range is an aligned
        power of two within the unit's limits, else everything of the domain."""
        if self.unsure or pages & pages - 1 or dfn & pages - 1 or pages > self.max_pages:
            return self.flush_did(did)
        error = self.queue.submit(self._flush_pages | did << 16, dfn << PAGE_SHIFT | pages.bit_length() - 1)
        if did in self._caching and not error:
            size = reg.DeviceTlbInvalidateHigh.s.mask if pages > 1 else 0
            return self._flush_devices(did, (dfn | (pages >> 1) - (pages > 1)) << PAGE_SHIFT | size)
        return error

    def flush_did(self, did: int) -> int:
        if self.unsure:
            return self._forget_entries()
        error = self.queue.submit(self._flush_did | did << 16)
        if did in self._caching and not error:
            return self._flush_devices(did, _WHOLE_ADDRESS_SPACE)
        return error

    def _forget_entries(self) -> int:
        """Make hardware read every context entry anew and forget all that came of what they were."""
        error = self.queue.submit(reg.ContextCacheInvalidate.pack(type=1, g=1))
        if self.root_mode and not error:
            error = self.queue.submit(reg.PasidCacheInvalidate.pack(type=7, g=3))
        error = error or self.flush_everything()
        if error:
            return error
        unsure, self.unsure = self.unsure, frozenset()
        for did in tuple(self._caching):
            error = self._flush_devices(did, _WHOLE_ADDRESS_SPACE) or error
        for rid, did in product(() if error else unsure, tuple(self._caching)):
            self._note_caching(rid, did, *(self.read_context(rid) or (0, 0)))
        return error

    def _flush_devices(self, did: int, what: int) -> int:
        """Make the devices under ``did`` forget ``what`` (a descriptor's upper word), now that the IOTLB has: one that
        asked again before the IOTLB forgot would have got the old answer.

        One that does not answer can use what it kept, so it is cut off: then nothing of this domain is left to it.
        """
        error = 0
        for rid in self._caching.get(did, ()):
            command = reg.DeviceTlbInvalidate.pack(type=3, sid=rid & 0xFFFF)
            answer = self.queue.submit(command, what)
            if answer == -ETIMEDOUT:
                answer = self._cut_off(rid, did)
            error = error or answer
        return error

    def _cut_off(self, rid: int, did: int) -> int:
        """Block a requester that does not answer, translated requests included; -EIO if the unit does not confirm."""
        word = self._context_word(rid, False)
        assert word is not None
        self.broken |= {rid}
        old = reg.ContextEntryHigh.did.get(self._memory.words[word + 1])
        self._store_entry(word, 0, 0)
        self._note_caching(rid, did, 0, 0)
        error = self._forget_context(rid, did)
        if old != did and not error:  # the entry was on its way to another domain
            error = self._forget_context(rid, old)
        if error:
            self.unsure |= {rid}
        return error

    def flush_write_buffer(self) -> int:
        """Let the unit see what was stored to tables; -EIO if it does not answer."""
        bus, register = self._bus, self.drhd.base + reg.GSTS
        wbf = reg.GlobalCommand.wbf.mask
        enabled = bus.read32(register) & (reg.GlobalCommand.te.mask | reg.GlobalCommand.qie.mask)
        bus.write32(self.drhd.base + reg.GCMD, enabled | wbf)
        return 0 if any(not bus.read32(register) & wbf for _ in range(FLUSH_POLLS)) else -EIO

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
            high = bus.read64(address + 8)
            if not reg.FaultRecordHigh.f.get(high):
                break
            low = bus.read64(address)
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
        return (
            self._dids.save(),
            dict(self._context_tables),
            self.queue.save(),
            self._reports[:],
            self._caching,
            self.broken,
            self.unsure,
        )

    def restore(self, state: Any) -> None:
        dids, tables, queue, reports, self._caching, self.broken, self.unsure = state
        self._dids.restore(dids)
        self._context_tables = dict(tables)
        self.queue.restore(queue)
        self._reports = reports[:]

    def _new_table(self, what: str) -> int:
        frame = self._frames.allocate(DOMID_XEN)
        if frame is None:
            raise ValueError(f"no memory for the {what} of the VT-d unit at {self.drhd.base:#x}")
        self._memory.zero_frame(frame)
        self.publish(frame << 9, 512)
        return frame

# SPDX-License-Identifier: GPL-2.0-or-later
"""Scalable mode's structures of one unit (VT-d specification 9.2, 9.4 to 9.6): contexts, PASID directories and tables.

Every requester has a context entry that is written once and a directory of its own; what changes are PASID entries.  A
request without a PASID counts as one with PASID 0.  An entry is eight words, so it is taken out and hardware made to
forget it before another is written: hardware sees the old one, none, or the new one.
"""

from typing import Final

from abi.errno import ENOMEM
from base.units import PAGE_SHIFT
from hypervisor.frames import DOMID_XEN, FrameTable
from hypervisor.vtd import layouts as reg
from hypervisor.vtd.unit import Unit
from machine.memory import PhysicalMemory

PASID_BITS: Final = 8
"""PASIDs that a device may have here; more would only take more of Xen's memory."""
_ENTRY_WORDS: Final = 8
_CONTEXT_WORDS: Final = 4
_TABLE_BITS: Final = 6

Words = tuple[int, int, int]
"""The first three words of a PASID entry; the others are 0."""
ABSENT: Final[Words] = (0, 0, 0)


class PasidTables:
    """The tables of ``unit``, made on demand and kept."""

    def __init__(self, unit: Unit, memory: PhysicalMemory, frames: FrameTable) -> None:
        self._unit: Final = unit
        self._memory: Final = memory
        self._frames: Final = frames
        self._made: dict[tuple[str, int, int], int] = {}
        """Frame of each context table (bus, half), directory (requester, 0) and PASID table (requester, index)."""

    def prepare(self, rid: int, pasid: int) -> int:
        """See that ``pasid`` of the requester has an entry: 0, -ENOMEM, or -EIO."""
        bus, half = rid >> 8 & 0xFF, rid >> 7 & 1
        contexts = self._table("contexts", bus, half)
        directory = self._table("directory", rid, 0)
        table = self._table("pasids", rid, pasid >> _TABLE_BITS)
        if contexts is None or directory is None or table is None:
            return -ENOMEM
        self._point((directory << 9) + (pasid >> _TABLE_BITS), table << PAGE_SHIFT | 1)
        at = (contexts << 9) + _CONTEXT_WORDS * (rid & 0x7F)
        entry = reg.ScalableContext.pack(p=1, paside=1) | directory << PAGE_SHIFT
        fresh = self._memory.words[at] != entry
        self._point(at, entry)
        self._point((self._unit.root << 9) + 2 * bus + half, contexts << PAGE_SHIFT | 1)
        if fresh and self._unit.caching_mode:
            return self._unit.queue.submit(reg.ContextCacheInvalidate.pack(type=1, g=3, sid=rid & 0xFFFF))
        return 0

    def read(self, rid: int, pasid: int) -> Words:
        """What memory says; absent if there is no table for it."""
        table = self._made.get(("pasids", rid, pasid >> _TABLE_BITS))
        if table is None:
            return ABSENT
        at = self._word(table, pasid)
        first, second, third = self._memory.words[at : at + 3].tolist()
        return first, second, third

    def write(self, rid: int, pasid: int, entry: Words, *, anyway: bool = False) -> int:
        """Make the PASID's entry ``entry``; :meth:`prepare` came before.  On an error memory says what it said, or with
        ``anyway`` what it was to say, and the requester is unsure."""
        at = self._word(self._made["pasids", rid, pasid >> _TABLE_BITS], pasid)
        old = self.read(rid, pasid)
        error = 0
        if old[0] & 1 or self._unit.unsure:
            self._point(at, 0)
            error = self._forget(reg.PasidEntry1.did.get(old[1]), pasid)
        wanted = old if error and not anyway else entry
        self._point(at + 1, wanted[1])
        self._point(at + 2, wanted[2])
        self._point(at, wanted[0])
        if not error and self._unit.caching_mode and entry[0]:  # hardware may remember that there was none
            error = self._unit.queue.submit(reg.PasidCacheInvalidate.pack(type=7, g=3))
            if error and not anyway:
                self.write(rid, pasid, old, anyway=True)
        if error:
            self._unit.unsure |= {rid}
        return error

    def _forget(self, did: int, pasid: int) -> int:
        cache = reg.PasidCacheInvalidate.pack(type=7, g=1, did=did, pasid=pasid)
        first = reg.PasidIotlbInvalidate.pack(type=6, g=2, did=did, pasid=pasid)
        return self._unit.queue.submit(cache) or self._unit.queue.submit(first) or self._unit.flush_did(did)

    @staticmethod
    def _word(table: int, pasid: int) -> int:
        return (table << 9) + _ENTRY_WORDS * (pasid & (1 << _TABLE_BITS) - 1)

    def _table(self, kind: str, number: int, index: int) -> int | None:
        frame = self._made.get((kind, number, index))
        if frame is None:
            frame = self._frames.allocate(DOMID_XEN)
            if frame is None:
                return None
            self._memory.zero_frame(frame)
            self._unit.publish(frame << 9, 512)
            self._made[kind, number, index] = frame
        return frame

    def _point(self, word: int, value: int) -> None:
        """One 64-bit store that hardware sees."""
        self._memory.write64(word << 3, value)
        self._unit.publish(word, 1)

    def save(self) -> object:
        return dict(self._made)

    def restore(self, state: object) -> None:
        self._made = dict(state)  # type: ignore[call-overload]

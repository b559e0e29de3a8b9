# SPDX-License-Identifier: GPL-2.0-or-later
"""Scalable mode's second stage (VT-d specification 3.7, 9.8): legacy mode's tables with accessed and dirty bits.

It serves requests of its own and, when nested, every first-stage table access.  Entries are tagged with the domain id
alone.  An IOTLB entry is one int: output - input address, with the flags below in bits 11:0.
"""

from typing import Final

from machine.iommu.iotlb import IoTlb
from machine.iommu.replacement import Replacement
from machine.iommu.vtd.reasons import (
    SM_BEYOND_WIDTH,
    SM_NO_READ,
    SM_NO_WRITE,
    SS_ACCESS,
    SS_NOT_PRESENT,
    SS_RESERVED,
    SS_ROOT_ACCESS,
    SS_UPDATE,
)
from machine.iommu.vtd.scalable_tables import AddressSpace
from machine.iommu.vtd.visibility import Words
from machine.iommu.vtd.walk import OUTPUT, PS, SNP, R, SecondLevel, W
from machine.memory import PhysicalMemory

CLEAN: Final = 1 << 2
"""The leaf's dirty bit was not set yet: a write has to walk and set it."""
ACCESSED: Final = 1 << 8
DIRTY: Final = 1 << 9


class TableMemory:
    """Words of tables as a walk reads them, and the accessed and dirty bits that it sets."""

    def __init__(self, memory: PhysicalMemory, view: Words) -> None:
        self._memory: Final = memory
        self._view: Final = view
        self.word_count: Final = len(memory.words)
        self.walks = 0
        """Walks of either stage so far."""

    def words(self, space: AddressSpace) -> Words:
        """RAM itself where walks are coherent: PWSNP, or ECAP.C."""
        return self._memory.words if space.snooped_walk else self._view

    def update(self, words: Words, index: int, bits: int) -> bool:
        """Set ``bits`` in RAM; False for a walk that is not coherent, which must not write."""
        if words is not self._memory.words:
            return False
        if not self._memory.touched[index >> 9]:
            self._memory.touch(index >> 9)
        self._memory.words[index] |= bits
        return True


class SecondStage:
    """Walks and remembers.  ``rules`` lends the reserved bits, which are those of legacy mode."""

    def __init__(self, rules: SecondLevel, tables: TableMemory, replacement: Replacement | None, keep: bool) -> None:
        self._rules: Final = rules
        self._tables: Final = tables
        self.iotlb: Final[IoTlb[int]] = IoTlb(replacement=replacement)
        self.structures: Final[IoTlb[int]] = IoTlb(None if keep else 0, replacement)
        """Pointers to the tables of the two lowest levels: table address, shift << 2, permissions so far."""

    def locate(self, space: AddressSpace, address: int, need: int) -> int:
        """Machine address for an access that needs R or W, or minus the fault reason."""
        if address > space.limit:
            return -SM_BEYOND_WIDTH
        entry = self.iotlb.lookup(space.did, address >> 12)
        if entry is None or (need == W and entry & (W | CLEAN) == W | CLEAN):
            return self._walk(space, address, need)
        if entry & need:
            return address + (entry & -4096)
        return -(SM_NO_WRITE if need == W else SM_NO_READ)

    def _walk(self, space: AddressSpace, address: int, need: int) -> int:
        self._tables.walks += 1
        words, rules, did, page = self._tables.words(space), self._rules, space.did, address >> 12
        table, shift, permissions = space.ss_root, space.ss_shift, R | W
        pointer = self.structures.lookup(did, page)
        if pointer is not None:
            table, shift, permissions = pointer & OUTPUT, pointer >> 2 & 0x3F, pointer & 3
            if not permissions & need:
                return -(SM_NO_WRITE if need == W else SM_NO_READ)
        while True:
            index = (table >> 3) + (address >> shift & 511)
            if index >= self._tables.word_count:
                return -(SS_ROOT_ACCESS if shift == space.ss_shift else SS_ACCESS)
            entry = words[index]
            if not entry & 3:
                return -SS_NOT_PRESENT
            permissions &= entry
            if not permissions & need:
                return -(SM_NO_WRITE if need == W else SM_NO_READ)
            leaf = shift == 12 or entry & PS
            if entry & (rules.leaf_reserved[shift] if leaf else rules.table_reserved):
                return -SS_RESERVED
            if space.ss_update:
                wanted = ACCESSED | DIRTY if leaf and need == W else ACCESSED
                if entry & wanted != wanted and not self._tables.update(words, index, wanted):
                    return -SS_UPDATE
                entry |= wanted
            if leaf:
                break
            table = entry & OUTPUT
            if shift in (21, 30):
                self.structures.insert(did, page, shift - 12, table | shift - 9 << 2 | permissions)
            shift -= 9
        output = entry & OUTPUT | address & (1 << shift) - 1
        clean = CLEAN if space.ss_update and not entry & DIRTY else 0
        self.iotlb.insert(did, page, shift - 12, output - address | permissions | clean | entry & SNP)
        return output

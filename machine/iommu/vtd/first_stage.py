# SPDX-License-Identifier: GPL-2.0-or-later
"""Scalable mode's first stage (VT-d specification 3.6, 9.7): the processor's four- and five-level tables.

Entries set accessed bits on the way down and the leaf's dirty bit on a write.  Nested, every table address and the
output are addresses of the second stage.  Order of checks at a level: presence, privilege, write, reserved bits.

Cached translations are tagged with domain id and PASID, nested ones apart from the others, because a change of the
second stage takes all nested ones of its domain along.
"""

from typing import Final

from machine.iommu.iotlb import IoTlb
from machine.iommu.replacement import Replacement
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.reasons import (
    FS_ACCESS,
    FS_BEYOND_WIDTH,
    FS_NO_READ,
    FS_NO_WRITE,
    FS_NOT_PRESENT,
    FS_RESERVED,
    FS_ROOT_ACCESS,
    FS_ROOT_NO_READ,
    FS_UPDATE,
    SM_BEYOND_WIDTH,
    SM_NO_READ,
    SM_NO_WRITE,
    SM_NOT_CANONICAL,
    SM_SUPERVISOR_PAGE,
    SS_NOT_PRESENT,
)
from machine.iommu.vtd.scalable_tables import PGTT_NESTED, AddressSpace
from machine.iommu.vtd.second_stage import SecondStage, TableMemory
from machine.iommu.vtd.walk import OUTPUT, PS, SNP, R, W

P: Final = 1 << 0
RW: Final = 1 << 1
US: Final = 1 << 2
ACCESSED: Final = 1 << 5
DIRTY: Final = 1 << 6
EXTENDED_ACCESSED: Final = 1 << 10

# Flags of a cached translation, below the 12 bits of the address difference.
WRITE: Final = 1 << 1
"""R/W all the way down."""
USER: Final = 1 << 2
"""U/S all the way down."""
READY: Final = 1 << 3
"""A write needs no dirty bit set and no permission of the second stage that is not known."""

DENIED: Final = (SM_NO_READ, SM_NO_WRITE, SS_NOT_PRESENT)


class FirstStage:
    """Walks and remembers."""

    def __init__(
        self,
        config: VtdConfig,
        tables: TableMemory,
        second: SecondStage,
        replacement: Replacement | None,
    ) -> None:
        self._tables: Final = tables
        self._second: Final = second
        self.iotlb: Final[IoTlb[int]] = IoTlb(replacement=replacement)
        self.nested: Final[IoTlb[int]] = IoTlb(replacement=replacement)
        self.structures: Final[IoTlb[int]] = IoTlb(None if config.paging_structure_caches else 0, replacement)
        """Pointers to the tables of the two lowest levels: table address, shift << 2, RW >> 1, US >> 1."""
        above = OUTPUT & ~((1 << config.host_address_width) - 1)
        leaf = {12: above, 21: above | 0x1F_E000, 30: above | 0x3FFF_E000, 39: PS, 48: PS}
        if not config.first_stage_1g:
            leaf[30] |= PS
        self.leaf_reserved: Final = leaf
        """Bits that must be 0 in a leaf found at each shift; PS itself where no leaf is allowed."""
        self.table_reserved: Final = above

    def cache(self, space: AddressSpace) -> IoTlb[int]:
        return self.nested if space.kind == PGTT_NESTED else self.iotlb

    def locate(self, space: AddressSpace, address: int, need: int, supervisor: bool) -> int:
        """Machine address for a user or supervisor access that needs R or W, or minus the fault reason."""
        sign = address >> space.fs_shift + 8
        if sign and sign != (1 << 56 - space.fs_shift) - 1:
            return -SM_NOT_CANONICAL
        entry = self.cache(space).lookup((space.did, space.pasid), address >> 12)
        if entry is None:
            return self._walk(space, address, need, supervisor)
        if not supervisor and not entry & USER:
            return -SM_SUPERVISOR_PAGE
        if need == W:
            if not entry & WRITE and (space.write_protect or not supervisor):
                return -SM_NO_WRITE
            if not entry & READY:
                return self._walk(space, address, need, supervisor)
        return address + (entry & -4096)

    def _walk(self, space: AddressSpace, address: int, need: int, supervisor: bool) -> int:
        self._tables.walks += 1
        words, tag, page = self._tables.words(space), (space.did, space.pasid), address >> 12
        table, shift, rights = space.fs_root, space.fs_shift, RW | US
        mark = ACCESSED | EXTENDED_ACCESSED if space.extended_accessed else ACCESSED
        pointer = self.structures.lookup(tag, page)
        if pointer is not None:
            table, shift, rights = pointer & OUTPUT, pointer >> 2 & 0x3F, (pointer & 3) << 1
            fault = self._denied(space, rights, need, supervisor)
            if fault:
                return -fault
        while True:
            top = shift == space.fs_shift
            at = self._table_address(space, table + 8 * (address >> shift & 511), R, top)
            if at < 0:
                return at
            if at >> 3 >= self._tables.word_count:
                return -(FS_ROOT_ACCESS if top else FS_ACCESS)
            entry = words[at >> 3]
            if not entry & P:
                return -FS_NOT_PRESENT
            rights &= entry
            fault = self._denied(space, rights, need, supervisor)
            if fault:
                return -fault
            leaf = shift == 12 or bool(entry & PS)
            if entry & (self.leaf_reserved[shift] if leaf else self.table_reserved):
                return -FS_RESERVED
            wanted = mark | DIRTY if leaf and need == W else mark
            if entry & wanted != wanted:
                fault = self._update(space, table + 8 * (address >> shift & 511), wanted, top)
                if fault:
                    return -fault
                entry |= wanted
            if leaf:
                break
            table = entry & OUTPUT
            if shift in (21, 30):
                self.structures.insert(tag, page, shift - 12, table | shift - 9 << 2 | rights >> 1)
            shift -= 9
        offset = (1 << shift) - 1
        output = entry & OUTPUT & ~offset | address & offset
        return self._finish(space, address, output, shift - 12, need, entry, rights)

    def _finish(
        self, space: AddressSpace, address: int, output: int, order: int, need: int, entry: int, rights: int
    ) -> int:
        """Take the leaf's output through the second stage if there is one, and remember the result."""
        page, ready, snoop = address >> 12, bool(entry & DIRTY), 0
        if space.kind == PGTT_NESTED:
            guest, second = output, self._second
            output = second.locate(space, guest, need)
            if output < 0:
                return -FS_BEYOND_WIDTH if output == -SM_BEYOND_WIDTH else output
            behind = second.iotlb.lookup(space.did, guest >> 12) or 0
            order = min(order, second.iotlb.order(space.did, guest >> 12) or 0)
            ready, snoop = ready and need == W, behind & SNP
            if not behind & R:
                return output  # the entry would have to say that reads are denied; walk again instead
        flags = (WRITE if rights & RW else 0) | (USER if rights & US else 0) | (READY if ready else 0) | snoop
        self.cache(space).insert((space.did, space.pasid), page, order, output - address | flags)
        return output

    def _denied(self, space: AddressSpace, rights: int, need: int, supervisor: bool) -> int:
        if not supervisor and not rights & US:
            return SM_SUPERVISOR_PAGE
        if need == W and not rights & RW and (space.write_protect or not supervisor):
            return SM_NO_WRITE
        return 0

    def _table_address(self, space: AddressSpace, at: int, need: int, top: bool) -> int:
        """Machine address of a first-stage entry, or minus the reason why it cannot be reached."""
        if space.kind != PGTT_NESTED:
            return at
        maddr = self._second.locate(space, at, need)
        if -maddr in DENIED:
            return -(FS_NO_WRITE if need == W else FS_ROOT_NO_READ if top else FS_NO_READ)
        return -FS_BEYOND_WIDTH if maddr == -SM_BEYOND_WIDTH else maddr

    def _update(self, space: AddressSpace, at: int, bits: int, top: bool) -> int:
        """Set bits of the entry at ``at``; the fault reason if that is not possible."""
        maddr = self._table_address(space, at, W, top)
        if maddr < 0:
            return -maddr
        return 0 if self._tables.update(self._tables.words(space), maddr >> 3, bits) else FS_UPDATE

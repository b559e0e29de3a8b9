# SPDX-License-Identifier: GPL-2.0-or-later
"""Second-level translation (VT-d specification 3.7, 9.8): the page walk, the IOTLB and the paging-structure caches.

Tables have 512 entries of 8 bytes.  The manual calls the entries of levels 4 to 1 SL-PML4E, SL-PDPE, SL-PDE and
SL-PTE; their index is 9 address bits from bit 39, 30, 21 and 12.  This file names a level by that bit, ``shift``.
Permissions are ANDed on the way down; an entry is present if it grants read or write.

An IOTLB entry is one int: ``output - input`` address (a multiple of 4096, possibly negative) with the permissions
R and W in bits 1:0 and SNP of the leaf in bit 11.  With caching mode, an entry with bits 1:0 clear stands for a
cached fault: accesses that the permissions in bits 3:2 allow meet the reason in bits 10:4, the others lack permission.

Where several faults apply at one level, permission comes before reserved bits; the manual leaves this open.
"""

from typing import Final

from machine.iommu.iotlb import IoTlb
from machine.iommu.replacement import Replacement
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.reasons import (
    CONTEXT_INVALID,
    ENTRY_ACCESS,
    ENTRY_RESERVED,
    INTERRUPT_ADDRESS,
    NO_READ,
    NO_WRITE,
)
from machine.iommu.vtd.visibility import Words

R: Final = 1 << 0
W: Final = 1 << 1
PS: Final = 1 << 7
SNP: Final = 1 << 11
TM: Final = 1 << 62
OUTPUT: Final = (1 << 52) - (1 << 12)
"""Bits 51:12: the next table or the output page."""

LEAF_SHIFTS: Final = (12, 21, 30)
ALLOWED_SHIFT: Final = 2
REASON_SHIFT: Final = 4

DOORBELL_FIRST: Final = 0xFEE0_0000
DOORBELL_LAST: Final = 0xFEEF_FFFF


class SecondLevel:
    """Walks second-level tables in memory and remembers what it finds, tagged with the domain id."""

    def __init__(
        self, config: VtdConfig, words: Words, iotlb: IoTlb[int], replacement: Replacement | None = None
    ) -> None:
        self._words: Final = words
        self._word_count: Final = len(words)
        self.iotlb: Final = iotlb
        self.structures: Final[IoTlb[int]] = IoTlb(None if config.paging_structure_caches else 0, replacement)
        """Pointers to level-1 and level-2 tables: table address, shift << 2, permissions so far."""
        self._negative: Final = config.caching_mode

        above = OUTPUT & ~((1 << config.host_address_width) - 1)
        self.table_reserved: Final = above | TM | SNP
        snoop = 0 if config.snoop_control else SNP
        leaf = {shift: above | TM | snoop | (1 << shift) - (1 << 12) for shift in LEAF_SHIFTS}
        leaf[39] = PS
        if not config.superpage_2m:
            leaf[21] |= PS
        if not config.superpage_1g:
            leaf[30] |= PS
        self.leaf_reserved: Final = leaf
        """Bits that must be 0 in a leaf found at each shift; PS itself where no leaf is allowed."""

    def translate(self, did: int, root: int, shift: int, iova: int, need: int) -> int:
        """Walk for an access that needs permission ``need`` (R or W): machine address, or minus the fault reason.

        ``root`` and ``shift`` describe the top table.  Fills the caches on the way.
        """
        words, word_count = self._words, self._word_count
        page = iova >> 12
        permissions = R | W
        table = root
        structures = self.structures
        if structures:
            pointer = structures.lookup(did, page)
            if pointer is not None:
                permissions = pointer & 3
                if not permissions & need:
                    return -(NO_WRITE if need == W else NO_READ)
                shift = pointer >> 2 & 0x3F
                table = pointer & OUTPUT
        while True:
            index = (table >> 3) + (iova >> shift & 511)
            if index >= word_count:
                return -(CONTEXT_INVALID if table == root else ENTRY_ACCESS)
            entry = words[index]
            permissions &= entry
            if not permissions & need:
                if self._negative and not permissions:
                    self.iotlb.insert(did, page, 0, 0)
                return -(NO_WRITE if need == W else NO_READ)
            if shift == 12 or entry & PS:
                break
            if entry & self.table_reserved:
                return self._reserved(did, page, permissions)
            table = entry & OUTPUT
            if shift == 21:
                structures.insert(did, page, 9, table | 12 << 2 | permissions)
                shift = 12
            elif shift == 30:
                structures.insert(did, page, 18, table | 21 << 2 | permissions)
                shift = 21
            else:
                shift -= 9
        if entry & self.leaf_reserved[shift]:
            return self._reserved(did, page, permissions)
        first = entry & OUTPUT
        output = first | iova & (1 << shift) - 1
        if DOORBELL_FIRST <= output <= DOORBELL_LAST:
            return -INTERRUPT_ADDRESS
        order = shift - 12
        if order and first <= DOORBELL_LAST and first + (1 << shift) > DOORBELL_FIRST:
            order = 0  # part of the superpage must keep faulting, so only this 4 KiB is cached
        self.iotlb.insert(did, page, order, output - iova | permissions | entry & SNP)
        return output

    def _reserved(self, did: int, page: int, permissions: int) -> int:
        if self._negative:
            self.iotlb.insert(did, page, 0, ENTRY_RESERVED << REASON_SHIFT | permissions << ALLOWED_SHIFT)
        return -ENTRY_RESERVED

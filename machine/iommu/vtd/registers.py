# SPDX-License-Identifier: GPL-2.0-or-later
"""The register file (VT-d specification chapter 11.4): what can be written where, and who is told about it.

Registers are kept as 32-bit words, the unit in which the bus may reach any of them.  A 64-bit access is its low
half followed by its high half, so a command bit in the high half acts after both are stored.  Other sizes and
unaligned accesses are not allowed by the manual: reads of them give what the bytes hold, writes are dropped.
"""

from collections.abc import Callable
from typing import Final

from machine.iommu.vtd.config import VtdConfig

REGISTER_SIZE: Final = 0x1000

# Byte offsets.
VER: Final = 0x00
CAP: Final = 0x08
ECAP: Final = 0x10
GCMD: Final = 0x18
GSTS: Final = 0x1C
RTADDR: Final = 0x20
CCMD: Final = 0x28
FSTS: Final = 0x34
FECTL: Final = 0x38
FEDATA: Final = 0x3C
FEADDR: Final = 0x40
FEUADDR: Final = 0x44
PMEN: Final = 0x64
IQH: Final = 0x80
IQT: Final = 0x88
IQA: Final = 0x90
ICS: Final = 0x9C
IECTL: Final = 0xA0
IEDATA: Final = 0xA4
IEADDR: Final = 0xA8
IEUADDR: Final = 0xAC
IQERCD: Final = 0xB0

VERSION: Final = 0x10
"""Architecture version 1.0, the first with legacy mode as modelled here."""

# GCMD and GSTS: the bit of a command is the bit of its status.
TE: Final = 1 << 31
SRTP: Final = 1 << 30
WBF: Final = 1 << 27
QIE: Final = 1 << 26

# FSTS.
PFO: Final = 1 << 0
PPF: Final = 1 << 1
IQE: Final = 1 << 4
ICE: Final = 1 << 5
ITE: Final = 1 << 6
FAULT_STATUS: Final = PFO | PPF | IQE | ICE | ITE
"""Everything in FSTS that can be the reason for a fault event."""
FRI_SHIFT: Final = 8
FRI_MASK: Final = 0xFF << FRI_SHIFT

# FECTL and IECTL.
IM: Final = 1 << 31
IP: Final = 1 << 30

DOORBELL_MEGABYTE: Final = 0xFEE
"""Address bits 31:20 of an interrupt request (3.14)."""

IWC: Final = 1 << 0
"""ICS: an invalidation wait descriptor asked for an interrupt and has completed."""

RECORD_F: Final = 1 << 31
"""F, in the last 32-bit word of a fault recording register."""

IQA_DW: Final = 1 << 11
"""IQA: descriptors are 256 bits wide."""

IQT_MASK: Final = 0x7FFF0
"""IQH and IQT hold a byte offset, bits 18:4."""


class RegisterFile:
    """The 4 KiB register block.

    ``dwords`` holds the registers, index = byte offset / 4; the model reads and sets them directly.  ``on_write``
    maps such an index to what has to happen after software stored to it; it is handed the value as written.
    """

    def __init__(self, config: VtdConfig) -> None:
        self.dwords: list[int] = [0] * (REGISTER_SIZE // 4)
        self.on_write: Final[dict[int, Callable[[int], None]]] = {}
        self._writable: Final = [0] * (REGISTER_SIZE // 4)
        self._clear_by_one: Final = [0] * (REGISTER_SIZE // 4)

        self.dwords[VER >> 2] = VERSION
        self.put64(CAP, config.cap)
        self.put64(ECAP, config.ecap)
        self.dwords[FECTL >> 2] = IM
        self.dwords[IECTL >> 2] = IM

        address = (1 << 64) - (1 << 12)
        self._allow(RTADDR, address | (0xC00 if config.scalable else 0))
        self._allow(CCMD, 0xE000_0003_FFFF_FFFF)
        for control in (FECTL, IECTL):
            self._allow(control, IM | 0xFFFF_FFFF << 32)  # control, then 32 bits of data
            self._allow(control + 8, 0xFFFF_FFFF_FFFF_FFFC)
        self._allow(config.iotlb_offset, address | 0x7F)
        self._allow(config.iotlb_offset + 8, 0xB003_FFFF_0000_0000)
        self._clear_by_one[FSTS >> 2] = PFO | IQE | ICE | ITE
        if config.queued_invalidation:
            self._allow(IQT, IQT_MASK)
            self._allow(IQA, address | 0x7 | (IQA_DW if config.scalable else 0))
            self._clear_by_one[ICS >> 2] = IWC
        for record in range(config.fault_records):
            self._clear_by_one[config.fault_record_offset + 16 * record + 12 >> 2] = RECORD_F

    def _allow(self, offset: int, mask: int) -> None:
        self._writable[offset >> 2] = mask & 0xFFFF_FFFF
        self._writable[offset + 4 >> 2] = mask >> 32

    def get64(self, offset: int) -> int:
        """The 64-bit register at ``offset``."""
        return self.dwords[offset >> 2] | self.dwords[offset + 4 >> 2] << 32

    def put64(self, offset: int, value: int) -> None:
        self.dwords[offset >> 2] = value & 0xFFFF_FFFF
        self.dwords[offset + 4 >> 2] = value >> 32

    def read(self, offset: int, size: int) -> int:
        """What software reads; all ones outside the block."""
        if offset < 0 or size < 1 or offset + size > REGISTER_SIZE:
            return (1 << 8 * size) - 1 if size > 0 else 0
        if size == 4 and not offset & 3:
            return self.dwords[offset >> 2]
        if size == 8 and not offset & 3:
            return self.get64(offset)
        first, last = offset >> 2, offset + size - 1 >> 2
        value = 0
        for index in range(last, first - 1, -1):
            value = value << 32 | self.dwords[index]
        return value >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Store ``value`` as far as the registers allow, then do what the store commands."""
        if size not in (4, 8) or offset & size - 1 or not 0 <= offset <= REGISTER_SIZE - size:
            return
        first = offset >> 2
        for index in range(first, first + (size >> 2)):
            half = value & 0xFFFF_FFFF
            value >>= 32
            writable = self._writable[index]
            old = self.dwords[index]
            self.dwords[index] = (old & ~writable | half & writable) & ~(half & self._clear_by_one[index])
            action = self.on_write.get(index)
            if action is not None:
                action(half)

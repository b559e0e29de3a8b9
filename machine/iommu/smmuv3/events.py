# SPDX-License-Identifier: GPL-2.0-or-later
"""Event records and the queue that carries them (IHI 0070, 7.2 to 7.4).

A record is four 64-bit words.  It is written only while the queue is enabled, not full and free of an
unacknowledged abort; otherwise it is lost, and losing one because the queue is full is an overflow.
"""

import struct
from typing import Final

from base.bits import Layout, bit, bits
from machine.iommu.smmuv3.interrupts import EVENTQ_ABT_ERR, MSI_EVENTQ_ABT_ERR, Interrupts
from machine.iommu.smmuv3.registers import (
    CR0,
    EVENTQ_BASE,
    EVENTQ_CONS,
    EVENTQ_IRQ_CFG0,
    EVENTQ_IRQ_CFG1,
    EVENTQ_IRQEN,
    EVENTQ_PROD,
    EVENTQEN,
    IRQ_CTRL,
    OVERFLOW,
    RegisterFile,
)
from machine.mmio import SystemBus

C_BAD_STREAMID: Final = 0x02
F_STE_FETCH: Final = 0x03
C_BAD_STE: Final = 0x04
F_BAD_ATS_TREQ: Final = 0x05
F_STREAM_DISABLED: Final = 0x06
F_TRANSL_FORBIDDEN: Final = 0x07
C_BAD_SUBSTREAMID: Final = 0x08
F_CD_FETCH: Final = 0x09
C_BAD_CD: Final = 0x0A
F_WALK_EABT: Final = 0x0B
F_TRANSLATION: Final = 0x10
F_ADDR_SIZE: Final = 0x11
F_ACCESS: Final = 0x12
F_PERMISSION: Final = 0x13
F_TLB_CONFLICT: Final = 0x20

EVENT_NAMES: Final = {
    0x01: "F_UUT",
    0x02: "C_BAD_STREAMID",
    0x03: "F_STE_FETCH",
    0x04: "C_BAD_STE",
    0x05: "F_BAD_ATS_TREQ",
    0x06: "F_STREAM_DISABLED",
    0x07: "F_TRANSL_FORBIDDEN",
    0x08: "C_BAD_SUBSTREAMID",
    0x09: "F_CD_FETCH",
    0x0A: "C_BAD_CD",
    0x0B: "F_WALK_EABT",
    0x10: "F_TRANSLATION",
    0x11: "F_ADDR_SIZE",
    0x12: "F_ACCESS",
    0x13: "F_PERMISSION",
    0x20: "F_TLB_CONFLICT",
    0x21: "F_CFG_CONFLICT",
    0x24: "E_PAGE_REQUEST",
    0x25: "F_VMS_FETCH",
}
"""Every event number of 7.3, also those that this unit cannot produce."""

RECORD_BYTES: Final = 32
_RECORD: Final = struct.Struct("<4Q")


class EventWord0(Layout):
    stream_id = bits(63, 32)
    substream_id = bits(31, 12)
    ssv = bit(11)
    number = bits(7, 0)


class EventWord1(Layout):
    ttrnw = bit(44)
    cls = bits(41, 40, "0 CD, 1 TT, 2 IN")
    s2 = bit(39)
    nsipa = bit(36)
    rnw = bit(35)
    ind = bit(34)
    pnu = bit(33)
    stall = bit(31)
    stag = bits(15, 0)


CLASS_CD: Final = EventWord1.pack(cls=0)
CLASS_TT: Final = EventWord1.pack(cls=1)
CLASS_IN: Final = EventWord1.pack(cls=2)
TT_READ: Final = EventWord1.pack(ttrnw=1)
STALL: Final = EventWord1.pack(stall=1)
STAGE_2: Final = EventWord1.pack(s2=1)
READ: Final = EventWord1.pack(rnw=1)
INSTRUCTION: Final = EventWord1.pack(ind=1)
PRIVILEGED: Final = EventWord1.pack(pnu=1)
FETCH_ADDRESS_BITS: Final = 0x00FF_FFFF_FFFF_FFF8
IPA_BITS: Final = 0x00FF_FFFF_FFFF_F000

Record = tuple[int, int, int, int]


SSV: Final = EventWord0.ssv.mask


def who(number: int, sid: int, ssid: int | None) -> int:
    """The first word of a record: event number, StreamID and, if there was one, SubstreamID."""
    word = number | (sid & 0xFFFF_FFFF) << 32
    return word if ssid is None else word | SSV | (ssid & 0xF_FFFF) << 12


def configuration_event(number: int, sid: int, fetch: int = 0, ssid: int | None = None) -> Record:
    """An event before translation: C_BAD_STREAMID to C_BAD_CD; ``fetch`` is the address of what a fetch aborted on.

    C_BAD_SUBSTREAMID always names the SubstreamID and has no SSV.
    """
    word = who(number, sid, ssid)
    if number == C_BAD_SUBSTREAMID:
        word &= ~SSV
    return (word, 0, 0, fetch & FETCH_ADDRESS_BITS)


class EventQueue:
    """The Event queue of the Non-secure programming interface."""

    def __init__(self, bus: SystemBus, registers: RegisterFile, interrupts: Interrupts, limit: int) -> None:
        self._bus: Final = bus
        self._registers: Final = registers
        self._interrupts: Final = interrupts
        self._limit: Final = limit
        self._base = 0
        self._wrap = 0
        self.refresh()

    def refresh(self) -> None:
        """Take over EVENTQ_BASE; a size above IDR1.EVENTQS counts as that size.  The base is size-aligned."""
        base = self._registers.read64(EVENTQ_BASE)
        log2size = min(base & 0x1F, self._limit)
        self._wrap = (2 << log2size) - 1
        self._base = base & 0x00FF_FFFF_FFFF_FFE0 & -(RECORD_BYTES << log2size)
        self.trim()

    def trim(self) -> None:
        """Drop index bits above the wrap flag, which read as zero."""
        words = self._registers.words
        words[EVENTQ_PROD] &= OVERFLOW | self._wrap
        words[EVENTQ_CONS] &= OVERFLOW | self._wrap

    def writable(self) -> bool:
        """7.2.1: enabled, not full, no unacknowledged abort."""
        words = self._registers.words
        if not words[CR0] & EVENTQEN or self._interrupts.is_active(EVENTQ_ABT_ERR):
            return False
        return words[EVENTQ_PROD] - words[EVENTQ_CONS] & self._wrap != self._wrap + 1 >> 1

    def write(self, record: Record, keeps: bool = False) -> bool:
        """Deliver ``record``; whether it reached the queue.  ``keeps``: it is not lost if it does not (no overflow)."""
        words = self._registers.words
        if not words[CR0] & EVENTQEN or self._interrupts.is_active(EVENTQ_ABT_ERR):
            return False
        wrap = self._wrap
        size = wrap + 1 >> 1
        prod, cons = words[EVENTQ_PROD], words[EVENTQ_CONS]
        used = prod - cons & wrap
        if used == size:
            if not (keeps or (prod ^ cons) & OVERFLOW):
                words[EVENTQ_PROD] = prod ^ OVERFLOW
            return False
        address = self._base + RECORD_BYTES * (prod & wrap >> 1)
        bus = self._bus
        if address + RECORD_BYTES > bus.memory.size and not bus.is_mmio(address):
            self._interrupts.activate(EVENTQ_ABT_ERR)
            return False
        bus.dma_write(address, _RECORD.pack(*record))
        prod = words[EVENTQ_PROD]
        words[EVENTQ_PROD] = prod & OVERFLOW | (prod & wrap) + 1 & wrap
        if not used and words[IRQ_CTRL] & EVENTQ_IRQEN:
            message = self._registers.read64(EVENTQ_IRQ_CFG0)
            self._interrupts.signal("eventq", message, words[EVENTQ_IRQ_CFG1], MSI_EVENTQ_ABT_ERR)
        return True

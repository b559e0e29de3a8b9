# SPDX-License-Identifier: GPL-2.0-or-later
"""Page requests of devices (IHI 0070, 4.5.2 and 8): the PRI queue and the responses.

A request that the queue cannot take is answered by the unit itself: "failure" while the queue is off or has aborted,
"success" when it overflows, so that the device tries again.
"""

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from base.bits import Layout, bit, bits
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.interrupts import MSI_PRIQ_ABT_ERR, PRIQ_ABT_ERR, Interrupts
from machine.iommu.smmuv3.invalidation import CERROR_ILL, HandlerTable
from machine.iommu.smmuv3.registers import (
    CR0,
    IRQ_CTRL,
    OVERFLOW,
    PRIQ_BASE,
    PRIQ_CONS,
    PRIQ_IRQ_CFG0,
    PRIQ_IRQ_CFG1,
    PRIQ_IRQ_CFG2,
    PRIQ_IRQEN,
    PRIQ_PROD,
    PRIQEN,
    SMMUEN,
    RegisterFile,
)
from machine.mmio import SystemBus

SUCCESS: Final = 0b0000
INVALID: Final = 0b0001
FAILURE: Final = 0b1111
"""Response codes (8.3)."""

_CODES: Final = (FAILURE, INVALID, SUCCESS)
"""By CMD_PRI_RESP.Resp."""
_RESERVED: Final = 3
_PPR_BYTES: Final = 16
_PPR: Final = struct.Struct("<2Q")
_ON_LAST: Final = 1 << 31
"""PRIQ_IRQ_CFG2.LO: interrupt for the last request of a group rather than for a queue that fills."""


class Ppr0(Layout):
    """First word of a PRI queue entry (8.2)."""

    ssv = bit(63)
    last = bit(62)
    write = bit(61)
    read = bit(60)
    execute = bit(59)
    privileged = bit(58)
    substream_id = bits(51, 32)
    stream_id = bits(31, 0)


class PageRequest(NamedTuple):
    sid: int
    iova: int
    group: int
    """PRG index, 9 bits."""
    read: bool = True
    write: bool = False
    last: bool = True
    pasid: int | None = None


class PageResponse(NamedTuple):
    """What the device gets for a group; ``automatic``: software did not say so."""

    sid: int
    group: int
    code: int
    pasid: int | None = None
    automatic: bool = False


class PriQueue:
    """The PRI queue of one unit.  ``listener`` gets every response."""

    def __init__(self, bus: SystemBus, registers: RegisterFile, interrupts: Interrupts, config: Smmuv3Config) -> None:
        self._bus: Final = bus
        self._registers: Final = registers
        self._interrupts: Final = interrupts
        self._config: Final = config
        self._wrap = 1
        self._base = 0
        self.listener: Callable[[PageResponse], None] | None = None
        if config.pri:
            self.refresh()

    def refresh(self) -> None:
        """Take over PRIQ_BASE; a size above IDR1.PRIQS counts as that size.  The base is size-aligned."""
        base = self._registers.read64(PRIQ_BASE)
        log2size = min(base & 0x1F, self._config.priq_log2)
        self._wrap = (2 << log2size) - 1
        self._base = base & 0x00FF_FFFF_FFFF_FFE0 & -(_PPR_BYTES << log2size)
        self.trim()

    def trim(self) -> None:
        """Drop index bits above the wrap flag, which read as zero."""
        words = self._registers.words
        words[PRIQ_PROD] &= OVERFLOW | self._wrap
        words[PRIQ_CONS] &= OVERFLOW | self._wrap

    def request(self, request: PageRequest) -> bool:
        """A page request message arrives; whether it reached the queue."""
        words = self._registers.words
        enabled = self._config.pri and words[CR0] & PRIQEN and words[CR0] & SMMUEN
        if not enabled or self._interrupts.is_active(PRIQ_ABT_ERR):
            self._respond(PageResponse(request.sid, request.group, FAILURE, None, True))
            return False
        wrap = self._wrap
        size = wrap + 1 >> 1
        prod, cons = words[PRIQ_PROD], words[PRIQ_CONS]
        used = prod - cons & wrap
        if used == size or (prod ^ cons) & OVERFLOW:
            if not (prod ^ cons) & OVERFLOW:
                words[PRIQ_PROD] = prod ^ OVERFLOW
            if request.last:
                self._respond(PageResponse(request.sid, request.group, SUCCESS, request.pasid, True))
            return False
        address = self._base + _PPR_BYTES * (prod & wrap >> 1)
        if address + _PPR_BYTES > self._bus.memory.size and not self._bus.is_mmio(address):
            self._interrupts.activate(PRIQ_ABT_ERR)
            self._respond(PageResponse(request.sid, request.group, FAILURE, None, True))
            return False
        self._bus.dma_write(address, _PPR.pack(*_entry(request)))
        prod = words[PRIQ_PROD]
        words[PRIQ_PROD] = prod & OVERFLOW | (prod & wrap) + 1 & wrap
        wanted = request.last if words[PRIQ_IRQ_CFG2] & _ON_LAST else not used
        if wanted and words[IRQ_CTRL] & PRIQ_IRQEN:
            message = self._registers.read64(PRIQ_IRQ_CFG0)
            self._interrupts.signal("priq", message, words[PRIQ_IRQ_CFG1], MSI_PRIQ_ABT_ERR)
        return True

    def commands(self) -> HandlerTable:
        """CMD_PRI_RESP."""
        return {0x41: ("CMD_PRI_RESP", self._pri_resp)}

    def _pri_resp(self, low: int, high: int) -> int:
        response = high >> 12 & 3
        if response == _RESERVED:
            return CERROR_ILL
        if self._registers.words[CR0] & SMMUEN:
            pasid = low >> 12 & 0xF_FFFF if low & 1 << 11 and self._config.ssid_bits else None
            self._respond(PageResponse(low >> 32, high & 0x1FF, _CODES[response], pasid))
        return 0

    def _respond(self, response: PageResponse) -> None:
        if self.listener is not None:
            self.listener(response)


def _entry(request: PageRequest) -> tuple[int, int]:
    low = Ppr0.pack(
        stream_id=request.sid & 0xFFFF_FFFF,
        read=request.read,
        write=request.write,
        last=request.last,
        ssv=request.pasid is not None,
        substream_id=(request.pasid or 0) & 0xF_FFFF,
    )
    return low, request.iova & 0xFFFF_FFFF_FFFF_F000 | request.group & 0x1FF

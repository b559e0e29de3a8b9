# SPDX-License-Identifier: GPL-2.0-or-later
"""The Command queue: its consumption and its errors (IHI 0070, 4.1, 4.2, 4.7.3 and 7.1).

Commands take effect in order, at once, and are complete when consumed.  The first one that is illegal or cannot
be read stops the queue with CMDQ_CONS pointing at it, until software acknowledges GERROR.CMDQ_ERR.
"""

from collections import defaultdict
from typing import Final

from base.bits import Layout, bits
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.interrupts import CMDQ_ERR, MSI_CMDQ_ABT_ERR, Interrupts
from machine.iommu.smmuv3.invalidation import CERROR_ILL, HandlerTable
from machine.iommu.smmuv3.registers import (
    CMDQ_BASE,
    CMDQ_CONS,
    CMDQ_PROD,
    CMDQEN,
    CR0,
    GERROR,
    GERRORN,
    SMMUEN,
    RegisterFile,
)
from machine.iommu.smmuv3.streams import StreamTable
from machine.memory import PhysicalMemory

CERROR_ABT: Final = 2
CERROR_ATC_INV_SYNC: Final = 3
_ERR_SHIFT: Final = 24

CMD_SYNC: Final = 0x46
_OK: Final = 0
_CS: Final = 3 << 12
"""CMD_SYNC.CS: how completion is signalled; 0 not at all."""
_SSEC: Final = 1 << 10
_SIG_IRQ: Final = 1
_SIG_SEV: Final = 2
_SIG_RESERVED: Final = 3
_SYNC_ROW: Final = ("CMD_SYNC", None)


class Sync0(Layout):
    """First word of CMD_SYNC (4.7.3); the second is MSIAddress, bits 55:2."""

    msidata = bits(63, 32)
    msiattr = bits(27, 24)
    msh = bits(23, 22)
    cs = bits(13, 12)
    opcode = bits(7, 0)


SYNC_ADDRESS: Final = 0x00FF_FFFF_FFFF_FFFC


class CommandQueue:
    """The Command queue of the Non-secure programming interface.

    ``executed`` counts consumed commands by the manual's name.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        registers: RegisterFile,
        config: Smmuv3Config,
        interrupts: Interrupts,
        streams: StreamTable,
        handlers: HandlerTable,
        executed: defaultdict[str, int],
    ) -> None:
        self._words: Final = memory.words
        self._last_word: Final = len(memory.words) - 1
        self._registers: Final = registers
        self._config: Final = config
        self._interrupts: Final = interrupts
        self._streams: Final = streams
        self._executed: Final = executed
        self._msi_address: Final = SYNC_ADDRESS & (1 << config.oas) - 1 if config.msi else 0
        self._handlers: Final = self._table() | handlers
        self._running = False
        self._base = 0
        self._wrap = 0
        self.refresh()

    def _table(self) -> HandlerTable:
        """The commands of the queue itself, beside ``handlers``; any other opcode is CERROR_ILL.

        CMD_SYNC has no handler: signalling its completion is a step of the queue, after CONS has moved on.
        Absent are the commands of features that the ID registers deny, and those of Secure state, MPAM and
        device permission tables.
        """
        return {
            0x01: ("CMD_PREFETCH_CONFIG", self._prefetch_config),
            0x02: ("CMD_PREFETCH_ADDR", self._prefetch_addr),
            CMD_SYNC: _SYNC_ROW,
        }

    def fail_next_sync(self) -> None:
        """An invalidation of a device's cache was not answered: the next CMD_SYNC stops there (3.9.1.5)."""
        self._handlers[CMD_SYNC] = ("CMD_SYNC", self._fail_sync)

    @property
    def next_sync_fails(self) -> bool:
        return self._handlers[CMD_SYNC] is not _SYNC_ROW

    def restore(self, next_sync_fails: bool) -> None:
        """Take over the registers of a snapshot, and what it knew of unanswered invalidations."""
        self._handlers[CMD_SYNC] = _SYNC_ROW
        if next_sync_fails:
            self.fail_next_sync()
        self.refresh()

    def _fail_sync(self, low: int, high: int) -> int:
        self._handlers[CMD_SYNC] = _SYNC_ROW
        return CERROR_ATC_INV_SYNC

    def refresh(self) -> None:
        """Take over CMDQ_BASE; a size above IDR1.CMDQS counts as that size.  The base is size-aligned."""
        base = self._registers.read64(CMDQ_BASE)
        log2size = min(base & 0x1F, self._config.cmdq_log2)
        self._wrap = (2 << log2size) - 1
        self._base = base & 0x00FF_FFFF_FFFF_FFE0 & -(16 << log2size)
        self.trim()

    def trim(self) -> None:
        """Drop index bits above the wrap flag, which read as zero."""
        words = self._registers.words
        words[CMDQ_PROD] &= self._wrap
        words[CMDQ_CONS] &= self._wrap | 0x7F << _ERR_SHIFT

    def kick(self, prod: int) -> None:
        """A write of CMDQ_PROD."""
        self._registers.words[CMDQ_PROD] = prod & self._wrap
        self.run()

    def run(self) -> None:
        """Consume until the queue is empty, in error or disabled.

        A CMD_SYNC may interrupt software which queues more, or write to this very unit; one kick consumes at
        most twice the queue's size, so that commands which keep queueing themselves come to a rest.
        """
        if self._running:
            return
        self._running = True
        registers = self._registers.words
        try:
            budget = self._wrap + 1
            while budget > 0 and registers[CMDQ_CONS] != registers[CMDQ_PROD]:
                consumed = self._drain(budget)
                if not consumed:
                    break
                budget -= consumed
        finally:
            self._running = False

    def _drain(self, budget: int) -> int:
        """Consume up to and including the next CMD_SYNC that signals; its length, 0 if there is no more."""
        registers = self._registers.words
        if not registers[CR0] & CMDQEN or (registers[GERROR] ^ registers[GERRORN]) & CMDQ_ERR:
            return 0
        wrap = self._wrap
        cons = registers[CMDQ_CONS] & wrap
        prod = registers[CMDQ_PROD] & wrap
        words = self._words
        handlers = self._handlers
        executed = self._executed
        first = self._base >> 3
        last_word = self._last_word
        entries = wrap >> 1
        consumed = 0
        while cons != prod and consumed < budget:
            at = first + (cons & entries) * 2
            if at >= last_word:
                self._stop(cons, CERROR_ABT)
                return 0
            low = words[at]
            row = handlers.get(low & 0xFF)
            if row is None:
                self._stop(cons, CERROR_ILL)
                return 0
            name, handler = row
            following = cons + 1 & wrap
            if handler is not None:
                error = handler(low, words[at + 1])
            elif low & _CS:
                registers[CMDQ_CONS] = following
                error = self._signal(low, words[at + 1])
            else:
                error = _OK
            if error:
                self._stop(cons, error)
                return 0
            executed[name] += 1
            consumed += 1
            if handler is None and low & _CS:
                return consumed
            cons = following
        registers[CMDQ_CONS] = cons
        return 0

    def _stop(self, cons: int, error: int) -> None:
        """7.1: the reason and the position first, then the global error."""
        self._registers.words[CMDQ_CONS] = cons | error << _ERR_SHIFT
        self._interrupts.activate(CMDQ_ERR)

    def _prefetch_config(self, low: int, high: int) -> int:
        """4.2.1: the STE is cached as a transaction would; nothing is reported (7.2)."""
        if low & _SSEC:
            return CERROR_ILL
        if self._registers.words[CR0] & SMMUEN:
            self._streams.lookup(low >> 32)
        return _OK

    def _prefetch_addr(self, low: int, high: int) -> int:
        """4.2.2: an implementation need not prefetch anything."""
        return CERROR_ILL if low & _SSEC else _OK

    def _signal(self, low: int, high: int) -> int:
        """4.7.3: everything before a CMD_SYNC is complete already; what is left is its signal."""
        signal = low >> 12 & 3
        if signal == _SIG_IRQ:
            self._interrupts.signal("cmdq-sync", high & self._msi_address, low >> 32, MSI_CMDQ_ABT_ERR)
        elif signal == _SIG_SEV:
            if self._config.sev:
                self._interrupts.pulse("sev")
        elif signal == _SIG_RESERVED:
            return CERROR_ILL
        return _OK

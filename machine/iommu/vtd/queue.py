# SPDX-License-Identifier: GPL-2.0-or-later
"""The invalidation queue (VT-d specification 6.5.2): a ring of descriptors in memory, 128 or 256 bits wide.

Software writes descriptors and moves IQT; the unit executes from IQH up to it, within that write.  A descriptor
it cannot accept stops the queue with FSTS.IQE set and IQH pointing at it, until software clears IQE.  A device that
does not answer stops it with FSTS.ITE.  Wide descriptors say everything in their lower half.
"""

from collections.abc import Callable
from typing import Final

from machine.iommu.unit import Counters
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.faults import EventMessage, FaultLog
from machine.iommu.vtd.invalidation import Invalidation
from machine.iommu.vtd.registers import (
    FSTS,
    ICE,
    ICS,
    IQA,
    IQA_DW,
    IQE,
    IQERCD,
    IQH,
    IQT,
    ITE,
    IWC,
    RegisterFile,
)
from machine.memory import PhysicalMemory

# IQERCD.IQEI: what was wrong (11.4.9.9).
BAD_TAIL: Final = 1
FETCH_FAILED: Final = 2
BAD_TYPE: Final = 3
RESERVED_FIELD: Final = 4
SOFTWARE_RAN: Final = -1
"""Not a code: the descriptor is done, and a message that it caused may have made software change any register."""

TYPE: Final = 0xE0F
"""Descriptor type: bits 11:9 and 3:0."""
CONTEXT_CACHE: Final = 1
IOTLB: Final = 2
INTERRUPT_ENTRY: Final = 4
WAIT: Final = 5

CONTEXT_RESERVED_LOW: Final = 0xFFFC_0000_0000_FFC0
IOTLB_RESERVED_LOW: Final = 0xFFFF_FFFF_0000_FF00
IOTLB_RESERVED_HIGH: Final = 0x0000_0000_0000_0F80
INTERRUPT_ENTRY_RESERVED_LOW: Final = 0xFFFF_0000_07FF_FFE0
WAIT_RESERVED_LOW: Final = 0x0000_0000_FFFF_FF80
WAIT_RESERVED_HIGH: Final = 0x3
WAIT_IF: Final = 1 << 4
WAIT_SW: Final = 1 << 5

ITESID: Final = 0xFFFF
ICESID: Final = 0xFFFF << 16
"""Fields of the upper word of IQERCD: the devices of the last time-out and the last completion error."""

STOPPED: Final = IQE | ITE
"""FSTS: nothing is fetched while one of these is set."""

_IQH: Final = IQH >> 2
_IQT: Final = IQT >> 2
_FSTS: Final = FSTS >> 2


class InvalidationQueue:
    """The queue and its registers.  ``enabled`` follows GSTS.QIES."""

    def __init__(
        self,
        config: VtdConfig,
        registers: RegisterFile,
        memory: PhysicalMemory,
        invalidation: Invalidation,
        faults: FaultLog,
        completion: EventMessage,
        counters: Counters,
    ) -> None:
        self._registers: Final = registers
        self._dwords: Final = registers.dwords
        self._memory: Final = memory
        self._words: Final = memory.words
        self._touched: Final = memory.touched
        self._last_word: Final = len(memory.words) - 1
        self._invalidation: Final = invalidation
        self._faults: Final = faults
        self._completion: Final = completion
        self._commands: Final = counters.commands
        no_did = 0xFFFF_0000 & ~((1 << config.domain_id_bits) - 1 << 16)
        self._context_reserved_low: Final = CONTEXT_RESERVED_LOW | no_did
        self._iotlb_reserved_low: Final = IOTLB_RESERVED_LOW | no_did
        self.actions: Final[dict[int, Callable[[int, int], int]]] = {
            CONTEXT_CACHE: self._context_cache,
            IOTLB: self._iotlb,
            INTERRUPT_ENTRY: self._interrupt_entry,
            WAIT: self._wait,
        }
        self.enabled = False
        self.base = 0
        """Address of the ring, latched from IQA when the queue was enabled."""
        self.size = 0
        """Bytes of the ring."""
        self.wide = False
        """Whether descriptors are 256 bits wide."""
        self.missing: int | None = None
        """The device whose completion is overdue."""
        self._running = False
        registers.on_write[_IQT] = self.run
        registers.on_write[_FSTS] = self._status_written
        registers.on_write[ICS >> 2] = self._completion_status_written

    def enable(self) -> None:
        """GCMD.QIE rose: take over IQA and start at the first slot."""
        iqa = self._registers.get64(IQA)
        self.base = iqa & ~0xFFF
        self.size = 0x1000 << (iqa & 7)
        self.wide = bool(iqa & IQA_DW)
        self._registers.dwords[_IQH] = 0
        self.enabled = True
        self.run(0)

    def disable(self) -> None:
        self.enabled = False
        self._registers.dwords[_IQH] = 0

    def run(self, value: int) -> None:
        """Execute what lies between IQH and IQT."""
        if self._running:
            return  # a completion message made software write IQT; the loop below will see it
        self._running = True
        dwords = self._dwords
        try:
            while (head := dwords[_IQH]) != (tail := dwords[_IQT]) and self.enabled and not dwords[_FSTS] & STOPPED:
                execute = self._execute_wide if self.wide else self._execute
                error = execute(head, tail) if tail < self.size else BAD_TAIL
                if error > 0:
                    rejected = self._pending()
                    self._stop(error)
                    if self._pending() == rejected:
                        break  # the fault event made software clear IQE, but repair nothing
        finally:
            self._running = False

    def _execute(self, head: int, tail: int) -> int:
        """Execute from ``head`` until ``tail`` (0), a wait that let software in, or an IQEI code."""
        dwords, words, actions = self._dwords, self._words, self.actions
        base, size, last_word = self.base, self.size, self._last_word
        while head != tail:
            index = base + head >> 3
            if index >= last_word:
                return FETCH_FAILED
            low = words[index]
            action = actions.get(low & TYPE)
            if action is None:
                return BAD_TYPE
            following = head + 16
            if following >= size:
                following = 0
            dwords[_IQH] = following
            outcome = action(low, words[index + 1])
            if outcome:
                if outcome > 0:
                    dwords[_IQH] = head
                return outcome
            head = following
        return 0

    def _execute_wide(self, head: int, tail: int) -> int:
        """One 256-bit descriptor: its lower half is a 128-bit one, its upper half is reserved."""
        index = self.base + head >> 3
        if tail & 16:
            return BAD_TAIL
        if index >= self._last_word:
            return FETCH_FAILED
        if self._words[index + 2] or self._words[index + 3]:
            return RESERVED_FIELD
        outcome = self._execute(head, head + 16)
        if outcome <= 0 and self._dwords[_IQH] == (head + 16) % self.size:
            self._dwords[_IQH] = (head + 32) % self.size
        return outcome

    def _pending(self) -> tuple[int, ...]:
        """What the queue would execute next."""
        head, tail = self._dwords[_IQH], self._dwords[_IQT]
        index = self.base + head >> 3
        descriptor = self._words[index : index + (4 if self.wide else 2)].tolist() if index < self._last_word else ()
        return (head, tail, self.base, self.size, self.wide, *descriptor)

    def _stop(self, error: int) -> None:
        self._dwords[IQERCD >> 2] = error
        self._faults.report(IQE)

    def _status_written(self, value: int) -> None:
        """FSTS was written: go on once nothing stops the queue, and forget the details of what is over."""
        dwords = self._dwords
        status = dwords[_FSTS]
        if not status & IQE:
            dwords[IQERCD >> 2] = 0
        dwords[IQERCD + 4 >> 2] &= (ITESID if status & ITE else 0) | (ICESID if status & ICE else 0)
        self._faults.conditions_cleared()
        self.run(0)

    def _completion_status_written(self, value: int) -> None:
        if not self._registers.dwords[ICS >> 2] & IWC:
            self._completion.withdraw()

    # Device TLBs (6.5.2.10): completions that went wrong.

    def completion_error(self, sid: int) -> None:
        """A device answered what nobody asked."""
        dwords = self._dwords
        dwords[IQERCD + 4 >> 2] = dwords[IQERCD + 4 >> 2] & ITESID | sid << 16
        self._faults.report(ICE)

    def completion_missing(self, sid: int) -> None:
        """A device does not answer: what waits next times out, or the queue at once if it has nothing else to do."""
        self.wait_for(sid)
        if self._dwords[_IQH] == self._dwords[_IQT]:
            self._time_out(0, 0)

    def wait_for(self, sid: int | None) -> None:
        """Let wait descriptors time out because of device ``sid``; ``None``: let them complete."""
        self.missing = sid
        self.actions[WAIT] = self._wait if sid is None else self._time_out

    def _time_out(self, low: int, high: int) -> int:
        """Stands in for a wait descriptor, which it aborts."""
        dwords = self._dwords
        dwords[IQERCD + 4 >> 2] = dwords[IQERCD + 4 >> 2] & ICESID | (self.missing or 0)
        self.wait_for(None)
        self._commands["time-out"] += 1
        self._faults.report(ITE)
        return SOFTWARE_RAN

    # One method per descriptor type (6.5.2.1 ff.): the two words in, 0, SOFTWARE_RAN or an IQEI code out.

    def _context_cache(self, low: int, high: int) -> int:
        if low & self._context_reserved_low or high:
            return RESERVED_FIELD
        used = self._invalidation.context_cache(low >> 4 & 3, low >> 16 & 0xFFFF, low >> 32 & 0xFFFF, low >> 48)
        return 0 if used else RESERVED_FIELD

    def _iotlb(self, low: int, high: int) -> int:
        if low & self._iotlb_reserved_low or high & IOTLB_RESERVED_HIGH:
            return RESERVED_FIELD
        return 0 if self._invalidation.iotlb(low >> 4 & 3, low >> 16 & 0xFFFF, high) else RESERVED_FIELD

    def _interrupt_entry(self, low: int, high: int) -> int:
        if low & INTERRUPT_ENTRY_RESERVED_LOW or high:
            return RESERVED_FIELD
        self._commands["interrupt-entry"] += 1
        return 0

    def _wait(self, low: int, high: int) -> int:
        """Every earlier descriptor is complete: store the status word, set IWC.

        Status goes to RAM; a status address without RAM behind it loses the store, as on the bus.
        """
        if low & WAIT_RESERVED_LOW or high & WAIT_RESERVED_HIGH:
            return RESERVED_FIELD
        if low & WAIT_SW and (index := high >> 3) <= self._last_word:
            if not self._touched[high >> 12]:
                self._memory.touch(high >> 12)
            words = self._words
            if high & 4:
                words[index] = words[index] & 0xFFFF_FFFF | low & 0xFFFF_FFFF_0000_0000
            else:
                words[index] = words[index] & 0xFFFF_FFFF_0000_0000 | low >> 32
        self._commands["wait"] += 1
        if low & WAIT_IF:
            dwords = self._dwords
            if not dwords[ICS >> 2] & IWC:
                dwords[ICS >> 2] |= IWC
                self._completion.signal()
                return SOFTWARE_RAN
        return 0

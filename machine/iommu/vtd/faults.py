# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults (VT-d specification chapter 7): the fault recording registers, and event messages.

Primary fault logging (7.2): a fault goes into the next fault recording register.  If that one still holds an
unread fault the unit sets FSTS.PFO and records nothing more until software clears it.  A fault event (7.3) is
sent for the first condition that appears in FSTS, not for those that join it.
"""

from typing import Final

from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.registers import (
    FAULT_STATUS,
    FECTL,
    FRI_MASK,
    FRI_SHIFT,
    FSTS,
    IM,
    IP,
    PFO,
    PPF,
    RECORD_F,
    RegisterFile,
)
from machine.mmio import SystemBus


class EventMessage:
    """A control, data, address and upper address register, and the 4-byte write they describe (7.3)."""

    def __init__(self, registers: RegisterFile, bus: SystemBus, control: int) -> None:
        self._registers: Final = registers
        self._bus: Final = bus
        self._control: Final = control >> 2
        registers.on_write[self._control] = self._control_written

    def signal(self) -> None:
        """The event happened: send its message, or keep it pending (IP) while software masks it (IM)."""
        self._registers.dwords[self._control] |= IP
        self._control_written(0)

    def withdraw(self) -> None:
        """Software has serviced every reason for the event: a pending message is no longer due."""
        self._registers.dwords[self._control] &= ~IP

    def _control_written(self, value: int) -> None:
        control, dwords = self._control, self._registers.dwords
        if dwords[control] & (IM | IP) == IP:
            dwords[control] &= ~IP
            address = dwords[control + 3] << 32 | dwords[control + 2]
            self._bus.dma_write(address, dwords[control + 1].to_bytes(4, "little"))


class FaultLog:
    """The fault recording registers, FSTS, and the fault event."""

    def __init__(self, config: VtdConfig, registers: RegisterFile, bus: SystemBus) -> None:
        self._registers: Final = registers
        self._first: Final = config.fault_record_offset >> 2
        self._count: Final = config.fault_records
        self._collapse: Final = config.collapse_faults
        self._event: Final = EventMessage(registers, bus, FECTL)
        self.next = 0
        """The fault recording register that the next fault goes into."""
        for record in range(config.fault_records):
            registers.on_write[self._first + 4 * record + 3] = self._record_written

    def record(self, sid: int, iova: int, write: bool, code: int, more: int = 0) -> tuple[int, ...]:
        """Record a fault; returns the 128-bit record as two words, empty if it was not recorded.

        ``more``: what else the upper word has to say, in place: PASID 59:40, AT 61:60, PP 31, PRIV 30.
        """
        dwords = self._registers.dwords
        status = dwords[FSTS >> 2]
        if status & PFO:
            return ()
        first = self._first
        if status & PPF and self._collapse:
            for at in range(first, first + 4 * self._count, 4):
                if dwords[at + 3] & RECORD_F and dwords[at + 2] & 0xFFFF == sid & 0xFFFF:
                    return ()
        at = first + 4 * self.next
        if dwords[at + 3] & RECORD_F:
            self.report(PFO)
            return ()
        page = iova & 0xFFFF_FFFF_FFFF_F000
        dwords[at] = page & 0xFFFF_FFFF
        dwords[at + 1] = page >> 32
        dwords[at + 2] = sid & 0xFFFF | more & 0xFFFF_FFFF
        dwords[at + 3] = RECORD_F | (0 if write else 1 << 30) | code | more >> 32
        words = (page, dwords[at + 3] << 32 | dwords[at + 2])
        if not status & PPF:
            dwords[FSTS >> 2] = status & ~FRI_MASK | self.next << FRI_SHIFT
        self.next = (self.next + 1) % self._count
        self.report(PPF)
        return words

    def report(self, condition: int) -> None:
        """Set a bit of FSTS, and signal the fault event if it is the only condition there."""
        dwords = self._registers.dwords
        status = dwords[FSTS >> 2]
        dwords[FSTS >> 2] = status | condition
        if not status & FAULT_STATUS:
            self._event.signal()

    def conditions_cleared(self) -> None:
        """Software cleared something: with the last condition in FSTS gone, a pending event goes as well (7.3)."""
        if not self._registers.dwords[FSTS >> 2] & FAULT_STATUS:
            self._event.withdraw()

    def _record_written(self, value: int) -> None:
        """F of a record may have been cleared: PPF is the logical or of all F."""
        dwords = self._registers.dwords
        if max(dwords[self._first + 3 : self._first + 4 * self._count : 4]) < RECORD_F:  # F is the uppermost bit
            dwords[FSTS >> 2] &= ~PPF
            self.conditions_cleared()

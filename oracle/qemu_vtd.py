# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's ``intel-iommu`` as a hardware half: the registers and translations of :class:`machine.iommu.unit.IommuUnit`.

Registers are QEMU's own, read and written over qtest, with one exception: the fault event's mask (FECTL.IM) stays set
inside QEMU, whose interrupt messages would go to its own sleeping processor.  What software wrote to FECTL is kept
here, and the message is sent on the machine's bus when QEMU has recorded a fault and software lets it.

A translation is a DMA of the edu device whose requester id is asked for (:mod:`oracle.dma_probe`).
"""

from collections.abc import Sequence
from typing import Final

from machine.iommu.unit import Fault
from machine.mmio import SystemBus
from oracle import qtest
from oracle.dma_probe import Mailbox, Prober
from oracle.qemu_pc import IOMMU_BASE, Pc

FSTS: Final = 0x34
FECTL: Final = 0x38
FEDATA: Final = 0x3C
FEADDR: Final = 0x40
FEUADDR: Final = 0x44
CAP: Final = 0x08
PPF: Final = 1 << 1
F: Final = 1 << 31
"""The record is valid, in the topmost 32 bits of the fault recording register; write 1 to clear."""
IM: Final = 1 << 31
IP: Final = 1 << 30
SILENT: Final = 0
"""Fault code of an access that went nowhere and left no record."""


class QemuVtdUnit:
    """The unit of the machine ``pc``.  ``mailboxes``: where each requester id may always write."""

    def __init__(self, name: str, bus: SystemBus, pc: Pc) -> None:
        self.name: Final = name
        self.register_size: Final = 0x1000
        self.mailboxes: Final[dict[int, Mailbox]] = {}
        self.seen = True
        self._bus: Final = bus
        self._pc: Final = pc
        self._ask: Final = pc.connection.ask
        self._post: Final = pc.connection.post
        self._fectl = IM
        self._message: Final = dict.fromkeys((FEDATA, FEADDR, FEUADDR), 0)
        """What software wrote to these registers."""
        self._known: Final[dict[tuple[int, int], int]] = {}
        """Registers by (offset, size) as they were read after the last DMA; nothing has happened since."""
        record = (self.read(CAP, 8) >> 24 & 0x3FF) * 16
        self._record: Final = record
        self._status: Final = ((FSTS, 4), (record, 8), (record + 8, 8))
        self._prober: Final = Prober(
            pc.connection,
            pc.ram,
            [qtest.read(IOMMU_BASE + offset, size) for offset, size in self._status],
            lambda answers: bool(answers[0] & PPF),
            self.discard,
        )

    # Registers.

    def read(self, offset: int, size: int) -> int:
        if offset == FECTL and size == 4:
            return self._fectl
        known = self._known.get((offset, size))
        return self._ask((qtest.read(IOMMU_BASE + offset, size),))[0] if known is None else known

    def write(self, offset: int, size: int, value: int) -> None:
        self._known.clear()
        if offset == FECTL and size == 4:
            self._fectl = self._fectl & IP | value & IM
            self._signal()
            return
        if offset in self._message:
            self._message[offset] = value
        self._post((qtest.write(IOMMU_BASE + offset, size, value),))

    def write_and_read(self, offset: int, size: int, value: int, then: Sequence[tuple[int, int]]) -> list[int]:
        self._known.clear()
        requests = [qtest.write(IOMMU_BASE + offset, size, value)]
        requests += [qtest.read(IOMMU_BASE + register, width) for register, width in then]
        return self._ask(requests)[1:]

    def event(self) -> None:
        """FSTS became non-zero: tell software the way FECTL says."""
        self._fectl |= IP
        self._signal()

    def _signal(self) -> None:
        if self._fectl & (IM | IP) != IP:
            return
        self._fectl &= ~IP
        address = self._message[FEUADDR] << 32 | self._message[FEADDR]
        self._bus.dma_write(address, self._message[FEDATA].to_bytes(4, "little"))

    # Translation.

    def probe(self, sid: int, iova: int, write: bool, expected: Sequence[int], guesses: Sequence[int]) -> int | Fault:
        """Send an 8-byte access; where it went, or the fault.

        ``expected`` and ``guesses`` are the machine addresses that it may well reach, which makes finding out cheap.
        """
        self._known.clear()
        edu = self._pc.devices[sid]
        if write:
            landed = self._prober.write(edu, iova, expected, guesses)
        else:
            landed = self._prober.read(edu, iova, expected, guesses, self.mailboxes.get(sid))
        self.seen = landed.seen
        if landed.status is None:
            if landed.maddr is not None:
                return landed.maddr
            return Fault(self.name, sid, iova, write, SILENT, "nothing arrived and nothing was recorded")
        self._known.update(zip(self._status, landed.status))
        _, low, high = landed.status
        return Fault(self.name, sid, iova, write, high >> 32 & 0xFF, "fault recorded", (low, high))

    def probe_together(self, accesses: Sequence[tuple[int, int, bool, int]]) -> list[bool] | None:
        """Accesses (requester, address, write, expected place) at the same moment: whether each arrived.

        ``None`` if one was blocked.  Every requester occurs once and has a mailbox.
        """
        self._known.clear()
        self.seen = True
        return self._prober.together(
            [(self._pc.devices[sid], iova, write, place, self.mailboxes[sid]) for sid, iova, write, place in accesses]
        )

    def discard(self) -> None:
        """Clear the fault record behind software's back."""
        self._known.clear()
        self._post((qtest.write(IOMMU_BASE + self._record + 12, 4, F),))

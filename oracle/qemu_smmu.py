# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's SMMUv3 as a hardware half (:class:`oracle.lockstep.Model`).

Its registers are reached over qtest.  Its events arrive in the event queue in shared RAM, in the very slot in which
our own half has just written the event of the same access; the slot is cleared in between, so that what is found
there afterwards is QEMU's.  Interrupts of this unit are wires; whoever listens is called when an event arrived.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import Final

from machine.iommu.unit import Fault
from oracle import qtest
from oracle.dma_probe import Mailbox, Prober
from oracle.qemu_virt import SMMU_BASE, Virt

EVENTQ_BASE: Final = 0xA0
EVENTQ_PROD: Final = 0x1_00A8
EVENTQ_CONS: Final = 0x1_00AC
_GERROR: Final = 0x60
_GERRORN: Final = 0x64
_STATUS: Final = (EVENTQ_PROD, _GERROR, _GERRORN)
"""What software reads about an access."""
EVENT_WORDS: Final = 4
SIZE: Final = 4
"""Bytes of a probe: QEMU takes a larger access that fails apart and reports each part."""
SILENT: Final = 0
"""Event number of an access that went nowhere and left no event."""
_ADDRESS: Final = 0x000F_FFFF_FFFF_FFE0
_NO_EVENT: Final = memoryview(array("Q", [0] * EVENT_WORDS))


class QemuSmmuUnit:
    """The unit of the machine ``virt``.  ``mailboxes``: where each stream may always write.

    ``identify(offset, value)`` may change what identification registers say to software.
    """

    def __init__(self, name: str, virt: Virt, identify: Callable[[int, int], int]) -> None:
        self.name: Final = name
        self.mailboxes: Final[dict[int, Mailbox]] = {}
        self.seen = True
        self.on_event: Callable[[], None] = lambda: None
        self._virt: Final = virt
        self._memory: Final = virt.ram.memory
        self._ask: Final = virt.connection.ask
        self._post: Final = virt.connection.post
        self._identify: Final = identify
        self._queue = 0
        """EVENTQ_BASE as software wrote it."""
        self._prod = 0
        """EVENTQ_PROD as it was seen last."""
        self.settled_prod = 0
        """The same before the last access."""
        self._known: Final[dict[int, int]] = {}
        """Registers as they were read last; nothing has happened since that could change them."""
        self._prober: Final = Prober(
            virt.connection,
            virt.ram,
            [qtest.read(SMMU_BASE + offset, 4) for offset in _STATUS],
            lambda answers: answers[0] != self._prod,
            self.discard,
            SIZE,
        )

    # Registers.

    def read(self, offset: int, size: int) -> int:
        known = self._known.get(offset) if size == 4 else None
        value = self._ask((qtest.read(SMMU_BASE + offset, size),))[0] if known is None else known
        if offset == EVENTQ_PROD:
            self._prod = value
        return self._identify(offset, value) if offset < 0x20 else value

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == EVENTQ_BASE and size == 8:
            self._queue = value
        elif offset == EVENTQ_PROD:
            self._prod = value
        if offset != EVENTQ_CONS:  # which changes nothing else
            self._known.clear()
        self._post((qtest.write(SMMU_BASE + offset, size, value),))

    def write_and_read(self, offset: int, size: int, value: int, then: Sequence[tuple[int, int]]) -> list[int]:
        requests = [qtest.write(SMMU_BASE + offset, size, value)]
        requests += [qtest.read(SMMU_BASE + register, width) for register, width in then]
        answers = self._ask(requests)[1:]
        self._known.clear()
        self._known.update((register, answer) for (register, width), answer in zip(then, answers) if width == 4)
        return answers

    def event(self) -> None:
        self.on_event()

    # Translation.

    def probe(self, sid: int, iova: int, write: bool, expected: Sequence[int], guesses: Sequence[int]) -> int | Fault:
        self.settled_prod = self._prod
        edu = self._virt.devices[sid]
        slot = self._slot()
        words = self._memory.words
        words[slot : slot + EVENT_WORDS] = _NO_EVENT
        if write:
            landed = self._prober.write(edu, iova, expected, guesses)
        else:
            landed = self._prober.read(edu, iova, expected, guesses, self.mailboxes.get(sid))
        self.seen = landed.seen
        self._known.clear()
        if landed.status is None:
            if landed.maddr is not None:
                return landed.maddr
            return Fault(self.name, sid, iova, write, SILENT, "nothing arrived and nothing was recorded")
        self._known.update(zip(_STATUS, landed.status))
        self._prod = landed.status[0]
        record = tuple(words[slot : slot + EVENT_WORDS].tolist())
        return Fault(self.name, sid, iova, write, record[0] & 0xFF, "event recorded", record)

    def _slot(self) -> int:
        """Index of the first word of the record that comes next."""
        count = 1 << (self._queue & 31)
        return ((self._queue & _ADDRESS) >> 3) + EVENT_WORDS * (self._prod & count - 1)

    def probe_together(self, accesses: Sequence[tuple[int, int, bool, int]]) -> list[bool] | None:
        self.seen = True
        self.settled_prod = self._prod
        self._known.clear()
        return self._prober.together(
            [(self._virt.devices[sid], iova, write, place, self.mailboxes[sid]) for sid, iova, write, place in accesses]
        )

    def discard(self) -> None:
        """Take back the events that nobody is to see."""
        self._known.clear()
        self._prod = self.settled_prod
        self._post((qtest.write(SMMU_BASE + EVENTQ_PROD, 4, self._prod),))

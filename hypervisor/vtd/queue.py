# SPDX-License-Identifier: GPL-2.0-or-later
"""Queued invalidation: a ring of descriptors in memory (VT-d specification 6.5.2).

As Xen does, every command is followed by a wait descriptor of its own, whose status write says that it is done.  A
command that hardware refuses is taken out of the ring again, so that the next one finds a working queue.
"""

from typing import Final

from abi.errno import EIO, ETIMEDOUT
from base.units import PAGE_SHIFT
from hypervisor.vtd import layouts as reg
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus

SLOTS: Final = 256
"""Descriptors in a ring of one page.  They are queued two at a time, so no pair wraps around."""
_LAST_SLOT: Final = SLOTS - 1
DONE: Final = 1
_WAIT: Final = reg.WaitDescriptor.pack(type=5, sw=1, fn=1, data=DONE)
_HARMLESS: Final = reg.WaitDescriptor.pack(type=5, sw=1, fn=1)
"""Stores 0 where nobody looks now; a wait that signals nothing at all stops QEMU's queue once more."""


class InvalidationQueue:
    """The ring of one unit: ``ring`` and ``status`` are frames of RAM, ``base`` its registers."""

    def __init__(self, memory: PhysicalMemory, bus: SystemBus, base: int, ring: int, status: int) -> None:
        self._memory: Final = memory
        self._words: Final = memory.words
        self._touched: Final = memory.touched
        self._bus: Final = bus
        self._base: Final = base
        self._tail_register: Final = base + reg.IQT
        self._ring: Final = ring
        self._ring_word: Final = ring << 9
        self._status: Final = status
        self._status_word: Final = status << 9
        self._status_address: Final = status << PAGE_SHIFT
        self.tail = 0
        self.submitted = 0

    def word(self, slot: int) -> int:
        """Index of the lower word of the descriptor in ``slot``."""
        return self._ring_word + (slot << 1)

    def start(self) -> None:
        """Tell hardware where the ring is (QS = 0: one page, 16-byte descriptors)."""
        self._bus.write64(self._base + reg.IQA, self._ring << PAGE_SHIFT)
        self._bus.write64(self._base + reg.IQT, 0)

    def submit(self, low: int, high: int = 0) -> int:
        """Queue one command and its wait; 0 once hardware has confirmed, -EIO if it does not, -ETIMEDOUT if that is
        because a device did not answer."""
        words, touched, status_word = self._words, self._touched, self._status_word
        if not touched[self._ring]:
            self._memory.touch(self._ring)
        if not touched[self._status]:
            self._memory.touch(self._status)
        tail = self.tail
        word = self._ring_word + (tail << 1)
        words[word] = low
        words[word + 1] = high
        words[word + 2] = _WAIT
        words[word + 3] = self._status_address
        words[status_word] = 0
        self.tail = tail = tail + 2 & _LAST_SLOT
        self.submitted += 1
        self._bus.store(self._tail_register, 8, tail << 4)
        return 0 if words[status_word] == DONE else self._recover()

    def _recover(self) -> int:
        """Put harmless descriptors where hardware stopped, clear the error and let it go on."""
        status = self._bus.read32(self._base + reg.FSTS)
        head = self._bus.read64(self._base + reg.IQH) >> 4 & _LAST_SLOT
        while head != self.tail:
            word = self._ring_word + (head << 1)
            self._words[word] = _HARMLESS
            self._words[word + 1] = 0
            head = head + 1 & _LAST_SLOT
        errors = reg.FaultStatus.iqe.mask | reg.FaultStatus.ite.mask | reg.FaultStatus.ice.mask
        self._bus.write32(self._base + reg.FSTS, status & errors)
        self._bus.write64(self._tail_register, self.tail << 4)
        return -ETIMEDOUT if status & errors == reg.FaultStatus.ite.mask else -EIO

    def save(self) -> tuple[int, int]:
        return (self.tail, self.submitted)

    def restore(self, state: tuple[int, int]) -> None:
        self.tail, self.submitted = state

# SPDX-License-Identifier: GPL-2.0-or-later
"""The network card's descriptor rings: the format that the datasheet in :mod:`machine.devices.nic` gives."""

from struct import Struct
from typing import Final

from base.units import PAGE_SIZE

FLAG_EOP: Final = 1 << 0
FLAG_ERROR: Final = 1 << 14
FLAG_DONE: Final = 1 << 15

DESCRIPTOR: Final = Struct("<QHHHH")
"""Address, length, flags, written, reserved."""
DESCRIPTOR_SIZE: Final = DESCRIPTOR.size
LOG2SIZE_MAX: Final = 15


class Ring:
    """The registers of one ring."""

    __slots__ = ("base", "head", "log2size", "tail")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.base = self.log2size = self.head = self.tail = 0

    def resize(self, log2size: int) -> None:
        self.log2size = min(log2size, LOG2SIZE_MAX)
        self.head &= (1 << self.log2size) - 1
        self.tail &= (1 << self.log2size) - 1

    def span(self, index: int, count: int) -> int:
        """How many of ``count`` descriptors from ``index`` lie in a row and in one page, at least one."""
        room = PAGE_SIZE - (self.base + index * DESCRIPTOR_SIZE & PAGE_SIZE - 1)
        return max(1, min(count, room // DESCRIPTOR_SIZE, (1 << self.log2size) - index))

    def save(self) -> tuple[int, ...]:
        return (self.base, self.log2size, self.head, self.tail)

    def restore(self, state: tuple[int, ...]) -> None:
        self.base, self.log2size, self.head, self.tail = state

# SPDX-License-Identifier: GPL-2.0-or-later
"""The system bus: RAM below, register blocks at whole pages above it.

An access to an address that nobody claims behaves as on PCI: reads give all ones, writes are dropped.
"""

from collections.abc import Callable
from typing import Final, Protocol

from base.units import PAGE_SHIFT, PAGE_SIZE
from machine.memory import BusError, PhysicalMemory


class Registers(Protocol):
    """A block of registers.  ``size`` is 1, 2, 4 or 8 bytes; offsets count from the start of the block.

    Neither method raises, whatever the offset, size or value.
    """

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


class SystemBus:
    """Where a machine address leads: RAM or a register block."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self.memory: Final = memory
        self._pages: Final[dict[int, tuple[int, Registers]]] = {}
        self.uncached_readers: Final[list[Callable[[int, int], None]]] = []
        """Told (machine address, length) of what :meth:`write_back` writes: readers that do not snoop caches."""

    def map(self, base: int, length: int, registers: Registers) -> None:
        """Give ``length`` bytes at ``base`` to ``registers``; both are multiples of 4 KiB outside RAM."""
        if base % PAGE_SIZE or length % PAGE_SIZE or length <= 0:
            raise ValueError(f"a register block covers whole pages, not {length:#x} bytes at {base:#x}")
        if base < self.memory.size:
            raise ValueError(f"a register block at {base:#x} would hide RAM")
        pages = range(base >> PAGE_SHIFT, base + length >> PAGE_SHIFT)
        if any(page in self._pages for page in pages):
            raise ValueError(f"two register blocks at {base:#x}")
        for page in pages:
            self._pages[page] = (base, registers)

    def is_mmio(self, maddr: int) -> bool:
        """Whether a register block claims the page of ``maddr``."""
        return maddr >> PAGE_SHIFT in self._pages

    def load(self, maddr: int, size: int) -> int:
        """One read of ``size`` bytes (1, 2, 4, 8) from a register block; all ones if nobody answers."""
        region = self._pages.get(maddr >> PAGE_SHIFT)
        if region is None:
            return (1 << 8 * size) - 1
        return region[1].read(maddr - region[0], size) & (1 << 8 * size) - 1

    def store(self, maddr: int, size: int, value: int) -> None:
        """One write of ``size`` bytes (1, 2, 4, 8) to a register block."""
        region = self._pages.get(maddr >> PAGE_SHIFT)
        if region is not None:
            region[1].write(maddr - region[0], size, value)

    def read32(self, maddr: int) -> int:
        return self.load(maddr, 4)

    def read64(self, maddr: int) -> int:
        return self.load(maddr, 8)

    def write32(self, maddr: int, value: int) -> None:
        self.store(maddr, 4, value)

    def write64(self, maddr: int, value: int) -> None:
        self.store(maddr, 8, value)

    def write_back(self, maddr: int, length: int) -> None:
        """Software writes the cache lines of ``length`` bytes at ``maddr`` back to RAM (CLFLUSH, CLWB, DC CVAC).

        RAM as everybody else sees it has them already; nothing happens unless somebody reads past the caches.
        """
        for reader in self.uncached_readers:
            reader(maddr, length)

    def dma_read(self, maddr: int, length: int) -> bytes:
        """What a bus master reads: RAM, or registers four bytes at a time, or all ones."""
        try:
            return self.memory.read(maddr, length)
        except BusError:
            inside = self._in_ram(maddr, length)
            out = bytearray(self.memory.read(maddr, inside)) if inside else bytearray()
            while len(out) < length:
                size = 4 if length - len(out) >= 4 and not (maddr + len(out)) & 3 else 1
                out += self.load(maddr + len(out), size).to_bytes(size, "little")
            return bytes(out)

    def dma_write(self, maddr: int, data: bytes) -> None:
        """What a bus master writes: RAM, or registers four bytes at a time, or nowhere."""
        length = len(data)
        if 0 <= maddr <= self.memory.size - length:
            self.memory.write(maddr, data)
            return
        done = self._in_ram(maddr, length)
        if done:
            self.memory.write(maddr, data[:done])
        while done < length:
            size = 4 if length - done >= 4 and not (maddr + done) & 3 else 1
            self.store(maddr + done, size, int.from_bytes(data[done : done + size], "little"))
            done += size

    def _in_ram(self, maddr: int, length: int) -> int:
        """How many of ``length`` bytes from ``maddr`` lie before the end of RAM."""
        return min(length, self.memory.size - maddr) if 0 <= maddr < self.memory.size else 0

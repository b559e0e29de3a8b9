# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM as one mapping, with a journal that makes going back to a snapshot cost what was written.

The mapping is sparse: a gigabyte costs nothing until it is touched.  It is anonymous unless the maker brings one,
as whoever shares the machine's RAM with another process does.  It is reached through two views of the same bytes:
``bytes`` (one item a byte) for data and ``words`` (one item a little-endian 64-bit word) for tables, where an aligned
store is one store, as on the real bus.

Snapshots keep pre-images: whoever writes through a raw view first says so with :meth:`touch`, which saves the
frame the first time it changes after a snapshot.  The methods of this class do that themselves; table writers
in hot loops call it once for a table, guarded by ``touched``::

    if not memory.touched[frame]:
        memory.touch(frame)
    memory.words[frame << 9 | index] = entry
"""

import mmap
import sys
from collections.abc import Iterable
from typing import Final

from base.units import PAGE_SHIFT, PAGE_SIZE

WORDS_PER_FRAME: Final = PAGE_SIZE // 8


class BusError(Exception):
    """An access to a machine address at which there is no RAM."""

    def __init__(self, maddr: int, length: int) -> None:
        super().__init__(f"no RAM at {maddr:#x} for {length} bytes")
        self.maddr = maddr
        self.length = length


class PhysicalMemory:
    """``size`` bytes of RAM at machine addresses 0 to ``size`` - 1; ``size`` is a multiple of 4 KiB.

    ``mapping``: the bytes to use, exactly ``size`` of them, readable and writable; this object owns it from now on.
    """

    def __init__(self, size: int, mapping: mmap.mmap | None = None) -> None:
        if size <= 0 or size % PAGE_SIZE:
            raise ValueError(f"RAM size {size:#x} is not a positive multiple of 4 KiB")
        if sys.byteorder != "little":
            raise OSError("the tables are little-endian words; this host is big-endian")
        if mapping is not None and len(mapping) != size:
            raise ValueError(f"a mapping of {len(mapping):#x} bytes for {size:#x} bytes of RAM")
        if mapping is None:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
            mapping = mmap.mmap(-1, size, flags=flags)
        self.size: Final = size
        self.frames: Final = size >> PAGE_SHIFT
        self._map: Final = mapping
        self.bytes: Final = memoryview(self._map)
        self.words: Final = self.bytes.cast("Q")
        self.touched: Final = bytearray(b"\x01" * self.frames)
        """Per frame: 0 while :meth:`touch` still has to save it before the next write."""
        self._saved: dict[int, bytes] = {}

    def read(self, maddr: int, length: int) -> bytes:
        """``length`` bytes from ``maddr``; :class:`BusError` if any of them is not RAM."""
        if maddr < 0 or maddr + length > self.size:
            raise BusError(maddr, length)
        return self._map[maddr : maddr + length]

    def write(self, maddr: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` at ``maddr``; :class:`BusError` (nothing stored) if any of it is not RAM."""
        length = len(data)
        if maddr < 0 or maddr + length > self.size:
            raise BusError(maddr, length)
        if not length:
            return
        first, last = maddr >> PAGE_SHIFT, maddr + length - 1 >> PAGE_SHIFT
        if not self.touched[first]:
            self.touch(first)
        if first != last:
            for frame in range(first + 1, last + 1):
                if not self.touched[frame]:
                    self.touch(frame)
        self._map[maddr : maddr + length] = data

    def read64(self, maddr: int) -> int:
        """The 64-bit word at ``maddr`` (8-byte aligned)."""
        if maddr < 0 or maddr + 8 > self.size or maddr & 7:
            raise BusError(maddr, 8)
        return self.words[maddr >> 3]

    def write64(self, maddr: int, value: int) -> None:
        """Store a 64-bit word at ``maddr`` (8-byte aligned) in one store."""
        if maddr < 0 or maddr + 8 > self.size or maddr & 7:
            raise BusError(maddr, 8)
        frame = maddr >> PAGE_SHIFT
        if not self.touched[frame]:
            self.touch(frame)
        self.words[maddr >> 3] = value

    def zero_frame(self, frame: int) -> None:
        """Clear the 4 KiB of ``frame``."""
        if not self.touched[frame]:
            self.touch(frame)
        start = frame << PAGE_SHIFT
        self._map[start : start + PAGE_SIZE] = _ZERO_FRAME

    def touch(self, frame: int) -> None:
        """Save ``frame`` for :meth:`reset`; call before the first raw write after a snapshot."""
        start = frame << PAGE_SHIFT
        self._saved[frame] = self._map[start : start + PAGE_SIZE]
        self.touched[frame] = 1

    def snapshot(self) -> None:
        """From now on remember what frames looked like, so that :meth:`reset` can go back to this moment."""
        self._saved.clear()
        self.touched[:] = bytes(self.frames)

    def journal(self) -> Iterable[tuple[int, bytes]]:
        """(frame, its content at the last :meth:`snapshot`) of every frame that may have changed since."""
        return self._saved.items()

    def reset(self) -> int:
        """Back to the last :meth:`snapshot`; returns the number of frames restored."""
        restored = len(self._saved)
        for frame, content in self._saved.items():
            start = frame << PAGE_SHIFT
            self._map[start : start + PAGE_SIZE] = content
            self.touched[frame] = 0
        self._saved.clear()
        return restored


_ZERO_FRAME: Final = bytes(PAGE_SIZE)

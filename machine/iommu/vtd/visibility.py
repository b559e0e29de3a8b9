# SPDX-License-Identifier: GPL-2.0-or-later
"""When a store by software reaches the walker (VT-d specification 6.8, 6.9; ECAP.C and CAP.RWBF).

A coherent unit reads RAM itself, at no cost.  The two others have a view of their own between RAM and the walker:

* ECAP.C = 0: the walker reads past the processors' caches.  A store stays in its 64-byte line until software writes
  the line back (``SystemBus.write_back``).  Real lines may leave a cache early; these never do.
* CAP.RWBF = 1: stores wait in a write buffer.  What the unit has read of a table stays as it was until software
  sets GCMD.WBF, or a context-cache or IOTLB invalidation drains the buffer on its way.

Only root, context, PASID and page tables are read through a view; the invalidation queue is always coherent.
"""

import mmap
from typing import Final, Protocol, cast

from base.units import PAGE_SHIFT, PAGE_SIZE
from machine.iommu.vtd.config import VtdConfig
from machine.memory import WORDS_PER_FRAME, PhysicalMemory
from machine.mmio import SystemBus

LINE: Final = 64
"""Bytes that are written back together."""


class Words(Protocol):
    """RAM as the walker reads it: 64-bit words, index = machine address / 8."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...

    def __len__(self) -> int: ...


class View:
    """What the walker sees: RAM as it is."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self.words: Words = memory.words

    def drain(self) -> None:
        """The write buffer is flushed."""

    def save(self) -> object:
        return None

    def restore(self, state: object) -> None:
        pass


class UncachedView(View):
    """RAM past the caches.  Every frame reads as zeros until a line of it is written back."""

    def __init__(self, memory: PhysicalMemory, bus: SystemBus) -> None:
        super().__init__(memory)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._map: Final = mmap.mmap(-1, memory.size, flags=flags)
        self._cached: Final = memory.bytes
        self._frames: Final[set[int]] = set()
        """Frames that may differ from zeros."""
        self.words = memoryview(self._map).cast("Q")
        bus.uncached_readers.append(self._written_back)

    def _written_back(self, maddr: int, length: int) -> None:
        first, end = maddr & -LINE, min(maddr + length + LINE - 1 & -LINE, len(self._map))
        if 0 <= first < end:
            self._map[first:end] = self._cached[first:end]
            self._frames.update(range(first >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1))

    def save(self) -> object:
        return {frame: self._map[frame << PAGE_SHIFT : frame + 1 << PAGE_SHIFT] for frame in self._frames}

    def restore(self, state: object) -> None:
        saved = cast("dict[int, bytes]", state)
        for frame in self._frames - saved.keys():
            self._map[frame << PAGE_SHIFT : frame + 1 << PAGE_SHIFT] = bytes(PAGE_SIZE)
        for frame, content in saved.items():
            self._map[frame << PAGE_SHIFT : frame + 1 << PAGE_SHIFT] = content
        self._frames.clear()
        self._frames.update(saved)


class BufferedView(View):
    """RAM behind a write buffer: a table that was read once is read anew only when the buffer is drained."""

    def __init__(self, memory: PhysicalMemory) -> None:
        super().__init__(memory)
        self._memory: Final = memory.words
        self._seen: Final[dict[int, list[int]]] = {}
        self.words = self

    def __len__(self) -> int:
        return len(self._memory)

    def __getitem__(self, index: int) -> int:
        frame = index // WORDS_PER_FRAME
        seen = self._seen.get(frame)
        if seen is None:
            seen = self._seen[frame] = self._read(frame)
        return seen[index % WORDS_PER_FRAME]

    def __setitem__(self, index: int, value: int) -> None:
        seen = self._seen.get(index // WORDS_PER_FRAME)
        if seen is not None:
            seen[index % WORDS_PER_FRAME] = value

    def drain(self) -> None:
        for frame in self._seen:
            self._seen[frame] = self._read(frame)

    def save(self) -> object:
        return {frame: list(words) for frame, words in self._seen.items()}

    def restore(self, state: object) -> None:
        self._seen.clear()
        self._seen.update({frame: list(words) for frame, words in cast("dict[int, list[int]]", state).items()})

    def _read(self, frame: int) -> list[int]:
        return self._memory[frame * WORDS_PER_FRAME : (frame + 1) * WORDS_PER_FRAME].tolist()


def view_of(config: VtdConfig, bus: SystemBus) -> View:
    """The view that ``config`` calls for."""
    if not (config.coherent_walk or config.snoops_anyway):
        return UncachedView(bus.memory, bus)
    return BufferedView(bus.memory) if config.write_buffer_flush else View(bus.memory)

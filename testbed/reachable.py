# SPDX-License-Identifier: GPL-2.0-or-later
"""What devices can reach through a tree, read from the bytes that hardware walks.

A second, plain reading of the tables, so that properties are not checked with the code that they are to check.
"""

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import repeat
from typing import Final, NamedTuple

from base.units import PAGE_SHIFT, PAGE_SIZE
from hypervisor.pagetable.format import ADDRESS_MASK, Format
from hypervisor.pagetable.radix import PageTable
from machine.memory import PhysicalMemory


class Leaf(NamedTuple):
    """A run of alike leaves: ``pages`` pages from ``dfn`` lead to the frames from ``mfn`` on, in leaves of 2^``order``
    pages with the same rights."""

    dfn: int
    mfn: int
    pages: int
    order: int
    readable: bool
    writable: bool
    referenced: bool
    """The mappings hold references on their frames."""


class Reachable:
    """The leaves and tables of one tree."""

    def __init__(self) -> None:
        self.leaves: Final[list[Leaf]] = []
        """In order of dfn; neighbours that are alike are one run."""
        self.tables: Final[dict[int, int]] = {}
        """Frame of every table below the root to the number of entries that are not empty."""
        self.table_below: Final[dict[tuple[int, int], int]] = {}
        """(log2 of the pages that it serves, first dfn) to the frame of a table below the root."""
        self._starts: list[int] = []

    def add(self, leaf: Leaf) -> None:
        """The next run in order of dfn; one with the last if it goes on from there."""
        if self.leaves:
            last = self.leaves[-1]
            if last[3:] == leaf[3:] and last.dfn + last.pages == leaf.dfn and last.mfn + last.pages == leaf.mfn:
                leaf = Leaf(last.dfn, last.mfn, last.pages + leaf.pages, *last[3:])
                self.leaves.pop()
        self.leaves.append(leaf)

    def at(self, dfn: int) -> Leaf | None:
        """The run that ``dfn`` translates through."""
        if len(self._starts) != len(self.leaves):
            self._starts = [leaf.dfn for leaf in self.leaves]
        place = bisect_right(self._starts, dfn) - 1
        if place < 0 or dfn >= self.leaves[place].dfn + self.leaves[place].pages:
            return None
        return self.leaves[place]

    def edges(self, last: int) -> Iterator[tuple[int, Leaf | None]]:
        """Device frames worth trying, none beyond ``last``: where a run of alike leaves begins and ends, and the frames
        just outside of it."""
        seen = set()
        for leaf in self.leaves:
            end = leaf.dfn + leaf.pages
            for dfn in (leaf.dfn - 1, leaf.dfn, end - 1, end):
                if 0 <= dfn <= last and dfn not in seen:
                    seen.add(dfn)
                    yield dfn, self.at(dfn)


def reachable(memory: PhysicalMemory, table: PageTable | None) -> Reachable:
    """Read the tree of ``table``; empty for a context that has none."""
    found = Reachable()
    if table is not None:
        _read(memory.words, table.format, found, table.root << 9, table.root_frames << 9, table.levels, 0)
    return found


def mapped_pages(memory: PhysicalMemory, table: PageTable) -> dict[int, tuple[int, int]]:
    """dfn -> (machine frame, rights: 1 readable, 2 writable) of every page of the tree that gives any right."""
    pages: dict[int, tuple[int, int]] = {}
    for dfn, mfn, count, _, readable, writable, _ in reachable(memory, table).leaves:
        rights = readable | writable << 1
        if rights:
            pages.update(zip(range(dfn, dfn + count), zip(range(mfn, mfn + count), repeat(rights))))
    return pages


class _Part(NamedTuple):
    """What ``entries`` neighbouring entries of a table say: they lead to a table, or are a run of leaves."""

    slot: int
    entries: int
    frame: int
    rights: tuple[bool, bool, bool] | None
    """Readable, writable, referenced; ``None`` for a table."""


def _read(words: memoryview, fmt: Format, found: Reachable, word: int, entries: int, level: int, dfn: int) -> int:
    """Read one table of ``level``; how many of its entries are not empty."""
    order = 9 * (level - 1)
    used = 0
    for slot, count, frame, rights in _parts(fmt, level, words[word : word + entries].tobytes()):
        used += count
        here = dfn + (slot << order)
        if rights is not None:
            found.add(Leaf(here, frame, count << order, order, *rights))
        else:
            found.table_below[order, here] = frame
            found.tables[frame] = 0
            found.tables[frame] = _read(words, fmt, found, frame << 9, 512, level - 1, here)
    return used


@lru_cache(2048)
def _parts(fmt: Format, level: int, content: bytes) -> tuple[_Part, ...]:
    """What the bytes of a table of ``level`` say, in order.

    Remembered: most tables of one sweep say what tables of earlier ones said.
    """
    present, step = fmt.present, PAGE_SIZE << 9 * (level - 1)
    first = len(content) - len(content.lstrip(b"\0")) >> 3  # most tables are empty but for a few neighbours
    last = len(content.rstrip(b"\0")) + 7 >> 3
    entries = memoryview(content)[first << 3 : last << 3].cast("Q").tolist()
    parts: list[_Part] = []
    start = following = begun = 0
    continued = -1  # the entry that would go on with the run from start, whose first entry is begun
    for slot, entry in [(slot, entry) for slot, entry in enumerate(entries, first) if entry & present]:
        if entry == continued and slot == following:
            following, continued = following + 1, continued + step
            continue
        if following > start:
            parts.append(_run(fmt, begun, start, following))
        if fmt.is_leaf(entry, level):
            start, following, begun, continued = slot, slot + 1, entry, entry + step
        else:
            parts.append(_Part(slot, 1, (entry & ADDRESS_MASK) >> PAGE_SHIFT, None))
            start, following, continued = 0, 0, -1
    if following > start:
        parts.append(_run(fmt, begun, start, following))
    return tuple(parts)


def _run(fmt: Format, entry: int, start: int, end: int) -> _Part:
    rights = fmt.readable(entry), fmt.writable(entry), bool(entry & fmt.referenced)
    return _Part(start, end - start, (entry & ADDRESS_MASK) >> PAGE_SHIFT, rights)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What devices can reach through a tree, read from the bytes that hardware walks.

A second, plain reading of the tables, so that properties are not checked with the code that they are to check.
"""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import repeat
from typing import Final, NamedTuple

from hypervisor.pagetable.format import ADDRESS_MASK
from hypervisor.pagetable.radix import PageTable
from machine.memory import PhysicalMemory


class Leaf(NamedTuple):
    """2^``order`` pages from ``dfn`` lead to frames from ``mfn``."""

    dfn: int
    mfn: int
    order: int
    readable: bool
    writable: bool
    referenced: bool
    """The mapping holds a reference on its frames."""

    @property
    def pages(self) -> int:
        return 1 << self.order


class Reachable:
    """The leaves and tables of one tree."""

    def __init__(self) -> None:
        self.leaves: Final[list[Leaf]] = []
        """In order of dfn."""
        self.tables: Final[dict[int, int]] = {}
        """Frame of every table below the root to the number of entries that are not empty."""
        self.table_below: Final[dict[tuple[int, int], int]] = {}
        """(log2 of the pages that it serves, first dfn) to the frame of a table below the root."""
        self._starts: list[int] = []

    def at(self, dfn: int) -> Leaf | None:
        """The leaf that ``dfn`` translates through."""
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
        start: Leaf | None = None
        for leaf, following in zip(self.leaves, [*self.leaves[1:], None]):
            if start is None:
                start = leaf
            if following is not None and following == leaf._replace(
                dfn=leaf.dfn + leaf.pages, mfn=leaf.mfn + leaf.pages
            ):
                continue
            for dfn in (start.dfn - 1, start.dfn, leaf.dfn + leaf.pages - 1, leaf.dfn + leaf.pages):
                if 0 <= dfn <= last and dfn not in seen:
                    seen.add(dfn)
                    yield dfn, self.at(dfn)
            start = None


def reachable(memory: PhysicalMemory, table: PageTable | None) -> Reachable:
    """Read the tree of ``table``; empty for a context that has none."""
    found = Reachable()
    if table is not None:
        _read(memory.words, table, found, table.root << 9, table.root_frames << 9, table.levels, 0)
    return found


def mapped_pages(memory: PhysicalMemory, table: PageTable) -> dict[int, tuple[int, int]]:
    """dfn -> (machine frame, rights: 1 readable, 2 writable) of every page of the tree that gives any right."""
    pages: dict[int, tuple[int, int]] = {}
    _read_pages(memory.words, table, pages, table.root << 9, table.root_frames << 9, table.levels, 0)
    return pages


def _read_pages(
    words: memoryview,
    table: PageTable,
    pages: dict[int, tuple[int, int]],
    word: int,
    entries: int,
    level: int,
    dfn: int,
) -> None:
    fmt = table.format
    order = 9 * (level - 1)
    present = fmt.present
    by_bits: dict[int, int] = {}
    for index, entry in enumerate(words[word : word + entries].tolist()):
        if not entry & present:
            continue
        frame = (entry & ADDRESS_MASK) >> 12
        if level > 1 and not fmt.is_leaf(entry, level):
            _read_pages(words, table, pages, frame << 9, 512, level - 1, dfn + (index << order))
            continue
        bits = entry & ~ADDRESS_MASK
        rights = by_bits.get(bits)
        if rights is None:
            rights = by_bits[bits] = fmt.readable(entry) | fmt.writable(entry) << 1
        if not rights:
            continue
        if level == 1:
            pages[dfn + index] = frame, rights
        else:
            here, count = dfn + (index << order), 1 << order
            pages.update(zip(range(here, here + count), zip(range(frame, frame + count), repeat(rights))))


def _read(words: memoryview, table: PageTable, found: Reachable, word: int, entries: int, level: int, dfn: int) -> int:
    """Read one table of ``level``; how many of its entries are not empty."""
    fmt = table.format
    order = 9 * (level - 1)
    content = words[word : word + entries].tolist()
    present = fmt.present
    used = [index for index, entry in enumerate(content) if entry & present]
    if level == 1:
        leaf, readable, writable, referenced = found.leaves.append, fmt.readable, fmt.writable, fmt.referenced
        rights: dict[int, tuple[bool, bool, bool]] = {}
        for index in used:
            entry = content[index]
            bits = entry & ~ADDRESS_MASK
            if bits not in rights:
                rights[bits] = readable(entry), writable(entry), bool(entry & referenced)
            leaf(Leaf(dfn + index, (entry & ADDRESS_MASK) >> 12, 0, *rights[bits]))
        return len(used)
    for index in used:
        entry = content[index]
        here = dfn + (index << order)
        frame = (entry & ADDRESS_MASK) >> 12
        if fmt.is_leaf(entry, level):
            kinds = fmt.readable(entry), fmt.writable(entry), bool(entry & fmt.referenced)
            found.leaves.append(Leaf(here, frame, order, *kinds))
        else:
            found.table_below[order, here] = frame
            found.tables[frame] = 0
            found.tables[frame] = _read(words, table, found, frame << 9, 512, level - 1, here)
    return len(used)

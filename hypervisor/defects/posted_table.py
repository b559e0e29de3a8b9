# SPDX-License-Identifier: GPL-2.0-or-later
"""The page tables of posted code: superpages that come and go behind the guest's back, and take and return tables.

Differences from :class:`hypervisor.pagetable.radix.PageTable` that callers and guests notice:

* a full table of consecutive leaves is replaced by a superpage at once and nothing is kept for splitting it again, so
  that an unmap inside a superpage may fail with -ENOMEM;
* tables on the way to a new mapping are taken one by one from the top, and stay when a lower one cannot be had;
* an entry that was written without permissions is no mapping, but keeps its table from being freed;
* an unmap frees tables of all levels but the highest two;
* VT-d entries carry a *contiguity marker* in bits 55:52, which hardware ignores: log2 of how many entries from there
  on, at most as many as its index is aligned to, are all empty or form one run.  The root has none.

A table is accounted to the tree when it is linked; a root that the tree was made with is not (T5 builds on that).
"""

from array import array
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from abi.errno import EADDRINUSE, ENOENT, ENOMEM
from hypervisor.errors import XenBug
from hypervisor.pagetable.format import ADDRESS_MASK, Format
from hypervisor.pagetable.radix import Changes, FramePool, PageTable
from machine.memory import PhysicalMemory

MARKER_SHIFT: Final = 52
MARKER_MASK: Final = 0xF << MARKER_SHIFT
_SHIFT: Final = (0, 0, 9, 18, 27, 36)
"""Position of a level's index in a frame number."""


def _alignment(index: int) -> int:
    return 9 if not index else (index & -index).bit_length() - 1


_EMPTY: Final = array("Q", [0]) * 512
_EMPTY_MARKED: Final = array("Q", [_alignment(index) << MARKER_SHIFT for index in range(512)])


class PostedPageTable(PageTable):
    """A tree as posted code keeps it.  ``root`` 0 is a tree that could not get its root yet."""

    def __init__(
        self,
        memory: PhysicalMemory,
        entry_format: Format,
        levels: int,
        root: int,
        pool: FramePool,
        orders: tuple[int, ...] = (0, 9, 18),
        root_frames: int = 1,
        replace: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(memory, entry_format, levels, root, pool, orders, root_frames, replace)
        self.marked: Final = entry_format.name == "VT-d second stage"
        self.late_root = False
        """The root was made by the first map, when the tree was made there was no memory for it."""
        self.keeps_first = False
        """Tables that the tree was made with stay behind when it is torn down."""
        self._first: set[int] = set()
        self._linked: set[int] = set()
        self._present: Final = entry_format.present
        self._clear: Final = ~MARKER_MASK if self.marked else ~0
        self._top: Final = (root_frames << 9) - 1

    @property
    def tables(self) -> int:
        return (self.root_frames if self.root else 0) + len(self._linked)

    @property
    def linked(self) -> frozenset[int]:
        """Frames of the tables below the root."""
        return frozenset(self._linked)

    @property
    def filled(self) -> Mapping[int, int]:
        words, clear = self._words, self._clear
        return MappingProxyType(
            {
                table: sum(1 for entry in words[table << 9 : (table << 9) + 512].tolist() if entry & clear)
                for table in self._linked
            }
        )

    # ------------------------------------------------------------------------------------------- walking

    def _word(self, table: int, dfn: int, level: int) -> int:
        return (table << 9) + (dfn >> _SHIFT[level] & (self._top if level == self.levels else 511))

    def lookup(self, dfn: int) -> tuple[int, int, int] | None:
        if not self.root:
            return None
        words, table, level = self._words, self.root, self.levels
        while True:
            entry = words[self._word(table, dfn, level)]
            if not entry & self._present:
                return None
            if self.format.is_leaf(entry, level):
                order = _SHIFT[level]
                return ((entry & ADDRESS_MASK) >> 12) + (dfn & (1 << order) - 1), entry, order
            table = (entry & ADDRESS_MASK) >> 12
            level -= 1

    def _reach(self, dfn: int, target: int, make: bool, changes: Changes) -> int:
        """The table of level ``target`` for ``dfn``, with superpages in the way split and, if ``make``, missing tables
        made; 0 if there is none, -ENOMEM with the upper tables kept."""
        if not self.root:
            if not make:
                return 0
            frame = self._pool.allocate()
            if frame is None:
                return -ENOMEM
            self._clear_frame(frame)
            self.root, self.late_root = frame, True
        table, level, words = self.root, self.levels, self._words
        while level > target:
            word = self._word(table, dfn, level)
            entry = words[word]
            present = bool(entry & self._present)
            if not present or self.format.is_leaf(entry, level):
                if not present and not make:
                    return 0
                below = self._pool.allocate()
                if below is None:
                    return -ENOMEM
                self._linked.add(below)
                self._fill(below, entry & self._clear if present else 0, level - 1)
                if present:
                    changes.modified = True
                    self.splits += 1
                    self._exchange(word, below << 12 | self.format.table_bits)
                else:
                    self._put(word, below << 12 | self.format.table_bits)
                self._remark(table, word & 511, level)
                entry = words[word]
            table = (entry & ADDRESS_MASK) >> 12
            level -= 1
        return table

    def reach_level_3(self) -> int:
        """See that device frame 0 has a table of level 3; -ENOMEM without memory for it."""
        table = self._reach(0, 3, True, Changes())
        self._first.add(table)
        return min(table, 0)

    def _fill(self, table: int, leaf: int, level: int) -> None:
        """Make a new table of ``level`` out of the superpage ``leaf`` above it, or an empty one."""
        base = _EMPTY_MARKED if self.marked else _EMPTY
        if leaf:
            first, step = self.format.at_level(leaf, level + 1, level), 4096 << _SHIFT[level]
            base = array("Q", [mark | first + step * k for k, mark in enumerate(base)])
        if not self._touched[table]:
            self._memory.touch(table)
        self._words[table << 9 : (table << 9) + 512] = base
        if self.written is not None:
            self.written(table << 9, 512)

    def _clear_frame(self, frame: int) -> None:
        self._memory.zero_frame(frame)
        if self.written is not None:
            self.written(frame << 9, 512)

    def _put(self, word: int, entry: int) -> None:
        if not self._touched[word >> 9]:
            self._memory.touch(word >> 9)
        self._words[word] = entry
        if self.written is not None:
            self.written(word, 1)

    # ------------------------------------------------------------------------------------------- markers

    def _remark(self, table: int, index: int, level: int) -> bool:
        """Entry ``index`` was written: bring the markers up to date; whether all 512 are empty or one run."""
        if not self.marked:
            return self._is_run(table, level)
        if table == self.root:
            return False
        words, base = self._words, table << 9
        step = 4096 << _SHIFT[level]
        run = self._can_join(words[base + index] & self._clear, index, level)
        start = index
        self._set_marker(base + index, 0)
        for bit in range(9):
            buddy = start ^ 1 << bit
            low, high = min(start, buddy), max(start, buddy)
            if run and (words[base + buddy] & MARKER_MASK) >> MARKER_SHIFT >= bit:
                entry, other = words[base + low] & self._clear, words[base + high] & self._clear
                run = other == (entry + (step << bit) if entry else 0) and self._can_join(entry, low, level)
            else:
                run = False
            if run:
                self._set_marker(base + low, bit + 1)
            elif low != start and (words[base + low] & MARKER_MASK) >> MARKER_SHIFT > bit:
                self._set_marker(base + low, bit)
            start = low
        return run

    def _can_join(self, entry: int, index: int, level: int) -> bool:
        """Whether an entry can be part of a run: empty, or a leaf in step with its index at a level that folds."""
        if not entry:
            return True
        if level >= self._max_level or not self.format.is_leaf(entry, level):
            return False
        return (entry & ADDRESS_MASK) >> 12 + _SHIFT[level] & 511 == index

    def _set_marker(self, word: int, marker: int) -> None:
        self._put(word, self._words[word] & ~MARKER_MASK | marker << MARKER_SHIFT)

    def _is_run(self, table: int, level: int) -> bool:
        """The same without markers."""
        words, base = self._words, table << 9
        first, last = words[base], words[base + 511]
        if not first:
            return not last and table != self.root and words[base : base + 512] == memoryview(_EMPTY)
        step = 4096 << _SHIFT[level]
        if table == self.root or last != first + 511 * step or not first & self._present:
            return False
        if not self._can_join(first, 0, level):
            return False
        return words[base : base + 512] == memoryview(array("Q", range(first, first + 512 * step, step)))

    # --------------------------------------------------------------------------------------------- changes

    def map(self, dfn: int, mfn: int, count: int, bits: int, changes: Changes) -> tuple[int, int]:
        done = 0
        while done < count:
            at, frame, left = dfn + done, mfn + done, count - done
            level = self._max_level
            while level > 1 and ((at | frame) & (1 << _SHIFT[level]) - 1 or left < 1 << _SHIFT[level]):
                level -= 1
            if self.lookup(at) is not None:
                return done, -EADDRINUSE
            while level > 1 and not self._vacant(at, level):
                level -= 1
            if self._map_one(at, frame, bits, level, changes):
                return done, -ENOMEM
            done += 1 << _SHIFT[level]
        return done, 0

    def _vacant(self, dfn: int, level: int) -> bool:
        """Whether nothing is below the entry of ``level`` for ``dfn``."""
        table, at = self.root, self.levels
        while table:
            entry = self._words[self._word(table, dfn, at)] & self._clear
            if at == level or not entry & self._present:
                return not entry
            table, at = (entry & ADDRESS_MASK) >> 12, at - 1
        return True

    def _map_one(self, dfn: int, mfn: int, bits: int, level: int, changes: Changes) -> int:
        table = self._reach(dfn, level, True, changes)
        if table < 0:
            return table
        word = self._word(table, dfn, level)
        old = self._words[word] & self._clear
        entry = mfn << 12 | (bits | self.format.leaf_bits[level] if bits else 0)
        if entry == old:
            return 0
        changes.added = True
        if old & self._present:
            changes.modified = True
            self._exchange(word, entry)
        else:
            self._put(word, entry)
        while self._remark(table, word & 511, level) and level < self._max_level:
            first = self._words[table << 9] & self._clear
            self._retire(table, changes)
            level += 1
            table = self._reach(dfn, level, False, changes)
            word = self._word(table, dfn, level)
            self._exchange(word, self.format.at_level(first, level - 1, level))
            changes.modified = True
            self.folds += 1
        return 0

    def _retire(self, table: int, changes: Changes) -> None:
        self._linked.discard(table)
        changes.tables.append(table)

    def unmap(self, dfn: int, count: int, changes: Changes, pause: int | None = None) -> tuple[int, int]:
        for done in range(count):
            error = self._unmap_one(dfn + done, changes)
            if error:
                return done, error
        return count, 0

    def _unmap_one(self, dfn: int, changes: Changes) -> int:
        table = self._reach(dfn, 1, False, changes)
        if table <= 0:
            return table or -ENOENT
        word = self._word(table, dfn, 1)
        entry = self._words[word]
        if not entry & self._present:
            return -ENOENT
        changes.removed.append(((entry & ADDRESS_MASK) >> 12, 1, entry))
        changes.modified = True
        self._put(word, 0)
        level = 1
        while self._remark(table, word & 511, level) and level + 1 < self.levels:
            level += 1
            self._retire(table, changes)
            table = self._reach(dfn, level, False, changes)
            word = self._word(table, dfn, level)
            self._put(word, 0)
        return 0

    # ------------------------------------------------------------------------------------------ whole tree

    def _leaves(self, word: int, entries: int, level: int, dfn: int) -> Iterator[tuple[int, int, int]]:
        for k in range(entries if self.root else 0):
            entry = self._words[word + k]
            if not entry & self._present:
                continue
            here = dfn + (k << _SHIFT[level])
            if self.format.is_leaf(entry, level):
                yield here, entry & self._clear, _SHIFT[level]
            else:
                yield from self._leaves((entry & ADDRESS_MASK) >> 3, 512, level - 1, here)

    def empty_some(self, budget: int, changes: Changes) -> bool:
        """Teardown: everything at once, without touching an entry."""
        if not self.root:
            raise XenBug("a context without a root is freed: machine frame 0 is walked as a page table")
        for _, entry, order in self.leaves():
            changes.removed.append(((entry & ADDRESS_MASK) >> 12, 1 << order, entry))
        changes.tables.extend(sorted(self._linked - self._first if self.keeps_first else self._linked))
        changes.modified = True
        self._linked.clear()
        for frame in range(self.root, self.root + self.root_frames):
            self._clear_frame(frame)
        return True

    def save(self) -> Any:
        return (set(self._linked), self.root, self.late_root, self.folds, self.splits)

    def restore(self, state: Any) -> None:
        linked, self.root, self.late_root, self.folds, self.splits = state
        self._linked = set(linked)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Mapping, unmapping, folding and splitting in one radix tree of 512-entry tables.

What the callers rely on:

* A step either happens or leaves the tree as it was: tables for a new mapping are all allocated before the first
  is linked, a split allocates before it writes.
* Every change that hardware may see is a single 64-bit store, and a table is linked only after it is filled.
  Where the architecture wants break-before-make, ``replace`` does it.
* **What one call mapped, one call unmaps without needing memory.**  A superpage that one call mapped as a whole
  has nothing below it, and removing it as a whole needs nothing.  A superpage that appeared by folding several
  calls' pages keeps its former table as a *deposit*, so that taking one of those calls' pages out again finds the
  table that the split needs.  Only taking a slice out of what was mapped as a unit allocates, and may fail.
* Tables that leave the tree are not reused here; they go to the :class:`Changes` of the pass, and the caller frees
  them, and drops the frames' references, after hardware has been told.
"""

import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping
from operator import ne
from types import MappingProxyType
from typing import Final, Protocol

from abi.errno import EADDRINUSE, ENOENT, ENOMEM
from hypervisor.errors import XenBug
from hypervisor.pagetable.format import ADDRESS_MASK, Format
from hypervisor.words import ladder, leading_zeros
from machine.memory import PhysicalMemory

_ZEROS: Final = array("Q", [0]) * 512
_LEVEL_SHIFT: Final = (0, 0, 9, 18, 27, 36)
"""Position of a level's index in a frame number."""


class FramePool(Protocol):
    """Where tables come from: the heap, or a domain's arena."""

    def allocate(self) -> int | None:
        """A frame (its content is anything), or ``None``."""
        ...

    def free(self, frame: int) -> None:
        """Take ``frame`` back; hardware can no longer reach it."""
        ...


class Changes:
    """What one pass did to a tree, for the flush and the releases that follow it."""

    __slots__ = ("added", "folded", "modified", "removed", "tables")

    def __init__(self) -> None:
        self.added = False
        """Empty entries became present."""
        self.modified = False
        """Present entries changed or went away: cached copies must be invalidated."""
        self.folded = False
        """A table gave way to a superpage: what hardware remembers of the way to it must go too."""
        self.removed: list[tuple[int, int, int]] = []
        """(first frame, number of frames, a leaf's bits) of every leaf that went away."""
        self.tables: list[int] = []
        """Frames of tables that left the tree."""


class PageTable:
    """A tree of ``levels`` levels whose root is ``root_frames`` consecutive frames from ``root`` on.

    ``pool`` gives and takes frames for tables; ``orders`` lists the leaf sizes that every unit can walk;
    ``replace(word, entry)`` stores an entry over a present one of another kind where a plain store may not.
    """

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
        self.format: Final = entry_format
        self.levels: Final = levels
        self.root = root
        self.root_frames: Final = root_frames
        self._memory: Final = memory
        self._words: Final = memory.words
        self._touched: Final = memory.touched
        self._pool: Final = pool
        self._replace: Final = replace
        self._page_bits: Final = entry_format.leaf_bits[1]
        self._max_level: Final = 1 + max(order for order in orders if order in (0, 9, 18)) // 9
        self._used: dict[int, int] = {}
        """Non-empty entries of every table below the root, by frame."""
        self._level1: dict[int, int] = {}
        """First word of every level 1 table, by what the frame numbers below it share (dfn >> 9)."""
        self._deposits: dict[tuple[int, int], int] = {}
        """(level of a folded leaf, its first dfn) to the table it was folded from."""
        self.folds = 0
        self.splits = 0
        self.written: Callable[[int, int], None] | None = None
        """Told (first word, number of words) of what was stored, a new table's before the entry that leads to it: for
        hardware that does not see stores at once."""

    @property
    def tables(self) -> int:
        """Frames that the tree occupies: root, tables and deposits."""
        return self.root_frames + len(self._used) + len(self._deposits)

    @property
    def deposits(self) -> Mapping[tuple[int, int], int]:
        """(level of a folded leaf, its first dfn) to the table that is kept for splitting it."""
        return MappingProxyType(self._deposits)

    @property
    def filled(self) -> Mapping[int, int]:
        """Frame of every table below the root to the number of its non-empty entries."""
        return MappingProxyType(self._used)

    # ---------------------------------------------------------------------------------------------- lookup

    def lookup(self, dfn: int) -> tuple[int, int, int] | None:
        """(frame that ``dfn`` maps to, the leaf's entry, the leaf's order), ``None`` if it maps to nothing."""
        words, fmt = self._words, self.format
        level = self.levels
        word = (self.root << 9) + (dfn >> _LEVEL_SHIFT[level])
        while True:
            entry = words[word]
            if not entry:
                return None
            if level == 1 or entry & fmt.kind_mask == fmt.leaf_kind:
                order = _LEVEL_SHIFT[level]
                return ((entry & ADDRESS_MASK) >> 12) + (dfn & (1 << order) - 1), entry, order
            level -= 1
            word = ((entry & ADDRESS_MASK) >> 3) + (dfn >> _LEVEL_SHIFT[level] & 511)

    def vacant(self, dfn: int, pages: int) -> int:
        """How many of ``pages`` pages from ``dfn`` on come before the first that is seen to be mapped by a look at
        last-level tables alone: what lies under a superpage counts as vacant here."""
        done = 0
        while done < pages:
            index = dfn + done & 511
            run = min(pages - done, 512 - index)
            table = self._level1.get(dfn + done >> 9)
            if table is not None:
                present = self._words[table + index : table + index + run]
                if present != _ZEROS_VIEW[:run]:
                    return done + leading_zeros(present)
            done += run
        return done

    # ------------------------------------------------------------------------------------------------- map

    def map(self, dfn: int, mfn: int, count: int, bits: int, changes: Changes) -> tuple[int, int]:
        """Map ``count`` pages from ``dfn`` to consecutive frames from ``mfn`` with leaf bits ``bits``.

        Returns (pages mapped, errno): stops before the first page that is already mapped (-EADDRINUSE) or for
        which no table can be had (-ENOMEM).  ``bits`` are permission and software bits only.
        """
        if count == 1:
            return self._map_pages(dfn, mfn, 1, bits, changes)
        done = 0
        while done < count:
            index = dfn & 511
            run = min(count - done, 512 - index)
            if run == 512 and not mfn & 511 and self._max_level >= 2:
                step, error = self._map_leaf(dfn, mfn, bits, changes)
                if error == -EADDRINUSE:  # something lies in the way: find the first page it occupies
                    step, error = self._map_pages(dfn, mfn, run, bits, changes)
            else:
                step, error = self._map_pages(dfn, mfn, run, bits, changes)
            done += step
            if error:
                return done, error
            dfn += step
            mfn += step
        return done, 0

    def _map_leaf(self, dfn: int, mfn: int, bits: int, changes: Changes) -> tuple[int, int]:
        """Map one aligned 2 MiB piece as a single leaf."""
        word = self._walk(dfn, 2)
        if word < 0:
            return 0, word
        if self._words[word]:
            return 0, -EADDRINUSE
        self._store(word, mfn << 12 | bits | self.format.leaf_bits[2], changes)
        self._count(dfn, word, 1, 2, changes)
        return 512, 0

    def _map_pages(self, dfn: int, mfn: int, run: int, bits: int, changes: Changes) -> tuple[int, int]:
        """Map ``run`` pages that lie under one level 1 table."""
        table = self._level1.get(dfn >> 9)
        word = self._walk(dfn, 1) if table is None else table + (dfn & 511)
        if word < 0:
            return 0, word
        words = self._words
        error = 0
        if run == 1:
            if words[word]:
                return 0, -EADDRINUSE
        else:
            if words[word : word + run] != _ZEROS_VIEW[:run]:
                run = leading_zeros(words[word : word + run])
                error = -EADDRINUSE
                if not run:
                    return 0, error
        leaf = mfn << 12 | bits | self._page_bits
        frame = word >> 9
        if not self._touched[frame]:
            self._memory.touch(frame)
        if run == 1:
            words[word] = leaf
        else:
            words[word : word + run] = array("Q", ladder(leaf, 4096, run))
        if self.written is not None:
            self.written(word, run)
        changes.added = True
        used = self._used[frame] + run
        self._used[frame] = used
        if used == 512 and self._max_level > 1:
            self._fold(dfn, frame, 1, changes)
        return run, error

    def _walk(self, dfn: int, target: int) -> int:
        """The word of ``dfn``'s entry at level ``target``, making tables on the way.

        -EADDRINUSE if a larger leaf covers it; -ENOMEM, with nothing changed, if a table is missing and there
        is no memory for one.
        """
        words, fmt = self._words, self.format
        kind_mask, leaf_kind = fmt.kind_mask, fmt.leaf_kind
        level = self.levels
        word = (self.root << 9) + (dfn >> _LEVEL_SHIFT[level])
        while level > target:
            entry = words[word]
            if not entry:
                return self._grow(dfn, word, level, target)
            if entry & kind_mask == leaf_kind:
                return -EADDRINUSE
            level -= 1
            word = ((entry & ADDRESS_MASK) >> 3) + (dfn >> _LEVEL_SHIFT[level] & 511)
        return word

    def _grow(self, dfn: int, word: int, level: int, target: int) -> int:
        """Hang a chain of empty tables from the empty entry ``word`` of ``level`` down to level ``target``."""
        words, used, pool, zero = self._words, self._used, self._pool, self._memory.zero_frame
        chain: list[int] = []
        for _ in range(level - target):
            frame = pool.allocate()
            if frame is None:
                for unused in chain:
                    pool.free(unused)
                return -ENOMEM
            zero(frame)
            chain.append(frame)
        table_bits, written = self.format.table_bits, self.written
        parent, first = word >> 9, word
        if parent in used:
            used[parent] += 1
        for table in chain:
            if word != first:
                words[word] = table << 12 | table_bits
            used[table] = 1
            level -= 1
            word = (table << 9) + (dfn >> _LEVEL_SHIFT[level] & 511)
        used[table] = 0
        if level == 1:
            self._level1[dfn >> 9] = table << 9
        if written is not None:
            for table in chain:
                written(table << 9, 512)
        if not self._touched[parent]:
            self._memory.touch(parent)
        words[first] = chain[0] << 12 | table_bits  # last: hardware finds the chain only when it is whole
        if written is not None:
            written(first, 1)
        return word

    def _store(self, word: int, entry: int, changes: Changes) -> None:
        frame = word >> 9
        if not self._touched[frame]:
            self._memory.touch(frame)
        self._words[word] = entry
        if self.written is not None:
            self.written(word, 1)
        changes.added = True

    def _count(self, dfn: int, word: int, added: int, level: int, changes: Changes) -> None:
        """Account for ``added`` new entries in the table of ``word`` and fold it if it became one run."""
        table = word >> 9
        used = self._used.get(table)
        if used is None:
            return  # the root: never folded, never freed
        used += added
        self._used[table] = used
        if used == 512 and level < self._max_level:
            self._fold(dfn, table, level, changes)

    def _fold(self, dfn: int, table: int, level: int, changes: Changes) -> None:
        """Replace the full ``table`` of level ``level`` by a leaf one level up, if its entries form one run."""
        words, fmt = self._words, self.format
        first = words[table << 9]
        span = _LEVEL_SHIFT[level + 1]
        step = 4096 << _LEVEL_SHIFT[level]
        if (first & ADDRESS_MASK) >> 12 & (1 << span) - 1 or not fmt.is_leaf(first, level):
            return
        if words[(table << 9) + 511] != first + 511 * step:
            return
        if words[table << 9 : table + 1 << 9].tobytes() != ladder(first, step, 512):
            return
        base = dfn >> span << span
        parent = self._entry_above(base, level + 1)
        self._exchange(parent, fmt.at_level(first, level, level + 1))
        del self._used[table]
        if level == 1:
            del self._level1[base >> 9]
        self._deposits[level + 1, base] = table
        changes.modified = changes.folded = True
        self.folds += 1
        if level + 1 < self._max_level and self._used.get(parent >> 9) == 512:
            self._fold(base, parent >> 9, level + 1, changes)

    def _entry_above(self, dfn: int, target: int) -> int:
        """The word of ``dfn``'s entry at level ``target``; every table above it exists."""
        level = self.levels
        word = (self.root << 9) + (dfn >> _LEVEL_SHIFT[level])
        while level > target:
            level -= 1
            word = ((self._words[word] & ADDRESS_MASK) >> 3) + (dfn >> _LEVEL_SHIFT[level] & 511)
        return word

    def _exchange(self, word: int, entry: int) -> None:
        """Store ``entry`` over a present entry of the other kind."""
        frame = word >> 9
        if not self._touched[frame]:
            self._memory.touch(frame)
        if self._replace is not None:
            self._replace(word, entry)
        else:
            self._words[word] = entry
        if self.written is not None:
            self.written(word, 1)

    # ----------------------------------------------------------------------------------------------- unmap

    def unmap(self, dfn: int, count: int, changes: Changes, pause: int | None = None) -> tuple[int, int]:
        """Remove ``count`` pages from ``dfn`` on.

        Returns (pages removed, errno): stops before the first page that is not mapped (-ENOENT) or whose
        superpage cannot be split for want of a table (-ENOMEM).  With ``pause`` it also stops, without an error,
        once that many pages are gone, or a few more: a superpage inside the range is never cut for a pause.
        """
        if pause is None:
            pause = count
        if pause == 1 and (table := self._level1.get(dfn >> 9)) is not None:
            return self._unmap_pages(dfn, table + (dfn & 511), 1, changes)
        done = 0
        while done < pause:
            table = self._level1.get(dfn >> 9)
            if table is None:
                step, error = self._unmap_leaf(dfn, count - done, changes)
            else:
                step, error = self._unmap_pages(dfn, table + (dfn & 511), pause - done, changes)
            done += step
            if error:
                return done, error
            dfn += step
        return done, 0

    def _unmap_pages(self, dfn: int, word: int, left: int, changes: Changes) -> tuple[int, int]:
        """Clear up to ``left`` entries from ``word`` on in its level 1 table."""
        words = self._words
        run = 512 - (word & 511)
        if left < run:
            run = left
        frame = word >> 9
        error = 0
        if run == 1:
            entry = words[word]
            if not entry:
                return 0, -ENOENT
            if not self._touched[frame]:
                self._memory.touch(frame)
            words[word] = 0
            changes.removed.append(((entry & ADDRESS_MASK) >> 12, 1, entry))
        else:
            first = words[word]
            if not first:
                return 0, -ENOENT
            if words[word : word + run].tobytes() == ladder(first, 4096, run):
                changes.removed.append(((first & ADDRESS_MASK) >> 12, run, first))
            else:
                entries = words[word : word + run].tolist()
                if 0 in entries:
                    run = entries.index(0)
                    error = -ENOENT
                    del entries[run:]
                self._collect(entries, changes)
            if not self._touched[frame]:
                self._memory.touch(frame)
            words[word : word + run] = _ZEROS_VIEW[:run]
        if self.written is not None:
            self.written(word, run)
        changes.modified = True
        used = self._used[frame] - run
        self._used[frame] = used
        if not used:
            self._prune(dfn, frame, 1, changes)
        return run, error

    def _unmap_leaf(self, dfn: int, left: int, changes: Changes) -> tuple[int, int]:
        """Remove the superpage that starts at ``dfn`` if ``left`` pages cover it; split the one that covers ``dfn``
        otherwise, without a step forward."""
        words, fmt = self._words, self.format
        level = self.levels
        word = (self.root << 9) + (dfn >> _LEVEL_SHIFT[level])
        while (entry := words[word]) and not fmt.is_leaf(entry, level):
            level -= 1
            word = ((entry & ADDRESS_MASK) >> 3) + (dfn >> _LEVEL_SHIFT[level] & 511)
        if not entry:
            return 0, -ENOENT
        span = 1 << _LEVEL_SHIFT[level]
        if not dfn & span - 1 and left >= span:
            self._remove_leaf(dfn, word, entry, level, changes)
            return span, 0
        if level == 3 and (dfn & 511 or left < 512) and not self._provide(dfn):
            return 0, -ENOMEM  # before the 1 GiB leaf is cut for nothing
        return 0, 0 if self._split(dfn, word, entry, level, changes) else -ENOMEM

    def _provide(self, dfn: int) -> bool:
        """See that the 2 MiB piece around ``dfn`` of a 1 GiB leaf has the table that cutting it takes."""
        base = dfn >> 9 << 9
        if (2, base) not in self._deposits:
            table = self._pool.allocate()
            if table is None:
                return False
            self._deposits[2, base] = table
        return True

    @staticmethod
    def _collect(entries: list[int], changes: Changes) -> None:
        """Note the frames of 4 KiB leaves, as few runs as they form."""
        first, end = 0, len(entries)
        while first < end:
            start = entries[first]
            differs = map(ne, itertools.islice(entries, first, None), itertools.count(start, 4096))
            stop = next(itertools.compress(itertools.count(first), differs), end)
            changes.removed.append(((start & ADDRESS_MASK) >> 12, stop - first, start))
            first = stop

    def _remove_leaf(self, dfn: int, word: int, entry: int, level: int, changes: Changes) -> None:
        """Remove a whole superpage and the deposits that stood by for splitting it."""
        frame = word >> 9
        if not self._touched[frame]:
            self._memory.touch(frame)
        self._words[word] = 0
        if self.written is not None:
            self.written(word, 1)
        changes.modified = True
        changes.removed.append(((entry & ADDRESS_MASK) >> 12, 1 << _LEVEL_SHIFT[level], entry))
        self._withdraw(dfn, level, changes)
        if frame in self._used:
            self._used[frame] -= 1
            if not self._used[frame]:
                self._prune(dfn, frame, level, changes)

    def _withdraw(self, dfn: int, level: int, changes: Changes) -> None:
        """Hand the deposits of the leaf at ``dfn`` and of leaves once folded into it to ``changes``."""
        if not self._deposits:
            return
        own = self._deposits.pop((level, dfn), None)
        if own is not None:
            changes.tables.append(own)
        if level == 3:
            for base in range(dfn, dfn + (1 << 18), 512):
                below = self._deposits.pop((2, base), None)
                if below is not None:
                    changes.tables.append(below)

    def _prune(self, dfn: int, table: int, level: int, changes: Changes) -> None:
        """Take the empty ``table`` of level ``level`` out of the tree, and what becomes empty above it."""
        words, used, touched, written = self._words, self._used, self._touched, self.written
        if level == 1:
            del self._level1[dfn >> 9]
        at = self.levels
        word = (self.root << 9) + (dfn >> _LEVEL_SHIFT[at])
        above = [word]
        while at > level + 1:
            at -= 1
            word = ((words[word] & ADDRESS_MASK) >> 3) + (dfn >> _LEVEL_SHIFT[at] & 511)
            above.append(word)
        emptied = changes.tables
        while True:
            del used[table]
            emptied.append(table)
            table = word >> 9
            if not touched[table]:
                self._memory.touch(table)
            words[word] = 0
            if written is not None:
                written(word, 1)
            left = used.get(table)
            if left is None:
                return  # the root
            if left > 1:
                used[table] = left - 1
                return
            above.pop()
            word = above[-1]

    def _split(self, dfn: int, word: int, entry: int, level: int, changes: Changes) -> bool:
        """Turn the leaf at ``word`` into a table of 512 smaller ones; ``False`` if there is no memory."""
        base = dfn >> _LEVEL_SHIFT[level] << _LEVEL_SHIFT[level]
        table = self._deposits.pop((level, base), None)
        if table is None:
            table = self._pool.allocate()
            if table is None:
                return False
        if not self._touched[table]:
            self._memory.touch(table)
        first = self.format.at_level(entry, level, level - 1)
        step = 4096 << _LEVEL_SHIFT[level - 1]
        self._words[table << 9 : table + 1 << 9] = array("Q", ladder(first, step, 512))
        if self.written is not None:
            self.written(table << 9, 512)
        self._used[table] = 512
        if level == 2:
            self._level1[base >> 9] = table << 9
        self._exchange(word, table << 12 | self.format.table_bits)
        changes.modified = True
        self.splits += 1
        return True

    # ------------------------------------------------------------------------------------------ whole tree

    def leaves(self) -> Iterator[tuple[int, int, int]]:
        """(dfn, entry, order) of every leaf, in order of dfn."""
        yield from self._leaves(self.root << 9, self.root_frames << 9, self.levels, 0)

    def _leaves(self, word: int, entries: int, level: int, dfn: int) -> Iterator[tuple[int, int, int]]:
        for k in range(entries):
            entry = self._words[word + k]
            if not entry:
                continue
            here = dfn + (k << _LEVEL_SHIFT[level])
            if self.format.is_leaf(entry, level):
                yield here, entry, _LEVEL_SHIFT[level]
            else:
                yield from self._leaves((entry & ADDRESS_MASK) >> 3, 512, level - 1, here)

    def empty_some(self, budget: int, changes: Changes) -> bool:
        """Remove leaves from the front until ``budget`` entries are gone; ``True`` once the tree is empty."""
        dfn = 0
        while (found := self._first_leaf(dfn)) is not None:
            if budget <= 0:
                return False
            dfn, word, level = found
            if level > 1:
                self._remove_leaf(dfn, word, self._words[word], level, changes)
                budget -= 1
            else:
                budget -= self._empty_table(dfn, word, budget, changes)
        return True

    def _first_leaf(self, dfn: int) -> tuple[int, int, int] | None:
        """(its dfn, its word, its level) of the first leaf that ends behind ``dfn``."""
        words, fmt = self._words, self.format
        kind_mask, leaf_kind = fmt.kind_mask, fmt.leaf_kind
        end = self.root_frames << 9 + _LEVEL_SHIFT[self.levels]
        while dfn < end:
            level = self.levels
            word = (self.root << 9) + (dfn >> _LEVEL_SHIFT[level])
            while entry := words[word]:
                if level == 1 or entry & kind_mask == leaf_kind:
                    return dfn & -(1 << _LEVEL_SHIFT[level]), word, level
                level -= 1
                word = ((entry & ADDRESS_MASK) >> 3) + (dfn >> _LEVEL_SHIFT[level] & 511)
            span = 1 << _LEVEL_SHIFT[level]
            dfn = (dfn & -span) + span * leading_zeros(words[word : (word | 511) + 1])
        return None

    def _empty_table(self, dfn: int, word: int, budget: int, changes: Changes) -> int:
        """Clear up to ``budget`` entries of a level 1 table whose first one is at ``word``; returns how many."""
        frame, words = word >> 9, self._words
        used = self._used[frame]
        end = frame + 1 << 9
        entries = words[word:end].tolist()
        if budget < used:
            filled = [k for k, entry in enumerate(entries) if entry]
            del entries[filled[budget - 1] + 1 :]
            end = word + len(entries)
        cleared = min(budget, used)
        if cleared < len(entries):
            entries = [entry for entry in entries if entry]
        if len(entries) != cleared:
            raise XenBug(f"table {frame:#x} does not have the {used} entries that it was counted to have")
        self._collect(entries, changes)
        if not self._touched[frame]:
            self._memory.touch(frame)
        words[word:end] = _ZEROS_VIEW[: end - word]
        if self.written is not None:
            self.written(word, end - word)
        changes.modified = True
        self._used[frame] = used - cleared
        if used == cleared:
            self._prune(dfn, frame, 1, changes)
        return cleared

    def save(self) -> object:
        """The bookkeeping beside the tables, whose bytes the memory's own snapshot keeps."""
        return (dict(self._used), dict(self._level1), dict(self._deposits), self.folds, self.splits)

    def restore(self, state: object) -> None:
        used, level1, deposits, self.folds, self.splits = state  # type: ignore[misc]
        self._used = dict(used)  # type: ignore[has-type]
        self._level1 = dict(level1)  # type: ignore[has-type]
        self._deposits = dict(deposits)  # type: ignore[has-type]


_ZEROS_VIEW: Final = memoryview(_ZEROS)

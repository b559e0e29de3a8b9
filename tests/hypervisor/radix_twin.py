# SPDX-License-Identifier: GPL-2.0-or-later
"""The radix tree's brute-force twin: pages in a dictionary, and what a tree over them has to look like.

The twin keeps no tables.  Which leaf covers a page follows from the pages alone (the largest supported size whose
frames are consecutive and aligned and whose bits are equal); which tables exist follows from that.  The one thing
that depends on history is which 2 MiB leaves were mapped as a whole and so have no deposit to be split with.
"""

from abi.errno import EADDRINUSE, ENOENT, ENOMEM
from hypervisor.frames import FrameTable
from hypervisor.pagetable.radix import Changes, PageTable
from hypervisor.smmuv3.format import STAGE2
from hypervisor.vtd.format import SECOND_STAGE
from machine.memory import PhysicalMemory

FORMATS = [SECOND_STAGE, STAGE2]
BLOCK = 512
GIGA = BLOCK * BLOCK
RAM = 4 << 20
GARBAGE = bytes.fromhex("ff0700de0b000000") * 512
"""What recycled frames contain: something that looks like leaves and tables in every format."""


class Pool:
    """``size`` frames for tables, full of garbage; ``free`` checks that nobody frees twice."""

    def __init__(self, memory, size):
        self.memory = memory
        self.size = size
        self._free = list(range(16, 16 + size))
        self._taken = []
        """Frames that somebody else holds just now."""

    @property
    def used(self):
        return self.size - len(self._free) - len(self._taken)

    def allocate(self):
        if not self._free:
            return None
        frame = self._free.pop(0)
        self.memory.write(frame << 12, GARBAGE)
        return frame

    def give(self, frames):
        """Make it ``frames`` that are free, by taking the rest away or adding what was taken."""
        while len(self._free) > frames:
            self._taken.append(self._free.pop())
        while len(self._free) < frames:
            self._free.append(self._taken.pop())

    def free(self, frame):
        assert frame not in self._free
        self._free.append(frame)


class Twin:
    """The same operations, page by page.  ``free`` frames are left for tables."""

    def __init__(self, levels, root_frames, orders, size):
        self.levels, self.root_frames, self.orders = levels, root_frames, orders
        self.size = size
        self.blocks = {}
        """dfn >> 9 to 512 values (frame << 12 | bits, or 0), of blocks that are not empty."""
        self.whole = set()
        """Blocks whose 2 MiB leaf was mapped in one piece and never cut."""

    # What the tree has to look like

    def page(self, dfn):
        block = self.blocks.get(dfn >> 9)
        return block[dfn & 511] if block else 0

    def order(self, dfn, known=None):
        """Order of the leaf that has to cover a mapped page; ``known`` keeps what was found for whole pieces."""
        known = {} if known is None else known
        number = dfn >> 9
        if number not in known:
            known[number] = self._is_run(number)
        if not known[number]:
            return 0
        base = number >> 9 << 9
        if 18 in self.orders and ("giga", base) not in known:
            known["giga", base] = self._is_giga(base)
        return 18 if known.get(("giga", base)) else 9

    def _is_run(self, number):
        block = self.blocks.get(number)
        if 9 not in self.orders or not block or block[0] >> 12 & 511:
            return False
        first = block[0]
        return bool(first) and block[511] == first + (511 << 12) and block == _run(first)

    def _is_giga(self, base):
        first = self.page(base << 9)
        if not first or first >> 12 & GIGA - 1:
            return False
        if self.page(base + 511 << 9) != first + (511 * BLOCK << 12):
            return False
        return all(self.page(base + k << 9) == first + (k * BLOCK << 12) and self._is_run(base + k) for k in range(512))

    def tables(self):
        """Frames of the tree: root, tables, deposits."""
        giga = {number >> 9 for number in self.blocks}  # the table of a giga leaf is its deposit
        blocks = sum(number not in self.whole for number in self.blocks)  # a table, or a deposit
        above = len({base >> 9 for base in giga}) if self.levels == 4 else 0
        return self.root_frames + blocks + len(giga) + above

    def missing(self, dfn, target):
        """Tables that a new entry of level ``target`` for ``dfn`` needs."""
        missing = 0
        if self.levels == 4:
            missing += not any(number >> 18 == dfn >> 27 for number in self.blocks)
        missing += not any(number >> 9 == dfn >> 18 for number in self.blocks)
        if target == 1:
            missing += dfn >> 9 not in self.blocks
        return missing

    # Operations

    def map(self, dfn, mfn, count, bits):
        free = self.size - self.tables()
        done = 0
        while done < count:
            at, frame = dfn + done, mfn + done
            run = min(count - done, BLOCK - at % BLOCK)
            block = self.blocks.get(at >> 9)
            as_leaf = run == BLOCK and frame % BLOCK == 0 and 9 in self.orders and block is None
            if block is None:
                needed = self.missing(at, 2 if as_leaf else 1)
                if needed > free:
                    return done, -ENOMEM
                free -= needed
                block = self.blocks[at >> 9] = [0] * BLOCK
            for k in range(run):
                if block[at % BLOCK + k]:
                    return done + k, -EADDRINUSE
                block[at % BLOCK + k] = frame + k << 12 | bits
            if as_leaf:
                self.whole.add(at >> 9)
            done += run
        return done, 0

    def unmap(self, dfn, count, pause=None):
        free = self.size - self.tables()
        pause = count if pause is None else pause
        done = 0
        while done < pause:
            at = dfn + done
            number = at >> 9
            if not self.page(at):
                return done, -ENOENT
            span = 1 << self.order(at)
            if span == GIGA and (at % GIGA or count - done < GIGA):
                span = BLOCK  # the giga leaf comes apart, with its deposit
            if span > 1 and at % span == 0 and count - done >= span:
                for cut in range(number, number + span // BLOCK):
                    del self.blocks[cut]
                    self.whole.discard(cut)
                done += span
                continue
            if span == BLOCK and number in self.whole:
                if not free:
                    return done, -ENOMEM
                free -= 1
                self.whole.discard(number)
            block = self.blocks[number]
            for k in range(at % BLOCK, min(BLOCK, at % BLOCK + pause - done)):
                if not block[k]:
                    self._drop_empty(number)
                    return done, -ENOENT
                block[k] = 0
                done += 1
            self._drop_empty(number)
        return done, 0

    def _drop_empty(self, number):
        if not any(self.blocks[number]):
            del self.blocks[number]


def _run(first):
    return list(range(first, first + (BLOCK << 12), 1 << 12))


class Pair:
    """A tree and its twin, held against each other after every operation."""

    def __init__(self, fmt=SECOND_STAGE, levels=4, root_frames=1, orders=(0, 9, 18), size=64, replace=False):
        self.format = fmt
        self.memory = PhysicalMemory(RAM)
        self.pool = Pool(self.memory, size)
        root = 0
        for k in range(root_frames):
            self.memory.zero_frame(root + k)
        self.exchanged = 0
        self.table = PageTable(
            self.memory,
            fmt,
            levels,
            root,
            self.pool,
            orders,
            root_frames,
            self._break_before_make if replace else None,
        )
        self.twin = Twin(levels, root_frames, orders, size + root_frames)

    def _break_before_make(self, word, entry):
        assert self.memory.words[word], "only present entries are exchanged"
        self.exchanged += 1
        self.memory.words[word] = 0
        self.memory.words[word] = entry

    def bits(self, permission=3, referenced=False):
        return self.format.permission[permission] | (self.format.referenced if referenced else 0)

    def map(self, dfn, mfn, count, bits=None):
        bits = self.bits() if bits is None else bits
        changes = Changes()
        folds = self.table.folds
        outcome = self.table.map(dfn, mfn, count, bits, changes)
        assert outcome == self.twin.map(dfn, mfn, count, bits)
        assert changes.added == (outcome[0] > 0)
        assert changes.modified == (self.table.folds > folds)
        assert (changes.removed, changes.tables) == ([], [])
        self.check_accounts()
        return outcome

    def unmap(self, dfn, count, pause=None):
        changes = Changes()
        before = self.twin
        outcome = self.table.unmap(dfn, count, changes, pause)
        pages = [before.page(dfn + k) for k in range(outcome[0])]
        splits = self.table.splits
        assert outcome == self.twin.unmap(dfn, count, pause)
        assert changes.modified == (outcome[0] > 0)
        assert not changes.added
        assert splits == self.table.splits
        removed = []
        for mfn, length, entry in changes.removed:
            flags = entry & (self.format.read | self.format.write | self.format.referenced)
            removed += [mfn + k << 12 | flags for k in range(length)]
        assert removed == pages
        for table in changes.tables:
            self.pool.free(table)
        self.check_accounts()
        return outcome

    def give(self, frames):
        """Let the pool have so many free frames."""
        self.pool.give(frames)
        self.twin.size = self.twin.tables() + frames

    def check_accounts(self):
        assert self.table.tables == self.twin.tables()
        assert self.pool.used + self.table.root_frames == self.table.tables

    def check_all(self):
        """Every leaf of the tree is the one that the pages call for, and no page is missing or too many."""
        leaves = list(self.table.leaves())
        assert leaves == sorted(leaves)
        seen = 0
        known = {}
        for dfn, entry, order in leaves:
            bits = entry & (self.format.read | self.format.write | self.format.referenced)
            first = ((entry >> 12) & (1 << 40) - 1) << 12 | bits
            assert order == self.twin.order(dfn, known)
            if order == 0:
                assert self.twin.page(dfn) == first
            else:
                for k in range(0, 1 << order, BLOCK):
                    assert self.twin.blocks[dfn + k >> 9] == _run(first + (k << 12))
            seen += 1 << order
            assert entry == first | self.format.leaf_bits[1 + order // 9]
        assert seen == sum(BLOCK - block.count(0) for block in self.twin.blocks.values())

    def check_page(self, dfn):
        found = self.table.lookup(dfn)
        page = self.twin.page(dfn)
        if not page:
            assert found is None
        else:
            assert found is not None
            assert found[0] == page >> 12 & (1 << 40) - 1
            assert found[2] == self.twin.order(dfn)


def frame_table():
    return FrameTable(RAM >> 12)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a unit sees while the hypervisor changes a tree.

After every single store a page leads to where it led before, to where it leads afterwards, or nowhere: by a walk from
the root, and by pointers to tables that the unit cached.  Those it forgets only as far as the architecture makes it:
when a flush names their pages and says that pointers go too, which drivers say when tables left the tree.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from radix_twin import FORMATS, GARBAGE, GIGA, Pool

from hypervisor.pagetable.radix import Changes, PageTable
from machine.memory import PhysicalMemory

ADDRESS = 0xF_FFFF_FFFF_F000


class WatchedWords:
    """Memory's words, which report every store of one word."""

    def __init__(self, words, stored):
        self._words, self._stored = words, stored

    def __getitem__(self, where):
        return self._words[where]

    def __setitem__(self, where, value):
        if isinstance(where, int):
            self._words[where] = value
            self._stored()
            return
        for index, word in zip(range(*where.indices(len(self._words))), value, strict=True):
            if self._words[index] != word:
                self._words[index] = word
                self._stored()


class WatchedMemory:
    def __init__(self, memory, stored):
        self.words = WatchedWords(memory.words, stored)
        self.touched, self.touch = memory.touched, memory.touch

    def zero_frame(self, frame):
        for index in range(frame << 9, frame + 1 << 9):
            self.words[index] = 0


class Unit:
    """A page walker that remembers pointers to tables until it is flushed."""

    def __init__(self, fmt, memory, levels, root):
        self.memory, self.levels, self.root = memory, levels, root
        self.vtd = fmt.leaf_kind != 0
        self.pointers = {}
        """(level of the table, which one) to the frames that were ever seen there since the last flush."""

    def forget_pointers(self, dfn, count):
        for level, number in list(self.pointers):
            if number << 9 * level < dfn + count and dfn < number + 1 << 9 * level:
                del self.pointers[level, number]

    def walk(self, dfn, level=None, table=None, learn=False):
        """(machine frame, readable, writable), or ``None`` for a fault."""
        level = level or self.levels
        table = self.root if table is None else table
        readable = writable = True
        while True:
            shift = 9 * (level - 1)
            entry = self.memory.read64((table << 12) + 8 * (dfn >> shift & 511))
            if self.vtd:
                if not entry & 3:
                    return None
                readable, writable = readable and bool(entry & 1), writable and bool(entry & 2)
                leaf = level == 1 or entry >> 7 & 1
            else:
                if not entry & 1:
                    return None
                leaf = level == 1 or not entry & 2
                assert leaf or entry & 3 == 3
                if leaf:
                    assert entry & 3 == (3 if level == 1 else 1)
                    readable, writable = bool(entry >> 6 & 1), bool(entry >> 7 & 1)
            frame = (entry & ADDRESS) >> 12
            if leaf:
                assert level <= 3
                assert not frame & (1 << shift) - 1, "a superpage's frame is aligned"
                return frame + (dfn & (1 << shift) - 1), readable, writable
            level, table = level - 1, frame
            if learn:
                self.pointers.setdefault((level, dfn >> 9 * level), set()).add(table)

    def answers(self, dfn):
        """Where ``dfn`` may lead: by the root, or by any pointer that the unit still remembers."""
        yield self.walk(dfn)
        for level in range(1, self.levels):
            for table in self.pointers.get((level, dfn >> 9 * level), ()):
                yield self.walk(dfn, level, table)


def expected(table, fmt, dfn):
    found = table.lookup(dfn)
    return found and (found[0], fmt.readable(found[1]), fmt.writable(found[1]))


class Watched:
    def __init__(self, fmt, levels, size, replace):
        self.format = fmt
        self.memory = PhysicalMemory(4 << 20)
        self.unit = Unit(fmt, self.memory, levels, 0)
        self.pool = Pool(self.memory, size)
        self.allowed = {}
        self.stores = 0
        memory = WatchedMemory(self.memory, self.stored)
        self.words = memory.words
        self.table = PageTable(memory, fmt, levels, 0, self.pool, replace=self.break_before_make if replace else None)

    def stored(self):
        self.stores += 1
        for dfn, allowed in self.allowed.items():
            for answer in self.unit.answers(dfn):
                assert answer is None or answer in allowed, f"dfn {dfn:#x} leads to {answer}, not {allowed}"

    def break_before_make(self, word, entry):
        self.words[word] = 0
        self.unit.pointers.clear()
        self.words[word] = entry

    def run(self, kind, dfn, mfn, count, permission, probes):
        """One operation under watch, then its flush."""
        for probe in probes:
            self.unit.walk(probe, learn=True)
        before = {probe: expected(self.table, self.format, probe) for probe in probes}
        wanted = dict(before)
        for probe in probes:
            if dfn <= probe < dfn + count:
                new = (mfn + probe - dfn, bool(permission & 1), bool(permission & 2)) if kind == "map" else None
                wanted[probe] = before[probe] if kind == "map" and before[probe] else new
        self.allowed = {probe: {before[probe], wanted[probe]} for probe in probes}
        changes = Changes()
        if kind == "map":
            done, _ = self.table.map(dfn, mfn, count, self.format.permission[permission], changes)
        else:
            done, _ = self.table.unmap(dfn, count, changes)
        for probe in probes:
            after = wanted[probe] if dfn <= probe < dfn + done else before[probe]
            assert expected(self.table, self.format, probe) == after
            self.allowed[probe] = {after}
        if changes.tables:
            self.unit.forget_pointers(dfn, max(done, 1))
            for table in changes.tables:
                self.pool.free(table)
                self.memory.write(table << 12, GARBAGE)
        self.stored()
        self.allowed = {}


PROBES = [0, 1, 200, 255, 256, 511, 512, 700, 1023, 1024, GIGA - 1]
operation = st.tuples(
    st.sampled_from(["map", "map", "unmap"]),
    st.sampled_from([0, 0, 0, 1, 200, 256, 512, 513, 700]),
    st.sampled_from([0, 0, 0, 512, 1]),
    st.sampled_from([1, 2, 55, 200, 256, 312, 511, 512, 512, 1024]),
    st.sampled_from([3, 3, 3, 1, 2]),
)


@settings(max_examples=50, deadline=None)
@given(
    fmt=st.sampled_from(FORMATS),
    levels=st.sampled_from([3, 4]),
    size=st.sampled_from([3, 4, 6, 64]),
    replace=st.booleans(),
    program=st.lists(operation, min_size=1, max_size=12),
)
def test_no_store_leads_a_device_astray(fmt, levels, size, replace, program):
    watched = Watched(fmt, levels, size, replace)
    for kind, dfn, shift, count, permission in program:
        watched.run(kind, dfn, GIGA + dfn + shift, count, permission, PROBES)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_a_giga_leaf_folds_and_splits_without_leading_a_device_astray(fmt):
    watched = Watched(fmt, 4, 64, False)
    probes = [0, 700, GIGA - 1]
    watched.run("map", 0, GIGA, 700, 3, probes)
    watched.run("map", 700, GIGA + 700, GIGA - 700, 3, probes)
    assert watched.table.lookup(0)[2] == 18
    stores = watched.stores
    watched.run("unmap", 700, 0, 1, 3, probes)
    assert watched.stores - stores > 2, "it was watched"
    assert watched.table.lookup(0)[2] == 9
    watched.run("map", 700, GIGA + 700, 1, 3, probes)
    watched.run("unmap", 0, 0, GIGA, 3, probes)
    assert watched.table.tables == 1

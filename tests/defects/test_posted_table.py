# SPDX-License-Identifier: GPL-2.0-or-later
"""The posted page table against a dictionary, and its markers against their definition."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.defects.posted_table import MARKER_MASK, MARKER_SHIFT, PostedPageTable
from hypervisor.pagetable.format import ADDRESS_MASK
from hypervisor.pagetable.radix import Changes
from hypervisor.smmuv3.format import STAGE2
from hypervisor.vtd.format import SECOND_STAGE
from machine.memory import PhysicalMemory


class Pool:
    def __init__(self, pages):
        self.free_frames = list(range(1, pages + 1))

    def allocate(self):
        return self.free_frames.pop(0) if self.free_frames else None

    def free(self, frame):
        assert frame not in self.free_frames
        self.free_frames.append(frame)
        self.free_frames.sort()


def defined_marker(words, index, level):
    """log2 of the longest aligned stretch from ``index`` whose entries are all empty or one run."""
    plain = [word & ~MARKER_MASK for word in words]
    best = 0
    for bit in range(1, 10):
        if index & (1 << bit) - 1:
            break
        part = plain[index : index + (1 << bit)]
        step = 4096 << 9 * (level - 1)
        empty = not any(part)
        leaf = level == 1 or bool(part[0] & 1 << 7)
        in_step = ((part[0] & ADDRESS_MASK) >> 12 >> 9 * (level - 1)) & 511 == index
        run = bool(part[0]) and leaf and in_step and part == [part[0] + k * step for k in range(len(part))]
        if not (empty or (run and level < 3)):
            break
        best = bit
    return best


def tables_of(table, memory):
    found = [(table.root, table.levels)]
    for frame, level in found:
        if level > 1:
            for word in memory.words[frame << 9 : (frame << 9) + 512].tolist():
                if word & 3 and not table.format.is_leaf(word, level):
                    found.append(((word & ADDRESS_MASK) >> 12, level - 1))
    return found


PLACES = st.sampled_from([0, 1, 255, 256, 511, 512, 513, 768, 1023, 1024, 1 << 18, (1 << 18) + 512])
STEPS = st.lists(
    st.tuples(
        st.booleans(), PLACES, st.sampled_from([1, 2, 255, 256, 512]), st.sampled_from([0, 1]), st.integers(0, 3)
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, marked=st.booleans(), arena=st.sampled_from([3, 6, 64]))
def test_pages_markers_and_tables_are_as_defined(steps, marked, arena):
    memory = PhysicalMemory(1 << 20)
    pool = Pool(arena)
    fmt = SECOND_STAGE if marked else STAGE2
    root = pool.allocate()
    table = PostedPageTable(memory, fmt, 4, root, pool)
    expected = {}
    for mapping, dfn, count, shift, rights in steps:
        changes = Changes()
        bits = fmt.permission.get(rights, 0)
        for page in range(dfn, dfn + count):
            if mapping:
                _, error = table.map(page, page + (shift << 20) + shift, 1, bits, changes)
                if not error and bits:
                    expected[page] = (page + (shift << 20) + shift, rights)
            else:
                _, error = table.unmap(page, 1, changes)
                if not error:
                    del expected[page]
        for frame in changes.tables:
            pool.free(frame)
    for page in range(1100):
        found = table.lookup(page)
        assert (None if found is None else found[0]) == expected.get(page, (None,))[0]
    live = tables_of(table, memory)
    assert len(live) + len(pool.free_frames) == arena
    assert {frame for frame, _ in live} == {root, *table.linked}
    if marked:
        for frame, level in live[1:]:
            words = memory.words[frame << 9 : (frame << 9) + 512].tolist()
            for index in (*range(0, 512, 16), 1, 2, 255, 257, 511):
                assert (words[index] & MARKER_MASK) >> MARKER_SHIFT == defined_marker(words, index, level)

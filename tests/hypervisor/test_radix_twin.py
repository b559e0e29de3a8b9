# SPDX-License-Identifier: GPL-2.0-or-later
"""The radix tree against its brute-force twin: results, errno at the exact page, leaf sizes and table accounts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from radix_twin import BLOCK, FORMATS, GIGA, Pair, frame_table

from hypervisor.iommu.pool import Arena, HeapPool
from hypervisor.pagetable.format import ADDRESS_MASK
from hypervisor.pagetable.radix import Changes

EADDRINUSE, ENOENT, ENOMEM = -98, -2, -12

BLOCKS = st.sampled_from([0, 0, 0, 1, 2, 510, 511, 512, 512 * 512 - 1])
OFFSETS = st.sampled_from([0, 0, 0, 1, 5, 100, 255, 256, 300, 510, 511])
COUNTS = st.sampled_from(
    [1, 1, 2, 50, 100, 155, 156, 211, 212, 255, 256, 257, 411, 507, 511, 512, 512, 513, 1024, 1500]
)
SHIFTS = st.sampled_from([0, 0, 0, 0, BLOCK, 1, 3 * GIGA])
"""Frame minus dfn, beyond a multiple of 1 GiB: mostly one that folds."""
PERMISSIONS = st.sampled_from([3, 3, 3, 1, 2])
SHAPES = st.sampled_from(
    [
        {"levels": 4},
        {"levels": 3, "root_frames": 2},
        {"levels": 4, "orders": (0, 9)},
        {"levels": 3, "orders": (0,)},
        {"levels": 4, "replace": True},
    ]
)


@st.composite
def operations(draw, limit=1 << 36):
    """A program of (kind, dfn, count, shift, permission, referenced) below ``limit``: calls begin and end where others
    did, or go on where the last one stopped, more often than not."""
    edges = [0, BLOCK]
    last = (0, 0)
    program = []
    for _ in range(draw(st.integers(0, 30))):
        kind = draw(st.sampled_from(["map", "map", "map", "unmap", "unmap", "pause"]))
        where = draw(st.sampled_from(["on", "again", "edge", "anywhere"]))
        if where == "on":
            dfn, count = last[0] + last[1], draw(COUNTS)
        elif where == "again":
            dfn, count = last
        elif where == "edge":
            dfn, end = draw(st.sampled_from(edges)), draw(st.sampled_from(edges))
            count = end - dfn if 0 < end - dfn < 4 * BLOCK else draw(COUNTS)
        else:
            dfn, count = draw(BLOCKS) * BLOCK + draw(OFFSETS), draw(COUNTS)
        count = max(1, min(count + draw(st.sampled_from([0, 0, 0, -1, 1])), limit - dfn))
        if dfn + count > limit:
            continue
        last = (dfn, count)
        edges += (dfn, dfn + count)
        program.append((kind, dfn, count, draw(SHIFTS), draw(PERMISSIONS), draw(st.booleans())))
    return program


def limit_of(shape):
    return shape.get("root_frames", 1) << 9 * shape["levels"]


def play(pair, program):
    for kind, dfn, count, shift, permission, referenced in program:
        if kind == "map":
            pair.map(dfn, dfn + 8 * GIGA + shift, count, pair.bits(permission, referenced and shift == 0))
        elif kind == "unmap":
            pair.unmap(dfn, count)
        else:
            pair.unmap(dfn, count + BLOCK, count)


@settings(max_examples=200, deadline=None)
@given(fmt=st.sampled_from(FORMATS), shape=SHAPES, size=st.sampled_from([0, 2, 3, 4, 5, 6, 8, 64]), data=st.data())
def test_every_result_error_leaf_and_table_is_the_twins(fmt, shape, size, data):
    pair = Pair(fmt, size=size, **shape)
    touched = {0, BLOCK}
    for step in data.draw(operations(limit_of(shape))):
        play(pair, [step])
        _, dfn, count, *_ = step
        touched.update((dfn, dfn + count - 1))
        for page in touched:
            pair.check_page(page)
    pair.check_all()


@settings(max_examples=100, deadline=None)
@given(fmt=st.sampled_from(FORMATS), shape=SHAPES, budget=st.sampled_from([1, 7, 100, 511, 1024]), data=st.data())
def test_teardown_takes_leaves_from_the_front_as_far_as_its_budget_goes(fmt, shape, budget, data):
    pair = Pair(fmt, size=64, **shape)
    play(pair, data.draw(operations(limit_of(shape))))
    left = list(pair.table.leaves())
    empty = False
    while not empty:
        changes = Changes()
        empty = pair.table.empty_some(budget, changes)
        gone, left = left[:budget], left[budget:]
        assert list(pair.table.leaves()) == left
        assert empty == (not left)
        assert changes.modified == bool(gone)
        removed = [
            (mfn + k, entry & (pair.format.read | pair.format.write | pair.format.referenced))
            for mfn, pages, entry in changes.removed
            for k in range(pages)
        ]
        expected = [
            (
                ((entry & ADDRESS_MASK) >> 12) + k,
                entry & (pair.format.read | pair.format.write | pair.format.referenced),
            )
            for _, entry, order in gone
            for k in range(1 << order)
        ]
        assert removed == expected
        for table in changes.tables:
            pair.pool.free(table)
    assert pair.table.tables == pair.table.root_frames
    assert pair.pool.used == 0


@settings(max_examples=100, deadline=None)
@given(fmt=st.sampled_from(FORMATS), shape=SHAPES, data=st.data())
def test_what_is_not_vacant_is_mapped_and_what_is_before_it_is_not(fmt, shape, data):
    pair = Pair(fmt, size=64, **shape)
    steps = data.draw(operations(limit_of(shape)))
    play(pair, steps)
    for _, dfn, count, *_ in steps:
        vacant = pair.table.vacant(dfn, count)
        assert vacant == count or pair.table.lookup(dfn + vacant) is not None
        assert all((pair.table.lookup(dfn + k) or (0, 0, 9))[2] for k in range(vacant))


@settings(max_examples=40, deadline=None)
@given(
    fmt=st.sampled_from(FORMATS),
    cuts=st.lists(st.integers(1, 2 * BLOCK - 1), max_size=6, unique=True),
    order=st.randoms(use_true_random=False),
    shift=st.sampled_from([0, BLOCK, 1, 7]),
)
def test_pieces_fold_in_whatever_order_they_come(fmt, cuts, order, shift):
    pair = Pair(fmt)
    edges = [0, *sorted(cuts), 2 * BLOCK]
    pieces = list(zip(edges, edges[1:]))  # noqa: RUF007
    order.shuffle(pieces)
    for start, end in pieces:
        assert pair.map(start, GIGA + shift + start, end - start) == (end - start, 0)
        pair.check_all()
    assert pair.table.lookup(5)[2] == (0 if shift % BLOCK else 9)
    order.shuffle(pieces)
    for start, end in pieces:
        assert pair.unmap(start, end - start) == (end - start, 0)
        pair.check_all()
    assert pair.table.tables == 1


# 1 GiB


@settings(max_examples=6, deadline=None)
@given(
    fmt=st.sampled_from(FORMATS),
    cuts=st.lists(
        st.one_of(st.integers(1, GIGA - 1), st.integers(1, BLOCK - 1).map(lambda n: n * BLOCK)), max_size=4, unique=True
    ),
    order=st.randoms(use_true_random=False),
    replace=st.booleans(),
)
def test_what_one_call_mapped_one_call_unmaps_without_memory_even_out_of_a_giga_leaf(fmt, cuts, order, replace):
    edges = [0, *sorted(cuts), GIGA]
    pieces = list(zip(edges, edges[1:]))  # noqa: RUF007
    order.shuffle(pieces)
    pair = Pair(fmt, replace=replace)
    for start, end in pieces:
        assert pair.map(start, GIGA + start, end - start) == (end - start, 0)
    assert pair.table.lookup(12345)[2] == 18
    pair.give(0)
    order.shuffle(pieces)
    for start, end in pieces:
        assert pair.unmap(start, end - start) == (end - start, 0)
        pair.give(0)
        pair.check_page(start)
        pair.check_page(end)
    assert pair.table.tables == 1


@settings(max_examples=100, deadline=None)
@given(fmt=st.sampled_from(FORMATS), shape=SHAPES, data=st.data())
def test_what_one_call_mapped_one_call_unmaps_without_memory(fmt, shape, data):
    pair = Pair(fmt, **shape)
    calls = []
    for _ in range(data.draw(st.integers(1, 25))):
        if calls and data.draw(st.booleans()):
            dfn, count = calls.pop(data.draw(st.integers(0, len(calls) - 1)))
            pair.give(0)
            assert pair.unmap(dfn, count) == (count, 0)
        else:
            pair.give(data.draw(st.sampled_from([0, 1, 2, 3, 40])))
            follow = data.draw(st.sampled_from([True, True, False]))
            dfn = sum(calls[-1]) if calls and follow else data.draw(BLOCKS) * BLOCK + data.draw(OFFSETS)
            count = data.draw(COUNTS)
            if dfn + count <= pair.table.root_frames << 9 * pair.table.levels:
                done, _ = pair.map(dfn, 8 * GIGA + dfn + data.draw(SHIFTS), count)
                if done:
                    calls.append((dfn, done))
    pair.check_all()
    pair.give(0)
    for dfn, count in data.draw(st.permutations(calls)):
        assert pair.unmap(dfn, count) == (count, 0)
        pair.give(0)
    assert pair.table.tables == pair.table.root_frames


def test_a_slice_of_a_giga_leaf_without_memory_changes_nothing():
    pair = Pair(size=2)
    pair.map(0, GIGA, GIGA)
    assert pair.table.lookup(0)[2] == 18
    assert pair.unmap(BLOCK + 5, 3) == (0, ENOMEM)
    pair.check_all()
    assert pair.table.lookup(0)[2] == 18


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_a_giga_leaf_loses_one_page_and_gets_it_back(fmt):
    pair = Pair(fmt)
    pair.map(0, GIGA, GIGA)
    for dfn in (0, GIGA - 1):
        assert pair.unmap(dfn, 1) == (1, 0)
        pair.check_all()
        assert pair.map(dfn, GIGA + dfn, 1) == (1, 0)
        pair.check_all()
        assert pair.table.lookup(dfn)[2] == 18


def test_two_giga_leaves_side_by_side_do_not_fold_further():
    pair = Pair()
    pair.map(0, GIGA, 2 * GIGA)
    assert [order for _, _, order in pair.table.leaves()] == [18, 18]
    pair.unmap(5, 2 * GIGA - 5)
    assert [order for _, _, order in pair.table.leaves()] == [0] * 5


# Folding, exactly when


@pytest.mark.parametrize("spoil", ["frame", "bits", "mark", "hole", "order"])
def test_one_odd_page_keeps_a_table_from_folding(spoil):
    pair = Pair()
    odd = 300
    for dfn in range(BLOCK):
        if dfn == odd and spoil == "hole":
            continue
        frame = GIGA + dfn + (spoil == "frame" and dfn == odd)
        if spoil == "order" and dfn in (odd, odd + 1):
            frame = GIGA + (odd + 1 if dfn == odd else odd)
        bits = pair.bits(1 if spoil == "bits" and dfn == odd else 3, spoil == "mark" and dfn == odd)
        pair.map(dfn, frame, 1, bits)
    assert pair.table.lookup(0)[2] == 0
    assert pair.table.folds == 0


def test_a_table_of_frames_that_are_not_aligned_does_not_fold():
    pair = Pair()
    pair.map(0, GIGA + 1, BLOCK)
    assert pair.table.lookup(0)[2] == 0


# Stops


def test_map_stops_at_the_first_occupied_page_and_keeps_what_it_mapped():
    pair = Pair()
    pair.map(BLOCK + 100, 7, 1)
    assert pair.map(0, GIGA, 3 * BLOCK) == (BLOCK + 100, EADDRINUSE)
    assert pair.map(0, GIGA, 3 * BLOCK) == (0, EADDRINUSE)
    assert pair.map(BLOCK + 101, 9, 1) == (1, 0)


def test_unmap_stops_at_the_first_hole():
    pair = Pair()
    pair.map(0, GIGA, BLOCK + 10)
    assert pair.unmap(5, 3 * BLOCK) == (BLOCK + 5, ENOENT)
    assert pair.unmap(5, 1) == (0, ENOENT)


def test_map_without_memory_leaves_the_tree_and_the_pool_as_they_were():
    pair = Pair(size=2)
    before = bytes(pair.memory.read(0, 4096))
    assert pair.map(5, GIGA, 1) == (0, ENOMEM)
    assert bytes(pair.memory.read(0, 4096)) == before
    assert pair.pool.used == 0


def test_map_across_tables_stops_where_memory_ran_out():
    pair = Pair(size=4)
    assert pair.map(BLOCK - 3, GIGA, 2 * BLOCK) == (3 + BLOCK, ENOMEM)
    assert pair.map(BLOCK - 3, GIGA, 1) == (0, EADDRINUSE)


@pytest.mark.parametrize("pause", [1, 100, 511, 512, 513, 1024, 2000])
def test_a_pause_never_cuts_a_superpage_that_goes_as_a_whole(pause):
    pair = Pair(size=3)
    pair.map(0, GIGA, 4 * BLOCK)
    assert pair.pool.used == 3 - 1, "leaves only: no table below them"
    pair.give(0)
    done = 0
    while done < 4 * BLOCK:
        step, error = pair.unmap(done, 4 * BLOCK - done, pause)
        assert error == 0
        assert min(pause, 4 * BLOCK - done) <= step < pause + BLOCK
        done += step
    assert pair.table.tables == 1


def test_nothing_is_done_for_no_pages():
    pair = Pair()
    assert pair.table.map(5, 5, 0, 3, Changes()) == (0, 0)
    assert pair.table.unmap(5, 0, Changes()) == (0, 0)
    assert pair.table.unmap(5, 9, Changes(), 0) == (0, 0)


# Whole trees and snapshots


@settings(max_examples=35, deadline=None)
@given(fmt=st.sampled_from(FORMATS), shape=SHAPES, data=st.data(), budget=st.integers(1, 700))
def test_teardown_removes_every_page_once_and_needs_no_memory(fmt, shape, data, budget):
    pair = Pair(fmt, **shape)
    play(pair, data.draw(operations(limit_of(shape))))
    pages = sum(BLOCK - block.count(0) for block in pair.twin.blocks.values())
    leaves = sum(1 for _ in pair.table.leaves())
    pair.give(0)
    removed = rounds = 0
    empty = False
    while not empty:
        changes = Changes()
        empty = pair.table.empty_some(budget, changes)
        removed += sum(length for _, length, _ in changes.removed)
        rounds += 1
    assert removed == pages
    assert rounds == max(1, -(-leaves // budget))
    assert pair.table.tables == pair.table.root_frames
    assert list(pair.table.leaves()) == []


@settings(max_examples=25, deadline=None)
@given(fmt=st.sampled_from(FORMATS), programs=st.tuples(operations(), operations(), operations()))
def test_going_back_to_a_snapshot_undoes_everything(fmt, programs):
    pair = Pair(fmt)
    play(pair, programs[0])
    pair.memory.snapshot()
    saved = pair.table.save()
    blocks = {number: block[:] for number, block in pair.twin.blocks.items()}
    whole, free = set(pair.twin.whole), pair.pool._free[:]
    for program in programs[1:]:
        play(pair, program)
        pair.memory.reset()
        pair.table.restore(saved)
        pair.twin.blocks = {number: block[:] for number, block in blocks.items()}
        pair.twin.whole = set(whole)
        pair.pool._free[:] = free
        pair.check_accounts()
        pair.check_all()
    play(pair, programs[1])
    pair.check_all()


@pytest.mark.parametrize("order", [9, 18])
@pytest.mark.parametrize("count_off,dfn_off", [(-1, 0), (0, 1), (0, -1), (-1, 1)])
def test_a_superpage_is_removed_as_a_whole_only_if_it_is_covered_as_a_whole(order, count_off, dfn_off):
    pair = Pair()
    span = 1 << order
    pair.map(0, GIGA, 3 * span)
    assert pair.unmap(span + dfn_off, span + count_off) == (span + count_off, 0)
    pair.check_all()


# With the pools that the hypervisor really has


@pytest.mark.parametrize("arena", [True, False])
def test_pools_get_every_table_back(arena):
    frames = frame_table()
    pair = Pair()
    if arena:
        pool = Arena(64, 64)
        used = lambda: pool.used  # noqa: E731
    else:
        frames.allocate_at(0x7FF2, 0, 16)
        pool = HeapPool(frames)
        used = lambda: sum(frames.count(mfn) for mfn in range(16, frames.frames))  # noqa: E731
    pair.table._pool = pool
    assert used() == 0
    for dfn in (0, BLOCK, 5 * GIGA + 3, GIGA * BLOCK):
        pair.table.map(dfn, GIGA + dfn % BLOCK, BLOCK + 1, 3, Changes())
    assert used() == pair.table.tables - 1 > 5
    changes = Changes()
    while not pair.table.empty_some(10, changes):
        pass
    for table in changes.tables:
        pool.free(table)
    assert used() == 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""The caches on their own: level-selective invalidation against a plain list of entries."""

from hypothesis import given
from hypothesis import strategies as st

from machine.iommu.smmuv3.tlb import Stage2Tlb, WalkCache

PAGES = st.integers(0, 5 << 18)
ENTRIES = st.lists(st.tuples(st.integers(1, 2), PAGES, st.sampled_from([0, 9, 18])), max_size=30)
COUNTS = st.one_of(st.integers(1, 2000), st.integers(1, 1 << 41))


@given(ENTRIES, st.integers(1, 2), PAGES, COUNTS, st.integers(0, 3))
def test_level_selective_invalidation_drops_what_covers_the_range(entries, vmid, page, count, ttl):
    tlb = Stage2Tlb()
    plain = {}
    for tag, at, order in entries:
        tlb.insert(tag, at, order, (0, 3))
        plain[tag, at >> order << order, order] = True
    doomed = {
        (tag, at, order)
        for tag, at, order in plain
        if tag == vmid
        and at < page + count
        and page < at + (1 << order)
        and (not ttl or order == {1: 18, 2: 9, 3: 0}[ttl])
    }
    assert tlb.invalidate_level(vmid, page, count, ttl) == len(doomed)
    assert len(tlb) == len(plain) - len(doomed)
    for tag, at, order in plain:
        if (tag, at, order) not in doomed:
            assert tlb.lookup(tag, at) is not None


@given(ENTRIES, st.integers(1, 2), PAGES, COUNTS, st.integers(0, 3))
def test_table_invalidation_drops_descriptors_above_the_level_on_the_way(entries, vmid, page, count, ttl):
    cache = WalkCache()
    spans = (27, 18, 9)
    plain = set()
    for tag, at, level in ((tag, at, {18: 0, 9: 1, 0: 2}[order]) for tag, at, order in entries):
        cache.known(tag)[level][at >> spans[level]] = 0x1000
        plain.add((tag, level, at >> spans[level]))
    cache.invalidate_pages(vmid, page, count, ttl)
    for tag, level, key in plain:
        first = key << spans[level]
        dropped = tag == vmid and first < page + count and page < first + (1 << spans[level]) and level < (ttl or 3)
        assert (key in cache.known(tag)[level]) == (not dropped)


def test_a_saved_cache_does_not_follow_later_changes():
    cache = WalkCache()
    cache.known(1)[2][7] = 0x1000
    state = cache.save()
    cache.known(1)[2][8] = 0x2000
    cache.restore(state)
    cache.known(1)[2].clear()
    cache.restore(state)
    assert cache.known(1) == ({}, {}, {7: 0x1000})


def test_no_capacity_keeps_no_tables():
    assert WalkCache(0).known(1) is None

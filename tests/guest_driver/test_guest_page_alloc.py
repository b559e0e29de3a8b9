# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest pages: aligned, apart from each other, all accounted for."""

from itertools import pairwise

from fake_hypervisor import FakeRam
from hypothesis import given
from hypothesis import strategies as st

from guest_driver.linux.page_alloc import GFP_KERNEL, GFP_NORETRY, GFP_ZERO, MAX_PAGE_ORDER, PageAllocator
from guest_driver.linux.printk import Printk


def allocator(pages=64, **kwargs):
    printk = Printk()
    return PageAllocator(FakeRam(pages), printk, **kwargs), printk


@given(st.lists(st.one_of(st.integers(0, 4), st.integers(-20, -1)), max_size=80))
def test_blocks_are_aligned_disjoint_and_all_come_back(program):
    pages, printk = allocator()
    live = []
    for step in program:
        if step < 0:
            if live:
                pages.free_pages(*live.pop(step % len(live)))
            continue
        pfn = pages.alloc_pages(GFP_KERNEL, step)
        if not pfn:
            used = {page for start, order in live for page in range(start, start + (1 << order))} | {0}
            size = 1 << step
            assert all(used & set(range(at, at + size)) for at in range(0, 64, size))
            continue
        assert pfn % (1 << step) == 0
        assert all(pfn + (1 << step) <= other or other + (1 << order) <= pfn for other, order in live)
        live.append((pfn, step))
    assert pages.allocated == sum(1 << order for _, order in live)
    for block in live:
        pages.free_pages(*block)
    assert pages.allocated == 0 and printk.warnings == 0


def test_successive_pages_are_not_neighbours_unless_asked_for():
    pages, _ = allocator()
    got = [pages.alloc_pages(GFP_KERNEL) for _ in range(20)]
    assert all(abs(a - b) > 1 for a, b in pairwise(got))
    pages, _ = allocator(scatter=False)
    assert [pages.alloc_pages(GFP_KERNEL) for _ in range(3)] == [1, 2, 3]


def test_neighbours_nobody_insists_on_are_not_to_be_had_from_a_scattered_allocator():
    for scatter in (True, False):
        pages, _ = allocator(scatter=scatter)
        assert bool(pages.alloc_pages(GFP_KERNEL | GFP_NORETRY, 2)) is not scatter
        assert pages.alloc_pages(GFP_KERNEL, 2)


def test_every_page_but_the_first_can_be_had():
    pages, _ = allocator()
    got = {pages.alloc_pages(GFP_KERNEL) for _ in range(63)}
    assert got == set(range(1, 64)) and pages.alloc_pages(GFP_KERNEL) == 0


def test_bad_frees_are_warnings_and_change_nothing():
    pages, printk = allocator()
    pfn = pages.alloc_pages(GFP_KERNEL, 2)
    for bad in ((pfn, 1), (pfn + 1, 0), (0, 0), (999, 0)):
        pages.free_pages(*bad)
    pages.free_pages(pfn, 2)
    pages.free_pages(pfn, 2)
    assert printk.warnings == 5 and pages.allocated == 0


def test_zeroed_pages_are_zero():
    ram = FakeRam(8)
    pages = PageAllocator(ram, Printk())
    ram.write(0, b"\xff" * (8 << 12))
    pfn = pages.alloc_pages(GFP_KERNEL | GFP_ZERO, 1)
    assert ram.read(pfn << 12, 2 << 12) == bytes(2 << 12)


def test_orders_beyond_the_limit_fail():
    pages, _ = allocator(4096)
    assert pages.alloc_pages(GFP_KERNEL, MAX_PAGE_ORDER) and not pages.alloc_pages(GFP_KERNEL, MAX_PAGE_ORDER + 1)


def test_fault_point_fails_the_allocation_it_is_asked_about():
    pages, _ = allocator()
    pages.fault = lambda order: order == 1
    assert pages.alloc_pages(GFP_KERNEL) and not pages.alloc_pages(GFP_KERNEL, 1)


def test_restore_brings_back_the_same_sequence():
    pages, _ = allocator()
    pages.alloc_pages(GFP_KERNEL, 2)
    state = pages.save()
    before = [pages.alloc_pages(GFP_KERNEL, order) for order in (0, 1, 0, 2)]
    pages.restore(state)
    assert [pages.alloc_pages(GFP_KERNEL, order) for order in (0, 1, 0, 2)] == before

# SPDX-License-Identifier: GPL-2.0-or-later
"""iommu_map, iommu_unmap and iommu_map_sg on the mock driver."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_domain import MockDomain, MockIommu, endpoints, mock_kernel

from abi.errno import EINVAL, EIO, ENODEV, ENOMEM
from guest_driver.linux.iommu import IOMMU_DOMAIN_IDENTITY, IOMMU_DOMAIN_UNMANAGED
from guest_driver.linux.iommu_core import iommu_paging_domain_alloc
from guest_driver.linux.iommu_map import (
    iommu_iova_to_phys,
    iommu_map,
    iommu_map_sg,
    iommu_pgsize,
    iommu_unmap,
)
from guest_driver.linux.page_alloc import GFP_DMA32, GFP_KERNEL
from guest_driver.linux.scatterlist import Scatterlist

pytestmark = pytest.mark.core

RW = 3
SMALL = 0x1000
BITMAPS = [0x1000, 0x1000 | 0x200000, 0x1000 | 0x200000 | 0x40000000, 0x800 | 0x100000, 0x1000 | 0x10000 | 0x2000000]


def paging_domain(mock=None):
    kernel, mock = mock_kernel(endpoints(1), mock)
    domain = iommu_paging_domain_alloc(kernel.devices[0])
    mock.calls.clear()
    return kernel, mock, domain


def bare_domain(bitmap):
    domain = MockDomain(type=IOMMU_DOMAIN_UNMANAGED)
    domain.pgsize_bitmap = bitmap
    return domain


@st.composite
def ranges(draw, bitmaps=tuple(BITMAPS), small_pages=1200):
    bitmap = draw(st.sampled_from(bitmaps))
    smallest = bitmap & -bitmap
    big = [size for size in (1 << bit for bit in range(64)) if bitmap & size]
    unit = draw(st.sampled_from(big))
    iova = draw(st.integers(0, 40)) * unit + draw(st.integers(0, 3)) * smallest
    paddr = draw(st.integers(0, 40)) * unit + draw(st.sampled_from([0, iova % unit, smallest]))
    size = (draw(st.integers(0, 3)) * unit + draw(st.integers(1, small_pages)) * smallest) & -smallest
    return bitmap, iova, paddr & -smallest, size


@given(ranges())
def test_page_size_runs_cover_the_range_exactly_and_are_aligned(case):
    bitmap, iova, paddr, size = case
    domain = bare_domain(bitmap)
    done = 0
    while done < size:
        pgsize, count = iommu_pgsize(domain, iova + done, paddr + done, size - done)
        assert bitmap & pgsize and count > 0
        assert (iova + done) % pgsize == 0 and (paddr + done) % pgsize == 0
        assert pgsize * count <= size - done
        done += pgsize * count
    assert done == size


@given(ranges())
def test_page_size_is_never_smaller_than_what_fits_at_the_start(case):
    bitmap, iova, paddr, size = case
    pgsize, count = iommu_pgsize(bare_domain(bitmap), iova, paddr, size)
    fitting = [bit for bit in (1 << n for n in range(64)) if bitmap & bit and bit <= size and (iova | paddr) % bit == 0]
    assert pgsize == max(fitting)
    # No page of a bigger size that fits into the range begins inside the run.
    for bigger in (1 << n for n in range(64) if bitmap >> n & 1 and 1 << n > pgsize):
        start = -(-iova // bigger) * bigger
        if iova <= start and start + bigger <= iova + size and (paddr + start - iova) % bigger == 0:
            assert iova + pgsize * count <= start


@pytest.mark.parametrize(("iova", "paddr", "size"), [(1, 0, SMALL), (0, 0x800, SMALL), (0, 0, SMALL + 1)])
def test_misaligned_map_is_einval_without_a_driver_call(iova, paddr, size):
    _, mock, domain = paging_domain()
    assert iommu_map(domain, iova, paddr, size, RW) == -EINVAL
    assert not mock.calls


def test_map_of_a_domain_that_is_not_paging_is_einval():
    kernel, mock, _ = paging_domain()
    assert iommu_map(mock.ops.identity_domain, 0x1000, 0x1000, SMALL, RW) == -EINVAL
    assert iommu_unmap(mock.ops.identity_domain, 0x1000, SMALL) == 0
    assert kernel.printk.warnings == 0


def test_paging_domain_without_page_sizes_is_a_warning_and_enodev():
    kernel, _, domain = paging_domain()
    domain.pgsize_bitmap = 0
    assert iommu_map(domain, 0x1000, 0x1000, SMALL, RW) == -ENODEV
    assert kernel.printk.warnings == 1


def test_allocation_flags_for_a_zone_are_refused():
    _, mock, domain = paging_domain()
    assert iommu_map(domain, 0x1000, 0x1000, SMALL, RW, GFP_KERNEL | GFP_DMA32) == -EINVAL
    assert not mock.calls


def test_map_of_nothing_succeeds_without_a_page():
    _, mock, domain = paging_domain()
    assert iommu_map(domain, 0x1000, 0x1000, 0, RW) == 0
    assert not mock.named("map") and not domain.table


@settings(max_examples=60)
@given(ranges((0x1000, 0x1000 | 0x8000, 0x800 | 0x4000 | 0x20000), 50), st.data())
def test_failed_map_leaves_the_domain_as_it_was(case, data):
    bitmap, iova, paddr, size = case
    _, mock, domain = paging_domain(MockIommu(pgsize_bitmap=bitmap))
    assert iommu_map(domain, iova, paddr, size, RW) == 0
    pages = len(domain.sizes)
    assert iommu_unmap(domain, iova, size) == size
    assert not domain.table
    mock.page_budget = data.draw(st.integers(0, pages - 1))
    assert iommu_map(domain, iova, paddr, size, RW) == -ENOMEM
    assert not domain.table and not domain.sizes


def test_map_over_an_existing_page_fails_and_leaves_it():
    _, _, domain = paging_domain()
    assert iommu_map(domain, 0x5000, 0x9000, SMALL, RW) == 0
    assert iommu_map(domain, 0x3000, 0x1000, 4 * SMALL, RW) < 0
    assert domain.table == {0x5000: (0x9000, RW)}


def test_map_error_of_the_driver_reaches_the_caller():
    _, mock, domain = paging_domain()
    mock.page_budget = 3
    assert iommu_map(domain, 0, 0, 8 * SMALL, RW) == -ENOMEM


def test_sync_map_runs_once_over_the_whole_mapping():
    _, mock, domain = paging_domain(MockIommu(pgsize_bitmap=0x201000))
    assert iommu_map(domain, 0x1FF000, 0x3FF000, 0x400000, RW) == 0
    assert mock.named("sync_map") == [("sync_map", 0x1FF000, 0x400000)]
    assert len(mock.named("map")) == 3


def test_failing_sync_map_unmaps_the_whole_range():
    _, mock, domain = paging_domain()
    mock.sync_map_error = EIO
    assert iommu_map(domain, 0x4000, 0x8000, 5 * SMALL, RW) == -EIO
    assert not domain.table


def test_unmap_stops_at_the_first_hole():
    _, _, domain = paging_domain()
    iommu_map(domain, 0x1000, 0x1000, 2 * SMALL, RW)
    iommu_map(domain, 0x4000, 0x4000, SMALL, RW)
    assert iommu_unmap(domain, 0x1000, 4 * SMALL) == 2 * SMALL
    assert list(domain.table) == [0x4000]


def test_unmap_of_nothing_is_zero():
    _, _, domain = paging_domain()
    assert iommu_unmap(domain, 0x1000, 16 * SMALL) == 0


def test_unmap_may_remove_a_bigger_page_whole_and_says_so():
    _, _, domain = paging_domain(MockIommu(pgsize_bitmap=0x201000))
    iommu_map(domain, 0x200000, 0x400000, 0x200000, RW)
    assert iommu_unmap(domain, 0x200000, SMALL) == 0x200000
    assert not domain.table


def test_unmap_inside_a_bigger_page_removes_nothing():
    _, _, domain = paging_domain(MockIommu(pgsize_bitmap=0x201000))
    iommu_map(domain, 0x200000, 0x400000, 0x200000, RW)
    assert iommu_unmap(domain, 0x201000, SMALL) == 0
    assert len(domain.table) == 512


def test_unmap_ends_with_a_sync_that_covers_what_it_removed():
    _, mock, domain = paging_domain()
    iommu_map(domain, 0x1000, 0x1000, 3 * SMALL, RW)
    iommu_unmap(domain, 0x1000, 3 * SMALL)
    assert mock.named("sync") == [("sync", 0x1000, 0x3FFF)]
    mock.calls.clear()
    iommu_unmap(domain, 0x1000, 3 * SMALL)
    assert not mock.named("sync")


def test_iova_to_phys_keeps_the_offset_and_knows_the_static_domains():
    _, mock, domain = paging_domain()
    iommu_map(domain, 0x1000, 0x9000, SMALL, RW)
    assert iommu_iova_to_phys(domain, 0x1ABC) == 0x9ABC
    assert iommu_iova_to_phys(domain, 0x2000) == 0
    assert iommu_iova_to_phys(mock.ops.identity_domain, 0x12345) == 0x12345
    assert iommu_iova_to_phys(mock.ops.blocked_domain, 0x12345) == 0
    assert mock.ops.identity_domain.type == IOMMU_DOMAIN_IDENTITY


elements = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 4)), min_size=1, max_size=8)


@settings(max_examples=60)
@given(elements)
def test_map_sg_translates_like_single_maps(parts):
    _, _, domain = paging_domain()
    entries = [Scatterlist(page * SMALL, count * SMALL) for page, count in parts]
    total = sum(entry.length for entry in entries)
    assert iommu_map_sg(domain, 0x100000, entries, RW) == total
    expected, iova = {}, 0x100000
    for entry in entries:
        for step in range(0, entry.length, SMALL):
            expected[iova] = (entry.paddr + step, RW)
            iova += SMALL
    assert domain.table == expected


@settings(max_examples=60)
@given(elements, st.data())
def test_failed_map_sg_leaves_nothing(parts, data):
    _, mock, domain = paging_domain()
    entries = [Scatterlist(page * SMALL, count * SMALL) for page, count in parts]
    mock.page_budget = data.draw(st.integers(0, sum(count for _, count in parts) - 1))
    assert iommu_map_sg(domain, 0x100000, entries, RW) == -ENOMEM
    assert not domain.table


def test_map_sg_joins_physical_neighbours_and_skips_bus_addresses():
    _, mock, domain = paging_domain()
    peer = Scatterlist(0x70000, SMALL)
    peer.dma_bus_address = True
    entries = [Scatterlist(0x3000, SMALL), Scatterlist(0x4000, SMALL), peer, Scatterlist(0x9000, SMALL)]
    assert iommu_map_sg(domain, 0x10000, entries, RW) == 3 * SMALL
    assert mock.named("map") == [("map", 0x10000, 0x3000, SMALL, 2), ("map", 0x12000, 0x9000, SMALL, 1)]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Bounce buffers: a device that is not trusted reaches the bytes of its buffer and no others."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mock_domain import MockIommu, endpoints, mock_kernel

from guest_driver.linux import dma
from guest_driver.linux.dma_iommu import DMA_BIDIRECTIONAL, DMA_FROM_DEVICE, DMA_MAPPING_ERROR, DMA_TO_DEVICE
from guest_driver.linux.iommu_map import iommu_iova_to_phys
from guest_driver.linux.scatterlist import Scatterlist

pytestmark = pytest.mark.core

PAGE = 4096


def device(untrusted=True, mock=None):
    (info,) = endpoints(1)
    kernel, mock = mock_kernel([replace(info, untrusted=untrusted)], mock)
    (dev,) = kernel.devices
    return dev, kernel, dev.iommu_group.default_domain, mock


def neighbours(kernel):
    """The first of two pages that are full of things which are nobody's business."""
    pfn = kernel.pages.alloc_pages(0, 1)
    kernel.ram.write(pfn * PAGE, b"secret! " * 1024)
    return pfn * PAGE


def reach(kernel, domain, address, size):
    """What the device reads."""
    return b"".join(kernel.ram.read(iommu_iova_to_phys(domain, address + at), 1) for at in range(size))


def test_a_device_that_is_not_trusted_sees_its_buffer_and_zeros():
    dev, kernel, domain, _ = device()
    paddr = neighbours(kernel) + 0xF80
    kernel.ram.write(paddr, b"x" * 256)
    address = dma.dma_map_single(dev, paddr, 256, DMA_TO_DEVICE)
    assert not dma.dma_mapping_error(dev, address)
    assert reach(kernel, domain, address, PAGE) == b"x" * 256 + bytes(PAGE - 256)
    assert len(domain.table) == 1
    dma.dma_unmap_single(dev, address, 256, DMA_TO_DEVICE)
    assert not domain.table and not kernel.swiotlb.slots and kernel.pages.allocated == 2 and kernel.printk.warnings == 0


@pytest.mark.parametrize("untrusted, offset, size", [(False, 0x80, 256), (True, 0, PAGE), (True, 0, 2 * PAGE)])
def test_whole_pages_and_trusted_devices_are_mapped_as_they_are(untrusted, offset, size):
    dev, kernel, domain, _ = device(untrusted)
    paddr = neighbours(kernel) + offset
    address = dma.dma_map_single(dev, paddr, size, DMA_BIDIRECTIONAL)
    assert iommu_iova_to_phys(domain, address) == paddr and not kernel.swiotlb.slots
    dma.dma_unmap_single(dev, address, size, DMA_BIDIRECTIONAL)
    assert not domain.table


@given(st.integers(0, PAGE - 1), st.integers(1, 3000), st.sampled_from([DMA_FROM_DEVICE, DMA_BIDIRECTIONAL]))
def test_what_the_device_wrote_is_there_after_unmap_and_nothing_else_is_touched(offset, size, direction):
    dev, kernel, domain, _ = device()
    base = neighbours(kernel)
    before = kernel.ram.read(base, 2 * PAGE)
    address = dma.dma_map_single(dev, base + offset, size, direction)
    kernel.ram.write(iommu_iova_to_phys(domain, address), b"w" * size)
    if offset or size % PAGE:
        assert kernel.ram.read(base, 2 * PAGE) == before
    dma.dma_unmap_single(dev, address, size, direction)
    assert kernel.ram.read(base, 2 * PAGE) == before[:offset] + b"w" * size + before[offset + size :]
    assert not kernel.swiotlb.slots and kernel.pages.allocated == 2


def test_ownership_of_a_buffer_that_stays_mapped_changes_by_sync():
    dev, kernel, domain, _ = device()
    paddr = neighbours(kernel) + 8
    address = dma.dma_map_single(dev, paddr, 64, DMA_BIDIRECTIONAL)
    behind = iommu_iova_to_phys(domain, address)
    kernel.ram.write(behind + 16, b"from the device")
    assert kernel.ram.read(paddr + 16, 4) == b"secr"
    dma.dma_sync_single_for_cpu(dev, address, 15, DMA_BIDIRECTIONAL, 16)
    assert kernel.ram.read(paddr, 64) == b"secret! " * 2 + b"from the device" + b" " + b"secret! " * 4
    kernel.ram.write(paddr, b"answer")
    dma.dma_sync_single_for_device(dev, address, 6, DMA_BIDIRECTIONAL)
    assert kernel.ram.read(behind, 6) == b"answer"
    dma.dma_unmap_single(dev, address, 64, DMA_TO_DEVICE)


def test_lists_are_bounced_element_by_element_and_undone_as_a_whole():
    dev, kernel, domain, mock = device(mock=MockIommu())
    base = neighbours(kernel)
    entries = [Scatterlist(base, 100), Scatterlist(base + PAGE, PAGE), Scatterlist(base + 200, 8)]
    assert dma.dma_map_sg(dev, entries, DMA_BIDIRECTIONAL) == 3
    assert [entry.dma_length for entry in entries] == [100, PAGE, 8] and len(kernel.swiotlb.slots) == 2
    kernel.ram.write(iommu_iova_to_phys(domain, entries[2].dma_address), b"replaced")
    dma.dma_unmap_sg(dev, entries, DMA_BIDIRECTIONAL)
    assert kernel.ram.read(base + 200, 8) == b"replaced" and not domain.table and not kernel.swiotlb.slots
    mock.page_budget = 2
    fresh = [Scatterlist(base, 100), Scatterlist(base + PAGE, PAGE), Scatterlist(base + 200, 8)]
    assert dma.dma_map_sg(dev, fresh, DMA_BIDIRECTIONAL) == 0
    assert not domain.table and not kernel.swiotlb.slots and kernel.pages.allocated == 2
    assert not domain.cookie.iovad.live_ranges()


def test_no_memory_for_a_copy_is_a_mapping_error_and_leaves_nothing():
    dev, kernel, domain, mock = device(mock=MockIommu())
    paddr = neighbours(kernel) + 8
    kernel.pages.fault = lambda order: True
    assert dma.dma_map_single(dev, paddr, 64, DMA_TO_DEVICE) == DMA_MAPPING_ERROR
    kernel.pages.fault = None
    mock.page_budget = 0
    assert dma.dma_map_single(dev, paddr, 64, DMA_TO_DEVICE) == DMA_MAPPING_ERROR
    assert not domain.table and not kernel.swiotlb.slots and kernel.pages.allocated == 2


def test_bounce_buffers_are_part_of_a_snapshot():
    dev, kernel, _, _ = device()
    paddr = neighbours(kernel) + 8
    state = kernel.save()
    dma.dma_map_single(dev, paddr, 64, DMA_TO_DEVICE)
    assert kernel.swiotlb.slots
    kernel.restore(state)
    assert not kernel.swiotlb.slots

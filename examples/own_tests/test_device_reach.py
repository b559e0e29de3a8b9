# SPDX-License-Identifier: GPL-2.0-or-later
"""What a device reaches through the DMA API, and what it does not."""

import pytest

from fuzz.program import parse
from fuzz.run import replay

DMA_TO_DEVICE, DMA_FROM_DEVICE = 1, 2
PAGE = 4096


def test_a_device_writes_where_a_page_was_mapped(testbed, guest, device):
    iova = guest.kernel.dma.map_page(device.kernel, 42, 0, PAGE, DMA_FROM_DEVICE)
    assert device.write(iova, b"hello") is None
    assert testbed.ram.read(42 * PAGE, 5) == b"hello"


def test_nothing_is_reached_any_more_after_unmapping(guest, device):
    dma = guest.kernel.dma
    iova = dma.map_page(device.kernel, 42, 0, PAGE, DMA_FROM_DEVICE)
    assert device.write(iova, b"before") is None
    dma.unmap_page(device.kernel, iova, PAGE, DMA_FROM_DEVICE)
    assert device.write(iova, b"after").name
    assert device.walk(iova, write=True).blocked


def test_a_page_that_is_mapped_to_be_read_is_not_written(guest, device):
    iova = guest.kernel.dma.map_page(device.kernel, 42, 0, PAGE, DMA_TO_DEVICE)
    assert isinstance(device.read(iova, 16), bytes)
    assert device.write(iova, b"!") is not None


@pytest.mark.pviommu(guest="pv")
def test_frames_of_a_pv_guest_are_scattered_and_mapped_all_the_same(testbed, guest, device):
    pages = range(1500, 1600)
    iovas = [guest.kernel.dma.map_page(device.kernel, page, 0, PAGE, DMA_FROM_DEVICE) for page in pages]
    for page, iova in zip(pages, iovas):
        assert device.write(iova, page.to_bytes(4, "little")) is None
    assert [int.from_bytes(testbed.ram.read(page * PAGE, 4), "little") for page in pages] == list(pages)


def test_a_finding_of_the_fuzzer_stays_fixed():
    """The text that 'pviommu fuzz' writes is a test as it stands."""
    assert replay(parse("# pviommu program 1\nbench\nalloc\nmap ctx=1 frame=ram:9 at=0x400\nfree ctx=1\n")) is None

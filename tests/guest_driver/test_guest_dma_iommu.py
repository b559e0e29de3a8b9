# SPDX-License-Identifier: GPL-2.0-or-later
"""The DMA API over an IOMMU domain, and without one."""

import pytest
from fake_hypervisor import FakePci, FakeRam, NoMmio
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_domain import MockIommu, endpoints, mock_kernel, one_group

from abi.errno import EEXIST, EINVAL, EIO, ENOMEM
from base.units import PAGE_SIZE, U32_MAX, parse_sbdf
from guest_driver.linux import dma
from guest_driver.linux.device import Device, dma_bit_mask
from guest_driver.linux.dma_cookie import iommu_get_dma_cookie, iommu_get_msi_cookie
from guest_driver.linux.dma_domain import iommu_dma_init_domain
from guest_driver.linux.dma_iommu import (
    DMA_BIDIRECTIONAL,
    DMA_FROM_DEVICE,
    DMA_MAPPING_ERROR,
    DMA_TO_DEVICE,
    iommu_dma_map_sg,
)
from guest_driver.linux.dma_msi import iommu_dma_prepare_msi
from guest_driver.linux.iommu import (
    IOMMU_CACHE,
    IOMMU_MMIO,
    IOMMU_READ,
    IOMMU_RESV_MSI,
    IOMMU_RESV_RESERVED,
    IOMMU_RESV_SW_MSI,
    IOMMU_WRITE,
    IommuResvRegion,
)
from guest_driver.linux.iommu_core import iommu_paging_domain_alloc
from guest_driver.linux.iommu_group import attach_dev
from guest_driver.linux.iommu_map import iommu_iova_to_phys
from guest_driver.linux.kernel import CommandLine, Kernel
from guest_driver.linux.scatterlist import Scatterlist
from guest_driver.port import PciInfo

pytestmark = pytest.mark.core

MASK64 = dma_bit_mask(64)


def dma_device(mock=None, functions=None, mask=MASK64, **cmdline):
    kernel, mock = mock_kernel(functions or endpoints(1), mock, **cmdline)
    dev = kernel.devices[0]
    assert dma.dma_set_mask_and_coherent(dev, mask) == 0
    domain = dev.iommu_group.default_domain
    mock.calls.clear()
    return dev, domain, mock


def iovad_of(domain):
    return domain.cookie.iovad


def test_mapping_keeps_the_offset_and_covers_every_page_touched():
    dev, domain, _ = dma_device()
    address = dma.dma_map_single(dev, 0x5FFE, 4, DMA_TO_DEVICE)
    assert address & 0xFFF == 0xFFE
    assert [iommu_iova_to_phys(domain, address + step) for step in range(4)] == [0x5FFE + step for step in range(4)]
    dma.dma_unmap_single(dev, address, 4, DMA_TO_DEVICE)
    assert not domain.table and not iovad_of(domain).live_ranges()


@pytest.mark.parametrize(
    ("direction", "prot"),
    [
        (DMA_TO_DEVICE, IOMMU_READ),
        (DMA_FROM_DEVICE, IOMMU_WRITE),
        (DMA_BIDIRECTIONAL, IOMMU_READ | IOMMU_WRITE),
    ],
)
@pytest.mark.parametrize("coherent", [True, False])
def test_direction_and_coherency_decide_the_protection(direction, prot, coherent):
    dev, domain, _ = dma_device()
    dev.dma_coherent = coherent
    dma.dma_map_single(dev, 0x5000, 4, direction)
    ((_, seen),) = domain.table.values()
    assert seen == prot | (IOMMU_CACHE if coherent else 0)


def test_registers_are_mapped_as_mmio():
    dev, domain, _ = dma_device()
    address = dma.dma_map_resource(dev, 0xE0001000, 0x1000, DMA_BIDIRECTIONAL)
    assert set(domain.table.values()) == {(0xE0001000, IOMMU_READ | IOMMU_WRITE | IOMMU_MMIO)}
    dma.dma_unmap_resource(dev, address, 0x1000, DMA_BIDIRECTIONAL)
    assert not domain.table


sizes = st.lists(st.tuples(st.integers(1, 40000), st.integers(0, 4095)), min_size=1, max_size=30)


@settings(max_examples=80)
@given(sizes, st.sampled_from([dma_bit_mask(24), dma_bit_mask(30), U32_MAX, dma_bit_mask(39), MASK64]))
def test_addresses_stay_within_the_mask_apart_from_each_other_and_everything_comes_back(buffers, mask):
    mock = MockIommu(aperture=(0x10000, dma_bit_mask(36)))
    mock.regions["0000:00:01.0"] = [IommuResvRegion(0xFEE00000, 0x100000, 2, IOMMU_RESV_MSI)]
    dev, domain, _ = dma_device(mock, mask=mask)
    live = []
    for size, offset in buffers:
        address = dma.dma_map_single(dev, 0x7000 + offset, size, DMA_TO_DEVICE)
        assert address != DMA_MAPPING_ERROR
        first, last = address >> 12, address + size - 1 >> 12
        assert first >= 0x10 and address + size - 1 <= min(mask, domain.aperture_last)
        assert last < 0xFEE00 or first > 0xFEEFF
        assert first % (1 << (last - first).bit_length()) == 0
        assert all(last < other or end < first for other, end in live)
        live.append((first, last))
    for (size, offset), (first, _) in zip(buffers, live):
        dma.dma_unmap_single(dev, (first << 12) + offset, size, DMA_TO_DEVICE)
    assert not domain.table and not iovad_of(domain).live_ranges()
    assert dev.kernel.printk.warnings == 0


def test_wide_devices_stay_below_4_gib_until_that_is_full():
    dev, domain, _ = dma_device()
    assert dma.dma_map_single(dev, 0x5000, 1, DMA_TO_DEVICE) <= U32_MAX
    iovad_of(domain).reserve_iova(0, U32_MAX >> 12)
    for _ in range(200):  # what the caches still hold
        address = dma.dma_map_single(dev, 0x5000, 1, DMA_TO_DEVICE)
    assert address > U32_MAX and not dev.iommu.pci_32bit_workaround
    assert any("DMA addresses" in line for line in dev.kernel.printk.lines)


def test_forcedac_goes_high_at_once():
    dev, _, _ = dma_device(forcedac=True)
    assert dma.dma_map_single(dev, 0x5000, 1, DMA_TO_DEVICE) > U32_MAX


def test_bus_limit_binds_where_the_mask_does_not():
    dev, _, _ = dma_device()
    dev.bus_dma_limit = dma_bit_mask(26)
    assert dma.dma_map_single(dev, 0x5000, 1, DMA_TO_DEVICE) <= dma_bit_mask(26)


def test_exhausted_space_is_a_mapping_error():
    dev, domain, _ = dma_device(mask=0x3FFF)
    got = [dma.dma_map_single(dev, 0x5000, 1, DMA_TO_DEVICE) for _ in range(4)]
    assert sorted(got) == [0x1000, 0x2000, 0x3000, DMA_MAPPING_ERROR]
    assert dma.dma_mapping_error(dev, got[-1]) == -EIO and not dma.dma_mapping_error(dev, got[0])
    assert len(domain.table) == 3


@pytest.mark.parametrize("budget", range(4))
def test_failed_mapping_gives_its_iova_back(budget):
    dev, domain, mock = dma_device()
    mock.page_budget = budget
    assert dma.dma_map_single(dev, 0x5800, 4 * PAGE_SIZE - 0x800, DMA_TO_DEVICE) == DMA_MAPPING_ERROR
    assert not domain.table and not iovad_of(domain).live_ranges()


def test_empty_buffers_are_refused():
    dev, domain, _ = dma_device()
    assert dma.dma_map_single(dev, 0x5000, 0, DMA_TO_DEVICE) == DMA_MAPPING_ERROR
    assert dma.dma_map_resource(dev, 0x5000, 0, DMA_TO_DEVICE) == DMA_MAPPING_ERROR
    assert dma.dma_alloc_coherent(dev, 0) is None
    assert dma.dma_map_sg(dev, [], DMA_TO_DEVICE) == 0
    assert dma.dma_map_sgtable(dev, [Scatterlist(0x1000, 0)], DMA_TO_DEVICE) == -EINVAL
    assert not domain.table


def test_short_unmap_is_a_warning():
    dev, domain, _ = dma_device()
    address = dma.dma_map_single(dev, 0x5000, 0x2000, DMA_TO_DEVICE)
    domain.table.clear()
    dma.dma_unmap_single(dev, address, 0x2000, DMA_TO_DEVICE)
    assert dev.kernel.printk.warnings == 1


def test_unmap_invalidates_before_the_iova_can_be_reused():
    dev, _, mock = dma_device()
    address = dma.dma_map_single(dev, 0x5000, 0x1000, DMA_TO_DEVICE)
    seen = []
    mock.ops.default_domain_ops.iotlb_sync = lambda domain, gather: seen.append(
        (gather.start, gather.last, list(iovad_of(domain).live_ranges()))
    )
    dma.dma_unmap_single(dev, address, 0x1000, DMA_TO_DEVICE)
    assert seen == [(address, address + 0xFFF, [(address >> 12, address >> 12)])]


# -- scatter-gather

segments = st.lists(st.tuples(st.integers(1, 63), st.integers(0, 4095), st.integers(1, 9000)), min_size=1, max_size=10)


@settings(max_examples=120)
@given(
    segments,
    st.sampled_from([4096, 65536, 1 << 20]),
    st.sampled_from([0x3FFF, 0xFFFF, U32_MAX]),
)
def test_segments_cover_all_bytes_in_order_within_the_devices_limits(parts, max_seg, boundary):
    dev, domain, _ = dma_device()
    dev.max_seg_size, dev.seg_boundary_mask = max(max_seg, 9000), boundary
    entries = [Scatterlist(page * 0x4000 + offset, length) for page, offset, length in parts]
    expected = [entry.paddr + step for entry in entries for step in range(0, entry.length, 511)]
    count = dma.dma_map_sg(dev, entries, DMA_TO_DEVICE)
    assert 1 <= count <= len(entries)
    stream = []
    for entry in entries[:count]:
        assert 0 < entry.dma_length <= dev.max_seg_size
        assert entry.dma_address & ~boundary == entry.dma_address + entry.dma_length - 1 & ~boundary
        stream += range(entry.dma_address, entry.dma_address + entry.dma_length)
    assert len(stream) == sum(length for _, _, length in parts)
    got, position = [], 0
    for _, _, length in parts:
        got += [iommu_iova_to_phys(domain, stream[position + step]) for step in range(0, length, 511)]
        position += length
    assert got == expected
    assert all(entry.dma_length == 0 for entry in entries[count:])
    dma.dma_unmap_sg(dev, entries, DMA_TO_DEVICE)
    assert not domain.table and not iovad_of(domain).live_ranges() and dev.kernel.printk.warnings == 0


def test_whole_pages_become_one_segment():
    dev, _, _ = dma_device()
    entries = [Scatterlist(page * PAGE_SIZE, PAGE_SIZE) for page in (9, 3, 7)]
    assert dma.dma_map_sg(dev, entries, DMA_TO_DEVICE) == 1
    assert entries[0].dma_length == 3 * PAGE_SIZE


@pytest.mark.parametrize("budget", range(5))
def test_failed_scatter_list_leaves_nothing(budget):
    dev, domain, mock = dma_device()
    mock.page_budget = budget
    entries = [Scatterlist(page * 0x3000 + 0x10, PAGE_SIZE) for page in (9, 3, 7)]
    assert iommu_dma_map_sg(dev, entries, DMA_TO_DEVICE) == -ENOMEM
    assert dma.dma_map_sg(dev, entries, DMA_TO_DEVICE) == 0
    assert not domain.table and not iovad_of(domain).live_ranges()


def test_errors_that_callers_do_not_know_become_einval():
    dev, _, mock = dma_device()
    mock.sync_map_error = EEXIST
    assert iommu_dma_map_sg(dev, [Scatterlist(0x1000, 64)], DMA_TO_DEVICE) == -EINVAL


# -- coherent memory


def test_coherent_memory_is_zeroed_and_contiguous_for_the_device_only():
    dev, domain, _ = dma_device()
    buffer = dma.dma_alloc_coherent(dev, 3 * PAGE_SIZE + 5)
    assert buffer.read(0, 4 * PAGE_SIZE) == bytes(4 * PAGE_SIZE)
    buffer.write(PAGE_SIZE - 2, b"straddles")
    assert buffer.read(PAGE_SIZE - 2, 9) == b"straddles"
    read = dev.kernel.ram.read
    for at, byte in enumerate(b"straddles"):
        assert read(iommu_iova_to_phys(domain, buffer.dma_addr + PAGE_SIZE - 2 + at), 1)[0] == byte
    assert len(buffer.blocks) > 1
    dma.dma_free_coherent(buffer)
    assert not domain.table and not dev.kernel.pages.allocated and not iovad_of(domain).live_ranges()


@pytest.mark.parametrize("budget", range(8))
def test_failed_coherent_allocation_leaves_nothing(budget):
    dev, domain, mock = dma_device()
    mock.page_budget = budget
    assert dma.dma_alloc_coherent(dev, 8 * PAGE_SIZE) is None
    assert not domain.table and not dev.kernel.pages.allocated and not iovad_of(domain).live_ranges()


def test_every_failing_page_allocation_is_survived():
    dev, domain, _ = dma_device()
    pages = dev.kernel.pages
    for failing in range(12):
        count = iter(range(1000))
        pages.fault = lambda order, count=count, failing=failing: next(count) >= failing
        buffer = dma.dma_alloc_coherent(dev, 11 * PAGE_SIZE)
        pages.fault = None
        if buffer is not None:
            dma.dma_free_coherent(buffer)
        assert not pages.allocated and not domain.table and dev.kernel.printk.warnings == 0


# -- reserved ranges and domains


def test_second_devices_reserved_regions_are_kept_out_as_well():
    mock = MockIommu()
    mock.regions["0000:00:05.1"] = [IommuResvRegion(0x8000, 0x2000, 0, IOMMU_RESV_RESERVED)]
    _, domain, _ = dma_device(mock, one_group(2))
    assert iovad_of(domain).reserved_ranges() == [(8, 9)]


def test_bars_are_kept_out_in_bridge_window_units():
    functions = [PciInfo(parse_sbdf("00:01.0"), bars=((0xE0001000, 0x1000), (0x4_0000_0000, 0x200000)))]
    _, domain, _ = dma_device(functions=functions)
    assert iovad_of(domain).reserved_ranges() == [(0xE0000, 0xE00FF), (0x400000, 0x4001FF)]


def test_software_msi_region_is_not_reserved():
    mock = MockIommu()
    mock.regions["0000:00:01.0"] = [IommuResvRegion(0x8000000, 0x100000, 0, IOMMU_RESV_SW_MSI)]
    _, domain, _ = dma_device(mock)
    assert iovad_of(domain).reserved_ranges() == []


def test_domain_without_a_cookie_cannot_be_initialised():
    dev, _, _ = dma_device()
    domain = iommu_paging_domain_alloc(dev)
    assert iommu_dma_init_domain(domain, dev) == -EINVAL
    assert iommu_get_dma_cookie(domain) == 0 and iommu_get_dma_cookie(domain) == -EEXIST
    assert iommu_dma_init_domain(domain, dev) == 0 and iommu_dma_init_domain(domain, dev) == 0


def test_deferred_attach_happens_at_the_first_mapping():
    mock = MockIommu()
    mock.deferred_attach.add("0000:00:01.0")
    dev, domain, _ = dma_device(mock)
    assert "0000:00:01.0" not in mock.where
    mock.refuse[domain, "0000:00:01.0"] = EIO
    assert dma.dma_map_single(dev, 0x5000, 1, DMA_TO_DEVICE) == DMA_MAPPING_ERROR
    mock.refuse.clear()
    assert dma.dma_map_single(dev, 0x5000, 1, DMA_TO_DEVICE) != DMA_MAPPING_ERROR
    assert mock.where["0000:00:01.0"] is domain


# -- message interrupts


def test_doorbell_is_mapped_once_and_is_the_same_for_all_devices_of_the_domain():
    dev, domain, mock = dma_device(functions=one_group(2))
    other = dev.kernel.devices[1]
    ret, address = iommu_dma_prepare_msi(dev, 0x8020040)
    assert ret == 0 and address & 0xFFF == 0x40 and iommu_iova_to_phys(domain, address) == 0x8020040
    assert iommu_dma_prepare_msi(other, 0x8020044) == (0, address + 4)
    assert len(mock.named("map")) == 1


def test_doorbell_in_the_hardware_msi_region_stays_where_it_is():
    mock = MockIommu()
    mock.regions["0000:00:01.0"] = [IommuResvRegion(0xFEE00000, 0x100000, 2, IOMMU_RESV_MSI)]
    dev, _, _ = dma_device(mock)
    assert iommu_dma_prepare_msi(dev, 0xFEE01004) == (0, 0xFEE01004)
    assert not mock.named("map")


def test_doorbell_of_an_identity_device_stays_where_it_is():
    dev, _, _ = dma_device(passthrough=True)
    assert iommu_dma_prepare_msi(dev, 0x8020040) == (0, 0x8020040)


def test_failed_doorbell_mapping_gives_its_iova_back():
    dev, domain, mock = dma_device()
    mock.page_budget = 0
    assert iommu_dma_prepare_msi(dev, 0x8020040) == (-ENOMEM, 0)
    assert not iovad_of(domain).live_ranges() and not domain.cookie.msi_pages


def test_msi_cookie_of_an_unmanaged_domain_counts_up():
    dev, default, _ = dma_device()
    domain = iommu_paging_domain_alloc(dev)
    assert iommu_get_msi_cookie(default, 0x8000000) == -EINVAL
    assert iommu_get_msi_cookie(domain, 0x8000000) == 0
    assert iommu_get_msi_cookie(domain, 0x8000000) == -EEXIST
    dev.iommu_group.domain = domain
    attach_dev(domain, dev, default)
    assert iommu_dma_prepare_msi(dev, 0x8020040) == (0, 0x8000040)
    assert iommu_dma_prepare_msi(dev, 0x9020000) == (0, 0x8001000)
    assert iommu_dma_prepare_msi(dev, 0x8020080) == (0, 0x8000080)


# -- lazy mode


def test_lazy_unmap_queues_and_nothing_is_reused_before_a_flush():
    dev, domain, mock = dma_device(MockIommu(deferred=True), strict=False)
    address = dma.dma_map_single(dev, 0x5000, 1, DMA_TO_DEVICE)
    dma.dma_unmap_single(dev, address, 1, DMA_TO_DEVICE)
    assert not mock.named("sync") and len(domain.cookie.fq) == 1
    again = dma.dma_map_single(dev, 0x5000, 1, DMA_TO_DEVICE)
    assert again != address
    domain.cookie.fq.timeout()
    assert mock.named("flush_all") and len(domain.cookie.fq) == 0
    assert dma.dma_map_single(dev, 0x5000, 1, DMA_TO_DEVICE) == address


def test_full_queue_flushes_at_once():
    dev, domain, mock = dma_device(MockIommu(deferred=True), strict=False)
    for _ in range(600):
        address = dma.dma_map_single(dev, 0x5000, 1, DMA_TO_DEVICE)
        flushes = len(mock.named("flush_all"))
        dma.dma_unmap_single(dev, address, 1, DMA_TO_DEVICE)
    assert flushes == 2 and len(domain.cookie.fq) <= 255


# -- without an IOMMU


def direct_device(pv):
    ram = FakeRam(64, pv)
    kernel = Kernel(ram, FakePci([]), NoMmio(), CommandLine())
    return Device(kernel, endpoints(1)[0]), ram


def test_direct_dma_of_a_translated_guest_uses_its_own_addresses():
    dev, _ = direct_device(False)
    assert dma.dma_map_single(dev, 0x5123, 0x2000, DMA_TO_DEVICE) == 0x5123
    dma.dma_unmap_single(dev, 0x5123, 0x2000, DMA_TO_DEVICE)
    buffer = dma.dma_alloc_coherent(dev, 3 * PAGE_SIZE)
    assert len(buffer.blocks) == 1 and buffer.dma_addr == buffer.blocks[0][0] << 12
    dma.dma_free_coherent(buffer)
    assert not dev.kernel.pages.allocated


def test_direct_dma_of_a_pv_guest_uses_machine_addresses_and_needs_them_contiguous():
    dev, ram = direct_device(True)
    assert dma.dma_map_single(dev, 0x5123, 0x10, DMA_TO_DEVICE) == ram.pfn_to_gfn(5) << 12 | 0x123
    assert dma.dma_map_single(dev, 0x4000, 0x4000, DMA_TO_DEVICE) == ram.pfn_to_gfn(4) << 12
    assert dma.dma_map_single(dev, 0x7000, 0x2000, DMA_TO_DEVICE) == DMA_MAPPING_ERROR


def test_direct_dma_respects_the_mask():
    dev, _ = direct_device(False)
    assert dma.dma_set_mask(dev, 0x1FFF) == 0
    assert dma.dma_map_single(dev, 0x1F00, 0x100, DMA_TO_DEVICE) == 0x1F00
    assert dma.dma_map_single(dev, 0x1F00, 0x101, DMA_TO_DEVICE) == DMA_MAPPING_ERROR
    assert dma.dma_set_mask(dev, 0xFF) == -EIO
    assert dma.dma_map_sgtable(dev, [Scatterlist(0x1000, 16), Scatterlist(0x2000, 16)], DMA_TO_DEVICE) == -EIO
    assert dma.dma_map_sg(dev, [Scatterlist(0x1000, 16)], DMA_TO_DEVICE) == 1

# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver that puts unmaps off until the flush: fewer hypercalls, and nothing reused before they were made."""

import pytest
from fake_hypervisor import FakePci, FakeRam, FakeXen, NoMmio
from hypothesis import given
from hypothesis import strategies as st
from mock_domain import endpoints

from abi import versions
from abi.errno import EIO
from guest_driver import drivers
from guest_driver.boot import boot
from guest_driver.linux.dma_iommu import DMA_TO_DEVICE
from guest_driver.linux.iommu import IOMMU_CAP_DEFERRED_FLUSH, IOMMU_DOMAIN_DMA, IOMMU_DOMAIN_DMA_FQ
from guest_driver.linux.iommu_core import device_iommu_capable, iommu_domain_free, iommu_paging_domain_alloc
from guest_driver.linux.iommu_map import iommu_iova_to_phys, iommu_map, iommu_unmap
from guest_driver.linux.kernel import CommandLine
from guest_driver.xen_shadow import IovaShadow

PAGE = 4096


def start(driver="lazy", version="v7", strict=False, pv=False):
    functions = endpoints(1)
    ram = FakeRam(512, pv)
    xen = FakeXen(versions.get(version), ram, functions, ("default_identity", "cache"))
    guest = boot(
        xen,
        ram,
        FakePci(functions),
        NoMmio(),
        xen.abi,
        cmdline=CommandLine(strict=strict),
        init=drivers.get(driver).init,
    )
    dev = next(iter(guest.devices.values()))
    xen.calls.clear()
    return guest, xen, dev, dev.iommu_group.default_domain


def pairs(guest, dev, count):
    found = []
    for pfn in range(1, count + 1):
        address = guest.dma.map_page(dev, pfn, 0, PAGE, DMA_TO_DEVICE)
        assert not guest.dma.mapping_error(dev, address)
        guest.dma.unmap_page(dev, address, PAGE, DMA_TO_DEVICE)
        found.append(address)
    return found


def calls(xen, name):
    return [fields for called, fields in xen.calls if called == name]


@pytest.mark.parametrize("pv", [False, True])
def test_a_queue_of_unmaps_is_a_few_hypercalls_and_nothing_is_reused_before_them(pv):
    guest, xen, dev, domain = start(pv=pv)
    assert domain.type == IOMMU_DOMAIN_DMA_FQ and device_iommu_capable(dev, IOMMU_CAP_DEFERRED_FLUSH)
    addresses = pairs(guest, dev, 200)
    assert len(set(addresses)) == 200 and not calls(xen, "unmap_pages")
    assert all(iommu_iova_to_phys(domain, address) == 0 for address in addresses)
    domain.cookie.fq.timeout()
    assert len(calls(xen, "unmap_pages")) == 1 and not xen.contexts[domain.ctx_no]
    assert set(pairs(guest, dev, 1)) <= set(addresses)
    domain.cookie.fq.timeout()
    assert guest.warnings == 0 and guest.leaks()["iovas"] == 0
    guest.shutdown()
    assert guest.warnings == 0 and not any(guest.leaks().values())


def test_other_domains_are_strict():
    guest, xen, dev, default = start(strict=True)
    assert default.type == IOMMU_DOMAIN_DMA
    pairs(guest, dev, 3)
    assert len(calls(xen, "unmap_pages")) == 3
    own = iommu_paging_domain_alloc(dev)
    assert iommu_map(own, 0x10000, PAGE, PAGE, 3) == 0 and iommu_unmap(own, 0x10000, PAGE) == PAGE
    assert len(calls(xen, "unmap_pages")) == 4


def test_an_abi_that_is_asked_for_translations_is_not_put_off():
    _, _, dev, domain = start(version="v3")
    assert domain.type == IOMMU_DOMAIN_DMA and not device_iommu_capable(dev, IOMMU_CAP_DEFERRED_FLUSH)


def test_the_reference_driver_offers_nothing_to_defer():
    _, _, _, domain = start("reference")
    assert domain.type == IOMMU_DOMAIN_DMA


def test_an_unmap_that_is_refused_at_the_flush_is_a_warning():
    guest, xen, dev, domain = start()
    pairs(guest, dev, 4)
    xen.fail = lambda name, fields: EIO if name == "unmap_pages" else 0
    domain.cookie.fq.timeout()
    assert guest.warnings == 1 and "0x4000 bytes" in guest.log[-1]


def test_what_waits_goes_with_its_domain():
    guest, xen, dev, _ = start()
    domain = iommu_paging_domain_alloc(dev)
    domain.type = IOMMU_DOMAIN_DMA_FQ
    assert iommu_map(domain, 0x10000, PAGE, PAGE, 3) == 0 and iommu_unmap(domain, 0x10000, 2 * PAGE) == PAGE
    state = guest.save()
    iommu_domain_free(domain)
    assert not calls(xen, "unmap_pages") and domain.ctx_no not in xen.contexts
    xen.contexts[domain.ctx_no] = {0x10: (1, 3)}
    guest.restore(state)
    domain.ops.flush_iotlb_all(domain)
    assert calls(xen, "unmap_pages") and guest.warnings == 0


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=8),
    st.integers(0, 24),
    st.integers(1, 12),
)
def test_covered_counts_the_pages_up_to_the_first_hole(extents, first, pages):
    shadow, known = IovaShadow(), set()
    for start_page, count in extents:
        if known.isdisjoint(range(start_page, start_page + count)):
            shadow.insert(start_page * PAGE, count * PAGE, 0)
            known.update(range(start_page, start_page + count))
    expected = next((k for k in range(pages) if first + k not in known), pages)
    assert shadow.covered(first * PAGE, pages * PAGE) == expected * PAGE

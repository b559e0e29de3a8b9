# SPDX-License-Identifier: GPL-2.0-or-later
"""Default domains: which type, in which order they come to be, and what is left when that fails."""

import pytest
from mock_domain import MockIommu, endpoints, make_kernel, mock_kernel, one_group

from abi.errno import EBUSY, EINVAL, EIO, ENODEV, ENOMEM, ENOSPC, EPERM
from base.units import parse_sbdf
from guest_driver.linux.dd import device_driver_attach
from guest_driver.linux.dma import dma_map_single, dma_unmap_single
from guest_driver.linux.dma_iommu import DMA_TO_DEVICE
from guest_driver.linux.iommu import (
    IOMMU_DOMAIN_BLOCKED,
    IOMMU_DOMAIN_DMA,
    IOMMU_DOMAIN_DMA_FQ,
    IOMMU_DOMAIN_IDENTITY,
    IOMMU_DOMAIN_UNMANAGED,
    IOMMU_RESV_DIRECT,
    IOMMU_RESV_DIRECT_RELAXABLE,
    IOMMU_RESV_MSI,
    IOMMU_RESV_RESERVED,
    IommuResvRegion,
)
from guest_driver.linux.iommu_core import iommu_paging_domain_alloc
from guest_driver.linux.iommu_default_domain import iommu_group_store_type
from guest_driver.linux.iommu_map import iommu_iova_to_phys
from guest_driver.linux.iommu_owner import iommu_group_claim_dma_owner, iommu_group_release_dma_owner
from guest_driver.linux.iommu_probe import (
    iommu_device_register,
    iommu_device_unregister,
    iommu_probe_device,
    iommu_release_device,
)
from guest_driver.linux.iommu_resv import reserved_regions_show
from guest_driver.port import PciInfo

pytestmark = pytest.mark.core

NAME = "0000:00:01.0"


def test_no_opinion_means_dma():
    kernel, _ = mock_kernel(endpoints(1))
    assert kernel.iommu.groups[0].default_domain.type == IOMMU_DOMAIN_DMA
    assert kernel.devices[0].dma_iommu


def test_passthrough_on_the_command_line_means_identity():
    kernel, mock = mock_kernel(endpoints(1), passthrough=True)
    assert kernel.iommu.groups[0].default_domain is mock.ops.identity_domain
    assert not kernel.devices[0].dma_iommu


def test_passthrough_without_an_identity_domain_falls_back_to_dma():
    kernel, _ = mock_kernel(endpoints(1), MockIommu(identity=False), passthrough=True)
    assert kernel.iommu.groups[0].default_domain.type == IOMMU_DOMAIN_DMA
    assert any("falling back to DMA" in line for line in kernel.printk.lines)


def test_drivers_opinion_beats_the_command_line():
    mock = MockIommu()
    mock.opinions[NAME] = IOMMU_DOMAIN_IDENTITY
    kernel, _ = mock_kernel(endpoints(1), mock)
    assert kernel.iommu.groups[0].default_domain is mock.ops.identity_domain


def test_type_the_driver_insists_on_has_no_fallback():
    mock = MockIommu(identity=False)
    mock.opinions[NAME] = IOMMU_DOMAIN_IDENTITY
    kernel = make_kernel(endpoints(1))
    assert iommu_device_register(kernel, mock.unit, mock.ops) < 0
    assert not kernel.iommu.groups and not kernel.iommu.devices


def test_identity_wins_when_devices_of_a_group_disagree():
    mock = MockIommu()
    mock.opinions.update({"0000:00:05.0": IOMMU_DOMAIN_DMA, "0000:00:05.1": IOMMU_DOMAIN_IDENTITY})
    kernel, _ = mock_kernel(one_group(2), mock)
    assert kernel.iommu.groups[0].default_domain is mock.ops.identity_domain
    assert any("disagree" in line for line in kernel.printk.lines)


def test_untrusted_device_is_translated_even_with_passthrough():
    kernel, _ = mock_kernel([PciInfo(parse_sbdf("00:01.0"), untrusted=True)], passthrough=True)
    assert kernel.iommu.groups[0].default_domain.type == IOMMU_DOMAIN_DMA


def test_untrusted_device_whose_driver_insists_on_identity_is_refused():
    mock = MockIommu()
    mock.opinions[NAME] = IOMMU_DOMAIN_IDENTITY
    kernel = make_kernel([PciInfo(parse_sbdf("00:01.0"), untrusted=True)])
    assert iommu_device_register(kernel, mock.unit, mock.ops) == -EINVAL


def test_legacy_default_domain_ends_the_choice():
    mock = MockIommu()
    mock.ops.default_domain = mock.ops.identity_domain
    kernel, _ = mock_kernel(endpoints(1), mock)
    group = kernel.iommu.groups[0]
    assert group.default_domain is mock.ops.identity_domain
    assert iommu_group_store_type(group, "DMA") == -EINVAL


def test_lazy_flushing_needs_a_driver_that_gains_from_it():
    for deferred, expected in ((False, IOMMU_DOMAIN_DMA), (True, IOMMU_DOMAIN_DMA_FQ)):
        kernel, _ = mock_kernel(endpoints(1), MockIommu(deferred=deferred), strict=False)
        assert kernel.iommu.groups[0].default_domain.type == expected


def test_direct_regions_are_mapped_before_the_first_attach():
    mock = MockIommu()
    mock.regions[NAME] = [
        IommuResvRegion(0x7F000000, 0x3000, 3, IOMMU_RESV_DIRECT),
        IommuResvRegion(0x7F800000, 0x1000, 1, IOMMU_RESV_DIRECT_RELAXABLE),
        IommuResvRegion(0x7FC00000, 0x1000, 3, IOMMU_RESV_RESERVED),
    ]
    kernel, _ = mock_kernel(endpoints(1), mock)
    kinds = [call[0] for call in mock.calls]
    assert kinds.index("map") < kinds.index("attach") and "map" not in kinds[kinds.index("attach") :]
    domain = kernel.iommu.groups[0].default_domain
    assert iommu_iova_to_phys(domain, 0x7F002FFF) == 0x7F002FFF
    assert iommu_iova_to_phys(domain, 0x7F800000) == 0x7F800000
    assert iommu_iova_to_phys(domain, 0x7FC00000) == 0
    assert kernel.devices[0].iommu.require_direct


def test_overlapping_direct_regions_of_a_group_are_mapped_once():
    mock = MockIommu()
    mock.regions["0000:00:05.0"] = [IommuResvRegion(0x1000, 0x3000, 3, IOMMU_RESV_DIRECT)]
    mock.regions["0000:00:05.1"] = [IommuResvRegion(0x0, 0x6000, 3, IOMMU_RESV_DIRECT)]
    kernel, _ = mock_kernel(one_group(2), mock)
    table = kernel.iommu.groups[0].default_domain.table
    assert {iova: paddr for iova, (paddr, _) in table.items()} == {at: at for at in range(0, 0x6000, 0x1000)}


def test_identity_default_marks_direct_devices_but_maps_nothing():
    mock = MockIommu()
    mock.regions[NAME] = [IommuResvRegion(0x7F000000, 0x1000, 3, IOMMU_RESV_DIRECT)]
    kernel, _ = mock_kernel(endpoints(1), mock, passthrough=True)
    assert kernel.devices[0].iommu.require_direct and not mock.named("map")


def test_first_failing_attach_fails_the_registration_and_leaves_nothing():
    mock = MockIommu()
    mock.refuse[None, "0000:00:02.0"] = EIO
    kernel = make_kernel(endpoints(3))
    assert iommu_device_register(kernel, mock.unit, mock.ops) == -EIO
    assert not kernel.iommu.devices and not kernel.iommu.groups and not kernel.iommu.domains
    assert all(dev.iommu is None and dev.iommu_group is None and not dev.dma_iommu for dev in kernel.devices)


def test_device_that_the_driver_declines_is_left_alone_and_no_error():
    mock = MockIommu()
    mock.ops.probe_device = lambda dev: -ENODEV if dev.name == NAME else mock.unit
    kernel, _ = mock_kernel(endpoints(2), mock)
    assert kernel.devices[0].iommu is None and kernel.devices[1].iommu_group is not None
    assert not [line for line in kernel.printk.lines if "error" in line]


def test_other_probe_errors_are_logged_and_cost_only_that_device():
    mock = MockIommu()
    mock.ops.probe_device = lambda dev: -ENOMEM if dev.name == NAME else mock.unit
    kernel, _ = mock_kernel(endpoints(2), mock)
    assert kernel.devices[0].iommu is None and kernel.devices[1].iommu_group is not None
    assert [line for line in kernel.printk.lines if "error" in line]


def test_registering_twice_is_ebusy():
    kernel, mock = mock_kernel(endpoints(1))
    assert iommu_device_register(kernel, mock.unit, mock.ops) == -EBUSY


def test_released_device_is_on_the_release_domain():
    kernel, mock = mock_kernel(endpoints(1))
    iommu_release_device(kernel.devices[0])
    assert mock.where[NAME] is mock.ops.blocked_domain
    assert iommu_probe_device(kernel.devices[0]) == 0
    iommu_device_unregister(kernel, mock.unit)
    assert mock.where[NAME] is mock.ops.blocked_domain and not kernel.iommu.domains
    assert iommu_probe_device(kernel.devices[0]) == -ENODEV


def test_released_device_with_a_direct_region_gets_identity():
    mock = MockIommu()
    mock.regions[NAME] = [IommuResvRegion(0x7F000000, 0x1000, 3, IOMMU_RESV_DIRECT)]
    kernel, _ = mock_kernel(endpoints(1), mock)
    iommu_release_device(kernel.devices[0])
    assert mock.where[NAME] is mock.ops.identity_domain


# -- the sysfs file


def test_type_change_goes_there_and_back():
    kernel, mock = mock_kernel(endpoints(1))
    group = kernel.iommu.groups[0]
    assert iommu_group_store_type(group, "identity\n") == 0
    assert mock.where[NAME] is mock.ops.identity_domain and not kernel.devices[0].dma_iommu
    assert not kernel.iommu.domains
    assert iommu_group_store_type(group, "DMA") == 0
    assert group.default_domain.type == IOMMU_DOMAIN_DMA and kernel.devices[0].dma_iommu
    assert iommu_group_store_type(group, "nonsense") == -EINVAL


def test_type_change_with_a_driver_bound_is_eperm():
    kernel, _ = mock_kernel(endpoints(1))
    device_driver_attach(kernel.devices[0], "any")
    assert iommu_group_store_type(kernel.iommu.groups[0], "identity") == -EPERM


def test_live_change_from_dma_to_lazy():
    kernel, _ = mock_kernel(endpoints(1), MockIommu(deferred=True))
    group = kernel.iommu.groups[0]
    domain = group.default_domain
    device_driver_attach(kernel.devices[0], "any")
    assert iommu_group_store_type(group, "DMA-FQ") == 0
    assert group.default_domain is domain and domain.type == IOMMU_DOMAIN_DMA_FQ


@pytest.mark.parametrize("error", ["attach", "alloc"])
def test_failed_type_change_keeps_the_old_domain_and_its_mappings(error):
    mock = MockIommu()
    kernel, _ = mock_kernel(one_group(2), mock)
    group = kernel.iommu.groups[0]
    old, dev = group.default_domain, kernel.devices[0]
    address = dma_map_single(dev, 0x5123, 0x100, DMA_TO_DEVICE)
    if error == "attach":
        mock.refuse[mock.ops.identity_domain, "0000:00:05.1"] = EIO
        assert iommu_group_store_type(group, "identity") == -EIO
    else:
        assert iommu_group_store_type(group, "auto") == 0
        old = group.default_domain
        address = dma_map_single(dev, 0x5123, 0x100, DMA_TO_DEVICE)
        mock.alloc_error = ENOSPC
        assert iommu_group_store_type(group, "DMA") == -ENOSPC
    assert group.default_domain is old and group.domain is old and set(mock.where.values()) == {old}
    assert dev.dma_iommu and iommu_iova_to_phys(old, address) == 0x5123
    dma_unmap_single(dev, address, 0x100, DMA_TO_DEVICE)
    assert not old.table and kernel.printk.warnings == 0


def test_direct_mapping_that_fails_after_the_switch_brings_the_old_domain_back():
    mock = MockIommu()
    kernel, _ = mock_kernel(endpoints(1), mock, passthrough=True)
    group = kernel.iommu.groups[0]
    mock.regions[NAME] = [IommuResvRegion(0x7F000000, 0x4000, 3, IOMMU_RESV_DIRECT)]
    mock.page_budget = 3
    assert iommu_group_store_type(group, "DMA") == -ENOMEM
    assert group.default_domain is mock.ops.identity_domain is mock.where[NAME]
    assert not kernel.iommu.domains


def test_reserved_regions_file_merges_and_sorts():
    mock = MockIommu()
    mock.regions["0000:00:05.0"] = [
        IommuResvRegion(0xFEE00000, 0x100000, 2, IOMMU_RESV_MSI),
        IommuResvRegion(0x2000, 0x1000, 0, IOMMU_RESV_RESERVED),
    ]
    mock.regions["0000:00:05.1"] = [
        IommuResvRegion(0xFEE00000, 0x100000, 2, IOMMU_RESV_MSI),
        IommuResvRegion(0x1000, 0x1800, 0, IOMMU_RESV_RESERVED),
        IommuResvRegion(0x2000, 0x1000, 3, IOMMU_RESV_DIRECT_RELAXABLE),
    ]
    kernel, _ = mock_kernel(one_group(2), mock)
    assert reserved_regions_show(kernel.iommu.groups[0]).splitlines() == [
        "0x0000000000001000 0x0000000000002fff reserved",
        "0x0000000000002000 0x0000000000002fff direct-relaxable",
        "0x00000000fee00000 0x00000000feefffff msi",
    ]


def alone():
    kernel, mock = mock_kernel(endpoints(1))
    return kernel.devices[0], mock


def by_type(mock, dev, refused=()):
    """The driver of a kernel up to 6.6: one allocation for all types, no static domains."""
    asked = []

    def domain_alloc(type):
        asked.append(type)
        if type in refused:
            return None
        return mock.domain_alloc_paging(dev)

    mock.ops.domain_alloc, mock.ops.domain_alloc_paging = domain_alloc, None
    mock.ops.identity_domain = mock.ops.blocked_domain = mock.ops.release_domain = None
    return asked


def test_an_old_driver_is_asked_for_each_type():
    dev, mock = alone()
    asked = by_type(mock, dev)
    group = dev.iommu_group
    assert iommu_group_claim_dma_owner(group, "user space") == 0
    assert asked == [IOMMU_DOMAIN_BLOCKED] and group.domain.type == IOMMU_DOMAIN_BLOCKED
    iommu_group_release_dma_owner(group)
    domain = iommu_paging_domain_alloc(dev)
    assert domain.type == IOMMU_DOMAIN_UNMANAGED and asked[-1] == IOMMU_DOMAIN_UNMANAGED
    assert iommu_group_store_type(group, "identity") == 0
    assert group.domain.type == IOMMU_DOMAIN_IDENTITY and asked[-1] == IOMMU_DOMAIN_IDENTITY


def test_an_old_driver_without_a_blocking_type_blocks_by_an_empty_domain():
    dev, mock = alone()
    asked = by_type(mock, dev, refused=(IOMMU_DOMAIN_BLOCKED,))
    assert iommu_group_claim_dma_owner(dev.iommu_group, "user space") == 0
    assert asked == [IOMMU_DOMAIN_BLOCKED, IOMMU_DOMAIN_UNMANAGED]
    assert dev.iommu_group.domain.type == IOMMU_DOMAIN_UNMANAGED


def test_an_old_driver_that_has_none_of_a_type_answers_null_which_is_enomem():
    dev, mock = alone()
    by_type(mock, dev, refused=(IOMMU_DOMAIN_UNMANAGED, IOMMU_DOMAIN_BLOCKED))
    assert iommu_paging_domain_alloc(dev) == -ENOMEM
    assert iommu_group_claim_dma_owner(dev.iommu_group, "user space") == -ENOMEM
    assert dev.iommu_group.owner is None and dev.iommu_group.domain is dev.iommu_group.default_domain

# SPDX-License-Identifier: GPL-2.0-or-later
"""Groups switch together, and go back together; DMA ownership."""

import pytest
from mock_domain import MockDomain, MockIommu, endpoints, mock_kernel, one_group

from abi.errno import EBUSY, EINVAL, EIO, ENODEV, ENOMEM, ENOSPC, EPERM
from guest_driver.linux.dd import device_driver_attach, device_release_driver
from guest_driver.linux.device import Device
from guest_driver.linux.errno import EPROBE_DEFER
from guest_driver.linux.iommu import IOMMU_RESV_DIRECT, IommuResvRegion
from guest_driver.linux.iommu_attach import (
    iommu_attach_device,
    iommu_attach_group,
    iommu_attach_group_handle,
    iommu_detach_device,
    iommu_detach_group,
    iommu_detach_group_handle,
    iommu_replace_group_handle,
)
from guest_driver.linux.iommu_core import iommu_domain_free, iommu_paging_domain_alloc
from guest_driver.linux.iommu_group import IommuGroup
from guest_driver.linux.iommu_owner import (
    iommu_device_claim_dma_owner,
    iommu_device_release_dma_owner,
    iommu_device_use_default_domain,
    iommu_group_claim_dma_owner,
    iommu_group_dma_owner_claimed,
    iommu_group_release_dma_owner,
)

pytestmark = pytest.mark.core


def group_of(count, mock=None):
    kernel, mock = mock_kernel(one_group(count), mock)
    (group,) = kernel.iommu.groups
    mock.calls.clear()
    return kernel, mock, group


@pytest.mark.parametrize("failing", range(4))
def test_refusal_at_device_k_brings_the_devices_before_it_back(failing):
    kernel, mock, group = group_of(4)
    default = group.default_domain
    domain = iommu_paging_domain_alloc(kernel.devices[0])
    mock.refuse[domain, kernel.devices[failing].name] = EIO
    assert iommu_attach_group(domain, group) == -EIO
    assert group.domain is default
    assert all(where is default for where in mock.where.values())
    attached = [(call[1], call[2]) for call in mock.named("attach") if call[3] == 0]
    names = [dev.name for dev in kernel.devices]
    assert attached == [(domain, name) for name in names[:failing]] + [(default, name) for name in names[:failing]]
    assert kernel.printk.warnings == 0


def test_refused_way_back_is_a_warning_and_the_device_is_blocked():
    kernel, mock, group = group_of(2)
    owner = object()
    assert iommu_group_claim_dma_owner(group, owner) == 0
    first, second = kernel.devices
    domain, other = (iommu_paging_domain_alloc(first) for _ in range(2))
    assert iommu_attach_group(domain, group) == 0
    iommu_detach_group(domain, group)
    mock.refuse[other, second.name] = EIO
    mock.refuse[group.domain, first.name] = EIO
    assert iommu_attach_group(other, group) == -EIO
    assert kernel.printk.warnings == 1


def test_attach_to_the_current_domain_calls_no_driver():
    _, mock, group = group_of(2)
    assert iommu_attach_group(group.default_domain, group) == 0
    assert not mock.calls


def test_attach_device_of_a_larger_group_is_einval():
    kernel, _, _ = group_of(2)
    domain = iommu_paging_domain_alloc(kernel.devices[0])
    assert iommu_attach_device(domain, kernel.devices[0]) == -EINVAL


def test_attach_over_a_foreign_domain_is_ebusy():
    kernel, _, group = group_of(1)
    first, second = (iommu_paging_domain_alloc(kernel.devices[0]) for _ in range(2))
    assert iommu_attach_device(first, kernel.devices[0]) == 0
    assert iommu_attach_device(second, kernel.devices[0]) == -EBUSY
    iommu_detach_device(first, kernel.devices[0])
    assert group.domain is group.default_domain


def test_attach_of_another_drivers_domain_is_einval():
    _, mock, group = group_of(1)
    stranger = MockDomain(ops=mock.ops.default_domain_ops)
    assert iommu_attach_group(stranger, group) == -EINVAL


def test_attach_without_an_iommu_is_enodev():
    kernel, mock, _ = group_of(1)
    alone = Device(kernel, endpoints(1, bus=9)[0])
    assert iommu_attach_device(mock.ops.identity_domain, alone) == -ENODEV
    assert iommu_paging_domain_alloc(alone) == -ENODEV


def test_attach_is_refused_while_a_device_is_being_reset():
    kernel, _, group = group_of(1)
    domain = iommu_paging_domain_alloc(kernel.devices[0])
    group.resetting_domain = group.domain
    assert iommu_attach_group(domain, group) == -EBUSY


def test_handle_is_kept_with_the_attachment_and_replaced_with_it():
    kernel, mock, group = group_of(2)
    first, second = (iommu_paging_domain_alloc(kernel.devices[0]) for _ in range(2))
    one, two = object(), object()
    assert iommu_attach_group_handle(first, group, one) == 0
    assert iommu_attach_group_handle(first, group, two) == -EBUSY
    mock.refuse[second, kernel.devices[1].name] = EIO
    assert iommu_replace_group_handle(group, second, two) == -EIO
    assert group.pasid_array[0] == (first, one) and group.domain is first
    mock.refuse.clear()
    assert iommu_replace_group_handle(group, second, two) == 0
    assert group.pasid_array[0] == (second, two)
    assert iommu_replace_group_handle(group, None, two) == -EINVAL
    assert iommu_replace_group_handle(group, first, None) == -EINVAL
    iommu_detach_group_handle(second, group)
    assert not group.pasid_array and group.domain is group.default_domain
    assert kernel.printk.warnings == 0


# -- ownership


def test_claim_while_a_native_driver_is_bound_is_eperm():
    kernel, _, group = group_of(2)
    assert device_driver_attach(kernel.devices[0], "e1000e") == 0
    assert iommu_group_claim_dma_owner(group, object()) == -EPERM
    assert iommu_device_claim_dma_owner(kernel.devices[1], object()) == -EPERM
    device_release_driver(kernel.devices[0])
    assert iommu_group_claim_dma_owner(group, object()) == 0


def test_bind_while_claimed_is_ebusy_and_a_managed_driver_may_bind():
    kernel, _, group = group_of(2)
    assert iommu_group_claim_dma_owner(group, object()) == 0
    assert device_driver_attach(kernel.devices[0], "e1000e") == -EBUSY
    assert kernel.devices[0].driver is None
    assert device_driver_attach(kernel.devices[0], "vfio-pci", managed_dma=True) == 0
    assert device_driver_attach(kernel.devices[0], "vfio-pci", managed_dma=True) == -EBUSY
    device_release_driver(kernel.devices[0])
    iommu_group_release_dma_owner(group)
    assert group.domain is group.default_domain
    assert device_driver_attach(kernel.devices[0], "e1000e") == 0


def test_claimed_group_is_blocked_until_a_domain_is_attached_and_after_detach():
    kernel, mock, group = group_of(2)
    blocked = mock.ops.blocked_domain
    assert iommu_group_claim_dma_owner(group, object()) == 0
    assert group.domain is blocked and set(mock.where.values()) == {blocked}
    domain = iommu_paging_domain_alloc(kernel.devices[0])
    assert iommu_attach_group(domain, group) == 0
    iommu_detach_group(domain, group)
    assert group.domain is blocked
    iommu_group_release_dma_owner(group)
    assert group.domain is group.default_domain and not iommu_group_dma_owner_claimed(group)
    assert kernel.printk.warnings == 0


def test_one_owner_may_claim_through_several_devices_another_may_not():
    kernel, _, group = group_of(2)
    owner = object()
    assert iommu_device_claim_dma_owner(kernel.devices[0], owner) == 0
    assert iommu_device_claim_dma_owner(kernel.devices[1], owner) == 0
    assert iommu_device_claim_dma_owner(kernel.devices[1], object()) == -EPERM
    iommu_device_release_dma_owner(kernel.devices[0])
    assert group.owner is owner
    iommu_device_release_dma_owner(kernel.devices[1])
    assert group.owner is None and group.domain is group.default_domain


def test_claim_for_nobody_is_a_warning_and_einval():
    kernel, _, group = group_of(1)
    assert iommu_group_claim_dma_owner(group, None) == -EINVAL
    assert iommu_device_claim_dma_owner(kernel.devices[0], None) == -EINVAL
    assert kernel.printk.warnings == 2


def test_claim_while_a_foreign_domain_is_attached_is_ebusy():
    kernel, _, group = group_of(1)
    domain = iommu_paging_domain_alloc(kernel.devices[0])
    assert iommu_attach_group(domain, group) == 0
    assert iommu_group_claim_dma_owner(group, object()) == -EBUSY
    assert group.owner_cnt == 0


def test_release_by_nobody_is_a_warning():
    kernel, _, group = group_of(1)
    iommu_group_release_dma_owner(group)
    assert kernel.printk.warnings == 1 and group.owner_cnt == 0


def test_without_a_static_blocked_domain_an_empty_one_blocks():
    kernel, _, group = group_of(1, MockIommu(blocked=False))
    assert iommu_group_claim_dma_owner(group, object()) == 0
    assert group.domain is group.blocking_domain and not group.domain.table
    assert len(kernel.iommu.domains) == 2
    iommu_group_release_dma_owner(group)
    assert group.domain is group.default_domain


def test_claim_fails_when_no_blocking_domain_can_be_allocated():
    _, mock, group = group_of(1, MockIommu(blocked=False))
    mock.alloc_error = ENOSPC
    assert iommu_group_claim_dma_owner(group, object()) == -ENOSPC
    assert group.owner is None and group.owner_cnt == 0 and group.domain is group.default_domain


def test_failing_switch_to_blocked_leaves_the_group_unclaimed():
    kernel, mock, group = group_of(2)
    mock.refuse[mock.ops.blocked_domain, kernel.devices[1].name] = ENOMEM
    assert iommu_group_claim_dma_owner(group, object()) == -ENOMEM
    assert group.owner is None and group.domain is group.default_domain
    assert set(mock.where.values()) == {group.default_domain}


def test_device_with_a_direct_region_is_never_blocked():
    mock = MockIommu()
    mock.regions["0000:00:05.1"] = [IommuResvRegion(0x7F000000, 0x2000, 3, IOMMU_RESV_DIRECT)]
    kernel, mock, group = group_of(2, mock)
    assert iommu_group_claim_dma_owner(group, object()) == -EINVAL
    assert group.domain is group.default_domain and group.owner is None
    assert set(mock.where.values()) == {group.default_domain}
    assert kernel.printk.warnings == 0


def test_use_before_there_is_a_default_domain_is_deferred():
    kernel, _, group = group_of(1)
    group.default_domain = None
    assert iommu_device_use_default_domain(kernel.devices[0]) == -EPROBE_DEFER


def test_use_without_a_group_is_allowed():
    kernel, _, _ = group_of(1)
    assert device_driver_attach(Device(kernel, endpoints(1, bus=9)[0]), "any") == 0


def test_freeing_a_domain_twice_or_a_static_one_does_nothing():
    kernel, mock, _ = group_of(1)
    domain = iommu_paging_domain_alloc(kernel.devices[0])
    iommu_domain_free(domain)
    iommu_domain_free(domain)
    iommu_domain_free(mock.ops.blocked_domain)
    assert mock.named("free") == [("free", domain)]


def test_groups_are_numbered_in_order():
    kernel, _ = mock_kernel(endpoints(3))
    assert [group.id for group in kernel.iommu.groups] == [0, 1, 2]
    assert IommuGroup(kernel.iommu).id == 3

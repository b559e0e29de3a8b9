# SPDX-License-Identifier: GPL-2.0-or-later
"""PASID attachment of a group: one entry for all devices, undone as one."""

import pytest
from mock_domain import MockIommu, mock_kernel

from abi.errno import EBUSY, EINVAL, EIO, ENOENT, EOPNOTSUPP
from base.units import parse_sbdf
from guest_driver.linux.iommu_core import iommu_paging_domain_alloc
from guest_driver.linux.iommu_pasid import (
    iommu_attach_device_pasid,
    iommu_attach_handle_get,
    iommu_detach_device_pasid,
    iommu_replace_device_pasid,
)
from guest_driver.port import PciInfo

pytestmark = pytest.mark.core


def pasid_group(count=3, limits=(16, 16, 16)):
    mock = MockIommu()
    mock.unit.max_pasids = 32
    state = {}
    refuse = {}

    def set_dev_pasid(domain, dev, pasid, old):
        if refuse.get((domain, dev.name)):
            return -EIO
        state[dev.name, pasid] = domain
        return 0

    mock.ops.default_domain_ops.set_dev_pasid = set_dev_pasid
    mock.ops.blocked_domain.ops.set_dev_pasid = set_dev_pasid
    functions = [
        PciInfo(parse_sbdf(f"00:05.{n}"), multifunction=True, max_pasids=limit)
        for n, limit in zip(range(count), limits)
    ]
    kernel, _ = mock_kernel(functions, mock)
    domains = [iommu_paging_domain_alloc(kernel.devices[0]) for _ in range(2)]
    return kernel, mock, state, refuse, domains


def test_attach_reaches_every_device_and_a_second_one_is_ebusy():
    kernel, _, state, _, (domain, other) = pasid_group()
    dev, handle = kernel.devices[1], object()
    assert iommu_attach_device_pasid(domain, dev, 5, handle) == 0
    assert state == {(d.name, 5): domain for d in kernel.devices}
    assert iommu_attach_device_pasid(other, dev, 5, object()) == -EBUSY
    assert iommu_attach_handle_get(dev.iommu_group, 5) == (0, handle)
    assert iommu_attach_handle_get(dev.iommu_group, 5, 16) == (-EBUSY, None)
    assert iommu_attach_handle_get(dev.iommu_group, 6) == (-ENOENT, None)


@pytest.mark.parametrize("failing", range(3))
def test_refusal_at_device_k_blocks_the_ones_before_it(failing):
    kernel, mock, state, refuse, (domain, _) = pasid_group()
    refuse[domain, kernel.devices[failing].name] = True
    assert iommu_attach_device_pasid(domain, kernel.devices[0], 5, object()) == -EIO
    assert set(state.values()) <= {mock.ops.blocked_domain}
    assert not kernel.iommu.groups[0].pasid_array


@pytest.mark.parametrize("failing", range(3))
def test_failed_replace_keeps_the_old_domain_and_handle(failing):
    kernel, _, state, refuse, (domain, other) = pasid_group()
    dev, handle = kernel.devices[0], object()
    assert iommu_replace_device_pasid(other, dev, 5, handle) == -EINVAL
    assert iommu_attach_device_pasid(domain, dev, 5, handle) == 0
    refuse[other, kernel.devices[failing].name] = True
    assert iommu_replace_device_pasid(other, dev, 5, object()) == -EIO
    assert set(state.values()) == {domain}
    assert dev.iommu_group.pasid_array[5] == (domain, handle)


def test_replace_by_the_same_domain_swaps_only_the_handle():
    kernel, _, state, _, (domain, _) = pasid_group()
    dev, one, two = kernel.devices[0], object(), object()
    iommu_attach_device_pasid(domain, dev, 5, one)
    state.clear()
    assert iommu_replace_device_pasid(domain, dev, 5, two) == 0
    assert not state and iommu_attach_handle_get(dev.iommu_group, 5) == (0, two)
    assert iommu_replace_device_pasid(domain, dev, 5, two) == -EINVAL
    assert kernel.printk.warnings == 1


def test_detach_blocks_every_device():
    kernel, mock, state, _, (domain, _) = pasid_group()
    iommu_attach_device_pasid(domain, kernel.devices[0], 5, object())
    iommu_detach_device_pasid(domain, kernel.devices[2], 5)
    assert set(state.values()) == {mock.ops.blocked_domain} and kernel.printk.warnings == 0
    iommu_detach_device_pasid(domain, kernel.devices[2], 5)
    assert kernel.printk.warnings == 1


def test_limits_and_pasid_zero():
    kernel, _, state, _, (domain, _) = pasid_group(limits=(16, 8, 0))
    dev = kernel.devices[0]
    assert iommu_attach_device_pasid(domain, dev, 0, object()) == -EINVAL
    assert iommu_attach_device_pasid(domain, dev, 8, object()) == -EINVAL
    assert iommu_attach_device_pasid(domain, dev, 7, object()) == 0
    assert {name for name, _ in state} == {"0000:00:05.0", "0000:00:05.1"}


def test_drivers_without_pasids_say_so():
    kernel, mock, _, _, (domain, _) = pasid_group()
    mock.ops.blocked_domain.ops.set_dev_pasid = None
    assert iommu_attach_device_pasid(domain, kernel.devices[0], 5, object()) == -EOPNOTSUPP

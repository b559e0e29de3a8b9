# SPDX-License-Identifier: GPL-2.0-or-later
"""Binding devices to processes (drivers/iommu/iommu-sva.c).

A process has one PASID, from its first binding until its struct is freed, and one SVA domain for all devices whose
driver accepts it.  A handle belongs to (process, device); binding again counts it up.
"""

from __future__ import annotations

from typing import Final

from abi.errno import EBUSY, EINVAL, ENODEV, ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP, EOVERFLOW
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import IOMMU_DOMAIN_SVA, IommuDomain
from guest_driver.linux.iommu_core import dev_iommu_ops, iommu_domain_free, iommu_domain_init
from guest_driver.linux.iommu_pasid import (
    iommu_attach_device_pasid,
    iommu_attach_handle_get,
    iommu_detach_device_pasid,
)
from guest_driver.sva.mm import MmStruct

PASID_BITS: Final = 20


class IommuMmData:
    """What the IOMMU core keeps with a process."""

    __slots__ = ("domains", "pasid")

    def __init__(self, pasid: int) -> None:
        self.pasid: Final = pasid
        self.domains: list[SvaDomain] = []


class SvaDomain:
    """An SVA domain and how many handles use it."""

    __slots__ = ("domain", "users")

    def __init__(self, domain: IommuDomain) -> None:
        self.domain: Final = domain
        self.users = 0


class IommuSva:
    """A binding (struct iommu_sva)."""

    __slots__ = ("dev", "entry", "mm", "users")

    def __init__(self, dev: Device, mm: MmStruct, entry: SvaDomain) -> None:
        self.dev: Final = dev
        self.mm: Final = mm
        self.entry = entry
        self.users = 1


def iommu_alloc_mm_data(mm: MmStruct, dev: Device) -> IommuMmData | int:
    """The process's data, made on first use; -EOVERFLOW for a PASID that the device cannot send, -ENOSPC, -ENOMEM."""
    assert dev.iommu is not None
    if mm.iommu_mm is not None:
        return mm.iommu_mm if mm.iommu_mm.pasid < dev.iommu.max_pasids else -EOVERFLOW
    if not mm.kernel.kzalloc("iommu_mm"):
        return -ENOMEM
    taken = mm.kernel.iommu.global_pasids
    pasid = next((number for number in range(1, dev.iommu.max_pasids) if number not in taken), 0)
    if not pasid:
        return -ENOSPC
    taken.add(pasid)
    mm.iommu_mm = IommuMmData(pasid)
    return mm.iommu_mm


def mm_pasid_drop(mm: MmStruct) -> None:
    """The process's struct goes, and its PASID with it."""
    if mm.iommu_mm is not None:
        mm.kernel.iommu.global_pasids.discard(mm.iommu_mm.pasid)
        mm.iommu_mm = None


def iommu_sva_bind_device(dev: Device, mm: MmStruct) -> IommuSva | int:
    """Let ``dev`` use the addresses of ``mm`` under its PASID.

    -ENODEV without an IOMMU, -EOPNOTSUPP for a driver without SVA, -EBUSY if the PASID has another domain, -EOVERFLOW
    or -ENOSPC for want of a PASID, -ENOMEM, and what the driver answers (-EINVAL for a process that is gone).
    """
    group, ops = dev.iommu_group, dev_iommu_ops(dev)
    if group is None or ops is None or dev.iommu is None:
        return -ENODEV
    if ops.domain_alloc_sva is None or not dev.iommu.max_pasids:
        return -EOPNOTSUPP
    data = iommu_alloc_mm_data(mm, dev)
    if isinstance(data, int):
        return data
    ret, found = iommu_attach_handle_get(group, data.pasid, IOMMU_DOMAIN_SVA)
    if isinstance(found, IommuSva):
        if found.mm is not mm:
            return -EBUSY
        found.users += 1
        return found
    if ret != -ENOENT:
        return ret or -EBUSY
    if not mm.kernel.kzalloc("sva handle"):
        return -ENOMEM
    for entry in data.domains:
        handle = IommuSva(dev, mm, entry)
        if not iommu_attach_device_pasid(entry.domain, dev, data.pasid, handle):
            entry.users += 1
            return handle
    domain = iommu_sva_domain_alloc(dev, mm)
    if isinstance(domain, int):
        return domain
    entry = SvaDomain(domain)
    handle = IommuSva(dev, mm, entry)
    ret = iommu_attach_device_pasid(domain, dev, data.pasid, handle)
    if ret:
        iommu_domain_free(domain)
        return ret
    entry.users = 1
    data.domains.append(entry)
    return handle


def iommu_sva_unbind_device(handle: IommuSva) -> None:
    """Undo one binding; the last one takes the process away from the device."""
    handle.users -= 1
    data = handle.mm.iommu_mm
    if handle.users or data is None:
        return
    entry = handle.entry
    iommu_detach_device_pasid(entry.domain, handle.dev, data.pasid)
    entry.users -= 1
    if not entry.users:
        data.domains.remove(entry)
        iommu_domain_free(entry.domain)


def iommu_sva_get_pasid(handle: IommuSva) -> int:
    data = handle.mm.iommu_mm
    return -EINVAL if data is None else data.pasid


def iommu_sva_domain_alloc(dev: Device, mm: MmStruct) -> IommuDomain | int:
    """A domain over the tables of ``mm``, in the core's books."""
    ops = dev_iommu_ops(dev)
    if ops is None or ops.domain_alloc_sva is None:
        return -EOPNOTSUPP
    domain = ops.domain_alloc_sva(dev, mm)
    if not isinstance(domain, int):
        iommu_domain_init(domain, IOMMU_DOMAIN_SVA, dev.kernel.iommu, ops)
        dev.kernel.iommu.domains[domain] = None
    return domain

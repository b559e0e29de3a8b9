# SPDX-License-Identifier: GPL-2.0-or-later
"""Hardware page tables: domains of the core that show an IOAS, or that user space owns (iommufd/hw_pagetable.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from abi.errno import EINVAL, EOPNOTSUPP
from guest_driver.iommufd.objects import IommufdObject
from guest_driver.iommufd.uapi import (
    IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
    IOMMU_HWPT_ALLOC_NEST_PARENT,
    IOMMU_HWPT_ALLOC_PASID,
    IOMMU_HWPT_FAULT_ID_VALID,
)
from guest_driver.linux.iommu import IOMMU_CAP_DIRTY_TRACKING, IOMMU_DOMAIN_NESTED, IommuDomain
from guest_driver.linux.iommu_core import (
    dev_iommu_ops,
    device_iommu_capable,
    iommu_domain_free,
    iommu_nested_domain_alloc,
    iommu_paging_domain_alloc_flags,
)

if TYPE_CHECKING:
    from guest_driver.iommufd.context import IommufdCtx
    from guest_driver.iommufd.device import IommufdDevice
    from guest_driver.iommufd.eventq import FaultQueue
    from guest_driver.iommufd.ioas import Ioas
    from guest_driver.iommufd.viommu import Viommu


class Hwpt(IommufdObject):
    """What devices attach to.  ``paging`` is the table that user space's mappings are in: itself, or the parent."""

    __slots__ = ("_domain", "fault", "pasid_compat")

    def __init__(self, ctx: IommufdCtx) -> None:
        super().__init__(ctx)
        self._domain: IommuDomain | None = None
        self.pasid_compat = False
        """Made for use beside PASIDs, or under one."""
        self.fault: FaultQueue | None = None
        """Where page requests of devices on this table go."""

    @property
    def domain(self) -> IommuDomain:
        assert self._domain is not None
        return self._domain

    def adopt(self, domain: IommuDomain) -> None:
        self._domain = domain

    def use_fault(self, fault: FaultQueue) -> None:
        """Page requests of devices on this table go to ``fault``."""
        self.fault = fault
        self.domain.iopf_handler = fault.iopf_handler
        fault.users += 1

    def drop_fault(self) -> None:
        if self.fault is not None:
            self.fault.users -= 1

    @property
    def paging(self) -> HwptPaging:
        raise NotImplementedError


class HwptPaging(Hwpt):
    """A domain that shows an IOAS."""

    __slots__ = ("auto_domain", "enforce_cache_coherency", "ioas", "msi_cookie", "nest_parent", "shown")

    def __init__(self, ctx: IommufdCtx, ioas: Ioas, nest_parent: bool) -> None:
        super().__init__(ctx)
        self.ioas: Final = ioas
        self.nest_parent: Final = nest_parent
        self.auto_domain = False
        """Made by attaching to an IOAS; goes with its last device."""
        self.enforce_cache_coherency = False
        self.msi_cookie = False
        self.shown = False
        ioas.users += 1

    @property
    def paging(self) -> HwptPaging:
        return self

    def enforce_coherency(self) -> bool:
        """Make every mapping snoop from now on; whether the driver can."""
        if self.enforce_cache_coherency:
            return True
        enforce = self.domain.ops.enforce_cache_coherency
        self.enforce_cache_coherency = enforce is not None and enforce(self.domain)
        return self.enforce_cache_coherency

    def show(self) -> int:
        """Fill the domain with what the IOAS has; 0 or -errno."""
        ret = self.ioas.iopt.add_domain(self.domain)
        if not ret:
            self.shown = True
            self.ioas.hwpt_list.append(self)
        return ret

    def destroy(self) -> None:
        if self.shown:
            self.ioas.hwpt_list.remove(self)
            self.ioas.iopt.remove_domain(self.domain)
        if self._domain is not None:
            iommu_domain_free(self._domain)
        self.drop_fault()
        self.ioas.users -= 1


class HwptNested(Hwpt):
    """A first stage that user space owns, over a paging table, or over the parent of a vIOMMU."""

    __slots__ = ("parent", "viommu")

    def __init__(self, ctx: IommufdCtx, parent: HwptPaging, viommu: Viommu | None = None) -> None:
        super().__init__(ctx)
        self.parent: Final = parent
        self.viommu: Final = viommu
        """What it was made through; it is referred to in place of the parent."""
        self._under.users += 1

    @property
    def _under(self) -> IommufdObject:
        return self.viommu or self.parent

    @property
    def paging(self) -> HwptPaging:
        return self.parent

    def destroy(self) -> None:
        if self._domain is not None:
            iommu_domain_free(self._domain)
        self.drop_fault()
        self._under.users -= 1


def hwpt_paging_alloc(
    ctx: IommufdCtx, ioas: Ioas, idev: IommufdDevice, flags: int, attach: int | None
) -> HwptPaging | int:
    """A table for ``idev`` over ``ioas``, not published yet.

    ``attach``: the PASID under which the device is attached before anything is mapped, ``None`` for not at all.

    Whether it enforces coherency follows from the device and is settled here.  -EOPNOTSUPP for flags that are
    unknown or that the driver does not have; -EINVAL, -ENOMEM, or the error of showing the IOAS.
    """
    from guest_driver.iommufd.attach import hwpt_attach, hwpt_detach

    known = 0
    if ctx.release.version >= (6, 7):
        known |= IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_DIRTY_TRACKING
    if ctx.release.version >= (6, 11):
        known |= IOMMU_HWPT_FAULT_ID_VALID
    if ctx.release.version >= (6, 14):
        known |= IOMMU_HWPT_ALLOC_PASID
    ops = dev_iommu_ops(idev.dev)
    if flags & ~known or (flags and (ops is None or ops.domain_alloc_paging_flags is None)):
        return -EOPNOTSUPP
    if flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING and not device_iommu_capable(idev.dev, IOMMU_CAP_DIRTY_TRACKING):
        return -EOPNOTSUPP
    if flags & IOMMU_HWPT_FAULT_ID_VALID and flags & IOMMU_HWPT_ALLOC_NEST_PARENT:
        return -EOPNOTSUPP
    hwpt = HwptPaging(ctx, ioas, bool(flags & IOMMU_HWPT_ALLOC_NEST_PARENT))
    ret = ctx.objects.alloc(hwpt)
    if ret:
        hwpt.destroy()
        return ret
    domain = iommu_paging_domain_alloc_flags(idev.dev, flags & ~IOMMU_HWPT_FAULT_ID_VALID)
    if isinstance(domain, int):
        ctx.objects.abort_and_destroy(hwpt)
        return domain
    hwpt.adopt(domain)
    if idev.enforce_cache_coherency:
        failed = not hwpt.enforce_coherency()
        if ctx.printk.warn_on(failed, f"{idev.dev.name}: claims to enforce coherency, and does not"):
            ctx.objects.abort_and_destroy(hwpt)
            return -EINVAL
    hwpt.pasid_compat = bool(flags & IOMMU_HWPT_ALLOC_PASID)
    if attach is not None:
        ret = hwpt_attach(hwpt, idev, attach)
        if ret:
            ctx.objects.abort_and_destroy(hwpt)
            return ret
    ret = hwpt.show()
    if ret:
        if attach is not None:
            hwpt_detach(idev, attach)
            hwpt.users -= 1
        ctx.objects.abort_and_destroy(hwpt)
        return ret
    return hwpt


def hwpt_nested_alloc(
    ctx: IommufdCtx, parent: HwptPaging, idev: IommufdDevice, flags: int, data_type: int, data: bytes
) -> HwptNested | int:
    """A nested table over ``parent``, not published yet; -EOPNOTSUPP, -EINVAL, -ENOMEM or the driver's error."""
    ops = dev_iommu_ops(idev.dev)
    known = 0
    if ctx.release.version >= (6, 11):
        known |= IOMMU_HWPT_FAULT_ID_VALID
    if ctx.release.version >= (6, 14):
        known |= IOMMU_HWPT_ALLOC_PASID
    if flags & ~known or not data or ops is None or ops.domain_alloc_nested is None:
        return -EOPNOTSUPP
    if parent.auto_domain or not parent.nest_parent or parent.domain.owner is not ops:
        return -EINVAL
    hwpt = HwptNested(ctx, parent)
    ret = ctx.objects.alloc(hwpt)
    if ret:
        hwpt.destroy()
        return ret
    driver_flags = flags & ~IOMMU_HWPT_FAULT_ID_VALID
    return adopt_nested(
        hwpt, iommu_nested_domain_alloc(idev.dev, parent.domain, driver_flags, data_type, data), flags, idev
    )


def adopt_nested(hwpt: HwptNested, domain: IommuDomain | int, flags: int, idev: IommufdDevice) -> HwptNested | int:
    """Take what the driver made for ``hwpt``, or undo it with the driver's error."""
    ctx = hwpt.ctx
    if isinstance(domain, int):
        ctx.objects.abort_and_destroy(hwpt)
        return domain
    hwpt.adopt(domain)
    hwpt.pasid_compat = bool(flags & IOMMU_HWPT_ALLOC_PASID)
    wrong = domain.type != IOMMU_DOMAIN_NESTED
    if ctx.printk.warn_on(wrong, f"{idev.dev.name}: its driver made a nested domain of another type"):
        ctx.objects.abort_and_destroy(hwpt)
        return -EINVAL
    return hwpt

# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices and their groups: bind, attach, replace, detach (iommufd/device.c).

A group has one hardware table at a time, for all of its devices; ``devices`` are those that have *called* attach.
Each of them holds a reference to the table and keeps its reserved regions out of the table's IOAS; the domain is
switched once for the whole group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from abi.errno import EBUSY, EINVAL, ENOENT, ENOMEM, EPERM
from guest_driver.iommufd.hw_pagetable import Hwpt, HwptPaging, hwpt_paging_alloc
from guest_driver.iommufd.io_pagetable import IoPagetable
from guest_driver.iommufd.ioas import Ioas
from guest_driver.iommufd.objects import IommufdObject
from guest_driver.iommufd.release import REPLACE_DROPS_RESERVATIONS, REPLACE_UNATTACHED
from guest_driver.linux.device import Device
from guest_driver.linux.dma_cookie import iommu_get_msi_cookie
from guest_driver.linux.iommu import (
    IOMMU_CAP_CACHE_COHERENCY,
    IOMMU_CAP_ENFORCE_CACHE_COHERENCY,
    IOMMU_RESV_DIRECT_RELAXABLE,
    IOMMU_RESV_MSI,
    IOMMU_RESV_SW_MSI,
)
from guest_driver.linux.iommu_attach import (
    iommu_attach_group_handle,
    iommu_detach_group_handle,
    iommu_replace_group_handle,
)
from guest_driver.linux.iommu_core import device_iommu_capable
from guest_driver.linux.iommu_group import IommuGroup
from guest_driver.linux.iommu_owner import iommu_device_claim_dma_owner, iommu_device_release_dma_owner
from guest_driver.linux.iommu_resv import iommu_get_resv_regions

if TYPE_CHECKING:
    from guest_driver.iommufd.context import IommufdCtx


class AttachHandle:
    """What the core keeps with an attachment, to find back from a fault (struct iommufd_attach_handle)."""

    __slots__ = ("idev",)

    def __init__(self, idev: IommufdDevice) -> None:
        self.idev: Final = idev


class IommufdGroup:
    """A group within one context (struct iommufd_group)."""

    __slots__ = ("bound", "devices", "group", "hwpt", "sw_msi_start")

    def __init__(self, group: IommuGroup) -> None:
        self.group: Final = group
        self.hwpt: Hwpt | None = None
        self.devices: list[IommufdDevice] = []
        """Devices that have called attach, in that order."""
        self.bound = 0
        self.sw_msi_start: int | None = None


class IommufdDevice(IommufdObject):
    """A device given to this context.  User space sees its id but cannot destroy it."""

    __slots__ = ("dev", "enforce_cache_coherency", "igroup")

    def __init__(self, ctx: IommufdCtx, dev: Device, igroup: IommufdGroup) -> None:
        super().__init__(ctx)
        self.dev: Final = dev
        self.igroup: Final = igroup
        self.enforce_cache_coherency = device_iommu_capable(dev, IOMMU_CAP_ENFORCE_CACHE_COHERENCY)

    @property
    def attached(self) -> bool:
        return self in self.igroup.devices

    def destroy(self) -> None:
        igroup = self.igroup
        iommu_device_release_dma_owner(self.dev)
        igroup.bound -= 1
        if not igroup.bound:
            del self.ctx.groups[igroup.group]
        self.ctx.put()

    # -- attach and replace by id

    def attach(self, pt_id: int) -> tuple[int, int]:
        """Attach to a hardware table, or to an IOAS through an automatic one; (0, id of the table) or (-errno, 0).

        -ENOENT: no such id; -EINVAL: it is something else, incompatible, or not the group's table; -EADDRINUSE: a
        reserved region of the device is in use there; -EBUSY: attached already (6.15).
        """
        return self._change_pt(pt_id, _do_attach)

    def replace(self, pt_id: int) -> tuple[int, int]:
        """Go over to another table without a moment in between; on an error everything is as before.

        The whole group goes.  -EINVAL if nothing is attached.
        """
        return self._change_pt(pt_id, _do_replace)

    def _change_pt(self, pt_id: int, change: Change) -> tuple[int, int]:
        obj = self.ctx.objects.get(pt_id, IommufdObject)
        if obj is None:
            return -ENOENT, 0
        if isinstance(obj, Hwpt):
            ret, unused = change(self, obj)
            if ret:
                return ret, 0
            if unused is not None:
                hwpt_put(unused)
            return 0, obj.id
        if isinstance(obj, Ioas):
            return self._auto_get_domain(obj, change)
        return -EINVAL, 0

    def _auto_get_domain(self, ioas: Ioas, change: Change) -> tuple[int, int]:
        """Try the automatic tables of ``ioas``; if all are incompatible, make one for this device."""
        ctx = self.ctx
        unused: Hwpt | None = None
        with ctx.locks.hold("ioas->mutex", ioas):
            for hwpt in list(ioas.hwpt_list):
                if not hwpt.auto_domain:
                    continue
                ret, unused = change(self, hwpt)
                if ret == -EINVAL:
                    continue
                if ret:
                    return ret, 0
                break
            else:
                made = hwpt_paging_alloc(ctx, ioas, self, 0, attach=change is _do_attach)
                if isinstance(made, int):
                    return made, 0
                hwpt = made
                if change is not _do_attach:
                    ret, unused = change(self, hwpt)
                    if ret:
                        ctx.objects.abort_and_destroy(hwpt)
                        return ret, 0
                hwpt.auto_domain = True
                ctx.objects.finalize(hwpt)
        if unused is not None:
            hwpt_put(unused)
        return 0, hwpt.id

    def detach(self) -> None:
        """Leave; with the last device of its group the group is blocked again."""
        hwpt = hwpt_detach(self)
        if hwpt is not None:
            hwpt_put(hwpt)


Change = Callable[[IommufdDevice, Hwpt], tuple[int, "Hwpt | None"]]
"""(device, table) -> (0 or -errno, table that lost a reference which the caller has to give back)."""


def iommufd_device_bind(ctx: IommufdCtx, dev: Device) -> IommufdDevice | int:
    """Give ``dev`` to user space, and with it its whole group.

    -EINVAL: DMA is not coherent; -EPERM: group used by others, or its interrupts can be forged; -EBUSY: the group is
    not on its default domain; -EINVAL also for devices that firmware needs to keep mapped.
    """
    if not device_iommu_capable(dev, IOMMU_CAP_CACHE_COHERENCY):
        return -EINVAL
    group = dev.iommu_group
    assert group is not None
    if not ctx.isolated_msi(group):
        return -EPERM
    if not ctx.kernel.kzalloc("iommufd_group"):
        return -ENOMEM
    igroup = ctx.groups.get(group) or IommufdGroup(group)
    ret = iommu_device_claim_dma_owner(dev, ctx)
    if ret:
        return ret
    idev = IommufdDevice(ctx, dev, igroup)
    ret = ctx.objects.alloc(idev)
    if ret:
        iommu_device_release_dma_owner(dev)
        return ret
    ctx.groups[group] = igroup
    igroup.bound += 1
    ctx.refs += 1
    idev.users += 1
    ctx.objects.finalize(idev)
    return idev


def iommufd_device_unbind(idev: IommufdDevice) -> None:
    """The opposite of bind; the device must be detached."""
    idev.ctx.printk.warn_on(idev.attached, f"{idev.dev.name}: unbound while attached")
    idev.users -= 1
    idev.ctx.objects.destroy(idev)


# ------------------------------------------------------------------------------------------ reserved regions


def enforce_dev_resv_regions(iopt: IoPagetable, idev: IommufdDevice) -> int:
    """Keep the device's reserved regions out of ``iopt``, or add nothing and answer -EADDRINUSE or -EINVAL.

    Where the doorbell page may go is remembered for the group.
    """
    hardware, software = 0, 0
    with idev.ctx.locks.hold("iova_rwsem", iopt):
        for region in iommu_get_resv_regions(idev.dev):
            if region.type == IOMMU_RESV_DIRECT_RELAXABLE:
                continue
            if region.type == IOMMU_RESV_SW_MSI:
                software += 1
                idev.igroup.sw_msi_start = region.start
            hardware += region.type == IOMMU_RESV_MSI
            ret = iopt.reserve(region.start, region.last, idev)
            if ret:
                iopt.reserved.remove(idev)
                return ret
        wrong = software > 1 or bool(software and hardware)
        if idev.ctx.printk.warn_on(wrong, f"{idev.dev.name}: two ways to place the doorbell"):
            iopt.reserved.remove(idev)
            return -EINVAL
    return 0


def remove_reserved(iopt: IoPagetable, idev: IommufdDevice) -> None:
    with idev.ctx.locks.hold("iova_rwsem", iopt):
        iopt.reserved.remove(idev)


def _setup_msi(igroup: IommufdGroup, paging: HwptPaging) -> int:
    """Let doorbells be mapped in the table that user space's mappings are in: once, on the paging parent."""
    if igroup.sw_msi_start is None or paging.msi_cookie:
        return 0
    ret = iommu_get_msi_cookie(paging.domain, igroup.sw_msi_start)
    paging.msi_cookie = not ret
    return ret


# ------------------------------------------------------------------------------------------------- the flows


def hwpt_put(hwpt: Hwpt) -> None:
    """Drop a device's reference; an automatic table goes with its last device."""
    if isinstance(hwpt, HwptPaging) and hwpt.auto_domain:
        hwpt.ctx.objects.put_and_try_destroy(hwpt)
    else:
        hwpt.users -= 1


def hwpt_attach(hwpt: Hwpt, idev: IommufdDevice) -> int:
    """Add ``idev`` to those attached, and the group to the table if it is the first; 0, or -errno and no change."""
    igroup = idev.igroup
    ctx = idev.ctx
    with ctx.locks.hold("igroup->lock", igroup):
        if idev.attached:
            if ctx.release.knows_who_attached:
                return -EBUSY
            ctx.printk.warn_on(True, f"{idev.dev.name}: attached twice, the list of the group is damaged")
        if igroup.hwpt is not None and igroup.hwpt is not hwpt:
            return -EINVAL
        paging = hwpt.paging
        if ctx.release.upgrades_coherency_on_attach and idev.enforce_cache_coherency and not paging.enforce_coherency():
            return -EINVAL
        ret = enforce_dev_resv_regions(paging.ioas.iopt, idev)
        if ret:
            return ret
        if not igroup.devices:
            ret = _setup_msi(igroup, paging)
            if not ret:
                ret = iommu_attach_group_handle(hwpt.domain, igroup.group, AttachHandle(idev))
            if ret:
                remove_reserved(paging.ioas.iopt, idev)
                return ret
            igroup.hwpt = hwpt
        hwpt.users += 1
        igroup.devices.append(idev)
    return 0


def hwpt_detach(idev: IommufdDevice) -> Hwpt | None:
    """Take ``idev`` out; the table that lost its reference, which the caller puts."""
    igroup = idev.igroup
    with idev.ctx.locks.hold("igroup->lock", igroup):
        hwpt = igroup.hwpt
        if idev.ctx.printk.warn_on(hwpt is None or not idev.attached, f"{idev.dev.name}: detached, but not attached"):
            return None
        assert hwpt is not None
        igroup.devices.remove(idev)
        if not igroup.devices:
            iommu_detach_group_handle(hwpt.domain, igroup.group)
            igroup.hwpt = None
        remove_reserved(hwpt.paging.ioas.iopt, idev)
    return hwpt


def _do_attach(idev: IommufdDevice, hwpt: Hwpt) -> tuple[int, Hwpt | None]:
    return hwpt_attach(hwpt, idev), None


def _do_replace(idev: IommufdDevice, hwpt: Hwpt) -> tuple[int, Hwpt | None]:
    """Move the group, the references and the reservations of all attached devices at once."""
    igroup = idev.igroup
    ctx = idev.ctx
    with ctx.locks.hold("igroup->lock", igroup):
        old = igroup.hwpt
        if old is None:
            return -EINVAL, None
        if not idev.attached and not ctx.release.has(REPLACE_UNATTACHED):
            return -EINVAL, None
        if old is hwpt:
            return 0, None
        source, target = old.paging.ioas.iopt, hwpt.paging.ioas.iopt
        if ctx.release.upgrades_coherency_on_attach and idev.enforce_cache_coherency:
            upgraded = hwpt.paging.enforce_coherency()
            if not upgraded:
                return -EINVAL, None
        added: list[IommufdDevice] = []
        ret = 0
        if source is not target:
            for member in igroup.devices:
                ret = enforce_dev_resv_regions(target, member)
                if ret:
                    break
                added.append(member)
        if not ret:
            ret = _setup_msi(igroup, hwpt.paging)
        if not ret:
            ret = iommu_replace_group_handle(igroup.group, hwpt.domain, AttachHandle(idev))
            if ret and ctx.release.has(REPLACE_DROPS_RESERVATIONS):
                added = list(igroup.devices)
        if ret:
            for member in added:
                remove_reserved(target, member)
            return ret, None
        if source is not target:
            for member in igroup.devices:
                remove_reserved(source, member)
        igroup.hwpt = hwpt
        moved = len(igroup.devices)
        hwpt.users += moved
        # One reference is the caller's to give back, because it may be the last of an automatic table.
        old.users -= max(moved - 1, 0)
    return 0, old if moved else None

# SPDX-License-Identifier: GPL-2.0-or-later
"""Attach, replace and detach: what happens to a group, its references and its reserved regions (iommufd/device.c).

The domain is switched once for the whole group; each device that called attach holds a reference to the table and
keeps its reserved regions out of the table's IOAS.  Under a PASID there are references only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from abi.errno import EBUSY, EINVAL, ENOMEM
from guest_driver.defects.iommufd import REPLACE_DROPS_RESERVATIONS, REPLACE_UNATTACHED
from guest_driver.iommufd.hw_pagetable import Hwpt, HwptPaging
from guest_driver.iommufd.io_pagetable import IoPagetable
from guest_driver.linux.dma_cookie import iommu_get_msi_cookie
from guest_driver.linux.iommu import (
    IOMMU_NO_PASID,
    IOMMU_RESV_DIRECT_RELAXABLE,
    IOMMU_RESV_MSI,
    IOMMU_RESV_SW_MSI,
)
from guest_driver.linux.iommu_attach import (
    iommu_attach_group_handle,
    iommu_detach_group_handle,
    iommu_replace_group_handle,
)
from guest_driver.linux.iommu_pasid import (
    iommu_attach_device_pasid,
    iommu_detach_device_pasid,
    iommu_replace_device_pasid,
)
from guest_driver.linux.iommu_resv import iommu_get_resv_regions

if TYPE_CHECKING:
    from guest_driver.iommufd.device import Attachment, IommufdDevice, IommufdGroup

Change = Callable[["IommufdDevice", Hwpt, int], tuple[int, "Hwpt | None"]]
"""(device, table, PASID) -> (0 or -errno, table that lost a reference which the caller has to give back)."""


class AttachHandle:
    """What the core keeps with an attachment, to find back from a fault (struct iommufd_attach_handle)."""

    __slots__ = ("idev",)

    def __init__(self, idev: IommufdDevice) -> None:
        self.idev: Final = idev


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


# -------------------------------------------------------------------------------------------- the domain


def hwpt_put(hwpt: Hwpt) -> None:
    """Drop a device's reference; an automatic table goes with its last device."""
    if isinstance(hwpt, HwptPaging) and hwpt.auto_domain:
        hwpt.ctx.objects.put_and_try_destroy(hwpt)
    else:
        hwpt.users -= 1


def _pasid_compat(igroup: IommufdGroup, hwpt: Hwpt, pasid: int) -> int:
    """-EINVAL where a table that was not made for PASIDs would come together with PASIDs."""
    if pasid != IOMMU_NO_PASID:
        rid = igroup.rid.hwpt
        return 0 if hwpt.pasid_compat and (rid is None or rid.pasid_compat) else -EINVAL
    return -EINVAL if igroup.pasids and not hwpt.pasid_compat else 0


def _switch_domain(hwpt: Hwpt, idev: IommufdDevice, pasid: int, attachment: Attachment) -> int:
    """Put the group (or its PASID) on the table, from nothing or from another; 0, or -errno and nothing has changed.

    Page requests that were reported under another table are answered.
    """
    ret = _pasid_compat(idev.igroup, hwpt, pasid)
    if ret:
        return ret
    if not idev.ctx.kernel.kzalloc("iommufd_attach_handle"):
        return -ENOMEM
    handle, domain, group = AttachHandle(idev), hwpt.domain, idev.igroup.group
    if pasid == IOMMU_NO_PASID:
        if attachment.hwpt is None:
            ret = iommu_attach_group_handle(domain, group, handle)
        else:
            ret = iommu_replace_group_handle(group, domain, handle)
    elif attachment.hwpt is None:
        ret = iommu_attach_device_pasid(domain, idev.dev, pasid, handle)
    else:
        ret = iommu_replace_device_pasid(domain, idev.dev, pasid, handle)
    if not ret:
        _answer_faults(attachment)
        attachment.handle = handle
    return ret


def _detach_domain(hwpt: Hwpt, idev: IommufdDevice, pasid: int, attachment: Attachment) -> None:
    if pasid == IOMMU_NO_PASID:
        iommu_detach_group_handle(hwpt.domain, idev.igroup.group)
    else:
        iommu_detach_device_pasid(hwpt.domain, idev.dev, pasid)
    _answer_faults(attachment)
    attachment.handle = None


def _answer_faults(attachment: Attachment) -> None:
    """Nobody will answer what was reported under this attachment: the devices get INVALID."""
    if attachment.hwpt is not None and attachment.hwpt.fault is not None:
        attachment.hwpt.fault.drop(attachment.handle)


# ------------------------------------------------------------------------------------------------- the flows


def hwpt_attach(hwpt: Hwpt, idev: IommufdDevice, pasid: int = IOMMU_NO_PASID) -> int:
    """Add ``idev`` to those attached, and the group to the table if it is the first; 0, or -errno and no change."""
    from guest_driver.iommufd.device import Attachment

    igroup = idev.igroup
    ctx = idev.ctx
    with ctx.locks.hold("igroup->lock", igroup):
        attachment = igroup.attachment(pasid)
        if attachment is None:
            if not ctx.kernel.kzalloc("iommufd_attach"):
                return -ENOMEM
            attachment = Attachment()
        if idev in attachment.devices:
            if ctx.release.knows_who_attached:
                return -EBUSY
            ctx.printk.warn_on(True, f"{idev.dev.name}: attached twice, the list of the group is damaged")
        if attachment.hwpt is not None and attachment.hwpt is not hwpt:
            return -EINVAL
        paging = hwpt.paging
        if ctx.release.upgrades_coherency_on_attach and idev.enforce_cache_coherency and not paging.enforce_coherency():
            return -EINVAL
        reserves = pasid == IOMMU_NO_PASID
        ret = enforce_dev_resv_regions(paging.ioas.iopt, idev) if reserves else 0
        if ret:
            return ret
        if not attachment.devices:
            if reserves:
                ret = _setup_msi(igroup, paging)
            else:
                igroup.pasids[pasid] = attachment
            ret = ret or _switch_domain(hwpt, idev, pasid, attachment)
            if ret:
                if reserves:
                    remove_reserved(paging.ioas.iopt, idev)
                else:
                    del igroup.pasids[pasid]
                return ret
            attachment.hwpt = hwpt
        hwpt.users += 1
        attachment.devices.append(idev)
    return 0


def hwpt_detach(idev: IommufdDevice, pasid: int = IOMMU_NO_PASID) -> Hwpt | None:
    """Take ``idev`` out; the table that lost its reference, which the caller puts."""
    igroup = idev.igroup
    with idev.ctx.locks.hold("igroup->lock", igroup):
        attachment = igroup.attachment(pasid)
        hwpt = None if attachment is None or idev not in attachment.devices else attachment.hwpt
        if idev.ctx.printk.warn_on(hwpt is None, f"{idev.dev.name}: detached, but not attached"):
            return None
        assert hwpt is not None and attachment is not None
        attachment.devices.remove(idev)
        if not attachment.devices:
            _detach_domain(hwpt, idev, pasid, attachment)
            attachment.hwpt = None
            igroup.pasids.pop(pasid, None)
        if pasid == IOMMU_NO_PASID:
            remove_reserved(hwpt.paging.ioas.iopt, idev)
    return hwpt


def do_attach(idev: IommufdDevice, hwpt: Hwpt, pasid: int) -> tuple[int, Hwpt | None]:
    return hwpt_attach(hwpt, idev, pasid), None


def do_replace(idev: IommufdDevice, hwpt: Hwpt, pasid: int) -> tuple[int, Hwpt | None]:
    """Move the group, the references and the reservations of all attached devices at once."""
    igroup = idev.igroup
    ctx = idev.ctx
    with ctx.locks.hold("igroup->lock", igroup):
        attachment = igroup.attachment(pasid)
        if attachment is None or attachment.hwpt is None:
            return -EINVAL, None
        old = attachment.hwpt
        if idev not in attachment.devices and not ctx.release.has(REPLACE_UNATTACHED):
            return -EINVAL, None
        if old is hwpt:
            return 0, None
        source, target = old.paging.ioas.iopt, hwpt.paging.ioas.iopt
        if ctx.release.upgrades_coherency_on_attach and idev.enforce_cache_coherency:
            upgraded = hwpt.paging.enforce_coherency()
            if not upgraded:
                return -EINVAL, None
        moves_regions = source is not target and pasid == IOMMU_NO_PASID
        added: list[IommufdDevice] = []
        ret = 0
        if moves_regions:
            for member in attachment.devices:
                ret = enforce_dev_resv_regions(target, member)
                if ret:
                    break
                added.append(member)
        if not ret and pasid == IOMMU_NO_PASID:
            ret = _setup_msi(igroup, hwpt.paging)
        if not ret:
            ret = _switch_domain(hwpt, idev, pasid, attachment)
            if ret and ctx.release.has(REPLACE_DROPS_RESERVATIONS):
                added = list(attachment.devices)
        if ret:
            for member in added:
                remove_reserved(target, member)
            return ret, None
        if moves_regions:
            for member in attachment.devices:
                remove_reserved(source, member)
        attachment.hwpt = hwpt
        moved = len(attachment.devices)
        hwpt.users += moved
        # One reference is the caller's to give back, because it may be the last of an automatic table.
        old.users -= max(moved - 1, 0)
    return 0, old if moved else None

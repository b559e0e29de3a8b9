# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices and their groups: bind, attach, replace, detach (iommufd/device.c).

A group has one hardware table at a time, for all of its devices; ``devices`` are those that have *called* attach.
Each of them holds a reference to the table and keeps its reserved regions out of the table's IOAS; the domain is
switched once for the whole group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from abi.errno import EINVAL, ENOENT, ENOMEM, EPERM
from guest_driver.iommufd.attach import AttachHandle, Change, do_attach, do_replace, hwpt_detach, hwpt_put
from guest_driver.iommufd.hw_pagetable import Hwpt, hwpt_paging_alloc
from guest_driver.iommufd.ioas import Ioas
from guest_driver.iommufd.objects import IommufdObject
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import (
    IOMMU_CAP_CACHE_COHERENCY,
    IOMMU_CAP_ENFORCE_CACHE_COHERENCY,
    IOMMU_NO_PASID,
)
from guest_driver.linux.iommu_core import device_iommu_capable
from guest_driver.linux.iommu_group import IommuGroup
from guest_driver.linux.iommu_owner import iommu_device_claim_dma_owner, iommu_device_release_dma_owner

if TYPE_CHECKING:
    from guest_driver.iommufd.context import IommufdCtx
    from guest_driver.iommufd.viommu import Vdevice


class Attachment:
    """What a group is attached to under one PASID (struct iommufd_attach)."""

    __slots__ = ("devices", "handle", "hwpt")

    def __init__(self) -> None:
        self.hwpt: Hwpt | None = None
        self.devices: list[IommufdDevice] = []
        """Devices that have called attach, in that order."""
        self.handle: AttachHandle | None = None


class IommufdGroup:
    """A group within one context (struct iommufd_group)."""

    __slots__ = ("bound", "group", "pasids", "rid", "sw_msi_start")

    def __init__(self, group: IommuGroup) -> None:
        self.group: Final = group
        self.rid: Final = Attachment()
        """What requests without a PASID meet."""
        self.pasids: Final[dict[int, Attachment]] = {}
        """PASIDs that have an attachment."""
        self.bound = 0
        self.sw_msi_start: int | None = None

    @property
    def hwpt(self) -> Hwpt | None:
        return self.rid.hwpt

    @property
    def devices(self) -> list[IommufdDevice]:
        return self.rid.devices

    def attachment(self, pasid: int) -> Attachment | None:
        return self.rid if pasid == IOMMU_NO_PASID else self.pasids.get(pasid)


class IommufdDevice(IommufdObject):
    """A device given to this context.  User space sees its id but cannot destroy it."""

    __slots__ = ("dev", "enforce_cache_coherency", "igroup", "keeps_open", "vdevice")

    def __init__(self, ctx: IommufdCtx, dev: Device, igroup: IommufdGroup, keeps_open: bool = True) -> None:
        super().__init__(ctx)
        self.keeps_open: Final = keeps_open
        self.dev: Final = dev
        self.igroup: Final = igroup
        self.vdevice: Vdevice | None = None
        """How the guest of a vIOMMU knows it (from 6.17 on)."""
        self.enforce_cache_coherency = device_iommu_capable(dev, IOMMU_CAP_ENFORCE_CACHE_COHERENCY)

    @property
    def attached(self) -> bool:
        return self in self.igroup.devices

    def attached_to(self, pasid: int) -> bool:
        attachment = self.igroup.attachment(pasid)
        return attachment is not None and self in attachment.devices

    def attachments(self) -> list[int]:
        """The PASIDs under which it is attached, 0 for the device itself."""
        rid = [IOMMU_NO_PASID] if self.attached else []
        return rid + [pasid for pasid, attachment in self.igroup.pasids.items() if self in attachment.devices]

    def destroy(self) -> None:
        igroup = self.igroup
        iommu_device_release_dma_owner(self.dev)
        igroup.bound -= 1
        if not igroup.bound:
            del self.ctx.groups[igroup.group]
        if self.keeps_open:
            self.ctx.put()

    # -- attach and replace by id

    def attach(self, pt_id: int, pasid: int = IOMMU_NO_PASID) -> tuple[int, int]:
        """Attach to a hardware table, or to an IOAS through an automatic one; (0, id of the table) or (-errno, 0).

        -ENOENT: no such id; -EINVAL: it is something else, incompatible, or not the group's table; -EADDRINUSE: a
        reserved region of the device is in use there; -EBUSY: attached already (6.15).  A PASID has a table of its own,
        and takes only tables made for that.
        """
        return self._change_pt(pt_id, do_attach, pasid)

    def replace(self, pt_id: int, pasid: int = IOMMU_NO_PASID) -> tuple[int, int]:
        """Go over to another table without a moment in between; on an error everything is as before.

        The whole group goes.  -EINVAL if nothing is attached.
        """
        return self._change_pt(pt_id, do_replace, pasid)

    def _change_pt(self, pt_id: int, change: Change, pasid: int) -> tuple[int, int]:
        obj = self.ctx.objects.get(pt_id, IommufdObject)
        if obj is None:
            return -ENOENT, 0
        if isinstance(obj, Hwpt):
            ret, unused = change(self, obj, pasid)
            if ret:
                return ret, 0
            if unused is not None:
                hwpt_put(unused)
            return 0, obj.id
        if isinstance(obj, Ioas):
            return self._auto_get_domain(obj, change, pasid)
        return -EINVAL, 0

    def _auto_get_domain(self, ioas: Ioas, change: Change, pasid: int) -> tuple[int, int]:
        """Try the automatic tables of ``ioas``; if all are incompatible, make one for this device."""
        ctx = self.ctx
        unused: Hwpt | None = None
        with ctx.locks.hold("ioas->mutex", ioas):
            for hwpt in list(ioas.hwpt_list):
                if not hwpt.auto_domain:
                    continue
                ret, unused = change(self, hwpt, pasid)
                if ret == -EINVAL:
                    continue
                if ret:
                    return ret, 0
                break
            else:
                at_once = pasid if change is do_attach else None
                made = hwpt_paging_alloc(ctx, ioas, self, 0, at_once)
                if isinstance(made, int):
                    return made, 0
                hwpt = made
                if at_once is None:
                    ret, unused = change(self, hwpt, pasid)
                    if ret:
                        ctx.objects.abort_and_destroy(hwpt)
                        return ret, 0
                hwpt.auto_domain = True
                ctx.objects.finalize(hwpt)
        if unused is not None:
            hwpt_put(unused)
        return 0, hwpt.id

    def detach(self, pasid: int = IOMMU_NO_PASID) -> None:
        """Leave; with the last device of its group the group is blocked again."""
        hwpt = hwpt_detach(self, pasid)
        if hwpt is not None:
            hwpt_put(hwpt)


def iommufd_device_bind(ctx: IommufdCtx, dev: Device, keeps_open: bool = True) -> IommufdDevice | int:
    """Give ``dev`` to user space, and with it its whole group.

    -EINVAL: DMA is not coherent; -EPERM: group used by others, or its interrupts can be forged; -EBUSY: the group is
    not on its default domain; -EINVAL also for devices that firmware needs to keep mapped.  ``keeps_open``: the context
    lives until the device is unbound.
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
    idev = IommufdDevice(ctx, dev, igroup, keeps_open)
    ret = ctx.objects.alloc(idev)
    if ret:
        iommu_device_release_dma_owner(dev)
        return ret
    ctx.groups[group] = igroup
    igroup.bound += 1
    ctx.refs += keeps_open
    idev.users += 1
    ctx.objects.finalize(idev)
    return idev


def iommufd_device_unbind(idev: IommufdDevice) -> None:
    """The opposite of bind; the device must be detached."""
    idev.ctx.printk.warn_on(bool(idev.attachments()), f"{idev.dev.name}: unbound while attached")
    if idev.vdevice is not None:
        idev.ctx.objects.tombstone(idev.vdevice)
    idev.users -= 1
    idev.ctx.objects.destroy(idev)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of an IOMMU that a guest owns: vIOMMU, its devices and its hardware queues (iommufd/viommu.c, 6.13 on).

A vIOMMU stands for one physical unit and one nesting parent.  What the unit's driver does for it are
:class:`~guest_driver.linux.iommu.ViommuOps`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from abi.errno import EEXIST, EFAULT, EINVAL, ENOENT, EOPNOTSUPP, EOVERFLOW
from base.units import PAGE_SIZE
from guest_driver.iommufd.hw_pagetable import HwptNested, HwptPaging, adopt_nested
from guest_driver.iommufd.iova_ranges import ULONG_MAX
from guest_driver.iommufd.objects import IommufdObject
from guest_driver.iommufd.uapi import IOMMU_HWPT_ALLOC_PASID, IOMMU_HWPT_FAULT_ID_VALID
from guest_driver.iommufd.user_copy import copy_blob
from guest_driver.linux.iommu import IommuDevice, ViommuOps
from guest_driver.linux.iommu_core import dev_iommu_ops, iommu_adopt_nested

if TYPE_CHECKING:
    from guest_driver.iommufd.access import IommufdAccess
    from guest_driver.iommufd.context import IommufdCtx, Ucmd
    from guest_driver.iommufd.device import IommufdDevice
    from guest_driver.iommufd.eventq import VEventQueue


class Viommu(IommufdObject):
    """struct iommufd_viommu.  ``priv`` is the driver's."""

    __slots__ = ("hwpt", "ops", "priv", "queues", "type", "unit", "vdevices", "veventqs")

    def __init__(self, ctx: IommufdCtx, hwpt: HwptPaging, unit: IommuDevice, type: int) -> None:
        super().__init__(ctx)
        self.hwpt: Final = hwpt
        self.unit: Final = unit
        self.type: Final = type
        self.ops: ViommuOps | None = None
        self.priv: Any = None
        self.vdevices: dict[int, Vdevice] = {}
        """By the id that the guest knows the device by."""
        self.veventqs: list[VEventQueue] = []
        self.queues: list[HwQueue] = []
        hwpt.users += 1

    def find_vdevice(self, dev: object) -> Vdevice | None:
        """The vDevice of a device of the kernel's, for its driver."""
        return next((vdev for vdev in self.vdevices.values() if vdev.idev is not None and vdev.idev.dev is dev), None)

    def report_event(self, type: int, data: bytes) -> int:
        """iommufd_viommu_report_event: -EOPNOTSUPP without a queue for it, -EOVERFLOW, -ENOMEM."""
        queue = next((queue for queue in self.veventqs if queue.type == type), None)
        return -EOPNOTSUPP if queue is None else queue.report(data)

    def destroy(self) -> None:
        if self.ops is not None and self.ops.destroy is not None:
            self.ops.destroy(self)
        self.hwpt.users -= 1


def _unit(idev: IommufdDevice) -> IommuDevice | None:
    return None if idev.dev.iommu is None else idev.dev.iommu.iommu_dev


def viommu_alloc(cmd: Ucmd) -> int:
    """-EOPNOTSUPP: the driver has no such type; -EINVAL: the table is no nesting parent."""
    from guest_driver.iommufd.device import IommufdDevice

    ctx = cmd.ctx
    if cmd["flags"] or not cmd["type"] or cmd["__reserved"]:
        return -EOPNOTSUPP
    idev = ctx.objects.get(cmd["dev_id"], IommufdDevice)
    if idev is None:
        return -ENOENT
    ops, unit = dev_iommu_ops(idev.dev), _unit(idev)
    types = {} if ops is None else ops.viommu_types
    if not types or (ctx.release.version >= (6, 17) and cmd["type"] not in types):
        return -EOPNOTSUPP
    hwpt = ctx.objects.get(cmd["hwpt_id"], HwptPaging)
    if hwpt is None:
        return -ENOENT
    if not hwpt.nest_parent:
        return -EINVAL
    if cmd["type"] not in types:
        return -EOPNOTSUPP
    blob = copy_blob(cmd.mm, cmd["data_uptr"], cmd["data_len"])
    if isinstance(blob, int):
        return blob
    data = bytearray(blob) if cmd["data_len"] else None
    assert unit is not None
    viommu = Viommu(ctx, hwpt, unit, cmd["type"])
    ret = ctx.objects.alloc(viommu)
    if ret:
        viommu.destroy()
        return ret
    made = types[cmd["type"]](viommu, data)
    if isinstance(made, int):
        ctx.objects.abort_and_destroy(viommu)
        return made
    viommu.ops = made
    cmd["out_viommu_id"] = viommu.id
    if data is not None and not cmd.mm.write(cmd["data_uptr"], bytes(data)):
        ret = -EFAULT
    ret = ret or cmd.respond()
    if ret:
        ctx.objects.abort_and_destroy(viommu)
        return ret
    ctx.objects.finalize(viommu)
    return 0


def viommu_alloc_hwpt_nested(
    viommu: Viommu, idev: IommufdDevice, flags: int, type: int, data: bytes
) -> HwptNested | int:
    """A nested table that belongs to a vIOMMU, not published yet."""
    ctx = viommu.ctx
    if flags & ~(IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID) or not data:
        return -EOPNOTSUPP
    if viommu.ops is None or viommu.ops.alloc_domain_nested is None:
        return -EOPNOTSUPP
    if viommu.unit is not _unit(idev):
        return -EINVAL
    hwpt = HwptNested(ctx, viommu.hwpt, viommu)
    ret = ctx.objects.alloc(hwpt)
    if ret:
        hwpt.destroy()
        return ret
    domain = viommu.ops.alloc_domain_nested(viommu, flags & ~IOMMU_HWPT_FAULT_ID_VALID, type, data)
    return adopt_nested(hwpt, iommu_adopt_nested(idev.dev, domain), flags, idev)


# ------------------------------------------------------------------------------------------------- vDevices


class Vdevice(IommufdObject):
    """A device as the guest of a vIOMMU knows it."""

    __slots__ = ("idev", "viommu", "virt_id")

    def __init__(self, viommu: Viommu, idev: IommufdDevice, virt_id: int) -> None:
        super().__init__(viommu.ctx)
        self.viommu: Final = viommu
        self.idev: IommufdDevice | None = idev
        self.virt_id: Final = virt_id
        viommu.users += 1

    def destroy(self) -> None:
        if self.viommu.vdevices.get(self.virt_id) is self:
            del self.viommu.vdevices[self.virt_id]
        if self.idev is not None and self.idev.vdevice is self:
            self.idev.vdevice = None
        self.viommu.users -= 1


def vdevice_alloc(cmd: Ucmd) -> int:
    """-EEXIST: that id is taken, or (6.17) the device has a vDevice; -EINVAL: it is behind another unit."""
    from guest_driver.iommufd.device import IommufdDevice

    ctx = cmd.ctx
    viommu = ctx.objects.get(cmd["viommu_id"], Viommu)
    if viommu is None:
        return -ENOENT
    idev = ctx.objects.get(cmd["dev_id"], IommufdDevice)
    if idev is None:
        return -ENOENT
    if viommu.unit is not _unit(idev):
        return -EINVAL
    one_each = ctx.release.version >= (6, 17)
    if one_each and idev.vdevice is not None:
        return -EEXIST
    vdevice = Vdevice(viommu, idev, cmd["virt_id"])
    ret = ctx.objects.alloc(vdevice)
    if ret:
        vdevice.destroy()
        return ret
    if cmd["virt_id"] in viommu.vdevices:
        ret = -EEXIST
    else:
        viommu.vdevices[cmd["virt_id"]] = vdevice
        if one_each:
            idev.vdevice = vdevice
    cmd["out_vdevice_id"] = vdevice.id
    ret = ret or cmd.respond()
    if ret:
        ctx.objects.abort_and_destroy(vdevice)
        return ret
    ctx.objects.finalize(vdevice)
    return 0


# ------------------------------------------------------------------------------------------ hardware queues


class HwQueue(IommufdObject):
    """A queue in guest memory that hardware reads; its pages stay mapped and pinned while it exists."""

    __slots__ = ("access", "base", "before", "index", "length", "type", "viommu")

    def __init__(self, viommu: Viommu, type: int, index: int, base: int, length: int) -> None:
        super().__init__(viommu.ctx)
        self.viommu: Final = viommu
        self.type: Final = type
        self.index: Final = index
        self.base: Final = base
        self.length: Final = length
        self.access: IommufdAccess | None = None
        self.before: HwQueue | None = None
        """The queue that has to stay while this one is there."""
        viommu.users += 1

    def destroy(self) -> None:
        if self in self.viommu.queues:
            self.viommu.queues.remove(self)
            if self.viommu.ops is not None and self.viommu.ops.hw_queue_destroy is not None:
                self.viommu.ops.hw_queue_destroy(self)
        if self.before is not None:
            self.before.users -= 1
        if self.access is not None:
            self.access.unlock_pages(self.base, self.length)
            self.access.detach()
        self.viommu.users -= 1


def hw_queue_alloc(cmd: Ucmd) -> int:
    """-ENOENT: not mapped; -EFAULT: not contiguous in memory; -EOPNOTSUPP: no such queue; or the driver's error."""
    ctx = cmd.ctx
    if cmd["flags"] or not cmd["type"]:
        return -EOPNOTSUPP
    base, length = cmd["nesting_parent_iova"], cmd["length"]
    if not length:
        return -EINVAL
    if base + length - 1 > ULONG_MAX:
        return -EOVERFLOW
    viommu = ctx.objects.get(cmd["viommu_id"], Viommu)
    if viommu is None:
        return -ENOENT
    ops = viommu.ops
    if ops is None or ops.hw_queue_init is None or cmd["type"] not in ops.hw_queue_types:
        return -EOPNOTSUPP
    queue = HwQueue(viommu, cmd["type"], cmd["index"], base, length)
    ret = ctx.objects.alloc(queue)
    if ret:
        queue.destroy()
        return ret
    ret, paddr = _pin_queue(queue)
    ret = ret or ops.hw_queue_init(queue, paddr)
    if not ret:
        viommu.queues.append(queue)
    cmd["out_hw_queue_id"] = queue.id
    ret = ret or cmd.respond()
    if ret:
        ctx.objects.abort_and_destroy(queue)
        return ret
    ctx.objects.finalize(queue)
    return 0


def _pin_queue(queue: HwQueue) -> tuple[int, int]:
    """(0, physical address) with the pages pinned and their areas locked, or (-errno, 0)."""
    from guest_driver.iommufd.access import internal_access

    access = internal_access(queue.ctx, queue.viommu.hwpt.ioas)
    if isinstance(access, int):
        return access, 0
    ret, pages = access.lock_pages(queue.base, queue.length)
    if not ret and any(page != pages[0] + at * PAGE_SIZE for at, page in enumerate(pages)):
        access.unlock_pages(queue.base, queue.length)
        ret = -EFAULT
    if ret:
        access.detach()
        return ret, 0
    queue.access = access
    return 0, pages[0] + (queue.base & PAGE_SIZE - 1)

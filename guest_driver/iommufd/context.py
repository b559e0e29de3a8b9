# SPDX-License-Identifier: GPL-2.0-or-later
"""An open /dev/iommu: its objects, and how an ioctl finds its function (iommufd/main.c)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from abi.errno import EFAULT, EINVAL, ENOMEM, ENOTTY
from guest_driver.iommufd import eventq, hwpt_ioctl, ioas, vfio_compat, viommu
from guest_driver.iommufd.device import IommufdDevice, IommufdGroup, iommufd_device_unbind
from guest_driver.iommufd.ioas import Ioas
from guest_driver.iommufd.lockdep import Lockdep
from guest_driver.iommufd.objects import ObjectTable
from guest_driver.iommufd.pages import ACCOUNT_USER
from guest_driver.iommufd.process import AddressSpace, Process
from guest_driver.iommufd.release import Release, release
from guest_driver.iommufd.uapi import BY_NAME, BY_NUMBER, IOMMU_TEST_CMD, IOMMUFD_TYPE, Ioctl
from guest_driver.iommufd.user_copy import check_zeroed_user
from guest_driver.linux.iommu_group import IommuGroup
from guest_driver.linux.kernel import Kernel


class Ucmd:
    """One ioctl under way: its fields as ``cmd["name"]``, and the way back to the caller's memory."""

    __slots__ = ("_row", "_values", "address", "ctx", "process", "user_size")

    def __init__(self, ctx: IommufdCtx, process: Process, row: Ioctl, address: int, user_size: int) -> None:
        self.ctx: Final = ctx
        self.process: Final = process
        self.address: Final = address
        self.user_size: Final = user_size
        self._row: Final = row
        self._values: dict[str, int] = {}

    @property
    def mm(self) -> AddressSpace:
        return self.process.mm

    def load(self, data: bytes) -> None:
        layout = self._row.layout
        self._values = dict(zip(self._row.fields, layout.unpack(data.ljust(layout.size, b"\0"))))

    def __getitem__(self, field: str) -> int:
        return self._values[field]

    def __setitem__(self, field: str, value: int) -> None:
        self._values[field] = value

    def respond(self) -> int:
        """Copy the struct back, as much of it as the caller has; -EFAULT if that is not possible."""
        data = self._row.layout.pack(*self._values.values())
        length = min(self.user_size, self._row.size(self.ctx.release.version))
        return 0 if self.mm.write(self.address, data[:length]) else -EFAULT


_HANDLERS: Final[dict[str, Callable[[Ucmd], int]]] = {
    "DESTROY": lambda cmd: cmd.ctx.objects.remove(cmd["id"]),
    "IOAS_ALLOC": ioas.ioas_alloc,
    "IOAS_ALLOW_IOVAS": ioas.ioas_allow_iovas,
    "IOAS_COPY": ioas.ioas_copy,
    "IOAS_IOVA_RANGES": ioas.ioas_iova_ranges,
    "IOAS_MAP": ioas.ioas_map,
    "IOAS_UNMAP": ioas.ioas_unmap,
    "OPTION": ioas.option,
    "VFIO_IOAS": vfio_compat.vfio_ioas,
    "HWPT_ALLOC": hwpt_ioctl.hwpt_alloc,
    "GET_HW_INFO": hwpt_ioctl.get_hw_info,
    "HWPT_SET_DIRTY_TRACKING": hwpt_ioctl.hwpt_set_dirty_tracking,
    "HWPT_GET_DIRTY_BITMAP": hwpt_ioctl.hwpt_get_dirty_bitmap,
    "HWPT_INVALIDATE": hwpt_ioctl.hwpt_invalidate,
    "FAULT_QUEUE_ALLOC": eventq.fault_queue_alloc,
    "IOAS_MAP_FILE": ioas.ioas_map_file,
    "VIOMMU_ALLOC": viommu.viommu_alloc,
    "VDEVICE_ALLOC": viommu.vdevice_alloc,
    "IOAS_CHANGE_PROCESS": ioas.ioas_change_process,
    "VEVENTQ_ALLOC": eventq.veventq_alloc,
    "HW_QUEUE_ALLOC": viommu.hw_queue_alloc,
}


class IommufdCtx:
    """struct iommufd_ctx.  The file and every bound device hold a reference; the last one takes everything down."""

    __slots__ = (
        "account_mode",
        "groups",
        "isolated_msi",
        "kernel",
        "locks",
        "no_iommu",
        "objects",
        "printk",
        "refs",
        "release",
        "test_command",
        "vfio_ioas",
    )

    def __init__(self, kernel: Kernel, kernel_release: Release | None = None) -> None:
        self.kernel: Final = kernel
        self.printk: Final = kernel.printk
        self.release: Final = kernel_release or release()
        self.locks: Final = Lockdep(kernel.printk)
        self.objects: Final[ObjectTable] = ObjectTable(self)
        self.groups: dict[IommuGroup, IommufdGroup] = {}
        self.account_mode = ACCOUNT_USER
        self.vfio_ioas: Ioas | None = None
        self.no_iommu = False
        self.isolated_msi: Callable[[IommuGroup], bool] = lambda group: True
        """Whether interrupts of the group cannot be forged; False refuses to bind (no allow_unsafe_interrupts)."""
        self.refs = 1
        self.test_command: Callable[[Process, int], int] | None = None
        """IOMMU_TEST_CMD, where it is offered: (caller, address of the struct)."""

    def ioctl(self, process: Process, request: int, address: int) -> int:
        """0 or a positive answer, or -errno; ``address`` is where the caller's struct lies."""
        row = BY_NUMBER.get(request & 0xFF)
        if self.test_command is not None and request == IOMMU_TEST_CMD:
            return self.test_command(process, address)
        if row is None or request != row.request or self.release.version < row.since:
            if request >> 8 == IOMMUFD_TYPE:
                return vfio_compat.vfio_ioctl(self, process, request & 0xFF, address)
            return -ENOTTY
        data = process.mm.read(address, row.min_size)
        if data is None:  # what there is of it says which error this is
            data = process.mm.read(address, 4)
            return -EINVAL if data is not None and int.from_bytes(data, "little") < row.min_size else -EFAULT
        user_size = int.from_bytes(data[:4], "little")
        if user_size < row.min_size:
            return -EINVAL
        known = row.size(self.release.version)
        if user_size > row.min_size and known > row.min_size:
            data = process.mm.read(address, min(user_size, known))
            if data is None:
                return -EFAULT
        if user_size > known:
            ret = check_zeroed_user(process.mm, address + known, user_size - known)
            if ret:
                return ret
        cmd = Ucmd(self, process, row, address, user_size)
        cmd.load(data)
        return _HANDLERS[row.name](cmd)

    def call(self, process: Process, name: str, scratch: int, **fields: int) -> tuple[int, dict[str, int]]:
        """An ioctl by name with its struct built at user address ``scratch``; (result, fields afterwards).

        Convenience for callers in Python; -EFAULT if ``scratch`` is not writable.
        """
        row = BY_NAME[name]
        known = row.size(self.release.version)
        values = {"size": known, **fields}
        data = row.layout.pack(*(values.get(field, 0) for field in row.fields))[: max(known, values["size"])]
        if not process.mm.write(scratch, data):
            return -EFAULT, {}
        ret = self.ioctl(process, row.request, scratch)
        after = process.mm.read(scratch, len(data)) or data
        return ret, dict(zip(row.fields, row.layout.unpack(after.ljust(row.layout.size, b"\0"))))

    def close(self) -> None:
        """The program closes its file.  Bound devices keep the context alive until they are unbound."""
        self.put()

    def put(self) -> None:
        self.refs -= 1
        if not self.refs:
            self.objects.destroy_all()
            self.printk.warn_on(bool(self.groups), "groups outlive their context")

    def exit(self) -> None:
        """The process ends: its device files are closed, which unbinds them, and then this one."""
        for device in [obj for obj in self.objects if isinstance(obj, IommufdDevice)]:
            if device.attached:
                device.detach()
            iommufd_device_unbind(device)
        self.close()


def iommufd_open(kernel: Kernel, kernel_release: Release | None = None) -> IommufdCtx | int:
    """Open /dev/iommu; -ENOMEM."""
    if not kernel.kzalloc("iommufd_ctx"):
        return -ENOMEM
    return IommufdCtx(kernel, kernel_release)

# SPDX-License-Identifier: GPL-2.0-or-later
"""A device's own file, /dev/vfio/devices/vfioN: bind to an iommufd, attach, and reach its registers.

Source: drivers/vfio/device_cdev.c, iommufd.c and pci/vfio_pci_rdwr.c, include/uapi/linux/vfio.h.  Until it is bound,
everything but binding is -EINVAL.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from abi.errno import EBADF, EFAULT, EINVAL, ENOTTY
from guest_driver.iommufd.device import IommufdDevice, iommufd_device_bind, iommufd_device_unbind
from guest_driver.iommufd.process import Process
from guest_driver.iommufd.uapi import VFIO_BASE
from guest_driver.linux.device import Device
from guest_driver.linux.errno import EBADFD

if TYPE_CHECKING:
    from guest_driver.iommufd.context import IommufdCtx

VFIO_DEVICE_GET_INFO: Final = VFIO_BASE + 7
VFIO_DEVICE_GET_REGION_INFO: Final = VFIO_BASE + 8
VFIO_DEVICE_RESET: Final = VFIO_BASE + 11
VFIO_DEVICE_BIND_IOMMUFD: Final = VFIO_BASE + 18
VFIO_DEVICE_ATTACH_IOMMUFD_PT: Final = VFIO_BASE + 19
VFIO_DEVICE_DETACH_IOMMUFD_PT: Final = VFIO_BASE + 20

_DEVICE_FLAGS: Final = 1 << 0 | 1 << 1
"""It can be reset; it is a PCI device."""
_REGIONS, _IRQS = 9, 5
_REGION_SHIFT: Final = 40
_REGION_FLAGS: Final = 1 << 0 | 1 << 1
_PASID_FLAG: Final = 1
BAR_SIZE: Final = 4096
_RESET_CTRL: Final = 2

_BIND: Final = struct.Struct("<IIiI")
_ATTACH: Final = struct.Struct("<III")
_DETACH: Final = struct.Struct("<II")
_INFO: Final = struct.Struct("<IIII")
_REGION: Final = struct.Struct("<IIIIQQ")


class Bar(Protocol):
    """A device's register block."""

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


class VfioDevice:
    """One open of a device's file.  ``bar`` answers for region 0; ``on_bind`` hears of a successful bind."""

    def __init__(self, dev: Device, bar: Bar | None = None) -> None:
        self.dev: Final = dev
        self._bar: Final = bar
        self.idev: IommufdDevice | None = None
        self._ioctls: Final[dict[int, Callable[[Process, int], int]]] = {
            VFIO_DEVICE_GET_INFO: self._get_info,
            VFIO_DEVICE_GET_REGION_INFO: self._get_region_info,
            VFIO_DEVICE_RESET: self._reset,
            VFIO_DEVICE_ATTACH_IOMMUFD_PT: self._attach,
            VFIO_DEVICE_DETACH_IOMMUFD_PT: self._detach,
        }

    def ioctl(self, process: Process, request: int, address: int) -> int:
        nr = request & 0xFF
        if nr == VFIO_DEVICE_BIND_IOMMUFD:
            return self._bind(process, address)
        if self.idev is None:
            return -EINVAL
        handler = self._ioctls.get(nr)
        return -ENOTTY if handler is None else handler(process, address)

    def _read(self, process: Process, address: int, layout: struct.Struct) -> tuple[int, ...] | int:
        raw = process.mm.read(address, layout.size)
        if raw is None:
            return -EFAULT
        fields: tuple[int, ...] = layout.unpack(raw)
        return -EINVAL if fields[0] < layout.size else fields

    def _bind(self, process: Process, address: int) -> int:
        """Give the device to an open iommufd; its id there comes back."""
        fields = self._read(process, address, _BIND)
        if isinstance(fields, int):
            return fields
        argsz, flags, fd, _ = fields
        if flags or fd < 0 or self.idev is not None:
            return -EINVAL
        ctx = self._iommufd(process, fd)
        if isinstance(ctx, int):
            return ctx
        if any(isinstance(obj, IommufdDevice) and obj.dev is self.dev for obj in ctx.objects):
            return -EINVAL  # opened and bound through another descriptor already
        idev = iommufd_device_bind(ctx, self.dev)
        if isinstance(idev, int):
            return idev
        if not process.mm.write(address, _BIND.pack(argsz, flags, fd, idev.id)):
            iommufd_device_unbind(idev)
            return -EFAULT
        self.idev = idev
        return 0

    @staticmethod
    def _iommufd(process: Process, fd: int) -> IommufdCtx | int:
        from guest_driver.iommufd.context import IommufdCtx

        file = process.files.get(fd)
        if isinstance(file, IommufdCtx):
            return file
        return -EBADF if file is None else -EBADFD

    def _attach(self, process: Process, address: int) -> int:
        """Attach, or replace if it is attached already; the id of the table comes back."""
        fields = self._read(process, address, _ATTACH)
        if isinstance(fields, int):
            return fields
        argsz, flags, pt_id = fields
        pasid = self._pasid(process, address, argsz, flags, _ATTACH.size)
        if pasid < 0:
            return pasid
        idev = self.idev
        assert idev is not None
        replacing = idev.attached_to(pasid)
        ret, hwpt_id = idev.replace(pt_id, pasid) if replacing else idev.attach(pt_id, pasid)
        if ret:
            return ret
        if not process.mm.write(address, _ATTACH.pack(argsz, flags, hwpt_id)):
            idev.detach(pasid)
            return -EFAULT
        return 0

    def _detach(self, process: Process, address: int) -> int:
        fields = self._read(process, address, _DETACH)
        if isinstance(fields, int):
            return fields
        argsz, flags = fields
        pasid = self._pasid(process, address, argsz, flags, _DETACH.size)
        if pasid < 0:
            return pasid
        assert self.idev is not None
        if self.idev.attached_to(pasid):
            self.idev.detach(pasid)
        return 0

    def _pasid(self, process: Process, address: int, argsz: int, flags: int, after: int) -> int:
        """The PASID that a struct names behind its first ``after`` bytes, 0 for none, or -errno."""
        assert self.idev is not None
        known = _PASID_FLAG if self.idev.ctx.release.version >= (6, 15) else 0
        if flags & ~known:
            return -EINVAL
        if not flags & _PASID_FLAG:
            return 0
        if argsz < after + 4:
            return -EINVAL
        raw = process.mm.read(address + after, 4)
        return -EFAULT if raw is None else int.from_bytes(raw, "little")

    def _get_info(self, process: Process, address: int) -> int:
        fields = self._read(process, address, _INFO)
        if isinstance(fields, int):
            return fields
        info = _INFO.pack(fields[0], _DEVICE_FLAGS, _REGIONS, _IRQS)
        return 0 if process.mm.write(address, info) else -EFAULT

    def _get_region_info(self, process: Process, address: int) -> int:
        fields = self._read(process, address, _REGION)
        if isinstance(fields, int):
            return fields
        index = fields[2]
        if index >= _REGIONS:
            return -EINVAL
        there = index == 0 and self._bar is not None
        info = _REGION.pack(
            fields[0], _REGION_FLAGS if there else 0, index, 0, BAR_SIZE if there else 0, index << _REGION_SHIFT
        )
        return 0 if process.mm.write(address, info) else -EFAULT

    def _reset(self, process: Process, address: int) -> int:
        if self._bar is not None:
            self._bar.write(4, 4, _RESET_CTRL)
        return 0

    # -------------------------------------------------------------------------------------------- registers

    def pread(self, process: Process, address: int, count: int, offset: int) -> int:
        """Registers of region 0, four bytes at a time where they are aligned."""
        where = self._where(count, offset)
        if isinstance(where, int) or self._bar is None:
            return where if isinstance(where, int) else -EINVAL
        out = b"".join(self._bar.read(at, size).to_bytes(size, "little") for at, size in where)
        return len(out) if process.mm.write(address, out) else -EFAULT

    def pwrite(self, process: Process, address: int, count: int, offset: int) -> int:
        where = self._where(count, offset)
        if isinstance(where, int) or self._bar is None:
            return where if isinstance(where, int) else -EINVAL
        raw = process.mm.read(address, sum(size for _, size in where))
        if raw is None:
            return -EFAULT
        base = offset & (1 << _REGION_SHIFT) - 1
        for at, size in where:
            self._bar.write(at, size, int.from_bytes(raw[at - base : at - base + size], "little"))
        return len(raw)

    def _where(self, count: int, offset: int) -> list[tuple[int, int]] | int:
        """(register, size) of each access; -EINVAL before the device is bound and outside of its registers."""
        if self.idev is None or offset < 0 or offset >> _REGION_SHIFT or self._bar is None or offset >= BAR_SIZE:
            return -EINVAL
        out: list[tuple[int, int]] = []
        end = min(offset + count, BAR_SIZE)
        while offset < end:
            size = next(size for size in (4, 2, 1) if not offset % size and offset + size <= end)
            out.append((offset, size))
            offset += size
        return out

    def release(self) -> None:
        """The last descriptor is closed: out of its table, and back to the kernel."""
        idev, self.idev = self.idev, None
        if idev is not None:
            for pasid in idev.attachments():
                idev.detach(pasid)
            iommufd_device_unbind(idev)

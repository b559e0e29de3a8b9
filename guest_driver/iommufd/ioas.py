# SPDX-License-Identifier: GPL-2.0-or-later
"""I/O address spaces and the ioctls on them (iommufd/ioas.c)."""

from __future__ import annotations

import struct
from bisect import bisect_left
from typing import TYPE_CHECKING

from abi.errno import (
    EBADF,
    EBUSY,
    EFAULT,
    EINVAL,
    EMSGSIZE,
    ENOENT,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
)
from guest_driver.iommufd.io_pagetable import IoPagetable
from guest_driver.iommufd.iova_ranges import ULONG_MAX
from guest_driver.iommufd.objects import IommufdObject
from guest_driver.iommufd.pages import IoptPages
from guest_driver.iommufd.process import MemoryFile, Process
from guest_driver.iommufd.uapi import (
    IOMMU_IOAS_MAP_FIXED_IOVA,
    IOMMU_IOAS_MAP_READABLE,
    IOMMU_IOAS_MAP_WRITEABLE,
    IOMMU_OPTION_HUGE_PAGES,
    IOMMU_OPTION_OP_GET,
    IOMMU_OPTION_OP_SET,
    IOMMU_OPTION_RLIMIT_MODE,
)
from guest_driver.iommufd.user_copy import pieces
from guest_driver.linux.iommu import IOMMU_READ, IOMMU_WRITE

if TYPE_CHECKING:
    from guest_driver.iommufd.context import IommufdCtx, Ucmd
    from guest_driver.iommufd.hw_pagetable import HwptPaging

_MAP_FLAGS = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE


class Ioas(IommufdObject):
    """An I/O address space: its page table, and the hardware tables that show it in the order they were made."""

    __slots__ = ("hwpt_list", "iopt")

    def __init__(self, ctx: IommufdCtx) -> None:
        super().__init__(ctx)
        self.iopt = IoPagetable(ctx)
        self.hwpt_list: list[HwptPaging] = []

    def destroy(self) -> None:
        self.iopt.unmap_all()
        if self.ctx.vfio_ioas is self:
            self.ctx.vfio_ioas = None


def conv_iommu_prot(map_flags: int) -> int:
    prot = IOMMU_READ if map_flags & IOMMU_IOAS_MAP_READABLE else 0
    return prot | (IOMMU_WRITE if map_flags & IOMMU_IOAS_MAP_WRITEABLE else 0)


def ioas_alloc(cmd: Ucmd) -> int:
    if cmd["flags"]:
        return -EOPNOTSUPP
    ioas = Ioas(cmd.ctx)
    ret = cmd.ctx.objects.alloc(ioas)
    if ret:
        return ret
    cmd["out_ioas_id"] = ioas.id
    ret = cmd.respond()
    if ret:
        cmd.ctx.objects.abort_and_destroy(ioas)
        return ret
    cmd.ctx.objects.finalize(ioas)
    return 0


def ioas_iova_ranges(cmd: Ucmd) -> int:
    if cmd["__reserved"]:
        return -EOPNOTSUPP
    ioas = cmd.ctx.objects.get(cmd["ioas_id"], Ioas)
    if ioas is None:
        return -ENOENT
    room = cmd["num_iovas"]
    with cmd.ctx.locks.hold("iova_rwsem", ioas.iopt):
        holes = ioas.iopt.reserved.holes()
        data = b"".join(part.to_bytes(8, "little") for hole in holes[:room] for part in hole)
        cmd["num_iovas"] = len(holes)
        cmd["out_iova_alignment"] = ioas.iopt.iova_alignment
    if data and not cmd.mm.write(cmd["allowed_iovas"], data):
        return -EFAULT
    ret = cmd.respond()
    if ret:
        return ret
    return -EMSGSIZE if len(holes) > room else 0


def ioas_allow_iovas(cmd: Ucmd) -> int:
    if cmd["__reserved"]:
        return -EOPNOTSUPP
    ioas = cmd.ctx.objects.get(cmd["ioas_id"], Ioas)
    if ioas is None:
        return -ENOENT
    allowed: list[tuple[int, int]] = []
    for at, size in pieces(cmd["allowed_iovas"], 16 * cmd["num_iovas"], 16):
        data = cmd.mm.read(at, size)
        if data is None:
            return -EFAULT
        for start, last in struct.iter_unpack("<QQ", data):
            place = bisect_left(allowed, (start, last))
            before, after = allowed[place - 1 : place], allowed[place : place + 1]
            if start >= last or (before and before[0][1] >= start) or (after and after[0][0] <= last):
                return -EINVAL
            allowed.insert(place, (start, last))
    return ioas.iopt.set_allowed(allowed)


def _map_target(cmd: Ucmd) -> Ioas | int:
    """The address space that a map is about, after the checks on flags and numbers."""
    flags = cmd["flags"]
    if flags & ~_MAP_FLAGS:
        return -EOPNOTSUPP
    if ULONG_MAX in (cmd["iova"], cmd["length"]):
        return -EOVERFLOW
    if not flags & (IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE):
        return -EINVAL
    return cmd.ctx.objects.get(cmd["ioas_id"], Ioas) or -ENOENT


def _mapped(cmd: Ucmd, ret: int, iova: int) -> int:
    """Answer a map: the error, or where it is."""
    if ret:
        return ret
    cmd["iova"] = iova
    return cmd.respond()


def ioas_map(cmd: Ucmd) -> int:
    if cmd["__reserved"]:
        return -EOPNOTSUPP
    ioas = _map_target(cmd)
    if isinstance(ioas, int):
        return ioas
    iova = cmd["iova"] if cmd["flags"] & IOMMU_IOAS_MAP_FIXED_IOVA else None
    prot = conv_iommu_prot(cmd["flags"])
    return _mapped(cmd, *ioas.iopt.map_user(cmd.process, iova, cmd["user_va"], cmd["length"], prot))


def ioas_map_file(cmd: Ucmd) -> int:
    """-EBADF: no such descriptor; -EINVAL: not a file in memory, or (once pages are needed) past its end."""
    ioas = _map_target(cmd)
    if isinstance(ioas, int):
        return ioas
    file = cmd.process.files.get(cmd["fd"]) if cmd["fd"] >= 0 else None
    if file is None:
        return -EBADF
    if not isinstance(file, MemoryFile):
        return -EINVAL
    iova = cmd["iova"] if cmd["flags"] & IOMMU_IOAS_MAP_FIXED_IOVA else None
    prot = conv_iommu_prot(cmd["flags"])
    return _mapped(cmd, *ioas.iopt.map_file(cmd.process, file, iova, cmd["start"], cmd["length"], prot))


def ioas_change_process(cmd: Ucmd) -> int:
    """Charge everything that is pinned to the caller, after a fork or an exec; -EINVAL unless all of it is of files."""
    if cmd["__reserved"]:
        return -EOPNOTSUPP
    spaces = [obj for obj in cmd.ctx.objects if isinstance(obj, Ioas)]
    every = list(dict.fromkeys(area.pages for ioas in spaces for area in ioas.iopt.areas.values()))
    if not all(pages.of_file for pages in every):
        return -EINVAL
    moved: list[tuple[IoptPages, Process]] = []
    for pages in every:
        before = pages.process
        ret: int = pages.change_process(cmd.process)
        if ret:
            for undo, process in moved:
                undo.change_process(process)
            return ret
        moved.append((pages, before))
    return 0


def ioas_copy(cmd: Ucmd) -> int:
    flags = cmd["flags"]
    if flags & ~_MAP_FLAGS:
        return -EOPNOTSUPP
    if ULONG_MAX in (cmd["length"], cmd["dst_iova"]):
        return -EOVERFLOW
    if not flags & (IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE):
        return -EINVAL
    source = cmd.ctx.objects.get(cmd["src_ioas_id"], Ioas)
    target = cmd.ctx.objects.get(cmd["dst_ioas_id"], Ioas)
    if source is None or target is None:
        return -ENOENT
    iova = cmd["dst_iova"] if flags & IOMMU_IOAS_MAP_FIXED_IOVA else None
    ret, iova = target.iopt.copy(source.iopt, cmd["src_iova"], cmd["length"], iova, conv_iommu_prot(flags))
    if ret:
        return ret
    cmd["dst_iova"] = iova
    return cmd.respond()


def ioas_unmap(cmd: Ucmd) -> int:
    ioas = cmd.ctx.objects.get(cmd["ioas_id"], Ioas)
    if ioas is None:
        return -ENOENT
    iova, length = cmd["iova"], cmd["length"]
    if not iova and length == ULONG_MAX:
        ret, removed = ioas.iopt.unmap_all()
    else:
        if ULONG_MAX in (iova, length):
            return -EOVERFLOW
        if not length:
            return -EINVAL
        if iova + length - 1 > ULONG_MAX:
            return -EOVERFLOW
        ret, removed = ioas.iopt.unmap(iova, iova + length - 1)
        if not ret and not removed:
            ret = -ENOENT
    if ret:
        return ret
    cmd["length"] = removed
    return cmd.respond()


def option_rlimit_mode(cmd: Ucmd) -> int:
    """Whom pinned pages are charged to; can only be chosen before the first object exists."""
    if cmd["object_id"]:
        return -EOPNOTSUPP
    if cmd["op"] == IOMMU_OPTION_OP_GET:
        cmd["val64"] = cmd.ctx.account_mode
        return cmd.respond()
    if cmd["op"] != IOMMU_OPTION_OP_SET:
        return -EOPNOTSUPP
    if not cmd.process.cap_sys_resource:
        return -EPERM
    if len(cmd.ctx.objects):
        return -EBUSY
    if cmd["val64"] > 1:
        return -EINVAL
    cmd.ctx.account_mode = cmd["val64"]
    return 0


def option_huge_pages(cmd: Ucmd) -> int:
    ioas = cmd.ctx.objects.get(cmd["object_id"], Ioas)
    if ioas is None:
        return -ENOENT
    if cmd["op"] == IOMMU_OPTION_OP_GET:
        cmd["val64"] = int(not ioas.iopt.disable_large_pages)
        return cmd.respond()
    if cmd["op"] != IOMMU_OPTION_OP_SET:
        return -EOPNOTSUPP
    if cmd["val64"] > 1:
        return -EINVAL
    with cmd.ctx.locks.hold("domains_rwsem", ioas.iopt), cmd.ctx.locks.hold("iova_rwsem", ioas.iopt):
        return ioas.iopt.enable_large() if cmd["val64"] else ioas.iopt.disable_large()


_OPTIONS = {IOMMU_OPTION_RLIMIT_MODE: option_rlimit_mode, IOMMU_OPTION_HUGE_PAGES: option_huge_pages}


def option(cmd: Ucmd) -> int:
    if cmd["__reserved"]:
        return -EOPNOTSUPP
    handler = _OPTIONS.get(cmd["option_id"])
    return -EOPNOTSUPP if handler is None else handler(cmd)

# SPDX-License-Identifier: GPL-2.0-or-later
"""VFIO's type 1 container interface on /dev/iommu, over one IOAS of the context (iommufd/vfio_compat.c)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from abi.errno import EFAULT, EINVAL, ENODEV, ENOENT, ENOTTY, EOPNOTSUPP
from base.units import PAGE_SIZE, U32_MAX
from guest_driver.iommufd.ioas import Ioas
from guest_driver.iommufd.iova_ranges import ULONG_MAX
from guest_driver.iommufd.pages import ACCOUNT_MM
from guest_driver.iommufd.process import Process
from guest_driver.iommufd.uapi import IOMMU_VFIO_IOAS_CLEAR, IOMMU_VFIO_IOAS_GET, IOMMU_VFIO_IOAS_SET, VFIO_BASE

if TYPE_CHECKING:
    from guest_driver.iommufd.context import IommufdCtx, Ucmd

VFIO_GET_API_VERSION: Final = VFIO_BASE
VFIO_CHECK_EXTENSION: Final = VFIO_BASE + 1
VFIO_SET_IOMMU: Final = VFIO_BASE + 2
VFIO_IOMMU_GET_INFO: Final = VFIO_BASE + 12
VFIO_IOMMU_MAP_DMA: Final = VFIO_BASE + 13
VFIO_IOMMU_UNMAP_DMA: Final = VFIO_BASE + 14

VFIO_TYPE1_IOMMU: Final = 1
VFIO_TYPE1v2_IOMMU: Final = 3
VFIO_DMA_CC_IOMMU: Final = 4
VFIO_NOIOMMU_IOMMU: Final = 8
VFIO_UNMAP_ALL: Final = 9
VFIO_DMA_UNMAP_FLAG_ALL: Final = 2

_INFO: Final = struct.Struct("<IIQII")
_MAP: Final = struct.Struct("<IIQQQ")
_UNMAP: Final = struct.Struct("<IIQQ")
_INFO_MIN: Final = 16
_CAP_IOVA_RANGE: Final = 1
_CAP_DMA_AVAIL: Final = 3


def compat_ioas_create(ctx: IommufdCtx) -> int:
    """Make the IOAS that a VFIO container stands for, unless there is one; 0 or -ENOMEM."""
    if ctx.vfio_ioas is not None:
        return 0
    ioas = Ioas(ctx)
    ret = ctx.objects.alloc(ioas)
    if ret:
        return ret
    ctx.objects.finalize(ioas)
    ctx.vfio_ioas = ioas
    return 0


def vfio_ioas(cmd: Ucmd) -> int:
    """IOMMU_VFIO_IOAS: ask for, choose or forget the IOAS that the functions below work on."""
    if cmd["__reserved"]:
        return -EOPNOTSUPP
    ctx = cmd.ctx
    if cmd["op"] == IOMMU_VFIO_IOAS_GET:
        if ctx.vfio_ioas is None:
            return -ENODEV
        cmd["ioas_id"] = ctx.vfio_ioas.id
        return cmd.respond()
    if cmd["op"] == IOMMU_VFIO_IOAS_SET:
        ioas = ctx.objects.get(cmd["ioas_id"], Ioas)
        if ioas is None:
            return -ENOENT
        ctx.vfio_ioas = ioas
        return 0
    if cmd["op"] == IOMMU_VFIO_IOAS_CLEAR:
        ctx.vfio_ioas = None
        return 0
    return -EOPNOTSUPP


def vfio_ioctl(ctx: IommufdCtx, process: Process, nr: int, arg: int) -> int:
    """A request that is not iommufd's own; -ENOTTY if it is not VFIO's either."""
    if nr == VFIO_GET_API_VERSION:
        return 0
    if nr == VFIO_CHECK_EXTENSION:
        return _check_extension(ctx, arg)
    if nr == VFIO_SET_IOMMU:
        return _set_iommu(ctx, arg)
    if nr == VFIO_IOMMU_GET_INFO:
        return _get_info(ctx, process, arg)
    if nr == VFIO_IOMMU_MAP_DMA:
        return _map_dma(ctx, process, arg)
    if nr == VFIO_IOMMU_UNMAP_DMA:
        return _unmap_dma(ctx, process, arg)
    return -ENOTTY


def _check_extension(ctx: IommufdCtx, extension: int) -> int:
    if extension in (VFIO_TYPE1_IOMMU, VFIO_TYPE1v2_IOMMU, VFIO_UNMAP_ALL):
        return 1
    if extension == VFIO_DMA_CC_IOMMU:
        if ctx.vfio_ioas is None:
            return -ENODEV
        return int(all(hwpt.enforce_cache_coherency for hwpt in ctx.vfio_ioas.hwpt_list))
    if extension == VFIO_NOIOMMU_IOMMU:
        return int(ctx.no_iommu)
    return 0


def _set_iommu(ctx: IommufdCtx, kind: int) -> int:
    if kind not in (VFIO_TYPE1_IOMMU, VFIO_TYPE1v2_IOMMU):
        return -EINVAL
    if ctx.vfio_ioas is None:
        return -ENODEV
    if kind == VFIO_TYPE1_IOMMU:
        iopt = ctx.vfio_ioas.iopt
        with ctx.locks.hold("domains_rwsem", iopt), ctx.locks.hold("iova_rwsem", iopt):
            return iopt.disable_large()
    return 0


def _read(process: Process, address: int, layout: struct.Struct, smallest: int) -> tuple[int, ...] | int:
    """The caller's struct, padded with zeros; -EFAULT, or -EINVAL if ``argsz`` is too small."""
    raw = process.mm.read(address, smallest)
    if raw is None:
        return -EFAULT
    if int.from_bytes(raw[:4], "little") < smallest:
        return -EINVAL
    return layout.unpack(raw.ljust(layout.size, b"\0"))


def _map_dma(ctx: IommufdCtx, process: Process, address: int) -> int:
    fields = _read(process, address, _MAP, _MAP.size)
    if isinstance(fields, int):
        return fields
    _, flags, vaddr, iova, size = fields
    if flags & ~3 or not flags:
        return -EINVAL
    if ctx.vfio_ioas is None:
        return -ENODEV
    ret, _ = ctx.vfio_ioas.iopt.map_user(process, iova, vaddr, size, flags, ACCOUNT_MM)
    return ret


def _unmap_dma(ctx: IommufdCtx, process: Process, address: int) -> int:
    fields = _read(process, address, _UNMAP, _UNMAP.size)
    if isinstance(fields, int):
        return fields
    argsz, flags, iova, size = fields
    if flags & ~VFIO_DMA_UNMAP_FLAG_ALL:
        return -EINVAL
    if ctx.vfio_ioas is None:
        return -ENODEV
    iopt = ctx.vfio_ioas.iopt
    if flags & VFIO_DMA_UNMAP_FLAG_ALL:
        if iova or size:
            return -EINVAL
        ret, removed = iopt.unmap_all()
    else:
        if not size or iova + size - 1 > ULONG_MAX:
            return -EINVAL
        if iopt.disable_large_pages:
            ret = iopt.cut([iova, iova + size])
            if ret:
                return ret
        ret, removed = iopt.unmap(iova, iova + size - 1)
        if not ret and not removed and ctx.release.version < (7, 0):
            ret = -ENOENT
    if ret:
        return ret
    return 0 if process.mm.write(address, _UNMAP.pack(argsz, flags, iova, removed)) else -EFAULT


def _get_info(ctx: IommufdCtx, process: Process, address: int) -> int:
    fields = _read(process, address, _INFO, _INFO_MIN)
    if isinstance(fields, int):
        return fields
    if ctx.vfio_ioas is None:
        return -ENODEV
    iopt = ctx.vfio_ioas.iopt
    sizes = -1
    for domain in iopt.domains:
        sizes &= domain.pgsize_bitmap
    sizes = sizes & ULONG_MAX & -PAGE_SIZE if iopt.domains else -PAGE_SIZE & ULONG_MAX
    if any(domain.pgsize_bitmap & PAGE_SIZE - 1 for domain in iopt.domains):
        sizes |= PAGE_SIZE
    caps = _capabilities(iopt.reserved.holes())
    needed = _INFO.size + len(caps)
    fits = fields[0] >= needed
    info = _INFO.pack(needed, 3, sizes, _INFO.size if fits else 0, 0)
    data = info + caps if fits else info[: fields[0]]
    return 0 if process.mm.write(address, data) else -EFAULT


def _capabilities(holes: list[tuple[int, int]]) -> bytes:
    """The chain; offsets count from the start of the info struct."""
    available = struct.pack("<HHIII", _CAP_DMA_AVAIL, 1, _INFO.size + 16, U32_MAX, 0)
    ranges = b"".join(struct.pack("<QQ", *hole) for hole in holes)
    return available + struct.pack("<HHIII", _CAP_IOVA_RANGE, 1, 0, len(holes), 0) + ranges

# SPDX-License-Identifier: GPL-2.0-or-later
"""The ioctls on hardware page tables: allocate, invalidate, dirty tracking, hardware information."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from abi.errno import EFAULT, EINVAL, ENOENT, EOPNOTSUPP, EOVERFLOW
from guest_driver.defects.iommufd import DIRTY_WALK_ERRORS_DROPPED
from guest_driver.iommufd.device import IommufdDevice
from guest_driver.iommufd.eventq import FaultQueue
from guest_driver.iommufd.hw_pagetable import Hwpt, HwptNested, HwptPaging, hwpt_nested_alloc, hwpt_paging_alloc
from guest_driver.iommufd.ioas import Ioas
from guest_driver.iommufd.iova_ranges import ULONG_MAX
from guest_driver.iommufd.objects import IommufdObject
from guest_driver.iommufd.uapi import (
    IOMMU_HW_CAP_DIRTY_TRACKING,
    IOMMU_HW_INFO_FLAG_INPUT_TYPE,
    IOMMU_HWPT_DATA_NONE,
    IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
    IOMMU_HWPT_FAULT_ID_VALID,
    IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
)
from guest_driver.iommufd.user_copy import PIECE, clear_user, copy_blob, pieces
from guest_driver.iommufd.viommu import Viommu, viommu_alloc_hwpt_nested
from guest_driver.linux.iommu import IOMMU_CAP_DIRTY_TRACKING
from guest_driver.linux.iommu_core import dev_iommu_ops, device_iommu_capable

if TYPE_CHECKING:
    from guest_driver.iommufd.context import Ucmd


def hwpt_alloc(cmd: Ucmd) -> int:
    ctx = cmd.ctx
    if cmd["__reserved"]:
        return -EOPNOTSUPP
    typed = cmd["data_type"] != IOMMU_HWPT_DATA_NONE
    if typed != bool(cmd["data_len"]):
        return -EINVAL
    idev = ctx.objects.get(cmd["dev_id"], IommufdDevice)
    if idev is None:
        return -ENOENT
    target = ctx.objects.get(cmd["pt_id"], IommufdObject)
    flags = cmd["flags"]
    data = copy_blob(cmd.mm, cmd["data_uptr"], cmd["data_len"])
    if isinstance(data, int):
        return data
    made: Hwpt | int
    if isinstance(target, Ioas):
        if typed:
            return -EOPNOTSUPP
        with ctx.locks.hold("ioas->mutex", target):
            made = hwpt_paging_alloc(ctx, target, idev, flags, attach=None)
    elif isinstance(target, HwptPaging):
        made = hwpt_nested_alloc(ctx, target, idev, flags, cmd["data_type"], data)
    elif isinstance(target, Viommu):
        made = viommu_alloc_hwpt_nested(target, idev, flags, cmd["data_type"], data)
    else:
        return -EINVAL
    if isinstance(made, int):
        return made
    ret = 0
    if flags & IOMMU_HWPT_FAULT_ID_VALID:
        fault = ctx.objects.get(cmd["fault_id"], FaultQueue)
        if fault is None:
            ret = -ENOENT
        else:
            made.use_fault(fault)
    cmd["out_hwpt_id"] = made.id
    ret = ret or cmd.respond()
    if ret:
        ctx.objects.abort_and_destroy(made)
        return ret
    ctx.objects.finalize(made)
    return 0


def get_hw_info(cmd: Ucmd) -> int:
    known = IOMMU_HW_INFO_FLAG_INPUT_TYPE if cmd.ctx.release.version >= (6, 17) else 0
    if cmd["flags"] & ~known or cmd["__reserved0"] or cmd["__reserved1"] or cmd["__reserved2"]:
        return -EOPNOTSUPP
    idev = cmd.ctx.objects.get(cmd["dev_id"], IommufdDevice)
    if idev is None:
        return -ENOENT
    ops = dev_iommu_ops(idev.dev)
    data_type, data = 0, b""
    if ops is not None and ops.hw_info is not None:
        info = ops.hw_info(idev.dev)
        if isinstance(info, int):
            return info
        data_type, data = info
        if cmd["flags"] & IOMMU_HW_INFO_FLAG_INPUT_TYPE and cmd["out_data_type"] not in (0, data_type):
            return -EOPNOTSUPP
    room = cmd["data_len"]
    if not cmd.mm.write(cmd["data_uptr"], data[:room]):
        return -EFAULT
    ret = clear_user(cmd.mm, cmd["data_uptr"] + len(data), room - len(data))
    if ret:
        return ret
    cmd["data_len"] = len(data)
    cmd["out_data_type"] = data_type
    if cmd.ctx.release.version >= (6, 15) and idev.dev.iommu is not None:
        cmd["out_max_pasid_log2"] = max(idev.dev.iommu.max_pasids.bit_length() - 1, 0)
    dirty = device_iommu_capable(idev.dev, IOMMU_CAP_DIRTY_TRACKING)
    cmd["out_capabilities"] = IOMMU_HW_CAP_DIRTY_TRACKING if dirty else 0
    return cmd.respond()


Invalidator = Callable[[int, list[bytes]], tuple[int, int]]
"""(data type, entries) -> (0 or -errno, how many were done)."""


def _invalidator(cmd: Ucmd) -> Invalidator | int:
    """The driver's function for the nested table or the vIOMMU that is meant, or -errno."""
    target = cmd.ctx.objects.get(cmd["hwpt_id"], IommufdObject)
    if isinstance(target, Viommu):
        ops = target.ops
        return -EOPNOTSUPP if ops is None or ops.cache_invalidate is None else partial(ops.cache_invalidate, target)
    if isinstance(target, HwptNested):
        user = target.domain.ops.cache_invalidate_user
        return -EOPNOTSUPP if user is None else partial(user, target.domain)
    if target is None or cmd.ctx.release.version < (6, 13):
        return -ENOENT
    return -EINVAL


def hwpt_invalidate(cmd: Ucmd) -> int:
    """Entries in order until one fails; how many were done is written back in any case."""
    wanted, length = cmd["entry_num"], cmd["entry_len"]
    cmd["entry_num"] = 0
    ret = -EOPNOTSUPP if cmd["__reserved"] else 0
    if not ret and wanted and (not cmd["data_uptr"] or not length):
        ret = -EINVAL
    invalidate = None if ret else _invalidator(cmd)
    if isinstance(invalidate, int):
        ret = invalidate
    elif invalidate is not None:
        ret, cmd["entry_num"] = _invalidate_each(cmd, invalidate, wanted, length)
    written = cmd.respond()
    return ret or written


def _invalidate_each(cmd: Ucmd, invalidate: Invalidator, wanted: int, length: int) -> tuple[int, int]:
    """(0 or -errno, entries done): as many at a time as fit a piece."""
    if not wanted:
        return invalidate(cmd["data_type"], [])
    ret, done = 0, 0
    batch = max(1, PIECE // length)
    while done < wanted and not ret:
        entries: list[bytes] = []
        for number in range(done, min(done + batch, wanted)):
            entry = copy_blob(cmd.mm, cmd["data_uptr"] + number * length, length)
            if isinstance(entry, int):
                return entry, done
            entries.append(entry)
        ret, count = invalidate(cmd["data_type"], entries)
        done += count
    return ret, done


def hwpt_set_dirty_tracking(cmd: Ucmd) -> int:
    """Switch on from a clean start, or off."""
    if cmd["flags"] & ~IOMMU_HWPT_DIRTY_TRACKING_ENABLE or cmd["__reserved"]:
        return -EOPNOTSUPP
    hwpt = cmd.ctx.objects.get(cmd["hwpt_id"], HwptPaging)
    if hwpt is None:
        return -ENOENT
    ops = hwpt.domain.ops
    if ops.set_dirty_tracking is None or ops.read_and_clear_dirty is None:
        return -EOPNOTSUPP
    enable = bool(cmd["flags"])
    iopt = hwpt.ioas.iopt
    with cmd.ctx.locks.hold("domains_rwsem", iopt), cmd.ctx.locks.hold("iova_rwsem", iopt):
        if enable:
            for area in iopt.areas.values():
                ops.read_and_clear_dirty(hwpt.domain, area.iova, area.length, False)
        return ops.set_dirty_tracking(hwpt.domain, enable)


def hwpt_get_dirty_bitmap(cmd: Ucmd) -> int:
    """One bit for each ``page_size`` bytes, bit 0 of byte 0 first; bits of the caller's are only ever set."""
    if cmd["flags"] & ~IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR or cmd["__reserved"]:
        return -EOPNOTSUPP
    hwpt = cmd.ctx.objects.get(cmd["hwpt_id"], HwptPaging)
    if hwpt is None:
        return -ENOENT
    iova, length, page_size = cmd["iova"], cmd["length"], cmd["page_size"]
    if iova + length - 1 > ULONG_MAX:
        return -EOVERFLOW
    iopt = hwpt.ioas.iopt
    if not page_size or not length or (iova | iova + length) & iopt.iova_alignment - 1:
        return -EINVAL
    if iova % page_size or (iova + length) % page_size:
        return -EINVAL
    ops = hwpt.domain.ops
    if ops.read_and_clear_dirty is None:
        return -EOPNOTSUPP
    keep = bool(cmd["flags"])
    with cmd.ctx.locks.hold("domains_rwsem", iopt), cmd.ctx.locks.hold("iova_rwsem", iopt):
        for window, size in pieces(cmd["data"], (length // page_size + 7) // 8):
            first = iova + (window - cmd["data"]) * 8 * page_size
            last = min(first + size * 8 * page_size, iova + length) - 1
            before = cmd.mm.read(window, size)
            if before is None:
                return -EFAULT
            bitmap = bytearray(before)
            ret = _gather_dirty(hwpt, first, last, page_size, keep, bitmap)
            if not cmd.mm.write(window, bytes(bitmap)):
                return -EFAULT
            if ret:
                return 0 if cmd.ctx.release.has(DIRTY_WALK_ERRORS_DROPPED) else ret
    return 0


def _gather_dirty(hwpt: HwptPaging, first: int, last: int, page_size: int, keep: bool, bitmap: bytearray) -> int:
    """Set the bits of what was written from ``first``, bit 0, to ``last``; -EINVAL where nothing is mapped."""
    read_and_clear_dirty = hwpt.domain.ops.read_and_clear_dirty
    assert read_and_clear_dirty is not None
    at = first
    while at <= last:
        area = hwpt.ioas.iopt.overlapping(at, at)
        if area is None:
            return -EINVAL
        end = min(area.last, last) + 1
        found = read_and_clear_dirty(hwpt.domain, at, end - at, keep)
        if isinstance(found, int):
            return found
        for start, count in found:
            for bit in range((start - first) // page_size, (start + count - 1 - first) // page_size + 1):
                bitmap[bit // 8] |= 1 << bit % 8
        at = end
    return 0

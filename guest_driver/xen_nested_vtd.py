# SPDX-License-Identifier: GPL-2.0-or-later
"""User space's first stages for VT-d, as iommufd has them, in terms of x1-nested (uapi/linux/iommufd.h)."""

from __future__ import annotations

import struct
from typing import Final

from abi.errno import EINVAL, EOPNOTSUPP
from abi.x1 import NestedFlags, NestedFormat
from base.units import U64_MAX

HWPT_DATA_VTD_S1: Final = 1
INVALIDATE_DATA_VTD_S1: Final = 0
HW_INFO_INTEL_VTD: Final = 1
_S1: Final = struct.Struct("<QQLL")
"""struct iommu_hwpt_vtd_s1: flags, page table, address width, reserved."""
_INVALIDATE: Final = struct.Struct("<QQLL")
"""struct iommu_hwpt_vtd_s1_invalidate: address, pages, flags, reserved."""
_LEAF: Final = 1
_WIDTH: Final = 48
_MOST_ORDER: Final = 9
_TYPE: Final = 6
_ALL_OF_PASID: Final = 2 << 4
_PAGES: Final = 3 << 4


def table_of(data: bytes) -> tuple[int, int] | int:
    """(address of the table, flags for alloc_nested); -EOPNOTSUPP for options that Xen does not take, -EINVAL."""
    if len(data) < _S1.size:
        return -EINVAL
    flags, address, width, reserved = _S1.unpack(data[: _S1.size])
    if flags or reserved:
        return -EOPNOTSUPP
    if width != _WIDTH:
        return -EINVAL
    return address, NestedFlags.pack(format=NestedFormat.VTD_FIRST_STAGE)


def commands_of(entry: bytes) -> list[bytes] | int:
    """One invalidation of user space as the unit's descriptors: by aligned powers of two, or everything."""
    if len(entry) < _INVALIDATE.size:
        return -EINVAL
    address, pages, flags, reserved = _INVALIDATE.unpack(entry[: _INVALIDATE.size])
    if flags & ~_LEAF or reserved:
        return -EOPNOTSUPP
    if pages == U64_MAX and not address:
        return [_descriptor(_TYPE | _ALL_OF_PASID, 0)]
    if address & 4095 or not pages or address + (pages << 12) - 1 > U64_MAX:
        return -EINVAL
    if pages > 16 << _MOST_ORDER:
        return [_descriptor(_TYPE | _ALL_OF_PASID, 0)]
    found = []
    page, hint = address >> 12, (flags & _LEAF) << 6
    while pages:
        order = min(_MOST_ORDER, pages.bit_length() - 1, (page & -page).bit_length() - 1 if page else _MOST_ORDER)
        found.append(_descriptor(_TYPE | _PAGES, page << 12 | hint | order))
        page, pages = page + (1 << order), pages - (1 << order)
    return found


def hardware_information(info: tuple[int, ...]) -> bytes:
    """struct iommu_hw_info_vtd: flags, reserved, CAP, ECAP."""
    return struct.pack("<LLLLLL", 0, 0, *info)


def _descriptor(low: int, high: int) -> bytes:
    return low.to_bytes(8, "little") + high.to_bytes(8, "little")

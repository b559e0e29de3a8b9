# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies whose size the caller chose: as many bytes as it says, never more held at a time than somebody needs.

A program names gigabytes that cost it nothing (MAP_NORESERVE); they must not cost this side memory either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from abi.errno import E2BIG, EFAULT
from guest_driver.iommufd.process import AddressSpace

PIECE: Final = 1 << 16
"""Bytes that are looked at together."""
_ZEROS: Final = bytes(PIECE)


def pieces(address: int, length: int, unit: int = 1) -> Iterator[tuple[int, int]]:
    """(address, bytes) of one piece after the other, each of whole ``unit`` bytes."""
    step = max(1, PIECE // unit) * unit
    for at in range(0, length, step):
        yield address + at, min(step, length - at)


def check_zeroed_user(mm: AddressSpace, address: int, length: int) -> int:
    """0 if all of it is zero, else -E2BIG, or -EFAULT where the caller has nothing."""
    for at, size in pieces(address, length):
        data = mm.read(at, size)
        if data is None:
            return -EFAULT
        if data != _ZEROS[:size]:
            return -E2BIG
    return 0


def clear_user(mm: AddressSpace, address: int, length: int) -> int:
    """Zeros over all of it; 0 or -EFAULT."""
    return 0 if all(mm.write(at, _ZEROS[:size]) for at, size in pieces(address, length)) else -EFAULT


def copy_blob(mm: AddressSpace, address: int, length: int) -> bytes | int:
    """A driver's own struct; what lies behind the longest that any driver has must be zero (copy_struct_from_user)."""
    data = mm.read(address, min(length, PIECE))
    if data is None:
        return -EFAULT
    return check_zeroed_user(mm, address + PIECE, length - PIECE) or data

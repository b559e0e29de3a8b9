# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM that a model's process and this one have in common, at the model's machine addresses.

The bytes are an unnamed file in memory: nothing is left on disk, and they go when the last process that maps them
goes.  Where the model's RAM does not start at address 0, what lies below is memory that only this process sees;
whoever lays out the machine keeps it out of use.
"""

import ctypes
import mmap
import os
from typing import Final

from machine.memory import PhysicalMemory

_PROT: Final = mmap.PROT_READ | mmap.PROT_WRITE
_MAP_FIXED: Final = 0x10
"""mmap(2) on Linux."""


class SharedRam:
    """``size`` bytes of RAM from machine address ``start`` on; ``memory`` is the machine's view of them."""

    def __init__(self, size: int, start: int = 0) -> None:
        self.start: Final = start
        self.size: Final = size
        self.fd: Final = os.memfd_create("pviommu-ram")
        os.ftruncate(self.fd, size)
        if start:
            mapping = _below(start, size, self.fd)
        else:
            mapping = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED, prot=_PROT)
        self.memory: Final = PhysicalMemory(start + size, mapping)

    def close(self) -> None:
        """Close the descriptor; the views stay valid."""
        os.close(self.fd)

    def find(self, pattern: bytes) -> list[int]:
        """Machine addresses at which ``pattern`` lies; looks only at pages that were ever written."""
        found = []
        at = 0
        while at < self.size:
            try:
                first = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:
                break  # nothing but holes from here on
            at = os.lseek(self.fd, first, os.SEEK_HOLE)
            data = os.pread(self.fd, at - first, first)
            offset = data.find(pattern)
            while offset >= 0:
                found.append(self.start + first + offset)
                offset = data.find(pattern, offset + 1)
        return found


def _below(start: int, size: int, fd: int) -> mmap.mmap:
    """``start`` bytes of private, sparse memory followed by the file."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    mapping = mmap.mmap(-1, start + size, flags=flags, prot=_PROT)
    anchor = ctypes.c_char.from_buffer(mapping)
    address = ctypes.addressof(anchor) + start
    del anchor
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    placed = libc.mmap(address, size, _PROT, mmap.MAP_SHARED | _MAP_FIXED, fd, 0)
    if placed != address:
        raise OSError(ctypes.get_errno(), "the shared RAM could not be placed")
    return mapping

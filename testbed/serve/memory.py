# SPDX-License-Identifier: GPL-2.0-or-later
"""A program's memory as iommufd sees it: copied from and to, and pinned so that devices reach it.

A pinned page of the program gets a page of the guest kernel as its stand-in: tables hold the stand-in's address, and a
device's access to it goes to the program's page (:meth:`SharedPages.access`), so both see each other's stores at once.
Nothing is copied while the program lives.  When it ends, or replaces its memory, the pinned pages' content is kept,
as the kernel keeps the pages.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final

from abi.errno import EFAULT, ENOMEM
from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.linux.kernel import Kernel
from guest_driver.linux.page_alloc import GFP_KERNEL

_PROBES: Final = 512
_LONGEST: Final = 1 << 30
"""More is never read at once, whatever a program names."""
_QUERY: Final = struct.Struct("<9QIIIIQQ")
_PROCMAP_QUERY: Final = 0xC0000000 | _QUERY.size << 16 | ord("f") << 8 | 17
_READABLE, _WRITABLE, _SHARED = 1, 2, 8

Key = tuple[object, ...]
"""What makes two addresses one page: a file's page, or an address of one memory."""

Area = tuple[int, int, int, int, tuple[int, int], int]
"""Start, end, flags, file offset, device and inode of a mapping."""


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_size_t), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_readv, _writev = _libc.process_vm_readv, _libc.process_vm_writev
for _function in (_readv, _writev):
    _function.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    )
    _function.restype = ctypes.c_ssize_t


class SharedPage:
    """One pinned page: its stand-in and the places where the program has it."""

    __slots__ = ("holders", "kept", "key", "pfn", "pins", "window")

    def __init__(self, pfn: int, key: Key) -> None:
        self.pfn: Final = pfn
        self.key: Final = key
        self.pins = 0
        self.holders: list[tuple[ProgramMemory, int]] = []
        """Memories that have the page, with the address of its first byte there."""
        self.kept: bytearray | None = None
        """Content when no memory has it any more."""
        self.window: memoryview | None = None
        """The page itself, where a file brought it."""

    def read(self, offset: int, length: int) -> bytes:
        if self.window is not None:
            return bytes(self.window[offset : offset + length])
        for memory, address in self.holders:
            data = memory.read(address + offset, length)
            if data is not None:
                return data
        return bytes(self._content()[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        if self.window is not None:
            self.window[offset : offset + len(data)] = data
        elif not any(memory.write(address + offset, data) for memory, address in self.holders):
            self._content()[offset : offset + len(data)] = data

    def _content(self) -> bytearray:
        if self.kept is None:
            self.kept = bytearray(PAGE_SIZE)
        return self.kept

    def leave(self, memory: ProgramMemory) -> None:
        """``memory`` ends: keep the content if it was the last that had the page."""
        left = [holder for holder in self.holders if holder[0] is not memory]
        if self.holders and not left and self.window is None:
            left = memory.shared.others(memory, self)
            if not left:
                self.kept = bytearray(memory.read(self.holders[0][1], PAGE_SIZE) or bytes(PAGE_SIZE))
        self.holders = left


class SharedPages:
    """Stand-ins of a kernel's pinned program pages."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel: Final = kernel
        self.by_pfn: Final[dict[int, SharedPage]] = {}
        self._by_key: Final[dict[Key, SharedPage]] = {}
        self.memories: Final[list[ProgramMemory]] = []
        """Of the processes that live."""

    def others(self, but: ProgramMemory, page: SharedPage) -> list[tuple[ProgramMemory, int]]:
        """Another process that has a file's page mapped, with the address, now that ``but`` ends."""
        if page.key[0] != "file":
            return []
        for memory in self.memories:
            address = None if memory is but else memory.address_of(page.key)
            if address is not None:
                memory.pages.add(page)
                return [(memory, address)]
        return []

    def get(self, key: Key) -> SharedPage | None:
        """One more pin of the page called ``key``; ``None`` if the kernel has no page for it."""
        page = self._by_key.get(key)
        if page is None:
            pfn = self._kernel.pages.alloc_pages(GFP_KERNEL)
            if not pfn:
                return None
            page = self._by_key[key] = self.by_pfn[pfn] = SharedPage(pfn, key)
        page.pins += 1
        return page

    def put(self, paddr: int) -> None:
        page = self.by_pfn.get(paddr >> PAGE_SHIFT)
        if self._kernel.printk.warn_on(page is None, f"unpin of {paddr:#x}, which nobody pinned") or page is None:
            return
        page.pins -= 1
        if not page.pins:
            for memory, _ in page.holders:
                memory.pages.discard(page)
            del self.by_pfn[page.pfn], self._by_key[page.key]
            self._kernel.pages.free_pages(page.pfn)

    def access(self, paddr: int, data: bytes | None, length: int) -> bytes:
        """Read (``data`` of ``None``) or write within one page, the program's or the kernel's own."""
        page = self.by_pfn.get(paddr >> PAGE_SHIFT)
        if page is None:
            if data is None:
                return self._kernel.ram.read(paddr, length)
            self._kernel.ram.write(paddr, data)
            return data
        if data is None:
            return page.read(paddr & PAGE_SIZE - 1, length)
        page.write(paddr & PAGE_SIZE - 1, data)
        return data

    def find(self, key: Key) -> SharedPage | None:
        """The page called ``key`` if it is pinned."""
        return self._by_key.get(key)


class ProgramMemory:
    """The address space of a running process (:class:`guest_driver.iommufd.process.AddressSpace`)."""

    def __init__(self, pid: int, shared: SharedPages) -> None:
        self.pid: Final = pid
        self.shared: Final = shared
        self.pinned_vm = 0
        self.gone = False
        self.pages: Final[set[SharedPage]] = set()
        """Pinned pages that this memory has."""
        self._buffer: Final = ctypes.create_string_buffer(PAGE_SIZE)
        self._local: Final = _Iovec(ctypes.addressof(self._buffer), 0)
        self._remote: Final = _Iovec(0, 0)
        self._refs: Final = (ctypes.addressof(self._local), ctypes.addressof(self._remote))
        self._maps = -1
        shared.memories.append(self)

    def read(self, address: int, length: int) -> bytes | None:
        if self.gone or address + length > 1 << 64 or length > _LONGEST:
            return None
        local, remote = self._local, self._remote
        if length <= PAGE_SIZE:
            local.base, local.length = ctypes.addressof(self._buffer), length
            remote.base, remote.length = address, length
            if _readv(self.pid, self._refs[0], 1, self._refs[1], 1, 0) != length:
                return None if length else b""
            return ctypes.string_at(local.base, length)
        big = ctypes.create_string_buffer(length)
        local.base, local.length = ctypes.addressof(big), length
        remote.base, remote.length = address, length
        done = _readv(self.pid, self._refs[0], 1, self._refs[1], 1, 0)
        return big.raw if done == length else None

    def write(self, address: int, data: bytes) -> bool:
        if self.gone or address + len(data) > 1 << 64:
            return False
        if not data:
            return True
        held = ctypes.create_string_buffer(data, len(data))
        local, remote = self._local, self._remote
        local.base, local.length = ctypes.addressof(held), len(data)
        remote.base, remote.length = address, len(data)
        return bool(_writev(self.pid, self._refs[0], 1, self._refs[1], 1, 0) == len(data))

    def read_string(self, address: int, limit: int = 4096) -> str | None:
        """A path: bytes up to a zero; ``None`` if there is no such memory or no zero."""
        out = b""
        while len(out) < limit:
            step = PAGE_SIZE - (address & PAGE_SIZE - 1)
            piece = self.read(address, min(step, 256))
            if piece is None:
                return None
            text, end, _ = piece.partition(b"\0")
            out += text
            if end:
                return os.fsdecode(out)
            address += len(piece)
        return None

    # ------------------------------------------------------------------------------------------------ pinning

    def pin_pages(self, address: int, count: int, writable: bool) -> list[int] | int:
        keys = self._keys(address, count, writable)
        if keys is None:
            return -EFAULT
        out: list[int] = []
        for position, key in enumerate(keys):
            page = self.shared.get(key)
            if page is None:
                for paddr in out:
                    self.unpin(paddr)
                return -ENOMEM
            if page not in self.pages:
                self.pages.add(page)
                page.holders.append((self, address + (position << PAGE_SHIFT)))
            out.append(page.pfn << PAGE_SHIFT)
        return out

    def unpin(self, paddr: int) -> None:
        self.shared.put(paddr)

    def access(self, paddr: int, offset: int, data: bytes | None, length: int) -> bytes:
        return self.shared.access(paddr + offset, data, length)

    def pins_at(self, address: int) -> int:
        """How often the page at ``address`` is pinned."""
        keys = self._keys(address & -PAGE_SIZE, 1, False)
        page = self.shared.find(keys[0]) if keys else None
        return 0 if page is None else page.pins

    def phys(self, address: int) -> int | None:
        """Stand-in address behind ``address``, ``None`` while it is not pinned."""
        keys = self._keys(address & -PAGE_SIZE, 1, False)
        page = self.shared.find(keys[0]) if keys else None
        return None if page is None else page.pfn << PAGE_SHIFT | address & PAGE_SIZE - 1

    def end(self) -> None:
        """The process ends or executes another program: what is pinned lives on without it."""
        for page in self.pages:
            page.leave(self)
        self.pages.clear()
        self.gone = True
        self.shared.memories.remove(self)
        if self._maps >= 0:
            os.close(self._maps)
            self._maps = -1

    def _keys(self, address: int, count: int, writable: bool) -> list[Key] | None:
        """What each page is; ``None`` if one is not mapped, not writable or not there."""
        keys: list[Key] = []
        end = address + (count << PAGE_SHIFT)
        while address < end:
            area = self._area(address)
            if area is None:
                return None
            start, stop, flags, offset, device, inode = area
            if not flags & _READABLE or (writable and not flags & _WRITABLE):
                return None
            if inode and not self._populated(address, min(end, stop) - address >> PAGE_SHIFT):
                return None
            while address < min(end, stop):
                if flags & _SHARED and inode:
                    keys.append(("file", device, inode, offset + address - start >> PAGE_SHIFT))
                else:
                    keys.append((self, address >> PAGE_SHIFT))
                address += PAGE_SIZE
        return keys

    def _populated(self, address: int, count: int) -> bool:
        """Touch every page of a file's mapping, as pinning does; False if one is past its end."""
        for first in range(0, count, _PROBES):
            step = min(_PROBES, count - first)
            each = (_Iovec(address + (page << PAGE_SHIFT), 1) for page in range(first, first + step))
            vector = (_Iovec * step)(*each)
            self._local.base, self._local.length = ctypes.addressof(self._buffer), step
            if _readv(self.pid, self._refs[0], 1, ctypes.addressof(vector), step, 0) != step:
                return False
        return True

    def _area(self, address: int) -> Area | None:
        """The mapping at ``address``."""
        if self.gone or address >> 63:
            return None
        try:
            if self._maps < 0:
                self._maps = os.open(f"/proc/{self.pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
            raw = fcntl.ioctl(self._maps, _PROCMAP_QUERY, _QUERY.pack(_QUERY.size, 0, address, *bytes(12)))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            return next((area for area in self._areas() if area[0] <= address < area[1]), None)  # before Linux 6.11
        _, _, _, start, end, flags, _, offset, inode, major, minor, *_ = _QUERY.unpack(raw)
        return start, end, flags, offset, (major, minor), inode

    def address_of(self, key: Key) -> int | None:
        """Where this memory has a page of a file, if it does."""
        _, device, inode, page = key
        assert isinstance(page, int)
        for start, end, flags, offset, of_device, of_inode in self._areas():
            first = offset >> PAGE_SHIFT
            here = first <= page < first + (end - start >> PAGE_SHIFT)
            if here and flags & _SHARED and (of_device, of_inode) == (device, inode):
                return start + (page - first << PAGE_SHIFT)
        return None

    def _areas(self) -> Iterator[Area]:
        """Every mapping, from the text of /proc/pid/maps."""
        try:
            with open(f"/proc/{self.pid}/maps", encoding="ascii", errors="replace") as maps:
                for line in maps:
                    span, modes, offset, device, inode = line.split(maxsplit=5)[:5]
                    start, end = (int(part, 16) for part in span.split("-"))
                    flags = (_READABLE if modes[0] == "r" else 0) | (_WRITABLE if modes[1] == "w" else 0)
                    flags |= _SHARED if modes[3] == "s" else 0
                    major, minor = (int(part, 16) for part in device.split(":"))
                    yield start, end, flags, int(offset, 16), (major, minor), int(inode)
        except OSError:
            return

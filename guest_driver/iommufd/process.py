# SPDX-License-Identifier: GPL-2.0-or-later
"""Who calls: a process with an address space whose pages can be pinned.

iommufd sees user memory only through :class:`AddressSpace`, so that the same code can serve a process of this test
bed, whose pages come from the guest's allocator, and a real program's memory.
"""

from __future__ import annotations

from typing import Final, Protocol

from abi.errno import EFAULT, ENOMEM
from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.linux.kernel import Kernel
from guest_driver.linux.page_alloc import GFP_KERNEL, GFP_ZERO

UNLIMITED: Final = 1 << 62


class AddressSpace(Protocol):
    """A process's memory (mm_struct).  Addresses are user virtual addresses, pages are 4 KiB."""

    pinned_vm: int
    """Pages that are charged to this address space."""

    def read(self, address: int, length: int) -> bytes | None:
        """``None`` if any byte is not there (copy_from_user failing)."""
        ...

    def write(self, address: int, data: bytes) -> bool:
        """False if any byte is not there or read-only; nothing is promised about the others then."""
        ...

    def pin(self, address: int, writable: bool) -> int:
        """Physical address of the page at ``address``, which stays where it is until unpinned; or -EFAULT."""
        ...

    def unpin(self, paddr: int) -> None: ...

    def access(self, paddr: int, offset: int, data: bytes | None, length: int) -> bytes:
        """Read (``data`` of ``None``) or write ``length`` bytes of a pinned page, as the kernel does through kmap."""
        ...


class Process:
    """The caller of an ioctl."""

    __slots__ = ("cap_ipc_lock", "cap_sys_resource", "locked_vm", "mm", "rlimit_memlock")

    def __init__(self, mm: AddressSpace, rlimit_memlock: int = UNLIMITED, cap_sys_resource: bool = True) -> None:
        self.mm: Final = mm
        self.rlimit_memlock = rlimit_memlock
        """Pages that may be pinned."""
        self.cap_sys_resource = cap_sys_resource
        self.cap_ipc_lock = False
        self.locked_vm = 0
        """Pages that are charged to the user."""


class UserMemory:
    """An address space made of the guest kernel's pages."""

    __slots__ = ("_gone", "_kernel", "_pages", "pinned_vm", "pins")

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._pages: dict[int, tuple[int, bool]] = {}
        """Virtual page number to (pfn, writable)."""
        self._gone: set[int] = set()
        """pfns that munmap took while they were pinned; freed when the last pin goes."""
        self.pins: dict[int, int] = {}
        """pfn to number of pins; absent means none."""
        self.pinned_vm = 0

    def mmap(self, address: int, length: int, writable: bool = True) -> int:
        """Populate ``length`` bytes from ``address`` (both whole pages); 0 or -ENOMEM with nothing new mapped."""
        first = address >> PAGE_SHIFT
        added: list[int] = []
        for page in range(first, first + (length >> PAGE_SHIFT)):
            if page in self._pages:
                continue
            pfn = self._kernel.pages.alloc_pages(GFP_KERNEL | GFP_ZERO)
            if not pfn:
                for undo in added:
                    self._kernel.pages.free_pages(self._pages.pop(undo)[0])
                return -ENOMEM
            self._pages[page] = (pfn, writable)
            added.append(page)
        return 0

    def munmap(self, address: int, length: int) -> None:
        for page in range(address >> PAGE_SHIFT, address + length >> PAGE_SHIFT):
            if page not in self._pages:
                continue
            pfn, _ = self._pages.pop(page)
            if pfn in self.pins:
                self._gone.add(pfn)
            else:
                self._kernel.pages.free_pages(pfn)

    def exit(self) -> None:
        """The process ends: everything is unmapped; pinned pages live on until they are unpinned."""
        for page in list(self._pages):
            self.munmap(page << PAGE_SHIFT, PAGE_SIZE)

    def read(self, address: int, length: int) -> bytes | None:
        out = bytearray()
        while length:
            entry = self._pages.get(address >> PAGE_SHIFT)
            if entry is None:
                return None
            offset = address & PAGE_SIZE - 1
            step = min(length, PAGE_SIZE - offset)
            out += self._kernel.ram.read((entry[0] << PAGE_SHIFT) + offset, step)
            address += step
            length -= step
        return bytes(out)

    def write(self, address: int, data: bytes) -> bool:
        at = 0
        while at < len(data):
            entry = self._pages.get(address >> PAGE_SHIFT)
            if entry is None or not entry[1]:
                return False
            offset = address & PAGE_SIZE - 1
            step = min(len(data) - at, PAGE_SIZE - offset)
            self._kernel.ram.write((entry[0] << PAGE_SHIFT) + offset, data[at : at + step])
            address += step
            at += step
        return True

    def pin(self, address: int, writable: bool) -> int:
        entry = self._pages.get(address >> PAGE_SHIFT)
        if entry is None or (writable and not entry[1]):
            return -EFAULT
        pfn = entry[0]
        self.pins[pfn] = self.pins.get(pfn, 0) + 1
        return pfn << PAGE_SHIFT

    def unpin(self, paddr: int) -> None:
        pfn = paddr >> PAGE_SHIFT
        count = self.pins.get(pfn, 0)
        if self._kernel.printk.warn_on(not count, f"unpin of pfn {pfn:#x}, which nobody pinned"):
            return
        if count > 1:
            self.pins[pfn] = count - 1
            return
        del self.pins[pfn]
        if pfn in self._gone:
            self._gone.remove(pfn)
            self._kernel.pages.free_pages(pfn)

    def access(self, paddr: int, offset: int, data: bytes | None, length: int) -> bytes:
        if data is None:
            return self._kernel.ram.read(paddr + offset, length)
        self._kernel.ram.write(paddr + offset, data)
        return data

    def phys(self, address: int) -> int | None:
        """Physical address behind ``address``, ``None`` if nothing is there: for tests that compare translations."""
        entry = self._pages.get(address >> PAGE_SHIFT)
        return None if entry is None else entry[0] << PAGE_SHIFT | address & PAGE_SIZE - 1

# SPDX-License-Identifier: GPL-2.0-or-later
"""Who calls: a process with an address space whose pages can be pinned.

iommufd sees user memory only through :class:`AddressSpace`, so that the same code can serve a process of this test
bed, whose pages come from the guest's allocator, and a real program's memory.
"""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

from abi.errno import EFAULT, EINVAL, EMFILE, ENOMEM
from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.linux.kernel import Kernel
from guest_driver.linux.page_alloc import GFP_KERNEL, GFP_ZERO

UNLIMITED: Final = 1 << 62


class Pinnable(Protocol):
    """Something made of pages that can be pinned: a process's memory, or a file in memory."""

    def pin_pages(self, address: int, count: int, writable: bool) -> list[int] | int:
        """Physical address of each of ``count`` pages from ``address``, which stay where they are until unpinned.

        -EFAULT, -EINVAL (past the end of a file) or -ENOMEM: nothing is pinned.
        """
        ...

    def unpin(self, paddr: int) -> None: ...

    def access(self, paddr: int, offset: int, data: bytes | None, length: int) -> bytes:
        """Read (``data`` of ``None``) or write ``length`` bytes of a pinned page, as the kernel does through kmap."""
        ...


@runtime_checkable
class MemoryFile(Pinnable, Protocol):
    """A file whose pages are memory (memfd); addresses are its offsets."""

    is_memory: bool
    """True.  Other files cannot be mapped."""


class AddressSpace(Pinnable, Protocol):
    """A process's memory (mm_struct).  Addresses are user virtual addresses, pages are 4 KiB."""

    pinned_vm: int
    """Pages that are charged to this address space."""

    def read(self, address: int, length: int) -> bytes | None:
        """``None`` if any byte is not there (copy_from_user failing)."""
        ...

    def write(self, address: int, data: bytes) -> bool:
        """False if any byte is not there or read-only; nothing is promised about the others then."""
        ...

    def phys(self, address: int) -> int | None:
        """Physical address behind ``address``, ``None`` if nothing is there (or pinned there): for comparisons."""
        ...

    def pins_at(self, address: int) -> int:
        """How often the page at ``address`` is pinned."""
        ...


class FileTable(Protocol):
    """A process's descriptors (files_struct): numbers are set aside first, and used when nothing can fail any more."""

    def reserve(self) -> int:
        """A free number (get_unused_fd_flags), or -EMFILE."""
        ...

    def unreserve(self, fd: int) -> None:
        """Give a number back that was not installed (put_unused_fd)."""
        ...

    def install(self, fd: int, file: object) -> None:
        """``file`` is behind number ``fd`` from now on (fd_install)."""
        ...

    def get(self, fd: int) -> object:
        """The file behind ``fd``, ``None`` if the number is not open."""
        ...


class Files:
    """A table in a dict, up to ``limit`` descriptors."""

    __slots__ = ("files", "limit")

    def __init__(self, limit: int = 1024) -> None:
        self.limit = limit
        self.files: dict[int, object] = {}

    def reserve(self) -> int:
        for fd in range(3, self.limit):
            if fd not in self.files:
                self.files[fd] = None
                return fd
        return -EMFILE

    def unreserve(self, fd: int) -> None:
        del self.files[fd]

    def install(self, fd: int, file: object) -> None:
        self.files[fd] = file

    def get(self, fd: int) -> object:
        return self.files.get(fd)

    def close(self, fd: int) -> None:
        """close(2), of a descriptor that is the only one of its file."""
        file = self.files.pop(fd)
        if isinstance(file, ReadableFile):
            file.release()


class ReadableFile:
    """A file of the kernel's that a program reads, writes and polls; counts and addresses are the program's."""

    __slots__ = ()

    def read(self, mm: AddressSpace, address: int, count: int) -> int:
        """Bytes copied to the program, or -errno."""
        raise NotImplementedError

    def write(self, mm: AddressSpace, address: int, count: int) -> int:
        """Bytes taken from the program, or -errno."""
        raise NotImplementedError

    def readable(self) -> bool:
        """Whether poll answers POLLIN."""
        raise NotImplementedError

    def release(self) -> None:
        """The last descriptor is closed."""
        raise NotImplementedError


class Process:
    """The caller of an ioctl."""

    __slots__ = ("cap_ipc_lock", "cap_sys_resource", "files", "locked_vm", "mm", "rlimit_memlock")

    def __init__(
        self,
        mm: AddressSpace,
        rlimit_memlock: int = UNLIMITED,
        cap_sys_resource: bool = True,
        files: FileTable | None = None,
    ) -> None:
        self.mm: AddressSpace = mm
        self.files: FileTable = files or Files()
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

    def pin_pages(self, address: int, count: int, writable: bool) -> list[int] | int:
        first = address >> PAGE_SHIFT
        found = [self._pages.get(page) for page in range(first, first + count)]
        pfns = [entry[0] for entry in found if entry is not None and (entry[1] or not writable)]
        if len(pfns) != count:
            return -EFAULT
        for pfn in pfns:
            self.pins[pfn] = self.pins.get(pfn, 0) + 1
        return [pfn << PAGE_SHIFT for pfn in pfns]

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

    def pins_at(self, address: int) -> int:
        entry = self._pages.get(address >> PAGE_SHIFT)
        return 0 if entry is None else self.pins.get(entry[0], 0)

    def phys(self, address: int) -> int | None:
        entry = self._pages.get(address >> PAGE_SHIFT)
        return None if entry is None else entry[0] << PAGE_SHIFT | address & PAGE_SIZE - 1


class MemFd:
    """A file in memory (memfd_create), of whole pages."""

    is_memory = True

    def __init__(self, kernel: Kernel, length: int) -> None:
        self._memory: Final = UserMemory(kernel)
        self.length: Final = length
        self.populated: Final = self._memory.mmap(0, length) == 0
        """False: there was no memory for it, and it is empty."""

    def pin_pages(self, address: int, count: int, writable: bool) -> list[int] | int:
        found = self._memory.pin_pages(address, count, writable)
        return -EINVAL if found == -EFAULT else found

    def unpin(self, paddr: int) -> None:
        self._memory.unpin(paddr)

    def access(self, paddr: int, offset: int, data: bytes | None, length: int) -> bytes:
        return self._memory.access(paddr, offset, data, length)

    def pread(self, offset: int, length: int) -> bytes | None:
        return self._memory.read(offset, length)

    def pwrite(self, offset: int, data: bytes) -> bool:
        return self._memory.write(offset, data)

    def pinned(self) -> int:
        """Pages that are pinned."""
        return len(self._memory.pins)

    def close(self) -> None:
        self._memory.exit()

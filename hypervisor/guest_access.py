# SPDX-License-Identifier: GPL-2.0-or-later
"""Copying hypercall arguments from and to a guest.

A guest is anything that makes hypercalls; to the hypervisor its memory is a port that may answer "fault".  The
port below is the one of guests that live in the machine's RAM: linear addresses resolved through a table of the
vCPU's mappings (what CR3 or TTBR would point at) and then through the domain's frame translation.  Other ports
can stand behind other guests.
"""

from typing import Final, Protocol

from base.units import PAGE_SHIFT, PAGE_SIZE
from hypervisor.p2m import Translation
from machine.memory import PhysicalMemory

HYPERVISOR_START: Final = 0xFFFF_8000_0000_0000
HYPERVISOR_END: Final = 0xFFFF_8800_0000_0000
"""Linear addresses that Xen keeps for itself in every x86-64 PV guest (public/arch-x86/xen-x86_64.h)."""
DIRECT_MAP: Final = 0xFFFF_8880_0000_0000
"""Where a Linux guest maps all of its own memory (page_offset_base without KASLR)."""
_WINDOWS: Final = 64
"""Windows that are remembered."""


class GuestMemory(Protocol):
    """A guest's linear address space as hypercalls reach it."""

    def read(self, address: int, length: int) -> bytes | None:
        """``length`` bytes at linear ``address``; ``None`` is a fault."""
        ...

    def write(self, address: int, data: bytes | bytearray) -> bool:
        """Store ``data``; ``False`` is a fault, and then nothing was stored."""
        ...

    def writable(self, address: int, length: int) -> bool:
        """Whether :meth:`write` of ``length`` bytes would succeed now."""
        ...

    def window(self, address: int, length: int) -> memoryview | None:
        """The bytes themselves, readable and writable in place, if they can be had without copying.

        ``None`` says nothing about faults: the caller goes through the other methods then.
        """
        ...


class LinearMemory:
    """The linear address space of a guest in the machine's RAM.

    ``direct_frames`` frames of the guest are mapped writable from :data:`DIRECT_MAP` on; ``pages`` holds all
    other mappings: linear page number to (guest frame, writable).  ``pfn_to_gfn`` turns the guest's own frame
    numbers into those that its translation understands (scattered for PV, the identity otherwise).  ``reserved``:
    Xen keeps a part of the address space for itself, as it does in a PV guest.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        translation: Translation,
        direct_frames: int,
        pfn_to_gfn: list[int] | None,
        *,
        reserved: bool,
    ) -> None:
        self._memory: Final = memory
        self._bytes: Final = memory.bytes
        self._touched: Final = memory.touched
        self._ram: Final = translation.ram
        self._frames: Final = direct_frames
        self._direct_end: Final = DIRECT_MAP + (direct_frames << PAGE_SHIFT)
        self._pfn_to_gfn: Final = pfn_to_gfn
        self._reserved: Final = reserved
        self.pages: dict[int, tuple[int, bool]] = {}
        self._windows: Final[dict[int, tuple[int, int, memoryview]]] = {}
        """Linear address to (guest frame, machine frame, bytes) of the windows looked through of late: most guests put
        all their structs in few places."""

    def read(self, address: int, length: int) -> bytes | None:
        offset = address & PAGE_SIZE - 1
        if offset + length <= PAGE_SIZE:
            maddr = self._machine_address(address, False)
            return None if maddr is None else self._memory.read(maddr, length)
        parts = []
        while length:
            size = min(length, PAGE_SIZE - (address & PAGE_SIZE - 1))
            maddr = self._machine_address(address, False)
            if maddr is None:
                return None
            parts.append(self._memory.read(maddr, size))
            address, length = address + size, length - size
        return b"".join(parts)

    def write(self, address: int, data: bytes | bytearray) -> bool:
        length = len(data)
        if (address & PAGE_SIZE - 1) + length <= PAGE_SIZE:
            maddr = self._machine_address(address, True)
            if maddr is None:
                return False
            self._memory.write(maddr, data)
            return True
        pieces = self._pieces(address, length)
        if pieces is None:
            return False
        done = 0
        for maddr, size in pieces:
            self._memory.write(maddr, data[done : done + size])
            done += size
        return True

    def writable(self, address: int, length: int) -> bool:
        if (address & PAGE_SIZE - 1) + length <= PAGE_SIZE:
            return self._machine_address(address, True) is not None
        return self._pieces(address, length) is not None

    def window(self, address: int, length: int) -> memoryview | None:
        known = self._windows.get(address)
        if known is not None:
            gfn, mfn, window = known
            if len(window) == length and self._touched[mfn] and self._ram(gfn, True) == mfn:
                return window
        start = address & PAGE_SIZE - 1
        if start + length > PAGE_SIZE or not DIRECT_MAP <= address < self._direct_end:
            return None
        gfn = address - DIRECT_MAP >> PAGE_SHIFT
        if self._pfn_to_gfn is not None:
            gfn = self._pfn_to_gfn[gfn]
        mfn = self._ram(gfn, True)
        if mfn < 0:
            return None
        if not self._touched[mfn]:
            self._memory.touch(mfn)
        start += mfn << PAGE_SHIFT
        window = self._bytes[start : start + length]
        if len(self._windows) == _WINDOWS:
            self._windows.clear()
        self._windows[address] = gfn, mfn, window
        return window

    def _pieces(self, address: int, length: int) -> list[tuple[int, int]] | None:
        pieces = []
        while length:
            size = min(length, PAGE_SIZE - (address & PAGE_SIZE - 1))
            maddr = self._machine_address(address, True)
            if maddr is None:
                return None
            pieces.append((maddr, size))
            address, length = address + size, length - size
        return pieces

    def _machine_address(self, address: int, write: bool) -> int | None:
        """Resolve one byte's address; non-canonical, hypervisor-owned and unmapped addresses fault."""
        if DIRECT_MAP <= address < self._direct_end:
            pfn, writable = address - DIRECT_MAP >> PAGE_SHIFT, True
        elif self._reserved and HYPERVISOR_START <= address < HYPERVISOR_END:
            return None
        else:
            entry = self.pages.get(address >> PAGE_SHIFT)
            if entry is None:
                return None
            pfn, writable = entry
            if not 0 <= pfn < self._frames:
                return None
        if write and not writable:
            return None
        mfn = self._ram(pfn if self._pfn_to_gfn is None else self._pfn_to_gfn[pfn], write)
        return None if mfn < 0 else mfn << PAGE_SHIFT | address & PAGE_SIZE - 1

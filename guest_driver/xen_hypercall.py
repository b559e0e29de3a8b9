# SPDX-License-Identifier: GPL-2.0-or-later
"""HYPERVISOR_iommu_op: a sub-op's fields into guest memory, the hypercall, the fields back.

The struct lives in one page of guest memory that is allocated once; the hypervisor reads and writes it there, like
the on-stack structs of the C driver.
"""

from collections.abc import Callable
from typing import Final

from abi.versions import Abi
from base.units import PAGE_SHIFT
from guest_driver.linux.page_alloc import PageAllocator
from guest_driver.port import GuestRam, HypercallPort


class IommuOp:
    """The caller's side of every sub-op of one ABI version."""

    __slots__ = ("_bound", "_hypercall", "_nr", "_paddr", "_pages", "_read", "_write", "abi")

    def __init__(self, port: HypercallPort, ram: GuestRam, pages: PageAllocator, abi: Abi, pfn: int) -> None:
        """``pfn``: a page of its own, returned by :meth:`release`."""
        self.abi: Final = abi
        self._pages = pages
        self._paddr = pfn << PAGE_SHIFT
        self._nr = abi.hypercall
        self._hypercall = port.hypercall
        self._read, self._write = ram.read, ram.write
        linear = ram.linear(self._paddr)
        self._bound = {
            name: (subop.codec.encode, subop.codec.decode, subop.codec.size, abi.registers(name, linear))
            for name, subop in abi.by_name.items()
            if subop.codec is not None
        }

    def call(self, name: str, *fields: int) -> tuple[int, tuple[int, ...]]:
        """Run sub-op ``name`` with its canonical fields: (0 or -errno, the fields as the hypervisor left them)."""
        encode, decode, size, registers = self._bound[name]
        paddr = self._paddr
        self._write(paddr, encode(*fields))
        ret = self._hypercall(self._nr, *registers)
        return ret, decode(self._read(paddr, size))

    def bind(self, name: str) -> Callable[..., tuple[int, tuple[int, ...]]]:
        """:meth:`call` for one sub-op, with everything looked up beforehand."""
        encode, decode, size, registers = self._bound[name]
        paddr, nr, read, write, hypercall = self._paddr, self._nr, self._read, self._write, self._hypercall

        def bound(*fields: int) -> tuple[int, tuple[int, ...]]:
            write(paddr, encode(*fields))
            ret = hypercall(nr, *registers)
            return ret, decode(read(paddr, size))

        return bound

    def release(self) -> None:
        """Give the argument page back."""
        self._pages.free_pages(self._paddr >> PAGE_SHIFT)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Where callers have their memory, and where they have none: the linear addresses that hypercalls name."""

from dataclasses import dataclass
from typing import Final

from base.units import PAGE_SHIFT
from hypervisor.guest_access import DIRECT_MAP, LinearMemory

READ_ONLY_PAGE: Final = 7


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """The linear addresses of one kind of caller."""

    ram: int
    """Of page 0 of its memory, which is mapped from there on."""
    read_only: int
    """Of :data:`READ_ONLY_PAGE` without the right to write."""
    unmapped: int
    """Of nothing."""
    not_the_guests: int
    """Of what no guest can have: no canonical address, or where 32 bits have none of those, Xen's own part."""

    def lay_out(self, linear: LinearMemory, pages: int) -> None:
        """Map a caller's ``pages`` pages of RAM."""
        if self.ram != DIRECT_MAP:
            linear.pages.update({(self.ram >> PAGE_SHIFT) + page: (page, True) for page in range(pages)})
        linear.pages[self.read_only >> PAGE_SHIFT] = (READ_ONLY_PAGE, False)


WIDE: Final = AddressSpace(DIRECT_MAP, 0x7F00_0000_0000, 0x7F00_0000_1000, 0x8000_0000_0000_0000)
"""Linux's on x86-64."""
NARROW: Final = AddressSpace(0xC000_0000, 0x7F00_0000, 0x7F00_1000, 0xF580_0000)
"""32-bit Linux's: PAGE_OFFSET, and __HYPERVISOR_COMPAT_VIRT_START (public/arch-x86/xen-x86_32.h)."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""Reserved device memory (RMRRs) by XENMEM_reserved_device_memory_map (Xen, public/memory.h).

The operation belongs to the toolstack interface and Xen may refuse it to a kernel; then nothing is known, and the
hypervisor's own refusal to map over such a region is all the protection there is.
"""

import struct
from typing import Final

from abi.errno import ENOBUFS, ENOMEM
from base.units import PAGE_SHIFT, PAGE_SIZE, Sbdf
from guest_driver.linux.page_alloc import GFP_KERNEL, PageAllocator
from guest_driver.port import GuestRam, HypercallPort

HYPERVISOR_MEMORY_OP: Final = 12
XENMEM_RESERVED_DEVICE_MEMORY_MAP: Final = 27

_ENTRY: Final = struct.Struct("<QQ")  # start_pfn, nr_pages
_MAP: Final = struct.Struct("<IIQHBB4x")  # flags, nr_entries, buffer, segment, bus, devfn
_BUFFER_OFFSET: Final = 64
_MAX_ENTRIES: Final = (PAGE_SIZE - _BUFFER_OFFSET) // _ENTRY.size


def reserved_device_memory(
    port: HypercallPort, ram: GuestRam, pages: PageAllocator, sbdf: Sbdf
) -> list[tuple[int, int]] | int:
    """[(start pfn, pages)] of the regions that firmware keeps for ``sbdf``; -errno if Xen refuses to say.

    Asks for the number first (no slots, answered with -ENOBUFS and the number), then for the entries.
    """
    pfn = pages.alloc_pages(GFP_KERNEL)
    if not pfn:
        return -ENOMEM
    paddr = pfn << PAGE_SHIFT
    slots = 0
    try:
        while True:
            request = _MAP.pack(0, slots, ram.linear(paddr + _BUFFER_OFFSET), sbdf >> 16, sbdf >> 8 & 0xFF, sbdf & 0xFF)
            ram.write(paddr, request)
            ret = port.hypercall(HYPERVISOR_MEMORY_OP, XENMEM_RESERVED_DEVICE_MEMORY_MAP, ram.linear(paddr))
            entries = _MAP.unpack(ram.read(paddr, _MAP.size))[1]
            if ret == -ENOBUFS and slots < entries <= _MAX_ENTRIES:
                slots = entries
                continue
            if ret:
                return ret
            data = ram.read(paddr + _BUFFER_OFFSET, min(entries, slots) * _ENTRY.size)
            return list(_ENTRY.iter_unpack(data))
    finally:
        pages.free_pages(pfn)

# SPDX-License-Identifier: GPL-2.0-or-later
"""A hypervisor of dicts for testing the guest alone: no tables, no caches, but every error on demand.

It speaks any ABI version through the codecs.  ``mapped`` and ``unmapped`` are totals of the call unless ``additive``.
"""

import struct
from collections.abc import Callable

from abi.errno import (
    EADDRINUSE,
    EADDRNOTAVAIL,
    EBUSY,
    EINVAL,
    ENOBUFS,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOSYS,
)
from abi.versions import Abi, Convention
from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.port import PciInfo

DIRECT_MAP = 0xFFFF_8880_0000_0000


class FakeRam:
    def __init__(self, pages: int = 4096, pv: bool = False) -> None:
        self.pages = pages
        self.xen_pv_domain = pv
        self.memory = bytearray(pages << PAGE_SHIFT)
        # A permutation that leaves runs of four neighbours and breaks between them.
        order = [0x1000 + (pfn // 4 * 7 % (pages // 4)) * 4 + pfn % 4 for pfn in range(pages)]
        self._frames = order if pv else None

    def read(self, paddr: int, length: int) -> bytes:
        return bytes(self.memory[paddr : paddr + length])

    def write(self, paddr: int, data: bytes) -> None:
        assert paddr + len(data) <= len(self.memory)
        self.memory[paddr : paddr + len(data)] = data

    def linear(self, paddr: int) -> int:
        return DIRECT_MAP + paddr

    def pfn_to_gfn(self, pfn: int) -> int:
        return pfn if self._frames is None else self._frames[pfn]

    def gfn_to_pfn(self, gfn: int) -> int:
        return gfn if self._frames is None else self._frames.index(gfn)


class FakeXen:
    """``hypercall`` of one guest."""

    def __init__(self, abi: Abi, ram: FakeRam, devices: list[PciInfo], caps: tuple[str, ...] = ()) -> None:
        self.abi = abi
        self.ram = ram
        self.max_iova_addr = (1 << 48) - 1
        self.cap_flags = sum(abi.caps.get(name, 0) for name in caps)
        self.pgsize_mask = 0x1000
        self.contexts: dict[int, dict[int, tuple[int, int]]] = {0: {}}
        self.identity: set[int] = {0} if "default_identity" in caps else set()
        self.limit = 0 if abi.has("init") else 255
        self.where = {int(pci.sbdf): 0 for pci in devices}
        self.rdm: dict[int, list[tuple[int, int]]] | None = None
        self.additive = False
        self.absent = False
        self.page_budget: int | None = None
        """Pages that may still be mapped before -ENOMEM."""
        self.unmap_budget: int | None = None
        self.fail: Callable[[str, tuple[int, ...]], int] | None = None
        """(sub-op, fields) -> errno to answer instead of doing it, 0 to go on."""
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.flushes: list[tuple[int, int, int]] = []

    def hypercall(self, nr: int, *args: int) -> int:
        if nr == 12:
            return self._memory_op(*args)
        if nr != self.abi.hypercall or self.absent:
            return -ENOSYS
        if self.abi.convention is Convention.UNION:
            (arg,) = args
            number = self.abi.subop_of(self.ram.read(arg - DIRECT_MAP, 2))
        else:
            number, arg = args
        subop = self.abi.subops[number]
        paddr = arg - DIRECT_MAP
        data = bytearray(self.ram.read(paddr, subop.codec.size))
        if subop.codec.hole_mask & int.from_bytes(data, "little"):
            return -EINVAL
        fields = subop.codec.decode(data)
        self.calls.append((subop.name, fields))
        if self.fail is not None:
            errno = self.fail(subop.name, fields)
            if errno:
                return -errno
        ret, out = getattr(self, subop.name)(*fields)
        if out:
            subop.codec.patch_out(data, *out)
            self.ram.write(paddr, bytes(data))
        return ret

    def query_capabilities(self, *_):
        limit = self.abi.max_nr_pages or 0
        return 0, (self.max_iova_addr, self.cap_flags, self.pgsize_mask, 0, self.limit, limit)

    def init(self, max_ctx_no, arena_order):
        self.limit = max_ctx_no
        return 0, ()

    def alloc_context(self, ctx_no, flags):
        for number in range(1, self.limit + 1):
            if number not in self.contexts:
                self.contexts[number] = {}
                if flags & self.abi.alloc_identity:
                    self.identity.add(number)
                return 0, (number,)
        return -ENOSPC, ()

    def free_context(self, ctx_no, flags):
        if ctx_no == 0:
            return -EINVAL, ()
        if ctx_no not in self.contexts:
            return -ENOENT, ()
        if ctx_no in self.where.values():
            return -EBUSY, ()
        del self.contexts[ctx_no]
        self.identity.discard(ctx_no)
        return 0, ()

    def reattach_device(self, ctx_no, segment, bus, devfn, pasid):
        sbdf = segment << 16 | bus << 8 | devfn
        if sbdf not in self.where:
            return -ENODEV, ()
        if ctx_no not in self.contexts:
            return -ENOENT, ()
        self.where[sbdf] = ctx_no
        return 0, ()

    def map_pages(self, ctx_no, gfn, dfn, flags, pgsize, nr_pages, mapped):
        if not self.additive:
            mapped = 0
        if ctx_no not in self.contexts or ctx_no == 0:
            return -EINVAL, (mapped,)
        table = self.contexts[ctx_no]
        frames = pgsize >> PAGE_SHIFT
        for page in range(nr_pages):
            at = range(page * frames, (page + 1) * frames)
            if any(dfn + frame in table for frame in at):
                return -EADDRINUSE, (mapped,)
            if any(self._in_rdm(dfn + frame) for frame in at):
                return -EADDRNOTAVAIL, (mapped,)
            if self.page_budget is not None:
                if not self.page_budget:
                    return -ENOMEM, (mapped,)
                self.page_budget -= 1
            for frame in at:
                table[dfn + frame] = (gfn + frame, flags)
            mapped += 1
        return 0, (mapped,)

    def unmap_pages(self, ctx_no, dfn, pgsize, nr_pages, unmapped):
        if not self.additive:
            unmapped = 0
        if ctx_no not in self.contexts or ctx_no == 0:
            return -EINVAL, (unmapped,)
        table = self.contexts[ctx_no]
        frames = pgsize >> PAGE_SHIFT
        for page in range(nr_pages):
            at = range(page * frames, (page + 1) * frames)
            if not all(dfn + frame in table for frame in at):
                return -ENOENT, (unmapped,)
            if self.unmap_budget is not None:
                if not self.unmap_budget:
                    return -ENOMEM, (unmapped,)
                self.unmap_budget -= 1
            for frame in at:
                del table[dfn + frame]
            unmapped += 1
        return 0, (unmapped,)

    def lookup_page(self, ctx_no, dfn, gfn):
        entry = self.contexts.get(ctx_no, {}).get(dfn)
        return (-ENOENT, ()) if entry is None else (0, (entry[0],))

    def flush_pages(self, ctx_no, dfn, pgsize, nr_pages):
        self.flushes.append((ctx_no, dfn, nr_pages * pgsize >> PAGE_SHIFT))
        return 0, ()

    def _in_rdm(self, dfn: int) -> bool:
        regions = [region for found in (self.rdm or {}).values() for region in found]
        return any(start <= dfn < start + pages for start, pages in regions)

    def _memory_op(self, cmd: int, arg: int) -> int:
        if cmd != 27 or self.rdm is None:
            return -ENOSYS
        form = struct.Struct("<IIQHBB4x")
        flags, slots, buffer, segment, bus, devfn = form.unpack(self.ram.read(arg - DIRECT_MAP, form.size))
        found = self.rdm.get(segment << 16 | bus << 8 | devfn, [])
        for index, entry in enumerate(found[:slots]):
            self.ram.write(buffer - DIRECT_MAP + 16 * index, struct.pack("<QQ", *entry))
        self.ram.write(arg - DIRECT_MAP, form.pack(flags, len(found), buffer, segment, bus, devfn))
        return -ENOBUFS if slots < len(found) else 0

    def translate(self, sbdf: int, iova: int) -> int | None:
        """Guest physical address that DMA of a device at ``iova`` reaches, ``None`` if it faults."""
        ctx_no = self.where[sbdf]
        if ctx_no in self.identity:
            # One to one in frames as the hypervisor counts them: machine frames in a PV guest.
            if self.ram.xen_pv_domain and iova >> PAGE_SHIFT not in self.ram._frames:
                return None
            return self.ram.gfn_to_pfn(iova >> PAGE_SHIFT) << PAGE_SHIFT | iova & PAGE_SIZE - 1
        entry = self.contexts[ctx_no].get(iova >> PAGE_SHIFT)
        if entry is None:
            return None
        return self.ram.gfn_to_pfn(entry[0]) << PAGE_SHIFT | iova & PAGE_SIZE - 1


class FakePci:
    """Enumeration of a fixed list; interrupts at a doorbell if it has one."""

    def __init__(self, devices: list[PciInfo], doorbell: int | None = None) -> None:
        self._devices = devices
        self.doorbell = doorbell
        self.handlers: list[Callable[[], None]] = []

    def devices(self):
        return self._devices

    def request_irq(self, handler):
        if self.doorbell is None:
            return None
        self.handlers.append(handler)
        return self.doorbell, 0x30 + len(self.handlers) - 1


class NoMmio:
    def readl(self, address: int) -> int:
        return 0xFFFFFFFF

    def writel(self, address: int, value: int) -> None:
        pass

# SPDX-License-Identifier: GPL-2.0-or-later
"""One type per number space.

A frame number as the guest counts it, as Xen counts it for that guest, as the machine counts it and as a
device sees it are four different integers that look alike; most wrong mappings start with one used for
another.  Each gets a ``NewType``, and the only arithmetic between two of them is the named conversions
below.  They cost nothing at run time.

===========  =====================================================================================
``Pfn``      pseudo-physical frame number: how the guest kernel numbers its own pages
``Gfn``      guest frame number: how the hypervisor numbers a VM's frames (PV: a machine frame number)
``Mfn``      machine frame number: host RAM (or MMIO) >> 12
``Dfn``      device frame number: I/O virtual address >> 12
``Gaddr``    guest linear address, as passed in a hypercall argument
``Paddr``    guest pseudo-physical address (``Pfn`` << 12 plus offset)
``Maddr``    machine address
``Iova``     I/O virtual address
``Sbdf``     PCI segment, bus, device, function: segment << 16 | bus << 8 | devfn
===========  =====================================================================================
"""

from typing import Final, NewType

Pfn = NewType("Pfn", int)
Gfn = NewType("Gfn", int)
Mfn = NewType("Mfn", int)
Dfn = NewType("Dfn", int)
Gaddr = NewType("Gaddr", int)
Paddr = NewType("Paddr", int)
Maddr = NewType("Maddr", int)
Iova = NewType("Iova", int)
Sbdf = NewType("Sbdf", int)
Pasid = NewType("Pasid", int)
CtxNo = NewType("CtxNo", int)
DomId = NewType("DomId", int)

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
PAGE_MASK: Final = ~(PAGE_SIZE - 1)

U16_MAX: Final = (1 << 16) - 1
U32_MAX: Final = (1 << 32) - 1
U64_MAX: Final = (1 << 64) - 1


def u16(value: int) -> int:
    """``value`` as C's ``(uint16_t)value``: truncation that is meant."""
    return value & U16_MAX


def u32(value: int) -> int:
    """``value`` as C's ``(uint32_t)value``: truncation that is meant."""
    return value & U32_MAX


def u64(value: int) -> int:
    """``value`` as C's ``(uint64_t)value``: truncation that is meant."""
    return value & U64_MAX


def s64(value: int) -> int:
    """``value`` as C's ``(int64_t)value``: how a hypercall's return register reads as ``long``."""
    value &= U64_MAX
    return value - (1 << 64) if value >> 63 else value


def mfn_of(maddr: Maddr) -> Mfn:
    return Mfn(maddr >> PAGE_SHIFT)


def maddr_of(mfn: Mfn, offset: int = 0) -> Maddr:
    return Maddr((mfn << PAGE_SHIFT) + offset)


def pfn_of(paddr: Paddr) -> Pfn:
    return Pfn(paddr >> PAGE_SHIFT)


def paddr_of(pfn: Pfn, offset: int = 0) -> Paddr:
    return Paddr((pfn << PAGE_SHIFT) + offset)


def dfn_of(iova: Iova) -> Dfn:
    return Dfn(iova >> PAGE_SHIFT)


def iova_of(dfn: Dfn, offset: int = 0) -> Iova:
    return Iova((dfn << PAGE_SHIFT) + offset)


def make_sbdf(segment: int, bus: int, device: int, function: int) -> Sbdf:
    """Combine the four PCI coordinates (16, 8, 5 and 3 bits); ``ValueError`` for one out of range."""
    if not (0 <= segment <= 0xFFFF and 0 <= bus <= 0xFF and 0 <= device <= 0x1F and 0 <= function <= 7):
        raise ValueError(f"no such PCI address: {segment:04x}:{bus:02x}:{device:02x}.{function:x}")
    return Sbdf(segment << 16 | bus << 8 | device << 3 | function)


def format_sbdf(sbdf: int) -> str:
    """``0000:00:03.0``, as lspci -D prints it."""
    return f"{sbdf >> 16:04x}:{sbdf >> 8 & 0xFF:02x}:{sbdf >> 3 & 0x1F:02x}.{sbdf & 7:x}"


def parse_sbdf(text: str) -> Sbdf:
    """Read ``[segment:]bus:device.function`` in hexadecimal; ``ValueError`` names what is wrong."""
    head, dot, function = text.rpartition(".")
    parts = head.split(":")
    if not dot or len(parts) not in (2, 3):
        raise ValueError(f"{text!r} is not a PCI address; expected [segment:]bus:device.function, as 00:03.0")
    try:
        numbers = [int(part, 16) for part in (*parts, function)]
    except ValueError:
        raise ValueError(f"{text!r} is not a PCI address; its parts are hexadecimal, as 0000:00:1f.7") from None
    if len(numbers) == 3:
        numbers.insert(0, 0)
    return make_sbdf(*numbers)

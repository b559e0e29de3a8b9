# SPDX-License-Identifier: GPL-2.0-or-later
"""The vocabulary in which the version files declare C structs: construct, plus what a C header knows and bytes do not.

A declaration lists members as the posted header does, holes not written::

    ALLOC = c_struct(
        "pv_iommu_alloc",
        "ctx_no" / OUT(u16) * "number of the new context",
        "alloc_flags" / IN(u32) * "IOMMU_ALLOC_*",
    )

Where a compiler puts the members depends on the architecture: :mod:`abi.layout` turns a declaration into the
construct that holds every hole as explicit padding, one per architecture.  Sizes and alignments are those of the
System V ABIs (x86-64, i386: 8-byte integers align to 4 inside structs) and of AAPCS64.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import construct


@dataclass(frozen=True, slots=True)
class Arch:
    """What a C compiler knows about an architecture, as far as these headers can tell."""

    name: str
    pointer: int
    """Size and alignment of pointers, ``unsigned long`` and what is typedef'd to it, in bytes."""
    u64_align: int
    """Alignment of a 64-bit integer as a struct member, in bytes."""
    doc: str


ARCHES: Final[Mapping[str, Arch]] = MappingProxyType(
    {
        "x86-64": Arch("x86-64", 8, 8, "64-bit guest, and what Xen itself reads"),
        "i386": Arch("i386", 4, 4, "32-bit guest; uint64_aligned_t is a plain uint64_t there"),
        "arm64": Arch("arm64", 8, 8, "AArch64 guest, and what Xen on Arm reads"),
    }
)


class CInteger(construct.FormatField):  # type: ignore[misc]
    """A little-endian integer of fixed size with its C spelling."""

    def __init__(self, c_type: str, code: str) -> None:
        super().__init__("<", code)
        self.c_type = c_type

    def on(self, arch: Arch) -> tuple[str, int]:
        """(``struct`` code, alignment in bytes) on ``arch``."""
        return self.fmtstr[1], arch.u64_align if self.length == 8 else self.length


class CWord(CInteger):
    """An integer or handle as wide as a pointer; construct's own size is the 64-bit one."""

    def __init__(self, c_type: str) -> None:
        super().__init__(c_type, "Q")

    def on(self, arch: Arch) -> tuple[str, int]:
        return ("Q" if arch.pointer == 8 else "L"), arch.pointer


u8: Final = CInteger("uint8_t", "B")
u16: Final = CInteger("uint16_t", "H")
u32: Final = CInteger("uint32_t", "L")
u64: Final = CInteger("uint64_t", "Q")
s32: Final = CInteger("int32_t", "l")
u64_aligned: Final = CInteger("uint64_aligned_t", "Q")
"""Aligned to 8 in Xen and its tools only; a 32-bit kernel gets a plain 64-bit integer, hence its other layout."""
domid: Final = CInteger("domid_t", "H")
pfn: Final = CWord("xen_pfn_t")
ulong: Final = CWord("xen_ulong_t")


def handle(c_type: str) -> CWord:
    """``XEN_GUEST_HANDLE(c_type)``: a guest address, as wide as a pointer of the guest that built the header."""
    return CWord(f"XEN_GUEST_HANDLE({c_type})")


class CStruct(construct.Struct):  # type: ignore[misc]
    """Members in declaration order, holes not written; not itself parseable, see :mod:`abi.layout`."""

    def __init__(self, tag: str, *members: Any, anonymous: bool = False) -> None:
        super().__init__(*members)
        self.tag = tag
        self.anonymous = anonymous
        """Has no tag of its own in the header: a struct inside a union."""


class CUnion(construct.Construct):  # type: ignore[misc]
    """The alternatives of a tagged union; which one holds is what the tag field of the struct around it says."""

    def __init__(self, *cases: Any) -> None:
        super().__init__()
        self.cases = cases


class Directed(construct.Subconstruct):  # type: ignore[misc]
    """A member with its direction: ``in``, ``out``, ``inout`` or ``reserved``."""

    def __init__(self, subcon: Any, direction: str, promised: str) -> None:
        super().__init__(subcon)
        self.direction = direction
        self.promised = promised
        """The direction that the header's comment gives; "" if it gives none."""


def IN(subcon: Any, *, marked: bool = True, promised: str = "in") -> Directed:
    """The hypervisor reads it and does not write it."""
    return Directed(subcon, "in", promised if marked else "")


def OUT(subcon: Any, *, marked: bool = True) -> Directed:
    """The hypervisor writes it and does not read it."""
    return Directed(subcon, "out", "out" if marked else "")


def INOUT(subcon: Any, promised: str = "inout") -> Directed:
    """The hypervisor reads and writes it; ``promised`` is what the header's comment says, "" for nothing."""
    return Directed(subcon, "inout", promised)


def RESERVED(subcon: Any) -> Directed:
    """Explicit padding that the header names."""
    return Directed(subcon, "reserved", "reserved")


def c_struct(tag: str, *members: Any) -> CStruct:
    """``struct tag { members };``"""
    return CStruct(tag, *members)


def case(*members: Any, tag: str = "") -> CStruct:
    """One alternative of a union: ``struct { members }``, or the struct called ``tag`` that is declared elsewhere."""
    return CStruct(tag, *members, anonymous=not tag)


def tagged_union(*cases: Any) -> CUnion:
    """``union { cases };``"""
    return CUnion(*cases)


PCI_DEVICE: Final = c_struct(
    "physdev_pci_device",
    "seg" / u16 * "PCI segment",
    "bus" / u8 * "PCI bus",
    "devfn" / u8 * "device << 3 | function",
)
"""From Xen's public/physdev.h, which every posted header includes; whoever embeds it says the direction."""

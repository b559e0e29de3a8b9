# SPDX-License-Identifier: GPL-2.0-or-later
"""Context descriptors, their tables and stage 1 descriptors in words, for the people who look at a walk."""

from functools import lru_cache
from typing import Final

from machine.iommu.smmuv3.cd import Cd0, CdTable
from machine.iommu.smmuv3.contexts import L1Cd
from machine.iommu.smmuv3.walk import ADDRESS, LAST_LEVEL
from machine.iommu.smmuv3.walk1 import LeafDescriptor1, TableDescriptor1

REMEMBERED: Final = 1024
"""Texts that are kept: walks meet the same structures again and again."""
_SIZES: Final = ("512G", "1G", "2M", "4K")
_SHAREABILITY: Final = ("NSH", "SH-reserved", "OSH", "ISH")
_DEVICE: Final = ("nGnRnE", "nGnRE", "nGRE", "GRE")


def describe_l1cd(descriptor: int) -> str:
    """``V L2Ptr=0x...`` or ``not valid``."""
    return f"V L2Ptr={descriptor & L1Cd.l2ptr.mask:#x}" if L1Cd.v.get(descriptor) else "not valid"


@lru_cache(maxsize=REMEMBERED)
def describe_cd(words: tuple[int, ...]) -> str:
    """``V ASID=5 T0SZ=16 TTB0=0x... EPD1 IPS=5 R A ASET``; which rule an illegal one breaks depends on its stream."""
    low = words[0]
    parts = ["V" if Cd0.v.get(low) else "not valid", f"ASID={Cd0.asid.get(low)}"]
    for number, word in (("0", words[1]), ("1", words[2])):
        if Cd0.fields["epd" + number].get(low):
            parts.append(f"EPD{number}")
            continue
        parts.append(f"T{number}SZ={Cd0.fields[f't{number}sz'].get(low)} TTB{number}={word & CdTable.ttb.mask:#x}")
        if CdTable.had.get(word):
            parts.append(f"HAD{number}")
    parts.append(f"IPS={Cd0.ips.get(low)}")
    flags = ("tbi0", "tbi1", "affd", "wxn", "pan", "ha", "hd", "s", "r", "a", "aset", "endi")
    parts += [name.upper() for name in flags if Cd0.fields[name].get(low)]
    if not Cd0.aa64.get(low):
        parts.append("AArch32")
    return " ".join(parts)


@lru_cache(maxsize=REMEMBERED)
def describe_descriptor1(descriptor: int, level: int, mair: int) -> str:
    """``page 4K -> 0x... RW-EL0 AF nG Normal-WB ISH``, ``table -> 0x... APTable=RO``, ``invalid``."""
    kind = descriptor & 3
    if not kind & 1:
        return "invalid"
    if kind == 1 and level in (0, LAST_LEVEL):
        return f"reserved (block at level {level})"
    if kind == 3 and level != LAST_LEVEL:
        withheld = {"read_only": "RO", "privileged": "no-EL0", "uxn": "UXN", "pxn": "PXN"}
        names = [name for field, name in withheld.items() if TableDescriptor1.fields[field].get(descriptor)]
        return f"table -> {descriptor & ADDRESS:#x}" + "".join(f" {name}Table" for name in names)
    output = descriptor & ADDRESS & -(1 << 39 - 9 * level)
    leaf = LeafDescriptor1.fields
    parts = [f"{'page' if level == LAST_LEVEL else 'block'} {_SIZES[level]} -> {output:#x}"]
    parts.append(("RO" if leaf["read_only"].get(descriptor) else "RW") + ("-EL0" if descriptor & 1 << 6 else "-EL1"))
    parts.append("AF" if leaf["af"].get(descriptor) else "AF=0")
    parts.append("nG" if leaf["ng"].get(descriptor) else "global")
    parts.append(describe_mair(mair >> 8 * leaf["attr_index"].get(descriptor) & 0xFF))
    parts.append(_SHAREABILITY[leaf["sh"].get(descriptor)])
    parts += [name for name in ("uxn", "pxn", "dbm", "contiguous", "ns") if leaf[name].get(descriptor)]
    if leaf["software"].get(descriptor):
        parts.append(f"software={leaf['software'].get(descriptor):#x}")
    return " ".join(parts)


def describe_mair(attribute: int) -> str:
    """One byte of MAIR: ``Device-nGnRE``, ``Normal-WB``, ``Normal-NC``, ``Normal-iWB-oNC``, ``... transient``."""
    outer, inner = attribute >> 4, attribute & 15
    if not outer:
        return f"Device-{_DEVICE[inner >> 2]}"
    names = [_cacheability(outer), _cacheability(inner)]
    return f"Normal-{names[0]}" if names[0] == names[1] else f"Normal-i{names[1]}-o{names[0]}"


def _cacheability(nibble: int) -> str:
    if nibble == 4:
        return "NC"
    policy = "WB" if nibble & 4 else "WT"
    return policy if nibble & 8 else f"{policy}-transient"

# SPDX-License-Identifier: GPL-2.0-or-later
"""Stream table entries and descriptors in words, for the people who look at a walk."""

from functools import lru_cache
from typing import Final

from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.contexts import CD, L1CD
from machine.iommu.smmuv3.explain1 import REMEMBERED, describe_cd, describe_descriptor1, describe_l1cd
from machine.iommu.smmuv3.ste import CONFIG_ILLEGAL, Ste0, Ste1, Ste2, Ste3, decode_ste
from machine.iommu.smmuv3.streams import STE, L1Std
from machine.iommu.smmuv3.walk import ADDRESS, LAST_LEVEL, LeafDescriptor, Visit
from machine.iommu.smmuv3.walk1 import DESCRIPTOR1
from machine.iommu.unit import WalkStep

_CONFIG: Final = ("abort", "abort", "abort", "abort", "bypass", "S1", "S2", "S1+S2")
_SHAREABILITY: Final = ("NSH", "SH-reserved", "OSH", "ISH")
_SIZES: Final = ("512G", "1G", "2M", "4K")
_DEVICE: Final = ("Device-nGnRnE", "Device-nGnRE", "Device-nGRE", "Device-GRE")
_OPTIONS: Final = ("strw", "s1stalld", "eats")
_MASKS: Final = {name: Ste1.fields[name].mask for name in _OPTIONS}
_CACHEABILITY: Final = ("reserved", "NC", "WT", "WB")


def explain(visit: Visit, config: Smmuv3Config, mair: int = 0) -> WalkStep:
    """A visited structure with its meaning; ``mair`` are the attributes that stage 1 descriptors choose from."""
    if visit.name == DESCRIPTOR1 and visit.level is not None:
        meaning = describe_descriptor1(visit.words[0], visit.level, mair)
    elif visit.name == CD:
        meaning = describe_cd(visit.words)
    elif visit.name == L1CD:
        meaning = describe_l1cd(visit.words[0])
    elif visit.name == STE:
        meaning = describe_ste(visit.words, config)
    elif visit.level is None:
        meaning = describe_l1std(visit.words[0])
    else:
        meaning = describe_descriptor(visit.words[0], visit.level, config.xnx)
    return WalkStep(visit.name, visit.maddr, visit.words, meaning, visit.level, visit.slot)


def describe_l1std(descriptor: int) -> str:
    """A first-level stream table descriptor: ``Span=9 (256 STEs) L2Ptr=0x...``."""
    span = L1Std.span.get(descriptor)
    if not 1 <= span <= 11:
        return f"Span={span} (no STEs)"
    pointer = descriptor & L1Std.l2ptr.mask & -(64 << span - 1)
    return f"Span={span} ({1 << span - 1} STEs) L2Ptr={pointer:#x}"


@lru_cache(maxsize=REMEMBERED)
def describe_ste(words: tuple[int, ...], config: Smmuv3Config) -> str:
    """An STE: ``V Config=S2 VMID=3 T0SZ=16 SL0=2 PS=5 S2TTB=0x... R PTW``, and why it is illegal if it is."""
    low, attributes, stage2, table = words[:4]
    what = Ste0.config.get(low)
    parts = ["V" if low & 1 else "not valid", f"Config={_CONFIG[what]}"]
    if low & 1 and what & 1 and what & 4:
        parts.append(f"S1ContextPtr={low & Ste0.s1contextptr.mask:#x}")
        if Ste0.s1cdmax.get(low):
            parts.append(
                f"S1CDMax={Ste0.s1cdmax.get(low)} S1Fmt={('linear', '4K', '64K', 'reserved')[Ste0.s1fmt.get(low)]}"
                f" S1DSS={('terminate', 'bypass', 'substream0', 'reserved')[Ste1.s1dss.get(attributes)]}"
            )
        if not what & 2:
            parts.append(f"VMID={Ste2.s2vmid.get(stage2)}")
        parts += [
            f"{name.upper()}={Ste1.fields[name].get(attributes)}" for name in _OPTIONS if attributes & _MASKS[name]
        ]
    if low & 1 and what & 2 and what & 4:
        parts += [
            f"VMID={Ste2.s2vmid.get(stage2)}",
            f"T0SZ={Ste2.s2t0sz.get(stage2)}",
            f"SL0={Ste2.s2sl0.get(stage2)}",
            f"PS={Ste2.s2ps.get(stage2)}",
            f"S2TTB={table & Ste3.s2ttb.mask:#x}",
        ]
        parts += [
            name[2:].upper()
            for name in ("s2aa64", "s2r", "s2s", "s2affd", "s2ptw", "s2ha", "s2hd", "s2endi")
            if Ste2.fields[name].get(stage2)
        ]
        if Ste2.s2tg.get(stage2):
            parts.append(f"TG={('4K', '64K', '16K', 'reserved')[Ste2.s2tg.get(stage2)]}")
    if low & 1 and what & 4:
        if attributes & (Ste1.instcfg.mask | Ste1.privcfg.mask):
            parts.append(Ste1.describe(attributes & (Ste1.instcfg.mask | Ste1.privcfg.mask)))
        stream = decode_ste((low, attributes, stage2, table), config)
        if stream.config == CONFIG_ILLEGAL:
            parts.append(f"ILLEGAL: {stream.illegal}")
    return " ".join(parts)


@lru_cache(maxsize=REMEMBERED)
def describe_descriptor(descriptor: int, level: int, xnx: bool) -> str:
    """A stage 2 descriptor: ``block 2M -> 0x40000000 RW AF Normal-WB ISH``, ``table -> 0x...``, ``invalid``."""
    kind = descriptor & 3
    if not kind & 1:
        return "invalid"
    if level == LAST_LEVEL and kind == 1:
        return "reserved (block at level 3)"
    if not level and kind == 1:
        return "reserved (block at level 0)"
    if level != LAST_LEVEL and kind == 3:
        return f"table -> {descriptor & ADDRESS:#x}"
    size = _SIZES[level]
    output = descriptor & ADDRESS & -(1 << 39 - 9 * level)
    parts = [f"{'page' if level == LAST_LEVEL else 'block'} {size} -> {output:#x}"]
    parts.append(("no access", "RO", "WO", "RW")[LeafDescriptor.s2ap.get(descriptor)])
    parts.append("AF" if LeafDescriptor.af.get(descriptor) else "AF=0")
    parts.append(describe_memory_type(LeafDescriptor.memattr.get(descriptor)))
    parts.append(_SHAREABILITY[LeafDescriptor.sh.get(descriptor)])
    execute_never = LeafDescriptor.xn.get(descriptor)
    if xnx and execute_never:
        parts.append(("", "XN-EL1", "XN", "XN-EL0")[execute_never])
    elif execute_never & 2:
        parts.append("XN")
    if LeafDescriptor.contiguous.get(descriptor):
        parts.append("contiguous")
    if LeafDescriptor.dbm.get(descriptor):
        parts.append("DBM")
    if LeafDescriptor.software.get(descriptor):
        parts.append(f"software={LeafDescriptor.software.get(descriptor):#x}")
    return " ".join(parts)


def describe_memory_type(memattr: int) -> str:
    """Stage 2 MemAttr[3:0] (FWB off): ``Normal-WB``, ``Normal-NC``, ``Device-nGnRE``, ..."""
    outer, inner = memattr >> 2, memattr & 3
    if not outer:
        return _DEVICE[inner]
    if not inner:
        return "MemAttr-reserved"
    if outer == inner:
        return f"Normal-{_CACHEABILITY[outer]}"
    return f"Normal-i{_CACHEABILITY[inner]}-o{_CACHEABILITY[outer]}"

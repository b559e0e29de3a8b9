# SPDX-License-Identifier: GPL-2.0-or-later
"""The context descriptor: its layout, which values are ILLEGAL, and what a legal one asks for (IHI 0070, 5.4)."""

from typing import Final, NamedTuple

from base.bits import Layout, bit, bits
from machine.iommu.smmuv3.config import OAS_BITS, Smmuv3Config
from machine.iommu.smmuv3.ste import EL2, Stage1
from machine.iommu.smmuv3.tlb import GLOBAL, Stage1Tag

CD_BYTES: Final = 64


class Cd0(Layout):
    """CD, first 64-bit word (5.4)."""

    asid = bits(63, 48)
    aset = bit(47)
    a = bit(46)
    r = bit(45)
    s = bit(44)
    ha = bit(43)
    hd = bit(42)
    aa64 = bit(41)
    pan = bit(40)
    tbi1 = bit(39)
    tbi0 = bit(38)
    uwxn = bit(37)
    wxn = bit(36)
    affd = bit(35)
    ips = bits(34, 32)
    v = bit(31)
    epd1 = bit(30)
    sh1 = bits(29, 28)
    or1 = bits(27, 26)
    ir1 = bits(25, 24)
    tg1 = bits(23, 22)
    t1sz = bits(21, 16)
    endi = bit(15)
    epd0 = bit(14)
    sh0 = bits(13, 12)
    or0 = bits(11, 10)
    ir0 = bits(9, 8)
    tg0 = bits(7, 6)
    t0sz = bits(5, 0)


class CdTable(Layout):
    """Words 1 and 2: the tables of the low and of the high half."""

    ttb = bits(51, 4)
    had = bit(1)
    nscfg = bit(0)


TG0_4K: Final = 0
TG1_4K: Final = 2


class Half(NamedTuple):
    """One of the two ranges of virtual addresses, and its tables."""

    upper: bool
    disabled: bool
    """EPD: nothing is walked."""
    root: int
    start_level: int
    input_bits: int
    """64 - TxSZ."""
    top_byte_ignored: bool
    hierarchical: bool
    """Table descriptors restrict what lies below them (HAD is 0)."""


class Context(NamedTuple):
    """What a CD says, decoded once."""

    illegal: str = ""
    """The first rule of 5.4.2 that it breaks; then nothing else counts."""
    halves: tuple[Half | None, Half | None] = (None, None)
    """By address bit 55; an EL2 context has no upper half."""
    tag: Stage1Tag = (0, 0)
    """Under which its translations are cached."""
    global_tag: Stage1Tag | None = None
    """The same for pages that are not nG; ``None`` in the EL2 world, where every page is the world's."""
    oversize: int = 0
    """Descriptor address bits above the effective IPS."""
    affd: bool = False
    sets_accessed: bool = False
    sets_dirty: bool = False
    one_privilege: bool = False
    """The EL2 world: every access is privileged."""
    wxn: bool = False
    pan: bool = False
    records: bool = False
    stalls: bool = False
    mair: int = 0


def decode_cd(cd: tuple[int, int, int, int], stage1: Stage1, config: Smmuv3Config) -> Context:
    """Decode the first four words of a CD reached through ``stage1``; total over every bit pattern (CdIllegal)."""
    low = cd[0]
    fault = _illegal(low, stage1, config)
    if fault:
        return Context(illegal=fault)
    el2 = stage1.space == EL2
    output_bits = min(OAS_BITS[min(Cd0.ips.get(low), 6)], config.oas)
    lower = _half(False, low, cd[1], el2, output_bits, config)
    upper = None if el2 else _half(True, low, cd[2], el2, output_bits, config)
    for half in (lower, upper):
        if isinstance(half, str):
            return Context(illegal=half)
    asid = 0 if el2 else Cd0.asid.get(low)
    accessed = bool(Cd0.ha.get(low))
    return Context(
        halves=(lower, upper),  # type: ignore[arg-type]
        tag=(stage1.space, asid),
        global_tag=None if el2 else (stage1.space, GLOBAL - Cd0.aset.get(low)),
        oversize=(1 << 48) - (1 << output_bits),
        affd=bool(Cd0.affd.get(low)),
        sets_accessed=accessed,
        sets_dirty=accessed and bool(Cd0.hd.get(low)),
        one_privilege=el2,
        wxn=bool(Cd0.wxn.get(low)),
        pan=not el2 and bool(Cd0.pan.get(low)),
        records=bool(Cd0.r.get(low)),
        stalls=bool(Cd0.s.get(low)),
        mair=cd[3],
    )


def _illegal(low: int, stage1: Stage1, config: Smmuv3Config) -> str:
    """The rules of 5.4.2 that concern the first word but for its two ranges; empty if all are kept."""
    stalls = Cd0.s.get(low)
    dirty = Cd0.hd.get(low)
    el2 = stage1.space == EL2
    walks = el2 or not (Cd0.epd0.get(low) and Cd0.epd1.get(low))
    rules = (
        (not Cd0.v.get(low), "V is 0"),
        (stalls and not stage1.may_stall, "S is 1 although STE.S1STALLD is"),
        (not Cd0.a.get(low), "A is 0, IDR0.TERM_MODEL has aborts only"),
        (stalls and config.stall_model == 1, "S is 1, IDR0.STALL_MODEL has no stalls"),
        (not stalls and config.stall_model == 2, "S is 0, IDR0.STALL_MODEL has nothing but stalls"),
        (walks and Cd0.endi.get(low), "ENDI is 1, IDR0.TTENDIAN is little-endian only"),
        (not Cd0.aa64.get(low), "AA64 is 0, IDR0.TTF has no AArch32 tables"),
        ((Cd0.ha.get(low) or dirty) and not config.httu, "HA or HD is 1, IDR0.HTTU is 0"),
        (dirty and config.httu < 2, "HD is 1, IDR0.HTTU has no dirty state"),
        (not el2 and Cd0.asid.get(low) >> 8 and not config.asid16, "ASID has more than 8 bits, IDR0.ASID16 is 0"),
    )
    return next((rule for broken, rule in rules if broken), "")


def _half(upper: bool, low: int, table: int, el2: bool, output_bits: int, config: Smmuv3Config) -> Half | str:
    """One range, or which of its fields is ILLEGAL; a disabled range is not looked at (5.4.1.1)."""
    number = "1" if upper else "0"
    fields = Cd0.fields
    ignored = bool(fields["tbi" + number].get(low))
    if not el2 and fields["epd" + number].get(low):
        return Half(upper, True, 0, 0, 0, ignored, False)
    size = fields[f"t{number}sz"].get(low)
    if not 16 <= size <= 39:
        return f"T{number}SZ {size} is out of range"
    if fields["tg" + number].get(low) != (TG1_4K if upper else TG0_4K):
        return f"TG{number} is not 4KB"
    base = table & CdTable.ttb.mask
    if base >> output_bits:
        return f"TTB{number} lies beyond {output_bits} bits"
    input_bits = 64 - size
    start_level = 3 - (input_bits - 13) // 9
    root = base & -(8 << input_bits - (39 - 9 * start_level))
    hierarchical = not (config.had and CdTable.had.get(table))
    return Half(upper, False, root, start_level, input_bits, ignored, hierarchical)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The stream table entry: its layout, which values are ILLEGAL, and what a legal one asks for (IHI 0070, 5.2)."""

from typing import Final, NamedTuple

from base.bits import Layout, bit, bits
from machine.iommu.smmuv3.config import OAS_BITS, Smmuv3Config
from machine.iommu.smmuv3.events import INSTRUCTION, PRIVILEGED
from machine.iommu.smmuv3.walk import (
    ALLOW_FETCH,
    ALLOW_PRIVILEGED_FETCH,
    ALLOW_PRIVILEGED_READ,
    ALLOW_PRIVILEGED_WRITE,
    ALLOW_READ,
    ALLOW_WRITE,
    Stage2,
    Stage2Controls,
)


class Ste0(Layout):
    """STE, first 64-bit word (5.2)."""

    s1cdmax = bits(63, 59)
    s1contextptr = bits(55, 6)
    s1fmt = bits(5, 4)
    config = bits(3, 1)
    v = bit(0)


class Ste1(Layout):
    instcfg = bits(51, 50)
    privcfg = bits(49, 48)
    nscfg = bits(47, 46)
    shcfg = bits(45, 44)
    alloccfg = bits(40, 37)
    mtcfg = bit(36)
    memattr = bits(35, 32)
    strw = bits(31, 30)
    eats = bits(29, 28)
    s1stalld = bit(27)
    s1mpam = bit(26)
    s2fwb = bit(25)
    mev = bit(19)
    ppar = bit(18)
    dcp = bit(17)
    cont = bits(16, 13)
    dre = bit(12)
    s1csh = bits(7, 6)
    s1cor = bits(5, 4)
    s1cir = bits(3, 2)
    s1dss = bits(1, 0)


class Ste2(Layout):
    s2r = bit(58)
    s2s = bit(57)
    s2ha = bit(56)
    s2hd = bit(55)
    s2ptw = bit(54)
    s2affd = bit(53)
    s2endi = bit(52)
    s2aa64 = bit(51)
    s2ps = bits(50, 48)
    s2tg = bits(47, 46)
    s2sh0 = bits(45, 44)
    s2or0 = bits(43, 42)
    s2ir0 = bits(41, 40)
    s2sl0 = bits(39, 38)
    s2t0sz = bits(37, 32)
    s2vmid = bits(15, 0)


class Ste3(Layout):
    s2ttb = bits(51, 4)


CONFIG_ABORT: Final = "abort"
CONFIG_BYPASS: Final = "bypass"
CONFIG_TRANSLATE: Final = "translate"
CONFIG_ILLEGAL: Final = "illegal"

LINEAR: Final = 0
LEAF_4K: Final = 1
LEAF_64K: Final = 2
"""STE.S1Fmt."""

DSS_TERMINATE: Final = 0
DSS_BYPASS: Final = 1
DSS_SUBSTREAM0: Final = 2
"""STE.S1DSS: what a transaction without a SubstreamID is, where there are substreams."""

EATS_FULL: Final = 1
EATS_SPLIT: Final = 2

EL2: Final = -1
EL2_E2H: Final = -2
"""Where cached translations of the EL2 worlds live instead of under a VMID."""


class Stage1(NamedTuple):
    """The stage 1 half of a stream's configuration: where its context descriptors are."""

    pointer: int
    """Address of the CD or of the table: intermediate where stage 2 translates, else machine."""
    log2count: int
    """log2 of the number of CDs; 0: there are no substreams."""
    form: int
    """``LINEAR``, ``LEAF_4K`` or ``LEAF_64K``."""
    default: int
    """``DSS_*``."""
    space: int
    """What tags its translations beside the ASID: the VMID, ``EL2`` or ``EL2_E2H``."""
    may_stall: bool
    """STE.S1STALLD is 0."""


class Stream(NamedTuple):
    """What an STE says, decoded once."""

    config: str
    """One of the ``CONFIG_*`` constants."""
    need_read: int = ALLOW_READ
    """``ALLOW_*`` bit that a read needs at stage 2: STE.INSTCFG may make reads instruction fetches."""
    read_attributes: int = 0
    """InD and PnU of a read, in place for an event's second word."""
    write_attributes: int = 0
    stage2: Stage2 | None = None
    illegal: str = ""
    """For an illegal STE: the first rule of 5.2.2 that it breaks."""
    stage1: Stage1 | None = None
    need_read1: int = ALLOW_READ
    need_write1: int = ALLOW_WRITE
    """The same at stage 1, which tells privileged from unprivileged."""
    eats: int = 0
    """STE.EATS where it is not IGNORED; reserved values count as 0."""


ABORT: Final = Stream(CONFIG_ABORT)


def decode_ste(ste: tuple[int, int, int, int], config: Smmuv3Config, e2h: bool = False) -> Stream:
    """Decode the first four words of an STE; total over every bit pattern (5.2.2, SteIllegal).

    ``e2h``: CR2.E2H, which chooses between the two EL2 worlds.
    """
    low, attributes, stage2_word, table_word = ste
    if not low & 1:
        return Stream(CONFIG_ILLEGAL, illegal="V is 0")
    what = Ste0.config.get(low)
    if not what & 4:
        return ABORT
    if what & 1 and not config.stage1:
        return Stream(CONFIG_ILLEGAL, illegal="Config selects stage 1, which IDR0.S1P lacks")
    if what & 2 and not config.stage2:
        return Stream(CONFIG_ILLEGAL, illegal="Config selects stage 2, which IDR0.S2P lacks")
    fetches = privileged = False
    if config.perms_override:
        fetches = Ste1.instcfg.get(attributes) == 3
        privileged = Ste1.privcfg.get(attributes) == 3
    need_read, need_read1, need_write1 = ALLOW_READ, ALLOW_READ, ALLOW_WRITE
    if privileged:
        need_read1, need_write1 = ALLOW_PRIVILEGED_READ, ALLOW_PRIVILEGED_WRITE
    if fetches:
        need_read = need_read1 = ALLOW_PRIVILEGED_FETCH if privileged else ALLOW_FETCH
    write_attributes = PRIVILEGED if privileged else 0
    read_attributes = write_attributes | (INSTRUCTION if fetches else 0)
    if what == 4:
        return Stream(CONFIG_BYPASS, need_read, read_attributes, write_attributes)
    stalls = Ste2.s2s.get(stage2_word)
    eats = Ste1.eats.get(attributes) if config.ats else 0
    if eats == EATS_SPLIT and (what != 7 or stalls or not config.split_ats):
        return Stream(CONFIG_ILLEGAL, illegal="EATS is split-stage, which wants both stages, S2S 0 and IDR0.NS1ATS 0")
    if eats == EATS_FULL and what & 2 and stalls:
        return Stream(CONFIG_ILLEGAL, illegal="EATS is 1 although S2S is 1")
    stage1 = decode_stage1(low, attributes, stage2_word, config, e2h) if what & 1 else None
    if isinstance(stage1, str):
        return Stream(CONFIG_ILLEGAL, illegal=stage1)
    stage2 = decode_stage2(stage2_word, table_word, config) if what & 2 else None
    if isinstance(stage2, str):
        return Stream(CONFIG_ILLEGAL, illegal=stage2)
    return Stream(
        CONFIG_TRANSLATE,
        need_read,
        read_attributes,
        write_attributes,
        stage2,
        "",
        stage1,
        need_read1,
        need_write1,
        eats if eats in (EATS_FULL, EATS_SPLIT) else 0,
    )


def decode_stage1(low: int, attributes: int, stage2_word: int, config: Smmuv3Config, e2h: bool) -> Stage1 | str:
    """The stage 1 fields, or which of them is ILLEGAL."""
    space = Ste2.s2vmid.get(stage2_word) if config.stage2 else 0
    if config.hyp and not Ste0.config.get(low) & 2:
        world = Ste1.strw.get(attributes)
        if world & 1:
            return f"STRW {world} is reserved"
        if world:
            space = EL2_E2H if e2h else EL2
    if space >> 8 > 0 and not config.vmid16:
        return "S2VMID has more than 8 bits, IDR0.VMID16 is 0"
    stalld = Ste1.s1stalld.get(attributes)
    if stalld and config.stall_model:
        return "S1STALLD is 1, IDR0.STALL_MODEL leaves no choice"
    log2count = Ste0.s1cdmax.get(low) if config.ssid_bits else 0
    if log2count > config.ssid_bits:
        return f"S1CDMax {log2count} exceeds IDR1.SSIDSIZE {config.ssid_bits}"
    form = Ste0.s1fmt.get(low) if log2count else LINEAR
    if form not in (LEAF_4K, LEAF_64K):
        form = LINEAR
    if form and not config.two_level_cd:
        return "S1Fmt is two-level, IDR0.CD2L is 0"
    pointer = low & Ste0.s1contextptr.mask
    if pointer >> config.oas:
        return f"S1ContextPtr lies beyond {config.oas} bits"
    default = Ste1.s1dss.get(attributes)
    return Stage1(
        pointer=pointer & -table_bytes(form, log2count),
        log2count=log2count,
        form=form,
        default=default if default != 3 else DSS_TERMINATE,
        space=space,
        may_stall=not stalld,
    )


def table_bytes(form: int, log2count: int) -> int:
    """Size and alignment of what S1ContextPtr points to: CDs, or first-level descriptors, 64 bytes at least."""
    if form == LINEAR:
        return 64 << log2count
    return max(64, 8 << max(0, log2count - (6 if form == LEAF_4K else 10)))


def decode_stage2(word: int, table_word: int, config: Smmuv3Config) -> Stage2 | str:
    """The stage 2 fields, or which of them is ILLEGAL."""
    stalls = Ste2.s2s.get(word)
    if stalls and config.stall_model == 1:
        return "S2S is 1, IDR0.STALL_MODEL has no stalls"
    if not stalls and config.stall_model == 2:
        return "S2S is 0, IDR0.STALL_MODEL has nothing but stalls"
    if not Ste2.s2aa64.get(word):
        return "S2AA64 is 0, IDR0.TTF has no AArch32 tables"
    accessed, dirty = Ste2.s2ha.get(word), Ste2.s2hd.get(word)
    if (accessed and not config.httu) or (dirty and config.httu < 2):
        return f"S2HA {accessed} S2HD {dirty} is more than IDR0.HTTU {config.httu} offers"
    if Ste2.s2tg.get(word):
        return "S2TG is not 4KB"
    output_bits = min(OAS_BITS[min(Ste2.s2ps.get(word), 6)], config.oas)
    base = table_word & Ste3.s2ttb.mask
    if base >> output_bits:
        return f"S2TTB lies beyond {output_bits} bits"
    t0sz = Ste2.s2t0sz.get(word)
    if not max(16, 64 - config.oas) <= t0sz <= 39:
        return f"S2T0SZ {t0sz} is out of range"
    start_level = 2 - Ste2.s2sl0.get(word)
    if start_level < 0 or (not start_level and config.oas < 44):
        return f"S2SL0 {Ste2.s2sl0.get(word)} is reserved"
    input_bits = 64 - t0sz
    resolved = input_bits - (39 - 9 * start_level)
    if not 1 <= resolved <= 13:
        return f"S2SL0 {Ste2.s2sl0.get(word)} does not fit S2T0SZ {t0sz}"
    if Ste2.s2endi.get(word):
        return "S2ENDI is 1, IDR0.TTENDIAN is little-endian only"
    vmid = Ste2.s2vmid.get(word)
    if vmid >> 8 and not config.vmid16:
        return "S2VMID has more than 8 bits, IDR0.VMID16 is 0"
    return Stage2(
        vmid=vmid,
        root=base & -(8 << resolved),
        start_level=start_level,
        input_bits=input_bits,
        oversize=(1 << 48) - (1 << output_bits),
        affd=bool(Ste2.s2affd.get(word)),
        xnx=config.xnx,
        controls=Stage2Controls(
            records=bool(Ste2.s2r.get(word)),
            stalls=bool(stalls),
            protects_walks=bool(Ste2.s2ptw.get(word)),
            sets_accessed=bool(accessed),
            sets_dirty=bool(accessed and dirty),
        ),
    )

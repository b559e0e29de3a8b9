# SPDX-License-Identifier: GPL-2.0-or-later
"""Stream table entries, context descriptors, commands and registers as this driver uses them (IHI 0070)."""

from typing import Final

from base.bits import Layout, bit, bits

WORDS: Final = 8
"""64-bit words in an STE and in a CD."""
Entry = tuple[int, ...]
"""The eight words of an STE or a CD."""
EMPTY: Final[Entry] = (0,) * WORDS


class Ste0(Layout):
    """5.2, first word."""

    s1cdmax = bits(63, 59)
    s1contextptr = bits(51, 6)
    s1fmt = bits(5, 4)
    cfg = bits(3, 1)
    v = bit(0)


class Ste1(Layout):
    shcfg = bits(45, 44)
    strw = bits(31, 30)
    eats = bits(29, 28)
    s1stalld = bit(27)
    s2fwb = bit(25)
    mev = bit(19)
    s1csh = bits(7, 6)
    s1cor = bits(5, 4)
    s1cir = bits(3, 2)
    s1dss = bits(1, 0)


class Ste2(Layout):
    s2r = bit(58)
    s2s = bit(57)
    s2ptw = bit(54)
    s2endi = bit(52)
    s2aa64 = bit(51)
    vtcr = bits(50, 32)
    s2vmid = bits(15, 0)


class Ste3(Layout):
    s2ttb = bits(51, 4)


CFG_ABORT: Final = 0
CFG_BYPASS: Final = 4
CFG_S1: Final = 5
CFG_S2: Final = 6
CFG_NESTED: Final = 7
S1: Final = 1
S2: Final = 2
"""Bits of Config."""
S1FMT_LINEAR: Final = 0
S1FMT_64K_L2: Final = 2
S1DSS_TERMINATE: Final = 0
S1DSS_BYPASS: Final = 1
S1DSS_SSID0: Final = 2
EATS_TRANS: Final = 1
EATS_S1CHK: Final = 2
SHCFG_INCOMING: Final = 1
WRITE_BACK: Final = 1
INNER_SHAREABLE: Final = 3


class Cd0(Layout):
    """5.4, first word."""

    asid = bits(63, 48)
    aset = bit(47)
    a = bit(46)
    r = bit(45)
    s = bit(44)
    ha = bit(43)
    hd = bit(42)
    aa64 = bit(41)
    ips = bits(34, 32)
    v = bit(31)
    epd1 = bit(30)
    endi = bit(15)
    epd0 = bit(14)
    sh0 = bits(13, 12)
    orgn0 = bits(11, 10)
    irgn0 = bits(9, 8)
    tg0 = bits(7, 6)
    t0sz = bits(5, 0)


class Cd1(Layout):
    ttb0 = bits(51, 4)


class L1Cd(Layout):
    """First-level descriptor of a two-level table of CDs (5.3)."""

    l2ptr = bits(51, 12)
    v = bit(0)


MAIR: Final = 0xFF
"""Attribute 0 is Normal write-back."""


class Tlbi(Layout):
    """First word of commands that name a VMID and an ASID."""

    asid = bits(63, 48)
    vmid = bits(47, 32)
    op = bits(7, 0)


class Config(Layout):
    """First word of commands that name a stream."""

    sid = bits(63, 32)
    ssid = bits(31, 12)
    op = bits(7, 0)


CMD_CFGI_STE: Final = 0x03
CMD_CFGI_STE_RANGE: Final = 0x04
CMD_CFGI_CD: Final = 0x05
CMD_CFGI_CD_ALL: Final = 0x06
CMD_TLBI_NH_ASID: Final = 0x11
CMD_TLBI_NH_VA: Final = 0x12
CMD_TLBI_NSNH_ALL: Final = 0x30
CMD_SYNC: Final = 0x46

Command = tuple[int, int]


def cfgi_ste(sid: int) -> Command:
    return Config.pack(op=CMD_CFGI_STE, sid=sid), 1


def cfgi_cd(sid: int, ssid: int, leaf: bool) -> Command:
    return Config.pack(op=CMD_CFGI_CD, sid=sid, ssid=ssid), int(leaf)


def tlbi_asid(asid: int) -> Command:
    return Tlbi.pack(op=CMD_TLBI_NH_ASID, asid=asid), 0


def tlbi_va(asid: int, va: int) -> Command:
    return Tlbi.pack(op=CMD_TLBI_NH_VA, asid=asid), va & -4096


# Registers (6.3).
IDR0: Final = 0x00
IDR1: Final = 0x04
IDR5: Final = 0x14
CR0: Final = 0x20
CR0ACK: Final = 0x24
CR1: Final = 0x28
CR2: Final = 0x2C
GERROR: Final = 0x60
GERRORN: Final = 0x64
STRTAB_BASE: Final = 0x80
STRTAB_BASE_CFG: Final = 0x88
CMDQ_BASE: Final = 0x90
CMDQ_PROD: Final = 0x98
CMDQ_CONS: Final = 0x9C
EVENTQ_BASE: Final = 0xA0
EVENTQ_PROD: Final = 0x100A8
EVENTQ_CONS: Final = 0x100AC

CR0_SMMUEN: Final = 1
CR0_EVENTQEN: Final = 4
CR0_CMDQEN: Final = 8


class Idr0(Layout, width=32):
    cd2l = bit(19)
    s1p = bit(1)
    asid16 = bit(12)
    stall_model = bits(25, 24)


class Idr1(Layout, width=32):
    ssidsize = bits(10, 6)
    sidsize = bits(5, 0)


class Idr5(Layout, width=32):
    oas = bits(2, 0)

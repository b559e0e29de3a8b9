# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers, stream table entries, commands and events as the driver reads and writes them (IHI 0070, 4 to 7).

Only what this driver uses is declared.  Nothing here is shared with anybody who models the hardware.
"""

from typing import Final

from base.bits import Layout, bit, bits

# ------------------------------------------------------------------------------------- registers (6.2), by offset

IDR0: Final = 0x00
IDR1: Final = 0x04
IDR3: Final = 0x0C
IDR5: Final = 0x14
CR0: Final = 0x20
CR0ACK: Final = 0x24
CR1: Final = 0x28
CR2: Final = 0x2C
GBPA: Final = 0x44
IRQ_CTRL: Final = 0x50
IRQ_CTRLACK: Final = 0x54
GERROR: Final = 0x60
GERRORN: Final = 0x64
GERROR_IRQ_CFG0: Final = 0x68
STRTAB_BASE: Final = 0x80
STRTAB_BASE_CFG: Final = 0x88
CMDQ_BASE: Final = 0x90
CMDQ_PROD: Final = 0x98
CMDQ_CONS: Final = 0x9C
EVENTQ_BASE: Final = 0xA0
EVENTQ_IRQ_CFG0: Final = 0xB0
EVENTQ_IRQ_CFG1: Final = 0xB8
EVENTQ_IRQ_CFG2: Final = 0xBC
EVENTQ_PROD: Final = 0x1_00A8
"""In register page 1."""
EVENTQ_CONS: Final = 0x1_00AC


class Idr0(Layout, width=32):
    st_level = bits(28, 27, "1: two-level stream tables")
    ttendian = bits(22, 21, "0 both, 2 little, 3 big")
    cd2l = bit(19)
    vmid16 = bit(18)
    msi = bit(13)
    ats = bit(10, "devices may cache translations")
    hyp = bit(9)
    cohacc = bit(4)
    ttf = bits(3, 2, "bit 1 of it: AArch64 tables")
    s1p = bit(1)
    s2p = bit(0)


class Idr1(Layout, width=32):
    tables_preset = bit(30)
    queues_preset = bit(29)
    cmdqs = bits(25, 21)
    eventqs = bits(20, 16)
    ssidsize = bits(10, 6)
    sidsize = bits(5, 0)


class Idr3(Layout, width=32):
    bbml = bits(12, 11)
    ril = bit(10)


class Idr5(Layout, width=32):
    gran4k = bit(4)
    oas = bits(2, 0)


class Cr0(Layout, width=32):
    atschk = bit(4, "translated requests are checked against the stream table")
    cmdqen = bit(3)
    eventqen = bit(2)
    smmuen = bit(0)


class Cr1(Layout, width=32):
    """How the unit reaches its tables and queues: shareability, outer and inner cacheability."""

    table_sh = bits(11, 10)
    table_oc = bits(9, 8)
    table_ic = bits(7, 6)
    queue_sh = bits(5, 4)
    queue_oc = bits(3, 2)
    queue_ic = bits(1, 0)


class Cr2(Layout, width=32):
    ptm = bit(2, "keep out of the CPUs' broadcast TLB maintenance")
    recinvsid = bit(1, "record requests with an unknown stream id")


class Gbpa(Layout, width=32):
    """What happens to DMA while the unit is off."""

    update = bit(31)
    abort = bit(20)


DEVICE_NGNRE: Final = 1
"""Memory attribute of a message interrupt in the IRQ_CFG2 registers."""


class Irq(Layout, width=32):
    eventq = bit(2)
    gerror = bit(0)


class Gerror(Layout, width=32):
    sfm = bit(8)
    msi_gerror_abt = bit(7)
    msi_priq_abt = bit(6)
    msi_eventq_abt = bit(5)
    msi_cmdq_abt = bit(4)
    priq_abt = bit(3)
    eventq_abt = bit(2)
    cmdq = bit(0)


class StrtabBase(Layout):
    ra = bit(62)
    address = bits(51, 6)


class StrtabBaseCfg(Layout, width=32):
    fmt = bits(17, 16, "0 linear, 1 two-level")
    split = bits(10, 6)
    log2size = bits(5, 0)


class QueueBase(Layout):
    allocate = bit(62, "RA or WA")
    address = bits(51, 5)
    log2size = bits(4, 0)


class CmdqCons(Layout, width=32):
    err = bits(30, 24)
    rd = bits(19, 0, "index and, above it, the wrap bit")


CERROR_ABT: Final = 2
"""CMDQ_CONS.ERR: the unit could not read the queue.  1 is an illegal command."""
CERROR_ATC_INV_SYNC: Final = 3
"""A CMD_ATC_INV before this CMD_SYNC was not answered."""
OVERFLOW: Final = 1 << 31
"""EVENTQ_PROD.OVFLG; in EVENTQ_CONS the acknowledgement OVACKFLG."""

# ------------------------------------------------------------------------------------------- stream table (5.1, 5.2)


class L1Descriptor(Layout):
    l2ptr = bits(51, 6)
    span = bits(4, 0, "0 invalid, else 2^(span - 1) entries")


class Ste0(Layout):
    s1cdmax = bits(63, 59)
    s1contextptr = bits(51, 6)
    s1fmt = bits(5, 4)
    config = bits(3, 1)
    v = bit(0)


class Ste1(Layout):
    shcfg = bits(45, 44)
    eats = bits(29, 28, "1: the device may cache machine addresses")
    s1csh = bits(7, 6)
    s1cor = bits(5, 4)
    s1cir = bits(3, 2)
    s1dss = bits(1, 0)


class Ste2(Layout):
    """Bits 50:32 are laid out like VTCR_EL2[18:0]."""

    s2r = bit(58, "record stage 2 faults")
    s2ptw = bit(54, "no stage 1 walks through Device memory")
    s2aa64 = bit(51)
    s2ps = bits(50, 48)
    s2tg = bits(47, 46, "0: 4 KiB")
    s2sh0 = bits(45, 44)
    s2or0 = bits(43, 42)
    s2ir0 = bits(41, 40)
    s2sl0 = bits(39, 38)
    s2t0sz = bits(37, 32)
    s2vmid = bits(15, 0)


class Ste3(Layout):
    s2ttb = bits(51, 4)


CONFIG_ABORT: Final = 0
CONFIG_BYPASS: Final = 4
CONFIG_STAGE_2: Final = 6
CONFIG_NESTED: Final = 7
SHCFG_INCOMING: Final = 1
STE_WORDS: Final = 8

# ------------------------------------------------------------------------------------------------- commands (4.3, 4.4)


class Command(Layout):
    """First word of the commands that name a stream."""

    sid = bits(63, 32)
    op = bits(7, 0)


class Tlbi(Layout):
    """First word of the TLBI commands.  A range is (num + 1) << scale granules, used when the second word has tg."""

    vmid = bits(47, 32)
    scale = bits(24, 20)
    num = bits(16, 12)
    op = bits(7, 0)


class TlbiAddress(Layout):
    address = bits(63, 12)
    tg = bits(11, 10, "1: 4 KiB granules")
    leaf = bit(0, "last-level entries only")


class AtcInvAddress(Layout):
    address = bits(63, 12)
    size = bits(5, 0, "log2 of the pages, 52 for all")


class Sync(Layout):
    msi_data = bits(63, 32)
    msi_attr = bits(27, 24)
    msh = bits(23, 22)
    cs = bits(13, 12, "0 nothing, 1 interrupt or message")
    op = bits(7, 0)


class SyncAddress(Layout):
    msi_address = bits(51, 2)


CMD_CFGI_STE: Final = 0x03
CMD_CFGI_STE_RANGE: Final = 0x04
CMD_CFGI_CD: Final = 0x05
CMD_CFGI_CD_ALL: Final = 0x06
CMD_TLBI_NH_ALL: Final = 0x10
CMD_TLBI_NH_ASID: Final = 0x11
CMD_TLBI_NH_VA: Final = 0x12
CMD_TLBI_NH_VAA: Final = 0x13
CMD_TLBI_EL2_ALL: Final = 0x20
CMD_TLBI_S12_VMALL: Final = 0x28
CMD_TLBI_S2_IPA: Final = 0x2A
CMD_TLBI_NSNH_ALL: Final = 0x30
CMD_ATC_INV: Final = 0x40
CMD_SYNC: Final = 0x46
RANGE_ALL: Final = 31
"""CMD_CFGI_STE_RANGE's Range that makes it CMD_CFGI_ALL; otherwise it covers 2^(Range + 1) streams."""

# --------------------------------------------------------------------------------------------------------- events (7.3)


class Event0(Layout):
    sid = bits(63, 32)
    ssid = bits(31, 12)
    ssv = bit(11)
    code = bits(7, 0)


class Event1(Layout):
    s2 = bit(39, "stage 2 refused it")
    rnw = bit(35, "1: a read")


EVENT_NAMES: Final = {
    0x01: "F_UUT",
    0x02: "C_BAD_STREAMID",
    0x03: "F_STE_FETCH",
    0x04: "C_BAD_STE",
    0x05: "F_BAD_ATS_TREQ",
    0x06: "F_STREAM_DISABLED",
    0x07: "F_TRANSL_FORBIDDEN",
    0x08: "C_BAD_SUBSTREAMID",
    0x09: "F_CD_FETCH",
    0x0A: "C_BAD_CD",
    0x0B: "F_WALK_EABT",
    0x10: "F_TRANSLATION",
    0x11: "F_ADDR_SIZE",
    0x12: "F_ACCESS",
    0x13: "F_PERMISSION",
    0x20: "F_TLB_CONFLICT",
    0x21: "F_CFG_CONFLICT",
    0x24: "E_PAGE_REQUEST",
    0x25: "F_VMS_FETCH",
}
EVENTS_WITH_ADDRESS: Final = frozenset({0x01, 0x05, 0x07, 0x0B, 0x10, 0x11, 0x12, 0x13, 0x20, 0x24})
"""Events whose third word is the address that the device asked for and whose RnW bit counts."""

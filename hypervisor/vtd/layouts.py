# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers, table entries and descriptors that the driver reads and writes (VT-d specification, chapters 9 to 11).

Words are 64 bits unless a width is given; a 128-bit structure is two layouts, low word first.
"""

from typing import Final

from base.bits import Layout, bit, bits

VER: Final = 0x00
CAP: Final = 0x08
ECAP: Final = 0x10
GCMD: Final = 0x18
GSTS: Final = 0x1C
RTADDR: Final = 0x20
FSTS: Final = 0x34
FECTL: Final = 0x38
FEDATA: Final = 0x3C
FEADDR: Final = 0x40
FEUADDR: Final = 0x44
IQH: Final = 0x80
IQT: Final = 0x88
IQA: Final = 0x90


class Capability(Layout):
    """CAP, offset 08h (11.4.2)."""

    nfr = bits(47, 40, "number of fault recording registers, minus 1")
    psi = bit(39, "page-selective invalidation")
    slps_1g = bit(35)
    slps_2m = bit(34)
    fro = bits(33, 24, "offset of the fault recording registers, in 16 bytes")
    mgaw = bits(21, 16, "widest address that requests may carry, minus 1")
    sagaw_48 = bit(10, "4-level tables")
    sagaw_39 = bit(9, "3-level tables")
    cm = bit(7, "caching mode")
    rwbf = bit(4, "write buffers need flushing")
    nd = bits(2, 0, "domain ids: 2^(4 + 2 nd)")
    mamv = bits(53, 48, "largest address mask of a page-selective invalidation")
    dwd = bit(54, "drains writes")
    drd = bit(55, "drains reads")


class ExtendedCapability(Layout):
    """ECAP, offset 10h (11.4.3)."""

    nest = bit(26, "nested translation")
    pasid = bit(40)
    smts = bit(43, "scalable mode")
    ssts = bit(46, "second stage in scalable mode")
    fsts = bit(47, "first stage in scalable mode")
    iro = bits(17, 8, "offset of the IOTLB registers, in 16 bytes")
    sc = bit(7, "snoop control")
    pt = bit(6, "pass-through")
    dt = bit(2, "device TLBs")
    qi = bit(1, "queued invalidation")
    coherent = bit(0, "table walks are coherent with the processors' caches")


class GlobalCommand(Layout, width=32):
    """GCMD and GSTS, offsets 18h and 1Ch (11.4.4)."""

    te = bit(31, "translation")
    srtp = bit(30, "set root table pointer")
    wbf = bit(27, "flush write buffers")
    qie = bit(26, "queued invalidation")


class FaultStatus(Layout, width=32):
    """FSTS, offset 34h (11.4.9)."""

    fri = bits(15, 8, "index of the first pending record")
    ite = bit(6, "invalidation time-out")
    ice = bit(5, "invalidation completion error")
    iqe = bit(4, "invalidation queue error")
    ppf = bit(1, "a record is pending")
    pfo = bit(0, "records were lost")


class FaultRecordHigh(Layout):
    """Upper word of a fault recording register (11.4.14); the lower word is the page address."""

    f = bit(63, "valid; write 1 to clear")
    t = bit(62, "1: read, 0: write")
    at = bits(61, 60)
    pasid = bits(59, 40)
    pp = bit(31, "the request had a PASID")
    fr = bits(39, 32, "fault reason")
    sid = bits(15, 0)


class RootEntryLow(Layout):
    """Legacy root entry, lower word (9.1); the upper word is zero."""

    ctp = bits(63, 12)
    p = bit(0)


class ContextEntryLow(Layout):
    """Legacy context entry, lower word (9.3)."""

    slptptr = bits(63, 12)
    tt = bits(3, 2, "0 untranslated requests only, 1 device TLB as well, 2 pass-through")
    fpd = bit(1)
    p = bit(0)


class ContextEntryHigh(Layout):
    """Legacy context entry, upper word."""

    did = bits(23, 8)
    aw = bits(2, 0, "levels of the tree, minus 2")


class ContextCacheInvalidate(Layout):
    """Descriptor type 1, lower word (6.5.2.1); the upper word is zero."""

    fm = bits(49, 48)
    sid = bits(47, 32)
    did = bits(31, 16)
    g = bits(5, 4, "1 all, 2 domain, 3 device")
    type = bits(3, 0)


class IotlbInvalidate(Layout):
    """Descriptor type 2, lower word (6.5.2.3)."""

    did = bits(31, 16)
    dr = bit(7)
    dw = bit(6)
    g = bits(5, 4, "1 all, 2 domain, 3 page")
    type = bits(3, 0)


class IotlbInvalidateHigh(Layout):
    """Descriptor type 2, upper word."""

    addr = bits(63, 12)
    ih = bit(6, "only leaves changed")
    am = bits(5, 0, "2^am pages")


class DeviceTlbInvalidate(Layout):
    """Descriptor type 3, lower word (6.5.2.5)."""

    sid = bits(47, 32)
    type = bits(3, 0)


class DeviceTlbInvalidateHigh(Layout):
    """Descriptor type 3, upper word: with ``s``, the lowest 0 of the address from bit 12 up gives the size."""

    addr = bits(63, 12)
    s = bit(0)


class PasidIotlbInvalidate(Layout):
    """Descriptor type 6, lower word (6.5.2.4); the upper word is that of type 2."""

    pasid = bits(51, 32)
    did = bits(31, 16)
    g = bits(5, 4, "2 all of the PASID, 3 page")
    type = bits(3, 0)


class PasidCacheInvalidate(Layout):
    """Descriptor type 7, lower word (6.5.2.2); the upper word is zero."""

    pasid = bits(51, 32)
    did = bits(31, 16)
    g = bits(5, 4, "0 domain, 1 PASID, 3 all")
    type = bits(3, 0)


class ScalableContext(Layout):
    """Scalable-mode context entry, first word (9.4); the second says which PASID counts for requests without one."""

    directory = bits(63, 12)
    pdts = bits(11, 9, "directory of 2^(7 + pdts) entries")
    paside = bit(3, "requests with PASID")
    p = bit(0)


class PasidEntry0(Layout):
    """PASID table entry, first word (9.6)."""

    ssptptr = bits(63, 12)
    pgtt = bits(8, 6, "2 second stage, 3 nested, 4 pass-through")
    aw = bits(4, 2, "levels of the second stage, minus 2")
    p = bit(0)


class PasidEntry1(Layout):
    """PASID table entry, second word; the third is the first-stage table's address."""

    did = bits(15, 0)


class WaitDescriptor(Layout):
    """Descriptor type 5, lower word (6.5.2.8); the upper word is the status address."""

    data = bits(63, 32)
    fn = bit(6, "fence")
    sw = bit(5, "write the status")
    type = bits(3, 0)


FAULT_REASONS: Final = {
    0x1: "root entry not present",
    0x2: "context entry not present",
    0x3: "invalid context entry",
    0x4: "address beyond the width",
    0x5: "write without permission",
    0x6: "read without permission",
    0x7: "table not accessible",
    0x8: "root table not accessible",
    0x9: "context table not accessible",
    0xA: "reserved bit in root entry",
    0xB: "reserved bit in context entry",
    0xC: "reserved bit in second-stage entry",
    0xD: "blocked by translation type",
    0xE: "output in the interrupt range",
    0x41: "scalable context entry not present",
    0x46: "PASID beyond the directory",
    0x51: "PASID directory entry not present",
    0x59: "PASID entry not present",
    0x5B: "invalid PASID entry",
    0x70: "first-stage table not accessible",
    0x71: "first-stage entry not present",
    0x72: "reserved bit in first-stage entry",
    0x73: "first-stage root not accessible",
    0x74: "first-stage address beyond the second stage",
    0x75: "first-stage root not readable in the second stage",
    0x76: "first-stage entry not readable in the second stage",
    0x77: "first-stage entry not writable in the second stage",
    0x78: "second-stage table not accessible",
    0x79: "second-stage entry not present",
    0x7A: "reserved bit in second-stage entry",
    0x7B: "second-stage root not accessible",
    0x80: "address not canonical",
    0x81: "supervisor page",
    0x84: "address beyond the width",
    0x85: "write without permission",
    0x86: "read without permission",
}
"""Fault reasons (7.1.3): those of legacy mode, and from 40h on those of scalable mode that its tables can cause."""

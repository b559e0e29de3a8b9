# SPDX-License-Identifier: GPL-2.0-or-later
"""A board whose SMMUv3 has stage 1: context descriptors and stage 1 tables as numbers from the manuals."""

from smmuv3_board import Board, cfgi_ste, ste_stage2

from machine.iommu.smmuv3 import Smmuv3Config

SID = 8
PAGE1 = 0x743
"""Stage 1: valid page, AF, inner shareable, AP[1] (unprivileged), read-write, AttrIndx 0, global."""
BLOCK1 = 0x741
NG = 1 << 11
AF = 1 << 10
RO = 1 << 7
EL0 = 1 << 6
MAIR = 0x0000_0000_0044_04FF
"""0 Normal write-back, 1 Device-nGnRE, 2 Normal non-cacheable."""

SYNC = (0x46, 0)


def cfgi_cd(sid, ssid=0, leaf=1):
    return (0x05 | ssid << 12 | sid << 32, leaf)


def cfgi_cd_all(sid):
    return (0x06 | sid << 32, 0)


def nh_all(vmid):
    return (0x10 | vmid << 32, 0)


def nh_asid(vmid, asid):
    return (0x11 | vmid << 32 | asid << 48, 0)


def nh_va(vmid, asid, va, num=0, scale=0, tg=0, ttl=0, leaf=1):
    return (0x12 | num << 12 | scale << 20 | vmid << 32 | asid << 48, va & ~0xFFF | tg << 10 | ttl << 8 | leaf)


def nh_vaa(vmid, va, leaf=1):
    return (0x13 | vmid << 32, va & ~0xFFF | leaf)


def cd(asid, ttb0, t0sz=16, ttb1=None, t1sz=16, ips=5, extra=0, clear=0):
    """A legal CD: V, AA64, R, A; EPD1 unless there is a ``ttb1``."""
    low = t0sz | 1 << 31 | ips << 32 | 1 << 41 | 1 << 45 | 1 << 46 | asid << 48
    low |= 1 << 30 if ttb1 is None else t1sz << 16 | 2 << 22
    return ((low | extra) & ~clear, ttb0 or 0, ttb1 or 0, MAIR, 0, 0, 0, 0)


def ste_stage1(pointer, cdmax=0, fmt=0, dss=0, vmid=3, extra1=0):
    return (0b1011 | fmt << 4 | pointer | cdmax << 59, dss | 1 << 44 | extra1, vmid, 0, 0, 0, 0, 0)


def ste_nested(pointer, vmid, root, cdmax=0, fmt=0, dss=0, extra1=0, **stage2):
    _, attributes, dw2, dw3, *rest = ste_stage2(vmid, root, extra1=extra1, **stage2)
    return (0b1111 | fmt << 4 | pointer | cdmax << 59, attributes | dss, dw2, dw3, *rest)


class Stage1Board(Board):
    def __init__(self, capacity=None, replacement=None, two_level=False, **config):
        self.replacement = replacement
        settings = {"stage1": True, "ssid_bits": 8, "had": True, "httu": 2} | config
        super().__init__(Smmuv3Config(**settings), capacity, two_level=two_level, replacement=replacement)

    def set_cd(self, at, words, sid=SID, ssid=0, flush=True):
        for i, word in enumerate(words):
            self.memory.write64(at + 64 * ssid + 8 * i, word)
        if flush:
            self.command(cfgi_cd(sid, ssid), SYNC)

    def context(self, sid=SID, vmid=3, asid=5, strw=0, **fields):
        """A stream with stage 1 alone, one CD and an empty 48-bit table; returns (CD address, root)."""
        pointer, root = self.table(), self.table()
        self.set_cd(pointer, cd(asid, root, **fields), flush=False)
        self.set_ste(sid, ste_stage1(pointer, vmid=vmid, extra1=strw << 30))
        return pointer, root

    def nested(self, sid=SID, vmid=3, asid=5, pages=64, extra=0, **stage2):
        """A stream with both stages: intermediate addresses below RAM lead to themselves plus 8 MiB.

        Returns (intermediate address of the CD, of the stage 1 root, machine address of the stage 2 root).
        """
        root2 = self.table()
        self.ipa = 0x10_0000
        for page in range(pages):
            ipa = self.ipa + 0x1000 * page
            self.map(root2, ipa, ipa + OFFSET)
        pointer, root1 = self.ipa_table(), self.ipa_table()
        self.set_cd(pointer + OFFSET, cd(asid, root1, extra=extra), flush=False)
        self.set_ste(sid, ste_nested(pointer, vmid, root2, **stage2))
        return pointer, root1, root2

    def ipa_table(self):
        """The intermediate address of a fresh page of guest memory."""
        self.ipa += 0x1000
        return self.ipa - 0x1000

    def map1(self, root, va, pa, attributes=PAGE1, level=3, start=0, offset=0, tables=0):
        """Install a stage 1 leaf; the tables' pointers are intermediate addresses ``offset`` below machine ones."""
        table, at = root, start
        while True:
            shift = 39 - 9 * at
            slot = table + offset + 8 * (va >> shift & 511)
            if at == level:
                self.memory.write64(slot, pa | attributes)
                return slot
            entry = self.memory.read64(slot)
            if not entry & 1:
                entry = (self.ipa_table() if offset else self.table()) | tables | 3
                self.memory.write64(slot, entry)
            table = entry & 0xFFFF_FFFF_F000
            at += 1


OFFSET = 0x80_0000

__all__ = ["AF", "BLOCK1", "EL0", "NG", "OFFSET", "PAGE1", "RO", "SID", "SYNC", "Stage1Board", "cfgi_ste"]

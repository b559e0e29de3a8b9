# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine of ``vtd_machine`` with its unit in scalable mode.  Encodings are typed in from the specification."""

from vtd_machine import PS, SID, VtdMachine

from machine.iommu.vtd.config import VtdConfig

FS, SS, NESTED, PT = 1, 2, 3, 4
P, WRITE, USER, ACCESSED, DIRTY = 1, 2, 4, 1 << 5, 1 << 6
FULL = P | WRITE | USER
RID_PASID = 0x41
DID = 9


def pasid_iotlb(did, pasid):
    return (6 | 2 << 4 | did << 16 | pasid << 32, 0)


def pasid_iotlb_pages(did, pasid, iova, am=0, ih=0):
    return (6 | 3 << 4 | did << 16 | pasid << 32, iova & ~0xFFF | ih << 6 | am)


def pasid_cache(did=0, pasid=None, everything=False):
    granularity = 3 if everything else 0 if pasid is None else 1
    return (7 | granularity << 4 | did << 16 | (pasid or 0) << 32, 0)


class ScalableMachine(VtdMachine):
    def __init__(self, size=16 << 20, replacement=None, **config):
        super().__init__(VtdConfig(**{"scalable": True, **config}), size, replacement=replacement)
        self.tables = {}

    def set_root(self, address=None):
        super().set_root((self.root if address is None else address) | 1 << 10)

    def scalable_context(self, sid=SID, pdts=0, rid_pasid=RID_PASID, flags=0b1000, high=0):
        """``flags``: FPD 1, DTE 2, PASIDE 3.  Returns the address of the directory."""
        half = self.root + 16 * (sid >> 8) + (8 if sid & 0x80 else 0)
        table = self.memory.read64(half) & ~0xFFF
        if not table:
            table = self.page()
            self.memory.write64(half, table | 1)
        directory = self.tables.setdefault(sid, self.page())
        at = table + 32 * (sid & 0x7F)
        for number, word in enumerate((directory | pdts << 9 | flags | 1, rid_pasid | high, 0, 0)):
            self.memory.write64(at + 8 * number, word)
        return directory

    def pasid_entry_at(self, pasid=RID_PASID, sid=SID):
        at = self.tables[sid] + 8 * (pasid >> 6)
        table = self.memory.read64(at) & ~0xFFF
        if not table:
            table = self.page()
            self.memory.write64(at, table | 1)
        return table + 64 * (pasid & 63)

    def space(self, kind, pasid=RID_PASID, sid=SID, did=DID, ss=0, fs=0, aw=2, low=0, middle=0, high=0):
        """Write a PASID table entry; the last three are further bits of its first three words."""
        at = self.pasid_entry_at(pasid, sid)
        words = (1 | aw << 2 | kind << 6 | ss | low, did | middle, fs | high)
        for number, word in enumerate(words):
            self.memory.write64(at + 8 * number, word)
        return at

    def fs_entry_at(self, table, iova, level, top=4, flags=FULL):
        """Address of a first-stage entry, with the tables above it made as needed."""
        while True:
            at = table + 8 * (iova >> 9 * top + 3 & 511)
            if top == level:
                return at
            entry = self.memory.read64(at)
            if not entry & P:
                entry = self.page() | flags
                self.memory.write64(at, entry)
            table = entry & 0xF_FFFF_FFFF_F000
            top -= 1

    def fs_map(self, table, iova, target, flags=FULL, level=1, top=4):
        at = self.fs_entry_at(table, iova, level, top)
        self.memory.write64(at, target | flags | (PS if level > 1 else 0))
        return at

    def request(self, iova, write=False, pasid=None, sid=SID):
        return self.unit.translate(sid, iova, write, pasid)


IOVA = 0x12_3456_7000
TARGET = 0x20_0000
SHIFT = 0x40_0000
"""Nested: the second stage maps guest address A to A - SHIFT, so that no address means the same in both."""


class Stages(ScalableMachine):
    """One requester whose address space is of ``kind``; ``first`` and ``second`` are the tables."""

    def __init__(self, kind, five=False, supervisor=False, bits=0, policy=None, **config):
        super().__init__(
            replacement=policy,
            five_levels=five,
            supervisor_requests=supervisor,
            second_stage_accessed_dirty=True,
            extended_accessed=True,
            **config,
        )
        self.kind, self.top = kind, 5 if five else 4
        self.scalable_context(high=1 << 20 if supervisor else 0)
        self.second = self.page()
        self.first = self.page()
        if kind == NESTED:
            for at in range(0, self.memory.size, 0x20_0000):
                self.map(self.second, at + SHIFT, at, level=2)
        fs = self.guest(self.first) if kind in (FS, NESTED) else 0
        ss = self.second if kind in (SS, NESTED) else 0
        self.space(kind, ss=ss, fs=fs, low=bits & 1 << 9, high=bits & 0x91 | (1 if supervisor else 0) | five << 2)
        self.start()

    def guest(self, maddr):
        return maddr + SHIFT if self.kind == NESTED else maddr

    def host(self, address):
        return address - SHIFT if self.kind == NESTED else address

    def fs_at(self, iova=IOVA, level=1):
        """Where the first-stage entry lies in RAM, with the tables above made as needed."""
        table, top = self.first, self.top
        while True:
            at = table + 8 * (iova >> 9 * top + 3 & 511)
            if top == level:
                return at
            entry = self.memory.read64(at)
            if not entry & P:
                entry = self.guest(self.page()) | FULL
                self.memory.write64(at, entry)
            table = self.host(entry & 0xF_FFFF_FFFF_F000)
            top -= 1

    def put(self, target=TARGET, flags=FULL, level=1, iova=IOVA):
        """Map in whichever stage counts; ``flags`` as in the first stage."""
        if self.kind == SS:
            return self.map(self.second, iova, target, (flags & P) | (flags & WRITE), level)
        at = self.fs_at(iova, level)
        self.memory.write64(at, (self.guest(target) if flags & P else 0) | flags | (PS if level > 1 else 0))
        return at

    def bits(self, at):
        return self.memory.read64(at) & (ACCESSED | DIRTY | 1 << 10)

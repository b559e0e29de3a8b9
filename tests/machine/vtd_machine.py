# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with one VT-d unit, driven as software would: bytes in RAM, register writes, descriptors.

The encodings here are typed in from the specification a second time; nothing is taken from the model.
"""

import itertools

from machine.interrupts import X86_DOORBELL_BASE, X86_DOORBELL_SIZE, MessageInterrupts
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.unit import VtdUnit
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus

BASE = 0xFED9_0000
SID = 0x18  # 00:03.0
R, W, RW, PS, SNP, TM = 1, 2, 3, 1 << 7, 1 << 11, 1 << 62

CAP, ECAP, GCMD, GSTS, RTADDR, CCMD = 0x08, 0x10, 0x18, 0x1C, 0x20, 0x28
FSTS, FECTL, FEDATA, FEADDR, FEUADDR = 0x34, 0x38, 0x3C, 0x40, 0x44
IQH, IQT, IQA, ICS, IECTL, IEDATA, IEADDR, IQERCD = 0x80, 0x88, 0x90, 0x9C, 0xA0, 0xA4, 0xA8, 0xB0
IVA, IOTLB, FRCD = 0xF0, 0xF8, 0x220
TE, SRTP, QIE = 1 << 31, 1 << 30, 1 << 26
PFO, PPF, IQE = 1, 2, 1 << 4

STATUS_WORD = 0x8000
"""Where wait descriptors store."""


def cc_global():
    return (0x11, 0)


def cc_domain(did):
    return (0x21 | did << 16, 0)


def cc_device(did, sid, fm=0):
    return (0x31 | did << 16 | sid << 32 | fm << 48, 0)


def iotlb_global():
    return (0xD2, 0)


def iotlb_domain(did):
    return (0xE2 | did << 16, 0)


def iotlb_pages(did, iova, am=0, ih=0):
    return (0xF2 | did << 16, iova & ~0xFFF | ih << 6 | am)


def wait_status(data=1, address=STATUS_WORD):
    return (0x65 | data << 32, address)


def wait_interrupt():
    return (0x15, 0)


class VtdMachine:
    """16 MiB of RAM, a doorbell, one unit at 0xFED9_0000."""

    def __init__(self, config=None, size=16 << 20, **unit_options):
        self.memory = PhysicalMemory(size)
        self.bus = SystemBus(self.memory)
        self.interrupts = MessageInterrupts()
        self.bus.map(X86_DOORBELL_BASE, X86_DOORBELL_SIZE, self.interrupts)
        self.unit = VtdUnit("vtd0", self.bus, config or VtdConfig(), **unit_options)
        self.bus.map(BASE, self.unit.register_size, self.unit)
        self._pages = itertools.count(0x10_0000, 0x1000)
        self.root = self.page()
        self.ring = self.page()
        self.gcmd = 0

    def page(self):
        return next(self._pages)

    def r32(self, offset):
        return self.bus.read32(BASE + offset)

    def r64(self, offset):
        return self.bus.read64(BASE + offset)

    def w32(self, offset, value):
        self.bus.write32(BASE + offset, value)

    def w64(self, offset, value):
        self.bus.write64(BASE + offset, value)

    def command(self, bits, one_shot=0):
        self.gcmd = bits
        self.w32(GCMD, bits | one_shot)

    def set_root(self, address=None):
        self.w64(RTADDR, self.root if address is None else address)
        self.command(self.gcmd, SRTP)

    def start(self, queue=True):
        """Root table, queue and translation on."""
        self.set_root()
        if queue:
            self.w64(IQT, 0)
            self.w64(IQA, self.ring)
            self.command(self.gcmd | QIE)
        self.command(self.gcmd | TE)
        return self

    def root_entry(self, bus, low, high=0):
        self.memory.write64(self.root + 16 * bus, low)
        self.memory.write64(self.root + 16 * bus + 8, high)

    def context_entry(self, sid, low, high):
        at = self.root + 16 * (sid >> 8)
        table = self.memory.read64(at) & ~0xFFF
        if not table:
            table = self.page()
            self.memory.write64(at, table | 1)
        self.memory.write64(table + 16 * (sid & 0xFF), low)
        self.memory.write64(table + 16 * (sid & 0xFF) + 8, high)

    def context(self, sid, table, aw=2, did=1, tt=0, fpd=0):
        self.context_entry(sid, table | tt << 2 | fpd << 1 | 1, did << 8 | aw)
        return table

    def entry_at(self, table, iova, level, top=4):
        """Address of the entry for ``iova`` at ``level``, with the tables above it made as needed."""
        while top > level:
            at = table + 8 * (iova >> 9 * top + 3 & 511)
            entry = self.memory.read64(at)
            if not entry & 3:
                entry = self.page() | RW
                self.memory.write64(at, entry)
            table = entry & 0xF_FFFF_FFFF_F000
            top -= 1
        return table + 8 * (iova >> 9 * level + 3 & 511)

    def map(self, table, iova, target, rights=RW, level=1, top=4):
        at = self.entry_at(table, iova, level, top)
        self.memory.write64(at, target | rights | (PS if level > 1 else 0))
        return at

    def submit(self, *descriptors):
        """Put descriptors into the ring and move the tail; returns whether the queue took them all."""
        tail = self.r64(IQT)
        for low, high in descriptors:
            self.memory.write64(self.ring + tail, low)
            self.memory.write64(self.ring + tail + 8, high)
            tail = (tail + 16) % 0x1000
        self.w64(IQT, tail)
        return self.r64(IQH) == tail

    def read(self, iova, sid=SID):
        return self.unit.translate(sid, iova, False)

    def write(self, iova, sid=SID):
        return self.unit.translate(sid, iova, True)

    def record(self, index=0):
        """(page, sid, reason, T, F) of a fault recording register."""
        low, high = self.r64(FRCD + 16 * index), self.r64(FRCD + 16 * index + 8)
        return low, high & 0xFFFF, high >> 32 & 0xFF, high >> 62 & 1, high >> 63

    def clear_faults(self):
        for index in range(self.unit.config.fault_records):
            self.w32(FRCD + 16 * index + 12, 1 << 31)
        self.w32(FSTS, 0x7D)

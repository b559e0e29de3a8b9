# SPDX-License-Identifier: GPL-2.0-or-later
"""A board with one SMMUv3 for tests: RAM, bus, an interrupt doorbell, and software that knows only the manual.

Everything here is written as numbers from the specification, so that a wrong field in the model cannot agree
with a wrong field in its test.
"""

from machine.interrupts import ITS_DOORBELL_OFFSET, ITS_DOORBELL_PAGE, MessageInterrupts
from machine.iommu.smmuv3 import Smmuv3Config, Smmuv3Unit
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus

BASE = 0x0905_0000
RAM = 16 << 20
STRTAB, L2TAB, CMDQ, EVENTQ = 0x100000, 0x140000, 0x180000, 0x190000
TABLES = 0x200000
DOORBELL = ITS_DOORBELL_PAGE + ITS_DOORBELL_OFFSET
RAM_PAGE = 0x7FF
RAM_BLOCK = 0x7FD
"""Valid, AF, inner shareable, read-write, Normal write-back."""

SYNC = (0x46, 0)
NSNH_ALL = (0x30, 0)
CFGI_ALL = (0x04, 31)


def cfgi_ste(sid, leaf=1):
    return (0x03 | sid << 32, leaf)


def vmall(vmid):
    return (0x28 | vmid << 32, 0)


def s2_ipa(vmid, ipa, num=0, scale=0, tg=0, ttl=0, leaf=1):
    return (0x2A | num << 12 | scale << 20 | vmid << 32, ipa | tg << 10 | ttl << 8 | leaf)


def ste_stage2(vmid, root, t0sz=16, sl0=2, ps=5, extra2=0, extra1=0):
    dw2 = vmid | t0sz << 32 | sl0 << 38 | ps << 48 | 1 << 51 | 1 << 54 | 1 << 58
    return (0b1101, 1 << 44 | extra1, dw2 | extra2, root, 0, 0, 0, 0)


STE_BYPASS = (0b1001, 1 << 44, 0, 0, 0, 0, 0, 0)
STE_ABORT = (0b0001, 1 << 44, 0, 0, 0, 0, 0, 0)


class Board:
    def __init__(
        self, config=None, capacity=None, enable=True, ram=RAM, two_level=False, log2streams=8, replacement=None
    ):
        self.memory = PhysicalMemory(ram)
        self.bus = SystemBus(self.memory)
        self.doorbell = MessageInterrupts()
        self.bus.map(ITS_DOORBELL_PAGE, 0x1000, self.doorbell)
        self.pulses = []
        self.unit = Smmuv3Unit("smmu0", self.bus, config or Smmuv3Config(), capacity, self.pulses.append, replacement)
        self.bus.map(BASE, self.unit.register_size, self.unit)
        self.two_level = two_level
        self._next_table = TABLES
        if enable:
            self.enable(log2streams)

    # registers
    def r32(self, offset):
        return self.bus.read32(BASE + offset)

    def w32(self, offset, value):
        self.bus.write32(BASE + offset, value)

    def r64(self, offset):
        return self.bus.read64(BASE + offset)

    def w64(self, offset, value):
        self.bus.write64(BASE + offset, value)

    def enable(self, log2streams=8):
        if self.two_level:
            self.w64(0x80, STRTAB)
            self.w32(0x88, 1 << 16 | 8 << 6 | log2streams)
        else:
            self.w64(0x80, STRTAB)
            self.w32(0x88, log2streams)
        self.w64(0x90, CMDQ | 8)
        self.w64(0xA0, EVENTQ | 4)
        self.w32(0x2C, 2)
        self.w32(0x20, 0b1101)
        assert self.r32(0x24) == 0b1101

    # queues
    def put(self, *commands):
        """Write commands without telling the unit; returns the new producer index."""
        prod = self.r32(0x98)
        for low, high in commands:
            at = CMDQ + 16 * (prod & 0xFF)
            self.memory.write64(at, low)
            self.memory.write64(at + 8, high)
            prod = prod + 1 & 0x1FF
        return prod

    def command(self, *commands):
        self.w32(0x98, self.put(*commands))

    def cmdq_error(self):
        return self.r32(0x9C) >> 24 & 0x7F if (self.r32(0x60) ^ self.r32(0x64)) & 1 else 0

    def events(self):
        """Take every event record off the queue."""
        out = []
        cons = self.r32(0x100AC)
        while (cons ^ self.r32(0x100A8)) & 0x1F:
            at = EVENTQ + 32 * (cons & 0xF)
            out.append(tuple(self.memory.read64(at + 8 * i) for i in range(4)))
            cons = cons & 1 << 31 | (cons + 1 & 0x1F)
        self.w32(0x100AC, cons)
        return out

    # tables
    def set_ste(self, sid, ste, flush=True):
        at = (L2TAB if self.two_level else STRTAB) + 64 * sid
        for i, word in enumerate(ste):
            self.memory.write64(at + 8 * i, word)
        if flush:
            self.command(cfgi_ste(sid), SYNC)

    def table(self, pages=1):
        size = 4096 * pages
        base = -(-self._next_table // size) * size
        self._next_table = base + size
        return base

    def map(self, root, ipa, pa, attributes=RAM_PAGE, level=3, start=0):
        """Install a leaf at ``level``, making tables from ``start`` (whose table may be concatenated) down."""
        table, at = root, start
        while True:
            shift = 39 - 9 * at
            index = ipa >> shift if at == start else ipa >> shift & 511
            slot = table + 8 * index
            if at == level:
                self.memory.write64(slot, pa | attributes)
                return slot
            entry = self.memory.read64(slot)
            if not entry & 1:
                entry = self.table() | 3
                self.memory.write64(slot, entry)
            table = entry & 0xFFFF_FFFF_F000
            at += 1

    def stage2(self, sid=8, vmid=3, **fields):
        """A stream with an empty 48-bit stage 2; returns the root."""
        root = self.table()
        self.set_ste(sid, ste_stage2(vmid, root, **fields))
        return root

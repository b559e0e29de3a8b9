# SPDX-License-Identifier: GPL-2.0-or-later
"""A network card with identity DMA, and the few register pokes that a driver makes, for the card's tests."""

from collections import deque
from struct import Struct

from machine.devices.nic import Nic
from machine.dma import DmaFabric
from machine.iommu.unit import Fault
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus

DESCRIPTOR = Struct("<QHHHH")
EOP, ERROR, DONE = 1, 1 << 14, 1 << 15
CTRL, STATUS, IRQ_MASK, IRQ_STATUS = 0x04, 0x08, 0x14, 0x18
TX, RX = 0x40, 0x60
TAIL, HEAD = 0x0C, 0x10
BAR = 0xF000_0000
MAC = bytes.fromhex("02509e000002")
TX_RING, RX_RING = 0x1_0000, 0x2_0000
BUFFERS = 0x10_0000
SBDF = 0x18


class FaultingUnit:
    """Identity, except for the 4 KiB pages in ``blocked``."""

    def __init__(self):
        self.blocked = set()

    def translate(self, sid, iova, write):
        if iova >> 12 in self.blocked:
            return Fault("fake", sid, iova, write, 1, "blocked by the test")
        return iova


class ScriptedWire:
    description = "scripted"
    lost = 0

    def __init__(self):
        self.sent = []
        self.arriving = deque()

    def send(self, frame):
        self.sent.append(frame)

    def receive(self):
        return self.arriving.popleft() if self.arriving else None

    def wait(self, timeout):
        return bool(self.arriving)

    def close(self):
        pass


class Rig:
    """A card with identity DMA and the few register pokes that a driver makes."""

    def __init__(self, log2size=3):
        self.bus = SystemBus(PhysicalMemory(8 << 20))
        self.memory = self.bus.memory
        self.unit = FaultingUnit()
        fabric = DmaFabric(self.bus)
        fabric.cover(self.unit)
        self.wire = ScriptedWire()
        self.nic = Nic(fabric.port(SBDF), self.wire, MAC)
        self.nic.attach(self.bus, BAR)
        self.size = 1 << log2size
        self.buffers = BUFFERS
        for ring, base in ((TX, TX_RING), (RX, RX_RING)):
            self.poke(ring, base)
            self.poke(ring + 4, 0)
            self.poke(ring + 8, log2size)
        self.poke(CTRL, 1)

    def poke(self, offset, value):
        self.bus.write32(BAR + offset, value)

    def peek(self, offset):
        return self.bus.read32(BAR + offset)

    def base(self, ring):
        return TX_RING if ring == TX else RX_RING

    def put(self, ring, index, address, length, flags=0):
        at = self.base(ring) + index % self.size * 16
        self.memory.write(at, DESCRIPTOR.pack(address, length, flags, 0, 0))

    def get(self, ring, index):
        return DESCRIPTOR.unpack(self.memory.read(self.base(ring) + index % self.size * 16, 16))

    def flags(self, ring, index):
        return self.get(ring, index)[2]

    def queue(self, *fragments, ring_doorbell=True, eop=True):
        """Put one frame's fragments behind TX_TAIL."""
        tail = self.peek(TX + TAIL)
        for number, fragment in enumerate(fragments):
            self.memory.write(self.buffers, fragment)
            last = eop and number == len(fragments) - 1
            self.put(TX, tail, self.buffers, len(fragment), EOP if last else 0)
            self.buffers += 0x4000
            tail = (tail + 1) % self.size
        if ring_doorbell:
            self.poke(TX + TAIL, tail)
        return tail

    def offer(self, *lengths):
        """Put receive buffers behind RX_TAIL; their addresses."""
        tail = self.peek(RX + TAIL)
        addresses = []
        for length in lengths:
            self.put(RX, tail, self.buffers, length)
            addresses.append(self.buffers)
            self.buffers += 0x4000
            tail = (tail + 1) % self.size
        self.poke(RX + TAIL, tail)
        return addresses

    def dma_error(self):
        return self.peek(STATUS) >> 1 & 1


def frame(length, seed=0):
    return bytes((index * 7 + seed) & 0xFF for index in range(length))

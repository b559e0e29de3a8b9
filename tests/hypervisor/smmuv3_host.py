# SPDX-License-Identifier: GPL-2.0-or-later
"""A host with SMMUs and their driver for tests: memory, bus, units behind a probe, contexts and devices.

The probe sits between bus and unit.  It notes every command that reaches the unit, may show the test memory as it is
at that moment, and can make the unit refuse commands, lose doorbells or go deaf.
"""

from base.units import make_sbdf
from hypervisor.frames import DOMID_XEN, FrameTable
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.iommu.pool import Arena, HeapPool
from hypervisor.pagetable.radix import Changes
from hypervisor.platform import Platform
from hypervisor.smmuv3.driver import Smmuv3Backend
from machine.dma import DmaFabric
from machine.firmware import Firmware, SmmuNode
from machine.interrupts import ITS_DOORBELL_OFFSET, ITS_DOORBELL_PAGE, MessageInterrupts
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.unit import Smmuv3Unit
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus
from machine.pci import PciFunction, PciTopology, PortType

BASE = 0xFD00_0000
DISTANCE = 0x10_0000
CMDQ_BASE, CMDQ_PROD, CMDQ_CONS = 0x90, 0x98, 0x9C
RW = 0xC0
PAGE = 4096
CFGI_STE, CFGI_STE_RANGE, S12_VMALL, S2_IPA, NSNH_ALL, SYNC = 0x03, 0x04, 0x28, 0x2A, 0x30, 0x46
ILLEGAL = 0xEE


class Probe:
    """Passes accesses on to the unit, as far as the test wants."""

    def __init__(self, memory, unit):
        self.memory, self.unit = memory, unit
        self.commands = []
        """(first word, second word) of every command, CMD_SYNC left out."""
        self.on_command = None
        """Called with each command's words before the unit sees it."""
        self.refuse = 0
        """So many of the next commands are replaced by one that the unit does not know."""
        self.deaf = False
        """Writes of CMDQ_PROD are lost."""
        self._seen = 0

    def read(self, offset, size):
        return self.unit.read(offset, size)

    def write(self, offset, size, value):
        if offset == CMDQ_PROD and size == 4:
            self._look(value)
            if self.deaf:
                return
        self.unit.write(offset, size, value)
        if offset == CMDQ_CONS and size == 4:
            self._seen = value

    def _look(self, prod):
        base = self.unit.read(CMDQ_BASE, 8)
        log2size = base & 31
        start = base & 0xF_FFFF_FFFF_FFE0
        while self._seen != prod:
            at = start + 16 * (self._seen & (1 << log2size) - 1)
            words = (self.memory.read64(at), self.memory.read64(at + 8))
            self._seen = self._seen + 1 & (2 << log2size) - 1
            if words[0] & 0xFF == SYNC:
                continue
            self.commands.append(words)
            if self.on_command is not None:
                self.on_command(*words)
            if self.refuse:
                self.refuse -= 1
                self.memory.write64(at, ILLEGAL)

    def ops(self):
        return [words[0] & 0xFF for words in self.commands]


class Host:
    def __init__(self, configs=None, nodes=None, ram=32 << 20, capacity=None, enable=True, **backend):
        configs = configs or [Smmuv3Config()]
        nodes = nodes or [SmmuNode(BASE + k * DISTANCE) for k in range(len(configs))]
        self.memory = PhysicalMemory(ram)
        self.bus = SystemBus(self.memory)
        self.interrupts = MessageInterrupts()
        self.bus.map(ITS_DOORBELL_PAGE, PAGE, self.interrupts)
        self.fabric = DmaFabric(self.bus)
        self.units, self.probes = [], []
        for k, (node, config) in enumerate(zip(nodes, configs)):
            unit = Smmuv3Unit(f"smmu{k}", self.bus, config, capacity)
            probe = Probe(self.memory, unit)
            self.bus.map(node.base, unit.register_size, probe)
            self.units.append(unit)
            self.probes.append(probe)
            for sbdf in node.scope:
                self.fabric.cover(unit, sbdf)
            if node.include_all:
                self.fabric.cover(unit)
        self.frames = FrameTable(self.memory.frames)
        self.frames.allocate_at(DOMID_XEN, 0, 16)
        self.platform = Platform(
            self.memory,
            self.bus,
            PciTopology(),
            Firmware(smmus=tuple(nodes)),
            self.interrupts,
            ITS_DOORBELL_PAGE + ITS_DOORBELL_OFFSET,
        )
        self.backend = Smmuv3Backend(self.platform, self.frames, **backend)
        if enable:
            assert self.backend.enable() == 0
        self.heap = HeapPool(self.frames)
        self.numbers = iter(range(1, 1 << 20))

    @property
    def probe(self):
        return self.probes[0]

    def context(self, pool=None):
        context = IommuContext(next(self.numbers), pool or self.heap)
        assert self.backend.context_init(context) == 0
        return context

    def arena(self, order):
        base = self.frames.allocate(DOMID_XEN, order)
        return Arena(base, 1 << order)

    def device(self, sbdf, requester_ids=None):
        return PciDevice(PciFunction(sbdf, PortType.ENDPOINT), tuple(requester_ids or (sbdf,)))

    def attached(self, sbdf, context):
        device = self.device(sbdf)
        assert self.backend.attach(device, context) == 0
        return device

    def map(self, context, dfn, mfn, count=1, bits=RW):
        changes = Changes()
        assert context.table.map(dfn, mfn, count, bits, changes) == (count, 0)
        if changes.modified:
            assert self.backend.flush(context, dfn, count, changes) == 0
        return changes

    def unmap(self, context, dfn, count=1):
        """Unmap without flushing."""
        changes = Changes()
        assert context.table.unmap(dfn, count, changes) == (count, 0)
        return changes

    def unmap_and_flush(self, context, dfn, count=1):
        changes = self.unmap(context, dfn, count)
        error = self.backend.flush(context, dfn, count, changes)
        if not error:
            for table in changes.tables:
                context.pool.free(table)
        return error

    def read(self, sbdf, iova, length=8):
        """What a device reads, ``None`` if it was blocked."""
        answer = self.fabric.port(sbdf).read(iova, length)
        return answer if isinstance(answer, bytes) else None

    def reaches(self, sbdf, dfn, mfn):
        """Whether a device that writes to ``dfn`` writes to frame ``mfn``."""
        mark = (dfn << 20 ^ mfn ^ 0x5A5A).to_bytes(8, "little")
        self.memory.write(mfn << 12, bytes(8))
        fault = self.fabric.port(sbdf).write(dfn << 12, mark)
        return fault is None and self.memory.read(mfn << 12, 8) == mark

    def ste(self, sid, unit=0):
        """The stream's entry as the tables in memory have it: eight words, ``None`` if there is none."""
        read = self.units[unit].read
        base, config = read(0x80, 8) & 0xF_FFFF_FFFF_FFC0, read(0x88, 4)
        if config >> 16 & 3:
            descriptor = self.memory.read64(base + 8 * (sid >> 8))
            if not descriptor & 31:
                return None
            at = (descriptor & 0xF_FFFF_FFFF_FFC0) + 64 * (sid & 255)
        else:
            at = base + 64 * sid
        return tuple(self.memory.read64(at + 8 * k) for k in range(8))


NIC = make_sbdf(0, 1, 0, 0)
COPIER = make_sbdf(0, 0, 4, 0)

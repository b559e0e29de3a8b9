# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with nothing on it but a backend under test: RAM, a bus, the unit, its driver and two devices.

There is no hypervisor around the driver: a clause calls it directly and does itself what Xen's passes do, so that
what it says is about the backend alone.
"""

from functools import cached_property
from typing import Final

from base.units import CtxNo, Sbdf, make_sbdf
from hypervisor.frames import DOMID_XEN, FrameTable
from hypervisor.iommu.backend import Backend
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.iommu.pool import HeapPool
from hypervisor.pagetable.radix import Changes, PageTable
from hypervisor.platform import Platform
from machine.dma import DmaFabric, DmaPort
from machine.interrupts import MessageInterrupts
from machine.iommu.unit import IommuUnit
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus
from machine.pci import PciFunction, PciTopology
from testbed.backends import TranslationBackend
from testbed.conformance.clause import require
from testbed.units import UnitOptions

RAM: Final = 64 << 20
DEVICE: Final = make_sbdf(0, 0, 3, 0)
OTHER: Final = make_sbdf(0, 2, 7, 1)
DATA_FRAME: Final = 0x2000
"""First of 4096 frames that clauses map; aligned to 2 MiB and never given to the allocator."""
READ: Final = 1
WRITE: Final = 2


class Rig:
    """The parts, each made on first use: a clause about the format alone builds no machine."""

    def __init__(self, backend: TranslationBackend) -> None:
        self.backend: Final = backend
        self._next_context = 1

    @cached_property
    def memory(self) -> PhysicalMemory:
        return PhysicalMemory(RAM)

    @cached_property
    def bus(self) -> SystemBus:
        bus = SystemBus(self.memory)
        bus.map(*self.backend.doorbell_window, self.interrupts)
        return bus

    @cached_property
    def interrupts(self) -> MessageInterrupts:
        return MessageInterrupts()

    @cached_property
    def unit(self) -> IommuUnit:
        """The hardware half out of reset, on the bus; its IOTLB keeps whatever it may."""
        unit = self.backend.make_unit(self.bus, UnitOptions())
        self.bus.map(self.backend.unit_base, unit.register_size, unit)
        return unit

    @cached_property
    def fabric(self) -> DmaFabric:
        fabric = DmaFabric(self.bus)
        fabric.cover(self.unit)
        return fabric

    @cached_property
    def frames(self) -> FrameTable:
        frames = FrameTable(DATA_FRAME)
        frames.allocate_at(DOMID_XEN, 0, 16)
        return frames

    @cached_property
    def driver(self) -> Backend:
        """The software half, switched on."""
        assert self.unit is not None
        firmware = self.backend.firmware(self.backend.unit_base)
        platform = Platform(self.memory, self.bus, PciTopology(), firmware, self.interrupts, self.backend.doorbell)
        driver = self.backend.make_driver(platform, self.frames)
        error = driver.enable()
        require(not error, f"enable() answered {error}")
        return driver

    def device(self, sbdf: Sbdf = DEVICE) -> PciDevice:
        """A function as Xen keeps it, in no context yet."""
        return PciDevice(PciFunction(sbdf), (sbdf,))

    def port(self, sbdf: Sbdf = DEVICE) -> DmaPort:
        """The function's way into memory."""
        return self.fabric.port(sbdf)

    def context(self) -> IommuContext:
        """A fresh context with an empty table."""
        context = IommuContext(CtxNo(self._next_context), HeapPool(self.frames))
        self._next_context += 1
        error = self.driver.context_init(context)
        require(not error, f"context_init() answered {error}")
        require(context.table is not None, "context_init() left the context without a table")
        return context

    def attached(self, sbdf: Sbdf = DEVICE) -> tuple[IommuContext, PciDevice]:
        """A fresh context with a fresh device in it."""
        context, device = self.context(), self.device(sbdf)
        error = self.driver.attach(device, context)
        require(not error, f"attach() answered {error}")
        return context, device

    def table(self, context: IommuContext) -> PageTable:
        """The context's tree."""
        assert context.table is not None
        return context.table

    def map(self, context: IommuContext, dfn: int, mfn: int, count: int = 1, rights: int = READ | WRITE) -> None:
        """Map and flush, as a pass does."""
        changes = Changes()
        done, error = self.table(context).map(dfn, mfn, count, self.driver.format.permission[rights], changes)
        require((done, error) == (count, 0), f"mapping {count} pages at dfn {dfn:#x} did {done} and answered {error}")
        self.flush(context, dfn, count, changes)

    def unmap(self, context: IommuContext, dfn: int, count: int = 1) -> None:
        """Unmap and flush, as a pass does."""
        changes = Changes()
        done, error = self.table(context).unmap(dfn, count, changes)
        require((done, error) == (count, 0), f"unmapping {count} pages at dfn {dfn:#x} did {done}, answered {error}")
        self.flush(context, dfn, count, changes)

    def flush(self, context: IommuContext, dfn: int, count: int, changes: Changes) -> None:
        """Flush what ``changes`` did, then give its tables back."""
        if changes.modified or self.driver.flushes_additions:
            error = self.driver.flush(context, dfn, count, changes)
            require(not error, f"flush() answered {error}")
        for frame in changes.tables:
            context.pool.free(frame)

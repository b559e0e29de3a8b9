# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with nothing on it but a backend under test: RAM, a bus, the unit, its driver and two devices.

There is no hypervisor around the driver: a clause calls it directly and does itself what Xen's passes do, so that
what it says is about the backend alone.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Protocol

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
READ: Final = 1
WRITE: Final = 2
_DATA: Final = 0x2000


class Machine(Protocol):
    """A machine that somebody else runs, with a hardware half in it."""

    @property
    def memory(self) -> PhysicalMemory: ...

    def make_unit(self, bus: SystemBus) -> IommuUnit:
        """The hardware half out of reset; ``bus`` is what it raises interrupts on."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A hardware half that lives in a machine of its own, and what a clause may expect of it."""

    make_machine: Callable[[], Machine]
    first_frame: int = 0
    """Where its RAM starts."""
    requesters: tuple[Sbdf, Sbdf] = (DEVICE, OTHER)
    """The devices that can make requests there."""
    exempt: Mapping[str, str] = field(default_factory=dict)
    """Clauses that cannot be asked, by name, and why."""


class Rig:
    """The parts, each made on first use: a clause about the format alone builds no machine."""

    def __init__(self, backend: TranslationBackend, elsewhere: Elsewhere | None = None) -> None:
        self.backend: Final = backend
        self._elsewhere: Final = elsewhere
        self.first_frame: Final = elsewhere.first_frame if elsewhere is not None else 0
        self.data: Final = self.first_frame + _DATA
        """First of 4096 frames that clauses map; aligned to 2 MiB and never given to the allocator."""
        self.requester, self.other = elsewhere.requesters if elsewhere is not None else (DEVICE, OTHER)
        """Two functions that make requests."""
        self._next_context = 1

    @property
    def some_requesters(self) -> tuple[int, ...]:
        """Requester ids, attached or not, that requests can come from."""
        ours = (self.requester & 0xFFFF, self.other & 0xFFFF)
        return ours if self._elsewhere is not None else (0, *ours, 0xFFFF)

    def any_requester(self, rng: random.Random) -> int:
        """Any requester id that requests can come from."""
        return rng.getrandbits(16) if self._elsewhere is None else rng.choice(self.some_requesters)

    @cached_property
    def _machine(self) -> Machine | None:
        return self._elsewhere.make_machine() if self._elsewhere is not None else None

    def close(self) -> None:
        """Give back what is not this process's own."""
        machine = self.__dict__.get("_machine")
        if machine is not None:
            machine.close()

    @cached_property
    def memory(self) -> PhysicalMemory:
        return PhysicalMemory(RAM) if self._machine is None else self._machine.memory

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
        elsewhere = self._machine
        unit = self.backend.make_unit(self.bus, UnitOptions()) if elsewhere is None else elsewhere.make_unit(self.bus)
        self.bus.map(self.backend.unit_base, unit.register_size, unit)
        return unit

    @cached_property
    def fabric(self) -> DmaFabric:
        fabric = DmaFabric(self.bus)
        fabric.cover(self.unit)
        return fabric

    @cached_property
    def frames(self) -> FrameTable:
        frames = FrameTable(self.data)
        frames.allocate_at(DOMID_XEN, 0, self.first_frame + 16)
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

    def device(self, sbdf: Sbdf | None = None) -> PciDevice:
        """A function as Xen keeps it, in no context yet; the first requester if none is named."""
        sbdf = self.requester if sbdf is None else sbdf
        return PciDevice(PciFunction(sbdf), (sbdf,))

    def port(self, sbdf: Sbdf | None = None) -> DmaPort:
        """The function's way into memory."""
        return self.fabric.port(self.requester if sbdf is None else sbdf)

    def context(self) -> IommuContext:
        """A fresh context with an empty table."""
        context = IommuContext(CtxNo(self._next_context), HeapPool(self.frames))
        self._next_context += 1
        error = self.driver.context_init(context)
        require(not error, f"context_init() answered {error}")
        require(context.table is not None, "context_init() left the context without a table")
        return context

    def attached(self, sbdf: Sbdf | None = None) -> tuple[IommuContext, PciDevice]:
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

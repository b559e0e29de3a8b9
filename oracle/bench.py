# SPDX-License-Identifier: GPL-2.0-or-later
"""A driver on our own unit, made to write every kind of structure once, and those read back as words.

A wrong bit may be planted in what is read back, as if the driver had written it so.
"""

from collections.abc import Callable
from typing import Final

from base.units import DomId, make_sbdf
from hypervisor import profile
from hypervisor.frames import FrameTable
from hypervisor.iommu.backend import Backend
from hypervisor.iommu.context import PciDevice
from hypervisor.platform import Platform
from hypervisor.smmuv3.driver import Smmuv3Backend
from hypervisor.vtd.driver import VtdBackend
from hypervisor.xen import Xen
from machine.firmware import Drhd, Firmware, SmmuNode
from machine.interrupts import X86_DOORBELL_BASE, MessageInterrupts
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.unit import Smmuv3Unit
from machine.iommu.unit import IommuUnit
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.unit import VtdUnit
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus
from machine.pci import PciFunction, PciTopology
from oracle.plants import smmu_command, structure_of, vtd_descriptor
from oracle.software import Software
from oracle.stage1_driver import Stage1Driver

RAM: Final = 64 << 20
BASE: Final = 0xFED9_0000
DATA: Final = 0x2000
"""A frame at a multiple of 2 MiB for programs to map."""
DEVICE: Final = make_sbdf(0, 0, 3, 0)
SID: Final = 0x18
Spoil = Callable[[str, tuple[int, ...]], tuple[int, ...]]
"""What the words of a structure, called as in :mod:`oracle.plants`, are taken to be."""
ADDRESS: Final = 0x000F_FFFF_FFFF_F000


def as_written(structure: str, words: tuple[int, ...]) -> tuple[int, ...]:
    """Nothing planted."""
    return words


class Bench:
    """A driver on our own unit, with one device."""

    def __init__(
        self,
        spoil: Spoil,
        unit: Callable[[SystemBus], IommuUnit],
        firmware: Firmware,
        driver: Callable[[Platform, FrameTable], Backend],
        queue: Callable[["Bench"], list[tuple[int, int]]],
        device_tlb: bool = False,
    ) -> None:
        self.memory: Final = PhysicalMemory(RAM)
        bus = SystemBus(self.memory)
        self.unit: Final = unit(bus)
        bus.map(BASE, self.unit.register_size, self.unit)
        topology = PciTopology()
        device = PciDevice(topology.add(PciFunction(DEVICE, ats=device_tlb)), (DEVICE,))
        platform = Platform(self.memory, bus, topology, firmware, MessageInterrupts(), X86_DOORBELL_BASE)
        self._spoilt: Final = spoil
        self._queue: Final = queue

        def make(platform: Platform, frames: FrameTable) -> Backend:
            frames.allocate_at(DomId(0), DATA, 0x1000)
            return driver(platform, frames)

        self.software: Final = Software(Xen(platform, profile.get("v7-fixed"), make), [device])

    def attached(self) -> "Bench":
        """With the device in context 1."""
        self.software.context(1)
        self.software.attach(0, 1)
        return self

    def entries(self, iova: int, write: bool = False) -> list[tuple[str, tuple[int, ...]]]:
        """The structures on the way of an access, by the names of :func:`oracle.plants.structure_of`."""
        steps = self.unit.walk(SID, iova, write).steps
        return [(name, self._spoilt(name, step.words)) for name, step in ((structure_of(step), step) for step in steps)]

    def entry(self, structure: str, iova: int = 0) -> tuple[int, ...]:
        """The words of the structure of that name."""
        return next(words for name, words in self.entries(iova) if name == structure)

    def leaf(self, pages: int, permission: int) -> int:
        """The leaf of a mapping of ``pages`` pages to the frames from :data:`DATA` on."""
        self.software.map(1, 0x400, DATA, pages, permission)
        leaf = self.entries(0x40_0000, permission == 2)[-1][1]
        self.software.unmap(1, 0x400, pages)
        return leaf[0]

    def table_pointer(self) -> int:
        """What leads to the table of a mapped page, without its address."""
        self.software.map(1, 0x400, DATA, 1, 3)
        return self.entries(0x40_0000)[-2][1][0] & ~ADDRESS

    def commands(self, since: int = 0) -> list[tuple[int, int]]:
        """What was queued, oldest first, from the ``since``-th on."""
        return self._queue(self)[since:]

    def after(self, action: Callable[[], None]) -> list[tuple[int, int]]:
        """What an action queues."""
        before = len(self.commands())
        action()
        return self.commands(before)

    def unmapped(self, pages: int, more: int = 0) -> list[tuple[int, int]]:
        """What is queued when ``pages`` pages go away, of ``more`` that are mapped."""
        self.software.map(1, 0x400, DATA, pages + more, 3)
        return self.after(lambda: self.software.unmap(1, 0x400, pages))

    def queued(self, start: int, count: int, kind: Callable[[int], str]) -> list[tuple[int, int]]:
        """``count`` pairs of words from word ``start`` on."""
        pairs = []
        words = self.memory.words
        for at in range(start, start + 2 * count, 2):
            low, high = self._spoilt(kind(words[at]), (words[at], words[at + 1]))
            pairs.append((low, high))
        return pairs


def vtd(spoil: Spoil, depth: int = 4, device_tlb: bool = False) -> Bench:
    """Xen's VT-d driver with tables of ``depth`` levels; with ``device_tlb`` its device has one."""
    config = VtdConfig(address_widths=(39, 48) if depth == 4 else (39,), device_tlb=device_tlb)
    return Bench(
        spoil,
        lambda bus: VtdUnit("dmar0", bus, config),
        Firmware(drhds=(Drhd(BASE),)),
        VtdBackend,
        lambda bench: bench.queued(bench.unit.read(0x90, 8) >> 12 << 9, bench.unit.read(0x88, 8) >> 4, vtd_descriptor),
        device_tlb,
    )


def _smmu_queue(bench: Bench) -> list[tuple[int, int]]:
    start = (bench.unit.read(0x90, 8) & 0xF_FFFF_FFFF_FFE0) >> 3
    return bench.queued(start, bench.unit.read(0x98, 4), smmu_command)


def smmu(spoil: Spoil, bits: int = 44, device_tlb: bool = False) -> Bench:
    """Xen's SMMUv3 driver with addresses of ``bits`` bits; with ``device_tlb`` its device has one."""
    return Bench(
        spoil,
        lambda bus: Smmuv3Unit("smmu0", bus, Smmuv3Config(oas=bits, ats=device_tlb)),
        Firmware(smmus=(SmmuNode(BASE),)),
        Smmuv3Backend,
        _smmu_queue,
        device_tlb,
    )


def stage_1(spoil: Spoil) -> Bench:
    """The stage 1 driver of the oracles."""
    return Bench(
        spoil,
        lambda bus: Smmuv3Unit("smmu0", bus, Smmuv3Config(stage1=True)),
        Firmware(smmus=(SmmuNode(BASE),)),
        Stage1Driver,
        _smmu_queue,
    )

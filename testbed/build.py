# SPDX-License-Identifier: GPL-2.0-or-later
"""The composition root: a machine, Xen on it, a hardware domain, and devices behind the IOMMU.

Memory map: RAM from 0; device registers from 0xE100_0000; the units and the interrupt doorbell where the backend says.
PCI: a host bridge 00:00.0; a root port 00:1c.0 with the NIC behind it at 01:00.0; a copier at 00:04.0 and a rogue
device at 00:05.0.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, Protocol

from base.units import PAGE_SHIFT, DomId, Sbdf, make_sbdf
from hypervisor import dom0_options
from hypervisor import profile as profiles
from hypervisor.defects import catalogue as defects
from hypervisor.defects.seams import Seams
from hypervisor.domain import Domain, Vcpu
from hypervisor.guest_access import LinearMemory
from hypervisor.iommu.context import PciDevice
from hypervisor.platform import Platform
from hypervisor.xen import XEN_FRAMES, Xen
from machine.devices.copier import Copier
from machine.devices.nic import Nic
from machine.devices.rogue import Rogue
from machine.devices.translation_cache import CachingPort, TranslationCache
from machine.dma import DmaFabric
from machine.interrupts import MessageInterrupts
from machine.iommu import replacement
from machine.iommu.unit import Fault, IommuUnit, Walk
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus
from machine.network.wire import STATION_MAC
from machine.pci import PciFunction, PciTopology, PortType
from testbed import backends
from testbed.config import Config
from testbed.domu import add_domu
from testbed.ports import BusMmio, DomainRam, MachinePci, XenHypercalls
from testbed.units import UnitOptions, firmware_for, wire

NIC: Final = make_sbdf(0, 1, 0, 0)
COPIER: Final = make_sbdf(0, 0, 4, 0)
ROGUE: Final = make_sbdf(0, 0, 5, 0)
NIC_BAR: Final = 0xE100_0000
COPIER_BAR: Final = 0xE100_1000
ROGUE_BAR: Final = 0xE100_2000
MMIO_START: Final = 0xE000_0000
MMIO_END: Final = 0x1_0000_0000
SCATTER_PAGES: Final = 64
"""Longest run of guest pages that stay together in machine memory outside the contiguous part."""


class Stateful(Protocol):
    """A part of the test bed whose state can be kept and brought back."""

    def save(self) -> Any: ...

    def restore(self, state: Any) -> None: ...


class TestBed:
    """A machine with Xen and a hardware domain on it, ready for a guest to boot in ``dom0``."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(self, config: Config) -> None:
        self.config: Final = config
        self.backend: Final = backends.get(config.backend)
        profile = profiles.get(config.profile)
        guest = config.guest or self.backend.default_guest
        pv = guest == "pv"

        self.memory: Final = PhysicalMemory(config.ram)
        self.bus: Final = SystemBus(self.memory)
        self.interrupts: Final = MessageInterrupts()
        self.bus.map(*self.backend.doorbell_window, self.interrupts)
        self.units: Final[tuple[IommuUnit, ...]] = tuple(self._make_units())
        self.unit: Final[IommuUnit] = self.units[0]
        """The first unit; the only one in most machines."""
        self.fabric: Final = DmaFabric(self.bus)
        self.pci: Final = PciTopology()
        self.nic: Final = Nic(self.fabric.port(NIC), None, STATION_MAC)
        self.copier: Final = Copier(self.fabric.port(COPIER))
        self.rogue: Final = Rogue(self.fabric.port(ROGUE))
        self._plug_in()
        wire(self.fabric, self.units, config.units, self.pci)
        self.copier_cache: Final = self._cache_of_copier() if config.device_tlb else None

        parts = [self.backend.firmware(base) for base, _ in self._register_blocks()]
        firmware = replace(firmware_for(parts, config.units, self.pci), rmrrs=config.rmrrs)
        self.platform: Final = Platform(
            self.memory, self.bus, self.pci, firmware, self.interrupts, self.backend.doorbell
        )
        self.xen: Final = Xen(
            self.platform, profile, self.backend.make_driver, dom0_options.parse(config.dom0_iommu, profile, pv=pv)
        )
        self.faults: Final[Seams | None] = defects.apply(self.xen, (*profile.defects, *config.defects))
        """What defects replaced; ``None`` without any."""
        self.mfns: Final = _scatter(config, XEN_FRAMES)
        self._give_frames()
        self.dom0: Final[Domain] = self.xen.create_domain(
            0, hardware=True, pv=pv, p2m_frames=len(self.mfns), mmio=self._dom0_mmio()
        )
        self._give_memory()
        linear = LinearMemory(
            self.memory, self.dom0.translation, len(self.mfns), self.mfns if pv else None, reserved=pv
        )
        self.vcpus: Final[tuple[Vcpu, ...]] = tuple(self.xen.add_vcpu(self.dom0, linear) for _ in range(config.vcpus))
        self.vcpu: Final[Vcpu] = self.vcpus[0]
        self.linear: Final = linear
        for sbdf in sorted(self.pci.functions):
            error = self.xen.attach_device(self.dom0, self._xen_device(sbdf))
            if error:
                raise ValueError(f"{self.pci.functions[sbdf]} could not be given to dom0 ({error})")

        self.hypercalls: Final = XenHypercalls(self.xen, self.vcpu)
        self.ram: Final = DomainRam(self.memory, self.mfns, pv)
        self.rams: Final[dict[int, DomainRam]] = {0: self.ram}
        """Every guest's RAM, by its domain's id."""
        self.mmio: Final = BusMmio(self.bus)
        self.guest_pci: Final = MachinePci(self.pci, self.interrupts, self.backend.doorbell)
        self.domus: Final[tuple[Domain, ...]] = tuple(
            add_domu(self.xen, self.memory, DomId(number), domu, self.rams)
            for number, domu in enumerate(config.domus, 1)
        )
        """The guest domains, by their ids from 1 on."""
        self._saved: list[Any] | None = None
        self.attached: Final[list[Stateful]] = [
            *self.units,
            *([self.copier_cache] if self.copier_cache is not None else []),
            self.xen,
            self.interrupts,
            self.guest_pci,
            self.nic,
            self.copier,
            self.rogue,
        ]
        if self.faults is not None:
            self.attached.extend(self.faults.stateful)
        """Everything whose state a snapshot keeps beside RAM; a booted guest kernel joins it."""

    # -------------------------------------------------------------------------------------------- snapshots

    def snapshot(self) -> None:
        """Remember this moment; :meth:`reset` comes back to it as often as wanted."""
        self._saved = [part.save() for part in self.attached]
        self.memory.snapshot()

    def reset(self) -> None:
        """Back to the last :meth:`snapshot`, at a cost that follows from what changed since."""
        if self._saved is None:
            raise ValueError("there is no snapshot to go back to")
        self.memory.reset()
        for part, state in zip(self.attached, self._saved):
            part.restore(state)

    # -------------------------------------------------------------------------------------------- requests

    def translate(self, sbdf: int, iova: int, write: bool) -> int | Fault:
        """What an access by requester ``sbdf`` meets at its unit: a machine address, or a recorded fault."""
        unit, sid = self.fabric.route(sbdf)
        assert unit is not None
        return unit.translate(sid, iova, write)

    def walk(self, sbdf: int, iova: int, write: bool = False) -> Walk:
        """The same explained by the unit, from memory as it is now."""
        unit, sid = self.fabric.route(sbdf)
        assert unit is not None
        return unit.walk(sid, iova, write)

    # ----------------------------------------------------------------------------------------------- wiring

    def _make_units(self) -> Iterator[IommuUnit]:
        """The hardware halves, their registers side by side on the bus."""
        base = self.backend.unit_base
        for index, spec in enumerate(self.config.units):
            policy = replacement.parse(self.config.iotlb)
            options = UnitOptions(index, spec.kind, self.config.iotlb_capacity, policy)
            unit = self.backend.make_unit(self.bus, options)
            self.bus.map(base, unit.register_size, unit)
            base += unit.register_size
            yield unit

    def _register_blocks(self) -> Iterator[tuple[int, int]]:
        """(base, length) of every unit's registers."""
        base = self.backend.unit_base
        for unit in self.units:
            yield base, unit.register_size
            base += unit.register_size

    def _cache_of_copier(self) -> TranslationCache:
        port = CachingPort(self.fabric, COPIER)
        self.copier.port = port
        return port.cache

    def _plug_in(self) -> None:
        self.pci.add(PciFunction(make_sbdf(0, 0, 0, 0), PortType.HOST_BRIDGE, class_code=0x060000))
        self.pci.add(
            PciFunction(make_sbdf(0, 0, 0x1C, 0), PortType.ROOT_PORT, class_code=0x060400, secondary_bus=1, acs=True)
        )
        for endpoint in self.config.endpoints:
            self.pci.add(PciFunction(endpoint))
        for device, sbdf, bar in (
            (self.nic, NIC, NIC_BAR),
            (self.copier, COPIER, COPIER_BAR),
            (self.rogue, ROGUE, ROGUE_BAR),
        ):
            function = device.pci_function(sbdf, bar)
            if sbdf == ROGUE:
                function = replace(function, phantom_functions=self.config.phantom_functions)
            self.pci.add(replace(function, ats=True) if self.config.device_tlb and sbdf == COPIER else function)
            device.attach(self.bus, bar)

    def _give_frames(self) -> None:
        """Set firmware's and dom0's frames aside, from the lowest up."""
        base = min(self.mfns)
        ours: list[tuple[int, int, bool]] = [(base, base + len(self.mfns) - 1, False)]
        in_ram = [rmrr for rmrr in self.config.rmrrs if rmrr.base < self.memory.size]
        ours.extend((rmrr.base >> PAGE_SHIFT, rmrr.last >> PAGE_SHIFT, True) for rmrr in in_ram)
        for first, last, is_firmware in sorted(ours):
            if is_firmware:
                self.xen.reserve_for_firmware(first, last)
            else:
                self.xen.frames.allocate_at(DomId(0), first, last - first + 1)

    def _dom0_mmio(self) -> list[tuple[int, int]]:
        """Every frame of the MMIO window except the units' own registers and, where devices' writes to it go around
        translation, the interrupt doorbell."""
        kept = list(self._register_blocks())
        if not self.backend.doorbell_is_translated:
            kept.append(self.backend.doorbell_window)
        ranges, start = [], MMIO_START
        for base, length in sorted(kept):
            ranges.append((start >> PAGE_SHIFT, (base >> PAGE_SHIFT) - 1))
            start = base + length
        ranges.append((start >> PAGE_SHIFT, (MMIO_END >> PAGE_SHIFT) - 1))
        return ranges

    def _give_memory(self) -> None:
        """Fill dom0's p2m and, unless ``dma=no`` or it passes everything through, its default context (one to one in
        its own frame numbers)."""
        xen, dom0, mfns = self.xen, self.dom0, self.mfns
        assert dom0.iommu is not None
        base = min(mfns)
        if dom0.pv:
            if xen.options.dma and not dom0.iommu.default.passes_through:
                xen.map_default(dom0, base, base, len(mfns))
                self._map_besides(base, base + len(mfns) - 1)
            return
        start = 0
        for pfn in range(1, len(mfns) + 1):
            if pfn == len(mfns) or mfns[pfn] != mfns[pfn - 1] + 1:
                dom0.p2m.set(start, mfns[start], pfn - start)
                if xen.options.dma:
                    xen.map_default(dom0, start, mfns[start], pfn - start)
                start = pfn

    def _map_besides(self, first: int, last: int) -> None:
        """What ``dom0-iommu=`` adds to dom0's own frames, ``first`` to ``last``, in its default context."""
        in_ram = [(r.base >> PAGE_SHIFT, r.last >> PAGE_SHIFT) for r in self.config.rmrrs if r.base < self.memory.size]
        there = [(first, last)]
        for start, end in dom0_options.ranges(self.xen.options, XEN_FRAMES, self.memory.frames, in_ram):
            whole = (start, end)
            for known in sorted(there):
                if start < known[0] <= end:
                    self.xen.map_default(self.dom0, start, start, known[0] - start)
                if start <= known[1] and known[0] <= end:
                    start = known[1] + 1
            if start <= end:
                self.xen.map_default(self.dom0, start, start, end - start + 1)
            there.append(whole)

    def _xen_device(self, sbdf: Sbdf) -> PciDevice:
        regions = [
            (rmrr.base >> PAGE_SHIFT, rmrr.last >> PAGE_SHIFT)
            for rmrr in self.platform.firmware.rmrrs
            if sbdf in rmrr.devices
        ]
        return PciDevice(self.pci.functions[sbdf], self.pci.requester_ids(sbdf), reserved=regions)


def _scatter(config: Config, after: int) -> list[int]:
    """Machine frame of every guest page: the lower half contiguous and 2 MiB-aligned, the upper half in pieces of up to
    :data:`SCATTER_PAGES` pages in an order that ``config.seed`` decides."""
    count = config.guest_ram >> PAGE_SHIFT
    base = (after + 511) // 512 * 512
    contiguous = count // 2 // 512 * 512
    mfns = list(range(base, base + contiguous))
    rng = random.Random(config.seed)
    pieces = []
    at = contiguous
    while at < count:
        length = min(rng.randint(1, SCATTER_PAGES), count - at)
        pieces.append(range(base + at, base + at + length))
        at += length
    rng.shuffle(pieces)
    for piece in pieces:
        mfns.extend(piece)
    return mfns


def build(config: Config | None = None) -> TestBed:
    """Build a test bed; ``ValueError`` says what is wrong with ``config``."""
    return TestBed(config or Config())

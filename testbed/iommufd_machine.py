# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines to run iommufd on: devices in groups, over the mock driver or over Xen with its real tables.

All look alike: named devices whose groups, coherency and reserved regions were asked for, and a fabric through which
each does DMA.  A page that has a lender (:class:`LentPages`) is the lender's memory; every other page is the machine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol

from abi.errno import errno_name
from base.units import PAGE_SHIFT, PAGE_SIZE, Sbdf, make_sbdf
from guest_driver.boot import boot
from guest_driver.iommufd.mock_viommu import add_viommu
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import IommuDomain, IommuResvRegion
from guest_driver.linux.iommu_group import IommuGroup
from guest_driver.linux.kernel import CommandLine, Kernel
from guest_driver.linux.mock_domain import MockIommu
from guest_driver.port import PciHost, PciInfo
from guest_driver.xen_iommu import X86_MSI_WINDOW, XenIommu, xen_iommu_init
from machine.dma import DmaFabric
from machine.iommu.unit import Counters, Fault, Walk
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus
from testbed.build import build
from testbed.config import MIB, Config
from testbed.units import ONE_UNIT, UnitSpec

MOCK: Final = "mock"
X1: Final = "x1-nested"
"""The profile with nested tables and coherency by context."""
_FIRST_SLOT: Final = 16


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """One device: its name, the number of its group, and what its IOMMU can do for it."""

    name: str
    group: int = 0
    coherent: bool = True
    """DMA is coherent; iommufd refuses to bind what is not."""
    snoop_control: bool = True
    """Its unit can force snooping (mock driver, and VT-d with x1-nested)."""
    dirty: bool = True
    """Its unit tracks dirty pages (mock driver)."""
    pasids: int = 0
    """PASIDs it has (mock driver, and VT-d with x1-nested)."""
    regions: tuple[IommuResvRegion, ...] = ()
    """Reserved regions beside those that the driver reports."""


THREE: Final = (DeviceSpec("dev1"), DeviceSpec("dev2"), DeviceSpec("dev3"))
"""Three devices of one group."""

Mapped = tuple[int, int]
"""What map_pages answers: (0 or -errno, bytes that are mapped)."""
Lender = Callable[[int, bytes | None, int], bytes | None]
"""(pseudo-physical address, data to write or ``None``, length) within a page -> bytes; ``None``: not lent."""


class LentBus(SystemBus):
    """The system bus as DMA sees it, with some pages lent from elsewhere; ``pfns`` is machine frame to guest page."""

    def __init__(self, bus: SystemBus, pfns: dict[int, int] | None) -> None:
        super().__init__(bus.memory)
        self._bus: Final = bus
        self._pfns: Final = pfns
        self.lender: Lender | None = None

    def _lent(self, maddr: int, data: bytes | None, length: int) -> bytes | None:
        if self.lender is None:
            return None
        pfn = maddr >> PAGE_SHIFT if self._pfns is None else self._pfns.get(maddr >> PAGE_SHIFT)
        return None if pfn is None else self.lender(pfn << PAGE_SHIFT | maddr & PAGE_SIZE - 1, data, length)

    def dma_read(self, maddr: int, length: int) -> bytes:
        lent = self._lent(maddr, None, length)
        return self._bus.dma_read(maddr, length) if lent is None else lent

    def dma_write(self, maddr: int, data: bytes) -> None:
        if self._lent(maddr, data, len(data)) is None:
            self._bus.dma_write(maddr, data)


class Machine(Protocol):
    """A place to run.  ``devices`` are in the order of their specs."""

    kernel: Kernel
    devices: list[Device]
    specs: Sequence[DeviceSpec]
    refuse: dict[tuple[IommuDomain | None, str], int]
    """(domain or None for any, device name) to the error with which attaching is refused."""
    regions: dict[str, list[IommuResvRegion]]
    """Device name to its reserved regions."""
    map_error: int
    """The errno with which the driver refuses to map anything, 0 while it does not."""
    fabric: DmaFabric
    bus: LentBus

    def dma(self, dev: Device, iova: int) -> str:
        """What becomes of a device's read: "ok" or a word for the fault."""
        ...


class _Ram:
    """Memory of the mock machine as its kernel sees it."""

    xen_pv_domain = False

    def __init__(self, memory: PhysicalMemory) -> None:
        self.pages = memory.frames
        self._memory = memory

    def read(self, paddr: int, length: int) -> bytes:
        return self._memory.read(paddr, length)

    def write(self, paddr: int, data: bytes) -> None:
        self._memory.write(paddr, data)

    def linear(self, paddr: int) -> int:
        return paddr

    def pfn_to_gfn(self, pfn: int) -> int:
        return pfn


class _Pci:
    def __init__(self, functions: list[PciInfo]) -> None:
        self._functions = functions

    def devices(self) -> Sequence[PciInfo]:
        return self._functions

    def request_irq(self, handler: Callable[[], None]) -> tuple[int, int] | None:
        return None


class _NoMmio:
    def readl(self, address: int) -> int:
        return 0

    def writel(self, address: int, value: int) -> None:
        pass


class _MockUnit:
    """The mock driver's tables as hardware: what a request finds there."""

    name = "mock"
    register_size = PAGE_SIZE

    def __init__(self, mock: MockIommu, devices: Sequence[Device]) -> None:
        self.counters: Final = Counters()
        self._mock: Final = mock
        self._devices: Final = {dev.pci.sbdf & 0xFFFF: dev for dev in devices}

    def translate(self, sid: int, iova: int, write: bool, pasid: int | None = None) -> int | Fault:
        found = self._mock.translate(self._devices[sid], iova, write, pasid or 0)
        if isinstance(found, int):
            return found
        self.counters.faults += 1
        return Fault(self.name, sid, iova, write, 0, found, (), pasid)

    def walk(self, sid: int, iova: int, write: bool = False) -> Walk:
        found = self._mock.translate(self._devices[sid], iova, write, 0)
        blocked = None if isinstance(found, int) else found
        return Walk(sid, iova, write, (), found if isinstance(found, int) else None, None, True, True, blocked)

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass

    def save(self) -> Any:
        return None

    def restore(self, state: Any) -> None:
        pass


class MockMachine:
    """Functions over the mock driver; devices of one group are functions of one slot without isolation."""

    def __init__(
        self, specs: Sequence[DeviceSpec] = THREE, ram: int = MIB, checked: bool = True, page: int = PAGE_SIZE
    ) -> None:
        functions = []
        for spec in specs:
            members = [other for other in specs if other.group == spec.group]
            slot = _FIRST_SLOT + sorted({other.group for other in specs}).index(spec.group)
            sbdf = make_sbdf(0, 0, slot, members.index(spec))
            functions.append(PciInfo(sbdf, multifunction=len(members) > 1, max_pasids=spec.pasids))
        memory = PhysicalMemory(ram)
        self.specs = specs
        self.kernel = Kernel(_Ram(memory), _Pci(functions), _NoMmio(), CommandLine())
        self.devices = [Device(self.kernel, info) for info in functions]
        self.kernel.devices.extend(self.devices)
        ours = {info.sbdf for info in functions}
        self.mock: Final = MockIommu(page=page, checked=checked, covers=lambda dev: dev.pci.sbdf in ours)
        self.mock.unit.max_pasids = max((spec.pasids for spec in specs), default=0)
        self.refuse = self.mock.refuse
        self.regions = self.mock.regions
        for dev, spec in zip(self.devices, specs):
            self.regions[dev.name] = list(spec.regions)
            for wanted, names in (
                (spec.coherent, self.mock.incoherent),
                (spec.snoop_control, self.mock.no_snoop_control),
                (spec.dirty, self.mock.no_dirty),
            ):
                if not wanted:
                    names.add(dev.name)
        add_viommu(self.mock)
        error = self.mock.register(self.kernel)
        if error:
            raise ValueError(f"the mock driver did not start ({errno_name(error)})")
        self.bus = LentBus(SystemBus(memory), None)
        self.fabric = DmaFabric(self.bus)
        self.fabric.cover(_MockUnit(self.mock, self.devices))

    @property
    def map_error(self) -> int:
        return self.mock.map_error

    @map_error.setter
    def map_error(self, errno: int) -> None:
        self.mock.map_error = errno

    def dma(self, dev: Device, iova: int) -> str:
        return self.mock.dma(dev, iova)


class _WithPasids:
    """PCI as enumeration finds it, with the PASID capabilities that were asked for."""

    def __init__(self, pci: PciHost, pasids: dict[Sbdf, int]) -> None:
        self._pci: Final = pci
        self._pasids: Final = pasids
        self.request_irq: Final = pci.request_irq

    def devices(self) -> Sequence[PciInfo]:
        return [replace(info, max_pasids=self._pasids.get(info.sbdf, 0)) for info in self._pci.devices()]


class XenMachine:
    """Functions of the hardware domain's over the PV-IOMMU, grouped as asked for."""

    def __init__(
        self,
        backend: str,
        specs: Sequence[DeviceSpec] = THREE,
        ram: int = 64 * MIB,
        guest_ram: int = 16 * MIB,
        profile: str = "v7-fixed",
    ) -> None:
        names = [make_sbdf(0, 0, _FIRST_SLOT + number // 8, number % 8) for number in range(len(specs))]
        self.testbed: Final = build(
            Config(
                backend=backend,
                profile=profile,
                guest="pvh",
                ram=ram,
                guest_ram=guest_ram,
                endpoints=tuple(names),
                units=_units(backend, profile, [sbdf for sbdf, spec in zip(names, specs) if not spec.snoop_control]),
            )
        )
        self.specs = specs
        self._group_of: Final = {sbdf: spec.group for sbdf, spec in zip(names, specs)}
        self.refuse: dict[tuple[IommuDomain | None, str], int] = {}
        self.regions: dict[str, list[IommuResvRegion]] = {}
        self.map_error = 0
        self._incoherent: Final = {sbdf for sbdf, spec in zip(names, specs) if not spec.coherent}
        testbed = self.testbed
        guest = boot(
            testbed.hypercalls,
            testbed.ram,
            _WithPasids(testbed.guest_pci, {sbdf: spec.pasids for sbdf, spec in zip(names, specs)}),
            testbed.mmio,
            testbed.xen.abi,
            msi_window=None if testbed.backend.doorbell_is_translated else X86_MSI_WINDOW,
            init=partial(xen_iommu_init, adjust=self._adjust),
        )
        if guest.xen is None:
            raise ValueError(f"the guest found no PV-IOMMU ({errno_name(guest.xen_errno)})")
        self.kernel = guest.kernel
        self.driver: Final[XenIommu] = guest.xen
        self.devices = [guest.devices[sbdf] for sbdf in names]
        for dev, spec in zip(self.devices, specs):
            self.regions[dev.name] = list(spec.regions)
        self.bus = LentBus(testbed.bus, {mfn: pfn for pfn, mfn in enumerate(testbed.mfns)})
        self.fabric = DmaFabric(self.bus)
        for sbdf in names:
            unit, sid = testbed.fabric.route(sbdf)
            assert unit is not None
            self.fabric.cover(unit, sbdf, sid - (sbdf & 0xFFFF))

    def _adjust(self, driver: XenIommu) -> None:
        ops = driver.ops
        attach, group, capable = ops.default_domain_ops.attach_dev, ops.device_group, ops.capable
        regions = ops.get_resv_regions or (lambda dev: [])
        map_pages = driver.domain_ops.map_pages
        assert map_pages is not None

        def map_or_refuse(domain: Any, iova: int, paddr: int, size: int, count: int, prot: int, gfp: int) -> Mapped:
            return (-self.map_error, 0) if self.map_error else map_pages(domain, iova, paddr, size, count, prot, gfp)

        def attach_dev(domain: IommuDomain, dev: Device, old: IommuDomain | None) -> int:
            errno = self.refuse.get((domain, dev.name), self.refuse.get((None, dev.name), 0))
            return -errno if errno else attach(domain, dev, old)

        def device_group(dev: Device) -> IommuGroup | int:
            wanted = self._group_of.get(dev.pci.sbdf)
            if wanted is None:
                return group(dev)
            for other in dev.kernel.devices:
                if self._group_of.get(other.pci.sbdf) == wanted and other.iommu_group is not None:
                    return other.iommu_group
            return IommuGroup(dev.kernel.iommu)

        def is_capable(dev: Device, cap: int) -> bool:
            return dev.pci.sbdf not in self._incoherent and capable is not None and capable(dev, cap)

        driver.domain_ops.map_pages = map_or_refuse
        ops.default_domain_ops.attach_dev = attach_dev
        ops.device_group = device_group
        ops.capable = is_capable
        ops.get_resv_regions = lambda dev: [*regions(dev), *self.regions.get(dev.name, [])]

    def dma(self, dev: Device, iova: int) -> str:
        answer = self.fabric.port(Sbdf(dev.pci.sbdf)).read(iova, 8)
        return "ok" if isinstance(answer, bytes) else "fault"


def _units(backend: str, profile: str, without_snoop: Sequence[Sbdf]) -> tuple[UnitSpec, ...]:
    """One unit, with both stages where the interface can use them; devices without snoop control behind another."""
    if profile != X1:
        return ONE_UNIT
    if backend == "vtd" and without_snoop:
        return (UnitSpec(), UnitSpec("no-snoop", scope=tuple(without_snoop)))
    return (UnitSpec({"smmuv3": "nested", "vtd": "scalable"}.get(backend, "default")),)


def make_machine(place: str, specs: Sequence[DeviceSpec] = THREE) -> Machine:
    """``mock`` or a backend's name; ``ValueError`` for others."""
    return MockMachine(specs) if place == MOCK else XenMachine(place, specs)

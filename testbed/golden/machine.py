# SPDX-License-Identifier: GPL-2.0-or-later
"""A test bed built like the machine that a record was made on.

QEMU's q35 with one VT-d unit, Xen, and a dom0 that owns the record's runs of frames.  What the record does not say,
which other frames are dom0's, is taken from the first call that maps them: the pages that were mapped were dom0's.
"""

from typing import Any, Final

from base.units import DomId, Sbdf, make_sbdf
from hypervisor import profile as profiles
from hypervisor.defects import catalogue
from hypervisor.domain import Domain, Vcpu
from hypervisor.frames import REF
from hypervisor.guest_access import DIRECT_MAP, LinearMemory
from hypervisor.iommu.context import PciDevice
from hypervisor.platform import Platform
from hypervisor.vtd.driver import VtdBackend
from hypervisor.xen import XEN_FRAMES, Xen
from machine.firmware import Drhd, Firmware
from machine.interrupts import MessageInterrupts
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.unit import VtdUnit
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus
from machine.pci import PciFunction, PciTopology, PortType
from testbed.backends import VTD
from testbed.golden.records import Record

FOUR_GIB_FRAMES: Final = 1 << 20
MESSAGE_FRAMES: Final = (0xFEE00, 0xFEEFF)
"""Where x86 keeps message interrupts: never mapped."""
BUFFER_PAGES: Final = 4
READ_ONLY_LINEAR: Final = 0x7F00_0000_0000
"""Where the recorder's page is mapped a second time, without the right to write."""


_SAYS_NOTHING: Final = (-7, -14, -22)
"""Answers of map with which ``mapped`` is still what the guest wrote: -E2BIG, -EFAULT, -EINVAL."""


def _endpoint(bus: int, device: int, function: int, class_code: int = 0x020000) -> PciFunction:
    return PciFunction(make_sbdf(0, bus, device, function), class_code=class_code)


FUNCTIONS: Final = (
    PciFunction(make_sbdf(0, 0, 0, 0), PortType.HOST_BRIDGE, class_code=0x060000),
    _endpoint(0, 3, 0),
    _endpoint(0, 4, 0),
    _endpoint(0, 5, 0),
    PciFunction(make_sbdf(0, 0, 6, 0), PortType.ROOT_PORT, class_code=0x060400, secondary_bus=1),
    PciFunction(make_sbdf(0, 0, 7, 0), PortType.ROOT_PORT, class_code=0x060400, secondary_bus=2),
    _endpoint(0, 0x1F, 0, 0x060100),
    _endpoint(0, 0x1F, 2, 0x010601),
    _endpoint(0, 0x1F, 3, 0x0C0500),
    _endpoint(1, 0, 0),
    PciFunction(make_sbdf(0, 2, 0, 0), PortType.PCIE_TO_PCI_BRIDGE, class_code=0x060400, secondary_bus=3),
    PciFunction(make_sbdf(0, 3, 1, 0), PortType.CONVENTIONAL, class_code=0x020000),
)
"""The recording machine's PCI functions; for the one behind a bridge the recorded Xen writes its own id only."""


class GoldenMachine:
    """The machine of ``record`` with a hypervisor of ``profile`` on it."""

    def __init__(self, record: Record, profile: str, defects: tuple[str, ...] = ()) -> None:
        owned = sorted(_owned(record))
        buffers = max((mfn + 1 for mfn in owned), default=XEN_FRAMES)
        top = buffers + BUFFER_PAGES + (2 << max(record.arena_order, 0)) + 0x4000
        self.memory: Final = PhysicalMemory(min(top, FOUR_GIB_FRAMES - 0x20000) << 12)
        self.bus: Final = SystemBus(self.memory)
        interrupts = MessageInterrupts()
        self.bus.map(*VTD.doorbell_window, interrupts)
        self.unit: Final = VtdUnit("dmar0", self.bus, VtdConfig(**_capabilities(record)), None)
        self.bus.map(VTD.unit_base, self.unit.register_size, self.unit)
        pci = PciTopology()
        for function in FUNCTIONS:
            pci.add(function)
        firmware = Firmware(drhds=(Drhd(VTD.unit_base),))
        platform = Platform(self.memory, self.bus, pci, firmware, interrupts, VTD.doorbell)
        chosen = profiles.get(profile)
        chosen = profiles.with_arena(chosen, record.arena_order)
        self.xen: Final = Xen(platform, chosen, VtdBackend)
        self.seams: Final = catalogue.apply(self.xen, (*chosen.defects, *defects), debug_build=record.debug_build)
        frames = self.xen.frames
        for first, count in _stretches([*owned, *range(buffers, buffers + BUFFER_PAGES)]):
            frames.allocate_at(DomId(0), first, count)
            if record.baseline > 1:
                frames.get(first, count, REF * (record.baseline - 1))
        beyond = [(self.memory.frames, FOUR_GIB_FRAMES - 1)]
        self.dom0: Final[Domain] = self.xen.create_domain(
            0,
            hardware=True,
            pv=not record.pvh,
            mmio=() if record.pvh else beyond,
            p2m_frames=buffers + BUFFER_PAGES if record.pvh else 0,
        )
        if record.pvh:
            for first, count in _stretches([*owned, *range(buffers, buffers + BUFFER_PAGES)]):
                self.dom0.p2m.set(first, first, count)
        pages = list(range(buffers, buffers + BUFFER_PAGES))
        linear = LinearMemory(self.memory, self.dom0.translation, BUFFER_PAGES, pages, reserved=not record.pvh)
        linear.pages[READ_ONLY_LINEAR >> 12] = (0, False)
        self.vcpu: Final[Vcpu] = self.xen.add_vcpu(self.dom0, linear)
        self.buffer: Final = DIRECT_MAP
        self.buffer_maddr: Final = buffers << 12
        self._map_one_to_one()
        for function in FUNCTIONS:
            error = self.xen.attach_device(self.dom0, PciDevice(function, (function.sbdf,)))
            if error:
                raise ValueError(f"{function} could not be given to dom0 ({error})")
        assert self.dom0.iommu is not None
        self.iommu: Final = self.dom0.iommu
        self.start: Final = frames.refs[:]

    @property
    def arena_base(self) -> int:
        return self.iommu.arena.base if self.iommu.arena is not None else 0

    @property
    def default_root(self) -> int:
        """Frame of context 0's root table."""
        assert self.iommu.default.table is not None
        return self.iommu.default.table.root

    def context_entry(self, sbdf: Sbdf) -> tuple[int, int] | None:
        """The context entry of a device as it is in memory, ``None`` without a context table for its bus."""
        backend = self.xen.backend
        assert isinstance(backend, VtdBackend)
        return backend.units[0].read_context(sbdf)

    def _map_one_to_one(self) -> None:
        """Context 0 of a hardware domain: every frame below 4 GiB but those of message interrupts."""
        if self.dom0.pv:
            self.xen.map_default(self.dom0, 0, 0, MESSAGE_FRAMES[0])
            after = MESSAGE_FRAMES[1] + 1
            self.xen.map_default(self.dom0, after, after, FOUR_GIB_FRAMES - after)


def _capabilities(record: Record) -> dict[str, Any]:
    """What the recorded unit could do beyond or below our default one."""
    cap = record.capabilities
    widths = tuple(width for width, bit in ((39, 9), (48, 10)) if cap >> bit & 1)
    return {
        "caching_mode": bool(cap >> 7 & 1),
        "address_widths": widths or (48,),
        "superpage_2m": bool(cap >> 34 & 1),
        "superpage_1g": bool(cap >> 35 & 1),
        "page_selective": bool(cap >> 39 & 1),
        "max_address_mask": cap >> 48 & 0x3F,
    }


def _owned(record: Record) -> set[int]:
    """Frames of dom0: its runs, and what the record shows to be mapped by calls."""
    owned: set[int] = set()
    for run in record.runs.values():
        owned.update(range(run.base, run.base + run.length))
    known = dict.fromkeys(owned, True)
    for line in record.lines:
        data = line.data
        if data.get("op") != "map" or "gfn" not in data.get("in", {}) or not isinstance(data.get("out"), dict):
            continue
        text = data["in"]["gfn"]
        if isinstance(text, str) and text.startswith("arena+"):
            continue
        first = record.frame(text)
        done = data["out"].get("mapped", 0) if data.get("ret") not in _SAYS_NOTHING else 0
        if data.get("ret") == 0:
            done = data["in"].get("nr", 0)
        for mfn in range(first, first + min(done, 256)):
            known.setdefault(mfn, True)
        if data.get("ret") == -1:
            known.setdefault(first + done, False)
    return {mfn for mfn, is_dom0s in known.items() if is_dom0s and XEN_FRAMES <= mfn < FOUR_GIB_FRAMES}


def _stretches(frames: list[int]) -> list[tuple[int, int]]:
    """(first, count) of consecutive frames in a sorted list."""
    found: list[tuple[int, int]] = []
    for mfn in frames:
        if found and sum(found[-1]) == mfn:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((mfn, 1))
    return found

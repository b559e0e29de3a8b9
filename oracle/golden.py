# SPDX-License-Identifier: GPL-2.0-or-later
"""Golden values: words that a real Xen wrote, against what our drivers write for the same thing.

Read from the RAM of Xen 4.17 (Debian's package, x86 and arm64) while it ran under QEMU: context entries, page-table
leaves and invalidation queue of its VT-d driver, stage 2 leaves and VTCR_EL2 of its p2m.  Debian's Xen is built without
the SMMUv3 driver: those words follow from Xen's source and from the values above.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
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
from machine.iommu.unit import IommuUnit, WalkStep
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.unit import VtdUnit
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus
from machine.pci import PciFunction, PciTopology
from oracle.campaign import Limits
from oracle.outcome import Finding, Outcome
from oracle.software import Software

RAM: Final = 64 << 20
BASE: Final = 0xFED9_0000
DATA: Final = 0x2000
"""A frame at a multiple of 2 MiB for programs to map."""
DEVICE: Final = make_sbdf(0, 0, 3, 0)
SID: Final = 0x18
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_P2M_TYPE: Final = 0xF << 55
"""Bits 58:55 of a stage 2 descriptor, which hardware ignores: Xen's type, our reference mark."""


class Bench:
    """A driver on our own unit."""

    def __init__(
        self,
        unit: Callable[[SystemBus], IommuUnit],
        firmware: Firmware,
        driver: Callable[[Platform, FrameTable], Backend],
    ) -> None:
        self.memory: Final = PhysicalMemory(RAM)
        bus = SystemBus(self.memory)
        self.unit: Final = unit(bus)
        bus.map(BASE, self.unit.register_size, self.unit)
        topology = PciTopology()
        device = PciDevice(topology.add(PciFunction(DEVICE)), (DEVICE,))
        platform = Platform(self.memory, bus, topology, firmware, MessageInterrupts(), X86_DOORBELL_BASE)

        def make(platform: Platform, frames: FrameTable) -> Backend:
            frames.allocate_at(DomId(0), DATA, 0x1000)
            return driver(platform, frames)

        self.software: Final = Software(Xen(platform, profile.get("v7-fixed"), make), [device])

    def attached(self) -> "Bench":
        """With the device in context 1."""
        self.software.context(1)
        self.software.attach(0, 1)
        return self

    def steps(self, iova: int, write: bool = False) -> tuple[WalkStep, ...]:
        return self.unit.walk(SID, iova, write).steps

    def leaf(self, pages: int, permission: int) -> int:
        """The leaf of a mapping of ``pages`` pages, without its address and the mark of a reference."""
        self.software.map(1, 0x400, DATA, pages, permission)
        step = self.steps(0x40_0000, permission == 2)[-1]
        self.software.unmap(1, 0x400, pages)
        return step.words[0] & ~_ADDRESS


def _vtd(depth: int = 4) -> Bench:
    widths = (39, 48) if depth == 4 else (39,)
    return Bench(
        lambda bus: VtdUnit("dmar0", bus, VtdConfig(address_widths=widths)),
        Firmware(drhds=(Drhd(BASE),)),
        VtdBackend,
    )


def _smmu(bits: int) -> Bench:
    return Bench(
        lambda bus: Smmuv3Unit("smmu0", bus, Smmuv3Config(oas=bits)),
        Firmware(smmus=(SmmuNode(BASE),)),
        Smmuv3Backend,
    )


def _queued(bench: Bench) -> list[tuple[int, int]]:
    """The descriptors in a VT-d invalidation queue, oldest first."""
    words = bench.memory.words
    ring = bench.unit.read(0x90, 8) >> 12 << 9
    tail = bench.unit.read(0x88, 8) >> 4
    return [(words[ring + 2 * slot], words[ring + 2 * slot + 1]) for slot in range(tail)]


def _context_entry(bench: Bench) -> tuple[int, int]:
    low, high = next(step.words for step in bench.attached().steps(0) if step.name == "context entry")
    return low & 0xFFF, high & 0xFF


def _ste(bench: Bench) -> tuple[int, ...]:
    return next(step.words for step in bench.attached().steps(0) if step.name == "STE")


def _vtd_flush(bench: Bench) -> tuple[int, int]:
    """The descriptor for a mapping of four aligned pages that goes away, without domain id and address."""
    bench.attached()
    bench.software.map(1, 0x400, DATA, 4, 3)
    bench.software.unmap(1, 0x400, 4)
    low, high = _queued(bench)[-2]
    return low & 0xFFFF, high & 0xFFF


def _move_flush(bench: Bench) -> tuple[int, int]:
    """The first descriptor when the device moves, with the old context entry's domain id taken out of it."""
    bench.software.context(2)
    bench.software.context(1)
    bench.software.attach(0, 1)
    entry = next(step.words for step in bench.steps(0) if step.name == "context entry")
    before = len(_queued(bench))
    bench.software.attach(0, 2)
    low, high = _queued(bench)[before]
    return low ^ (entry[1] >> 8 & 0xFFFF) << 16, high


def _domain_flush(bench: Bench) -> int:
    bench.attached()
    bench.software.map(1, 0x400, DATA, 3, 3)
    bench.software.unmap(1, 0x400, 3)
    return _queued(bench)[-2][0] & 0xFFFF


def _commands(bench: Bench) -> list[tuple[int, int]]:
    """The commands in an SMMU's queue from its first slot on."""
    words = bench.memory.words
    start = (bench.unit.read(0x90, 8) & 0xF_FFFF_FFFF_FFE0) >> 3
    return [(words[start + 2 * slot], words[start + 2 * slot + 1]) for slot in range(bench.unit.read(0x98, 4))]


def _flush_commands(pages: int) -> list[tuple[int, int]]:
    """What is queued when ``pages`` of a few more mapped pages go away in context 1 (VMID 1)."""
    bench = _smmu(44).attached()
    bench.software.map(1, 0x400, DATA, pages + 1, 3)
    before = len(_commands(bench))
    bench.software.unmap(1, 0x400, pages)
    return _commands(bench)[before:]


Covered = tuple[tuple[str, int, int], ...]
"""(structure, word, mask) of the bits that a value pins."""


@dataclass(frozen=True, slots=True)
class Vector:
    """One value: what it is, what Xen wrote, how our driver comes to write it, where it was read, what it pins."""

    name: str
    golden: object
    ours: Callable[[], object]
    source: str
    covers: Covered = ()


_DUMP: Final = "read from the RAM of Xen 4.17"
_SOURCE: Final = "Xen's source, drivers/passthrough/arm/smmu-v3.c, with the values above"
_MANUAL: Final = "IHI 0070, chapter 4"
_LOW: Final = 0xFFF
_REST: Final = ~_ADDRESS & (1 << 64) - 1
_CONTEXT: Final = (("context entry", 0, _LOW), ("context entry", 1, 0xFF))
_LEAF: Final = (("second-stage leaf", 0, _REST),)
_S2_REST: Final = _REST & ~_P2M_TYPE
_ALL: Final = (1 << 64) - 1

VECTORS: Final = (
    Vector("VT-d context entry, 4 levels, type 0", (0x001, 0x02), lambda: _context_entry(_vtd()), _DUMP, _CONTEXT),
    Vector("VT-d context entry, 3 levels", (0x001, 0x01), lambda: _context_entry(_vtd(3)), "VT-d specification 9.3"),
    Vector("VT-d 4 KiB leaf, read and write", 0x003, lambda: _vtd().attached().leaf(1, 3), _DUMP, _LEAF),
    Vector("VT-d 4 KiB leaf, read only", 0x001, lambda: _vtd().attached().leaf(1, 1), _DUMP),
    Vector(
        "VT-d 2 MiB leaf, read and write",
        0x083,
        lambda: _vtd().attached().leaf(512, 3),
        _DUMP,
        (("second-stage superpage", 0, _REST),),
    ),
    Vector("VT-d 2 MiB leaf, read only", 0x081, lambda: _vtd().attached().leaf(512, 1), _DUMP),
    Vector(
        "VT-d table pointer", 0x003, lambda: _table_pointer(_vtd()), _DUMP, (("second-stage table pointer", 0, _REST),)
    ),
    Vector(
        "VT-d descriptors at power-on: context cache, IOTLB, each with its wait",
        [0x11, 0x1_0000_0065, 0xD2, 0x1_0000_0065],
        lambda: [low for low, _ in _queued(_vtd())],
        _DUMP,
        (("context-cache descriptor", 0, 0xFFFF), ("wait descriptor", 0, _ALL)),
    ),
    Vector(
        "VT-d descriptor for a device that moves, the old entry's domain id aside",
        (0x18_0000_0031, 0),
        lambda: _move_flush(_vtd()),
        "Xen's source, drivers/passthrough/vtd/iommu.c, with VT-d specification 6.5.2.1",
        (("context-cache descriptor", 0, _ALL),),
    ),
    Vector("VT-d descriptor for a domain", 0xE2, lambda: _domain_flush(_vtd()), _DUMP),
    Vector(
        "VT-d descriptor for 4 aligned pages",
        (0xF2, 0x002),
        lambda: _vtd_flush(_vtd()),
        "Xen's flush rule with VT-d specification 6.5.2.3",
        (("IOTLB descriptor", 0, 0xFFFF), ("IOTLB descriptor", 1, 0xFFF)),
    ),
    Vector(
        "stage 2 4 KiB leaf, read and write",
        0x0040_0000_0000_07FF,
        lambda: _s2_leaf(1, 3),
        _DUMP,
        (("stage 2 page", 0, _S2_REST),),
    ),
    Vector("stage 2 4 KiB leaf, read only", 0x0040_0000_0000_077F, lambda: _s2_leaf(1, 1), _DUMP),
    Vector(
        "stage 2 2 MiB leaf, read and write",
        0x0040_0000_0000_07FD,
        lambda: _s2_leaf(512, 3),
        _DUMP,
        (("stage 2 block", 0, _S2_REST),),
    ),
    Vector("stage 2 table pointer", 0x3, lambda: _table_pointer(_smmu(44)) & 3, _DUMP, (("stage 2 table", 0, 3),)),
    Vector(
        "VTCR in the STE, 44-bit addresses",
        0x4_3594,
        lambda: _ste(_smmu(44))[2] >> 32 & 0x7FFFF,
        _DUMP,
        (("STE", 2, 0x7_FFFF << 32),),
    ),
    Vector(
        "VTCR in the STE, 40-bit addresses, two root tables",
        0x2_3558,
        lambda: _ste(_smmu(40))[2] >> 32 & 0x7FFFF,
        _DUMP,
    ),
    Vector(
        "first-level stream descriptor, 256 streams",
        9,
        lambda: _smmu(44).attached().steps(0)[0].words[0] & 0x1F,
        _SOURCE,
        (("first-level stream descriptor", 0, 0x1F),),
    ),
    Vector("STE word 0", 0xD, lambda: _ste(_smmu(44))[0], _SOURCE, (("STE", 0, _ALL),)),
    Vector("STE word 1", 1 << 44, lambda: _ste(_smmu(44))[1], _SOURCE, (("STE", 1, _ALL),)),
    Vector(
        "STE word 2 above the VTCR fields: AA64, PTW, R",
        1 << 51 | 1 << 54 | 1 << 58,
        lambda: _ste(_smmu(44))[2] & ~0x0007_FFFF_0000_FFFF,
        _SOURCE,
        (("STE", 2, 0xFFF8 << 48 | 0xFFFF << 16),),
    ),
    Vector("STE, VMID of the first context", 1, lambda: _ste(_smmu(44))[2] & 0xFFFF, _SOURCE, (("STE", 2, 0xFFFF),)),
    Vector(
        "command: one page of VMID 1",
        (0x1_0000_002A, 0x40_0001),
        lambda: _flush_commands(1)[0],
        _MANUAL,
        (("TLB command", 0, _ALL), ("TLB command", 1, _ALL)),
    ),
    Vector(
        "command: stream 18h, after its stream table entry changed",
        (0x18_0000_0003, 1),
        lambda: next(command for command in reversed(_commands(_smmu(44).attached())) if command[0] & 0xFF == 3),
        _MANUAL,
        (("stream command", 0, _ALL), ("stream command", 1, _ALL)),
    ),
    Vector(
        "command: completion, by message",
        (0x46, 0x1000, 3 << 22, 0xF << 24),
        lambda: _sync_fields(_commands(_smmu(44))[-1][0]),
        _MANUAL,
        (("sync command", 0, 0xFFC_30FF),),
    ),
)


def _sync_fields(word: int) -> tuple[int, ...]:
    """CMD_SYNC's opcode, CS, MSH and MSIAttr, in place."""
    return word & 0xFF, word & 3 << 12, word & 3 << 22, word & 0xF << 24


def _table_pointer(bench: Bench) -> int:
    bench.attached().software.map(1, 0x400, DATA, 1, 3)
    return bench.steps(0x40_0000)[-2].words[0] & ~_ADDRESS


def _s2_leaf(pages: int, permission: int) -> int:
    return _smmu(44).attached().leaf(pages, permission) & ~_P2M_TYPE


def run(limits: Limits, progress: Callable[[Outcome], None]) -> Outcome:
    """Compare every vector once; limits and seed change nothing."""
    outcome = Outcome("golden", limits.seed)
    started = time.monotonic()
    for vector in VECTORS:
        outcome.checked += 1
        ours = vector.ours()
        if ours != vector.golden:
            difference = (f"{vector.name} ({vector.source})", _show(ours), _show(vector.golden))
            outcome.findings.append(Finding((vector.name,), "", 0, 0, (difference,), "", None, ""))
        progress(outcome)
    outcome.seconds = time.monotonic() - started
    return outcome


def _show(value: object) -> str:
    if isinstance(value, int):
        return f"{value:#x}"
    if isinstance(value, (list, tuple)):
        return " ".join(_show(part) for part in value)
    return str(value)

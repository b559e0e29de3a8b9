# SPDX-License-Identifier: GPL-2.0-or-later
"""Golden values: words that a real Xen wrote, against what our drivers write for the same thing.

Read from the RAM of Xen 4.17 (Debian's package, x86 and arm64) while it ran under QEMU: root and context entries,
page-table leaves and invalidation queue of its VT-d driver, stage 2 leaves and VTCR_EL2 of its p2m.  Debian's Xen is
built without the SMMUv3 driver: those words follow from Xen's source and from the values above.  Where Xen has nothing
to compare, a word was put together by hand from the manual.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from oracle.bench import ADDRESS, Bench, Spoil, as_written, smmu, stage_1, vtd
from oracle.campaign import Limits
from oracle.outcome import Finding, Outcome
from oracle.plants import Plant

_SOFTWARE: Final = 0x3FF << 52
"""Bits of a VT-d entry that hardware ignores: contiguity markers, the mark of a reference."""
_P2M_TYPE: Final = 0xF << 55
"""The same of a stage 2 descriptor: Xen's type, our mark."""


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """One value: what it is, what it should be, how our driver comes to write it, where it was read."""

    name: str
    golden: object
    ours: Callable[[Spoil], object]
    source: str


_DUMP: Final = "read from the RAM of Xen 4.17"
_SOURCE: Final = "Xen's source, drivers/passthrough/arm/smmu-v3.c, with the values above"
_FLUSH_RULE: Final = "Xen's flush rule with VT-d specification 6.5.2"
_MANUAL: Final = "IHI 0070, chapter 4"
_STREAMS: Final = "IHI 0070, chapter 5"
_DESCRIPTORS: Final = "Arm ARM D8.3"


def _root_entry(bench: Bench) -> tuple[int, int]:
    low, high = bench.attached().entry("root entry")
    return low & ~ADDRESS, high


def _context_entry(bench: Bench) -> tuple[int, int]:
    low, high = bench.attached().entry("context entry")
    return low & ~ADDRESS, high & ~(0xFFFF << 8)


def _moved(bench: Bench) -> tuple[int, int]:
    """The first descriptor when the device moves, with the old context entry's domain id taken out of it."""
    bench.software.context(2)
    bench.attached()
    old = bench.entry("context entry")[1] >> 8 & 0xFFFF
    low, high = bench.after(lambda: bench.software.attach(0, 2))[0]
    return low ^ old << 16, high


def _vtd_flush(bench: Bench, pages: int) -> tuple[int, int]:
    """The descriptor for pages that go away, with the context entry's domain id taken out of it."""
    bench.attached()
    did = bench.entry("context entry")[1] >> 8 & 0xFFFF
    low, high = bench.unmapped(pages)[0]
    return low ^ did << 16, high


def _wait(bench: Bench) -> tuple[int, int]:
    """The wait descriptor after a command, its address less that of the page after the ring."""
    low, high = bench.commands()[1]
    return low, high - ((bench.unit.read(0x90, 8) >> 12) + 1 << 12)


def _ste(bench: Bench) -> tuple[int, ...]:
    return bench.attached().entry("STE")


def _sync(bench: Bench) -> tuple[int, int]:
    """The last CMD_SYNC without its message, and by how much the word at the message's address misses its data."""
    low, high = bench.commands()[-1]
    word = bench.memory.words[high >> 3 & len(bench.memory.words) - 1]
    return low & 0xFFFF_FFFF, (word & 0xFFFF_FFFF) - (low >> 32) | high & 7


def _stream_command(bench: Bench) -> tuple[int, int]:
    return next(command for command in reversed(bench.attached().commands()) if command[0] & 0xFE == 2)


VECTORS: Final = (
    Vector("VT-d root entry", (1, 0), lambda p: _root_entry(vtd(p)), _DUMP),
    Vector("VT-d context entry, 4 levels, type 0", (0x001, 0x02), lambda p: _context_entry(vtd(p)), _DUMP),
    Vector(
        "VT-d context entry, 3 levels", (0x001, 0x01), lambda p: _context_entry(vtd(p, 3)), "VT-d specification 9.3"
    ),
    Vector(
        "VT-d context entry, a device with a TLB",
        (0x005, 0x02),
        lambda p: _context_entry(vtd(p, device_tlb=True)),
        "Xen's source, drivers/passthrough/vtd/iommu.c",
    ),
    Vector(
        "VT-d 4 KiB leaf of frame 2000h, read and write",
        0x0200_0003,
        lambda p: vtd(p).attached().leaf(1, 3) & ~_SOFTWARE,
        _DUMP,
    ),
    Vector("VT-d 4 KiB leaf, read only", 0x0200_0001, lambda p: vtd(p).attached().leaf(1, 1) & ~_SOFTWARE, _DUMP),
    Vector(
        "VT-d 2 MiB leaf, read and write", 0x0200_0083, lambda p: vtd(p).attached().leaf(512, 3) & ~_SOFTWARE, _DUMP
    ),
    Vector("VT-d 2 MiB leaf, read only", 0x0200_0081, lambda p: vtd(p).attached().leaf(512, 1) & ~_SOFTWARE, _DUMP),
    Vector("VT-d table pointer", 0x003, lambda p: vtd(p).attached().table_pointer() & ~_SOFTWARE, _DUMP),
    Vector(
        "VT-d descriptors at power-on: context cache, IOTLB, each with its wait",
        [0x11, 0x1_0000_0065, 0xD2, 0x1_0000_0065],
        lambda p: [low for low, _ in vtd(p).commands()],
        _DUMP,
    ),
    Vector(
        "VT-d wait descriptor, its status word in the page after the ring",
        (0x1_0000_0065, 0),
        lambda p: _wait(vtd(p)),
        _DUMP,
    ),
    Vector(
        "VT-d descriptor for a device that moves, the old entry's domain id aside",
        (0x18_0000_0031, 0),
        lambda p: _moved(vtd(p)),
        "Xen's source, drivers/passthrough/vtd/iommu.c, with VT-d specification 6.5.2.1",
    ),
    Vector("VT-d descriptor for a domain", (0xE2, 0), lambda p: _vtd_flush(vtd(p), 3), _DUMP),
    Vector("VT-d descriptor for 4 aligned pages", (0xF2, 0x40_0002), lambda p: _vtd_flush(vtd(p), 4), _FLUSH_RULE),
    Vector(
        "VT-d device-TLB descriptor for a domain",
        (0x18_0000_0003, 0x7FFF_FFFF_FFFF_F001),
        lambda p: vtd(p, device_tlb=True).attached().unmapped(3)[2],
        _FLUSH_RULE,
    ),
    Vector(
        "VT-d device-TLB descriptor for 4 aligned pages",
        (0x18_0000_0003, 0x40_1001),
        lambda p: vtd(p, device_tlb=True).attached().unmapped(4)[2],
        _FLUSH_RULE,
    ),
    Vector("stage 2 4 KiB leaf, read and write", 0x0040_0000_0200_07FF, lambda p: _s2_leaf(p, 1, 3), _DUMP),
    Vector("stage 2 4 KiB leaf, read only", 0x0040_0000_0200_077F, lambda p: _s2_leaf(p, 1, 1), _DUMP),
    Vector("stage 2 2 MiB leaf, read and write", 0x0040_0000_0200_07FD, lambda p: _s2_leaf(p, 512, 3), _DUMP),
    Vector("stage 2 table pointer", 0x3, lambda p: smmu(p).attached().table_pointer() & 3, _DUMP),
    Vector("VTCR in the STE, 44-bit addresses", 0x4_3594, lambda p: _ste(smmu(p))[2] >> 32 & 0x7FFFF, _DUMP),
    Vector(
        "VTCR in the STE, 40-bit addresses, two root tables",
        0x2_3558,
        lambda p: _ste(smmu(p, 40))[2] >> 32 & 0x7FFFF,
        _DUMP,
    ),
    Vector(
        "first-level stream descriptor, 256 streams",
        9,
        lambda p: smmu(p).attached().entry("first-level stream descriptor")[0] & ~ADDRESS,
        _SOURCE,
    ),
    Vector("STE words 0 and 1", (0xD, 1 << 44), lambda p: _ste(smmu(p))[:2], _SOURCE),
    Vector(
        "STE word 2 beside the VTCR fields: AA64, PTW, R, the first context's VMID",
        1 << 51 | 1 << 54 | 1 << 58 | 1,
        lambda p: _ste(smmu(p))[2] & ~(0x7FFFF << 32),
        _SOURCE,
    ),
    Vector(
        "STE words 3 to 7, the table's address aside",
        (0, 0, 0, 0, 0),
        lambda p: (_ste(smmu(p))[3] & ~ADDRESS, *_ste(smmu(p))[4:]),
        _SOURCE,
    ),
    Vector(
        "command: one page of VMID 1",
        (0x1_0000_002A, 0x40_0001),
        lambda p: smmu(p).attached().unmapped(1, 1)[0],
        _MANUAL,
    ),
    Vector(
        "command: 24 pages of VMID 1 as a range",
        (0x1_0030_202A, 0x40_0401),
        lambda p: smmu(p).attached().unmapped(24, 1)[0],
        _MANUAL,
    ),
    Vector(
        "command: stream 18h, after its stream table entry changed",
        (0x18_0000_0003, 1),
        lambda p: _stream_command(smmu(p)),
        _MANUAL,
    ),
    Vector(
        "STE word 1, a device with a TLB",
        1 << 44 | 1 << 28,
        lambda p: _ste(smmu(p, device_tlb=True))[1],
        _SOURCE,
    ),
    Vector(
        "commands for a device with a TLB: 4 aligned pages; all, as it goes",
        [(0x18_0000_0040, 0x40_0002), (0x18_0000_0040, 52)],
        lambda p: _device_cache_commands(smmu(p, device_tlb=True).attached()),
        _MANUAL,
    ),
    Vector("commands at power-on", [(0x04, 31), (0x30, 0)], lambda p: smmu(p).commands()[:2], _MANUAL),
    Vector(
        "command: completion, by a message that arrives (our unit sends it)",
        (0x0FC0_1046, 0),
        lambda p: _sync(smmu(p)),
        _MANUAL,
    ),
    Vector(
        "stage 1 STE, the descriptor's address aside",
        (0xB, 0x0003_1000_0000_00D4),
        lambda p: _first_words(p, "stage 1 STE"),
        _STREAMS,
    ),
    Vector("CD word 0 of ASID 1", 0x0001_E205_C000_3510, lambda p: stage_1(p).attached().entry("CD")[0], _STREAMS),
    Vector(
        "CD words 1 to 3, the table's address aside",
        (0, 0, 0xFF),
        lambda p: (lambda cd: (cd[1] & ~ADDRESS, *cd[2:4]))(stage_1(p).attached().entry("CD")),
        _STREAMS,
    ),
    Vector("stage 1 4 KiB leaf, read and write", 0x0060_0000_0200_0F43, lambda p: _s1_leaf(p, 1, 3), _DESCRIPTORS),
    Vector("stage 1 4 KiB leaf, read only", 0x0060_0000_0200_0FC3, lambda p: _s1_leaf(p, 1, 1), _DESCRIPTORS),
    Vector("stage 1 2 MiB leaf, read and write", 0x0060_0000_0200_0F41, lambda p: _s1_leaf(p, 512, 3), _DESCRIPTORS),
    Vector("stage 1 table pointer", 0x3, lambda p: stage_1(p).attached().table_pointer(), _DESCRIPTORS),
    Vector(
        "commands of the stage 1 driver: a page of ASID 1; all of it",
        [(1 << 48 | 0x12, 0x40_0001), (1 << 48 | 0x11, 0)],
        lambda p: [stage_1(p).attached().unmapped(pages, 1)[0] for pages in (1, 100)],
        _MANUAL,
    ),
    Vector(
        "command: context descriptors of stream 18h",
        (0x18_0000_0006, 0),
        lambda p: next(command for command in stage_1(p).attached().commands() if command[0] & 0xFF == 6),
        _MANUAL,
    ),
)


def _device_cache_commands(bench: Bench) -> list[tuple[int, int]]:
    queued = [*bench.unmapped(4), *bench.after(lambda: bench.software.detach(0))]
    return [command for command in queued if command[0] & 0xFF == 0x40]


def _s2_leaf(p: Spoil, pages: int, permission: int) -> int:
    return smmu(p).attached().leaf(pages, permission) & ~_P2M_TYPE


def _s1_leaf(p: Spoil, pages: int, permission: int) -> int:
    return stage_1(p).attached().leaf(pages, permission)


def _first_words(p: Spoil, structure: str) -> tuple[int, int]:
    low, high = stage_1(p).attached().entry(structure)[:2]
    return low & ~ADDRESS, high


def run(limits: Limits, progress: Callable[[Outcome], None]) -> Outcome:
    """Compare every vector once; limits and seed change nothing."""
    outcome = Outcome("golden", limits.seed)
    started = time.monotonic()
    for vector in VECTORS:
        outcome.checked += 1
        ours = vector.ours(as_written)
        if ours != vector.golden:
            difference = (f"{vector.name} ({vector.source})", _show(ours), _show(vector.golden))
            outcome.findings.append(Finding((vector.name,), "", 0, 0, (difference,), "", None, ""))
        progress(outcome)
    outcome.seconds = time.monotonic() - started
    return outcome


def notices(plant: Plant) -> bool:
    """Whether some vector comes out wrong with that bit planted."""
    for vector in VECTORS:
        if plant.structure in _looked_at(vector):
            try:
                if vector.ours(plant.spoil) != vector.golden:
                    return True
            except StopIteration:  # what the vector looks for is not there
                return True
    return False


@functools.cache
def _looked_at(vector: Vector) -> frozenset[str]:
    """The structures that a vector's value comes from."""
    seen: set[str] = set()

    def note(structure: str, words: tuple[int, ...]) -> tuple[int, ...]:
        seen.add(structure)
        return words

    vector.ours(note)
    return frozenset(seen)


def _show(value: object) -> str:
    if isinstance(value, int):
        return f"{value:#x}"
    if isinstance(value, (list, tuple)):
        return " ".join(_show(part) for part in value)
    return str(value)

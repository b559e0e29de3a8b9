# SPDX-License-Identifier: GPL-2.0-or-later
"""Which oracle would notice which wrong bit: one is planted in every field that our drivers write, one at a time.

A bit of a table entry is flipped in memory after every step of software, as if software had written it so, and put
right before the next one (there is no DMA in between, so no cache ever sees it right); a bit of a command is flipped in
its queue just before the doorbell.  A directed program
then maps, moves and unmaps with DMA in between.  An oracle notices if its answers are not what software was asked
for.  Our own hardware half has no say in this.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from base.bits import Layout
from hypervisor.errors import XenBug
from hypervisor.smmuv3 import layouts as smmu
from hypervisor.smmuv3.format import Stage2Descriptor
from hypervisor.vtd import layouts as vtd
from machine.iommu.unit import IommuUnit, Walk, WalkStep
from machine.memory import PhysicalMemory
from oracle import golden
from oracle.cpu_rig import CpuRig
from oracle.device_rig import SOFTWARE_STEP, DeviceRig
from oracle.lockstep import Difference
from oracle.process import ModelMissing
from oracle.program import Step, from_text
from oracle.qemu_virt import program as qemu_arm
from oracle.qemu_virt import stages
from oracle.smmu_rig import SmmuRig
from oracle.software import Software
from oracle.vtd_rig import VtdRig


@dataclass(frozen=True, slots=True)
class Plant:
    """Bit ``bit`` of 64-bit word ``word`` of a structure, the lowest that counts of ``field``, is wrong."""

    structure: str
    field: str
    word: int
    bit: int

    def __str__(self) -> str:
        return f"{self.structure}: {self.field} (word {self.word}, bit {self.bit})"


_SECOND_STAGE: Final = {"r": 0, "w": 1, "address": 12}
_STAGE_2: Final = {name: field.lsb for name, field in Stage2Descriptor.fields.items() if name != "software"}
_LAYOUTS: Final[tuple[tuple[str, int, type[Layout]], ...]] = (
    ("root entry", 0, vtd.RootEntryLow),
    ("context entry", 0, vtd.ContextEntryLow),
    ("context entry", 1, vtd.ContextEntryHigh),
    ("context-cache descriptor", 0, vtd.ContextCacheInvalidate),
    ("IOTLB descriptor", 0, vtd.IotlbInvalidate),
    ("IOTLB descriptor", 1, vtd.IotlbInvalidateHigh),
    ("wait descriptor", 0, vtd.WaitDescriptor),
    ("first-level stream descriptor", 0, smmu.L1Descriptor),
    ("STE", 0, smmu.Ste0),
    ("STE", 1, smmu.Ste1),
    ("STE", 2, smmu.Ste2),
    ("STE", 3, smmu.Ste3),
    ("stream command", 0, smmu.Command),
    ("TLB command", 0, smmu.Tlbi),
    ("TLB command", 1, smmu.TlbiAddress),
    ("sync command", 0, smmu.Sync),
)
_FIELDS: Final[tuple[tuple[str, Mapping[str, int]], ...]] = (
    ("second-stage leaf", _SECOND_STAGE),
    ("second-stage superpage", {**_SECOND_STAGE, "ps": 7, "address": 21}),
    ("second-stage table pointer", _SECOND_STAGE),
    ("stage 2 page", _STAGE_2),
    ("stage 2 block", {**_STAGE_2, "address": 21}),
    ("stage 2 table", {"valid": 0, "not_block": 1, "address": 12}),
)


def plants() -> Iterator[Plant]:
    """Every field that our drivers write into tables and queues; what only message interrupts use is left out."""
    for structure, word, layout in _LAYOUTS:
        for name, field in layout.fields.items():
            if not (layout is smmu.Sync and name == "msi_data"):
                yield Plant(structure, name, word, 12 if name == "s2ttb" else field.lsb)
    for structure, fields in _FIELDS:
        for name, bit in fields.items():
            yield Plant(structure, name, 0, bit)


# ------------------------------------------------------------------------------------------------ planting


class PlantRig(Protocol):
    """What planting needs of a rig."""

    @property
    def memory(self) -> PhysicalMemory: ...

    @property
    def ours(self) -> IommuUnit: ...

    @property
    def software(self) -> Software: ...

    @property
    def steps(self) -> Mapping[str, Callable[..., None]]: ...

    @property
    def differences(self) -> list[Difference]: ...

    def close(self) -> None: ...


_SOFTWARE: Final = frozenset({"context", "free", "attach", "detach", "map", "unmap"})


def structure_of(step: WalkStep) -> str:
    """What :data:`PLANTS` call the structure of a walk's step."""
    if step.name == "L1STD":
        return "first-level stream descriptor"
    if step.level is None or not step.words:
        return step.name
    word = step.words[0]
    if step.name.startswith("SL-"):
        if step.level == 1:
            return "second-stage leaf"
        return "second-stage superpage" if word & 1 << 7 else "second-stage table pointer"
    if step.level == 3:
        return "stage 2 page"
    return "stage 2 table" if word & 2 else "stage 2 block"


class Saboteur:
    """Runs a program on a rig with one bit planted."""

    def __init__(self, rig: PlantRig, plant: Plant, addresses: Sequence[int]) -> None:
        self._rig: Final = rig
        self._plant: Final = plant
        self._addresses: Final = tuple(addresses)
        self._planted: list[int] = []

    def run(self, program: Sequence[Step]) -> bool:
        """Whether anything but agreement comes out; software that gives up counts as noticed."""
        self._watch_queue()
        try:
            for step in program:
                software = step.word in _SOFTWARE
                if software:
                    self._flip_back()
                self._rig.steps[step.word](*step.arguments)
                if software:
                    self._flip()
                if self._noticed():
                    return True
        except (XenBug, IndexError, KeyError, StopIteration):
            return True
        return False

    def _noticed(self) -> bool:
        """Whether the model's answers, or its refusal to confirm, show something; what our half thinks is no matter."""
        rig = self._rig
        if isinstance(rig, DeviceRig):
            return rig.strayed or any(difference.what == SOFTWARE_STEP for difference in rig.differences)
        return bool(rig.differences)

    def _flip(self) -> None:
        """Flip the bit in every entry of the kind that the program's addresses meet."""
        words = self._rig.memory.words
        found: set[int] = set()
        for device in self._rig.software.devices:
            for address in self._addresses:
                for step in self._walk(device.sbdf & 0xFFFF, address).steps:
                    if structure_of(step) == self._plant.structure and self._plant.word < len(step.words):
                        found.add((step.maddr >> 3) + self._plant.word)
        for word in found:
            words[word] ^= 1 << self._plant.bit
        self._planted = sorted(found)

    def _walk(self, sid: int, address: int) -> Walk:
        return self._rig.ours.walk(sid, address)

    def _flip_back(self) -> None:
        for word in self._planted:
            self._rig.memory.words[word] ^= 1 << self._plant.bit
        self._planted = []

    # Commands.

    def _watch_queue(self) -> None:
        """Look at what is queued before the unit is told, on rigs whose unit is a model in another process."""
        rig = self._rig
        if not isinstance(rig, (VtdRig, SmmuRig)):
            return
        unit = rig.unit
        write = unit.write
        doorbell, base, prod = (0x88, 0x90, 4) if isinstance(rig, VtdRig) else (0x98, 0x90, 0)
        kind = _descriptor_kind if isinstance(rig, VtdRig) else _command_kind
        seen = rig.ours.read(doorbell, 4) >> prod
        plant, words = self._plant, rig.memory.words
        address = rig.ours.read(base, 8)
        start = (address & 0xF_FFFF_FFFF_F000) >> 3
        wrap = 256 if isinstance(rig, VtdRig) else 2 << (address & 31)
        slots = 256 if isinstance(rig, VtdRig) else 1 << (address & 31)

        def watched(offset: int, size: int, value: int) -> None:
            nonlocal seen
            if offset == doorbell:
                end = value >> prod
                while seen != end:
                    at = start + 2 * (seen % slots)
                    if kind(words[at]) == plant.structure:
                        words[at + plant.word] ^= 1 << plant.bit
                    seen = (seen + 1) % wrap
            write(offset, size, value)

        unit.write = watched  # type: ignore[method-assign]


def _descriptor_kind(low: int) -> str:
    kinds = {1: "context-cache descriptor", 2: "IOTLB descriptor", 5: "wait descriptor"}
    return kinds.get(low & 0xF, "")


def _command_kind(low: int) -> str:
    if low & 0xFF in (0x03, 0x04):
        return "stream command"
    if low & 0xFF == 0x46:
        return "sync command"
    return "TLB command" if low & 0xFF in (0x28, 0x2A) else ""


# ------------------------------------------------------------------------------------------------ programs

_MOVES: Final = """
machine
context 1
context 2
map 1 0x200 0x40200 8 3
map 1 0x210 0x40310 1 1
map 1 0x211 0x40311 1 {write_only}
map 1 0x400 0x40400 512 3
map 1 0x7fc00 0x40a00 8 3
map 2 0x200 0x40600 8 3
map 2 0x400 0x40800 512 1
attach 0 1
attach 1 2
attach 2 1
{look_all}
unmap 1 0x204 4
{look_1}
unmap 1 0x200 1
{look_1}
unmap 1 0x400 2
{look_1}
attach 0 2
{look_all}
attach 1 1
detach 2
{look_all}
free 2
{look_all}
"""
_PAGES: Final = (
    0x200,
    0x201,
    0x202,
    0x204,
    0x205,
    0x207,
    0x208,
    0x210,
    0x211,
    0x400,
    0x401,
    0x402,
    0x5FF,
    0x7FC00,
    0x7FC07,
)
_ADDRESSES: Final = tuple(page << 12 | 8 for page in _PAGES)


def _dma(devices: Sequence[int]) -> str:
    return "\n".join(f"{word} {which} {at:#x}" for which in devices for at in _ADDRESSES for word in ("write", "read"))


def _device_program(write_only: int) -> list[Step]:
    text = _MOVES.format(write_only=write_only, look_all=_dma((0, 1, 2)), look_1=_dma((0, 2)))
    return from_text(text)[1:]


def _walk_program() -> list[Step]:
    sweep = "sweep 1\nsweep 2\nlook 1 " + " ".join(f"{at:#x}" for at in _ADDRESSES)
    return from_text(_MOVES.format(write_only=2, look_all=sweep, look_1=sweep))[1:]


# ------------------------------------------------------------------------------------------------ guards

VTD_STRUCTURES: Final = frozenset(
    {
        "root entry",
        "context entry",
        "second-stage leaf",
        "second-stage superpage",
        "second-stage table pointer",
        "context-cache descriptor",
        "IOTLB descriptor",
        "wait descriptor",
    }
)
_S2_TABLES: Final = frozenset({"STE", "stage 2 page", "stage 2 block", "stage 2 table"})
_STREAMS: Final = frozenset({"first-level stream descriptor", "stream command", "sync command"})


def golden_notices(plant: Plant) -> bool:
    """Whether a golden value pins the bit."""
    return any(
        structure == plant.structure and word == plant.word and mask >> plant.bit & 1
        for vector in golden.VECTORS
        for structure, word, mask in vector.covers
    )


def _try(rig: PlantRig, plant: Plant, program: Sequence[Step]) -> bool:
    try:
        return Saboteur(rig, plant, _ADDRESSES).run(program)
    finally:
        rig.close()


def vtd_notices(plant: Plant) -> bool | None:
    """Whether QEMU's VT-d shows it; ``None`` where it has no say."""
    if plant.structure not in VTD_STRUCTURES:
        return None
    return _try(VtdRig(devices=3), plant, _device_program(2))


def cpu_notices(plant: Plant) -> bool | None:
    """Whether QEMU's Arm processor shows it."""
    if plant.structure not in _S2_TABLES:
        return None
    return _try(CpuRig(44, 44), plant, _walk_program())


def smmu_notices(plant: Plant) -> bool | None:
    """Whether QEMU's SMMUv3 shows it; with stage 1 alone it has a say on streams and their commands only."""
    if plant.structure in VTD_STRUCTURES:
        return None
    if 2 in stages(qemu_arm()):
        return _try(SmmuRig(2, 44, devices=3), plant, _device_program(2))
    return _try(SmmuRig(1, 48, devices=3), plant, _device_program(3)) if plant.structure in _STREAMS else None


GUARDS: Final[dict[str, Callable[[Plant], bool | None]]] = {
    "golden": golden_notices,
    "qemu-vtd": vtd_notices,
    "qemu-cpu-s2": cpu_notices,
    "qemu-smmuv3": smmu_notices,
}


def notice(plant: Plant) -> dict[str, bool | None]:
    """Who notices: by guard's name, ``None`` where it has no say or is not installed."""
    row: dict[str, bool | None] = {}
    for name, guard in GUARDS.items():
        row[name] = None
        with suppress(ModelMissing):
            row[name] = guard(plant)
    return row


def table(rows: Sequence[tuple[Plant, Mapping[str, bool | None]]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| structure | field | " + " | ".join(GUARDS) + " |", "|---|---|" + "---|" * len(GUARDS)]
    for plant, row in rows:
        cells = ["yes" if row[name] else "" if row[name] is None else "no" for name in GUARDS]
        lines.append(f"| {plant.structure} | {plant.field} | " + " | ".join(cells) + " |")
    return "\n".join(lines)

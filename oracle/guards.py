# SPDX-License-Identifier: GPL-2.0-or-later
"""Which oracle would notice which wrong bit: one is planted in every field that our drivers write, one at a time.

A directed program maps, moves and unmaps with DMA in between.  An oracle notices if its answers are not what software
was asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from oracle import golden
from oracle.cpu_rig import CpuRig
from oracle.plants import Plant
from oracle.process import ModelMissing
from oracle.program import Step, from_text
from oracle.qemu_virt import program as qemu_arm
from oracle.qemu_virt import stages
from oracle.saboteur import PlantRig, Saboteur
from oracle.smmu_rig import SmmuRig
from oracle.vtd_rig import VtdRig

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
_S2_COMMANDS: Final = frozenset({"TLB command"})
_S1_TABLES: Final = frozenset({"stage 1 STE", "CD", "stage 1 page", "stage 1 block", "stage 1 table"})
_S1_COMMANDS: Final = frozenset({"stage 1 TLB command", "CD command"})
_STREAMS: Final = frozenset({"first-level stream descriptor", "stream command", "sync command"})


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
    """Whether QEMU's SMMUv3 shows it: what belongs to stage 2 where the version has that."""
    if plant.structure in _S1_TABLES | _S1_COMMANDS:
        return _try(SmmuRig(1, 48, devices=3), plant, _device_program(3))
    has_stage_2 = 2 in stages(qemu_arm())
    if plant.structure in _S2_TABLES | _S2_COMMANDS:
        return _try(SmmuRig(2, 44, devices=3), plant, _device_program(2)) if has_stage_2 else None
    if plant.structure in _STREAMS:
        rig = SmmuRig(2, 44, devices=3) if has_stage_2 else SmmuRig(1, 48, devices=3)
        return _try(rig, plant, _device_program(2 if has_stage_2 else 3))
    return None


Guard = Callable[[Plant], bool | None]
GUARDS: Final[dict[str, Guard]] = {
    "golden": golden.notices,
    "qemu-vtd": vtd_notices,
    "qemu-cpu-s2": cpu_notices,
    "qemu-smmuv3": smmu_notices,
}

Row = Mapping[str, bool | None]


def notice(plant: Plant) -> Row:
    """Who notices: by guard's name, ``None`` where it has no say or is not installed."""
    row: dict[str, bool | None] = {}
    for name, guard in GUARDS.items():
        row[name] = None
        with suppress(ModelMissing):
            row[name] = guard(plant)
    return row


def table(rows: Sequence[tuple[Plant, Row]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| structure | field | " + " | ".join(GUARDS) + " |", "|---|---|" + "---|" * len(GUARDS)]
    for plant, row in rows:
        lines.append(
            f"| {plant.structure} | {plant.where} | " + " | ".join(_WORDS[row[name]] for name in GUARDS) + " |"
        )
    return "\n".join(lines)


_WORDS: Final[dict[bool | None, str]] = {True: "yes", False: "no", None: ""}

# SPDX-License-Identifier: GPL-2.0-or-later
"""What PAR_EL1 holds after an ``AT S12E1`` whose stage 1 is off (Arm ARM D19.2, PAR_EL1; D8.3 descriptors).

Written from the architecture manual alone; our own walk only says which descriptor ends the walk, at which level, and
how.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

ADDRESS_SIZE: Final = 0b000000
TRANSLATION: Final = 0b000100
ACCESS_FLAG: Final = 0b001000
PERMISSION: Final = 0b001100
"""Fault status codes; the level is added in bits 1:0."""

_STAGE_2: Final = 1 << 9
"""S of a fault: it is of stage 2."""
_TABLE_WALK: Final = 1 << 8
"""PTW of a fault: stage 2 stopped a stage 1 table walk."""
_FAULT: Final = 1 << 11 | 1
"""F=1, and bit 11, which reads as 1."""
_STATUS: Final = 0x3F << 1 | 1
"""FST of a fault, whatever its stage."""
_LEVEL: Final = 3 << 1
_GOOD: Final = 1 << 11 | 1 << 9
"""F=0, NS=1, and bit 11."""
OUTPUT: Final = (1 << 48) - (1 << 12)
FAULT: Final = 1

_DEVICE: Final = (0x00, 0x04, 0x08, 0x0C)
_NON_CACHEABLE: Final = 0x4
_WRITE_THROUGH: Final = 0x8
_NORMAL_NON_CACHEABLE: Final = 0x44
_OUTER_SHAREABLE: Final = 2
_INNER_SHAREABLE: Final = 3
OFF: Final = (0xFF, 0)
"""Attributes and shareability of a stage 1 that is off while HCR_EL2.DC = 1: Normal, write-back, allocating."""


def fault(code: int, level: int, stage: int = 2, table_walk: bool = False) -> int:
    """PAR_EL1 for a fault of kind ``code`` at ``level``; ``table_walk``: of stage 2, for a descriptor of stage 1."""
    return _FAULT | (code | level) << 1 | (_STAGE_2 if stage == 2 else 0) | (_TABLE_WALK if table_walk else 0)


def is_denied_by_stage_2(par: int) -> bool:
    """A permission fault of stage 2."""
    return bool(par & FAULT and par & _STAGE_2) and par & _STATUS & ~_LEVEL == PERMISSION << 1 | FAULT


def passed(output: int, descriptor: int, stage1: tuple[int, int] = OFF) -> int:
    """PAR_EL1 for an access to ``output`` through a stage 2 leaf ``descriptor``; ``stage1``: its attributes and
    shareability."""
    attributes, shareability = combined(*stage1, descriptor >> 2 & 15, descriptor >> 8 & 3)
    return _GOOD | attributes << 56 | shareability << 7 | output & OUTPUT


def combined(first: int, first_share: int, memattr: int, share: int) -> tuple[int, int]:
    """(ATTR, SH) of stage 1's and stage 2's MemAttr and SH (D8.6.6): what is weaker counts."""
    outer, inner = memattr >> 2, memattr & 3
    if not outer or not first >> 4:
        kinds = ([_DEVICE[inner]] if not outer else []) + ([first] if not first >> 4 else [])
        return min(kinds), _OUTER_SHAREABLE
    attributes = _cacheability(first >> 4, outer) << 4 | _cacheability(first & 15, inner)
    if attributes == _NORMAL_NON_CACHEABLE:
        return attributes, _OUTER_SHAREABLE
    if _OUTER_SHAREABLE in (first_share, share):
        return attributes, _OUTER_SHAREABLE
    return attributes, _INNER_SHAREABLE if _INNER_SHAREABLE in (first_share, share) else 0


def _cacheability(first: int, second: int) -> int:
    """Stage 1's as MAIR encodes it under stage 2's (1 non-cacheable, 2 write-through, 3 write-back); allocation hints
    are stage 1's."""
    if first == _NON_CACHEABLE or second == 1:
        return _NON_CACHEABLE
    if first >> 2 == 2 or second == 2:
        return _WRITE_THROUGH | first & 3
    return first


class Wanted(NamedTuple):
    """What the processor should answer, and where the walk ended."""

    par: int | str
    """PAR_EL1, or in words what is wrong with our unit's answer."""
    descriptor: int = 0
    """The last that was read."""
    level: int = 0
    fetching: int = 0
    """Level of the stage 1 descriptor that was being fetched when stage 2 stopped the walk."""


@dataclass(frozen=True, slots=True)
class WalkDeviation:
    """A place where the processor's walker is known to depart from the architecture."""

    name: str
    reason: str
    evidence: str
    excuses: Callable[[Wanted, int], bool]
    """(what it should answer, PAR_EL1 as it answered)."""
    fixed_in: int = 1 << 30
    """Major version of QEMU that no longer has it."""


def _level_0_block(wanted: Wanted, par: int) -> bool:
    return (
        wanted.level == 0
        and wanted.descriptor & 3 == 1
        and isinstance(wanted.par, int)
        and wanted.par & _STATUS == fault(TRANSLATION, 0) & _STATUS
        and par != wanted.par
    )


def _level_of_the_fetch(wanted: Wanted, par: int) -> bool:
    if not isinstance(wanted.par, int) or not wanted.par & FAULT or not wanted.par & _TABLE_WALK:
        return False
    return par == wanted.par & ~_LEVEL | wanted.fetching << 1


WALK_DEVIATIONS: Final[tuple[WalkDeviation, ...]] = (
    WalkDeviation(
        name="block descriptor at level 0",
        reason="With 4 KiB granule a block at level 0 is a translation fault (D8.3.1); it is taken for 512 GiB.",
        evidence="QEMU 7.2: AT S12E1R through a level 0 descriptor that ends in 01 gives an address; 10.0 faults.",
        excuses=_level_0_block,
        fixed_in=10,
    ),
    WalkDeviation(
        name="level of a stage 2 fault on a stage 1 walk",
        reason="The fault status code has the level of the stage 2 walk that failed (D19.2, PAR_EL1.FST).",
        evidence="QEMU 7.2: it has the level of the stage 1 descriptor that was being fetched; 10.0 has stage 2's.",
        excuses=_level_of_the_fetch,
        fixed_in=10,
    ),
)

# SPDX-License-Identifier: GPL-2.0-or-later
"""What PAR_EL1 holds after an ``AT S12E1`` whose stage 1 is off (Arm ARM D19.2, PAR_EL1; D8.3 descriptors).

Written from the architecture manual alone; our own walk only says which descriptor ends the walk, at which level, and
how.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

ADDRESS_SIZE: Final = 0b000000
TRANSLATION: Final = 0b000100
ACCESS_FLAG: Final = 0b001000
PERMISSION: Final = 0b001100
"""Fault status codes; the level is added in bits 1:0."""

_FAULT: Final = 1 << 11 | 1 << 9 | 1
"""F=1, S=1 (stage 2), and bit 11, which reads as 1."""
_GOOD: Final = 1 << 11 | 1 << 9
"""F=0, NS=1, and bit 11."""
OUTPUT: Final = (1 << 48) - (1 << 12)
FAULT: Final = 1

_NORMAL_WRITE_BACK: Final = 0xFF
_ALLOCATE: Final = 0x3
"""Read and write allocation hints, which stage 1 leaves as they are."""
_DEVICE: Final = (0x00, 0x04, 0x08, 0x0C)
_OUTER_SHAREABLE: Final = 2


def fault(code: int, level: int) -> int:
    """PAR_EL1 for a stage 2 fault of kind ``code`` at ``level``."""
    return _FAULT | (code | level) << 1


def passed(output: int, descriptor: int) -> int:
    """PAR_EL1 for an access to ``output`` through a leaf ``descriptor``."""
    attributes, shareability = combined(descriptor >> 2 & 15, descriptor >> 8 & 3)
    return _GOOD | attributes << 56 | shareability << 7 | output & OUTPUT


def combined(memattr: int, shareability: int) -> tuple[int, int]:
    """(ATTR, SH) of stage 2's MemAttr and SH over a stage 1 that says Normal, write-back (D8.6.6)."""
    outer, inner = memattr >> 2, memattr & 3
    if not outer:
        return _DEVICE[inner], _OUTER_SHAREABLE
    attributes = _cacheability(outer) << 4 | _cacheability(inner)
    if attributes == 0x44:  # Normal, inner and outer non-cacheable, is outer shareable
        return attributes, _OUTER_SHAREABLE
    return attributes, shareability


def _cacheability(code: int) -> int:
    """1 non-cacheable, 2 write-through, 3 write-back, each with stage 1's allocation hints."""
    return (0, 0x4, 0x8 | _ALLOCATE, 0xC | _ALLOCATE)[code]


@dataclass(frozen=True, slots=True)
class WalkDeviation:
    """A place where the processor's walker is known to depart from the architecture."""

    name: str
    reason: str
    evidence: str
    excuses: Callable[[int, int, int, int], bool]
    """(last descriptor, its level, expected PAR_EL1, the processor's PAR_EL1)."""


def _level_0_block(descriptor: int, level: int, expected: int, par: int) -> bool:
    return level == 0 and descriptor & 3 == 1 and expected == fault(TRANSLATION, 0) and par != expected


WALK_DEVIATIONS: Final[tuple[WalkDeviation, ...]] = (
    WalkDeviation(
        name="block descriptor at level 0",
        reason="With 4 KiB granule a block at level 0 is a translation fault (D8.3.1); it is taken for 512 GiB.",
        evidence="QEMU 7.2: AT S12E1R through a level 0 descriptor that ends in 01 gives an address; 11.1 faults.",
        excuses=_level_0_block,
    ),
)

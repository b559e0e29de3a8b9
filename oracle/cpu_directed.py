# SPDX-License-Identifier: GPL-2.0-or-later
"""Directed programs for the processor's walker: every shape of root, attributes, fault levels, one stage and both.

``sweep`` holds every mapping against what software was asked for; ``look`` compares PAR_EL1 of single addresses with
what the Arm ARM says of our walk, the level of a fault included; ``noise`` does so for 512 random descriptors in place
of one table, ``noise-below`` for random ones of stage 2 under a stage 1 walk.
"""

from collections.abc import Sequence
from typing import Final

from oracle.nested_driver import WINDOW
from oracle.program import Directed, directed

_LEVELS: Final = range(4)
_PLACES: Final = 20
"""Descriptors of stage 2 on the way through both stages, and the context descriptor."""


def _pages(bits: int, offset: int = 0) -> str:
    """Pages of every size and right, at both ends of the range and around its middle, and places that are empty."""
    end, middle = 1 << bits - 12, 1 << bits - 13
    frame = 0x4_0000 + offset
    rights = (1, 3) if offset else (1, 2, 3)
    maps = [f"map 1 {0x210 + right:#x} {frame + 0x210 + right:#x} 1 {right}\n" for right in rights]
    maps.append(f"map 1 0x400 {frame + 0x400:#x} 1024 3\n")
    maps.append(f"map 1 {end - 600:#x} {frame + 0x1000 - 600:#x} 600 1\n")
    maps.append(f"map 1 {middle - 512:#x} {frame + 0x2000:#x} 512 3\nmap 1 {middle:#x} {frame + 0x3000:#x} 512 1\n")
    if bits > 33:
        maps.append(f"map 1 0x80000 {frame:#x} 0x40000 3\n")
    looks = (0, 0x20F, 0x211, 0x213, 0x400, 0x7FF, 0x800, middle - 513, middle - 1, middle, end - 601, end - 1, end)
    return f"{''.join(maps)}sweep 1\nlook 1 {' '.join(f'{page << 12 | 0x18:#x}' for page in looks)}\n"


def _start(bits: int, oas: int, nested: bool = False) -> str:
    return f"machine {bits} {oas} {int(nested)}\ncontext 1\nattach 0 1\n"


def _holes(bits: int) -> str:
    """A page out of a 2 MiB and out of a 1 GiB block; then pages that are not there at every level."""
    gigabyte = "unmap 1 0x81234 1\nlook 1 0x81233ff8 0x81234000 0x81235000\n" if bits > 33 else ""
    return f"unmap 1 0x500 1\nlook 1 0x4ff000 0x500000 0x501000\n{gigabyte}"


def _noise(dfn: int) -> str:
    return "".join(f"noise 1 {dfn:#x} {level} {seed}\n" for level in _LEVELS for seed in (1, 2))


def _one_stage(name: str, about: str, bits: int, oas: int) -> Directed:
    return directed(name, about, _start(bits, oas) + _pages(bits) + _holes(bits) + _noise(0x211))


def _both_stages(bits: int) -> Directed:
    below = "".join(f"noise-below 1 0x400 {place} {place + 1}\n" for place in range(_PLACES))
    text = _start(bits, 48, True) + _pages(bits, WINDOW >> 12) + _holes(bits) + _noise(0x211) + below
    return directed(f"both-stages-{bits}", f"stage 1 of {bits} bits with its tables above stage 2", text)


PROGRAMS: Final[Sequence[Directed]] = (
    _one_stage("root-32", "32 bits, three levels, a single root", 32, 32),
    _one_stage("root-36", "36 bits, three levels, a single root", 36, 36),
    _one_stage("roots-2", "40 bits, three levels, two concatenated roots", 40, 40),
    _one_stage("roots-8", "42 bits, three levels, eight concatenated roots", 42, 42),
    _one_stage("levels-4-44", "44 bits, four levels", 44, 44),
    _one_stage("levels-4-48", "48 bits, four levels", 48, 48),
    _one_stage("narrow", "39 bits on a unit that puts out 48", 39, 48),
    _both_stages(48),
    _both_stages(39),
)

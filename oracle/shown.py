# SPDX-License-Identifier: GPL-2.0-or-later
"""For every known deviation of a model a program that shows it, and nothing else that has to be excused.

A deviation that no program shows is no reason to excuse anything; one that another's program shows is too broad.
"""

from collections.abc import Mapping
from typing import Final

_PLACE: Final = "0x40200008"

# Places along a walk, for ``flip``.
_L1STD, _STE, _CD, _LEVEL_0, _LEVEL_1, _LEAF = 0, 1, 2, 3, 4, 6
_CONTEXT_ENTRY: Final = 1


def _vtd(text: str) -> str:
    return f"machine 48 0 0\ncontext 1\nattach 0 1\nmap 1 0x200 0x40200 1 1\n{text}"


def _stage_1(*flips: tuple[int, int], access: str = f"write 0 {_PLACE}") -> str:
    lines = "".join(f"flip 0 {_PLACE} {place} {bit}\n" for place, bit in flips)
    return f"machine 1 48 0\ncontext 1\nattach 0 1\nmap 1 0x40200 0x40200 1 3\n{lines}forget\n{access}\n"


def _stage_2(*flips: tuple[int, int], access: str = f"write 0 {_PLACE}") -> str:
    return _stage_1(*flips, access=access).replace("machine 1 48 0", "machine 2 44 0")


_VTD: Final = {
    "cached denial is silent": _vtd("read 0 0x200000\nwrite 0 0x200000\n"),
    "FPD does not silence reserved bits of the context entry": _vtd(
        f"flip 0 0x200000 {_CONTEXT_ENTRY} 4\nflip 0 0x200000 {_CONTEXT_ENTRY} 1\nforget\nread 0 0x200000\n"
    ),
}
_SMMUV3: Final = {
    "size of a table's address not checked": _stage_1((_LEVEL_1, 44)),
    "size of a leaf's address not checked": _stage_1((_LEAF, 44)),
    "size of a leaf's address checked last": _stage_1((_LEAF, 44), (_LEAF, 7)),
    "pointer to a context descriptor beyond the address size": _stage_1((_STE, 44)),
    "block descriptor at level 0": _stage_1((_LEVEL_0, 1)),
    "APTable before everything below it": _stage_1((_LEVEL_0, 62), (_LEAF, 0)),
    "APTable is not cached": _stage_1((_LEVEL_0, 62), access=f"read 0 {_PLACE}\nwrite 0 {_PLACE}"),
    "granules of 16 and 64 KiB": _stage_1((_CD, 6)),
    "S1CDMax without substreams": _stage_1((_STE, 59)),
    "L2Ptr above bit 55": _stage_1((_L1STD, 57)),
    "reserved Span": _stage_1((_L1STD, 4)),
    "F_CD_FETCH carries its address one word early": _stage_1((_STE, 43)),
    "addresses of more than 48 bits do not arrive": _stage_1(access=f"write 0 {1 << 48:#x}"),
    "S1ContextPtr above bit 47": _stage_1((_STE, 51)),
    "TTB0 above bit 50": _stage_1((_CD, 64 + 51)),
    "every request is privileged": _stage_1((_STE, 64 + 49), (_LEAF, 6)),
    "no request is an instruction fetch": _stage_1((_STE, 64 + 50), (_STE, 64 + 51), access=f"read 0 {_PLACE}"),
    "CD.PAN": _stage_1((_CD, 40)),
    "access flag not checked": _stage_1((_LEAF, 10)),
    "S2TTB above bit 47": _stage_2((_STE, 192 + 50)),
    "S2HA and S2HD": _stage_2((_STE, 128 + 55)),
    "start level above the input range": _stage_2((_STE, 128 + 35)),
    "input range wider than S2PS": _stage_2((_STE, 128 + 50)),
    "S1STALLD without stage 1": _stage_2((_STE, 64 + 27)),
    "beyond the address size with stage 2 alone": _stage_2(access=f"write 0 {1 << 45:#x}"),
    "a write that stops at a context descriptor is recorded as a read": (
        f"machine 3 48 0\ncontext 1\nattach 0 1\nflip 0 {_PLACE} 2 0\nforget\nwrite 0 {_PLACE}\n"
    ),
    "cached denial at stage 2 is silent": _stage_2(access="map 1 0x300 0x40300 1 1\nread 0 0x300000\nwrite 0 0x300000"),
}
_CPU: Final = {
    "block descriptor at level 0": (
        "machine 48 48 0\ncontext 1\nattach 0 1\nmap 1 0x200 0x40200 1 3\nnoise 1 0x200 0 1\n"
    ),
    "level of a stage 2 fault on a stage 1 walk": (
        "machine 39 48 1\ncontext 1\nattach 0 1\nmap 1 0x200 0x1040200 1 3\nnoise 1 0x200 1 1\n"
    ),
}

SHOWN: Final[Mapping[str, Mapping[str, str]]] = {"qemu-vtd": _VTD, "qemu-smmuv3": _SMMUV3, "qemu-cpu-s2": _CPU}
"""By oracle and by the deviation's name."""

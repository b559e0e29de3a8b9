# SPDX-License-Identifier: GPL-2.0-or-later
"""What firmware tells an operating system about the IOMMUs: DMAR (Intel) and IORT (Arm), already parsed.

A hypervisor finds units by these descriptions and by nothing else.
"""

from dataclasses import dataclass

from base.units import Sbdf


@dataclass(frozen=True, slots=True)
class Drhd:
    """A DMA remapping hardware unit (VT-d specification, DRHD structure)."""

    base: int
    """Machine address of its register block."""
    segment: int = 0
    include_all: bool = True
    """Covers every function of the segment that no other unit's scope names."""
    scope: tuple[Sbdf, ...] = ()


@dataclass(frozen=True, slots=True)
class Rmrr:
    """A reserved memory region that ``devices`` keep using; ``last`` is its last byte (inclusive)."""

    base: int
    last: int
    devices: tuple[Sbdf, ...]


@dataclass(frozen=True, slots=True)
class SmmuNode:
    """An SMMUv3 node of the IORT with its id mapping: stream id = requester id + ``stream_offset``."""

    base: int
    segment: int = 0
    include_all: bool = True
    scope: tuple[Sbdf, ...] = ()
    stream_offset: int = 0


@dataclass(frozen=True, slots=True)
class Firmware:
    """The tables of one machine."""

    drhds: tuple[Drhd, ...] = ()
    rmrrs: tuple[Rmrr, ...] = ()
    smmus: tuple[SmmuNode, ...] = ()

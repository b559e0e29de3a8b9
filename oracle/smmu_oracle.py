# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle ``qemu-smmuv3``: which machines it starts."""

import random
from collections.abc import Callable
from typing import Final

from oracle.campaign import ProgramOracle, Rig
from oracle.process import major_version
from oracle.program import Directed, Step
from oracle.qemu_virt import program, stages
from oracle.smmu_directed import programs
from oracle.smmu_generate import Generator, machine
from oracle.smmu_rig import SmmuRig


def _boot(arguments: tuple[int, ...], talk: bool) -> Rig:
    """``machine STAGE BITS LINEAR-STREAM-TABLE``."""
    stage, bits, linear = (*arguments, *(1, 48, 0)[len(arguments) :])[:3]
    return SmmuRig(stage, bits, bool(linear), talk=talk)


def _generate(rng: random.Random) -> tuple[Step, Callable[[], list[Step]]]:
    first = machine(rng, stages(program()))
    stage, bits, linear = first.arguments
    return first, Generator(rng, stage, bits, bool(linear)).scene


def _directed() -> list[Directed]:
    return programs(major_version(program()), stages(program()))


def notes() -> list[str]:
    """What the QEMU that is installed cannot judge."""
    if len(stages(program())) == 1:
        return ["this QEMU's SMMUv3 has stage 1 only: stage 2 entries, commands and nesting are not judged by it"]
    return []


ORACLE: Final = ProgramOracle("qemu-smmuv3", _boot, _directed, _generate, notes)

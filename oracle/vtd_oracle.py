# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle ``qemu-vtd``: which machines it starts, and the programs that every run begins with."""

import random
from collections.abc import Callable
from typing import Final

from oracle.campaign import ProgramOracle, Rig
from oracle.program import Step
from oracle.vtd_directed import PROGRAMS
from oracle.vtd_generate import Generator, machine
from oracle.vtd_rig import VtdRig


def _boot(arguments: tuple[int, ...], talk: bool) -> Rig:
    """``machine BITS CACHING-MODE SNOOP-CONTROL``."""
    bits, caching_mode, snoop_control = (*arguments, 48, 0, 0)[:3]
    return VtdRig(bits, bool(caching_mode), bool(snoop_control), talk=talk)


def _generate(rng: random.Random) -> tuple[Step, Callable[[], list[Step]]]:
    first = machine(rng)
    return first, Generator(rng, first.arguments[0]).scene


ORACLE: Final = ProgramOracle("qemu-vtd", _boot, lambda: PROGRAMS, _generate)

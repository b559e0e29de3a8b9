# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle ``qemu-cpu-s2``: stage 2 tables of our SMMUv3 driver, walked by QEMU's Arm processor."""

import random
from collections.abc import Callable, Sequence
from typing import Final

from oracle.campaign import ProgramOracle, Rig
from oracle.cpu_rig import DATA_FIRST, DATA_LAST, DEVICES, CpuRig
from oracle.intent import Range
from oracle.program import MACHINE, Step, step
from oracle.scenes import Scenes, Weighted

SHAPES: Final = ((40, 40), (48, 48), (44, 44), (42, 42), (36, 36), (32, 32), (39, 48), (41, 44), (48, 48), (40, 40))
"""(width of input addresses, of output addresses): single and concatenated roots, three and four levels."""


class Generator(Scenes):
    """Scenes for a machine with ``bits`` bits of input address."""

    def __init__(self, rng: random.Random, bits: int) -> None:
        super().__init__(rng, bits, DEVICES, range(DATA_FIRST, DATA_LAST + 1), None)

    def more(self) -> Sequence[Weighted]:
        return ((8, self._sweep), (6, self._noise))

    def look(self, number: int, around: Range) -> list[Step]:
        rng = self.rng
        pages = [0, around.pages - 1, around.pages, -1, rng.randrange(around.pages)]
        chosen = rng.sample(pages, rng.randint(1, 4))
        places = [(max(around.dfn + page, 0) << 12) + 2 * rng.randrange(2048) for page in chosen]
        return [step("look", number, *places)]

    def access(self, which: int, iova: int) -> list[Step]:
        return [step("look", self.attached[which], iova & (1 << 52) - 1)]

    def _sweep(self) -> list[Step]:
        return [step("sweep", self.rng.choice(list(self.contexts)))]

    def _noise(self) -> list[Step]:
        """Random descriptors in place of a table on the way to something that is mapped."""
        rng = self.rng
        number = rng.choice(list(self.contexts))
        ranges = self.contexts[number].ranges()
        if not ranges:
            return self._sweep()
        old = rng.choice(ranges)
        return [step("noise", number, old.dfn + rng.randrange(old.pages), rng.randrange(4), rng.randrange(1 << 32))]


def _boot(arguments: tuple[int, ...], talk: bool) -> Rig:
    """``machine INPUT-BITS OUTPUT-BITS``."""
    bits, oas = (*arguments, 40, 40)[:2]
    return CpuRig(bits, oas)


def _generate(rng: random.Random) -> tuple[Step, Callable[[], list[Step]]]:
    bits, oas = rng.choice(SHAPES)
    return step(MACHINE, bits, oas), Generator(rng, bits).scene


ORACLE: Final = ProgramOracle("qemu-cpu-s2", _boot, tuple, _generate)

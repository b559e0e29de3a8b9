# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle ``qemu-cpu-s2``: stage 2 tables of our SMMUv3 driver, and stage 1 above one, walked by QEMU's Arm
processor.
"""

import random
from collections.abc import Callable, Sequence
from typing import Final

from base.units import PAGE_SHIFT
from oracle import qemu_virt
from oracle.campaign import ProgramOracle, Rig
from oracle.cpu_directed import PROGRAMS
from oracle.cpu_nested_rig import NestedCpuRig
from oracle.cpu_rig import ASSERTS, DATA_FIRST, DATA_LAST, DEVICES, CpuRig
from oracle.intent import Range
from oracle.nested_driver import WINDOW
from oracle.process import major_version
from oracle.program import MACHINE, Step, step
from oracle.scenes import Scenes, Weighted

SHAPES: Final = ((40, 40), (48, 48), (44, 44), (42, 42), (36, 36), (32, 32), (39, 48), (41, 44), (48, 48), (40, 40))
"""(width of input addresses, of output addresses): single and concatenated roots, three and four levels."""


_STAGE_2_RIGHTS: Final = (1, 2, 3, 3, 3, 3)
_STAGE_1_RIGHTS: Final = (1, 3, 3, 3)


class Generator(Scenes):
    """Scenes for a machine with ``bits`` bits of input address; ``nested``: both stages."""

    def __init__(self, rng: random.Random, bits: int, nested: bool) -> None:
        self._nested: Final = nested
        offset = WINDOW >> PAGE_SHIFT if nested else 0
        frames = range(DATA_FIRST + offset, DATA_LAST + 1 + offset)
        super().__init__(rng, bits, DEVICES, frames, None, _STAGE_1_RIGHTS if nested else _STAGE_2_RIGHTS)

    def more(self) -> Sequence[Weighted]:
        return ((8, self._sweep), (6, self._noise), *(((4, self._noise_below),) if self._nested else ()))

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
        return self._somewhere("noise", 4)

    def _noise_below(self) -> list[Step]:
        """The same in one place of stage 2, on the way to a table or to the page."""
        return self._somewhere("noise-below", 24)

    def _somewhere(self, word: str, places: int) -> list[Step]:
        rng = self.rng
        number = rng.choice(list(self.contexts))
        ranges = self.contexts[number].ranges()
        if not ranges:
            return self._sweep()
        old = rng.choice(ranges)
        return [step(word, number, old.dfn + rng.randrange(old.pages), rng.randrange(places), rng.randrange(1 << 32))]


def _boot(arguments: tuple[int, ...], talk: bool) -> Rig:
    """``machine INPUT-BITS OUTPUT-BITS BOTH-STAGES``; with both stages output addresses have 48 bits."""
    bits, oas, nested = (*arguments, *(40, 40, 0)[len(arguments) :])[:3]
    return NestedCpuRig(bits) if nested else CpuRig(bits, oas)


def _generate(rng: random.Random) -> tuple[Step, Callable[[], list[Step]]]:
    nested = rng.random() < 0.4
    bits, oas = rng.choice(((48, 48), (39, 48))) if nested else rng.choice(SHAPES)
    return step(MACHINE, bits, oas, int(nested)), Generator(rng, bits, nested).scene


def notes() -> list[str]:
    """What the QEMU that is installed cannot judge."""
    if major_version(qemu_virt.program()) == ASSERTS:
        return ["this QEMU's processor ends itself over an access that stage 2 denies: those are left out"]
    return []


ORACLE: Final = ProgramOracle("qemu-cpu-s2", _boot, lambda: PROGRAMS, _generate, notes, steps=500)

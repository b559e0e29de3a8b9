# SPDX-License-Identifier: GPL-2.0-or-later
"""Random programs for SMMUs: what drivers do, wrong bits in every structure, stale caches, commands."""

import random
from collections.abc import Sequence
from typing import Final

from base.units import PAGE_SHIFT
from oracle.nested_driver import WINDOW
from oracle.program import MACHINE, Step, step
from oracle.scenes import DmaScenes, Weighted
from oracle.smmu_rig import DATA_FIRST, DATA_LAST, MAILBOX_DFN

DEVICES: Final = 8
BOTH: Final = 3
"""Stage 1 above stage 2."""
_BITS: Final = {1: (48, 48, 39), 2: (44, 44, 40, 39), BOTH: (48, 48, 39)}
"""Widths of input addresses by stage."""


def machine(rng: random.Random, stages: Sequence[int]) -> Step:
    """Which machine to start: stage, address bits, linear stream table."""
    stage = rng.choice([stage for stage in stages if stage in _BITS])
    return step(MACHINE, stage, rng.choice(_BITS[stage]), int(rng.random() < 0.3))


class Generator(DmaScenes):
    """Scenes for an SMMU that translates ``bits`` bits with ``stage``."""

    def __init__(self, rng: random.Random, stage: int, bits: int, linear: bool) -> None:
        permissions = (1, 2, 3, 3, 3, 3) if stage == 2 else (1, 3, 3, 3)
        offset = WINDOW >> PAGE_SHIFT if stage == BOTH else 0
        frames = range(DATA_FIRST + offset, DATA_LAST + offset)
        self._stage: Final = stage
        super().__init__(rng, bits, DEVICES, frames, MAILBOX_DFN, permissions)
        self._tables: Final = (0 if linear else 1) + (2 if stage == 1 else 1)
        """Structures before the first descriptor of a walk: first-level entry, STE, context descriptor."""
        self._two_level: Final = not linear
        self._levels: Final = 4 if bits > 39 else 3

    def more(self) -> Sequence[Weighted]:
        tampering = ((8, self._flip), (6, self._stale)) if self._stage != BOTH else ()  # the processor judges that
        return ((16, self.burst), (3, self._commands), *tampering)

    def _flip(self) -> list[Step]:
        """A wrong bit or a few in the structures of one walk, all caches empty."""
        rng = self.rng
        victim = self.victim()
        if victim is None:
            return self.scene()
        which, iova = victim
        steps = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            place = rng.randrange(self._tables + self._levels)
            bit = rng.randrange(256 if place < self._tables else 64)
            if place == 0 and self._two_level and 5 <= bit <= 13:
                bit += 9  # a table that is not aligned to its size: QEMU adds where the manual aligns
            steps.append(step("flip", which, iova, place, bit))
        steps.append(step("forget"))
        for _ in range(rng.randint(1, 3)):
            there = iova + 8 * rng.randrange(512) + rng.choice((0, 0, 0, 4096, 1 << 21))
            steps += [step(rng.choice(("read", "write")), which, there), step("forget")]
        return [*steps, step("restore"), step("forget"), step("write", which, iova)]

    def _stale(self) -> list[Step]:
        """An entry changes behind a cached translation; commands that miss it, then one that does not."""
        rng = self.rng
        victim = self.victim()
        if victim is None:
            return self.scene()
        which, iova = victim
        access = rng.choice(("read", "write"))
        place = self._tables + rng.randrange(self._levels)
        steps = [step("forget"), step(access, which, iova)]
        steps.append(step("flip", which, iova, place, rng.choice((0, 7, 10, 12, 13, 21, 22, 30))))
        misses: Sequence[Step] = (
            step("flush-page", which, iova, 0, 1),
            step("flush-page", which, iova + (1 << 31), 0, 0),
            step("flush-all", which, 2),
            step(access, which, iova),
        )
        steps += rng.sample(misses, rng.randint(1, 3))
        steps.append(step(access, which, iova))
        hits: Sequence[Step] = (
            step("flush-page", which, iova, 0, 0),
            step("flush-all", which, 0),
            step("command", 0x30, 0),
        )
        steps += [rng.choice(hits), step(access, which, iova), step("restore"), step("forget")]
        return [*steps, step(access, which, iova)]

    def _commands(self) -> list[Step]:
        """Commands that name streams and tags which may not exist, and some that do not exist themselves."""
        rng = self.rng
        sid, tag = rng.randrange(1 << 16), rng.randrange(1 << 16)
        known: list[tuple[int, int]] = [
            (0x03 | sid << 32, rng.randrange(2)),
            (0x04 | sid << 32, rng.randrange(32)),
            (0x30, 0),
            (0x46, 0),
            (rng.choice((0x7F, 0x99, 0xFE)), 0),
        ]
        if self._stage != 2:
            known += [(0x10, 0), (0x11 | tag << 48, 0), (0x12 | tag << 48, rng.randrange(1 << 36) << 12)]
        else:
            known += [(0x28 | tag << 32, 0), (0x2A | tag << 32, rng.randrange(1 << 32) << 12)]
        return [step("command", *rng.choice(known)) for _ in range(rng.randint(1, 3))]

# SPDX-License-Identifier: GPL-2.0-or-later
"""Random programs for VT-d units: what drivers do, what goes wrong in tables, and what stale caches would show."""

import random
from collections.abc import Sequence
from typing import Final

from oracle.program import MACHINE, Step, step
from oracle.scenes import DmaScenes, Weighted
from oracle.vtd_rig import DATA_FIRST, DATA_LAST, MAILBOX_DFN

DEVICES: Final = 8


def machine(rng: random.Random) -> Step:
    """Which machine to start: address bits, caching mode, snoop control."""
    return step(MACHINE, rng.choice((48, 48, 39)), int(rng.random() < 0.25), int(rng.random() < 0.25))


class Generator(DmaScenes):
    """Scenes for a unit with ``bits`` address bits."""

    def __init__(self, rng: random.Random, bits: int) -> None:
        super().__init__(rng, bits, DEVICES, range(DATA_FIRST, DATA_LAST), MAILBOX_DFN)
        self._levels: Final = 4 if bits == 48 else 3

    def more(self) -> Sequence[Weighted]:
        return ((16, self.burst), (8, self._flip), (6, self._stale), (3, self._descriptors))

    # -------------------------------------------------------------------------------------------- tampering

    def _flip(self) -> list[Step]:
        """A few wrong bits in the entries of one walk, all caches empty: both halves read the same tables."""
        rng = self.rng
        victim = self.victim()
        if victim is None:
            return self.scene()
        which, iova = victim
        steps = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            place = rng.choice((0, 1, 2, 3, 4, 5))
            steps.append(step("flip", which, iova, place, rng.randrange(128 if place < 2 else 64)))
        steps.append(step("forget"))
        for _ in range(rng.randint(1, 3)):
            there = iova + 8 * rng.randrange(512) + rng.choice((0, 0, 0, 4096, 1 << 21))
            # A cached right that denies is one of the model's deviations: each access starts with empty caches.
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
        place = rng.choice((3, 4, 5)) if self._levels == 4 else rng.choice((3, 4))
        steps = [step("forget"), step(access, which, iova)]
        steps.append(step("flip", which, iova, place, rng.choice((0, 1, 12, 13, 21, 22, 30))))
        order = rng.randrange(4)
        misses: Sequence[Step] = (
            step("flush-pages", which, iova, 0, 0, 1),
            step("flush-pages", which, iova + (8192 << order), order, 0, 0),
            step("flush-domain", which, 2),
            step("flush-device", which, 3, 0),
            step(access, which, iova),
        )
        steps += rng.sample(misses, rng.randint(1, 4))
        steps.append(step(access, which, iova))
        hits: Sequence[Step] = (
            step("flush-pages", which, iova, order, 0, 0),
            step("flush-pages", which, iova, 18, 0, 0),
            step("flush-domain", which, 0),
            step("descriptor", 0xD2, 0),
        )
        steps += [rng.choice(hits), step(access, which, iova), step("restore"), step("forget")]
        return [*steps, step(access, which, iova)]

    def _descriptors(self) -> list[Step]:
        """Invalidation descriptors with wrong bits in them."""
        rng = self.rng
        good: Sequence[tuple[int, int]] = (
            (0x11, 0),
            (0x31 | rng.randrange(1 << 16) << 32 | rng.randrange(4) << 48, 0),
            (0xD2, 0),
            (0xE2 | rng.randrange(8) << 16, 0),
            (0xF2 | rng.randrange(8) << 16, rng.randrange(1 << 30) << 12 | rng.randrange(20)),
            (0x4, 0),
            (0x14 | rng.randrange(1 << 16) << 32, 0),
        )
        steps = []
        for _ in range(rng.randint(1, 3)):
            low, high = rng.choice(good)
            # QEMU 7.2 does not look at reserved bits of interrupt-entry descriptors (type 4): those stay good.
            for _ in range(rng.choice((0, 1, 1, 2)) if low & 0xF != 4 else 0):
                bit = rng.randrange(4, 128)
                if bit < 64 and bit not in (9, 10, 11):  # those belong to the type
                    low ^= 1 << bit
                elif bit >= 64:
                    high ^= 1 << bit - 64
            steps.append(step("descriptor", low, high))
        return steps

# SPDX-License-Identifier: GPL-2.0-or-later
"""Building a whole test bed, and going back to a snapshot after some hypercalls."""

from collections.abc import Iterator
from typing import Final

from benchmarks.bed import Bed
from benchmarks.figures import Figure, clock
from benchmarks.hypercalls import BACKENDS
from benchmarks.lean import Lean
from testbed.build import build
from testbed.config import Config

BUILD_BAR: Final = 20.0
RESET_BAR: Final = 1.0
DISTURBANCES: Final = 20
"""Hypercalls between snapshot and reset."""


def figures(seconds: float, lean: Lean) -> Iterator[Figure]:
    for backend in BACKENDS:
        config = Config(backend=backend)
        times = clock(lambda config=config: build(config), 1, seconds)  # type: ignore[misc]
        yield Figure("test bed", f"{backend}, build", "ms", times.best * 1e3, times.median * 1e3, BUILD_BAR)

        bed = Bed(backend=backend)
        bed.testbed.snapshot()

        def disturb(bed: Bed = bed) -> None:
            for k in range(DISTURBANCES):
                bed.map(600 + k, 0x200 * k)

        times = clock(bed.testbed.reset, 1, seconds, disturb)
        name = f"{backend}, reset after {DISTURBANCES} map calls"
        yield Figure("test bed", name, "ms", times.best * 1e3, times.median * 1e3, RESET_BAR)

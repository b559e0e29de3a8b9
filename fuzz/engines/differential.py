# SPDX-License-Identifier: GPL-2.0-or-later
"""Typed random programs on two machines at once, which must agree: see :mod:`fuzz.twins`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from fuzz.engines.swarm import Swarm
from fuzz.program import Bench
from testbed.build import TestBed

AGAINST: Final = {"vtd": "smmuv3", "smmuv3": "vtd"}
"""What a backend is held against unless something is chosen; a third one is held against VT-d."""


class Differential(Swarm):
    """Findings of one worker; a bench that does not say what it is held against gets the other backend."""

    def __init__(self, over: list[Bench], seed: int, sabotage: Callable[[TestBed], None] | None = None) -> None:
        super().__init__(
            [bench if bench.against else replace(bench, against=AGAINST.get(bench.backend, "vtd")) for bench in over],
            seed,
            sabotage,
        )

# SPDX-License-Identifier: GPL-2.0-or-later
"""A measured figure, and how one is measured.

A loop of a few milliseconds is run again and again, and its processor time taken: what one core of its own would need,
whoever else uses the machine.  Caches and clock speeds are shared all the same, so the best run says most; the median
beside it says how much it varied.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final, NamedTuple

RUNS: Final = 5
"""Fewest runs of a loop, however long they take."""


class Times(NamedTuple):
    """Seconds that one step of a loop took: in the best run, and in the middle one."""

    best: float
    median: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report.  ``best``, ``median``, ``bar`` and ``lean`` are in ``unit``."""

    subject: str
    name: str
    unit: str
    best: float
    median: float
    bar: float | None = None
    """What is asked for, ``None`` where nothing is."""
    lean: float | None = None
    """What the C version of the same loop does, ``None`` without one."""

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.unit.endswith("/s")

    @property
    def passed(self) -> bool | None:
        """Whether the best run reaches the bar."""
        if self.bar is None:
            return None
        return self.best >= self.bar if self.is_rate else self.best <= self.bar

    @property
    def ratio(self) -> float | None:
        """How many times as long as the C version it takes."""
        if self.lean is None:
            return None
        return self.lean / self.best if self.is_rate else self.best / self.lean


def clock(loop: Callable[[], object], steps: int, seconds: float, before: Callable[[], object] | None = None) -> Times:
    """Time ``loop``, which takes ``steps`` steps, for about ``seconds``; ``before`` each run comes untimed."""
    now = time.process_time
    end = now() + seconds
    taken: list[float] = []
    loop()
    while len(taken) < RUNS or now() < end:
        if before is not None:
            before()
        start = now()
        loop()
        taken.append(now() - start)
    return Times(min(taken) / steps, median(taken) / steps)


def rate(
    subject: str,
    name: str,
    unit: str,
    times: Times,
    per_step: int = 1,
    bar: float | None = None,
    lean: float | None = None,
) -> Figure:
    """A figure per second of something that there are ``per_step`` of in a step; ``lean`` is seconds a step in C."""
    return Figure(
        subject,
        name,
        unit,
        per_step / times.best,
        per_step / times.median,
        bar,
        None if lean is None else per_step / lean,
    )

# SPDX-License-Identifier: GPL-2.0-or-later
"""Who runs next: a schedule as a value, and the seam for others who decide.

A run asks at every :class:`Point`.  Unless told otherwise the running vCPU goes on, and when it cannot, the next one
that can.  A schedule is what differs from that: "at step 12 go over to vCPU 1", written ``12>1``.  The empty one runs
the programs one after the other, one of n entries has at most n preemptions beyond that, and taking an entry out gives
a simpler one.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol


class Point(NamedTuple):
    """A named place that a vCPU reached; its next step begins there."""

    step: int
    """How many points were reached before in this run."""
    vcpu: int
    """Position of its program in the run."""
    kind: str
    """One of :data:`hypervisor.locking.places.KINDS`, or ``call`` (before an item of the program) or ``end``."""
    what: str
    """The lock, unit, domain or context that it concerns."""

    def __str__(self) -> str:
        return f"{self.step} vcpu{self.vcpu} {self.kind} {self.what}".rstrip()


class Chooser(Protocol):
    """Decides who runs next.  It sees every point, and one that is pure makes the run repeatable."""

    def choose(self, point: Point, runnable: Sequence[int]) -> int:
        """A vCPU out of ``runnable``, which is ascending; ``point.vcpu`` is among them if it can go on."""
        ...


def default_choice(point: Point, runnable: Sequence[int]) -> int:
    """The vCPU at the point goes on if it can, else the next one in a circle."""
    if point.vcpu in runnable:
        return point.vcpu
    return next((vcpu for vcpu in runnable if vcpu > point.vcpu), runnable[0])


@dataclass(frozen=True, slots=True)
class Schedule:
    """Where a run differs from the default: (step, vCPU to go over to), ascending."""

    switches: tuple[tuple[int, int], ...] = ()
    _at: dict[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_at", dict(self.switches))

    def choose(self, point: Point, runnable: Sequence[int]) -> int:
        wanted = self._at.get(point.step)
        return wanted if wanted is not None and wanted in runnable else default_choice(point, runnable)

    def __str__(self) -> str:
        return " ".join(f"{step}>{vcpu}" for step, vcpu in self.switches)

    @staticmethod
    def parse(text: str) -> "Schedule":
        """The schedule that is written ``12>1 19>0``; ``ValueError`` for anything else."""
        switches = []
        for word in text.split():
            found = re.fullmatch(r"(\d+)>(\d+)", word)
            if found is None:
                raise ValueError(f"a schedule is written like '12>1 19>0', not {word!r}")
            switches.append((int(found[1]), int(found[2])))
        if [step for step, _ in switches] != sorted({step for step, _ in switches}):
            raise ValueError(f"the steps of a schedule ascend: {text!r}")
        return Schedule(tuple(switches))


class RandomWalk:
    """At every point one time in ``every`` somebody else runs, picked by ``seed``."""

    def __init__(self, seed: int, every: int = 4) -> None:
        self._random: Final = random.Random(seed)
        self._every: Final = every

    def choose(self, point: Point, runnable: Sequence[int]) -> int:
        if point.vcpu in runnable and self._random.randrange(self._every):
            return point.vcpu
        return runnable[self._random.randrange(len(runnable))]

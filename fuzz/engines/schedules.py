# SPDX-License-Identifier: GPL-2.0-or-later
"""Which schedules of a concurrent program are tried: random ones, PCT's, or all with a few preemptions.

* *random*: at every point one time in four another vCPU goes on.
* *PCT* (Burckhardt et al., 2010): vCPUs have random priorities that change at a few random steps; a bug that takes d
  ordering constraints is found with a probability that can be stated.
* *exhaustive*: all schedules with at most so many preemptions, without those that partial-order reduction says are
  like another: going over to another vCPU before a step that is independent of all that the other one does later
  changes nothing.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fuzz.concurrent import Attempt, Concurrent
from fuzz.engines.footprint import Footprints, Step
from testbed.schedule import Chooser, Point, RandomWalk, Schedule
from testbed.schedule.schedule import default_choice

STRATEGIES: Final = ("random", "pct", "exhaustive")


class Pct:
    """Priorities that change at ``depth`` - 1 of ``steps`` steps."""

    def __init__(self, seed: int, vcpus: int, steps: int, depth: int) -> None:
        rng = random.Random(seed)
        self._priority: Final = rng.sample(range(depth, depth + vcpus), vcpus)
        self._changes: Final = {rng.randrange(max(steps, 1)): lower for lower in range(depth - 1)}

    def choose(self, point: Point, runnable: Sequence[int]) -> int:
        if point.step in self._changes:
            self._priority[point.vcpu] = self._changes[point.step]
        return max(runnable, key=lambda vcpu: self._priority[vcpu])


@dataclass(slots=True)
class Explored:
    """How far an exploration got."""

    schedules: int = 0
    skipped: int = 0
    """By partial-order reduction."""
    complete: bool = False
    """Every schedule within the bound was run, or is like one that was."""


class Explorer:
    """Tries schedules of one program."""

    def __init__(self, concurrent: Concurrent, full: bool = True) -> None:
        """``full``: how deep the sweep after a schedule looks."""
        self._concurrent: Final = concurrent
        self._full: Final = full
        self.explored: Final = Explored()

    def attempts(self, strategy: str, runs: int, seed: int, depth: int, preemptions: int) -> Iterator[Attempt]:
        """At most ``runs`` runs."""
        if strategy == "exhaustive":
            yield from self._exhaustive(runs, preemptions)
            return
        vcpus = len(self._concurrent.parts.vcpus)
        steps = len(self._concurrent.attempt("").run.points) if strategy == "pct" else 0
        for k in range(runs):
            chooser: Chooser = RandomWalk(seed + k) if strategy == "random" else Pct(seed + k, vcpus, steps, depth)
            yield self._run(chooser)

    def _run(self, chooser: Chooser, ended: Callable[[], None] = lambda: None) -> Attempt:
        self.explored.schedules += 1
        return self._concurrent.attempt(chooser, self._full, ended)

    def _exhaustive(self, runs: int, preemptions: int) -> Iterator[Attempt]:
        """Depth first; a schedule's children differ from it after its last change."""
        pending = [Schedule()]
        while pending:
            if self.explored.schedules >= runs:
                return
            schedule = pending.pop()
            footprints = Footprints(self._concurrent, schedule)
            attempt = self._run(footprints, footprints.finish)
            yield attempt
            pending.extend(reversed(list(self._children(schedule, attempt, footprints.steps, preemptions))))
        self.explored.complete = True

    def _children(
        self, schedule: Schedule, attempt: Attempt, steps: list[Step], preemptions: int
    ) -> Iterator[Schedule]:
        points, runnable = attempt.run.points, attempt.run.runnable
        used = sum(points[step].vcpu in runnable[step] for step, _ in schedule.switches if step < len(points))
        begin = schedule.switches[-1][0] + 1 if schedule.switches else 0
        for k in range(begin, len(points)):
            goes_on = points[k].vcpu in runnable[k]
            if goes_on and used >= preemptions:
                continue
            usual = default_choice(points[k], runnable[k])
            for vcpu in runnable[k]:
                if vcpu == usual:
                    continue
                if goes_on and k < len(steps) and not self._matters(steps, k, vcpu):
                    self.explored.skipped += 1
                    continue
                yield Schedule((*schedule.switches, (k, vcpu)))

    def _matters(self, steps: list[Step], k: int, vcpu: int) -> bool:
        """Whether anything that ``vcpu`` does later depends on step ``k``, so that doing it earlier may matter."""
        return any(step.vcpu == vcpu and steps[k].depends_on(step) for step in steps[k + 1 :])


def simplify(concurrent: Concurrent, attempt: Attempt) -> Attempt:
    """The same finding with as few switches as can be left out one by one."""
    assert attempt.broken is not None
    best, k = attempt, 0
    while k < len(best.run.schedule.switches):
        switches = best.run.schedule.switches
        fewer = concurrent.attempt(Schedule(switches[:k] + switches[k + 1 :]))
        if (
            fewer.broken is not None
            and fewer.broken.clause == attempt.broken.clause
            and len(fewer.run.schedule.switches) < len(switches)
        ):
            best, k = fewer, 0
        else:
            k += 1
    return best

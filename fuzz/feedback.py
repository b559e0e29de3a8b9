# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program made happen, as a set of small numbers: two programs that made the same happen are alike.

Features are outcomes (operation, answer, events), pairs of outcomes in a row, and the hypervisor's blocks
(:mod:`fuzz.blocks`).  Events are read off counters that the parts under test keep anyway.
"""

from collections.abc import Callable
from typing import Any, Final

from fuzz.blocks import Blocks
from fuzz.program import Op
from fuzz.run import Runner

EVENTS: Final = ("tables-taken", "tables-given-back", "folded", "split", "preempted", "unconfirmed", "starved")
"""What an operation may make happen, in the order of the bits."""
Outcome = tuple[str, int, int]
"""(verb, result, events)."""


class Feedback:
    """Listens to the operations of one runner."""

    def __init__(self, runner: Runner) -> None:
        self._target: Final = runner.target
        self.outcomes: Final[set[Outcome]] = set()
        """Of the program since :meth:`clear`."""
        self.pairs: Final[set[tuple[Outcome, Outcome]]] = set()
        self._last: Outcome = ("", 0, 0)
        self._restarted = False
        runner.target.xen.rescheduled = self._reschedule
        steps = runner.steps
        for verb, step in steps.items():
            steps[verb] = self._watched(verb, step)

    def _reschedule(self, vcpu: object) -> None:
        self._restarted = True

    def _watched(self, verb: str, step: Callable[[Op], tuple[int, Any]]) -> Callable[[Op], tuple[int, Any]]:
        target, xen = self._target, self._target.xen

        def watched(operation: Op) -> tuple[int, Any]:
            self._restarted = False
            arena = target.arena
            used, kept = arena.used if arena is not None else 0, len(xen.kept)
            folds, splits = xen.superpages()
            answer = step(operation)
            folded, was_split = xen.superpages()
            arena = target.arena
            now = arena.used if arena is not None else 0
            events = (
                (now > used)
                | (now < used) << 1
                | (folded > folds) << 2
                | (was_split > splits) << 3
                | self._restarted << 4
                | (len(xen.kept) > kept) << 5
                | target.failed << 6
            )
            outcome = (verb, answer[0], events)
            self.outcomes.add(outcome)
            self.pairs.add((self._last, outcome))
            self._last = outcome
            return answer

        return watched

    def clear(self) -> None:
        """A program begins."""
        self.outcomes.clear()
        self.pairs.clear()
        self._last = ("", 0, 0)


def event_names(events: int) -> str:
    """The names of ``events``, joined by commas."""
    return ",".join(name for bit, name in enumerate(EVENTS) if events >> bit & 1)


class Seen:
    """Everything that programs made happen so far."""

    def __init__(self) -> None:
        self.outcomes: Final[set[Outcome]] = set()
        self._pairs: Final[set[tuple[Outcome, Outcome]]] = set()
        self._blocks = 0

    def learn(self, feedback: Feedback, blocks: Blocks) -> int:
        """How much of it was new: 2 for a block or an outcome, 1 for a pair of known outcomes alone, 0 for nothing."""
        taken = blocks.taken()
        fresh = taken & ~self._blocks
        new = 2 if fresh or not feedback.outcomes <= self.outcomes else int(not feedback.pairs <= self._pairs)
        if new:
            self._blocks |= taken
            self.outcomes.update(feedback.outcomes)
            self._pairs.update(feedback.pairs)
        return new

    @property
    def blocks(self) -> int:
        """Blocks that ran at least once."""
        return self._blocks.bit_count()

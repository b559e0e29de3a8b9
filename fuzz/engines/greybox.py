# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that made something new happen are kept, and later ones are made out of them.

New is an outcome (operation, answer, events) that no program had, or a block of the code under test that none had run
(:mod:`fuzz.blocks`).  At driver level that code is the guest's too, and what is put together keeps the rules of that
level (:mod:`fuzz.driver_mutate`).
"""

import random
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Final

from fuzz.blocks import Blocks
from fuzz.driver_mutate import DriverMutator
from fuzz.engines.engine import Hit
from fuzz.engines.swarm import FULL_EVERY, LENGTH, Swarm
from fuzz.mutate import Mutator
from fuzz.program import Bench
from fuzz.verbs import Op, ProgramError
from testbed.build import TestBed

KEPT: Final = 400
"""Programs of a bench that are kept; beyond that the older half is let go."""
FRESH: Final = 0.3
"""Part of the programs that are made from nothing, as the swarm engine makes them."""


class _Kept:
    """The programs of one bench that showed something new, and what all of them showed."""

    def __init__(self, mutator: Mutator, seed: int) -> None:
        self._mutator: Final = mutator
        self._rng: Final = random.Random(seed)
        self.programs: Final[list[tuple[Op, ...]]] = []
        """Oldest first."""
        self.blocks = 0
        """A one in the byte of each block that ran."""

    def propose(self) -> tuple[Op, ...] | None:
        """A program out of kept ones; ``None``: it is time for a fresh one."""
        if not self.programs or self._rng.random() < FRESH:
            return None
        return self._mutator.child(self._pick(), self._pick())

    def _pick(self) -> tuple[Op, ...]:
        """Young programs are taken more often."""
        return self.programs[len(self.programs) - 1 - int(self._rng.random() ** 2 * len(self.programs))]

    def keep(self, ops: tuple[Op, ...]) -> None:
        self.programs.append(ops)
        if len(self.programs) > KEPT:
            del self.programs[: KEPT // 2]


class Greybox(Swarm):
    """Findings of one worker."""

    def __init__(self, over: list[Bench], seed: int, sabotage: Callable[[TestBed], None] | None = None) -> None:
        super().__init__(over, seed, sabotage)
        self.kept: Final = [
            _Kept(
                (DriverMutator if runner.bench.level == "driver" else Mutator)(source, seed * 1_000_003 + k),
                seed * 1_000_003 + k,
            )
            for k, (runner, source) in enumerate(zip(self.runners, self._generators))
        ]
        """One for each bench."""

    def findings(self, seconds: float, max_ops: int | None = None) -> Iterator[Hit | None]:
        """See :class:`fuzz.engines.engine.Engine`."""
        driver = any(runner.bench.level == "driver" for runner in self.runners)
        blocks = Blocks(("hypervisor", "guest_driver") if driver else ("hypervisor",))
        try:
            end = monotonic() + seconds
            while monotonic() < end and (max_ops is None or self.ops < max_ops):
                yield self._next(blocks)
        finally:
            blocks.remove()

    def _next(self, blocks: Blocks) -> Hit | None:
        turn = self.programs % len(self.runners)
        full = self.programs // len(self.runners) % FULL_EVERY == 0
        self.programs += 1
        runner, kept = self.runners[turn], self.kept[turn]
        ops = kept.propose() or self._generators[turn].program(LENGTH)
        outcomes = len(runner.coverage)
        blocks.clear()
        try:
            found = runner.run(ops, full=full)
        except ProgramError:  # a changed field that the version's struct cannot hold
            return None
        if found is not None:
            return runner, found
        taken = blocks.taken()
        if taken & ~kept.blocks or len(runner.coverage) > outcomes:
            kept.blocks |= taken
            kept.keep(ops)
        return None

# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that made something new happen are kept, and later ones are made out of them."""

import random
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Final

from fuzz.blocks import Blocks
from fuzz.engines.engine import Hit
from fuzz.engines.swarm import FULL_EVERY, LENGTH
from fuzz.feedback import Feedback, Seen
from fuzz.generate import Generator
from fuzz.mutate import Mutator
from fuzz.program import Bench, Op, ProgramError
from fuzz.run import Runner
from testbed.build import TestBed

KEPT: Final = 400
"""Programs of a bench that are kept; beyond that the least promising half is let go."""
FRESH: Final = 0.3
"""Part of the programs that are made from nothing, as the swarm engine makes them."""


class _Bench:
    """One bench: its runner, what its programs made happen, and the programs that did."""

    def __init__(self, bench: Bench, seed: int, sabotage: Callable[[TestBed], None] | None) -> None:
        self.runner: Final = Runner(bench, sabotage)
        self.feedback: Final = Feedback(self.runner)
        self.generator: Final = Generator(bench, self.runner.target.abi, seed)
        self.mutator: Final = Mutator(self.generator, seed)
        self.seen: Final = Seen()
        self.kept: Final[list[tuple[int, tuple[Op, ...]]]] = []
        """(how much was new, program), oldest first."""
        self._rng: Final = random.Random(seed)

    def propose(self) -> tuple[Op, ...]:
        if not self.kept or self._rng.random() < FRESH:
            return self.generator.program(LENGTH)
        return self.mutator.child(self._pick(), self._pick())

    def _pick(self) -> tuple[Op, ...]:
        """Young programs and those that showed a block or an outcome are taken more often."""
        rng = self._rng
        place = len(self.kept) - 1 - int(rng.random() ** 2 * len(self.kept))
        worth, ops = self.kept[place]
        return ops if worth == 2 or rng.random() < 0.4 else self.kept[int(rng.random() * len(self.kept))][1]

    def keep(self, worth: int, ops: tuple[Op, ...]) -> None:
        self.kept.append((worth, ops))
        if len(self.kept) > KEPT:
            half = sorted(range(KEPT), key=lambda k: (self.kept[k][0], k))[: KEPT // 2]
            for place in sorted(half, reverse=True):
                del self.kept[place]


class Greybox:
    """Findings of one worker."""

    def __init__(self, over: list[Bench], seed: int, sabotage: Callable[[TestBed], None] | None = None) -> None:
        self._benches: Final = [_Bench(bench, seed * 1_000_003 + k, sabotage) for k, bench in enumerate(over)]
        self.runners: Final = [bench.runner for bench in self._benches]
        self.programs = 0

    @property
    def ops(self) -> int:
        return sum(runner.ops for runner in self.runners)

    @property
    def kept(self) -> int:
        """Programs that are kept."""
        return sum(len(bench.kept) for bench in self._benches)

    def findings(self, seconds: float, max_ops: int | None = None) -> Iterator[Hit | None]:
        """See :class:`fuzz.engines.engine.Engine`."""
        blocks = Blocks()
        try:
            end = monotonic() + seconds
            while monotonic() < end and (max_ops is None or self.ops < max_ops):
                yield self._next(blocks)
        finally:
            blocks.remove()

    def _next(self, blocks: Blocks) -> Hit | None:
        bench = self._benches[self.programs % len(self._benches)]
        full = self.programs // len(self._benches) % FULL_EVERY == 0
        self.programs += 1
        ops = bench.propose()
        bench.feedback.clear()
        blocks.clear()
        try:
            found = bench.runner.run(ops, full=full)
        except ProgramError:  # a changed field that the version's struct cannot hold
            return None
        if found is not None:
            return bench.runner, found
        worth = bench.seen.learn(bench.feedback, blocks)
        if worth:
            bench.keep(worth, ops)
        return None

# SPDX-License-Identifier: GPL-2.0-or-later
"""The default engine: random typed programs, each with its own weights (swarm testing), no feedback."""

from collections.abc import Callable, Iterator
from time import monotonic
from typing import Final

from fuzz import machines
from fuzz.driver_generate import DriverGenerator
from fuzz.generate import Generator
from fuzz.mutate import Source
from fuzz.program import Bench
from fuzz.raw import RawGenerator
from fuzz.run import Finding, ProgramRunner, Runner, runner_for
from hypervisor import profile as profiles
from testbed.build import TestBed

LENGTH: Final = 200
"""Operations of a program."""
FULL_EVERY: Final = 8
"""One program in so many ends with the full sweep."""


def benches(
    backend: str, profile: str, level: str = "typed", driver: str = "reference", machine: str = machines.USUAL
) -> list[Bench]:
    """What is worth starting from: both kinds of guest, ample and scarce memory, initialised and not; nothing, if there
    is no such machine of that backend for that profile."""
    there = machines.get(machine)
    if not there.is_of(backend) or not there.is_for(profiles.get(profile).abi):
        return []
    if level == "driver":
        return [Bench(backend, profile, guest, level=level, driver=driver) for guest in ("pv", "pvh")]
    starts: list[tuple[int | None, int]] = [(4, 8), (4, 4)]
    if profiles.get(profile).abi.has("init"):
        starts.append((None, 6))
    return [
        Bench(backend, profile, guest, *start, level=level, machine=machine)
        for guest in there.guests
        for start in starts
    ]


class Swarm:
    """Findings of one worker, program after program, over several benches in turn."""

    def __init__(self, over: list[Bench], seed: int, sabotage: Callable[[TestBed], None] | None = None) -> None:
        self.runners: Final[list[ProgramRunner]] = [runner_for(bench, sabotage) for bench in over]
        self._generators: Final = [
            self._generator(runner, seed * 1_000_003 + k) for k, runner in enumerate(self.runners)
        ]
        self.programs = 0

    def _generator(self, runner: ProgramRunner, seed: int) -> Source:
        if runner.bench.level == "driver":
            return DriverGenerator(runner.bench, runner.abi, seed)
        assert isinstance(runner, Runner)
        if runner.bench.level == "raw":
            return RawGenerator(runner.target, seed)
        return Generator(runner.bench, runner.abi, seed)

    @property
    def ops(self) -> int:
        return sum(runner.ops for runner in self.runners)

    def findings(self, seconds: float, max_ops: int | None = None) -> Iterator[tuple[ProgramRunner, Finding] | None]:
        """After every program what was found, or ``None``; ends when the time or the operations are used up."""
        end = monotonic() + seconds
        while monotonic() < end and (max_ops is None or self.ops < max_ops):
            turn = self.programs % len(self.runners)
            runner = self.runners[turn]
            ops = self._generators[turn].program(LENGTH)
            found = runner.run(ops, full=self.programs // len(self.runners) % FULL_EVERY == 0)
            self.programs += 1
            yield (runner, found) if found is not None else None

# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of several vCPUs as campaigns and shrinkers want them: run, and say what breaks under some schedule.

The schedule that a program names is tried first, then every one with one preemption, :data:`RUNS` of them at most; what
is found carries the one that shows it.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain

from abi.versions import Abi
from fuzz.concurrent import Concurrent, check_machine
from fuzz.engines.schedules import Explorer, simplify
from fuzz.faults import PlannedFaults
from fuzz.program import Bench, Program
from fuzz.run import Finding, Runner
from fuzz.sweep import Broken
from fuzz.verbs import Op, ProgramError, op
from testbed.build import TestBed
from testbed.schedule import Answer

RUNS = 80
"""Schedules of one program that are tried at most."""


class ConcurrentRunner:
    """Programs of several vCPUs on one bench."""

    def __init__(self, bench: Bench, sabotage: Callable[[TestBed], None] | None = None) -> None:
        if sabotage is not None:
            raise ProgramError("a bench of several vCPUs is built anew for each program")
        check_machine(bench)
        self.bench = bench
        self.ops = 0
        """Operations that have run, under every schedule."""
        self._single = Runner(replace(bench, vcpus=1))
        self.coverage: Counter[tuple[str, int, int]] = self._single.coverage

    @property
    def abi(self) -> Abi:
        return self._single.abi

    @property
    def bed(self) -> TestBed:
        return self._single.bed

    @property
    def faults(self) -> PlannedFaults | None:
        return None

    def begin(self) -> None:
        self._single.begin()

    def step(self, operation: Op, sweep: bool = True) -> tuple[str, Broken | None]:
        if operation[0] in ("vcpu", "schedule"):
            return "0", None
        return self._single.step(operation, sweep)

    def run(
        self, ops: tuple[Op, ...], sweep_from: int | None = None, told: list[str] | None = None, full: bool = True
    ) -> Finding | None:
        """As :meth:`fuzz.run.Runner.run`; what breaks before the vCPUs start is found as in a program of one."""
        wanted = [operation[1].replace(",", " ") for operation in ops if operation[0] == "schedule"]
        ops = tuple(operation for operation in ops if operation[0] != "schedule")
        starts = [k for k, operation in enumerate(ops) if operation[0] == "vcpu"]
        if not starts:
            return None
        early = self._single.run(ops[: starts[0]], sweep_from, told, full)
        self.ops += starts[0]
        if early is not None:
            return replace(early, program=Program(self.bench, early.program.ops))
        concurrent = Concurrent(Program(self.bench, ops), looked_at=True)
        told_of = (concurrent.attempt(schedule, full=False) for schedule in wanted)
        every = Explorer(concurrent, full=False).attempts("exhaustive", RUNS, 0, 2, 1)
        for attempt in chain(told_of, every):
            self._count(concurrent.parts.vcpus, attempt.run.results)
            if attempt.broken is not None:
                simple = simplify(concurrent, attempt)
                assert simple.broken is not None
                schedule = simple.schedule.replace(" ", ",")
                found = (*ops, op("schedule", order=schedule)) if schedule else ops
                return Finding(Program(self.bench, found), simple.broken.clause, simple.broken.what, "-")
        return None

    def _count(self, vcpus: Iterable[Iterable[Op]], answers: Iterable[Iterable[object]]) -> None:
        """Operations of each vCPU, and what they answered as far as they got."""
        for operation, answer in chain.from_iterable(map(zip, vcpus, answers)):
            result = answer.result if isinstance(answer, Answer) else answer
            self.coverage[operation[0], min(result, 0) if isinstance(result, int) else 0, 0] += 1
            self.ops += 1

    def locate(self, ops: tuple[Op, ...]) -> Finding | None:
        return self.run(ops)

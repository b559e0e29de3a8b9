# SPDX-License-Identifier: GPL-2.0-or-later
"""One program, an operation at a time, forwards and (by starting over) backwards: for replays, shells and reports."""

from typing import Final, NamedTuple

from fuzz import watchdog
from fuzz.program import Bench, Program, format_op
from fuzz.run import PATIENCE, Finding, ProgramRunner, runner_for
from fuzz.sweep import Broken
from fuzz.verbs import Op
from testbed.build import TestBed


class Step(NamedTuple):
    """An operation that has run."""

    operation: Op
    answer: str
    """Name of the errno, or of what was raised."""
    broken: Broken | None

    def __str__(self) -> str:
        line = f"{format_op(self.operation)}  # {self.answer}"
        return f"{line}\n# broken: {self.broken}" if self.broken is not None else line


class Session:
    """Runs a program under the oracle, swept after every operation.  It can go on after a clause broke."""

    def __init__(self, program: Program) -> None:
        """``ProgramError`` for a bench that cannot be built."""
        self.runner: Final[ProgramRunner] = runner_for(program.bench)
        self.ops: Final = list(program.ops)
        """What is to run; more may be put in after :attr:`position`."""
        self.steps: Final[list[Step]] = []
        """What has run."""
        self.runner.begin()

    @property
    def bench(self) -> Bench:
        return self.runner.bench

    @property
    def bed(self) -> TestBed:
        """The machine that it runs on."""
        return self.runner.bed

    @property
    def position(self) -> int:
        """Operations that have run."""
        return len(self.steps)

    @property
    def broken(self) -> Step | None:
        """The first step that broke a clause."""
        return next((step for step in self.steps if step.broken is not None), None)

    def finding(self) -> Finding | None:
        """What the program finds when it is run in one go, as the fuzzer runs it; back to the start afterwards."""
        found = self.runner.run(tuple(self.ops))
        self.runner.begin()
        self.steps.clear()
        return found

    def step(self) -> Step:
        """Run the next operation; ``IndexError`` at the end, ``ProgramError`` if the version has no such call."""
        operation = self.ops[self.position]
        watchdog.arm(PATIENCE)
        try:
            self.steps.append(Step(operation, *self.runner.step(operation)))
        finally:
            watchdog.disarm()
        return self.steps[-1]

    def goto(self, position: int) -> None:
        """Be where ``position`` operations have run; going back starts over."""
        if position < self.position:
            self.runner.begin()
            self.steps.clear()
        while self.position < position:
            self.step()

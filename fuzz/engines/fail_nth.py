# SPDX-License-Identifier: GPL-2.0-or-later
"""The fail-nth sweep: a program again and again, each time with one more of its places failing.

Linux's iommufd does it to its allocations (``iommufd_fail_nth``); here it is every copy from and to the guest, every
allocation, tag and invalidation that a program reaches, one at a time, each run held against the oracle.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fuzz.program import Program
from fuzz.run import Finding, ProgramRunner, runner_for
from fuzz.verbs import ProgramError
from hypervisor.locking.places import FAULTS

_OWN: Final = frozenset({"fail", "fault", "no_memory"})
"""Operations with which a program makes things fail itself: left out, so that only one thing fails at a time."""


@dataclass(frozen=True, slots=True)
class Failed:
    """One run of a sweep."""

    plan: str
    finding: Finding | None


class FailNth:
    """Sweeps programs of one bench."""

    def __init__(self, program: Program) -> None:
        """``ProgramError`` for a bench that cannot be built, or one of two machines or several vCPUs."""
        if program.bench.against or program.bench.vcpus > 1:
            raise ProgramError("a sweep takes a program on one machine and one vCPU")
        self.runner: Final[ProgramRunner] = runner_for(program.bench)
        self._ops: Final = tuple(operation for operation in program.ops if operation[0] not in _OWN)
        self.plain: Final = self.runner.locate(self._ops)
        """What the program shows without any failure: a sweep is for programs that show nothing."""
        self.reached: Final = self._count()
        """By kind of place: how often the program comes there."""

    def _count(self) -> dict[str, int]:
        if self.plain is not None:
            return {}
        self.runner.run((("fault", ""), *self._ops))
        faults = self.runner.faults
        assert faults is not None
        return {kind: faults.reached[kind] for kind in FAULTS if faults.reached[kind]}

    @property
    def places(self) -> int:
        """Runs that the sweep takes."""
        return sum(self.reached.values())

    def runs(self) -> Iterator[Failed]:
        """Every run, findings traced to their operation."""
        for kind, count in self.reached.items():
            for nth in range(1, count + 1):
                plan = f"{kind}:{nth}"
                yield Failed(plan, self.runner.locate((("fault", plan), *self._ops)))

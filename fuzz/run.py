# SPDX-License-Identifier: GPL-2.0-or-later
"""Running programs under the oracle: sparse sweeps first, and on failure the operation that it was."""

import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

from abi.errno import errno_name
from abi.versions import Abi
from fuzz import events, memory_ops, watchdog
from fuzz.faults import PlannedFaults
from fuzz.oracle import Oracle
from fuzz.program import Bench, Program, format_op
from fuzz.resync import PASSABLE, Known, format_known, is_swept, parse_known, resync
from fuzz.sweep import Broken
from fuzz.target import SUBOPS, Target
from fuzz.verbs import Op, ProgramError
from hypervisor.errors import XenBug
from testbed.build import TestBed

Key = tuple[str, str, str, str]
"""(clause, verb of the operation, errno or exception, events): what makes two findings the same."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A program that breaks a clause at its last operation."""

    program: Program
    clause: str
    what: str
    errno: str
    """What the operation answered, "-" if nothing."""
    events: str = "-"
    """What else happened during it (:mod:`fuzz.events`), joined with "+"."""

    @property
    def key(self) -> Key:
        verb = str(self.program.ops[-1][0]) if self.program.ops else "-"
        return self.clause, verb, self.errno, self.events

    def like(self, other: "Finding") -> bool:
        """Whether both are of one kind, whatever else happened: what shrinking keeps."""
        return self.key[:3] == other.key[:3]


SPECIFICATION: Final = "specification"
"""What a bench is held against to have the executable specification judge beside the oracle."""
PATIENCE: Final = 20.0
"""Seconds of processor time that a program may take; 200 operations take some hundredths."""


class ProgramRunner(Protocol):
    """Programs of one bench, run one after the other, whatever level they are written in."""

    bench: Bench
    coverage: Counter[tuple[str, int, int]]
    """(verb, result, events as a mask of :mod:`fuzz.events`) to how often."""

    @property
    def ops(self) -> int:
        """Run so far."""
        ...

    @property
    def abi(self) -> Abi: ...

    @property
    def bed(self) -> TestBed:
        """The machine that programs run on."""
        ...

    @property
    def faults(self) -> PlannedFaults | None:
        """The fault plan of the program that ran last, if it has one."""
        ...

    def run(
        self, ops: tuple[Op, ...], sweep_from: int | None = None, told: list[str] | None = None, full: bool = True
    ) -> Finding | None:
        """Run a program from the start; the first clause that breaks.  As :meth:`Runner.run`."""
        ...

    def begin(self) -> None:
        """Back to the start of a program."""
        ...

    def step(self, operation: Op, sweep: bool = True) -> tuple[str, Broken | None]:
        """One more operation after :meth:`begin`: what it answered, and the clause that it breaks."""
        ...

    def locate(self, ops: tuple[Op, ...]) -> Finding | None:
        """The same, a finding traced to the first operation after which it can be seen, with its events."""
        ...


class Runner:
    """Programs of hypercall level on one target."""

    def __init__(self, bench: Bench, sabotage: Callable[[TestBed], None] | None = None) -> None:
        self.bench = bench
        self.target: Final = Target(bench, sabotage)
        self.oracle: Final = self._make_oracle()
        self.coverage: Counter[tuple[str, int, int]] = Counter()
        self.ops = 0
        self.patience = PATIENCE
        """Seconds of processor time after which a program counts as hung."""
        self.known: set[Known] = set()
        """Faults after which a program goes on; what is found tells which of them it met."""
        try:
            self.overlook(parse_known(bench.known))
        except ValueError as error:
            raise ProgramError(str(error)) from None
        self.steps: Final[dict[str, Callable[[Op], tuple[int, Broken | None]]]] = {
            **{verb: partial(self._call, name) for verb, name in SUBOPS.items()},
            "raw": self._raw,
            "dma": self._dma,
            "remove": self._remove,
            "p2m": self._retype,
            "remote": self._remote,
            "progress": self._progress,
            "fail": self._fail,
            "preempt": self._preempt,
            "fault": self._fault,
            "schedule": lambda operation: (0, None),  # of one vCPU there is one order
            "regions": lambda operation: memory_ops.ask(self.target, *operation[1:]),
            "as": lambda operation: (self.target.call_as(operation[1]), None),
            **{verb: partial(self._domains, does) for verb, does in self.target.of_domains.items()},
        }

    @property
    def abi(self) -> Abi:
        return self.target.abi

    @property
    def bed(self) -> TestBed:
        return self.target.bed

    @property
    def faults(self) -> PlannedFaults | None:
        return self.target.faults

    def overlook(self, known: set[Known]) -> None:
        """From now on go on after these, and no others."""
        self.known = known
        self.oracle.overlooked = {clause for clause, verb, _ in known if verb == "*"}

    def _make_oracle(self) -> Oracle:
        return Oracle(self.target)

    # -------------------------------------------------------------------------------------------------- operations

    def _call(self, name: str, operation: Op) -> tuple[int, Broken | None]:
        call = self.target.call(name, self.target.arguments(operation), operation[-2], operation[-1])
        return call.result, self.oracle.judge(call)

    def _raw(self, operation: Op) -> tuple[int, Broken | None]:
        _, number, raw, argument = operation
        call = self.target.raw(number, raw, argument)
        return call.result, self.oracle.judge(call)

    def _dma(self, operation: Op) -> tuple[int, Broken | None]:
        return 0, self.oracle.dma(*operation[1:])

    def _remove(self, operation: Op) -> tuple[int, Broken | None]:
        domid, gfn, result = self.target.remove(operation[1])
        return result, self.oracle.judge_removal(domid, gfn, result)

    def _retype(self, operation: Op) -> tuple[int, Broken | None]:
        domid, gfn, result = self.target.retype(operation[1], operation[2])
        return result, self.oracle.judge_retype(domid, gfn, operation[2], result)

    def _domains(self, does: Callable[..., int], operation: Op) -> tuple[int, Broken | None]:
        result = does(*operation[1:])
        return result, self.oracle.domains.judge(operation, result)

    def _fail(self, operation: Op) -> tuple[int, Broken | None]:
        self.target.fail(operation[1], operation[2])
        return 0, None

    def _remote(self, operation: Op) -> tuple[int, Broken | None]:
        self.target.carry(operation[1])
        return 0, None

    def _progress(self, operation: Op) -> tuple[int, Broken | None]:
        self.target.claim(operation[1])
        return 0, None

    def _preempt(self, operation: Op) -> tuple[int, Broken | None]:
        self.target.preempt(operation[1])
        return 0, None

    def _fault(self, operation: Op) -> tuple[int, Broken | None]:
        self.target.inject(operation[1])
        return 0, None

    # ---------------------------------------------------------------------------------------------------- programs

    def begin(self) -> None:
        """Back to the start of a program."""
        self.target.reset()
        self.oracle.reset()

    def step(self, operation: Op, sweep: bool = True) -> tuple[str, Broken | None]:
        """One more operation after :meth:`begin`: what it answered, and the clause that it breaks."""
        try:
            self.oracle.before()
            result, broken = self.steps[operation[0]](operation)
            if broken is not None and self._passes(operation[0], result, broken):
                broken = None
            if broken is None and sweep:
                broken = self.oracle.sweep()
        except (ProgramError, KeyboardInterrupt):
            raise
        except Exception as error:
            broken, errno = raised(error)
        else:
            errno = errno_name(result)
        self.ops += 1
        return errno, broken

    def _passes(self, verb: str, result: int, broken: Broken) -> bool:
        """Whether a fault is a known one that a program can go on after; the oracle follows what was done then."""
        if broken.clause not in PASSABLE or (broken.clause, verb, errno_name(result)) not in self.known:
            return False
        resync(self.oracle.domains, self.target.bed)
        return True

    def run(
        self, ops: tuple[Op, ...], sweep_from: int | None = None, told: list[str] | None = None, full: bool = True
    ) -> Finding | None:
        """Run a program from the start; the first clause that breaks.

        State is swept after the last operation, and after every one from number ``sweep_from`` on.
        ``told`` collects what each operation answered.  ``full`` is
        the depth of the last sweep.  ``ProgramError`` for an operation that the bench's version cannot express.
        """
        target, oracle, steps, coverage = self.target, self.oracle, self.steps, self.coverage
        target.reset()
        oracle.reset()
        result = 0
        broken: Broken | None = None
        met: set[Known] = set()
        k = -1
        try:
            watchdog.arm(self.patience)
            for k, operation in enumerate(ops):
                verb: str = operation[0]
                oracle.before()
                result, broken = steps[verb](operation)
                coverage[verb, result, target.events] += 1
                if told is not None:
                    told.append(errno_name(result))
                if broken is not None and self._passes(verb, result, broken):
                    met.add((broken.clause, verb, errno_name(result)))
                    broken = None
                if broken is None and sweep_from is not None and k >= sweep_from:
                    broken = oracle.sweep()
                if broken is not None:
                    break
            else:
                broken = oracle.sweep(full)
        except ProgramError as error:
            raise ProgramError(f"{format_op(ops[k])}: {error}") from None
        except KeyboardInterrupt:
            raise
        except Exception as error:
            broken, errno = raised(error)
        else:
            errno = errno_name(result)
        finally:
            watchdog.disarm()
        self.ops += k + 1
        if broken is None:
            return None
        if self.known:  # of what sweeps find, who can say what it took to get here
            met |= {fault for fault in self.known if fault[1] == "*"}
        bench = replace(self.bench, known=format_known(met)) if met or self.bench.known else self.bench
        return Finding(Program(bench, ops[: k + 1]), broken.clause, broken.what, errno, events.names(target.events))

    def locate(self, ops: tuple[Op, ...]) -> Finding | None:
        """Like :meth:`run`; a finding of the sweep is traced to the first operation after which it can be seen."""
        found = self.run(ops)
        if found is None or not is_swept(found.clause):
            return found
        low, high = 0, len(found.program.ops)  # clean after low operations, broken after high
        while high - low > 1:
            middle = (low + high) // 2
            earlier = self.run(ops[:middle])
            if earlier is None:
                low = middle
            else:
                found, high = earlier, len(earlier.program.ops)
        return found


def raised(error: Exception) -> tuple[Broken, str]:
    """The clause that an exception breaks, whatever it is, and what stands for its errno."""
    if isinstance(error, XenBug):
        return Broken("xen-bug", str(error)), "XenBug"
    if isinstance(error, watchdog.Hang):
        return Broken("hang", str(error)), "hang"
    place = traceback.extract_tb(error.__traceback__)[-1]
    name = type(error).__name__
    return Broken("exception", f"{name}: {error} ({place.name}, line {place.lineno})"), name


def runner_for(bench: Bench, sabotage: Callable[[TestBed], None] | None = None) -> ProgramRunner:
    """What runs programs of ``bench``: one machine under the oracle, two that are held against each other, or a guest
    kernel."""
    if bench.level == "driver" and bench.against:
        from fuzz.driver_twins import DriverTwins

        return DriverTwins(bench, sabotage)
    if bench.level == "driver":
        from fuzz.driver_run import DriverRunner

        return DriverRunner(bench, sabotage)
    if bench.vcpus > 1:
        from fuzz.concurrent_run import ConcurrentRunner

        return ConcurrentRunner(bench, sabotage)
    if bench.against == SPECIFICATION:
        from fuzz.specified import SpecifiedRunner

        return SpecifiedRunner(bench, sabotage)
    if bench.against:
        from fuzz.twins import Twins

        return Twins(bench, sabotage)
    return Runner(bench, sabotage)


def replay(program: Program, sabotage: Callable[[TestBed], None] | None = None) -> Finding | None:
    """Run a program by itself on a fresh test bed, densely swept."""
    return runner_for(program.bench, sabotage).run(program.ops, sweep_from=0)


def story(program: Program, sabotage: Callable[[TestBed], None] | None = None) -> list[str]:
    """Every operation of a program with what it answered, and at the end what is wrong."""
    runner = runner_for(program.bench, sabotage)
    answers: list[str] = []
    found = runner.run(program.ops, sweep_from=0, told=answers)
    lines = [f"{format_op(operation)}  # {answer}" for operation, answer in zip(program.ops, answers)]
    if found is not None:
        lines.append(f"# broken after {format_op(found.program.ops[-1])}: {found.clause}: {found.what}")
    return lines

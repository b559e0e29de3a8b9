# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of several vCPUs at once, and what has to hold for every schedule of them::

    # pviommu program 1
    bench backend=vtd profile=v7-fixed guest=pv contexts=4 arena=6 vcpus=2
    alloc
    vcpu 0
    map ctx=1 frame=ram:9 at=0x400
    vcpu 1
    free ctx=1 flags=0x1
    schedule order=4>1,9>0

What stands before the first ``vcpu`` happens before; then the vCPUs run at once.  A program that names no vCPU is dealt
out to two of them, call by call.  Held are: the host does not stop, locks are taken in one order and released, the
machine's invariants, and *linearizability*: answers and the state at the end are those of the calls' passes
(:mod:`fuzz.passes`) one after the other in some order in which none overtakes one that had ended before it began.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from abi.canonical import CANONICAL
from abi.errno import errno_name
from base.units import PAGE_SHIFT
from fuzz.linearize import Name, linearize
from fuzz.passes import Heard, PassByPass, WantedElsewhere, passes_of
from fuzz.program import Program, format_op
from fuzz.run import Runner, raised
from fuzz.sweep import Broken, sweep
from fuzz.target import SUBOPS
from fuzz.twins import homes, spaces
from fuzz.verbs import DEVICES, Op, ProgramError
from testbed.invariants import View
from testbed.schedule import Answer, Chooser, FaultPlan, Hypercall, Item, Run, Schedule, run_concurrently

CLAUSES: Final = {
    "deadlock": "No schedule lets vCPUs wait for each other in a circle.",
    "hang": "Every schedule comes to an end.",
    "exception": "No schedule makes the hypervisor do what nobody has foreseen.",
    "xen-bug": "No schedule stops the hypervisor.",
    "lock-order": "Locks are taken in one order.",
    "lock-left": "Every lock that is taken is released.",
    "linearizable": "What concurrent calls answer and leave behind, some order of their passes does too.",
}
_STOPS: Final = {"XenDeadlock": "deadlock", "XenHang": "hang"}
_OUTSIDE: Final = (
    *("fail", "fault", "preempt", "remote", "progress", "raw", "regions", "p2m", "as"),
    *("create_domain", "destroy_domain"),
)
"""What a concurrent part leaves out: it concerns the next operation of one vCPU, or the whole program, or goes in steps
by design."""
_MOVES: Final = ("assign", "deassign", "add_device", "remove_device")


class Parts(NamedTuple):
    """A program taken apart."""

    before: tuple[Op, ...]
    vcpus: tuple[tuple[Op, ...], ...]
    schedule: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One schedule of a program."""

    run: Run
    broken: Broken | None

    @property
    def schedule(self) -> str:
        return str(self.run.schedule)


def take_apart(program: Program) -> Parts:
    """What happens before, what each vCPU does, and the schedule that the program itself names."""
    before: list[Op] = []
    parts: list[list[Op]] = [[] for _ in range(max(program.bench.vcpus, 2))]
    schedule, here = "", -1
    for operation in program.ops:
        if operation[0] == "vcpu":
            here = operation[1]
            if here >= len(parts):
                raise ProgramError(f"the bench has {program.bench.vcpus} vCPUs, none of number {here}")
        elif operation[0] == "schedule":
            schedule = operation[1].replace(",", " ")
        elif here < 0:
            before.append(operation)
        elif operation[0] in _OUTSIDE:
            raise ProgramError(f"{operation[0]} belongs before the first vcpu")
        else:
            parts[here].append(operation)
    if here < 0:
        dealt = [operation for operation in before if operation[0] not in _OUTSIDE]
        return Parts((), tuple(tuple(dealt[k :: len(parts)]) for k in range(len(parts))), schedule)
    return Parts(tuple(before), tuple(map(tuple, parts)), schedule)


class Concurrent:
    """One program of several vCPUs, run under as many schedules as wanted."""

    def __init__(self, program: Program, looked_at: bool = False) -> None:
        """``ProgramError`` for a program that cannot be run at once, or breaks a clause before it gets there;
        ``looked_at``: it is known not to."""
        if program.bench.level == "driver" or program.bench.against:
            raise ProgramError("schedules are explored of hypercalls on one machine")
        self.parts: Final = take_apart(program)
        self.program: Final = replace(program, bench=replace(program.bench, vcpus=len(self.parts.vcpus)))
        runner = Runner(self.program.bench)
        self._target: Final = runner.target
        runner.begin()
        for k, operation in enumerate(self.parts.before, 1):
            _, broken = runner.step(operation, sweep=not looked_at and k == len(self.parts.before))
            if broken is not None:
                raise ProgramError(f"{format_op(operation)} breaks {broken} before the vCPUs start")
        self._target.call_as(0)
        self.bed: Final = runner.bed
        self._wanted: Final = WantedElsewhere(self._target.pattern) if self._target.pattern else None
        self.bed.xen.preempt = self._wanted
        self.bed.snapshot()
        self._programs: Final = [
            (self.bed.vcpus[k], [self._item(operation) for operation in ops]) for k, ops in enumerate(self.parts.vcpus)
        ]
        self.vcpus: Final = [vcpu for vcpu, _ in self._programs]
        self._sequential: Final[dict[tuple[int, ...], tuple[list[object], object]]] = {}
        """Whose passes one after the other, to their answers and the state after them."""

    # ----------------------------------------------------------------------------------------------------- items

    def _item(self, operation: Op) -> Item:
        verb, target = str(operation[0]), self._target
        if verb in SUBOPS:
            name = SUBOPS[verb]
            if not target.abi.has(name):
                raise ProgramError(f"{target.abi.name} has no sub-op {name}")
            names = [field.name for field in CANONICAL[name]]
            return Hypercall(name, dict(zip(names, target.arguments(operation))))
        does: dict[str, Callable[[], object]] = {
            "remove": lambda: target.remove(operation[1])[1],
            "dma": lambda: self._dma(*operation[1:]),
            **dict.fromkeys(_MOVES, lambda: target.of_domains[verb](*operation[1:])),
        }
        if verb not in does:
            raise ProgramError(f"{verb} cannot be done by a vCPU of several")
        does[verb].__name__ = verb
        return does[verb]

    def _dma(self, name: str, at: int, pages: int) -> tuple[int | None, ...]:
        """What the device's reads reach at the ends."""
        found = []
        for dfn in dict.fromkeys((at, at + max(pages, 1) - 1)):
            reached = self.bed.unit.translate(DEVICES[name] & 0xFFFF, dfn << PAGE_SHIFT, False)
            found.append(reached if isinstance(reached, int) else None)
        return tuple(found)

    # ------------------------------------------------------------------------------------------------------ runs

    def attempt(self, schedule: Chooser | str, full: bool = True, ended: Callable[[], None] = lambda: None) -> Attempt:
        """One run and what it breaks; ``full``: how deep the sweep at the end looks; ``ended`` is called before it."""
        self._reset()
        if self.bed.xen.locks is not None:
            self.bed.xen.locks.forget_order()
        chooser = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
        heard = Heard(chooser, self.vcpus)
        try:
            run = run_concurrently(self.bed, self._programs, heard)
        except Exception as error:  # what nobody catches would be a crash of the host
            broken, _ = raised(error)
            answers: list[list[object]] = [[] for _ in self._programs]
            return Attempt(Run(answers, heard.points, heard.runnable, heard.schedule, FaultPlan(), []), broken)
        ended()
        return Attempt(run, self._judge(run, heard, full))

    def _judge(self, run: Run, heard: Heard, full: bool) -> Broken | None:
        if run.stopped is not None:
            return Broken(_STOPS.get(run.outcome, "xen-bug"), str(run.stopped))
        if run.inversions:
            return Broken("lock-order", str(run.inversions[0]))
        if run.left_held:
            lock, who = next(iter(run.left_held.items()))
            return Broken("lock-left", f"{lock} is still held: {who}")
        broken = sweep(View(self.bed), full)
        if broken is not None:
            return broken
        end = self._state()
        if linearize(passes_of(run, heard.progress), end, self._in_order) is not None:
            return None
        answers = "; ".join(f"vCPU {k}: {', '.join(map(_said, said))}" for k, said in enumerate(run.results))
        return Broken(
            "linearizable", f"no order of these calls' passes answers like this and ends like this: {answers}"
        )

    def _reset(self) -> None:
        """Back to where the vCPUs start."""
        self.bed.reset()
        if self._wanted is not None:
            self._wanted.restart()

    def _in_order(self, order: Sequence[Name]) -> tuple[list[object], object]:
        """The answers of passes, named by (vCPU, number), one after the other, and the state they lead to.

        The answers end where the order cannot be gone: a call had no pass left, or could not begin it.
        """
        whose = tuple(vcpu for vcpu, _ in order)
        if whose not in self._sequential:
            self._reset()
            heard = Heard(PassByPass(whose), self.vcpus)
            passes = passes_of(run_concurrently(self.bed, self._programs, heard), heard.progress)
            answers = [passes[vcpu][number].answer for vcpu, number in order if number < len(passes[vcpu])]
            self._sequential[whose] = (answers, self._state())
        return self._sequential[whose]

    def _state(self) -> object:
        """What calls leave behind that somebody can see: mappings, devices' places, references."""
        return spaces(self.bed), homes(self.bed), bytes(self.bed.xen.frames.allocated)


def _said(answer: object) -> str:
    if isinstance(answer, Answer):
        return str(answer)
    return errno_name(answer) if isinstance(answer, int) else str(answer)

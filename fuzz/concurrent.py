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
machine's invariants, and *linearizability*: answers and the state at the end are those of the calls one after the
other in some order in which no call overtakes one that had ended before it began.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from abi.canonical import CANONICAL
from abi.errno import errno_name
from base.units import PAGE_SHIFT
from fuzz.linearize import Call, linearize
from fuzz.program import Program, format_op
from fuzz.run import Runner, raised
from fuzz.sweep import Broken, sweep
from fuzz.target import SUBOPS
from fuzz.twins import homes, spaces
from fuzz.verbs import DEVICES, Op, ProgramError
from testbed.invariants import View
from testbed.schedule import Answer, Chooser, FaultPlan, Hypercall, Item, Point, Run, Schedule, run_concurrently
from testbed.schedule.schedule import default_choice

CLAUSES: Final = {
    "deadlock": "No schedule lets vCPUs wait for each other in a circle.",
    "hang": "Every schedule comes to an end.",
    "exception": "No schedule makes the hypervisor do what nobody has foreseen.",
    "xen-bug": "No schedule stops the hypervisor.",
    "lock-order": "Locks are taken in one order.",
    "lock-left": "Every lock that is taken is released.",
    "linearizable": "What concurrent calls answer and leave behind, some order of them one after the other does too.",
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
        self._preempted: Final = self.bed.xen.preempt is not None
        self.bed.snapshot()
        self._programs: Final = [
            (self.bed.vcpus[k], [self._item(operation) for operation in ops]) for k, ops in enumerate(self.parts.vcpus)
        ]
        self._sequential: Final[dict[tuple[tuple[int, int], ...], tuple[list[object], object]]] = {}
        """Calls in an order to their answers and the state after them."""

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

    def attempt(self, schedule: Chooser | str, full: bool = True) -> Attempt:
        """One run and what it breaks; ``full``: how deep the sweep at the end looks."""
        self.bed.reset()
        if self.bed.xen.locks is not None:
            self.bed.xen.locks.forget_order()
        heard = _Heard(Schedule.parse(schedule) if isinstance(schedule, str) else schedule)
        try:
            run = run_concurrently(self.bed, self._programs, heard)
        except Exception as error:  # what nobody catches would be a crash of the host
            broken, _ = raised(error)
            answers: list[list[object]] = [[] for _ in self._programs]
            return Attempt(Run(answers, heard.points, heard.runnable, heard.schedule, FaultPlan(), []), broken)
        return Attempt(run, self._judge(run, full))

    def _judge(self, run: Run, full: bool) -> Broken | None:
        if run.stopped is not None:
            return Broken(_STOPS.get(run.outcome, "xen-bug"), str(run.stopped))
        if run.inversions:
            return Broken("lock-order", str(run.inversions[0]))
        if run.left_held:
            lock, who = next(iter(run.left_held.items()))
            return Broken("lock-left", f"{lock} is still held: {who}")
        broken = sweep(View(self.bed), full)
        if broken is not None or self._preempted:  # a preempted call is several critical sections by design
            return broken
        end = self._state()
        if linearize(_history(run, self._lengths), end, self._in_order):
            return None
        answers = "; ".join(f"vCPU {k}: {', '.join(map(_said, said))}" for k, said in enumerate(run.results))
        return Broken("linearizable", f"no order of these calls answers like this and ends like this: {answers}")

    @property
    def _lengths(self) -> list[int]:
        return [len(items) for _, items in self._programs]

    def _in_order(self, order: Sequence[tuple[int, int]]) -> tuple[list[object], object]:
        """The answers of calls, named by (vCPU, number), one after the other, and the state they lead to."""
        key = tuple(order)
        if key not in self._sequential:
            self.bed.reset()
            answers: list[object] = []
            for vcpu, number in order:
                who, items = self._programs[vcpu]
                answers.extend(run_concurrently(self.bed, [(who, [items[number]])]).results[0])
            self._sequential[key] = (answers, self._state())
        return self._sequential[key]

    def _state(self) -> object:
        """What calls leave behind that somebody can see: mappings, devices' places, references."""
        return spaces(self.bed), homes(self.bed), bytes(self.bed.xen.frames.allocated)


class _Heard:
    """A chooser overheard: what it decided is known even if the run ends in an exception."""

    def __init__(self, chooser: Chooser) -> None:
        self._chooser: Final = chooser
        self.points: Final[list[Point]] = []
        self.runnable: Final[list[tuple[int, ...]]] = []
        self._switches: Final[list[tuple[int, int]]] = []

    def choose(self, point: Point, runnable: Sequence[int]) -> int:
        chosen = self._chooser.choose(point, runnable)
        self.points.append(point)
        self.runnable.append(tuple(runnable))
        if chosen != default_choice(point, runnable):
            self._switches.append((point.step, chosen))
        return chosen

    @property
    def schedule(self) -> Schedule:
        return Schedule(tuple(self._switches))


def _history(run: Run, lengths: Sequence[int]) -> list[list[Call]]:
    """By vCPU: each of its calls with the steps at which it began and ended, and its answer."""
    begins: list[list[int]] = [[] for _ in lengths]
    ends = [len(run.points)] * len(lengths)  # the last one to end comes to no further point
    for point in run.points:
        if point.kind == "call":
            begins[point.vcpu].append(point.step)
        elif point.kind == "end":
            ends[point.vcpu] = point.step
    history = []
    for vcpu, answers in enumerate(run.results):
        until = [*begins[vcpu][1:], ends[vcpu]]
        history.append([Call(begins[vcpu][k], until[k], answer) for k, answer in enumerate(answers)])
    return history


def _said(answer: object) -> str:
    if isinstance(answer, Answer):
        return str(answer)
    return errno_name(answer) if isinstance(answer, int) else str(answer)

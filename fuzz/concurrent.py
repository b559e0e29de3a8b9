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

What stands before the first ``vcpu`` happens before; then the vCPUs run at once, dom0's or, with ``as domain=1`` right
behind ``vcpu``, a guest's.  A program that names no vCPU is dealt out to two of them, call by call.  Held are: the host
does not stop, locks are taken in one order and released, the machine's invariants, and *linearizability*: answers and
the state at the end are those of the calls' passes (:mod:`fuzz.passes`) one after the other in some order in which none
overtakes one that had ended before it began.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from abi.canonical import CANONICAL
from abi.errno import errno_name
from fuzz import machines
from fuzz.linearize import Name, linearize
from fuzz.passes import Heard, PassByPass, Pauses, WantedElsewhere, passes_of
from fuzz.program import Bench, Program, format_op
from fuzz.run import Runner, raised
from fuzz.sweep import Broken, sweep
from fuzz.target import SUBOPS
from fuzz.twins import homes, spaces
from fuzz.verbs import DEVICES, Op, ProgramError, Value
from hypervisor.domain import Vcpu
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
_OUTSIDE: Final = (*("fail", "fault", "preempt", "remote", "progress", "raw", "regions", "p2m", "as", "create_domain"),)
"""What a concurrent part leaves out: it concerns the next operation of one vCPU, or the whole program, or goes in steps
by design."""
_TOOLSTACKS: Final = ("assign", "deassign", "add_device", "remove_device", "destroy_domain")


class Parts(NamedTuple):
    """A program taken apart."""

    before: tuple[Op, ...]
    vcpus: tuple[tuple[Op, ...], ...]
    domains: tuple[int, ...]
    """Whose each vCPU is."""
    schedule: str
    left_out: tuple[str, ...] = ()
    """Verbs of a program that is dealt out which no vCPU of several can have."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One schedule of a program."""

    run: Run
    broken: Broken | None

    @property
    def schedule(self) -> str:
        return str(self.run.schedule)


def check_machine(bench: Bench) -> None:
    """``ProgramError`` for a bench whose machine runs one vCPU at a time."""
    if machines.get(bench.machine).code_32:
        raise ProgramError(f"machine={bench.machine} runs one vCPU at a time")


def take_apart(program: Program) -> Parts:
    """What happens before, what each vCPU does, and the schedule that the program itself names."""
    before: list[Op] = []
    parts: list[list[Op]] = [[] for _ in range(max(program.bench.vcpus, 2))]
    domains = [0] * len(parts)
    schedule, here = "", -1
    left_out: dict[str, None] = {}
    for operation in program.ops:
        if operation[0] == "vcpu":
            here = operation[1]
            if here >= len(parts):
                raise ProgramError(f"the bench has {program.bench.vcpus} vCPUs, none of number {here}")
        elif operation[0] == "schedule":
            schedule = operation[1].replace(",", " ")
        elif here < 0:
            before.append(operation)
        elif operation[0] == "as" and not parts[here]:
            domains[here] = operation[1]
        elif operation[0] in _OUTSIDE:
            place = ", or right behind one" if operation[0] == "as" else ""
            raise ProgramError(f"{operation[0]} belongs before the first vcpu{place}")
        else:
            parts[here].append(operation)
    if here < 0:
        dealt = [operation for operation in before if operation[0] not in _OUTSIDE]
        left_out = dict.fromkeys(operation[0] for operation in before if operation[0] in _OUTSIDE)
        parts = [dealt[k :: len(parts)] for k in range(len(parts))]
        before = []
    ended = {operation[1] for part in parts for operation in part if operation[0] == "destroy_domain"}
    paused = ended & {*domains} - {0}
    if paused:
        raise ProgramError(f"domain {min(paused)} is paused when its end begins: its vCPUs run no more")
    return Parts(tuple(before), tuple(map(tuple, parts)), tuple(domains), schedule, tuple(left_out))


class Concurrent:
    """One program of several vCPUs, run under as many schedules as wanted."""

    def __init__(self, program: Program, looked_at: bool = False) -> None:
        """``ProgramError`` for a program that cannot be run at once, or breaks a clause before it gets there;
        ``looked_at``: it is known not to."""
        if program.bench.level == "driver" or program.bench.against:
            raise ProgramError("schedules are explored of hypercalls on one machine")
        check_machine(program.bench)
        self.parts: Final = take_apart(program)
        self.program: Final = replace(program, bench=replace(program.bench, vcpus=len(self.parts.vcpus)))
        runner = Runner(self.program.bench)
        self._target: Final = runner.target
        runner.begin()
        for k, operation in enumerate(self.parts.before, 1):
            _, broken = runner.step(operation, sweep=not looked_at and k == len(self.parts.before))
            if broken is not None:
                raise ProgramError(f"{format_op(operation)} breaks {broken} before the vCPUs start")
        if self._target.armed:
            raise ProgramError("fail is over before the vCPUs start: which of them it would meet is up to the schedule")
        self.bed: Final = runner.bed
        self._wanted: Final = WantedElsewhere(self._target.pattern) if self._target.pattern else None
        self.bed.xen.preempt = self._wanted
        self.vcpus: Final[list[Vcpu]] = []
        for domid in self.parts.domains:
            self.vcpus.append(self._vcpu_of(domid))
        self._callers: Final = dict(self._target.toolstack.callers)
        self.bed.snapshot()
        self._programs: Final = [
            (vcpu, [self._item(operation, domid) for operation in ops])
            for vcpu, domid, ops in zip(self.vcpus, self.parts.domains, self.parts.vcpus)
        ]
        self._sequential: Final[dict[tuple[int, ...], tuple[list[object], object]]] = {}
        """Whose passes one after the other, to their answers and the state after them."""

    # ----------------------------------------------------------------------------------------------------- items

    def _vcpu_of(self, domid: int) -> Vcpu:
        """One of a domain's vCPUs that has no program yet."""
        caller = self._target.toolstack.callers.get(domid)
        if caller is None:
            raise ProgramError(f"there is no domain {domid} that could make calls")
        domain, taken = caller.domain, self.parts.domains[: len(self.vcpus)].count(domid)
        self.bed.rams[domid] = caller.ram
        return domain.vcpus[taken] if taken < len(domain.vcpus) else self.bed.xen.add_vcpu(domain, caller.vcpu.memory)

    def _item(self, operation: Op, domid: int) -> Item:
        """What a vCPU of domain ``domid`` does."""
        verb, target = str(operation[0]), self._target
        target.call_as(domid)
        if verb in SUBOPS:
            name, args = SUBOPS[verb], target.arguments(operation)
            target.encode(name, args)  # it can be expressed
            return Hypercall(name, dict(zip((field.name for field in CANONICAL[name]), args)))
        does: dict[str, Callable[[], object]] = {
            "remove": lambda: self._remove(operation[1], domid),
            "dma": lambda: self._dma(*operation[1:]),
            **dict.fromkeys(_TOOLSTACKS, lambda: target.of_domains[verb](*operation[1:])),
        }
        if verb not in does:
            raise ProgramError(f"{verb} cannot be done by a vCPU of several")
        does[verb].__name__ = verb
        return does[verb]

    def _remove(self, frame: Value, domid: int) -> int:
        """What the toolstack is told, a page of the vCPU's own domain named as that domain does."""
        self._target.call_as(domid)
        return self._target.remove(frame)[2]

    def _dma(self, name: str, at: int, pages: int) -> tuple[int | None, ...]:
        """What the device's reads reach at the ends."""
        ends = dict.fromkeys((at, at + max(pages, 1) - 1))
        return tuple(self._target.translate(DEVICES[name], dfn, False) for dfn in ends)

    # ------------------------------------------------------------------------------------------------------ runs

    def attempt(self, schedule: Chooser | str, full: bool = True, ended: Callable[[], None] = lambda: None) -> Attempt:
        """One run and what it breaks; ``full``: how deep the sweep at the end looks; ``ended`` is called before it."""
        self._reset()
        if self.bed.xen.locks is not None:
            self.bed.xen.locks.forget_order()
        chooser = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
        heard = Heard(chooser, Pauses(self.bed.xen, self.vcpus))
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
        if linearize(passes_of(run, heard.said), end, self._in_order) is not None:
            return None
        answers = "; ".join(f"vCPU {k}: {', '.join(map(_said, said))}" for k, said in enumerate(run.results))
        return Broken(
            "linearizable", f"no order of these calls' passes answers like this and ends like this: {answers}"
        )

    def _reset(self) -> None:
        """Back to where the vCPUs start."""
        self.bed.reset()
        self._target.toolstack.callers.clear()
        self._target.toolstack.callers.update(self._callers)
        if self._wanted is not None:
            self._wanted.restart()

    def _in_order(self, order: Sequence[Name]) -> tuple[list[object], object]:
        """The answers of passes, named by (vCPU, number), one after the other, and the state they lead to.

        The answers end where the order cannot be gone: a call had no pass left, or could not begin it.
        """
        whose = tuple(vcpu for vcpu, _ in order)
        if whose not in self._sequential:
            self._reset()
            pauses = Pauses(self.bed.xen, self.vcpus)
            heard = Heard(PassByPass(whose, pauses), pauses)
            try:
                run = run_concurrently(self.bed, self._programs, heard)
            except Exception:  # an order that crashes the host explains none in which it went on
                self._sequential[whose] = ([], None)
            else:
                passes = passes_of(run, heard.said)
                answers = [passes[vcpu][number].answer for vcpu, number in order if number < len(passes[vcpu])]
                self._sequential[whose] = (answers, self._state())
        return self._sequential[whose]

    def _state(self) -> object:
        """What calls leave behind that somebody can see: mappings, devices' places, which domain has which of its
        pages, and how many frames are left; which ones the heap handed out is up to the schedule."""
        frames = self.bed.xen.frames
        pages = {
            domid: bytes(frames.allocated[mfn] and frames.owner[mfn] == domid for mfn in caller.mfns)
            for domid, caller in self._callers.items()
        }
        return spaces(self.bed), homes(self.bed), pages, frames.allocated.count(1)


def _said(answer: object) -> str:
    if isinstance(answer, Answer):
        return str(answer)
    return errno_name(answer) if isinstance(answer, int) else str(answer)

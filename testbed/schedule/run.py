# SPDX-License-Identifier: GPL-2.0-or-later
"""Running programs of several vCPUs, one at a time, changing over at named places.

Each program runs in a greenlet of its own.  Nothing else is shared between them and the hypervisor than what the
hypervisor itself keeps, so a run depends on programs, schedule and fault plan alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from greenlet import GreenletExit, greenlet

from hypervisor.domain import Vcpu
from hypervisor.errors import HostStopped, XenDeadlock, XenHang
from hypervisor.locking.install import install_places
from hypervisor.locking.locks import Inversion, Lock, Locks
from testbed.build import TestBed
from testbed.schedule.faults import FaultPlan, Faults
from testbed.schedule.program import Caller, Item
from testbed.schedule.schedule import Chooser, Point, Schedule, default_choice

STEPS: Final = 100_000
"""Points after which a run counts as a hang, unless its caller says otherwise."""
Program = tuple[Vcpu, Sequence[Item]]


@dataclass(slots=True)
class Run:
    """What became of a run."""

    results: list[list[Any]]
    """What every program's items answered, as far as it came: an :class:`Answer`, or whatever the item returned."""
    points: list[Point]
    """Every place that was reached, in order."""
    runnable: list[tuple[int, ...]]
    """The vCPUs that could go on at each of them."""
    schedule: Schedule
    """What was decided; with the same programs and the same plan it gives the same run."""
    plan: FaultPlan
    failed: list[str]
    """What was made to fail."""
    stopped: HostStopped | None = None
    """Why the host stopped, ``None`` if every program came to its end."""
    inversions: list[Inversion] = field(default_factory=list)
    """Locks that were taken in both orders, whether or not anybody got stuck."""
    left_held: dict[str, str] = field(default_factory=dict)
    """Locks that nobody released, and who has them."""

    @property
    def outcome(self) -> str:
        """``done``, ``XenDeadlock``, ``XenHang`` or ``XenBug``."""
        return "done" if self.stopped is None else type(self.stopped).__name__

    def __str__(self) -> str:
        lines = [f"schedule: {str(self.schedule) or '(one after the other)'}"]
        if self.plan.faults:
            lines.append(f"faults: {self.plan} (failed: {' '.join(self.failed) or 'none'})")
        lines.extend(f"vcpu{k}: {'; '.join(map(str, answers))}" for k, answers in enumerate(self.results))
        lines.append(f"{self.outcome}{f': {self.stopped}' if self.stopped is not None else ''}")
        return "\n".join(lines)


def run_concurrently(
    bed: TestBed,
    programs: Sequence[Program],
    schedule: Chooser | str = "",
    *,
    faults: FaultPlan | str = "",
    steps: int = STEPS,
) -> Run:
    """Run every program to its end, or until the host stops.

    ``schedule`` is a :class:`Schedule`, its text, or whoever else decides; ``faults`` likewise.  Each vCPU has at most
    one program.  The test bed is left as the run leaves it: :meth:`TestBed.snapshot` before and ``reset`` after.
    """
    chooser = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
    plan = FaultPlan.parse(faults) if isinstance(faults, str) else faults
    if len({id(vcpu) for vcpu, _ in programs}) != len(programs):
        raise ValueError("each vCPU has at most one program")
    turns = _Turns(bed, programs, chooser, Faults(plan), steps)
    places = install_places(bed.xen)
    try:
        return turns.take(places.locks, places)
    finally:
        places.remove()


class _Turns:
    """The vCPUs of one run taking turns; the locks' :class:`Stepper`."""

    def __init__(self, bed: TestBed, programs: Sequence[Program], chooser: Chooser, faults: Faults, steps: int) -> None:
        self._programs: Final = programs
        self._choice: Final = chooser.choose
        self._faults: Final = faults
        self._steps: Final = steps
        self._bed: Final = bed
        self._running: int | None = None
        self._can_run: tuple[int, ...] = tuple(range(len(programs)))
        self._blocked: dict[int, Lock] = {}
        self._switches: list[tuple[int, int]] = []
        self._run: Final = Run([[] for _ in programs], [], [], Schedule(), faults.plan, faults.failed)
        self._greenlets: Final = [greenlet(self._body(index)) for index in range(len(programs))]

    def take(self, locks: Locks, places: Any) -> Run:
        """All turns until the last program is done or the host has stopped."""
        self._locks = locks
        locks.forget_order()
        before, locks.stepper, places.plan = locks.current, self, self._faults
        run = self._run
        try:
            if self._can_run:
                self._turn(0)
            while self._can_run:
                self._turn(self._choose("end", ""))
            if self._blocked:
                story = locks.stuck()
                raise XenDeadlock("; ".join(story), ())
        except HostStopped as stop:
            run.stopped = stop
        finally:
            locks.stepper, locks.current = None, before
            self._running = None
            for body in self._greenlets:
                if not body.dead:
                    body.throw(GreenletExit)
        run.schedule = Schedule(tuple(self._switches))
        run.inversions = list(locks.inversions)
        run.left_held = locks.held
        return run

    # ------------------------------------------------------------------------------------- seen by the locks

    def point(self, kind: str, what: str) -> None:
        if self._running is None:
            return
        chosen = self._choose(kind, what)
        if chosen != self._running:
            self._turn(chosen)

    def block(self, lock: Lock) -> None:
        me = self._running
        assert me is not None
        self._cannot_run(me)
        self._blocked[me] = lock
        if not self._can_run:
            raise XenDeadlock("; ".join(self._locks.stuck()))
        self._turn(self._choose("blocked", lock.name))

    def released(self, lock: Lock) -> None:
        for vcpu in [vcpu for vcpu, wanted in self._blocked.items() if wanted is lock]:
            del self._blocked[vcpu]
            self._can_run = tuple(sorted((*self._can_run, vcpu)))

    # ----------------------------------------------------------------------------------------------- private

    def _body(self, index: int) -> Callable[[], None]:
        vcpu, items = self._programs[index]

        def body() -> None:
            caller = Caller(self._bed, vcpu)
            for item in items:
                self.point("call", getattr(item, "name", getattr(item, "__name__", "")))
                self._run.results[index].append(caller.run(item))
            self._cannot_run(index)

        return body

    def _choose(self, kind: str, what: str) -> int:
        """Record the point where the running vCPU is, and decide who runs next."""
        points, runnable, running = self._run.points, self._can_run, self._running
        assert running is not None
        step = len(points)
        if step >= self._steps:
            raise XenHang(f"{self._steps} steps, and no end")
        point = Point(step, running, kind, what)
        points.append(point)
        self._run.runnable.append(runnable)
        chosen = self._choice(point, runnable)
        if chosen == running and running in runnable:
            return chosen
        if chosen not in runnable:
            raise ValueError(f"vCPU {chosen} cannot run at {point}; these can: {runnable}")
        if chosen != default_choice(point, runnable):
            self._switches.append((step, chosen))
        return chosen

    def _cannot_run(self, vcpu: int) -> None:
        self._can_run = tuple(other for other in self._can_run if other != vcpu)

    def _turn(self, vcpu: int) -> None:
        """Let ``vcpu`` run; returns when it is the caller's turn again."""
        self._running = vcpu
        self._locks.current = self._programs[vcpu][0]
        self._greenlets[vcpu].switch()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Running programs of driver level: a guest kernel boots, its drivers ask for DMA, and properties of both sides hold.

The guest is the one of :mod:`testbed.validate`: every call is recorded, and :mod:`testbed.invariants_guest` says after
each what has to be true of driver, IOMMU core and dma-iommu.  What the machine has to keep is swept at the end.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Final

from abi.errno import EBUSY, errno_name
from abi.versions import Abi
from base.units import PAGE_SHIFT, Sbdf
from fuzz import events, watchdog
from fuzz.driver_contract import CONTRACT
from fuzz.faults import PlannedFaults
from fuzz.program import Bench, Program
from fuzz.resync import Known, format_known, is_swept, known_as, parse_known
from fuzz.run import PATIENCE, Finding, raised
from fuzz.sweep import Broken
from fuzz.sweep import sweep as machine_sweep
from fuzz.verbs import DEVICES, Op, ProgramError
from guest_driver import drivers
from guest_driver.linux.oops import KernelOops
from testbed.build import TestBed
from testbed.invariants import View
from testbed.invariants_guest import INVARIANTS, check
from testbed.validate import coherent_calls
from testbed.validate.calls import perform
from testbed.validate.record import Step
from testbed.validate.world import World

assert coherent_calls.__name__  # imported for the calls that it registers
CALLS: Final = {
    "domain_alloc": "alloc",
    "domain_free": "free",
    "domain_attach": "attach",
    "domain_detach": "detach",
    "iommu_map": "map",
    "iommu_map_bytes": "map-bytes",
    "iommu_map_sg": "map-sg",
    "iommu_unmap": "unmap",
    "iova_to_phys": "phys",
    "dma_map_page": "dma-map",
    "dma_unmap_page": "dma-unmap",
    "dma_map_sg": "dma-sg",
    "dma_unmap_sg": "dma-unsg",
    "dma_alloc_coherent": "dma-alloc",
    "dma_free_coherent": "dma-free",
    "claim_dma_owner": "claim",
    "release_dma_owner": "release",
    "bind_driver": "bind",
    "unbind_driver": "unbind",
    "attach_pasid": "pasid",
    "unplug": "unplug",
    "plug": "plug",
    "group_type": "type",
    "get_resv_regions": "regions",
    "fail_call": "fail",
    "no_memory": "no-memory",
    "domain_fill": "fill",
    "shutdown": "shutdown",
    "boot": "boot",
}
"""Verb to the name of the recorded call."""
CLAUSES: Final[dict[str, str]] = {
    **{f"guest:{entry.id}": entry.text for entry in INVARIANTS.values()},
    **{name: prose for name, (prose, _) in CONTRACT.items()},
    "oops": "The guest kernel lives.",
}
"""What is held after every operation of driver level, beside the machine's invariants."""
_NUMBERED: Final[dict[str, Callable[[World], Collection[int]]]] = {
    "domain_alloc": lambda world: world.domains,
    "dma_map_page": lambda world: world.dma,
    "dma_map_sg": lambda world: world.lists,
    "dma_alloc_coherent": lambda world: world.coherent,
}
"""Operations that give a number to what they make, and what has numbers already."""
_EVENTS: Final = {"map_pages": events.FLUSH, "unmap_pages": events.FLUSH}


class DriverRunner:
    """Programs of driver level, each from power-on."""

    def __init__(self, bench: Bench, sabotage: Callable[[TestBed], None] | None = None) -> None:
        self.bench = bench
        self.world: Final = World(
            drivers.get(bench.driver), backend=bench.backend, profile=bench.profile, guest=bench.guest, rmrr=True
        )
        self._sabotage: Final = sabotage
        self.coverage: Counter[tuple[str, int, int]] = Counter()
        self.ops = 0
        self.patience = PATIENCE
        """As :attr:`fuzz.run.Runner.patience`."""
        self.known: set[Known] = set()
        """Faults after which a program goes on, as :attr:`fuzz.run.Runner.known`."""
        self._met: Final[set[Known]] = set()
        try:
            self.overlook(parse_known(bench.known))
        except ValueError as error:
            raise ProgramError(str(error)) from None
        self._happened = 0
        self._failed = 0
        """Places that have failed by a plan."""
        self._unconfirmed = False
        """A flush was not confirmed: caches may remember what is no longer mapped."""
        self.faults: PlannedFaults | None = None
        """A fault plan, if the program has put one in place."""
        self._refused: Final[Counter[str]] = Counter()
        """Hypercalls that failed, by name."""
        if sabotage is not None:
            sabotage(self.world.testbed)

    @property
    def abi(self) -> Abi:
        return self.world.testbed.xen.abi

    @property
    def bed(self) -> TestBed:
        return self.world.testbed

    def overlook(self, known: set[Known]) -> None:
        """As :meth:`fuzz.run.Runner.overlook`."""
        self.known = known
        self._met.clear()

    def begin(self) -> None:
        """Power off."""
        self._no_faults()
        self.world.reset()
        self._refused.clear()
        self._met.clear()
        self._unconfirmed = False

    def step(self, operation: Op, sweep: bool = True) -> tuple[str, Broken | None]:
        """As :meth:`fuzz.run.Runner.step`."""
        self._happened = 0
        try:
            result, happened, broken = self._step(operation)
            self._happened |= happened
            if broken is None and sweep:
                broken = self._end_sweep(True)
        except KernelOops as death:
            return "oops", Broken("oops", str(death))
        except (ProgramError, KeyboardInterrupt):
            raise
        except Exception as error:
            broken, errno = raised(error)
            self._rebuild()
            return errno, broken
        self.ops += 1
        self.coverage[operation[0], min(result, 0), self._happened] += 1
        return errno_name(result) if result <= 0 else f"{result:#x}", broken

    def run(
        self, ops: tuple[Op, ...], sweep_from: int | None = None, told: list[str] | None = None, full: bool = True
    ) -> Finding | None:
        """As :meth:`fuzz.run.Runner.run`.  A program without ``boot`` boots before its first operation."""
        self.begin()
        errno, k = "-", -1
        try:
            watchdog.arm(self.patience)
            for k, operation in enumerate(ops):
                errno, broken = self.step(operation, sweep_from is not None and k >= sweep_from)
                if told is not None:
                    told.append(errno)
                if broken is not None:
                    break
            else:
                broken = self._end_sweep(full)
        except (ProgramError, KeyboardInterrupt):
            raise
        except Exception as error:  # in the look at the end
            broken, errno = raised(error)
            self._rebuild()
        finally:
            watchdog.disarm()
        if broken is None:
            return None
        met = self._met | {fault for fault in self.known if is_swept(fault[0])}
        bench = replace(self.bench, known=format_known(met)) if met or self.bench.known else self.bench
        return Finding(
            Program(bench, ops[: k + 1]), broken.clause, broken.what, _plain(errno), events.names(self._happened)
        )

    def _end_sweep(self, full: bool) -> Broken | None:
        """The look at the whole state when a program is over."""
        overlooked = {clause for clause, _, _ in self.known}
        return machine_sweep(View(self.world.testbed), full, overlooked)

    def _passes(self, clause: str, verb: str, errno: str) -> bool:
        """Whether that is a fault that is known."""
        fault = known_as(clause, verb, _plain(errno))
        if fault is None or fault not in self.known:
            return False
        self._met.add(fault)
        return True

    def locate(self, ops: tuple[Op, ...]) -> Finding | None:
        """As :meth:`fuzz.run.Runner.locate`."""
        found = self.run(ops)
        if found is None or not found.clause.startswith(("invariant:", "same-reach")):
            return found
        return self.run(ops, sweep_from=0) or found

    def _rebuild(self) -> None:
        self.world.rebuild()
        if self._sabotage is not None:
            self._sabotage(self.world.testbed)

    def _step(self, operation: Op) -> tuple[int, int, Broken | None]:
        """(result, events, what is broken) of one operation."""
        world = self.world
        verb, values = operation[0], operation[1:]
        if verb == "boot":
            return self._boot(*map(str, values))
        if verb == "fault":
            return self._inject(*values)
        if world.kernel is None and verb != "fail_call":
            result, happened, broken = self._boot("dma", "nothing", "own")
            if broken is not None or result:
                return result, happened, broken
        if world.kernel is not None and world.kernel.xen is None:
            return 0, 0, None  # the driver did not start, and said so: nothing is left to do
        if verb == "dma":
            result, happened, broken = self._dma(*values)
            passes = broken is not None and self._passes(broken.clause, verb, errno_name(result))
            return result, happened, None if passes else broken
        if verb == "shutdown":
            self._give_back()
        if self._misuses(verb, values):
            return -EBUSY, 0, None
        args = values
        if verb.endswith("_sg") and "map" in verb and "unmap" not in verb:
            args = (*values[:-1], *str(values[-1]).split(","))
        return self._perform(verb, args)

    def _inject(self, plan: str) -> tuple[int, int, Broken | None]:
        self._no_faults()
        self.faults = PlannedFaults(self.world.testbed.xen, plan, self._note)
        return 0, 0, None

    def _no_faults(self) -> None:
        if self.faults is not None:
            self.faults.remove()
            self.faults = None

    def _note(self, happened: int) -> None:
        self._happened |= happened
        self._failed += 1
        self._unconfirmed |= bool(happened & events.UNCONFIRMED)

    def _explained(self, clause: str, step: Step) -> bool:
        """Whether what was refused or not confirmed is why ``clause`` does not hold.

        A device that cannot be moved stays, its context cannot be freed then, and what is refused twice over is not
        asked for for ever.
        """
        if clause == "guest:20":
            return self._unconfirmed
        if clause == "guest:39":  # what the hypervisor once refused to take away stays where it is
            return self._refused["unmap_pages"] > 0
        refused = Counter(call.name for call in step.hypercalls if call.result < 0)
        if clause == "guest:16":  # what was made for nothing could not be given back at once
            return refused["free_context"] > 0
        here = refused["reattach_device"]
        if clause == "guest:15":
            return here > 0
        stays = self._refused["reattach_device"] > 0
        if clause == "guest:29":  # who may be refused brings the others back; others go on
            apart = any(len(set(state.contexts)) > 1 for state in step.before.groups)
            return stays and (apart or here > 1 or step.name not in ("attach", "claim"))
        if clause == "guest:leak":
            return stays or self._refused["free_context"] > 1
        return clause in ("guest:12", "guest:14") and stays

    def _give_back(self) -> None:
        """What drivers do when they are removed, before the IOMMU's own is unloaded."""
        world = self.world
        for name, slots in (("dma-unmap", world.dma), ("dma-unsg", world.lists), ("dma-free", world.coherent)):
            for slot in list(slots):
                perform(world, name, (slot,))

    def _misuses(self, verb: str, values: tuple[Any, ...]) -> bool:
        """Whether the operation is one that no caller in a kernel may make: whoever does is at fault, not the core."""
        world = self.world
        if verb == "domain_free":
            domain = world.domains.get(values[0])
            return any(group.domain is domain for group in world.booted.iommu.groups)
        if verb in _NUMBERED and values[0] in _NUMBERED[verb](world):
            return True
        return verb != "plug" and any(value in world.unplugged for value in values if isinstance(value, str))

    def _boot(self, mode: str, hidden: str, groups: str) -> tuple[int, int, Broken | None]:
        if self.world.kernel is not None:
            return 0, 0, None
        if hidden != "nothing":
            perform(self.world, {"cache": "no-cache-cap", "contexts": "no-contexts"}[hidden], ())
        if groups == "shared":
            perform(self.world, "one-group", ())
        return self._perform("boot", (mode,))

    def _perform(self, verb: str, args: tuple[Any, ...]) -> tuple[int, int, Broken | None]:
        failed = self._failed
        step = perform(self.world, CALLS[verb], args)
        step.injected += self._failed - failed
        happened = 0
        for call in step.hypercalls:
            happened |= _EVENTS.get(call.name, 0)
        if step.injected:
            happened |= events.NO_MEMORY
        result = step.result if isinstance(step.result, int) else 0
        for call in step.hypercalls:
            if call.result < 0:
                self._refused[call.name] += 1
        with self.faults.paused() if self.faults is not None else nullcontext():
            for broken in self._complaints(step):
                if not self._passes(broken.clause, verb, errno_name(result)):
                    return result, happened, broken
        return result, happened, None

    def _complaints(self, step: Step) -> Iterator[Broken]:
        """What does not hold after ``step``."""
        for complaint in check(self.world, step):
            clause = f"guest:{complaint.invariant}"
            if not self._explained(clause, step):
                yield Broken(clause, complaint.what)
        for clause, (_, holds) in CONTRACT.items():
            for what in holds(self.world, step):
                if not self._explained(clause, step):
                    yield Broken(clause, what)

    def _dma(self, name: str, at: int, pages: int) -> tuple[int, int, Broken | None]:
        """The device reads and writes; it reaches what the tables of its context say, whatever is cached."""
        world = self.world
        if name not in ("nic", "copier", "rogue") or name in world.unplugged:
            return 0, 0, None
        sbdf = Sbdf(DEVICES[name])
        number = world.context_of(sbdf)
        context = None if not number else world.context(number)
        if context is None or context.table is None or self._unconfirmed:
            return 0, 0, None
        happened = 0
        fmt = context.table.format
        for dfn in {at, at + pages // 2, at + max(pages, 1) - 1}:
            if dfn > world.testbed.xen.max_dfn:
                continue
            found = context.table.lookup(dfn)
            for write in (False, True):
                allowed = found is not None and (fmt.writable(found[1]) if write else fmt.readable(found[1]))
                expected = found[0] << PAGE_SHIFT if found is not None and allowed else None
                reached = world.dma_reaches(sbdf, dfn << PAGE_SHIFT, write)
                if reached is None:
                    happened |= events.FAULT
                window = range(*world.testbed.backend.doorbell_window)
                if reached != expected and dfn << PAGE_SHIFT not in window:
                    got, must = ("nothing" if m is None else f"frame {m >> 12:#x}" for m in (reached, expected))
                    what = f"{name}'s {'write' if write else 'read'} at dfn {dfn:#x} reaches {got}, mapped is {must}"
                    return 0, happened, Broken("device-reach", what)
        return 0, happened, None


def _plain(errno: str) -> str:
    """An answer as findings have it: one count is like another."""
    return "0" if errno.startswith("0x") else errno

# SPDX-License-Identifier: GPL-2.0-or-later
"""The yardstick: every catalogued defect alone on a profile without any, and how long it takes until it is found.

Hypervisor defects are hunted with hypercalls, driver defects with what a guest kernel asks of its driver.  Nothing else
is wrong in these test beds, so whatever is found is the defect.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import monotonic, process_time
from typing import Final

from abi.versions import Abi
from fuzz import machines
from fuzz.driver_run import DriverRunner
from fuzz.engines.swarm import Swarm, benches
from fuzz.engines.together import Together
from fuzz.faults import PlannedFaults
from fuzz.program import Bench
from fuzz.resync import Known, known_as
from fuzz.run import Finding, ProgramRunner, Runner, runner_for
from fuzz.shrink import Shrinker
from fuzz.sweep import Broken
from fuzz.verbs import Op
from guest_driver import drivers
from hypervisor import profile as profiles
from hypervisor.defects.catalogue import DEFECTS, complete
from testbed import backends
from testbed.build import TestBed

SHORT: Final = 5
LOOKS: Final = 4
"""A program that did not become as short as that is not the last word: so many findings are shrunk at most."""
OUT_OF_SIGHT: Final[dict[str, str]] = {
    "S6": "one lock for all calls about a domain: they come one after the other, and nothing goes wrong by that",
    "H4": "it shows with a lookup that writes where nothing is mapped, AMD's, and neither backend's does",
}
"""Entries that no guest or device could see, with the reason; they are listed, and nobody hunts them."""


ELSEWHERE: Final = {
    "A7": "32-bit",
    "B5": "command-line",
    "G1": "phantom",
    "G2": "uncovered",
    "G3": "few-ids",
    "G4": "few-ids",
    "G5": "narrow",
    "H8": "frame-0",
    "S2": "few-ids",
}
"""Entries that show on a machine of :mod:`fuzz.machines` that is not the usual one."""


AT_ONCE: Final = frozenset({"B4", "C4", "C5", "F4", "S7"})
"""Entries that show when two vCPUs are at work at the same time."""


@dataclass(frozen=True, slots=True)
class Quarry:
    """One catalogue entry, and where it is hunted."""

    defect: str
    side: str
    """``hypervisor`` or ``driver``: whose catalogue it is in."""
    title: str
    over: tuple[Bench, ...]
    out_of_sight: str = ""
    """Why it is not hunted."""


@dataclass(frozen=True, slots=True)
class Hunt:
    """How the hunt for one entry went."""

    defect: str
    side: str
    title: str
    found: bool
    seconds: float
    """Until it was found, or given up; without shrinking."""
    cpu: float
    """Processor time of the same."""
    programs: int
    ops: int
    clause: str = ""
    length: int = 0
    """Operations of the shrunk program."""
    program: str = ""
    out_of_sight: str = ""
    noise: int = 0
    """Findings that were there without the defect as well."""
    seed: int = 0


def quarries(only: list[str] | None = None) -> list[Quarry]:
    """Every entry of both catalogues, or those named; ``ValueError`` for a name that neither has."""
    found = [*_in_hypervisor(), *_in_driver()]
    if only:
        known = {quarry.defect for quarry in found}
        unknown = [name for name in only if name not in known]
        if unknown:
            raise ValueError(f"unknown defect {unknown[0]!r}; there are: {', '.join(sorted(known))}")
        found = [quarry for quarry in found if quarry.defect in only]
    return found


def _in_hypervisor() -> Iterator[Quarry]:
    for defect in DEFECTS.values():
        profile = _fixed_profile(defect.versions)
        vcpus = 2 if defect.id in AT_ONCE else 1
        over = [
            replace(bench, defects=defect.id, vcpus=vcpus)
            for name in defect.backends
            for bench in benches(name, profile, machine=ELSEWHERE.get(defect.id, machines.USUAL))
            if vcpus == 1 or bench.contexts is not None
        ]
        yield Quarry(defect.id, "hypervisor", defect.title, tuple(over), OUT_OF_SIGHT.get(defect.id, ""))


def _fixed_profile(versions: tuple[str, ...]) -> str:
    """The sound profile of the newest version that has the defect, v7 for choice."""
    newest = "v7-fixed"
    fixed = [f"{version}-fixed" for version in reversed(versions)]
    return newest if newest in fixed else next((name for name in fixed if name in profiles.names()), newest)


def _in_driver() -> Iterator[Quarry]:
    for defect in drivers.DEFECTS.values():
        reason = OUT_OF_SIGHT.get(defect.id, "")
        if defect.judged:
            reason = reason or "looked at and found to be no fault: nothing is changed"
        speaks = [drivers.get(name).convention for name in defect.versions if name in drivers.names()]
        union = speaks and all(convention is not None and convention.name == "UNION" for convention in speaks)
        over = [
            bench
            for profile in ("v7-fixed", *(("v3-fixed",) if union else ()))
            for name in backends.names()
            for bench in benches(name, profile, "driver", "+".join(("reference", *defect.needs, defect.id)))
        ]
        yield Quarry(defect.id, "driver", defect.title, tuple(over), reason)


def look(quarry: Quarry, seconds: float, seed: int, shrink: bool = True) -> Hunt:
    """Fuzz until the entry is found, ``seconds`` at most; and ``shrink`` what was found."""
    nothing = Hunt(quarry.defect, quarry.side, quarry.title, False, 0, 0, 0, 0, seed=seed)
    if quarry.out_of_sight:
        return replace(nothing, out_of_sight=quarry.out_of_sight)
    start, cpu = monotonic(), process_time()
    swarm = (Together if quarry.over[0].vcpus > 1 else Swarm)(list(quarry.over), seed)
    noise: set[Known] = set()
    swarm.runners[:] = [Apart(runner, noise) for runner in swarm.runners]
    begun: Hunt | None = None
    looks = 0
    for hit in swarm.findings(seconds):
        if hit is None:
            continue
        runner, found = hit
        if begun is None:
            begun = replace(
                nothing,
                found=True,
                seconds=monotonic() - start,
                cpu=process_time() - cpu,
                programs=swarm.programs,
                ops=swarm.ops,
                clause=found.clause,
            )
        if not shrink:
            break
        small = Shrinker(runner).shrink(runner.locate(found.program.ops) or found)
        length = len(small.program.ops)
        if not begun.length or length < begun.length:
            begun = replace(begun, clause=small.clause, length=length, program=str(small.program))
        looks += 1
        if begun.length <= SHORT or looks == LOOKS:
            break
    if begun is None:
        took, used = monotonic() - start, process_time() - cpu
        begun = replace(nothing, seconds=took, cpu=used, programs=swarm.programs, ops=swarm.ops)
    return replace(begun, noise=sum(runner.noise for runner in swarm.runners if isinstance(runner, Apart)))


class Apart:
    """A runner whose findings are those that are not there without the defect: what is left is the defect's.

    ``known``: what was seen without it, on this bench or another one of the hunt; programs go on behind that.
    """

    def __init__(self, runner: ProgramRunner, known: set[Known]) -> None:
        self._runner: Final = runner
        self._known: Final = known
        self._sound: ProgramRunner | None = None
        self.bench = runner.bench
        self.coverage = runner.coverage
        self.noise = 0
        """Findings that were there without it as well."""

    @property
    def ops(self) -> int:
        return self._runner.ops

    @property
    def abi(self) -> Abi:
        return self._runner.abi

    @property
    def bed(self) -> TestBed:
        return self._runner.bed

    @property
    def faults(self) -> PlannedFaults | None:
        return self._runner.faults

    def begin(self) -> None:
        self._runner.begin()

    def step(self, operation: Op, sweep: bool = True) -> tuple[str, Broken | None]:
        return self._runner.step(operation, sweep)

    def run(
        self, ops: tuple[Op, ...], sweep_from: int | None = None, told: list[str] | None = None, full: bool = True
    ) -> Finding | None:
        if isinstance(self._runner, Runner | DriverRunner) and self._runner.known != self._known:
            self._runner.overlook(set(self._known))
        return self._own(self._runner.run(ops, sweep_from, told, full))

    def locate(self, ops: tuple[Op, ...]) -> Finding | None:
        return self._own(self._runner.locate(ops))

    def _own(self, found: Finding | None) -> Finding | None:
        if found is None:
            return None
        if self._sound is None:
            self._sound = runner_for(sound(self.bench))
        if isinstance(self._sound, Runner | DriverRunner):
            self._sound.overlook(set(self._known))
        other = self._sound.run(found.program.ops)
        if other is not None and other.like(found):
            self.noise += 1
            known = known_as(*found.key[:3])
            if known is not None and isinstance(self._runner, Runner | DriverRunner):
                self._known.add(known)
            return None
        return found


def sound(bench: Bench) -> Bench:
    """The same bench without the defect, but with what it needs to show."""
    if bench.level == "driver":
        return replace(bench, driver=bench.driver.rpartition("+")[0] or bench.driver)
    needed = [entry.id for entry in complete([bench.defects])] if bench.defects else []
    return replace(bench, defects=",".join(name for name in needed if name != bench.defects))

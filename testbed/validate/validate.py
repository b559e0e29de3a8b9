# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a driver through its life, shrink what fails, and name the defect behind it.

The name is evidence, not a guess: a finding belongs to a defect if it goes away when that defect alone is mended in
the driver, or comes up when that defect alone is put on the reference driver.  What the reference driver shows as
well, on the same hypervisor, is not the driver's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from abi.errno import EOPNOTSUPP, errno_name
from guest_driver import drivers
from guest_driver.drivers import DriverVersion
from guest_driver.linux.oops import KernelOops
from hypervisor.errors import XenBug
from testbed.invariants_guest import INVARIANTS, Complaint, check
from testbed.validate.calls import perform
from testbed.validate.program import Call, Program
from testbed.validate.scenarios import AREAS, Area, Traits
from testbed.validate.world import World

MOST_CALLS: Final = 8
"""What a reader of a report is asked to follow at most."""


@dataclass(frozen=True, slots=True)
class Key:
    """What makes two failures the same: the property and the call after which it was broken."""

    invariant: str
    call: str


@dataclass(slots=True)
class Finding:
    """Something that does not hold, with the shortest program that shows it."""

    key: Key
    area: str
    guest: str
    what: str
    program: Program
    defects: list[str] = field(default_factory=list)
    """Ids of the defects that are behind it."""
    either: bool = False
    """Each of ``defects`` alone is enough for it, so that mending one of them does not help."""
    hypervisor: bool = False
    """The reference driver shows it too: it is this hypervisor's."""

    @property
    def text(self) -> str:
        """The property, in its own words."""
        entry = INVARIANTS.get(self.key.invariant)
        return entry.text if entry is not None else _OTHER[self.key.invariant]


_OTHER: Final = {
    "expect": "a call answers what its contract says",
    "oops": "the guest kernel lives",
    "xen": "the hypervisor lives",
}


@dataclass(slots=True)
class AreaReport:
    """One area's outcome."""

    name: str
    title: str
    programs: int = 0
    calls: int = 0
    failed: int = 0


@dataclass(slots=True)
class Report:
    """A validation, done."""

    driver: str
    profile: str
    backend: str
    guests: tuple[str, ...]
    declined: int = 0
    """The errno with which the driver declined this hypervisor; nothing else was tried then."""
    areas: list[AreaReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing was found that is the driver's."""
        return not any(not finding.hypervisor for finding in self.findings)

    @property
    def defects(self) -> list[str]:
        """Every defect that was seen, in the order of the registry."""
        seen = {name for finding in self.findings for name in finding.defects}
        return [name for name in drivers.DEFECTS if name in seen]

    @property
    def not_seen(self) -> list[str]:
        """Defects that the driver is known to have and that did not show here."""
        return [defect.id for defect in drivers.get(self.driver).defects if defect.id not in self.defects]


def run(world: World, program: Program) -> list[Complaint]:
    """Run ``program`` from power-on until the first call after which something does not hold."""
    try:
        world.reset()
        for step in program:
            found = _step(world, step)
            if found:
                return found
        return []
    except KernelOops as death:
        return [Complaint("oops", step.name, str(death))]
    except XenBug as death:
        world.rebuild()
        return [Complaint("xen", step.name, str(death))]


def _step(world: World, wanted: Call) -> list[Complaint]:
    if world.kernel is None and wanted.name not in ("boot", "fail", "one-group", "no-cache-cap", "no-contexts"):
        return []  # shrinking may take the boot away
    if wanted.name not in ("boot", "fail") and world.kernel is not None and world.kernel.xen is None:
        return []
    done = perform(world, wanted.name, wanted.args)
    found = check(world, done)
    if wanted.expect and done.result not in wanted.expect and not (done.result == -22 and not done.hypercalls):
        allowed = " or ".join(_result(value) for value in wanted.expect)
        found.append(
            Complaint("expect", wanted.name, f"{wanted.why or 'wrong answer'}: {_result(done.result)}, not {allowed}")
        )
    return found


def _result(value: object) -> str:
    if isinstance(value, int) and value < 0:
        return f"-{errno_name(value)}" if not errno_name(value).startswith("errno") else str(value)
    return f"{value:#x}" if isinstance(value, int) and value > 9 else str(value)


def keys(world: World, program: Program) -> set[Key]:
    """What fails in ``program``."""
    return {Key(complaint.invariant, complaint.call) for complaint in run(world, program)}


def shrink(world: World, program: Program, key: Key, reference: World | None = None) -> Program:
    """Take calls away as long as ``key`` still fails, and does not on ``reference``."""
    shorter = True
    while shorter:
        shorter = False
        for index in range(len(program)):
            candidate = program[:index] + program[index + 1 :]
            if key in keys(world, candidate) and (reference is None or key not in keys(reference, candidate)):
                program, shorter = candidate, True
                break
    return program


def validate(
    driver: str = "reference",
    profile: str = "v7-fixed",
    backend: str = "vtd",
    guests: tuple[str, ...] = ("pv", "pvh"),
    areas: tuple[Area, ...] = AREAS,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Validate ``driver`` (a name that :func:`guest_driver.drivers.get` knows) on a profile; ``ValueError`` for a name
    that nobody knows."""
    version = drivers.get(driver)
    report = Report(driver, profile, backend, guests)
    for area in areas:
        outcome = AreaReport(area.name, area.title)
        report.areas.append(outcome)
        for guest in guests:
            if progress is not None:
                progress(f"{area.name} ({guest})")
            laboratory = _Laboratory(version, report, guest, area)
            world = laboratory.world(version)
            if not version.speaks(world.testbed.xen.abi):
                report.declined = -EOPNOTSUPP
                return report
            _run_area(laboratory, _traits(world), outcome)
    return report


def _traits(world: World) -> Traits:
    abi = world.testbed.xen.abi
    return Traits(
        pv=world.guest_kind == "pv",
        superpages=world.testbed.xen.profile.superpage_units,
        has_init=abi.has("init"),
        limit=abi.max_nr_pages or 1 << 32,
    )


class _Laboratory:
    """One kind of world, with whatever driver is asked for."""

    def __init__(self, version: DriverVersion, report: Report, guest: str, area: Area) -> None:
        self.version: Final = version
        self.report: Final = report
        self.guest: Final = guest
        self.area: Final = area
        self._worlds: Final[dict[str, World]] = {}

    def world(self, version: DriverVersion) -> World:
        """A world with that driver, made once."""
        name = "+".join([version.name.partition("~")[0], *(defect.id for defect in version.defects)])
        if name not in self._worlds:
            self._worlds[name] = World(
                version,
                backend=self.report.backend,
                profile=self.report.profile,
                guest=self.guest,
                rmrr=self.area.rmrr,
            )
        return self._worlds[name]

    def fails(self, version: DriverVersion, program: Program, key: Key) -> bool:
        return key in keys(self.world(version), program)

    def investigate(self, program: Program) -> bool:
        """Peel the defects that ``program`` shows off the driver, finding by finding; whether it showed any."""
        version = self.version
        failed = False
        while True:
            complaints = run(self.world(version), program)
            if not complaints:
                return failed
            failed = True
            mended: set[str] = set()
            for complaint in complaints:
                mended.update(self._explain(version, program, complaint).defects)
            if not mended:
                return True
            version = version.without(*mended)

    def _explain(self, version: DriverVersion, program: Program, complaint: Complaint) -> Finding:
        """The finding that ``complaint`` belongs to, an old one if that explains it."""
        key = Key(complaint.invariant, complaint.call)
        reference = drivers.get("reference")
        own = not self.fails(reference, program, key)
        same = [known for known in self.report.findings if known.key == key and known.hypervisor != own]
        for known in same:
            if not own or (known.defects and not self.fails(version.without(*known.defects), program, key)):
                return known
        defects, either = [], False
        if own:
            defects = [d.id for d in version.defects if not self.fails(version.without(d.id), program, key)]
            if not defects:
                defects = [d.id for d in version.defects if self.fails(reference.adding(d.id), program, key)]
                either = bool(defects)
            for known in same:
                if set(known.defects) == set(defects):
                    return known
        short = shrink(self.world(version), program, key, self.world(reference) if own else None)
        what = next(
            (c.what for c in run(self.world(version), short) if Key(c.invariant, c.call) == key), complaint.what
        )
        found = Finding(key, self.area.name, self.guest, what, short, defects, either, not own)
        self.report.findings.append(found)
        return found


def _run_area(laboratory: _Laboratory, traits: Traits, outcome: AreaReport) -> None:
    for program in laboratory.area.programs(traits):
        outcome.programs += 1
        outcome.calls += len(program)
        outcome.failed += laboratory.investigate(program)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a driver through its life on one profile, and report what does not hold."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from abi.errno import EOPNOTSUPP
from guest_driver import drivers
from testbed.invariants_guest import INVARIANTS, Key
from testbed.validate.laboratory import Finding, Laboratory
from testbed.validate.scenarios import AREAS, Area, Traits
from testbed.validate.specified import specified
from testbed.validate.world import World

MOST_CALLS: Final = 8
"""What a reader of a report is asked to follow at most."""

_OTHER: Final = {
    "expect": "a call answers what its contract says",
    "oops": "the guest kernel lives",
    "xen": "the hypervisor lives",
}


def property_text(finding: Finding) -> str:
    """The property that a finding breaks, in its own words."""
    entry = INVARIANTS.get(finding.key.invariant)
    return entry.text if entry is not None else _OTHER[finding.key.invariant]


@dataclass(slots=True)
class AreaReport:
    """One area's outcome."""

    name: str
    title: str
    programs: int = 0
    calls: int = 0
    failed: int = 0
    """Programs that show something of the driver's."""


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
    also: dict[Key, Finding] = field(default_factory=dict, repr=False)
    """Findings of the hypervisor by the other keys that they showed with."""
    worlds: dict[tuple[object, ...], World] = field(default_factory=dict, repr=False)
    """Machines that were built for it."""

    @property
    def own(self) -> list[Finding]:
        """What is the driver's."""
        return [finding for finding in self.findings if not finding.hypervisor]

    @property
    def others(self) -> list[Finding]:
        """What the reference driver shows too."""
        return [finding for finding in self.findings if finding.hypervisor]

    @property
    def unspecified(self) -> list[Finding]:
        """What the reference driver shows and no known defect of this hypervisor explains, or nobody has said that
        it may happen (:mod:`testbed.validate.specified`)."""
        return [f for f in self.others if not specified(f.defects, f.key.invariant)]

    @property
    def clean(self) -> bool:
        """Nothing was found that is the driver's, and the hypervisor's faults have the effects that they may have."""
        return not self.own and not self.unspecified

    @property
    def defects(self) -> list[str]:
        """Every defect of the driver that was seen, in the order of the registry."""
        seen = {name for finding in self.own for name in finding.defects}
        return [name for name in drivers.DEFECTS if name in seen]

    @property
    def hypervisor_defects(self) -> list[str]:
        """Every defect of the hypervisor that the driver met, in the order in which it was found."""
        return list(dict.fromkeys(name for finding in self.others for name in finding.defects))

    @property
    def not_seen(self) -> list[str]:
        """Defects that the driver is known to have and that did not show here."""
        return [defect.id for defect in drivers.get(self.driver).defects if defect.id not in self.defects]


def validate(
    driver: str = "reference",
    profile: str = "v7-fixed",
    backend: str = "vtd",
    guests: tuple[str, ...] = ("pv", "pvh"),
    areas: tuple[Area, ...] = AREAS,
    progress: Callable[[str], None] | None = None,
    jobs: int = 1,
) -> Report:
    """Validate ``driver`` (a name that :func:`guest_driver.drivers.get` knows) on a profile; ``ValueError`` for a name
    that nobody knows.

    ``jobs``: processes to spread the kinds of guests over; then areas and ``progress`` have to be picklable.
    """
    if jobs > 1 and len(guests) > 1:
        one = partial(_validate_guest, driver, profile, backend, areas, progress)
        with ProcessPoolExecutor(min(jobs, len(guests))) as pool:
            return _joined(guests, list(pool.map(one, guests)))
    version = drivers.get(driver)
    report = Report(driver, profile, backend, guests)
    for area in areas:
        outcome = AreaReport(area.name, area.title)
        report.areas.append(outcome)
        for guest in guests:
            if progress is not None:
                progress(f"{area.name} ({guest})")
            laboratory = Laboratory(version, report, guest, area)
            world = laboratory.world(version)
            if not version.speaks(world.testbed.xen.abi):
                report.declined = -EOPNOTSUPP
                report.worlds.clear()
                return report
            for program in area.programs(Traits.of(world)):
                outcome.programs += 1
                outcome.calls += len(program)
                outcome.failed += laboratory.investigate(program)
    report.worlds.clear()
    return report


def _validate_guest(
    driver: str,
    profile: str,
    backend: str,
    areas: tuple[Area, ...],
    progress: Callable[[str], None] | None,
    guest: str,
) -> Report:
    return validate(driver, profile, backend, (guest,), areas, progress)


def _joined(guests: tuple[str, ...], parts: list[Report]) -> Report:
    """The reports on single kinds of guests as one; what several of them found is said once."""
    whole = parts[0]
    whole.guests = guests
    for part in parts[1:]:
        for total, area in zip(whole.areas, part.areas):
            total.programs += area.programs
            total.calls += area.calls
            total.failed += area.failed
        have = {(found.key, tuple(found.defects)) for found in whole.findings}
        whole.findings += [found for found in part.findings if (found.key, tuple(found.defects)) not in have]
    return whole

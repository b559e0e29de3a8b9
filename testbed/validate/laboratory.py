# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is to blame for a failure: evidence, not a guess.

A finding belongs to a defect of the driver if it goes away when that defect alone is mended, or comes up when that
defect alone is put on the reference driver.  What the reference driver shows as well, on the same hypervisor, is not
the driver's; it belongs in the same way to a defect of the posted hypervisor.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Final

from guest_driver import drivers
from guest_driver.drivers import DriverVersion
from hypervisor import profile as profiles
from hypervisor.defects import catalogue
from hypervisor.profile import Profile
from testbed.invariants_guest import Complaint, Key
from testbed.validate.program import Program
from testbed.validate.running import keys, run, shrink
from testbed.validate.world import World

if TYPE_CHECKING:
    from testbed.validate.scenarios import Area
    from testbed.validate.validate import Report


class Finding:
    """Something that does not hold, with the shortest program that shows it."""

    __slots__ = ("area", "defects", "either", "guest", "hypervisor", "key", "program", "what")

    def __init__(self, key: Key, area: str, guest: str, what: str, program: Program) -> None:
        self.key: Final = key
        self.area: Final = area
        self.guest: Final = guest
        self.what: Final = what
        self.program: Final = program
        self.defects: list[str] = []
        """Ids of the defects that are behind it: the driver's, or the hypervisor's."""
        self.either = False
        """Each of ``defects`` alone is enough for it, so that mending one of them does not help."""
        self.hypervisor = False
        """The reference driver shows it too: it is this hypervisor's."""


class Laboratory:
    """One kind of world, with whatever driver and whatever mended hypervisor is asked for."""

    def __init__(self, version: DriverVersion, report: Report, guest: str, area: Area) -> None:
        self.version: Final = version
        self.report: Final = report
        self.guest: Final = guest
        self.area: Final = area

    def world(self, version: DriverVersion, profile: str = "", defects: tuple[str, ...] = ()) -> World:
        """A world with that driver, made once for a report; ``profile`` stands in for the report's."""
        name = "+".join([version.name.partition("~")[0], *(defect.id for defect in version.defects)])
        profile = profile or self.report.profile
        found = self.report.worlds.get((name, profile, defects, self.guest, self.area.rmrr))
        if found is None:
            found = World(
                version,
                backend=self.report.backend,
                profile=profile,
                guest=self.guest,
                rmrr=self.area.rmrr,
                defects=defects,
            )
            self.report.worlds[name, profile, defects, self.guest, self.area.rmrr] = found
        return found

    def investigate(self, program: Program) -> bool:
        """Peel the defects that ``program`` shows off driver and hypervisor, finding by finding; whether it showed
        any of the driver's."""
        version = self.version
        failed = False
        known: set[Key] = set()
        while True:
            complaints = run(self.world(version), program, known)
            if not complaints:
                return failed
            mended: set[str] = set()
            more = False
            for complaint in complaints:
                finding = self._explain(version, program, complaint, known)
                if finding.hypervisor:
                    more = more or (complaint.key not in known and complaint.invariant not in ("xen", "oops"))
                    known.add(complaint.key)
                else:
                    failed = True
                    mended.update(finding.defects)
            if not mended and not more:
                return failed
            version = version.without(*mended)

    def _explain(
        self, version: DriverVersion, program: Program, complaint: Complaint, known: Container[Key]
    ) -> Finding:
        """The finding that ``complaint`` belongs to, an old one if that explains it."""
        key = complaint.key
        reference = drivers.get("reference")

        def fails(changed: DriverVersion) -> bool:
            return key in keys(self.world(changed), program, known)

        own = not fails(reference)
        if not own and key in self.report.also:
            return self.report.also[key]
        same = [old for old in self.report.findings if old.key == key and old.hypervisor != own]
        for old in same:
            if not own or (old.defects and not fails(version.without(*old.defects))):
                return old
        defects, either = [], False
        if own:
            defects = [d.id for d in version.defects if not fails(version.without(d.id))]
            if not defects:
                defects = [d.id for d in version.defects if fails(reference.adding(d.id))]
                either = bool(defects)
            for old in same:
                if set(old.defects) == set(defects):
                    return old
        world = self.world(version)
        short = shrink(
            world, program, key, self.world(reference) if own else self._contrast(program, key, known), known
        )
        what = next((c.what for c in run(world, short, known) if c.key == key), complaint.what)
        found = Finding(key, self.area.name, self.guest, what, short)
        found.defects, found.either, found.hypervisor = defects, either, not own
        if not own:
            self._blame_hypervisor(found, known)
            for old in self.report.others:
                if (old.key.invariant, old.defects) == (key.invariant, found.defects):
                    self.report.also[key] = old
                    return old
        self.report.findings.append(found)
        return found

    def _contrast(self, program: Program, key: Key, known: Container[Key]) -> World | None:
        """The reference driver on a sound hypervisor of the same kind, if it passes ``program``."""
        profile = profiles.get(self.report.profile)
        if not profile.defects:
            return None
        world = self.world(drivers.get("reference"), _sound(profile))
        return None if key in keys(world, program, known) else world

    def _blame_hypervisor(self, finding: Finding, known: Container[Key]) -> None:
        """Find the posted hypervisor's defects behind a finding of the reference driver, in the same two ways."""
        reference = drivers.get("reference")
        profile = profiles.get(self.report.profile)

        def fails(name: str, defects: tuple[str, ...] = ()) -> bool:
            try:
                world = self.world(reference, name, defects)
            except ValueError:  # a defect that the sound interface cannot have
                return False
            return finding.key in keys(world, finding.program, known)

        finding.defects = [d for d in profile.defects if not fails(f"{profile.name}~{d}")]
        if not finding.defects:
            sound = _sound(profile)
            alone = {d for d in profile.defects if fails(sound, (d,))}
            finding.defects = [d for d in profile.defects if d in alone and not alone & set(catalogue.get(d).needs)]
            finding.either = len(finding.defects) > 1


def _sound(profile: Profile) -> str:
    """The profile without defects that is nearest to ``profile``: of its version, or of its calling convention."""
    own = f"{profile.name.partition('~')[0]}-fixed"
    if own in profiles.names():
        return own
    return next(name for name in profiles.sound() if profiles.get(name).abi.convention is profile.abi.convention)

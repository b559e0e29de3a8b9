# SPDX-License-Identifier: GPL-2.0-or-later
"""One defect of a driver happening: the shortest program that shows it, and the same calls without it.

On the reference driver, if the defect alone does it; else on a posted driver that has it, where others come to help.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from abi.errno import errno_name
from guest_driver import drivers
from guest_driver.defects.model import Defect
from guest_driver.drivers import DriverVersion
from guest_driver.linux.oops import KernelOops
from hypervisor import profile as profiles
from testbed.invariants_guest import Key, check
from testbed.validate.calls import perform
from testbed.validate.program import Program
from testbed.validate.running import run, shrink
from testbed.validate.scenarios import AREAS, Area, Traits
from testbed.validate.world import World

GUESTS: Final = ("pvh", "pv")


@dataclass(frozen=True, slots=True)
class Shown:
    """``defect`` on a hypervisor without faults: each call with its answer, with the defect and without."""

    defect: Defect
    driver: str
    """The driver without it."""
    profile: str
    guest: str
    key: Key
    what: str
    program: Program
    with_it: list[str]
    without: list[str]


def show(defect: Defect, backend: str = "vtd") -> Shown | None:
    """The first program of the validation in which ``defect`` makes the difference; ``None`` if there is none, as for a
    point of review that was found to be no fault."""
    posted = [drivers.get(name) for name in defect.versions if name in drivers.names()]
    base = drivers.get("reference").adding(*defect.needs)
    pairs = [(base.adding(defect.id), base)]
    pairs += [(version, version.without(defect.id)) for version in posted]
    for sick, well in pairs:
        for profile in reversed(profiles.sound()):
            abi = profiles.get(profile).abi
            if sick.speaks(abi) and (not posted or any(version.speaks(abi) for version in posted)):
                found = _on(defect, sick, well, profile, backend)
                if found is not None:
                    return found
    return None


def _on(defect: Defect, sick: DriverVersion, well: DriverVersion, profile: str, backend: str) -> Shown | None:
    for area in AREAS:
        for guest in GUESTS:
            ill, sound = (
                World(version, backend=backend, profile=profile, guest=guest, rmrr=area.rmrr)
                for version in (sick, well)
            )
            found = _first(ill, sound, area)
            if found is not None:
                key, program, known = found
                what = next(c.what for c in run(ill, program, known) if c.key == key)
                lines = [list(_lines(world, program)) for world in (ill, sound)]
                return Shown(defect, well.name, profile, guest, key, what, program, *lines)
    return None


def _first(ill: World, sound: World, area: Area) -> tuple[Key, Program, set[Key]] | None:
    """What only ``ill`` shows, the shortest program for it, and what both show on the way."""
    for program in area.programs(Traits.of(ill)):
        known: set[Key] = set()
        while shown := [complaint.key for complaint in run(ill, program, known)]:
            also = {complaint.key for complaint in run(sound, program, known)}
            key = next((key for key in shown if key not in also), None)
            if key is not None:
                return key, shrink(ill, program, key, sound, known), known
            if known.issuperset(shown):
                break  # what nobody survives: an oops, or the end of the hypervisor
            known.update(shown)
    return None


def _lines(world: World, program: Program) -> Iterator[str]:
    """What each call answers, and what does not hold after it."""
    world.reset()
    for step in program:
        try:
            done = perform(world, step.name, step.args)
        except KernelOops as death:
            yield f"{step} -> {death}"
            return
        answer = done.result
        yield f"{step} -> {f'-{errno_name(answer)}' if isinstance(answer, int) and answer < 0 else answer}"
        for complaint in check(world, done):
            yield f"    does not hold: {complaint.what}"

# SPDX-License-Identifier: GPL-2.0-or-later
"""The yardstick: every catalogued defect alone on a profile without any, and how long it takes until it is found.

Hypervisor defects are hunted with hypercalls, driver defects with what a guest kernel asks of its driver.  Nothing else
is wrong in these test beds, so whatever is found is the defect.
"""

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median
from time import monotonic, process_time
from typing import Final

from fuzz.engines.swarm import Swarm, benches
from fuzz.program import Bench
from fuzz.run import runner_for
from fuzz.shrink import Shrinker
from guest_driver import drivers
from hypervisor import profile as profiles
from hypervisor.defects.catalogue import DEFECTS
from testbed import backends

OUT_OF_SIGHT: Final[dict[str, str]] = {
    "S2": "which tags a unit's caches know contexts by is nothing that a guest or a device can tell",
}
"""Entries that are no fault a guest or its devices could see, with the reason; they are listed, and nobody hunts them."""


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
        over = [replace(bench, defects=defect.id) for name in defect.backends for bench in benches(name, profile)]
        yield Quarry(defect.id, "hypervisor", defect.title, tuple(over), OUT_OF_SIGHT.get(defect.id, ""))


def _fixed_profile(versions: tuple[str, ...]) -> str:
    """The sound profile of the newest version that has the defect, v7 for choice."""
    fixed = [f"{version}-fixed" for version in ("v7", *reversed(versions)) if version in versions]
    return next(name for name in fixed if name in profiles.names())


def _in_driver() -> Iterator[Quarry]:
    for defect in drivers.DEFECTS.values():
        reason = OUT_OF_SIGHT.get(defect.id, "")
        if defect.judged:
            reason = reason or "looked at and found to be no fault: nothing is changed"
        speaks = [drivers.get(name).convention for name in defect.versions if name in drivers.names()]
        union = speaks and all(convention is not None and convention.name == "UNION" for convention in speaks)
        profile = "v3-fixed" if union else "v7-fixed"
        over = [
            bench for name in backends.names() for bench in benches(name, profile, "driver", f"reference+{defect.id}")
        ]
        yield Quarry(defect.id, "driver", defect.title, tuple(over), reason)


def look(quarry: Quarry, seconds: float, seed: int) -> Hunt:
    """Fuzz until the entry is found, ``seconds`` at most."""
    if quarry.out_of_sight:
        return Hunt(quarry.defect, quarry.side, quarry.title, False, 0, 0, 0, 0, out_of_sight=quarry.out_of_sight)
    start, cpu = monotonic(), process_time()
    swarm = Swarm(list(quarry.over), seed)
    noise = 0
    for hit in swarm.findings(seconds):
        if hit is None:
            continue
        runner, found = hit
        took, used = monotonic() - start, process_time() - cpu
        located = runner.locate(found.program.ops) or found
        if runner_for(sound(runner.bench)).run(located.program.ops, sweep_from=0) is not None:
            noise += 1  # it is there without the defect, too: not what is hunted, but a fault of ours
            continue
        small = Shrinker(runner).shrink(located)
        program, length = str(small.program), len(small.program.ops)
        return Hunt(
            *(quarry.defect, quarry.side, quarry.title, True, took, used, swarm.programs, swarm.ops),
            *(small.clause, length, program),
            noise=noise,
        )
    took, used = monotonic() - start, process_time() - cpu
    return Hunt(quarry.defect, quarry.side, quarry.title, False, took, used, swarm.programs, swarm.ops, noise=noise)


def sound(bench: Bench) -> Bench:
    """The same bench with nothing wrong."""
    return replace(bench, defects="", driver="reference")


def _look(work: tuple[Quarry, float, int]) -> Hunt:
    return look(*work)


def hunt(over: list[Quarry], seconds: float, seed: int, jobs: int = 1) -> Iterator[Hunt]:
    """Look for each, ``jobs`` at a time; results as they come."""
    work = [(quarry, seconds, seed) for quarry in over]
    if jobs == 1:
        yield from map(_look, work)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(_look, work)


@dataclass(frozen=True, slots=True)
class Summary:
    """A hunt in numbers."""

    hunted: int
    missed: tuple[str, ...]
    out_of_sight: tuple[str, ...]
    median_seconds: float
    slowest: str
    median_length: float
    longest: str


def summary(hunts: list[Hunt]) -> Summary:
    """What a hunt came to."""
    tried = [hunt for hunt in hunts if not hunt.out_of_sight]
    found = [hunt for hunt in tried if hunt.found]
    slow = max(found, key=lambda hunt: hunt.seconds, default=None)
    long = max(found, key=lambda hunt: hunt.length, default=None)
    return Summary(
        len(tried),
        tuple(hunt.defect for hunt in tried if not hunt.found),
        tuple(hunt.defect for hunt in hunts if hunt.out_of_sight),
        median([hunt.seconds for hunt in found]) if found else 0.0,
        f"{slow.defect} ({slow.seconds:.1f} s)" if slow is not None else "none",
        median([hunt.length for hunt in found]) if found else 0,
        f"{long.defect} ({long.length} operations)" if long is not None else "none",
    )

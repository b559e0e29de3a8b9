# SPDX-License-Identifier: GPL-2.0-or-later
"""Which catalogued defect a finding is: evidence, not a guess.

A shrunk program is replayed on the sound profile of the same interface, which must show nothing, and then there with
single defects switched on.  A defect under which it breaks the same clause at the same operation, whatever else it
breaks before, names the finding.
Where that is none, or more than one, all are switched on together and left out one at a time: what makes the finding
go away names it.  If nothing alone does, the few that are left when no more can be left out name it.  Else it is new.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Final

from fuzz.driver_run import DriverRunner
from fuzz.program import Bench
from fuzz.resync import Known, known_as, parse_known
from fuzz.run import Finding, ProgramRunner, Runner, runner_for
from fuzz.verbs import Op, ProgramError, op
from guest_driver import drivers
from hypervisor import profile as profiles
from hypervisor.defects.catalogue import DEFECTS, complete

_PASSED: Final = 8
"""So many other faults may a defect show before the finding's."""


def name(finding: Finding) -> tuple[str, ...]:
    """Ids of the catalogue entries that ``finding`` matches; none: it is new."""
    program = finding.program
    suspects = list(_suspects(program.bench))
    alone = [defect for defect, bench, without in suspects if _shows(finding, bench) and not _shows(finding, without)]
    if len(alone) == 1 or len(suspects) < 2:
        return tuple(alone)
    together = _with(program.bench, [defect for defect, _, _ in suspects])
    if not _shows(finding, together):
        return tuple(alone)
    needed = []
    for defect in alone or [defect for defect, _, _ in suspects]:
        others = [other for other, _, _ in suspects if other != defect]
        if not _shows(finding, _with(program.bench, others)):
            needed.append(defect)
    return tuple(needed or alone or _enough(finding, [defect for defect, _, _ in suspects]))


def _enough(finding: Finding, suspects: list[str]) -> list[str]:
    """Of defects that show the finding together, and of which none is needed since others stand in for it: a few that
    are enough, the last of the catalogue left out first."""
    for defect in reversed(suspects):
        fewer = [other for other in suspects if other != defect]
        if _shows(finding, _with(finding.program.bench, fewer)):
            suspects = fewer
    return suspects


def _shows(finding: Finding, bench: Bench) -> bool:
    """Whether the finding's program breaks the same clause on ``bench``.

    Contexts that the finding's bench starts with, and ``bench`` does not, are allocated first.
    """
    ahead = _contexts_at_start(finding.program.bench) - _contexts_at_start(bench)
    ops = (*((op("alloc"),) * max(ahead, 0)), *finding.program.ops)
    known = parse_known(bench.known)
    for _ in range(_PASSED):
        found = _run(bench, ops, known)
        if found is None:
            return False
        if len(found.program.ops) == len(ops) and found.like(finding):
            return True
        clause, verb, errno, _ = found.key
        passed = known_as(clause, verb, errno)
        if passed is None or passed in known or known_as(*finding.key[:3]) == passed:
            return False
        known.add(passed)  # what the defect breaks on the way there
    return False


def _contexts_at_start(bench: Bench) -> int:
    if bench.level == "driver":
        return 0
    runner = _runner(replace(bench, known=""))
    runner.begin()
    iommu = runner.bed.dom0.iommu
    return 0 if iommu is None else len(iommu.contexts)


def _suspects(bench: Bench) -> Iterator[tuple[str, Bench, Bench]]:
    """(defect, bench with it, bench with what it needs only) for everything that may be wrong on ``bench``."""
    if _sound_profile(bench) not in profiles.names():
        return
    if bench.level == "driver":
        base = _with(bench, [])
        for entry in drivers.get(bench.driver).defects:
            yield entry.id, _with(bench, [entry.id]), base
    switched_on = [entry.id for entry in complete([*filter(None, bench.defects.split(","))])]
    for defect in dict.fromkeys((*switched_on, *profiles.get(bench.profile).defects)):
        needed = [entry.id for entry in complete([defect]) if entry.id != defect]
        if bench.backend in DEFECTS[defect].backends:
            yield defect, _with(bench, [defect]), _with(bench, needed)


def _sound_profile(bench: Bench) -> str:
    profile = profiles.get(bench.profile)
    return f"{profile.abi.name}-fixed" if profile.defects else bench.profile


def _with(bench: Bench, defects: list[str]) -> Bench:
    """The bench with these defects of both catalogues and no others."""
    driver = bench.driver
    if bench.level == "driver":  # mended, not the reference: a posted driver's choices are no defects
        driver += "".join(f"~{entry.id}" for entry in drivers.get(driver).defects if entry.id not in defects)
    ours = [defect for defect in defects if defect in DEFECTS]
    return replace(bench, profile=_sound_profile(bench), defects=",".join(ours), driver=driver)


def _run(bench: Bench, ops: tuple[Op, ...], known: set[Known]) -> Finding | None:
    try:
        runner = _runner(replace(bench, known=""))
        if isinstance(runner, Runner | DriverRunner):
            runner.overlook(set(known))
        return runner.run(ops)
    except ProgramError:
        return None


@lru_cache(maxsize=96)
def _runner(bench: Bench) -> ProgramRunner:
    return runner_for(bench)

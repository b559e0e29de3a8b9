# SPDX-License-Identifier: GPL-2.0-or-later
"""The yardstick: every catalogued defect alone in a fixed profile, and how long it takes to find it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import monotonic

from fuzz.engines.swarm import Swarm, benches
from fuzz.shrink import Shrinker
from hypervisor import profile as profiles
from hypervisor.defects.catalogue import DEFECTS


@dataclass(frozen=True, slots=True)
class Hunt:
    """How the hunt for one defect went."""

    defect: str
    seconds: float
    programs: int
    ops: int
    clause: str
    """"" if it was not found in time."""
    length: int
    """Operations of the shrunk program."""
    program: str


def hunt(only: list[str], seconds: float, seed: int) -> Iterator[Hunt]:
    """Look for each of the defects ``only`` (none: all of the catalogue), ``seconds`` for each at most."""
    newest = profiles.get("v7-fixed").abi.name
    for name in only or list(DEFECTS):
        defect = DEFECTS[name]
        profile = "v7-fixed" if newest in defect.versions else "v3-fixed"
        over = [replace(bench, defects=name) for backend in defect.backends for bench in benches(backend, profile)]
        start = monotonic()
        swarm = Swarm(over, seed)
        hit = next((hit for hit in swarm.findings(seconds) if hit is not None), None)
        elapsed = monotonic() - start
        if hit is None:
            yield Hunt(name, elapsed, swarm.programs, swarm.ops, "", 0, "")
            continue
        runner, found = hit
        programs, ops = swarm.programs, swarm.ops
        small = Shrinker(runner).shrink(runner.locate(found.program.ops) or found)
        yield Hunt(name, elapsed, programs, ops, small.clause, len(small.program.ops), str(small.program))

# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast programs are run: the swarm engine under the oracle, hypercalls of bytes alone, two workers against one.

The swarm engine runs hypercalls, and at driver level guests that boot.  Hypercalls of bytes are timed as programs have
them, then those of one page at most (teardown of such contexts included), and then with a hypervisor that does nothing,
which leaves what the target costs.  Bytes are made beforehand.

All but the workers are processor time of one core.  Workers are compared by the clock on the wall, so that this one
says something on an idle machine only.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Final

from benchmarks.figures import Figure, clock, rate
from benchmarks.hypercalls import BACKENDS
from benchmarks.lean import Lean
from fuzz import campaign
from fuzz.engines.swarm import LENGTH, Swarm, benches
from fuzz.program import Bench
from fuzz.raw import RawGenerator
from fuzz.target import Target
from hypervisor import profile as profiles

ORACLE_BAR: Final = 15_000
RAW_BAR: Final = 150_000
WORKERS_BAR: Final = 1.8
_PROGRAMS: Final = 16
"""In one run of the loop; one in eight ends with the full sweep."""


def figures(seconds: float, lean: Lean | None = None) -> Iterator[Figure]:
    for backend in BACKENDS:
        for profile in profiles.sound():
            swarm = Swarm(benches(backend, profile), 1)
            times = clock(lambda swarm=swarm: _run(swarm), _PROGRAMS * LENGTH, seconds)  # type: ignore[misc]
            yield rate("fuzz", f"{backend}, {profile}, swarm and oracle", "operations/s", times, bar=ORACLE_BAR)
        guests = Swarm(benches(backend, "v7-fixed", "driver"), 1)
        times = clock(lambda guests=guests: _run(guests), _PROGRAMS, seconds)  # type: ignore[misc]
        yield rate("fuzz", f"{backend}, v7-fixed, driver level", "programs/s", times)
        target = Target(Bench(backend))
        calls = _calls(target)
        yield _bytes(f"{backend}, bytes, no oracle", target, calls, seconds, RAW_BAR)
        small = [call for call in calls if _pages(target, *call) <= 1]
        yield _bytes(f"{backend}, bytes, no oracle, one page at most", target, small, seconds)
        target._hypercall = lambda *registers: 0  # type: ignore[misc]
        yield _bytes(f"{backend}, bytes, no oracle, no hypervisor", target, calls, seconds)
    one, two = _workers(1, max(seconds, 2)), _workers(2, max(seconds, 2))
    yield Figure("fuzz", "two workers against one", "times/s", two / one, two / one, WORKERS_BAR)


def _run(swarm: Swarm) -> None:
    until = swarm.programs + _PROGRAMS
    for hit in swarm.findings(3600):
        if hit is not None:
            raise RuntimeError(f"a sound profile: {hit[1].clause}: {hit[1].what}\n{hit[1].program}")
        if swarm.programs >= until:
            return


def _calls(target: Target) -> list[tuple[int, bytes]]:
    """The calls of some programs of bytes."""
    generator = RawGenerator(target, 1)
    return [
        (operation[1], operation[2])
        for _ in range(20)
        for operation in generator.program(LENGTH)
        if operation[0] == "raw" and operation[3] == "plain"
    ]


def _pages(target: Target, number: int, data: bytes) -> int:
    """How many pages a call asks for; 0 for one that names no pages."""
    name = target.name_of(number & 0xFFFF if target.union else number)
    if name not in ("map_pages", "unmap_pages"):
        return 0
    codec = target.abi.by_name[name].codec
    assert codec is not None
    return int(codec.as_dict(data[: codec.size].ljust(codec.size, b"\0"))["nr_pages"])


def _bytes(
    name: str, target: Target, calls: list[tuple[int, bytes]], seconds: float, bar: float | None = None
) -> Figure:
    return rate("fuzz", name, "hypercalls/s", clock(lambda: _issue(target, calls), len(calls), seconds), bar=bar)


def _issue(target: Target, calls: list[tuple[int, bytes]]) -> None:
    target.reset()
    raw = target.raw
    for number, data in calls:
        raw(number, data, "plain")


def _workers(jobs: int, seconds: float) -> float:
    """Operations in a second of a campaign with so many workers, from when they are at work on."""
    marks: list[tuple[float, int]] = []

    def watch(progress: campaign.Progress) -> None:
        marks.append((monotonic(), progress.ops))

    with tempfile.TemporaryDirectory() as directory:
        campaign.run(["vtd"], "v7-fixed", Path(directory), seconds=seconds, jobs=jobs, seed=1, watch=watch)
    begun = [mark for mark in marks if mark[1]]
    first, last = begun[jobs - 1 if len(begun) > jobs else 0], begun[-1]
    return (last[1] - first[1]) / max(last[0] - first[0], 1e-9)

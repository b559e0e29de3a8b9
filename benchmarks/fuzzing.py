# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast programs are run: the swarm engine under the oracle, hypercalls of bytes alone, two workers against one.

The swarm engine runs hypercalls, and at driver level guests that boot.

Hypercalls of bytes are those of the raw engine's programs on the machines that it runs them on, each program from the
start: what ``pviommu fuzz --level raw`` makes the hypervisor do, without oracle, DMA and sweeps.  Going back to the
start and what the toolstack does in between take their time and do not count as calls.  The same follows with a
hypervisor that does nothing, which leaves what the target costs.  Programs are made beforehand; what their calls are is
given too: how many in a hundred are refused, and how many ask for more than one page.

All but the workers are processor time of one core.  Workers are compared by the clock on the wall, so that this one
says something on an idle machine only; what two processes do that share nothing but the machine stands beside it.
"""

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import Final

from benchmarks.figures import Figure, clock, rate
from benchmarks.hypercalls import BACKENDS
from benchmarks.lean import Lean
from fuzz import campaign, memory_ops
from fuzz.engines.swarm import LENGTH, Swarm, benches
from fuzz.program import Bench
from fuzz.raw import RawGenerator
from fuzz.target import Call, Target
from hypervisor import profile as profiles

ORACLE_BAR: Final = 15_000
RAW_BAR: Final = 150_000
WORKERS_BAR: Final = 1.8
_RAW_PROGRAMS: Final = 8
"""On each machine."""
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
        yield from _bytes(backend, seconds)
    for name, work, bar in (
        ("two workers against one", _workers, WORKERS_BAR),
        ("two empty loops against one: what the machine gives", _loops, None),
    ):
        one, two = work(1, max(seconds, 2)), work(2, max(seconds, 2))
        yield Figure("fuzz", name, "times/s", two / one, two / one, bar)


def _run(swarm: Swarm) -> None:
    until = swarm.programs + _PROGRAMS
    for hit in swarm.findings(3600):
        if hit is not None:
            raise RuntimeError(f"a sound profile: {hit[1].clause}: {hit[1].what}\n{hit[1].program}")
        if swarm.programs >= until:
            return


def _bytes(backend: str, seconds: float) -> Iterator[Figure]:
    """Hypercalls of bytes: how fast they are, and what they are."""
    played = [Played(bench) for bench in benches(backend, "v7-fixed", "raw")]
    calls = sum(one.calls for one in played)
    name = f"{backend}, bytes, no oracle"
    yield rate("fuzz", name, "hypercalls/s", clock(lambda: _play(played), calls, seconds), bar=RAW_BAR)
    answers = [answer for one in played for answer in one.answers()]
    for what, share in (
        ("refused", sum(result < 0 for result, _ in answers)),
        ("of more than one page", sum(pages > 1 for _, pages in answers)),
    ):
        percent = 100 * share / len(answers)
        yield Figure("fuzz", f"{backend}, bytes, {what}", "%", percent, percent)
    for one in played:
        one.target._hypercall = lambda *registers: 0  # type: ignore[misc]
    times = clock(lambda: _play(played), calls, seconds)
    yield rate("fuzz", f"{backend}, bytes, no oracle, no hypervisor", "hypercalls/s", times)


class Played:
    """Some of the raw engine's programs, on one machine and without oracle."""

    def __init__(self, bench: Bench) -> None:
        target = Target(bench)
        self.target: Final = target
        self._steps: Final[dict[str, Callable[..., object]]] = {
            "raw": target.raw,
            "init": lambda *operands: target.call("init", operands[:2], *operands[2:]),
            "remove": target.remove,
            "p2m": target.retype,
            "remote": target.carry,
            "progress": target.claim,
            "fail": target.fail,
            "preempt": target.preempt,
            "fault": target.inject,
            "regions": partial(memory_ops.ask, target),
        }
        source = RawGenerator(target, 1)
        self._programs: Final = [
            [operation for operation in source.program(LENGTH) if operation[0] in self._steps]
            for _ in range(_RAW_PROGRAMS)
        ]
        self.calls: Final = sum(1 for _ in self.answers())

    def play(self) -> None:
        steps = self._steps
        for program in self._programs:
            self.target.reset()
            for operation in program:
                steps[operation[0]](*operation[1:])

    def answers(self) -> Iterator[tuple[int, int]]:
        """(result, pages that it asked for, 0 if it names none) of every hypercall that the programs are made of."""
        for program in self._programs:
            self.target.reset()
            for operation in program:
                answer = self._steps[operation[0]](*operation[1:])
                if isinstance(answer, Call):
                    yield answer.result, self._pages(answer)

    def _pages(self, call: Call) -> int:
        if call.name not in ("map_pages", "unmap_pages"):
            return 0
        codec = self.target.abi.by_name[call.name].codec
        assert codec is not None
        return codec.as_dict(call.before)["nr_pages"]


def _play(played: list[Played]) -> None:
    for one in played:
        one.play()


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


def _loops(jobs: int, seconds: float) -> float:
    """Turns in a second of so many processes that do nothing but count."""
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        list(pool.map(_count, [0.1] * jobs))  # they are all there
        return sum(pool.map(_count, [seconds] * jobs)) / seconds


def _count(seconds: float) -> int:
    end, turns = monotonic() + seconds, 0
    while monotonic() < end:
        for _ in range(1000):
            turns += 1
    return turns

# SPDX-License-Identifier: GPL-2.0-or-later
"""One worker of a campaign: fuzz, put what broke on disk, shrink it, name it, report."""

import errno
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Final

from fuzz import address_space
from fuzz.driver_run import DriverRunner
from fuzz.engines.engine import make
from fuzz.naming import name
from fuzz.program import Bench, Program
from fuzz.resync import known_as
from fuzz.run import Finding, Key, ProgramRunner, Runner, runner_for
from fuzz.shrink import Shrinker
from fuzz.store import Outcome, keep_pending, set_aside
from guest_driver import drivers
from hypervisor import profile as profiles

REPORT_EVERY: Final = 0.5
"""Seconds between two reports of a worker."""
OUTGROWN: Final = 75
"""Exit status of a worker that needs more memory than it may have."""
TRIES: Final = 3
"""Findings of one kind (clause, operation, errno) that a worker shrinks: others would shrink to the same."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to do."""

    engine: str
    over: tuple[Bench, ...]
    seed: int
    seconds: float
    max_ops: int | None
    directory: Path
    memory: int = 0
    """Bytes of address space that it may have; 0: no limit."""


@dataclass(frozen=True, slots=True)
class Found:
    """A finding, shrunk, confirmed on fresh test beds, with its name."""

    finding: Finding
    names: tuple[str, ...]
    pending: str
    """Where the program lies that it was found with."""


@dataclass(frozen=True, slots=True)
class Report:
    """How far a worker is."""

    programs: int
    ops: int
    news: Counter[Outcome]
    """Outcomes since the last report."""


def work(job: Job, mouth: Connection) -> None:
    """The worker's process; ``mouth`` is where it says what :func:`messages` has to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator hears it, and ends us
    try:
        with address_space.at_most(job.memory):
            for message in messages(job):
                mouth.send(message)
    except MemoryError:
        sys.exit(OUTGROWN)
    except BrokenPipeError:
        return  # the coordinator was killed, and what was found is on disk
    except OSError as error:
        if error.errno == errno.ENOMEM:
            sys.exit(OUTGROWN)
        with suppress(OSError):
            mouth.send(error)  # of the disk: the campaign's to tell
    except Exception as error:
        if os.environ.get("PVIOMMU_TRACEBACK"):
            raise
        where = "PVIOMMU_TRACEBACK=1 shows where"
        print(f"pviommu: a worker failed: {type(error).__name__}: {error} ({where})", file=sys.stderr)
        sys.exit(1)


def messages(job: Job) -> Iterator[Found | Report]:
    """What the worker has to say: :class:`Found` and :class:`Report` as they come, a report last.

    ``MemoryError`` when memory runs out; the program at which it did stays pending, for somebody with room to look at.
    """
    engine = make(job.engine, list(job.over), job.seed)
    tried: Counter[Key | tuple[str, ...]] = Counter()
    seen: set[Key] = set()
    told: Counter[Outcome] = Counter()
    reported = monotonic()

    def report() -> Report:
        total: Counter[Outcome] = Counter()
        for runner in engine.runners:
            total.update(runner.coverage)
        news = Counter({outcome: times - told[outcome] for outcome, times in total.items() if times > told[outcome]})
        told.update(news)
        return Report(engine.programs, engine.ops, news)

    for hit in engine.findings(job.seconds, job.max_ops):
        if hit is not None:
            runner, found = hit
            kind = found.key[:3]
            tried[kind] += 1
            if tried[kind] <= TRIES:
                path = keep_pending(job.directory, Program(found.program.bench, found.program.ops))
                if found.errno == MemoryError.__name__:
                    raise MemoryError
                small = settle(runner, found.program)
                if small is None:
                    set_aside(path)
                elif small.key in seen:
                    path.unlink(missing_ok=True)
                else:
                    seen.add(small.key)
                    yield report()  # what it took to find it, should this be the last that is heard
                    yield Found(small, name(small), str(path))
                    _overlook(engine.runners, small)
        if monotonic() - reported > REPORT_EVERY:
            reported = monotonic()
            yield report()
    yield report()


def settle(runner: ProgramRunner, program: Program) -> Finding | None:
    """Trace, shrink and confirm what ``program`` breaks; ``None`` if fresh test beds do not show it every time."""
    located = runner.locate(program.ops)
    if located is None:
        return None
    small = Shrinker(runner).shrink(located)
    for _ in range(3):
        again = runner_for(small.program.bench).run(small.program.ops)
        if again is None or not again.like(small):
            return None
    return small


def _overlook(runners: Sequence[ProgramRunner], found: Finding) -> None:
    """With faults in hypervisor or driver, go on after what is known now; without, whatever comes is worth a look."""
    known = known_as(*found.key[:3])
    for runner in runners:
        posted = profiles.get(runner.bench.profile).defects or drivers.get(runner.bench.driver).defects
        if known is not None and posted and isinstance(runner, Runner | DriverRunner):
            runner.overlook(runner.known | {known})

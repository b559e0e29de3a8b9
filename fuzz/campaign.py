# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign: workers in parallel, findings filed as they come.

A campaign that is started on the same directory again goes on with new seeds, after it has looked at what the last run
had found and not filed.  A worker that is killed or runs out of memory is replaced; one that fails otherwise is a fault
of ours.  Each worker has a pipe of its own: one that dies in the middle of a word takes nobody else's with it, and one
whose campaign was killed notices.
"""

import multiprocessing
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from time import monotonic
from typing import Final

from fuzz import address_space, machines
from fuzz.engines.swarm import benches
from fuzz.naming import name
from fuzz.program import Bench
from fuzz.run import Key, runner_for
from fuzz.spawn import start
from fuzz.store import Outcome, Store, pending, set_aside
from fuzz.worker import OUTGROWN, REPORT_EVERY, Found, Job, Report, settle, work

CHECKPOINT_EVERY: Final = 2.0
"""Seconds between two writes of totals and coverage."""
MEMORY: Final = 8 << 30
"""Bytes of address space that a worker may have; test beds are sparse, and use little of theirs."""
REPLACEMENTS: Final = 100
"""Workers that a run replaces: where so many die, others would too."""


@dataclass(slots=True)
class Progress:
    """What a campaign has done so far, earlier runs on the same directory included in the findings only."""

    programs: int = 0
    ops: int = 0
    seconds: float = 0.0
    findings: dict[Key, str] = field(default_factory=dict)
    """Key to the finding's directory."""
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """A finding's directory to the catalogue entries that it matches."""
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    """(operation, answer, events) to how often, in this run."""
    earlier: tuple[int, int, float] = (0, 0, 0.0)
    """(programs, operations, seconds) of earlier runs."""
    killed: int = 0
    """Workers that were killed, and replaced."""
    outgrown: int = 0
    """Workers that needed more memory than :data:`MEMORY`, and were replaced."""
    unconfirmed: int = 0
    """Programs that broke something once and not again, earlier runs on the same directory included."""
    lost: int = 0
    """Workers that died of a fault of ours."""

    @property
    def coverage(self) -> int:
        """Outcomes seen."""
        return len(self.outcomes)


def run(
    backends: list[str],
    profile: str,
    directory: Path,
    *,
    seconds: float,
    jobs: int,
    seed: int,
    engine: str = "swarm",
    against: str = "",
    level: str = "typed",
    driver: str = "reference",
    machine: str = machines.USUAL,
    defects: str = "",
    stop_on_first: bool = False,
    max_ops: int | None = None,
    scheduler: str = "",
    watch: Callable[[Progress], None] | None = None,
) -> Progress:
    """Fuzz ``profile`` on ``backends`` with ``jobs`` workers, or with those of the cluster behind ``scheduler``; the
    outcome, findings filed in ``directory``."""
    over = over_which(backends, profile, level, driver, machine, against, defects)
    options = {
        "backends": backends,
        "profile": profile,
        "seconds": seconds,
        "jobs": jobs,
        "seed": seed,
        "engine": engine,
        "against": against,
        "level": level,
        "driver": driver,
        "machine": machine,
        "defects": defects,
        "max_ops": max_ops,
    }
    store = Store(directory)
    try:
        base = seed * 1_000_000 + store.begin(options) * 10_000
        job = Job(engine, over, base, seconds, max_ops, directory, MEMORY)
        kind = _on_cluster(scheduler) if scheduler else Campaign
        return kind(store, job, jobs, stop_on_first, watch).run()
    finally:
        store.close()


def over_which(
    backends: list[str], profile: str, level: str, driver: str, machine: str, against: str, defects: str
) -> tuple[Bench, ...]:
    """The benches of a campaign."""
    return tuple(
        replace(bench, against=against, defects=defects)
        for backend in backends
        for bench in benches(backend, profile, level, driver, machine)
    )


def _on_cluster(address: str) -> type["Campaign"]:
    from fuzz.cluster import ClusterCampaign

    return type("ClusterCampaign", (ClusterCampaign,), {"scheduler": address})


class Campaign:
    """A run of a campaign."""

    def __init__(
        self,
        store: Store,
        job: Job,
        jobs: int,
        stop_on_first: bool,
        watch: Callable[[Progress], None] | None,
    ) -> None:
        self._store: Final = store
        self._job: Final = job
        self._jobs: Final = jobs
        self._stop_on_first: Final = stop_on_first
        self._watch: Final = watch
        self._context: Final = multiprocessing.get_context("spawn")
        self._workers: Final[dict[Connection, tuple[int, SpawnProcess]]] = {}
        """Where a worker is heard, to its seed and its process."""
        self._interrupted: Connection | None = None
        """Where a word was being heard when the campaign was interrupted: the rest of it means nothing."""
        self._counts: Final[dict[int, tuple[int, int]]] = {}
        self._news: Counter[Outcome] = Counter()
        self._seeds = 0
        self._start = monotonic()
        self._written = self._start
        self.progress: Final = Progress(findings=store.known(), names=store.names(), earlier=store.totals())
        self._known: Final = len(self.progress.findings)
        """Findings of earlier runs."""

    def run(self) -> Progress:
        try:
            self._leftovers()
            for _ in range(self._jobs):
                self._hire(self._job.seconds)
            while self._workers:
                for ear in wait(list(self._workers), REPORT_EVERY):
                    assert isinstance(ear, Connection)
                    self._listen(ear)
                self._tell()
                if self._done():
                    break
        finally:
            self._dismiss()
            self._leftovers()
            self._checkpoint()
        return self.progress

    def _done(self) -> bool:
        """Whether one finding was wanted, and is there."""
        return self._stop_on_first and len(self.progress.findings) > self._known

    def _hire(self, seconds: float) -> None:
        job = replace(self._job, seed=self._job.seed + self._seeds, seconds=seconds)
        self._seeds += 1
        ear, mouth = self._context.Pipe(duplex=False)
        worker = self._context.Process(target=work, args=(job, mouth), daemon=True)
        start(worker)
        mouth.close()  # the worker's own is the last one: the pipe ends with it
        self._workers[ear] = job.seed, worker

    def _listen(self, ear: Connection) -> None:
        """Hear what a worker says next, or that it is gone."""
        self._interrupted = ear
        try:
            message = ear.recv()
        except (EOFError, OSError):  # at the end of a word, or in the middle of one
            message = None
        self._interrupted = None
        if message is None:
            self._bury(ear)
        else:
            self._hear(self._workers[ear][0], message)

    def _hear(self, who: int, message: Found | Report | OSError) -> None:
        if isinstance(message, OSError):  # a disk that is full is full for every worker
            raise message
        if isinstance(message, Found):
            self._file(message)
        else:
            self._counts[who] = message.programs, message.ops
            self._news.update(message.news)
            self.progress.outcomes.update(message.news)

    def _tell(self) -> None:
        progress = self.progress
        progress.programs, progress.ops = (sum(count[k] for count in self._counts.values()) for k in (0, 1))
        progress.seconds = monotonic() - self._start
        if monotonic() - self._written > CHECKPOINT_EVERY:
            self._checkpoint()
        if self._watch is not None:
            self._watch(progress)

    def _bury(self, ear: Connection) -> None:
        """A worker is gone; one that was killed or ran out of memory gets a successor for the time that is left."""
        _, worker = self._workers.pop(ear)
        ear.close()
        worker.join()
        progress = self.progress
        if worker.exitcode == 0:
            return
        if worker.exitcode == OUTGROWN:
            progress.outgrown += 1
        elif worker.exitcode is not None and worker.exitcode < 0:
            progress.killed += 1
        else:
            progress.lost += 1
            return
        left = self._job.seconds - (monotonic() - self._start)
        if left > 1 and progress.killed + progress.outgrown <= REPLACEMENTS:
            self._hire(left)

    def _dismiss(self) -> None:
        """End every worker, and hear what it had said before."""
        for _, worker in self._workers.values():
            worker.kill()
        for ear, (who, worker) in self._workers.items():
            worker.join()
            try:
                while ear is not self._interrupted:
                    self._hear(who, ear.recv())
            except (EOFError, OSError):
                ear.close()
        self._workers.clear()

    def _file(self, found: Found) -> None:
        if found.finding.key not in self.progress.findings:
            path = self._store.file(found.finding, found.names, monotonic() - self._start)
            self.progress.findings[found.finding.key] = str(path)
            self.progress.names[str(path)] = found.names
        Path(found.pending).unlink(missing_ok=True)

    def _leftovers(self) -> None:
        """File what was found and did not get as far, by a worker or a whole campaign that was killed."""
        for path, program in pending(self._store.directory):
            with address_space.at_most(self._job.memory):
                small = settle(runner_for(program.bench), program)
                names = name(small) if small is not None else ()
            if small is None:
                set_aside(path)
            else:
                self._file(Found(small, names, str(path)))

    def _checkpoint(self) -> None:
        self._written = monotonic()
        progress = self.progress
        progress.programs, progress.ops = (sum(count[k] for count in self._counts.values()) for k in (0, 1))
        progress.seconds = monotonic() - self._start
        progress.unconfirmed = self._store.unconfirmed()
        self._store.checkpoint(progress.programs, progress.ops, progress.seconds, self._news)
        self._news = Counter()

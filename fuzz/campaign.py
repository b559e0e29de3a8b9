# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign: workers in parallel, findings filed as they come.

A campaign that is started on the same directory again goes on with new seeds, after it has looked at what the last run
had found and not filed.  A worker that is killed is replaced; one that fails by itself is a fault of ours.
"""

import multiprocessing
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty
from time import monotonic
from typing import Any, Final

from fuzz.engines.swarm import benches
from fuzz.naming import name
from fuzz.run import Key, runner_for
from fuzz.store import Outcome, Store, pending, set_aside
from fuzz.worker import REPORT_EVERY, Found, Job, Report, settle, work

CHECKPOINT_EVERY: Final = 2.0
"""Seconds between two writes of totals and coverage."""
MEMORY: Final = 8 << 30
"""Bytes of address space that a worker may have; test beds are sparse, and use little of theirs."""


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
    defects: str = "",
    stop_on_first: bool = False,
    max_ops: int | None = None,
    scheduler: str = "",
    watch: Callable[[Progress], None] | None = None,
) -> Progress:
    """Fuzz ``profile`` on ``backends`` with ``jobs`` workers, or with those of the cluster behind ``scheduler``; the
    outcome, findings filed in ``directory``."""
    over = tuple(
        replace(bench, against=against, defects=defects)
        for backend in backends
        for bench in benches(backend, profile, level, driver)
    )
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
        self._results: Final[Any] = self._context.Queue()
        self._workers: dict[int, Any] = {}
        self._counts: Final[dict[int, tuple[int, int]]] = {}
        self._news: Counter[Outcome] = Counter()
        self._seeds = 0
        self._start = monotonic()
        self._written = self._start
        self.progress: Final = Progress(findings=store.known(), names=store.names(), earlier=store.totals())

    def run(self) -> Progress:
        try:
            self._leftovers()
            for _ in range(self._jobs):
                self._hire(self._job.seconds)
            while self._workers:
                self._listen()
                if self._stop_on_first and self.progress.findings:
                    break
        finally:
            for worker in self._workers.values():
                worker.kill()
                worker.join()
            self._drain()
            self._leftovers()
            self._checkpoint()
        return self.progress

    def _hire(self, seconds: float) -> None:
        job = replace(self._job, seed=self._job.seed + self._seeds, seconds=seconds)
        self._seeds += 1
        worker = self._context.Process(target=work, args=(job, self._results), daemon=True)
        worker.start()
        self._workers[job.seed] = worker

    def _listen(self) -> None:
        try:
            who, _, message = self._results.get(timeout=REPORT_EVERY)
        except Empty:
            self._bury()
            return
        self._hear(who, message)
        self._tell()

    def _hear(self, who: int, message: Found | Report | None) -> None:
        if isinstance(message, Found):
            self._file(message)
        elif isinstance(message, Report):
            self._counts[who] = message.programs, message.ops
            self._news.update(message.news)
            self.progress.outcomes.update(message.news)
        elif who in self._workers:
            self._workers.pop(who).join()

    def _tell(self) -> None:
        progress = self.progress
        progress.programs, progress.ops = (sum(count[k] for count in self._counts.values()) for k in (0, 1))
        progress.seconds = monotonic() - self._start
        if monotonic() - self._written > CHECKPOINT_EVERY:
            self._checkpoint()
        if self._watch is not None:
            self._watch(progress)

    def _bury(self) -> None:
        """Look for workers that are gone; a killed one gets a successor for the time that is left."""
        for seed, worker in list(self._workers.items()):
            if worker.is_alive():
                continue
            del self._workers[seed]
            left = self._job.seconds - (monotonic() - self._start)
            if worker.exitcode is not None and worker.exitcode >= 0:
                self.progress.lost += worker.exitcode > 0
            else:
                self.progress.killed += 1
                if left > 1 and self.progress.killed < 100:
                    self._hire(left)

    def _drain(self) -> None:
        """What workers had said before they ended (a killed one may have stopped in the middle of a word)."""
        while True:
            try:
                who, _, message = self._results.get(timeout=0.05)
            except Empty:
                return
            self._hear(who, message)

    def _file(self, found: Found) -> None:
        if found.finding.key not in self.progress.findings:
            path = self._store.file(found.finding, found.names, monotonic() - self._start)
            self.progress.findings[found.finding.key] = str(path)
            self.progress.names[str(path)] = found.names
        Path(found.pending).unlink(missing_ok=True)

    def _leftovers(self) -> None:
        """File what was found and did not get as far, by a worker or a whole campaign that was killed."""
        for path, program in pending(self._store.directory):
            small = settle(runner_for(program.bench), program)
            if small is None:
                set_aside(path)
            else:
                self._file(Found(small, name(small), str(path)))

    def _checkpoint(self) -> None:
        self._written = monotonic()
        progress = self.progress
        progress.programs, progress.ops = (sum(count[k] for count in self._counts.values()) for k in (0, 1))
        progress.seconds = monotonic() - self._start
        self._store.checkpoint(progress.programs, progress.ops, progress.seconds, self._news)
        self._news = Counter()

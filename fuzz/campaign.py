# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign: workers in parallel, findings filed as they come.

Every finding is a directory, written before it is counted, and a row in an SQLite database in WAL mode: killing a
worker or the whole campaign loses none.  A campaign that is started on the same directory again goes on with new seeds.
"""

import hashlib
import multiprocessing
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty
from time import monotonic
from typing import Any, Final

from fuzz.engines.engine import Engine, make
from fuzz.engines.swarm import benches
from fuzz.oracle import CLAUSES
from fuzz.program import Bench, parse
from fuzz.run import Finding, Key, replay, story
from fuzz.shrink import Shrinker

_SCHEMA: Final = """
create table if not exists runs (number integer primary key, started text);
create table if not exists findings (clause text, verb text, errno text, events text, path text, what text, seen text,
  unique (clause, verb, errno, events));
"""
REPORT_EVERY: Final = 0.5
"""Seconds between two reports of a worker."""


@dataclass(slots=True)
class Progress:
    """What a campaign has done so far."""

    programs: int = 0
    ops: int = 0
    seconds: float = 0.0
    findings: dict[Key, str] = field(default_factory=dict)
    """Key to the finding's directory."""
    coverage: int = 0
    """Pairs of operation and answer seen."""
    lost: int = 0
    """Workers that died."""


class Store:
    """The directory of a campaign."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory: Final = directory
        self._db: Final = sqlite3.connect(directory / "campaign.sqlite")
        self._db.execute("pragma journal_mode=wal")
        self._db.executescript(_SCHEMA)

    def begin(self) -> int:
        """Number of this run of the campaign, from 1."""
        with self._db:
            row = self._db.execute("insert into runs (started) values (?)", (_now(),))
        return int(row.lastrowid or 1)

    def known(self) -> dict[Key, str]:
        rows = self._db.execute("select clause, verb, errno, events, path from findings").fetchall()
        return {(row[0], row[1], row[2], row[3]): row[4] for row in rows}

    def file(self, key: Key, what: str, text: str, steps: list[str]) -> Path:
        """Write a finding's directory, then its row."""
        name = "-".join(key).replace(":", "-").replace("/", "-")
        path = self.directory / "findings" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        path.mkdir(parents=True, exist_ok=True)
        (path / "program.txt").write_text(text, encoding="utf-8")
        (path / "story.txt").write_text(_story(key, what, steps, path), encoding="utf-8")
        (path / f"test_{path.name.replace('-', '_')}.py").write_text(_TEST, encoding="utf-8")
        with self._db:
            self._db.execute("insert or ignore into findings values (?,?,?,?,?,?,?)", (*key, str(path), what, _now()))
        return path

    def close(self) -> None:
        self._db.close()


_TEST: Final = '''# SPDX-License-Identifier: GPL-2.0-or-later
"""A finding as a test: passes once the fault is gone."""

from pathlib import Path

from fuzz.program import parse
from fuzz.run import replay


def test_program_runs_clean() -> None:
    text = (Path(__file__).parent / "program.txt").read_text(encoding="utf-8")
    assert replay(parse(text)) is None
'''


def _story(key: Key, what: str, steps: list[str], path: Path) -> str:
    clause = key[0]
    lines = [f"Broken: {clause}", CLAUSES.get(clause, ""), "", what, "", *steps, "", f"First seen {_now()}."]
    return "\n".join([*lines, f"Replay: pviommu replay {path / 'program.txt'}", ""])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _work(name: str, over: list[Bench], seed: int, seconds: float, max_ops: int | None, results: Any) -> None:
    """One worker: fuzz, shrink what is new to it, report."""
    engine = make(name, over, seed)
    seen: set[Key] = set()
    reported = monotonic()
    for hit in engine.findings(seconds, max_ops):
        if hit is not None:
            runner, found = hit
            located = runner.locate(found.program.ops) or found
            if located.key not in seen:
                seen.add(located.key)
                small = Shrinker(runner).shrink(located)
                results.put(("finding", seed, (small.key, small.what, str(small.program))))
        if monotonic() - reported > REPORT_EVERY:
            reported = monotonic()
            results.put(("progress", seed, _progress(engine)))
    results.put(("done", seed, _progress(engine)))


def _progress(engine: Engine) -> tuple[int, int, int]:
    covered = {pair for runner in engine.runners for pair in runner.coverage}
    return engine.programs, engine.ops, len(covered)


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
    stop_on_first: bool = False,
    max_ops: int | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Progress:
    """Fuzz ``profile`` on ``backends`` with ``jobs`` workers; the outcome, findings filed in ``directory``."""
    store = Store(directory)
    progress = Progress(findings=store.known())
    over = [replace(bench, against=against) for backend in backends for bench in benches(backend, profile)]
    base = seed * 1_000_000 + store.begin() * 10_000
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    workers = {
        base + k: context.Process(target=_work, args=(engine, over, base + k, seconds, max_ops, results), daemon=True)
        for k in range(jobs)
    }
    start = monotonic()
    counts: dict[int, tuple[int, int, int]] = {}
    try:
        for worker in workers.values():
            worker.start()
        while workers:
            try:
                kind, who, what = results.get(timeout=REPORT_EVERY)
            except Empty:
                for dead in [number for number, worker in workers.items() if not worker.is_alive()]:
                    del workers[dead]
                    progress.lost += 1
                continue
            if kind == "finding":
                key, said, text = what
                if key not in progress.findings and _confirmed(text, key):
                    progress.findings[key] = str(store.file(key, said, text, story(parse(text))))
                    if stop_on_first:
                        break
            else:
                counts[who] = what
                if kind == "done":
                    workers.pop(who).join()
            progress.programs, progress.ops = (sum(count[k] for count in counts.values()) for k in (0, 1))
            progress.coverage = max(count[2] for count in counts.values()) if counts else 0
            progress.seconds = monotonic() - start
            if watch is not None:
                watch(progress)
    finally:
        for worker in workers.values():
            if worker.is_alive():
                worker.terminate()
        store.close()
    progress.seconds = monotonic() - start
    return progress


def _confirmed(text: str, key: Key) -> bool:
    """Whether the program shows the same three times over on fresh test beds."""
    for _ in range(3):
        found: Finding | None = replay(parse(text))
        if found is None or found.clause != key[0]:
            return False
    return True

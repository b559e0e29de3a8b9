# SPDX-License-Identifier: GPL-2.0-or-later
"""The directory of a campaign: an SQLite database in WAL mode, a directory for each finding, and what is on its way.

A program that broke something is on disk (``pending/``) before anybody looks at it twice; it leaves that place when the
finding that it shrank to is filed.  So nothing is lost when a worker, or all of them, are killed at any moment.
"""

import hashlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fuzz.program import Program, parse
from fuzz.run import Finding, Key
from fuzz.story import tell
from fuzz.verbs import ProgramError

_SCHEMA: Final = """
create table if not exists runs (number integer primary key, started text, options text default '',
  programs integer default 0, ops integer default 0, seconds real default 0);
create table if not exists findings (clause text, verb text, errno text, events text, path text, what text, seen text,
  names text default '', seconds real default 0, unique (clause, verb, errno, events));
create table if not exists samples (run integer, seconds real, ops integer);
create table if not exists coverage (verb text, errno integer, events integer, times integer,
  unique (verb, errno, events));
"""
UNCONFIRMED: Final = "unconfirmed"
"""The part of a campaign's directory for programs that broke something once and not again."""
Outcome = tuple[str, int, int]
"""(verb, result, events)."""


class Store:
    """One campaign's directory, opened by its coordinator."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "pending").mkdir(exist_ok=True)
        self.directory: Final = directory
        self._db: Final = sqlite3.connect(directory / "campaign.sqlite")
        self._db.execute("pragma journal_mode=wal")
        self._db.executescript(_SCHEMA)
        self._run = 0

    def begin(self, options: dict[str, Any] | None = None) -> int:
        """Number of this run of the campaign, from 1."""
        with self._db:
            row = self._db.execute(
                "insert into runs (started, options) values (?,?)", (now(), json.dumps(options or {}))
            )
        self._run = int(row.lastrowid or 1)
        return self._run

    def options(self) -> dict[str, Any]:
        """What the last run was started with."""
        row = self._db.execute("select options from runs order by number desc limit 1").fetchone()
        found: dict[str, Any] = json.loads(row[0] or "{}") if row else {}
        return found

    def totals(self) -> tuple[int, int, float]:
        """(programs, operations, seconds) of all runs but this one."""
        row = self._db.execute(
            "select sum(programs), sum(ops), sum(seconds) from runs where number!=?", (self._run,)
        ).fetchone()
        return int(row[0] or 0), int(row[1] or 0), float(row[2] or 0)

    def checkpoint(self, programs: int, ops: int, seconds: float, news: Counter[Outcome]) -> None:
        """How far this run is, and what outcomes came since the last checkpoint."""
        with self._db:
            self._db.execute(
                "update runs set programs=?, ops=?, seconds=? where number=?", (programs, ops, seconds, self._run)
            )
            self._db.execute("insert into samples values (?,?,?)", (self._run, seconds, ops))
            self._db.executemany(
                "insert into coverage values (?,?,?,?) on conflict do update set times=times+excluded.times",
                [(*outcome, times) for outcome, times in news.items()],
            )

    def coverage(self) -> Counter[Outcome]:
        """Every outcome so far."""
        rows = self._db.execute("select verb, errno, events, times from coverage")
        return Counter({(verb, errno, events): times for verb, errno, events, times in rows})

    def known(self) -> dict[Key, str]:
        """Key of every finding to its directory."""
        rows = self._db.execute("select clause, verb, errno, events, path from findings").fetchall()
        return {(row[0], row[1], row[2], row[3]): self._here(row[4]) for row in rows}

    def names(self) -> dict[str, tuple[str, ...]]:
        """Directory of every finding to the catalogue entries that it matches."""
        rows = self._db.execute("select path, names from findings").fetchall()
        return {self._here(path): tuple(filter(None, names.split(","))) for path, names in rows}

    def _here(self, path: str) -> str:
        """Where a finding is that was filed as ``path``, maybe from another place, or before the campaign was moved."""
        return str(self.directory / "findings" / Path(path).name)

    def unconfirmed(self) -> int:
        """Programs that broke something once and not again, in all runs."""
        return len(list((self.directory / UNCONFIRMED).glob("*.txt")))

    def file(self, finding: Finding, names: tuple[str, ...], seconds: float = 0.0) -> Path:
        """Write a finding's directory, then its row.  ``seconds``: into the campaign when it was found."""
        text = str(finding.program)
        label = "-".join(finding.key).replace(":", "-").replace("/", "-").replace("+", "-")
        path = self.directory / "findings" / f"{label}-{digest(text)}"
        path.mkdir(parents=True, exist_ok=True)
        seen = now()
        _write(path / "program.txt", text)
        _write(path / "story.txt", tell(finding, names, seen, path))
        _write(path / f"test_{path.name.replace('-', '_').replace('.', '_')}.py", _TEST)
        record = {"key": finding.key, "what": finding.what, "first_seen": seen, "catalogue": names, "seconds": seconds}
        _write(path / "finding.json", json.dumps(record, indent=2) + "\n")
        with self._db:
            self._db.execute(
                "insert or ignore into findings values (?,?,?,?,?,?,?,?,?)",
                (*finding.key, str(path), finding.what, seen, ",".join(names), seconds),
            )
        return path

    def close(self) -> None:
        self._db.close()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def keep_pending(directory: Path, program: Program) -> Path:
    """Put a program that broke something on disk."""
    text = str(program)
    path = directory / "pending" / f"{digest(text)}.txt"
    if not path.exists():
        _write(path, text)
    return path


def pending(directory: Path) -> Iterable[tuple[Path, Program]]:
    """Programs that broke something and were never filed."""
    for path in sorted((directory / "pending").glob("*.txt")):
        try:
            yield path, parse(path.read_text(encoding="utf-8"))
        except (ProgramError, OSError, UnicodeDecodeError):
            continue  # not ours, or gone meanwhile


def set_aside(path: Path) -> None:
    """Put a pending program that fresh test beds do not confirm where somebody will find it."""
    place = path.parent.parent / UNCONFIRMED
    place.mkdir(exist_ok=True)
    path.replace(place / path.name)


def _write(path: Path, text: str) -> None:
    """All of it or nothing, also when the machine goes down."""
    part = path.with_suffix(path.suffix + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


_TEST: Final = '''# SPDX-License-Identifier: GPL-2.0-or-later
"""A finding as a test: passes once the fault is gone."""

from pathlib import Path

from fuzz.program import parse
from fuzz.run import runner_for


def test_program_runs_clean() -> None:
    program = parse((Path(__file__).parent / "program.txt").read_text(encoding="utf-8"))
    assert runner_for(program.bench).run(program.ops) is None
'''

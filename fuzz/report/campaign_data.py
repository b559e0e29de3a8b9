# SPDX-License-Identifier: GPL-2.0-or-later
"""What a campaign's directory says, read without writing to it: it may be running."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Final

from fuzz import state
from fuzz.program import Program, format_op, parse
from fuzz.session import Session
from fuzz.verbs import ProgramError

STATE_LINES: Final = 400
"""Of a state, as many lines are shown."""


@dataclass(frozen=True, slots=True)
class CampaignRun:
    """One run of a campaign."""

    number: int
    started: str
    options: dict[str, Any]
    programs: int
    ops: int
    seconds: float

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.ops / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a state, and whether the other side has it too."""

    text: str
    changed: bool


@dataclass(frozen=True, slots=True)
class FoundThing:
    """One finding with everything that is told about it."""

    clause: str
    verb: str
    errno: str
    events: str
    what: str
    seen: str
    seconds: float
    """Into the run in which it was found."""
    names: tuple[str, ...]
    """Catalogue entries that it matches."""
    directory: Path
    program: str
    steps: tuple[str, ...]
    """Every operation with its answer."""
    before: tuple[Line, ...]
    """The machine's state before the operation that broke the clause."""
    after: tuple[Line, ...]

    @property
    def label(self) -> str:
        return f"{self.clause} / {self.verb} / {self.errno}"


@dataclass(frozen=True, slots=True)
class CampaignData:
    """A whole campaign."""

    directory: Path
    runs: tuple[CampaignRun, ...]
    findings: tuple[FoundThing, ...]
    coverage: Counter[tuple[str, int, int]]
    """(operation, answer, events) to how often."""
    samples: tuple[tuple[int, float, int], ...]
    """(run, seconds into it, operations so far)."""


def read_campaign(directory: Path) -> CampaignData:
    """The campaign in ``directory``; ``ValueError`` if there is none."""
    path = directory / "campaign.sqlite"
    if not path.is_file():
        raise ValueError(f"{directory} holds no campaign")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            runs = tuple(_runs(db))
            found = [dict(row) for row in _rows(db, "findings", "order by seen")]
            coverage = Counter(
                {(row["verb"], row["errno"], row["events"]): row["times"] for row in _rows(db, "coverage")}
            )
            samples = tuple((row["run"], row["seconds"], row["ops"]) for row in _rows(db, "samples", "order by run"))
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path}: {error}") from None
    return CampaignData(directory, runs, tuple(_finding(directory, row) for row in found), coverage, samples)


def _rows(db: sqlite3.Connection, table: str, order: str = "") -> list[sqlite3.Row]:
    known = db.execute("select 1 from sqlite_master where type='table' and name=?", (table,)).fetchone()
    return db.execute(f"select * from {table} {order}").fetchall() if known else []


def _runs(db: sqlite3.Connection) -> Iterator[CampaignRun]:
    for row in _rows(db, "runs", "order by number"):
        has = row.keys()
        yield CampaignRun(
            row["number"],
            row["started"],
            json.loads(row["options"] or "{}") if "options" in has else {},
            row["programs"] if "programs" in has else 0,
            row["ops"] if "ops" in has else 0,
            row["seconds"] if "seconds" in has else 0.0,
        )


def _finding(directory: Path, row: dict[str, Any]) -> FoundThing:
    where = Path(row["path"])
    if not where.is_dir():  # the campaign's directory has moved
        where = directory / "findings" / where.name
    try:
        text = (where / "program.txt").read_text(encoding="utf-8")
        program = parse(text)
        steps, before, after = _told(program)
    except (OSError, UnicodeDecodeError, ProgramError) as error:
        text, steps, before, after = f"cannot be read: {error}\n", (), (), ()
    names = tuple(filter(None, str(row.get("names", "")).split(",")))
    return FoundThing(
        row["clause"],
        row["verb"],
        row["errno"],
        row["events"],
        row["what"],
        row["seen"],
        float(row.get("seconds", 0.0)),
        names,
        where,
        text,
        steps,
        before,
        after,
    )


def _told(program: Program) -> tuple[tuple[str, ...], tuple[Line, ...], tuple[Line, ...]]:
    """(operations with answers, state before the last one, state after it)."""
    session = Session(program)
    session.goto(max(len(program.ops) - 1, 0))
    before = _state(session)
    session.goto(len(program.ops))
    after = _state(session)
    steps = tuple(f"{format_op(step.operation)}  # {step.answer}" for step in session.steps)
    same_before: set[int] = set()
    same_after: set[int] = set()
    for block in SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks():
        same_before.update(range(block.a, block.a + block.size))
        same_after.update(range(block.b, block.b + block.size))
    return (
        steps,
        tuple(Line(text, k not in same_before) for k, text in enumerate(before)),
        tuple(Line(text, k not in same_after) for k, text in enumerate(after)),
    )


def _state(session: Session) -> list[str]:
    try:
        lines = list(state.overview(session.bed))
    except Exception as error:  # a hypervisor that corrupted itself may have no state to tell
        return [f"cannot be told: {type(error).__name__}: {error}"]
    return lines if len(lines) <= STATE_LINES else [*lines[:STATE_LINES], "..."]

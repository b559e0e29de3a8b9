# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu sweep``: every place of every program fails once.  Exit status 1 when a clause is broken."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pviommu.options import Defects, Json, UsageError
from pviommu.program_cli import with_defects

if TYPE_CHECKING:
    from fuzz.program import Program
    from fuzz.run import Finding


def sweep(
    path: Annotated[Path, typer.Argument(help="A program, or a directory: every program below it that can be swept.")],
    defect: Defects = "",
    as_json: Json = False,
) -> None:
    """Run programs again and again, each time with one more place failing: copies, allocations, tags, invalidations.

    What is found is shrunk and printed as a program.  Exit status 1 when something is.
    """
    from fuzz.engines.fail_nth import FailNth
    from fuzz.program import ProgramError
    from fuzz.shrink import Shrinker

    total, found, results = 0, 0, []
    seen: set[tuple[str, ...]] = set()
    for file, program in list(programs_below(path, defect)):
        try:
            engine = FailNth(program)
        except ProgramError as error:
            if not path.is_dir():
                raise UsageError(f"{file}: {error}") from None
            print(f"{file}: {error}; not swept", file=sys.stderr)
            continue
        if engine.plain is not None:
            print(f"{file}: breaks {engine.plain.clause} without any failure; not swept", file=sys.stderr)
            found += 1
            results.append({"program": str(file), "places": {}, "findings": [_finding("", engine.plain)]})
            continue
        hits = []
        for number, run in enumerate(engine.runs(), 1):
            if sys.stderr.isatty():
                print(f"{file}: {number} of {engine.places} places", end="\r", file=sys.stderr)
            if run.finding is not None and run.finding.key not in seen:
                seen.add(run.finding.key)
                hits.append((run.plan, Shrinker(engine.runner).shrink(run.finding)))
        total, found = total + engine.places, found + len(hits)
        results.append(
            {
                "program": str(file),
                "places": engine.reached,
                "findings": [_finding(plan, small) for plan, small in hits],
            }
        )
        if not as_json:
            kinds = ", ".join(f"{count} {kind}" for kind, count in engine.reached.items())
            print(f"{file}: {engine.places} places failed, one at a time ({kinds})")
            for plan, small in hits:
                print(f"{plan} breaks {small.clause}: {small.what}\n{small.program}")
    if as_json:
        print(json.dumps({"places": total, "findings": found, "programs": results}, indent=2))
    else:
        print(f"{total} places in {len(results)} programs: {found} findings")
    raise typer.Exit(1 if found else 0)


def _finding(plan: str, finding: "Finding") -> dict[str, str]:
    """``plan``: what failed, "" if nothing did."""
    return {"plan": plan, "clause": finding.clause, "what": finding.what, "program": str(finding.program)}


def programs_below(path: Path, defect: str = "") -> Iterator[tuple[Path, "Program"]]:
    """A program file, or every text below a directory that is a program; ``UsageError`` if there is none."""
    from fuzz.program import MAGIC, ProgramError, parse

    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    any_yet = False
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
            if path.is_dir() and not text.startswith(MAGIC):
                continue
            any_yet = True
            yield file, with_defects(parse(text), defect)
        except (OSError, UnicodeDecodeError, ProgramError) as error:
            raise UsageError(f"{file}: {error}") from None
    if not any_yet:
        raise UsageError(f"{path}: there is no program below it")

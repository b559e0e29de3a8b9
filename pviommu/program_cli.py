# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu replay`` and ``pviommu shrink``: one program.  Exit status 1 when a clause is broken."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pviommu.options import UsageError

if TYPE_CHECKING:
    from fuzz.program import Program

ProgramFile = Annotated[Path, typer.Argument(help="A program, as a finding's program.txt.")]


def replay(
    file: ProgramFile,
    until: Annotated[int | None, typer.Option(min=0, help="Only this many operations.")] = None,
) -> None:
    """Run a program under the oracle, swept after every operation, and print what each operation answered."""
    from dataclasses import replace

    from fuzz import run
    from fuzz.program import ProgramError

    program = read(file)
    program = replace(program, ops=program.ops[:until])
    try:
        print("\n".join(run.story(program)))
        found = run.replay(program)
    except ProgramError as error:
        raise UsageError(f"{file}: {error}") from None
    raise typer.Exit(1 if found is not None else 0)


def shrink(file: ProgramFile) -> None:
    """Print the smallest program with the same finding; exit status 1 if there is one."""
    from fuzz.program import ProgramError
    from fuzz.run import runner_for
    from fuzz.shrink import Shrinker

    program = read(file)
    try:
        runner = runner_for(program.bench)
        found = runner.locate(program.ops)
    except ProgramError as error:
        raise UsageError(f"{file}: {error}") from None
    if found is None:
        print("nothing is broken", file=sys.stderr)
        raise typer.Exit(0)
    print(Shrinker(runner).shrink(found).program, end="")
    raise typer.Exit(1)


def read(file: Path) -> "Program":
    from fuzz.program import ProgramError, parse

    try:
        return parse(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ProgramError) as error:
        raise UsageError(f"{file}: {error}") from None

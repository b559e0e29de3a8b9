# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu replay`` and ``pviommu shrink``: one program.  Exit status 1 when a clause is broken."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pviommu.options import Defects, UsageError, check_writable, switch_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fuzz.program import Program

ProgramFile = Annotated[Path, typer.Argument(help="A program, as a finding's program.txt.")]


def replay(
    file: ProgramFile,
    at: Annotated[int | None, typer.Option(min=0, help="Show the state after this many operations.")] = None,
    until: Annotated[int | None, typer.Option(min=0, help="Only this many operations.")] = None,
    shell: Annotated[
        bool, typer.Option("--shell", help="A prompt to walk through the program and look around.")
    ] = False,
    defect: Defects = "",
) -> None:
    """Run a program under the oracle, swept after every operation, and print what each operation answered.

    It goes on to the operation at which the program breaks a clause when nothing is swept before its end, and passes
    what its bench line calls known.
    Exit status 1 if a clause breaks.
    """
    from dataclasses import replace

    from fuzz import state
    from fuzz.program import ProgramError
    from fuzz.session import Session

    program = read(file, defect)
    count = len(program.ops)
    for name, value in (("--at", at), ("--until", until)):
        if value is not None and value > count:
            raise UsageError(f"{name} {value}: {file} has {count} operations")
    if at is not None and until is not None and at > until:
        raise UsageError(f"--at {at} is after --until {until}, where the replay ends")
    try:
        session = Session(replace(program, ops=program.ops[:until]))
        if shell:
            from pviommu.replay_shell import ReplayShell

            session.goto(at or 0)
            ReplayShell(session).cmdloop()
        else:
            found = session.finding()
            last = len(found.program.ops) if found is not None else 0  # sweeps may see something before that
            while session.position < len(session.ops) and (session.broken is None or session.position < last):
                print(session.step())
                if session.position == at:
                    _show(state.overview(session.bed))
            broken = session.broken  # going back forgets it
            if at == 0 or (at is not None and session.position < at):
                session.goto(at)
                _show(state.overview(session.bed))
            if found is not None and broken is None:  # under a schedule, or only when all is run in one go
                print(f"# broken: {found.clause}: {found.what}")
            raise typer.Exit(1 if found is not None or broken is not None or session.broken is not None else 0)
    except ProgramError as error:
        raise UsageError(f"{file}: {error}") from None
    raise typer.Exit(1 if session.broken is not None else 0)


def _show(lines: "Iterator[str]") -> None:
    for line in lines:
        print(f"  | {line}")


def shrink(file: ProgramFile, defect: Defects = "") -> None:
    """Print the smallest program with the same finding; exit status 1 if there is one."""
    from fuzz.program import ProgramError
    from fuzz.run import runner_for
    from fuzz.shrink import Shrinker

    program = read(file, defect)
    try:
        runner = runner_for(program.bench)
        found = runner.locate(program.ops) or runner.run(program.ops, sweep_from=0)  # later operations may hide it
    except ProgramError as error:
        raise UsageError(f"{file}: {error}") from None
    if found is None:
        print("nothing is broken", file=sys.stderr)
        raise typer.Exit(0)
    print(Shrinker(runner).shrink(found).program, end="")
    raise typer.Exit(1)


def export(
    file: ProgramFile,
    to: Annotated[str, typer.Option("--to", help="c: a C file for dom0's user space, through /dev/xen/privcmd.")] = "c",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write it here instead of printing it.")] = None,
    defect: Defects = "",
) -> None:
    """Write a program down for another place, with the answers that it is expected to get there."""
    from fuzz.export.c_program import CProgram
    from fuzz.program import ProgramError

    if to != "c":
        raise UsageError(f"unknown form {to!r}; there is: c")
    check_writable(output)
    try:
        text = CProgram(read(file, defect)).text()
    except ProgramError as error:
        raise UsageError(f"{file}: {error}") from None
    if output is None:
        print(text, end="")
    else:
        output.write_text(text, encoding="utf-8")


def read(file: Path, defect: str = "") -> "Program":
    """The program in ``file``, with the hypervisor's defects ``defect`` besides those of its bench."""
    from fuzz.program import ProgramError, parse

    try:
        return with_defects(parse(file.read_text(encoding="utf-8-sig")), defect)
    except (OSError, UnicodeDecodeError, ProgramError) as error:
        raise UsageError(f"{file}: {error}") from None


def with_defects(program: "Program", defect: str) -> "Program":
    """``program`` on its bench with further defects."""
    from dataclasses import replace

    bench = program.bench
    ids = switch_on(defect, bench.profile, bench.backend)
    together = ",".join(dict.fromkeys((*filter(None, bench.defects.split(",")), *ids)))
    return replace(program, bench=replace(bench, defects=together))

# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu explore``: a program of several vCPUs under many schedules.  Exit status 1 when one breaks a clause."""

import json
import sys
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from pviommu.options import Defects, Json, Tried, UsageError, check_writable
from pviommu.program_cli import ProgramFile, read

if TYPE_CHECKING:
    from fuzz.concurrent import Attempt, Concurrent


def explore(
    file: ProgramFile,
    strategy: Annotated[
        str | None,
        typer.Option(help="random, pct, exhaustive, or all three.  [default: the program's own schedule, else all]"),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Schedules at most, for each strategy.")] = 500,
    preemptions: Annotated[int, typer.Option(min=0, help="exhaustive: at most so many in a schedule.")] = 2,
    depth: Annotated[int, typer.Option(min=1, help="pct: ordering constraints that a bug takes.")] = 3,
    seed: Tried = 0,
    schedule: Annotated[str | None, typer.Option(help="Only this one, as printed: '4>1 9>0'.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the first finding here.")] = None,
    defect: Defects = "",
    as_json: Json = False,
) -> None:
    """Run a program's vCPUs at once under many schedules, and look for one that no order of whole passes explains.

    A program without 'vcpu' lines is dealt out to two vCPUs.  Exit status 1 when a schedule breaks a clause.
    """
    from fuzz.concurrent import Concurrent
    from fuzz.engines.schedules import STRATEGIES, Explorer, simplify
    from fuzz.program import ProgramError

    if strategy not in (*STRATEGIES, "all", None):
        raise UsageError(f"unknown strategy {strategy!r}; there are: {', '.join(STRATEGIES)}, all")
    check_writable(output)
    try:
        concurrent = Concurrent(read(file, defect))
        if concurrent.parts.left_out:
            print(f"{file}: dealt out without {', '.join(concurrent.parts.left_out)}", file=sys.stderr)
        wanted = concurrent.parts.schedule if strategy is None else ""
        wanted = schedule if schedule is not None else wanted
        if schedule is not None or wanted:
            attempt = concurrent.attempt(wanted)
            if not as_json:
                print(_story(concurrent, attempt))
            else:
                print(json.dumps(_record(attempt), indent=2))
            raise typer.Exit(1 if attempt.broken is not None else 0)
    except ProgramError as error:
        raise UsageError(f"{file}: {error}") from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    found: dict[str, Attempt] = {}
    figures = {}
    for name in STRATEGIES if strategy in ("all", None) else (strategy,):
        explorer, start = Explorer(concurrent), monotonic()
        for attempt in explorer.attempts(name, runs, seed, depth, preemptions):
            if sys.stderr.isatty():
                print(f"{name}: {explorer.explored.schedules} schedules", end="\r", file=sys.stderr)
            if attempt.broken is not None and attempt.broken.clause not in found:
                found[attempt.broken.clause] = simplify(concurrent, attempt)
        done = explorer.explored
        figures[name] = {
            "schedules": done.schedules,
            "skipped": done.skipped,
            "complete": done.complete,
            "seconds": round(monotonic() - start, 2),
        }
        if not as_json:
            whole = f", all with at most {preemptions} preemptions" if done.complete else ""
            skipped = f", {done.skipped} skipped that are like others" if done.skipped else ""
            print(f"{name}: {done.schedules} schedules in {monotonic() - start:.1f} s{skipped}{whole}")
    if as_json:
        print(json.dumps({"strategies": figures, "findings": [_record(one) for one in found.values()]}, indent=2))
    else:
        for one in found.values():
            print(f"\n{_story(concurrent, one)}")
        print(f"{len(found)} findings")
    if output is not None and found:
        output.write_text(_with_schedule(concurrent, next(iter(found.values()))), encoding="utf-8")
    raise typer.Exit(1 if found else 0)


def _record(attempt: "Attempt") -> dict[str, object]:
    broken = attempt.broken
    return {
        "schedule": attempt.schedule,
        "clause": broken.clause if broken is not None else None,
        "what": broken.what if broken is not None else None,
        "answers": [[str(answer) for answer in answers] for answers in attempt.run.results],
    }


def _story(concurrent: "Concurrent", attempt: "Attempt") -> str:
    """Who did what in which order, and what is wrong with it."""
    from fuzz.program import format_op

    lines, last, counts = [], -1, [0] * len(concurrent.parts.vcpus)
    for point in attempt.run.points:
        if point.kind == "call":
            operation = concurrent.parts.vcpus[point.vcpu][counts[point.vcpu]]
            answers = attempt.run.results[point.vcpu]
            at = counts[point.vcpu]
            answer = str(answers[at]) if at < len(answers) else "no answer"
            lines.append(f"{point.step:5} vCPU {point.vcpu}: {format_op(operation)}  # {answer}")
            counts[point.vcpu] += 1
        elif point.vcpu != last:
            lines.append(f"{point.step:5} vCPU {point.vcpu}: goes on at {point.kind} {point.what}".rstrip())
        last = point.vcpu
    lines.append(f"schedule: {attempt.schedule or '(one after the other)'}")
    lines.append(f"broken: {attempt.broken}" if attempt.broken is not None else "nothing is broken")
    return "\n".join(lines)


def _with_schedule(concurrent: "Concurrent", attempt: "Attempt") -> str:
    """The program, its vCPUs and the schedule in one text."""
    from fuzz.program import MAGIC, format_bench, format_op

    lines = [MAGIC, format_bench(concurrent.program.bench), *map(format_op, concurrent.parts.before)]
    for vcpu, ops in enumerate(concurrent.parts.vcpus):
        domid = concurrent.parts.domains[vcpu]
        lines += [f"vcpu {vcpu}", *([f"as domain={domid}"] if domid else []), *map(format_op, ops)]
    if attempt.schedule:
        lines.append(f"schedule order={attempt.schedule.replace(' ', ',')}")
    return "\n".join([*lines, ""])

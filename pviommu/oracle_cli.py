# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu oracle``: let models that nobody here wrote judge our hardware and software halves.

Exit status 0: everything agreed; 1: a disagreement was found; 2: wrong usage, or the model is not installed.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from oracle.campaign import Limits, Mistake
from oracle.catalogue import CATALOGUE, Entry
from oracle.outcome import Outcome
from oracle.process import ModelMissing
from oracle.program import ProgramError, from_text
from oracle.report import summary, tell
from pviommu.options import Json, UsageError, finite

PROGRESS_SECONDS: Final = 2.0
LOG_SECONDS: Final = 30.0
"""The same where nobody watches."""

app = typer.Typer(help="Judge both halves by independent models of the hardware.", no_args_is_help=True)


@app.command("list")
def list_oracles(as_json: Json = False) -> None:
    """List the oracles, what they judge, whether they can run here, and the directed programs that they begin with."""
    rows = [(entry, why, () if why else entry.directed()) for entry in CATALOGUE.values() for why in (entry.missing(),)]
    if as_json:
        listed = [
            {
                "name": entry.name,
                "judges": entry.judges,
                "missing": why or None,
                "directed": {one.name: one.about for one in directed},
            }
            for entry, why, directed in rows
        ]
        print(json.dumps(listed, indent=2))
        return
    width = max(len(name) for name in CATALOGUE)
    indented = max((len(one.name) for _, _, directed in rows for one in directed), default=0)
    for entry, why, directed in rows:
        print(f"{entry.name:{width}}  {entry.judges}" + (f" (not here: {why})" if why else ""))
        for one in directed:
            print(f"{'':{width}}    {one.name:{indented}}  {one.about}")


@app.command("run")
def run_oracle(
    name: Annotated[str, typer.Argument(help="An oracle of `pviommu oracle list`.")],
    seconds: Annotated[
        float | None,
        typer.Option("--time", min=0, callback=finite, help="Seconds of random programs; 20 if --probes is not given."),
    ] = None,
    probes: Annotated[int | None, typer.Option(min=1, help="Stop when so many accesses have been checked.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the programs; equal seeds give equal programs.")] = 0,
    first: Annotated[
        int, typer.Option("--from", min=0, help="Go on at this machine of the seed; an interrupted run names it.")
    ] = 0,
    only: Annotated[str | None, typer.Option(help="Run this directed program of `pviommu oracle list` alone.")] = None,
    as_json: Json = False,
    replay: Annotated[
        str | None, typer.Option(help="Run the program in this file ('-': standard input) instead.")
    ] = None,
) -> None:
    """Run an oracle.  Exit status 1 if it disagrees with us, 2 if its model is not installed, 130 if interrupted."""
    entry = CATALOGUE.get(name)
    if entry is None:
        raise UsageError(f"unknown oracle {name!r}; there are: {', '.join(CATALOGUE)}")
    try:
        entry.needs()
        if only is not None:
            outcome = _run_only(entry, only)
        elif replay is None:
            if seconds is None and probes is None:
                seconds = 20.0
            limits = Limits(seed, first, _or_infinity(seconds), _or_infinity(probes))
            outcome = entry.run(limits, _progress(as_json, limits))
        else:
            outcome = _replay(entry, replay)
    except ModelMissing as missing:
        raise UsageError(str(missing)) from None
    except (Mistake, ProgramError) as mistake:
        raise UsageError(str(mistake)) from None
    if as_json:
        print(json.dumps(outcome.as_dict(), indent=2))
    else:
        for finding in outcome.findings:
            print(tell(outcome, finding), end="\n\n")
        print(summary(outcome))
    raise typer.Exit(1 if outcome.findings else 130 if outcome.interrupted else 0)


def _or_infinity(limit: float | None) -> float:
    return math.inf if limit is None else limit


@app.command("guards")
def guards(as_json: Json = False) -> None:
    """Plant a wrong bit in every field that our drivers write, and show which oracle notices which.

    Exit status 1 if one goes unnoticed.
    """
    from oracle.guards import notice, table
    from oracle.plants import plants

    rows = [(plant, notice(plant)) for plant in plants()]
    unguarded = [plant for plant, row in rows if not any(row.values())]
    if as_json:
        print(json.dumps([{"structure": p.structure, "field": p.field, "noticed": row} for p, row in rows], indent=2))
    else:
        print(table(rows))
    for plant in unguarded:
        print(f"pviommu: nobody notices {plant}", file=sys.stderr)
    raise typer.Exit(1 if unguarded else 0)


def _run_only(entry: Entry, name: str) -> Outcome:
    directed = {one.name: one.program for one in entry.directed()}
    if entry.replay is None or name not in directed:
        known = ", ".join(directed) or "none"
        raise UsageError(f"{entry.name} has no directed program {name!r}; there are: {known}")
    return entry.replay(directed[name])


def _replay(entry: Entry, source: str) -> Outcome:
    if entry.replay is None:
        raise UsageError(f"{entry.name} runs no programs")
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{source}: {error}") from None
    return entry.replay(from_text(text))


def _progress(quiet: bool, limits: Limits) -> Callable[[Outcome], None]:
    """Says on standard error how far a run is, every now and then."""
    started = last = time.monotonic()
    every = PROGRESS_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    goal = f" of {limits.probes:,}" if limits.probes < math.inf else ""

    def tell_now(outcome: Outcome) -> None:
        nonlocal last
        now = time.monotonic()
        if quiet or now - last < every:
            return
        last = now
        print(
            f"{outcome.oracle}: {now - started:4.0f} s, machine {outcome.next}, {outcome.checked:,}{goal} checked, "
            f"{len(outcome.findings)} disagreements",
            file=sys.stderr,
        )

    return tell_now

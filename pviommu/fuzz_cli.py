# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu fuzz``: campaigns.  Exit status 1 when a clause is broken."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pviommu.options import Backends, Json, Profile, Seed, UsageError, backend_list, make_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from fuzz.campaign import Progress


def fuzz(
    profile: Profile = "v7-fixed",
    backend: Backends = "both",
    time: Annotated[float, typer.Option(min=0.1, help="Seconds.")] = 60.0,
    jobs: Annotated[int | None, typer.Option(min=1, help="Workers; default is one for each core.")] = None,
    seed: Seed = 0,
    engine: Annotated[
        str, typer.Option(help="How programs are chosen: swarm, greybox, ...; an unknown name lists them.")
    ] = "swarm",
    against: Annotated[
        str,
        typer.Option(help="Backend or profile that --engine differential compares with; default: the other backend."),
    ] = "",
    corpus: Annotated[Path, typer.Option(help="Directory of the campaign; an existing one is continued.")] = Path(
        "fuzz-campaign"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Refuse to start a new campaign.")] = False,
    stop_on_first: Annotated[bool, typer.Option("--stop-on-first", help="End with the first finding.")] = False,
    as_json: Json = False,
) -> None:
    """Fuzz the hypercalls of a profile, with DMA, in parallel; findings are shrunk and written to a directory each."""
    from fuzz import campaign
    from fuzz.engines.engine import ENGINES
    from hypervisor import profile as profiles
    from testbed import backends

    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}; there are: {', '.join(ENGINES)}")
    if against and (engine != "differential" or against not in (*backends.names(), *profiles.names())):
        raise UsageError(
            f"--against takes a backend or a profile and --engine differential; there are: "
            f"{', '.join((*backends.names(), *profiles.names()))}"
        )
    names = backend_list(backend)
    make_config(names[0], profile, None, seed)
    if resume and not (corpus / "campaign.sqlite").exists():
        raise UsageError(f"{corpus} holds no campaign to resume")
    live = not as_json and sys.stderr.isatty()
    try:
        progress = campaign.run(
            names,
            profile,
            corpus,
            seconds=time,
            jobs=jobs or os.cpu_count() or 1,
            seed=seed,
            engine=engine,
            against=against,
            stop_on_first=stop_on_first,
            watch=_status() if live else None,
        )
    except OSError as error:
        raise UsageError(f"{corpus}: {error}") from None
    if as_json:
        found = [
            {"clause": c, "op": v, "errno": e, "events": what, "path": path}
            for (c, v, e, what), path in progress.findings.items()
        ]
        totals = {"programs": progress.programs, "ops": progress.ops, "seconds": round(progress.seconds, 2)}
        print(json.dumps({**totals, "workers_lost": progress.lost, "findings": found}, indent=2))
    else:
        print(_line(progress))
        for key, path in progress.findings.items():
            print(f"{' '.join(key)}: {path}")
    raise typer.Exit(3 if progress.lost else 1 if progress.findings else 0)


def _status() -> "Callable[[Progress], None]":
    from rich.console import Console

    console = Console(stderr=True)
    return lambda progress: console.print(_line(progress), end="\r", highlight=False)


def _line(progress: "Progress") -> str:
    rate = progress.ops / progress.seconds if progress.seconds else 0
    return (
        f"{progress.seconds:.0f} s: {progress.programs} programs, {progress.ops} operations ({rate:.0f}/s), "
        f"{progress.coverage} pairs of operation and answer, {len(progress.findings)} findings"
    )

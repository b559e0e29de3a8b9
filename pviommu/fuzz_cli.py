# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu fuzz``: campaigns.  Exit status 1 when a clause is broken."""

import json
import os
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pviommu.options import Backends, Defects, Json, Profile, Tried, UsageError, backend_list, finite, make_config

if TYPE_CHECKING:
    from fuzz.campaign import Progress


def fuzz(
    context: typer.Context,
    profile: Profile = "v7-fixed",
    backend: Backends = "both",
    time: Annotated[float, typer.Option(min=0.1, callback=finite, help="Seconds.")] = 60.0,
    jobs: Annotated[int | None, typer.Option(min=1, help="Workers; default is one for each core.")] = None,
    seed: Tried = 0,
    engine: Annotated[
        str, typer.Option(help="How programs are chosen: swarm, greybox, ...; an unknown name lists them.")
    ] = "swarm",
    against: Annotated[
        str,
        typer.Option(
            help="What --engine differential compares with: a backend, a profile, a driver, or 'specification'.  "
            "[default: the other backend]"
        ),
    ] = "",
    corpus: Annotated[Path, typer.Option(help="Directory of the campaign; an existing one is continued.")] = Path(
        "fuzz-campaign"
    ),
    level: Annotated[
        str, typer.Option(help="typed or raw hypercalls, or driver: what a guest kernel asks of its driver.")
    ] = "typed",
    driver: Annotated[str, typer.Option(help="At driver level: which driver (pviommu driver list).")] = "reference",
    machine: Annotated[
        str, typer.Option(help="What the machine is like (docs/fuzzing.md); an unknown name lists them.")
    ] = "usual",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the campaign in --corpus, as it was started.")
    ] = False,
    max_ops: Annotated[
        int | None, typer.Option(min=1, help="Operations of each worker at most; default: as --time allows.")
    ] = None,
    defect: Defects = "",
    scheduler: Annotated[
        str, typer.Option(help="Address of a dask scheduler, as tcp://host:8786: its workers fuzz instead of --jobs.")
    ] = "",
    stop_on_first: Annotated[
        bool, typer.Option("--stop-on-first", help="End with the first finding of this run.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fuzz the hypercalls of a profile, with DMA, in parallel; findings are shrunk and written to a directory each."""
    from fuzz import campaign
    from fuzz.engines.engine import ENGINES, make
    from fuzz.program import LEVELS, ProgramError
    from fuzz.run import SPECIFICATION
    from guest_driver import drivers
    from hypervisor import profile as profiles
    from testbed import backends

    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}; there are: {', '.join(ENGINES)}")
    others = (SPECIFICATION, *backends.names(), *profiles.names(), *drivers.names())
    if against and (engine != "differential" or against not in others):
        raise UsageError(
            f"--against takes a backend, a profile, a driver or {SPECIFICATION!r}, and --engine differential; "
            f"there are: {', '.join(others)}"
        )
    if against == SPECIFICATION and level == "driver":
        raise UsageError(f"--against {SPECIFICATION} is for hypercalls; at driver level there is another driver")
    if against in drivers.names() and level != "driver":
        raise UsageError(f"--against {against} is a driver, and compared at --level driver")
    if driver != "reference" and level != "driver" and not resume:
        raise UsageError(f"--driver {driver} takes --level driver: at {level} level there is no driver")
    if scheduler and not re.fullmatch(r"[a-z]+://[^/\s]+:[0-9]+", scheduler):
        raise UsageError(f"--scheduler takes an address as tcp://host:8786, not {scheduler!r}")
    if level not in LEVELS:
        raise UsageError(f"unknown level {level!r}; there are: {', '.join(LEVELS)}")
    if engine in ("raw", "together") and level == "driver":
        raise UsageError(
            f"--engine {engine} is for hypercalls: at driver level a guest kernel makes them, and there are swarm, "
            "greybox and differential"
        )
    names = backend_list(backend)
    if resume:
        kept = _options(corpus)
        given: dict[str, Any] = {
            "profile": profile,
            "backends": names,
            "engine": engine,
            "against": against,
            "level": level,
            "driver": driver,
            "seed": seed,
            "defects": defect,
            "machine": machine,
        }
        _check_same(context, corpus, given, kept)
        time = time if _is_given(context, "time") else kept["seconds"]
        jobs = jobs if _is_given(context, "jobs") else kept["jobs"]
        max_ops = max_ops if _is_given(context, "max_ops") else kept["max_ops"]
        names, profile, engine, against = kept["backends"], kept["profile"], kept["engine"], kept["against"]
        level, driver, seed = kept["level"], kept["driver"], kept["seed"]
        defect, machine = kept.get("defects", ""), kept.get("machine", machine)
    names = _with_machine(names, machine, profile, level)
    for name in names:
        make_config(name, profile, None, seed, defect)
    try:
        version = drivers.get(driver)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if level == "driver" and not version.speaks(profiles.get(profile).abi):
        spoken = [name for name in profiles.names() if version.speaks(profiles.get(name).abi)]
        raise UsageError(f"{driver} does not speak the ABI of {profile}; it speaks that of {', '.join(spoken)}")
    try:
        make(engine, list(campaign.over_which(names, profile, level, driver, machine, against, defect)), seed)
    except ProgramError as error:  # of a combination that there is not: here in a line, and not in each worker
        raise UsageError(str(error)) from None
    try:
        with _Status(sys.stderr.isatty() and not as_json) as status:
            progress = campaign.run(
                names,
                profile,
                corpus,
                seconds=time,
                jobs=jobs or os.cpu_count() or 1,
                seed=seed,
                engine=engine,
                against=against,
                level=level,
                driver=driver,
                machine=machine,
                defects=defect,
                stop_on_first=stop_on_first,
                max_ops=max_ops,
                scheduler=scheduler,
                watch=status.show,
            )
    except KeyboardInterrupt:
        print(f"pviommu: stopped; pviommu fuzz --resume --corpus {corpus} goes on", file=sys.stderr)
        raise
    except ModuleNotFoundError as error:
        if error.name not in ("distributed", "dask"):
            raise
        raise UsageError(f"--scheduler needs {error.name}: python -m pip install -e '.[cluster]'") from None
    except OSError as error:
        raise UsageError(f"{scheduler or corpus}: {error}") from None
    except sqlite3.Error as error:
        raise UsageError(f"{corpus / 'campaign.sqlite'}: {error}") from None
    if as_json:
        print(json.dumps(_record(progress), indent=2))
    else:
        print(_line(progress))
        for key, path in progress.findings.items():
            names_of = progress.names.get(path, ())
            print(f"{' '.join(key)} [{', '.join(names_of) or 'new'}]: {path}")
    raise typer.Exit(3 if progress.lost else 1 if progress.findings else 0)


def _with_machine(names: list[str], machine: str, profile: str, level: str) -> list[str]:
    """Those of the backends ``names`` that there is such a machine of."""
    from fuzz import machines
    from hypervisor import profile as profiles

    try:
        there, abi = machines.get(machine), profiles.get(profile).abi
    except ValueError as error:
        raise UsageError(str(error)) from None
    if machine != machines.USUAL and level == "driver":
        raise UsageError("--machine is for hypercalls; at driver level the machine is the usual one")
    if not there.is_for(abi):
        raise UsageError(f"--machine {machine} tells guests of v1 to v3 something; those of {profile} call init")
    found = [name for name in names if there.is_of(name)]
    if not found:
        raise UsageError(f"--machine {machine} is of {' and '.join(there.backends)}, not of {' and '.join(names)}")
    return found


def _check_same(context: typer.Context, corpus: Path, given: "dict[str, Any]", kept: "dict[str, Any]") -> None:
    """``UsageError`` for an option on the command line that is not what the campaign was started with."""
    for name, value in given.items():
        option = name.removesuffix("s")
        if _is_given(context, option) and value != kept.get(name, value):
            raise UsageError(
                f"--resume goes on as {corpus} was started, and that was not with this --{option}; "
                "without --resume the campaign goes on with other options"
            )


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _options(corpus: Path) -> "dict[str, Any]":
    """What the campaign in ``corpus`` was started with."""
    from fuzz.store import Store

    if not (corpus / "campaign.sqlite").exists():
        raise UsageError(f"{corpus} holds no campaign to resume")
    try:
        with closing(Store(corpus)) as store:
            found = store.options()
    except (OSError, sqlite3.Error) as error:
        raise UsageError(f"{corpus / 'campaign.sqlite'}: {error}") from None
    if not found:
        raise UsageError(f"{corpus} does not say how it was started")
    return found


def _record(progress: "Progress") -> "dict[str, Any]":
    from abi.errno import errno_name
    from fuzz.events import names

    found = [
        {"clause": c, "op": v, "errno": e, "events": what, "path": path, "catalogue": progress.names.get(path, ())}
        for (c, v, e, what), path in progress.findings.items()
    ]
    coverage = [
        {"op": verb, "errno": errno_name(errno), "events": names(events), "times": times}
        for (verb, errno, events), times in sorted(progress.outcomes.items())
    ]
    return {
        "programs": progress.programs,
        "ops": progress.ops,
        "seconds": round(progress.seconds, 2),
        "workers_lost": progress.lost,
        "workers_killed": progress.killed,
        "workers_outgrown": progress.outgrown,
        "unconfirmed": progress.unconfirmed,
        "findings": found,
        "coverage": coverage,
    }


class _Status:
    """A live picture on a terminal: rates, outcomes by operation, findings; nothing where nobody looks."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._live: Any = None

    def __enter__(self) -> "_Status":
        if self._wanted:
            from rich.live import Live

            self._live = Live(refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: "Progress") -> None:
        if self._live is not None:
            self._live.update(_picture(progress))


def _picture(progress: "Progress") -> "Any":
    """The status as a table: an operation a row, its answers with how often, and what happened meanwhile."""
    from collections import Counter

    from rich.console import Group
    from rich.table import Table

    from abi.errno import errno_name
    from fuzz.events import EVENTS

    table = Table(box=None, pad_edge=False)
    for title in ("operation", "times", "answers", "events"):
        table.add_column(title, no_wrap=title != "answers")
    answers: dict[str, Counter[str]] = {}
    events: dict[str, set[str]] = {}
    for (verb, errno, mask), times in progress.outcomes.items():
        answers.setdefault(verb, Counter())[errno_name(errno)] += times
        events.setdefault(verb, set()).update(word for bit, word in EVENTS.items() if mask & bit)
    for verb in sorted(answers):
        said = " ".join(f"{answer}:{times}" for answer, times in answers[verb].most_common(8))
        table.add_row(verb, str(answers[verb].total()), said, " ".join(sorted(events[verb])))
    lines = [_line(progress), *(" ".join(key) for key in list(progress.findings)[-8:])]
    return Group(table, *lines)


def _line(progress: "Progress") -> str:
    seconds = progress.seconds or 1
    earlier = f" (earlier runs: {progress.earlier[1]} operations)" if progress.earlier[0] else ""
    killed = f", {progress.killed} workers killed and replaced" if progress.killed else ""
    outgrown = f", {progress.outgrown} workers out of memory and replaced" if progress.outgrown else ""
    unconfirmed = f", {progress.unconfirmed} unconfirmed" if progress.unconfirmed else ""
    return (
        f"{progress.seconds:.0f} s: {progress.programs} programs ({progress.programs / seconds:.0f}/s), "
        f"{progress.ops} operations ({progress.ops / seconds:.0f}/s){earlier}, {progress.coverage} outcomes "
        f"(operation, answer, events), {len(progress.findings)} findings{unconfirmed}{killed}{outgrown}"
    )

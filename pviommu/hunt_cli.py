# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu hunt``: every catalogued defect alone, and how soon it is found.  Exit status 1 when one is not."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pviommu.options import Json, Tried, UsageError, check_writable, finite

if TYPE_CHECKING:
    from fuzz.hunt import Hunt


def hunt(
    time: Annotated[float, typer.Option(min=0.1, callback=finite, help="Seconds for each defect at most.")] = 60.0,
    jobs: Annotated[int | None, typer.Option(min=1, help="Defects at a time; default is one for each core.")] = None,
    seed: Tried = 0,
    defect: Annotated[list[str] | None, typer.Option(help="Only this defect; may be repeated.")] = None,
    shrink: Annotated[bool, typer.Option(help="Shrink what is found.")] = True,
    read: Annotated[
        list[Path] | None, typer.Option(help="Hunt nothing, but put together what hunts wrote (*.json).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write the table here: as JSON (*.json), a page (*.md), or text.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what --out *.json holds of this seed.")] = False,
    as_json: Json = False,
) -> None:
    """Switch every defect of both catalogues on alone in a fixed profile, and fuzz until it is found.

    Exit status 1 if one is not.
    """
    from fuzz.hunt import quarries
    from fuzz.hunt_pool import hunt as look
    from fuzz.hunt_table import conclusion, line, row, summary

    try:
        over = quarries(defect)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if resume and (out is None or out.suffix != ".json"):
        raise UsageError("--resume goes on with what --out FILE.json holds")
    if read and (defect or resume):
        raise UsageError("--read puts together all that hunts wrote: it takes neither --defect nor --resume")
    hunts: list[Hunt] = []
    if read:
        time, hunts = _read(read)
    elif resume and out is not None and out.exists():
        hunts = [hunt for hunt in _read([out])[1] if hunt.seed == seed]
    check_writable(out)
    order = [quarry.defect for quarry in quarries()]
    done = {hunt.defect for hunt in hunts}
    left = [] if read else [quarry for quarry in over if quarry.defect not in done]
    try:
        for result in look(left, time, seed, jobs or os.cpu_count() or 1, shrink, _say):
            hunts.append(result)
            if not as_json:
                print(line(row(result)), flush=True)
    except KeyboardInterrupt:
        _write(out, hunts, seed, time)
        how = f"stopped after {len(hunts)} of {len(over)}; with --out FILE.json, --resume goes on"
        _say(how)
        raise
    if not read:
        hunts.sort(key=lambda hunt: order.index(hunt.defect))
    _write(out, hunts, seed, time, [path.name for path in read or ()])
    totals = summary(hunts)
    print(_document(hunts, seed, time) if as_json else conclusion(totals))
    raise typer.Exit(1 if totals.missed else 0)


def _say(what: str) -> None:
    print(f"pviommu: {what}", file=sys.stderr, flush=True)


def _document(hunts: "list[Hunt]", seed: int, seconds: float) -> str:
    """Hunts as JSON."""
    from fuzz.hunt_table import summary

    every = [asdict(hunt) for hunt in hunts]
    return json.dumps({"seed": seed, "seconds": seconds, **asdict(summary(hunts)), "hunts": every}, indent=2)


def _write(out: Path | None, hunts: "list[Hunt]", seed: int, seconds: float, files: Sequence[str] = ()) -> None:
    """Hunts as the file's name says."""
    from fuzz.hunt_table import page, table

    if out is None:
        return
    if out.suffix == ".json":
        text = _document(hunts, seed, seconds) + "\n"
    else:
        text = page(hunts, seconds, files) if out.suffix == ".md" else table(hunts)
    out.write_text(text, encoding="utf-8")


def _read(files: list[Path]) -> "tuple[float, list[Hunt]]":
    """What hunts wrote: (seconds for each entry, hunts); ``UsageError`` for a file that none did."""
    from fuzz.hunt import Hunt

    seconds = 0.0
    hunts: list[Hunt] = []
    for path in files:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            seconds = max(seconds, document["seconds"])
            hunts.extend(Hunt(**each) for each in document["hunts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is nothing that a hunt wrote: {error}") from None
    return seconds, hunts

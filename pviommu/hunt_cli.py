# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu hunt``: every catalogued defect alone, and how soon it is found.  Exit status 1 when one is not."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pviommu.options import Json, Seed, UsageError, check_writable, finite

if TYPE_CHECKING:
    from fuzz.hunt import Hunt


def hunt(
    time: Annotated[float, typer.Option(min=0.1, callback=finite, help="Seconds for each defect at most.")] = 60.0,
    jobs: Annotated[int | None, typer.Option(min=1, help="Defects at a time; default is one for each core.")] = None,
    seed: Seed = 0,
    defect: Annotated[list[str] | None, typer.Option(help="Only this defect; may be repeated.")] = None,
    shrink: Annotated[bool, typer.Option(help="Shrink what is found.")] = True,
    read: Annotated[
        list[Path] | None, typer.Option(help="Hunt nothing, but put together what hunts wrote (*.json).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write the table here: as JSON (*.json), a page (*.md), or text.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Switch every defect of both catalogues on alone in a fixed profile, and fuzz until it is found.

    Exit status 1 if one is not.
    """
    from fuzz.hunt import hunt as look
    from fuzz.hunt import quarries
    from fuzz.hunt_table import conclusion, line, page, row, summary, table

    try:
        over = quarries(defect)
    except ValueError as error:
        raise UsageError(str(error)) from None
    check_writable(out)
    hunts: list[Hunt] = []
    if read:
        time, hunts = _read(read)
    else:
        for result in look(over, time, seed, jobs or os.cpu_count() or 1, shrink):
            hunts.append(result)
            if not as_json:
                print(line(row(result)), flush=True)
        order = [quarry.defect for quarry in over]
        hunts.sort(key=lambda hunt: order.index(hunt.defect))
    totals = summary(hunts)
    document = json.dumps(
        {"seed": seed, "seconds": time, **asdict(totals), "hunts": [asdict(h) for h in hunts]}, indent=2
    )
    if out is not None:
        forms = {".json": lambda: document + "\n", ".md": lambda: page(hunts, time, [path.name for path in read or ()])}
        out.write_text(forms.get(out.suffix, lambda: table(hunts))(), encoding="utf-8")
    print(document if as_json else conclusion(totals))
    raise typer.Exit(1 if totals.missed else 0)


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

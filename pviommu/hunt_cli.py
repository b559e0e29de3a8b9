# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu hunt``: every catalogued defect alone, and how soon it is found.  Exit status 1 when one is not."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pviommu.options import Json, Seed, UsageError

if TYPE_CHECKING:
    from fuzz.hunt import Hunt, Summary

_HEAD = ("defect", "side", "found", "time", "cpu", "programs", "operations", "length", "clause")


def hunt(
    time: Annotated[float, typer.Option(min=0.1, help="Seconds for each defect at most.")] = 60.0,
    jobs: Annotated[int | None, typer.Option(min=1, help="Defects at a time; default is one for each core.")] = None,
    seed: Seed = 0,
    defect: Annotated[list[str] | None, typer.Option(help="Only this defect; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the table here, as text (or JSON: *.json).")] = None,
    as_json: Json = False,
) -> None:
    """Switch every defect of both catalogues on alone in a fixed profile, and fuzz until it is found.

    Exit status 1 if one is not.
    """
    from fuzz.hunt import hunt as look
    from fuzz.hunt import quarries, summary

    try:
        over = quarries(defect)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if out is not None:
        out.write_text("", encoding="utf-8")  # an unwritable place is known now, not in an hour
    hunts: list[Hunt] = []
    for result in look(over, time, seed, jobs or os.cpu_count() or 1):
        hunts.append(result)
        if not as_json:
            print(_line(_row(result)), flush=True)
    order = [quarry.defect for quarry in over]
    hunts.sort(key=lambda hunt: order.index(hunt.defect))
    totals = summary(hunts)
    document = json.dumps(
        {"seed": seed, "seconds": time, **asdict(totals), "hunts": [asdict(h) for h in hunts]}, indent=2
    )
    if out is not None:
        out.write_text(document + "\n" if out.suffix == ".json" else _table(hunts, totals), encoding="utf-8")
    print(document if as_json else _conclusion(totals))
    raise typer.Exit(1 if totals.missed else 0)


def _row(hunt: "Hunt") -> tuple[str, ...]:
    if hunt.out_of_sight:
        return hunt.defect, hunt.side, "not hunted", "", "", "", "", "", hunt.out_of_sight
    return (
        *(hunt.defect, hunt.side, "yes" if hunt.found else "NO", f"{hunt.seconds:.1f} s", f"{hunt.cpu:.1f} s"),
        *(str(hunt.programs), str(hunt.ops), str(hunt.length) if hunt.found else "", hunt.clause),
    )


def _line(row: tuple[str, ...]) -> str:
    widths = (8, 10, 10, 8, 8, 8, 10, 6)
    return " ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]).rstrip()


def _table(hunts: "list[Hunt]", totals: "Summary") -> str:
    lines = [_line(_HEAD), *(_line(_row(hunt)) for hunt in hunts), "", _conclusion(totals), ""]
    for hunt in hunts:
        if hunt.program:
            lines.extend([f"## {hunt.defect}: {hunt.title}", "", hunt.program])
    return "\n".join(lines)


def _conclusion(totals: "Summary") -> str:
    missed = f"missed: {', '.join(totals.missed)}" if totals.missed else "none missed"
    return (
        f"{totals.hunted} hunted, {missed}; {len(totals.out_of_sight)} not hunted ({', '.join(totals.out_of_sight)}); "
        f"median {totals.median_seconds:.1f} s ({totals.median_cpu:.1f} s of processor time), "
        f"slowest {totals.slowest}; median length {totals.median_length:g}, longest {totals.longest}"
    )

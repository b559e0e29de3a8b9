# SPDX-License-Identifier: GPL-2.0-or-later
"""What hunts came to: in numbers, as a table of one hunt, as a page about hunts with several seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from fuzz.hunt import Hunt


@dataclass(frozen=True, slots=True)
class Summary:
    """Hunts in numbers; times in seconds, lengths in operations."""

    hunted: int
    missed: tuple[str, ...]
    out_of_sight: tuple[str, ...]
    median_seconds: float
    median_cpu: float
    slowest: str
    median_length: float
    longest: str


def summary(hunts: Sequence[Hunt]) -> Summary:
    """What hunts came to, entry by entry and seed by seed."""
    tried = [hunt for hunt in hunts if not hunt.out_of_sight]
    found = [hunt for hunt in tried if hunt.found]
    short = [hunt for hunt in found if hunt.length]
    slow = max(found, key=lambda hunt: hunt.cpu, default=None)
    long = max(short, key=lambda hunt: hunt.length, default=None)
    return Summary(
        len(tried),
        tuple(dict.fromkeys(hunt.defect for hunt in tried if not hunt.found)),
        tuple(dict.fromkeys(hunt.defect for hunt in hunts if hunt.out_of_sight)),
        median([hunt.seconds for hunt in found]) if found else 0.0,
        median([hunt.cpu for hunt in found]) if found else 0.0,
        f"{slow.defect} ({slow.seconds:.1f} s, {slow.cpu:.1f} s of processor time)" if slow is not None else "none",
        median([hunt.length for hunt in short]) if short else 0,
        f"{long.defect} ({long.length} operations)" if long is not None else "none",
    )


def conclusion(totals: Summary) -> str:
    """A summary in a line."""
    missed = f"missed: {', '.join(totals.missed)}" if totals.missed else "none missed"
    lengths = f"; median length {totals.median_length:g}, longest {totals.longest}" if totals.median_length else ""
    unseen = totals.out_of_sight
    left_out = f"; {len(unseen)} not hunted ({', '.join(unseen)})" if unseen else ""
    return (
        f"{totals.hunted} hunted, {missed}{left_out}; "
        f"median {totals.median_seconds:.1f} s ({totals.median_cpu:.1f} s of processor time), "
        f"slowest {totals.slowest}{lengths}"
    )


# ------------------------------------------------------------------------------------------------------------- a table

_HEAD: Final = ("defect", "side", "found", "time", "cpu", "programs", "operations", "length", "clause")
_WIDTHS: Final = (8, 10, 10, 8, 8, 8, 10, 6)


def row(hunt: Hunt) -> tuple[str, ...]:
    """The cells of one hunt."""
    if hunt.out_of_sight:
        return hunt.defect, hunt.side, "not hunted", "", "", "", "", "", hunt.out_of_sight
    length = str(hunt.length) if hunt.length else ""
    return (
        *(hunt.defect, hunt.side, "yes" if hunt.found else "NO", f"{hunt.seconds:.1f} s", f"{hunt.cpu:.1f} s"),
        *(str(hunt.programs), str(hunt.ops), length, hunt.clause),
    )


def line(cells: tuple[str, ...]) -> str:
    """Cells under each other."""
    return " ".join([*(cell.ljust(width) for cell, width in zip(cells, _WIDTHS)), cells[-1]]).rstrip()


def table(hunts: Sequence[Hunt]) -> str:
    """All of it as text, with the programs."""
    lines = [line(_HEAD), *(line(row(hunt)) for hunt in hunts), "", conclusion(summary(hunts)), ""]
    for hunt in hunts:
        if hunt.program:
            lines.extend([f"## {hunt.defect}: {hunt.title}", "", hunt.program])
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------------- a page

_PAGE: Final = """<!-- SPDX-License-Identifier: GPL-2.0-or-later -->
# The hunt

What hunts with the seeds {seeds} came to, each of them

    pviommu hunt --time {limit:g} --seed N --out seedN.json

(some with `--no-shrink`, which changes nothing but that there are no lengths), put together by

    pviommu hunt {files}--out docs/hunt.md

Times are seconds of processor time until an entry was found, one worker for each: what one quiet core takes by the
clock.  *Median* and *worst* are over the seeds; *length* is that of the shrunk program in operations, median and
worst.

{conclusion}.

| entry | | found | median | worst | length | clause |
|---|---|---|---|---|---|---|
{rows}
"""


def page(hunts: Sequence[Hunt], seconds: float, files: Sequence[str] = ()) -> str:
    """Markdown, an entry a row."""
    tried: dict[str, list[Hunt]] = {}
    for hunt in hunts:
        if not hunt.out_of_sight:
            tried.setdefault(hunt.defect, []).append(hunt)
    unseen = {hunt.defect: hunt.out_of_sight for hunt in hunts if hunt.out_of_sight}
    text = _PAGE.format(
        limit=seconds,
        seeds=", ".join(map(str, sorted({hunt.seed for hunt in hunts}))),
        files="".join(f"--read {name} " for name in files),
        conclusion=conclusion(summary(hunts)),
        rows="\n".join(_entry(of_entry) for of_entry in tried.values()),
    )
    if not unseen:
        return text
    reasons = "".join(f"* {defect}: {reason}\n" for defect, reason in unseen.items())
    return f"{text}\nNot hunted, because they show on no machine of a program:\n\n{reasons}"


def _entry(hunts: Sequence[Hunt]) -> str:
    found = [hunt for hunt in hunts if hunt.found]
    times = [hunt.cpu for hunt in found]
    lengths = [hunt.length for hunt in found if hunt.length]
    clauses = sorted({hunt.clause for hunt in found})
    cells = (
        *(f"**{hunts[0].defect}**", hunts[0].title, f"{len(found)}/{len(hunts)}"),
        *((f"{median(times):.1f}", f"{max(times):.1f}") if times else ("", "")),
        f"{median(lengths):g}, {max(lengths)}" if lengths else "",
        ", ".join(clauses),
    )
    return "| " + " | ".join(cells) + " |"

# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m benchmarks``: run the subjects, print the table."""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Final

import typer

from benchmarks import abi_codec, dma, fuzzing, guest_dma, hypercalls, packets, scale, serve_iommufd, test_bed
from benchmarks.figures import Figure
from benchmarks.lean import Lean
from benchmarks.report import as_json, print_table
from hypervisor.defects.catalogue import get
from testbed.config import SWITCHED_ON

SUBJECTS: Final[dict[str, Callable[[float, Lean], Iterator[Figure]]]] = {
    "hypercalls": hypercalls.figures,
    "dma": dma.figures,
    "testbed": test_bed.figures,
    "codec": abi_codec.figures,
    "guest": guest_dma.figures,
    "packets": packets.figures,
    "fuzz": fuzzing.figures,
    "scale": scale.figures,
    "serve-iommufd": serve_iommufd.figures,
}
ON_DEMAND: Final = ("scale",)
"""Subjects that take minutes: measured when they are named."""
SECONDS: Final = 2.0
QUICK_SECONDS: Final = 0.3
"""For each figure."""


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"Subject to measure, repeatable: {', '.join(SUBJECTS)}.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure for a shorter time; the figures jump more.")] = False,
    defect: Annotated[
        str,
        typer.Option("--defect", help="Defects of the hypervisor, as T1,F6, in every test bed."),
    ] = "",
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure how fast the test bed is on one core."""
    chosen = only or [name for name in SUBJECTS if name not in ON_DEMAND]
    for name in chosen:
        if name not in SUBJECTS:
            raise typer.BadParameter(f"unknown subject {name!r}; there are: {', '.join(SUBJECTS)}")
    try:
        SWITCHED_ON.set(tuple(get(part.strip()).id for part in defect.split(",") if part.strip()))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    seconds = QUICK_SECONDS if quick else SECONDS
    lean = Lean(seconds / 10)
    found: list[Figure] = []
    for name in chosen:
        for figure in SUBJECTS[name](seconds, lean):
            found.append(figure)
            if sys.stderr.isatty():
                print(f"\r\033[K{figure.subject}: {figure.name}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    if json_output:
        print(json.dumps(as_json(found), indent=2))
    else:
        print_table(found)


if __name__ == "__main__":
    typer.run(main)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures as a table for people, and as JSON for programs."""

import platform
from collections.abc import Iterable
from typing import Any, Final

from benchmarks.figures import Figure

WIDTH: Final = 120
"""Columns for a table that no terminal limits."""


def as_json(figures: Iterable[Figure]) -> dict[str, Any]:
    """The report as plain data; numbers that do not exist are null."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "figures": [
            {
                "subject": figure.subject,
                "name": figure.name,
                "unit": figure.unit,
                "best": figure.best,
                "median": figure.median,
                "bar": figure.bar,
                "passed": figure.passed,
                "c": figure.lean,
                "times_slower_than_c": figure.ratio,
            }
            for figure in figures
        ],
    }


def print_table(figures: Iterable[Figure]) -> None:
    """One line a figure; rates in thousands and millions, and how many times as long as in C each takes."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"One core, {platform.python_implementation()} {platform.python_version()}: best and median run",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    for name in ("best", "median", "bar"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name in ("in C", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    last = ""
    for figure in figures:
        if figure.subject != last:
            table.add_row(f"[bold]{figure.subject}[/]")
        table.add_row(
            f"  {figure.name}",
            _number(figure.best),
            _number(figure.median),
            _number(figure.bar, "≥ " if figure.is_rate else "≤ "),
            figure.unit,
            {None: "", True: "[green]pass[/]", False: "[red]FAIL[/]"}[figure.passed],
            _number(figure.lean),
            "" if figure.ratio is None else f"1:{figure.ratio:.0f}",
        )
        last = figure.subject
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    console.print(table)


def _number(value: float | None, before: str = "") -> str:
    if value is None:
        return ""
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{before}{value / size:.3g}{suffix}"
    return f"{before}{value:.3g}"

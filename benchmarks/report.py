# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures as a table for people, and as JSON for programs."""

import platform
from collections.abc import Iterable
from typing import Any

from benchmarks.figures import Figure


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
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{platform.python_implementation()} {platform.python_version()}, one core")
    table.add_column("subject")
    table.add_column("figure")
    for name in ("best", "median", "bar"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    table.add_column("")
    table.add_column("C", justify="right")
    table.add_column("C is faster", justify="right")
    last = ""
    for figure in figures:
        if last not in ("", figure.subject):
            table.add_section()
        table.add_row(
            figure.subject if figure.subject != last else "",
            figure.name,
            _number(figure.best),
            _number(figure.median),
            _number(figure.bar, "≥ " if figure.is_rate else "≤ "),
            figure.unit,
            {None: "", True: "[green]pass[/]", False: "[red]FAIL[/]"}[figure.passed],
            _number(figure.lean),
            "" if figure.ratio is None else f"{figure.ratio:,.0f} x",
        )
        last = figure.subject
    Console().print(table)


def _number(value: float | None, before: str = "") -> str:
    if value is None:
        return ""
    return f"{before}{value:,.0f}" if value >= 100 else f"{before}{value:.3g}"

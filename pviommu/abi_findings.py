# SPDX-License-Identifier: GPL-2.0-or-later
"""How ``pviommu abi lint`` and ``diff`` look to a person."""

from collections import Counter

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from abi.lint import SEVERITIES, Finding, Rule
from pviommu.abi_view import console

_COLOUR = {"error": "red", "warning": "yellow", "note": "cyan"}
_SCOPE = {
    "header": "The header",
    "contract": "What is answered",
    "hypervisor": "The hypervisor's side, as posted",
    "driver": "The Linux driver posted with it",
}


def print_findings(version: str, found: list[Finding]) -> None:
    """Findings grouped by scope and rule; the rule, each place, and how to mend it."""
    out = console()
    for scope, heading in _SCOPE.items():
        mine = [f for f in found if f.scope == scope]
        if not mine:
            continue
        out.rule(f"[bold]{heading}[/]", align="left", style="dim")
        for name in dict.fromkeys(f.rule for f in mine):
            _print_rule(out, [f for f in mine if f.rule == name])
        out.print()
    counts = Counter(f.severity for f in found)
    total = ", ".join(f"{counts[s]} {s}{'s' if counts[s] > 1 else ''}" for s in SEVERITIES if counts[s])
    text = f"{version}: {total}" if found else f"{version}: nothing found"
    out.print(Text(text, style="bold" if found else "bold green"))


def _print_rule(out: Console, found: list[Finding]) -> None:
    first = found[0]
    colour = _COLOUR[first.severity]
    out.print(f"[{colour}]{first.severity}[/] [bold]{first.rule}[/]")
    rows = Table.grid(padding=(0, 2))
    rows.add_column(ratio=3, overflow="fold")
    rows.add_column(ratio=5, overflow="fold")
    for finding in found:
        rows.add_row(finding.place, finding.problem)
    out.print(Padding(rows, (0, 0, 0, 2)))
    out.print(Padding(Text.assemble(("mend: ", "green"), first.mend), (0, 0, 0, 2)))
    out.print(
        Padding(Text(f"asked for by {first.asked}" if " on " in first.asked else first.asked, "dim"), (0, 0, 0, 2))
    )


def print_rules(found: list[Rule]) -> None:
    out = console()
    for scope, heading in _SCOPE.items():
        out.rule(f"[bold]{heading}[/]", align="left", style="dim")
        rows = Table.grid(padding=(0, 2))
        for rule in (r for r in found if r.scope == scope):
            rows.add_row(f"[{_COLOUR[rule.severity]}]{rule.severity}[/]", rule.name, rule.doc)
        out.print(rows)


def print_mail(text: str) -> None:
    """A diff; headings stand out, the rest is as it would be mailed."""
    out = console()
    for line in text.splitlines():
        out.print(
            Text(line, style="bold" if line and not line.startswith(" ") and len(line) < 60 and line[-1] != "." else "")
        )

# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``pviommu run`` shows a person."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from base.units import format_sbdf
from machine.iommu.unit import Walk
from testbed import backends
from testbed.demonstrations import Blocked
from testbed.packets import Report
from testbed.stream import StreamReport

_KIB = 1024


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; yields the function that moves it to a count."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"packets, {title}", total=total)
        yield lambda count: progress.update(task, completed=count)


def print_reports(reports: list[Report], skipped: int, written: list[Path]) -> None:
    """One section a backend, the files that were written, then a line for all."""
    console = Console(highlight=False)
    if skipped:
        console.print(f"{skipped} frames of the capture were cut short or cannot be sent; left out")
    for report in reports:
        _print_report(console, report)
    for path in written:
        console.print(Text(f"wrote {path}"), soft_wrap=True)
    ok = all(report.ok for report in reports)
    streams = [report.stream for report in reports if report.stream is not None]
    packets = sum(part.packets_returned for part in reports) + sum(part.returned for part in streams)
    compared = sum(part.bytes_compared for part in reports) + sum(part.bytes_compared for part in streams)
    leaks = sum(abs(count) for report in reports for count in report.leaks.values())
    if ok:
        console.print(
            f"[bold green]clean[/]: {packets} packets returned, {compared:,} bytes compared equal, "
            f"{sum(len(r.blocked) for r in reports)} forbidden accesses blocked, {leaks} leaks"
        )
    else:
        console.print("[bold red]not clean[/]: see the failures and leaks above")


def _print_report(console: Console, report: Report) -> None:
    title = backends.get(report.backend).title
    console.rule(f"[bold]{title}[/], {report.profile}, {report.guest} dom0", align="left")
    console.print(Text(f"wire: {report.wire}"), soft_wrap=True)
    if report.packets_sent:
        console.print(
            f"{report.packets_returned} of {report.packets_sent} packets came back, every byte compared "
            f"({report.bytes_compared / _KIB:,.0f} KiB), {report.packets_per_second:,.0f} packets/s, "
            f"completions by {report.interrupts}"
        )
    if report.stream is not None:
        _print_stream(console, report.stream)
    if report.copy is not None:
        console.print(
            f"copier moved {report.copy.copied // _KIB:,} KiB through superpages "
            f"({report.copy.folds} folded, {report.copy.splits} split again)"
        )
    for blocked in report.blocked:
        _print_blocked(console, blocked)
    if report.hypercalls:
        console.print()
        console.print(_figures(report))
    for failure in report.failures:
        console.print(Text(f"FAILED: {failure}", style="bold red"))
    held = {name: count for name, count in report.leaks.items() if count}
    if held:
        console.print(Text("LEAKED: " + ", ".join(f"{count} {name}" for name, count in held.items()), style="bold red"))
    elif report.leaks:
        console.print("leak check: contexts, table pages, references, IOVAs and guest pages are back at the start")
    console.print()


def _print_stream(console: Console, stream: StreamReport) -> None:
    """Wall-clock time first; what a core of one's own would do, and how much of the time is not ours, after it."""
    console.print(
        f"stream: {stream.returned:,} of {stream.sent:,} packets of {stream.packet_bytes:,} bytes came back in bursts "
        f"of {stream.burst}, every byte compared ({stream.bytes_compared / _KIB:,.0f} KiB): "
        f"{stream.packets_per_second:,.0f} packets/s sent and received "
        f"({stream.packets_per_cpu_second:,.0f} per second of processor time, "
        f"{100 * stream.wire_seconds / (stream.seconds or 1):.0f} % of the time in the wire)"
    )


def _print_blocked(console: Console, blocked: Blocked) -> None:
    fault = blocked.fault
    kind = "write" if fault.write else "read"
    console.print()
    console.print(f"[bold]blocked[/]: {blocked.title} ({blocked.story})")
    console.print(f"  {format_sbdf(blocked.device)} {kind} of {fault.iova:#x}: {fault.name}, code {fault.code:#x}")
    if fault.record:
        words = " ".join(f"{word:016x}" for word in fault.record)
        found = "read back by the hypervisor" if blocked.reported is not None else "not found by the hypervisor"
        console.print(f"  record {words} ({found})", soft_wrap=True)
    print_walk(console, blocked.walk)


def print_walk(console: Console, walk: Walk) -> None:
    """A page walk, one structure a line: what it is, where it lies, its raw words, what they say.

    A line that the terminal cannot hold goes on in the next; no digit is ever left out.
    """
    for step in walk.steps:
        words = list(step.words)
        while len(words) > 1 and not words[-1]:
            words.pop()
        level = "" if step.level is None else f"level {step.level} "
        slot = "" if step.slot is None else f" [{step.slot}]"
        head = f"  {level}{step.name}{slot} at {step.maddr:#x}"
        raw = " ".join(f"{word:016x}" for word in words)
        short = len(words) == 1 and len(step.meaning) < 40
        console.print(Text(f"{head:<46} {raw}" + (f"  {step.meaning}" if short else "")), soft_wrap=True)
        if not short:
            console.print(Text(f"      {step.meaning}"), soft_wrap=True)


def walk_verdict(walk: Walk) -> str:
    """Where the walk ends, in a line."""
    if walk.maddr is None:
        return f"blocked: {walk.blocked}"
    rights = ("R" if walk.readable else "-") + ("W" if walk.writable else "-")
    size = "not translated" if walk.page_size is None else f"{walk.page_size // _KIB:,} KiB page"
    return f"-> {walk.maddr:#x} {rights} ({size})"


def _figures(report: Report) -> Table:
    figures = Table(box=None, padding=(0, 2), pad_edge=False, show_header=False)
    figures.add_column(style="dim")
    figures.add_column()
    calls = sum(sum(results.values()) for results in report.hypercalls.values())
    figures.add_row("hypercalls", f"{calls:,}")
    for name, results in report.hypercalls.items():
        figures.add_row(f"  {name}", ", ".join(f"{count:,} -> {errno}" for errno, count in results.items()))
    figures.add_row("pages", f"{report.pages_mapped:,} mapped, {report.pages_unmapped:,} unmapped while running")
    figures.add_row("superpages", f"{report.folds} folded, {report.splits} split")
    looked = report.iotlb_hits + report.iotlb_misses
    rate = f" ({100 * report.iotlb_hits / looked:.0f} % hits)" if looked else ""
    figures.add_row("IOTLB", f"{report.iotlb_hits:,} hits, {report.iotlb_misses:,} misses{rate}")
    figures.add_row("commands", ", ".join(f"{count:,} {name}" for name, count in report.invalidations.items()))
    figures.add_row("faults", str(report.faults))
    return figures

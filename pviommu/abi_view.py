# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``pviommu abi`` shows a person: tables and byte diagrams that fit an 80-column terminal."""

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from abi import diagram, memory_op, versions
from abi.check import AGREES, DIFFERS, EXTRA, MISSING, NAMED_HOLE, Item, Report
from abi.codec import Codec
from abi.conditions import CONDITIONS
from abi.contract import Contract
from abi.declare import ARCHES
from abi.deviations import deviations_of
from abi.errno import errno_name
from abi.layout import Layout, place
from abi.model import Abi, CopyBack, SubOp
from abi.reading import decoded_fields, tag_disagrees

_WIDEST = 100
_TOO_NARROW = f"(no byte diagram: it takes {diagram.NARROWEST + 1} columns)"
_WAY = {"in": "in", "out": "out", "inout": "in/out", "reserved": "reserved", "": ""}


def console() -> Console:
    """A console as wide as the terminal, 100 columns at most; reads well on 80."""
    out = Console(highlight=False, soft_wrap=False)
    return Console(highlight=False, width=min(out.width, _WIDEST))


def table(*columns: str, title: str | None = None) -> Table:
    """A table in the common style; a ``>`` in front of a column's name aligns it right."""
    result = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        right = column.startswith(">")
        result.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
    return result


def print_list() -> None:
    out = console()
    rows = table("version", "posted", "convention", ">call", ">sub-ops")
    for name in (*versions.names(), *versions.experimental()):
        abi = versions.get(name)
        rows.add_row(name, _posted(abi), abi.convention.value, str(abi.hypercall), str(len(abi.subops)))
    out.print(rows)


def _posted(abi: Abi) -> str:
    return f"{abi.posted} (header as {abi.same_as})" if abi.same_as else abi.posted


def pictures(abi: Abi, arch: str, only: SubOp | None) -> list[tuple[str, Layout]]:
    """(caption, layout) of every struct, a union once per sub-op."""
    chosen: list[tuple[str, Layout]] = []
    for row in [only] if only else abi.subops.values():
        if row.declaration is not None:
            layout = place(row.declaration, ARCHES[arch])
            whole = f"struct {layout.tag}, {layout.size} bytes, aligned to {layout.align}"
            chosen.append((f"{row.number} {row.name}: {whole}", layout.of_case(row.case)))
    return chosen


def print_version(abi: Abi, arch: str, only: SubOp | None) -> None:
    out = console()
    if only is None:
        _print_head(out, abi)
    for caption, layout in pictures(abi, arch, only):
        out.print()
        out.print(Text(f"{caption} ({arch})", style="bold"))
        if layout.size:
            picture = "\n".join(diagram.text(layout, out.width - 1))
            out.print(Padding(Text(picture or _TOO_NARROW), (0, 0, 0, 1)))
            out.print(Padding(_members(layout), (0, 0, 0, 3)))
            other = _on_i386(abi, layout)
            if other:
                out.print(f"   on i386 it is laid out differently, {other} bytes: --arch i386")
        else:
            out.print("   no members")
    if only is not None:
        _print_subop(out, only)


def _print_head(out: Console, abi: Abi) -> None:
    out.print(f"[bold]iommu_op {abi.name}[/]: {escape(abi.posted)}")
    if abi.same_as:
        out.print(f"the header is that of {abi.same_as}")
    if not abi.implemented:
        out.print("a header without an implementation")
    facts = Table.grid(padding=(0, 2))
    facts.add_row("hypercall", f"{abi.hypercall}, {abi.convention.value}")
    facts.add_row("not usable", f"-{errno_name(abi.errno_unusable)}")
    facts.add_row("unknown sub-op", f"-{errno_name(abi.errno_unknown_subop)}")
    facts.add_row("pages per call", str(abi.max_nr_pages) if abi.max_nr_pages else "not limited")
    out.print(facts)
    out.print()
    rows = table(">no", "sub-op", "argument", "in", "written back", "purpose")
    for row in abi.subops.values():
        name = row.name if row.implemented else f"{row.name} *"
        struct = row.struct.removeprefix("pv_iommu_") + (f".{row.case}" if row.case else "")
        back = {CopyBack.NEVER: "no", CopyBack.ALWAYS: "always", CopyBack.STATUS: "always"}[row.copied_back]
        rows.add_row(str(row.number), name, struct or "-", "yes" if row.copied_in else "no", back, row.doc)
    out.print(rows)
    if any(not row.implemented for row in abi.subops.values()):
        out.print("* a number only: answers -EOPNOTSUPP without touching its argument")
    out.print(f"in the header: {_c_names(abi)}")
    out.print()
    constants = table("constant", ">value", "meaning")
    for constant in abi.constants:
        note = f" (needs {constant.needs})" if constant.needs else ""
        where = " [private to the hypervisor]" if constant.name in abi.private else ""
        constants.add_row(constant.name, f"{constant.value:#x}", escape(constant.doc + note + where))
    out.print(constants)


def _on_i386(abi: Abi, layout: Layout) -> int:
    """The struct's size on i386 if anything in it lies elsewhere there, else 0."""
    if layout.arch == "i386":
        return 0
    declared = (*abi.structs, *memory_op.STRUCTS)
    small = place(next(s for s in declared if s.tag == layout.tag), ARCHES["i386"])
    there = {m.path: m.offset for m in small.members}
    same = small.size == layout.size and all(there[m.path] == m.offset for m in layout.members)
    return 0 if same else small.size


def _c_names(abi: Abi) -> str:
    """How the header calls its sub-ops: the rule and the exceptions."""
    prefix = "IOMMUOP_" if any(row.c_name.startswith("IOMMUOP_") for row in abi.subops.values()) else "IOMMU_"
    odd = [
        f"{row.name} is {row.c_name or 'without a name'}"
        for row in abi.subops.values()
        if row.c_name != prefix + row.name
    ]
    return "; ".join([f"{prefix}<sub-op>", *odd])


def _members(layout: Layout) -> Table:
    rows = table(">at", ">size", "field", "type", "way", "meaning")
    things = [(m.offset, m.size, m.path, m.c_type, _WAY[m.direction], m.doc) for m in layout.members]
    things += [(h.offset, h.size, "", "", "", "hole" if h.before else _end(layout, h.case)) for h in layout.holes]
    for at, size, path, c_type, way, doc in sorted(things):
        rows.add_row(str(at), str(size), path, c_type, way, doc, style="" if path else "dim")
    return rows


def _end(layout: Layout, case: str) -> str:
    return "not used by this alternative" if case else "hole at the end"


def _print_subop(out: Console, row: SubOp) -> None:
    out.print()
    out.print(f"{row.doc}; read: {'yes' if row.copied_in else 'no'}; written back: {row.copied_back.value}")
    if row.needs:
        out.print(f"needs the capability {row.needs}")
    for promise in row.promises:
        spelt = f", spelt {promise.text}" if promise.text else ""
        out.print(f"the header promises -{errno_name(promise.errno)}{spelt}: {CONDITIONS[promise.condition]}")


def print_reports(reports: list[Report], absent: list[str], every: bool) -> None:
    out = console()
    for report in reports:
        _print_report(out, report, every)
    for line in absent:
        out.print(Text(f"skipped: {line}", style="yellow"))


def _print_report(out: Console, report: Report, every: bool) -> None:
    out.print(f"[bold]{escape(report.header)}[/] against {report.abi} on {report.arch} ({escape(report.compiler)})")
    for note in report.notes:
        out.print(f"  note: {escape(note)}")
    groups: dict[str, list[Item]] = {}
    for item in report.items:
        groups.setdefault(item.struct or "constants", []).append(item)
    for name, items in groups.items():
        good = sum(item.verdict == AGREES for item in items)
        wrong = any(item.verdict not in (AGREES, NAMED_HOLE) for item in items)
        shown = [item for item in items if every or item.verdict != AGREES]
        out.print(f"  [{'red' if wrong else 'green'}]{name}[/]: {good} of {len(items)} agree")
        if shown:
            rows = table("", "", f"{report.abi} says", "the header says")
            for item in shown:
                colour = {AGREES: "green", NAMED_HOLE: "cyan"}.get(item.verdict, "red")
                label = escape(item.name or f"struct {item.struct}")
                rows.add_row(f"[{colour}]{item.verdict}[/]", label, item.version or "-", item.header or "-")
            out.print(Padding(rows, (0, 0, 0, 4)))
    counts = Counter(item.verdict for item in report.items)
    total = ", ".join(f"{counts[name]} {words}" for name, words in _TOTALS.items() if counts[name])
    style = "bold red" if report.differences else "bold green"
    out.print(Text(("different: " if report.differences else "the same: ") + total, style=style))
    out.print()


_TOTALS = {
    AGREES: "agree",
    DIFFERS: "differ",
    MISSING: "missing",
    EXTRA: "extra",
    NAMED_HOLE: "holes named",
}


def print_decoded(abi: Abi, row: SubOp, codec: Codec, raw: bytes) -> None:
    out = console()
    layout = codec.layout
    out.print(f"[bold]{abi.name} {row.name}[/] (sub-op {row.number}), struct {layout.tag}, {layout.arch}")
    rows = table(">at", ">size", "field", "way", ">value", "meaning")
    tag = tag_disagrees(abi, row, codec, raw)
    for field in decoded_fields(abi, row, codec, raw):
        style = "yellow" if field.path == "(hole)" else ""
        rows.add_row(
            str(field.offset),
            str(field.size),
            field.path,
            _WAY[field.direction],
            _value(field.value, field.size),
            field.meaning,
            style=style,
        )
    out.print(rows)
    if tag:
        out.print(Text(tag, style="yellow"))


def _value(value: int, size: int) -> str:
    """A field's value in decimal and, where that is something else, in hexadecimal."""
    pattern = f"{value & (1 << 8 * size) - 1:#x}"
    if -10 < value < 10:
        return str(value)
    return f"{value} = {pattern}" if -(1 << 31) <= value < 1 << 32 else pattern


def print_contract(contract: Contract, only: SubOp | None) -> None:
    out = console()
    out.print(
        f"[bold]{contract.name}[/]: conditions in the order in which they are tested; the first that holds answers"
    )
    out.print("a caller may not use PV-IOMMU if " + ", or ".join(contract.usability))
    deviations = () if contract.fixed else deviations_of(contract.name)
    for deviation in (d for d in deviations if not d.subop):
        out.print(Text(f"as posted, {deviation.name}: {deviation.instead}", style="yellow"))
    for name in [only.name] if only else [name for name in contract.tables if name]:
        subop = contract.abi.by_name[name]
        promised = {p.condition: p for p in subop.promises}
        rows = table(">", "errno", "condition", "header promises")
        for number, row in enumerate(contract.tables[name], 1):
            text = CONDITIONS[row.condition]
            promise = promised.pop(row.condition, None)
            differs = promise is not None and promise.errno != row.errno
            said = f"-{errno_name(promise.errno)}" if promise else ""
            rows.add_row(
                str(number),
                row.answer,
                f"each page: {text}" if row.each else text,
                f"[red]{said}[/]" if differs else said,
            )
        for promise in promised.values():
            rows.add_row("", "never", CONDITIONS[promise.condition], f"[red]-{errno_name(promise.errno)}[/]")
        out.print()
        out.print(f"[bold]{subop.number} {name}[/]: {subop.doc}")
        out.print(Padding(rows, (0, 0, 0, 2)))
        for deviation in (d for d in deviations if d.subop == name):
            out.print(Padding(Text(f"as posted, {deviation.name}: {deviation.instead}", style="yellow"), (0, 0, 0, 2)))

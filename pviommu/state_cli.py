# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu walk`` and ``pviommu dump``: look at the tables of a state.

The state is the one after a trace's hypercalls (``--trace``, all or the first ``--until``), or that of a freshly
booted guest whose network card is up.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from base.units import U64_MAX, format_sbdf, parse_sbdf
from machine.network.peer import PeerWire
from pviommu.options import Defects, Dom0Iommu, Guest, UsageError, make_config
from testbed.build import TestBed, build
from testbed.guest import Guest as BootedGuest
from testbed.packets import bring_up
from testbed.tables import PAGE_NAMES, Leaves, Table, flat, tree
from testbed.trace import TraceError, read, replay

Trace = Annotated[Path | None, typer.Option(help="Look at the state after the hypercalls of this trace.")]
Until = Annotated[int | None, typer.Option(min=0, help="Only the first so many hypercalls of the trace.")]
Chosen = Annotated[str | None, typer.Option("--backend", help="Translation backend.  [default: vtd]")]
Answers = Annotated[str | None, typer.Option("--profile", help="How the hypervisor answers.  [default: v7-fixed]")]
Layout = Annotated[int | None, typer.Option("--seed", help="Decides the memory layout.  [default: 0]")]
Format = Annotated[str, typer.Option("--format", help="table or json.")]


def walk(
    device: Annotated[str, typer.Argument(help="PCI address of the requester, as 01:00.0.")],
    iova: Annotated[str | None, typer.Argument(help="I/O virtual address; default: the first mapped one.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Ask for a write rather than a read.")] = False,
    backend: Chosen = None,
    profile: Answers = None,
    guest: Guest = None,
    seed: Layout = None,
    defect: Defects = "",
    dom0_iommu: Dom0Iommu = "",
    trace: Trace = None,
    until: Until = None,
    form: Format = "table",
) -> None:
    """Show the page walk of one (device, iova), level by level with the raw entries decoded.

    Exit status 0 if the request passes, 1 if it is blocked.
    """
    _check_format(form)
    try:
        sbdf = parse_sbdf(device)
    except ValueError as error:
        raise UsageError(str(error)) from None
    address = None if iova is None else _address(iova)
    testbed = _state(backend, profile, guest, seed, defect, dom0_iommu, trace, until)
    xen_device = testbed.dom0.devices.get(sbdf)
    if xen_device is None:
        known = ", ".join(format_sbdf(known) for known in testbed.dom0.devices)
        raise UsageError(f"there is no device {format_sbdf(sbdf)}; there are: {known}")
    if address is None:
        assert xen_device.context is not None
        root = tree(testbed.memory, xen_device.context)
        first = next(flat(root), None) if root is not None else None
        if first is None:
            raise UsageError(f"nothing is mapped for {format_sbdf(sbdf)}; name an IOVA")
        address, write = first.iova, write or "R" not in first.rights
    found = testbed.walk(sbdf, address, write)
    if form == "json":
        from pviommu.report_json import walk_as_dict

        print(json.dumps(walk_as_dict(found), indent=2))
    else:
        from rich.console import Console

        from pviommu.report_view import print_walk, walk_verdict

        console = Console(highlight=False)
        context = xen_device.context.number if xen_device.context is not None else None
        console.print(f"{format_sbdf(sbdf)} {'write' if write else 'read'} of {address:#x}, in context {context}")
        print_walk(console, found)
        console.print(walk_verdict(found))
    raise typer.Exit(0 if found.blocked is None else 1)


def dump(
    context: Annotated[int | None, typer.Option(min=0, help="Number of one context; default: all of dom0's.")] = None,
    backend: Chosen = None,
    profile: Answers = None,
    guest: Guest = None,
    seed: Layout = None,
    defect: Defects = "",
    dom0_iommu: Dom0Iommu = "",
    trace: Trace = None,
    until: Until = None,
    form: Format = "table",
) -> None:
    """Show a context's whole page table as a tree, superpages marked."""
    _check_format(form)
    testbed = _state(backend, profile, guest, seed, defect, dom0_iommu, trace, until)
    iommu = testbed.dom0.iommu
    assert iommu is not None
    contexts = {0: iommu.default, **iommu.contexts}
    if context is not None and context not in contexts:
        raise UsageError(f"there is no context {context}; there are: {', '.join(map(str, contexts))}")
    chosen = contexts if context is None else {context: contexts[context]}
    roots = {number: tree(testbed.memory, one) for number, one in chosen.items()}
    if form == "json":
        from pviommu.report_json import table_as_dict

        print(
            json.dumps(
                {
                    str(number): {
                        "devices": [format_sbdf(device.sbdf) for device in chosen[number].devices],
                        "table": table_as_dict(root) if root is not None else None,
                    }
                    for number, root in roots.items()
                },
                indent=2,
            )
        )
        return
    from rich.console import Console

    console = Console(highlight=False)
    for number, root in roots.items():
        console.print(_rich_tree(number, [format_sbdf(device.sbdf) for device in chosen[number].devices], root))


def _state(
    backend: str | None,
    profile: str | None,
    guest: str | None,
    seed: int | None,
    defect: str,
    dom0_iommu: str,
    trace: Path | None,
    until: int | None,
) -> TestBed:
    if trace is not None:
        for name, value in (
            ("backend", backend),
            ("profile", profile),
            ("guest", guest),
            ("seed", seed),
            ("defect", defect or None),
            ("dom0-iommu", dom0_iommu or None),
        ):
            if value is not None:
                raise UsageError(f"--{name} is the trace's own; leave it out with --trace")
        try:
            calls = len(read(trace)[1])
            if until is not None and until > calls:
                raise UsageError(f"--until {until}: {trace} has {calls} hypercalls")
            return replay(trace, until)
        except TraceError as error:
            raise UsageError(str(error)) from None
    if until is not None:
        raise UsageError("--until counts the hypercalls of a trace; give one with --trace FILE")
    testbed = build(make_config(backend or "vtd", profile or "v7-fixed", guest, seed or 0, defect, dom0_iommu))
    bring_up(testbed, BootedGuest(testbed), PeerWire())
    return testbed


def _address(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise UsageError(f"{text!r} is not an address; write it as 0xffffe000 or in decimal") from None
    if not 0 <= value <= U64_MAX:
        raise UsageError(f"{text} is not a 64-bit address")
    return value


def _check_format(form: str) -> None:
    if form not in ("table", "json"):
        raise UsageError(f"unknown format {form!r}; there are: table, json")


def _rich_tree(number: int, devices: list[str], root: Table | None) -> object:
    from rich.tree import Tree

    who = ", ".join(devices) or "no devices"
    if root is None:
        return Tree(f"[bold]context {number}[/] ({who}): passes everything through")
    mapped = sum(leaves.count << leaves.order + 12 for leaves in flat(root))
    shown = Tree(f"[bold]context {number}[/] ({who}), root at {root.maddr:#x}, {mapped // 1024:,} KiB mapped")
    _add(shown, root)
    return shown


def _add(branch: object, table: Table) -> None:
    from rich.tree import Tree

    assert isinstance(branch, Tree)
    for part in table.content:
        if isinstance(part, Leaves):
            size = PAGE_NAMES[part.order]
            mark = f"[bold]{size}[/]" if part.order else size
            last = part.iova + (part.count << part.order + 12) - 1
            branch.add(f"{part.iova:#x}-{last:#x} -> {part.maddr:#x} {part.rights} {mark} × {part.count}")
        else:
            below = branch.add(
                f"level {part.level} table at {part.maddr:#x} for {part.iova:#x}.., {part.used} of 512 used"
            )
            _add(below, part)

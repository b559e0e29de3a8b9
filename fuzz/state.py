# SPDX-License-Identifier: GPL-2.0-or-later
"""A test bed's state in words: contexts and their tables, devices, references, walks, what was logged.

Everything is read, nothing is changed: no cache is filled and no fault recorded, so that looking does not change what
the rest of a program does.
"""

from collections.abc import Iterator
from typing import Final

from base.units import PAGE_SHIFT, format_sbdf
from fuzz.verbs import DEVICES
from hypervisor.iommu.context import IommuContext
from machine.iommu.unit import Walk
from testbed.build import TestBed
from testbed.tables import PAGE_NAMES, Leaves, Table, flat, tree

NAMES: Final = {sbdf: name for name, sbdf in DEVICES.items()}
"""Device number to its name in programs."""


def overview(bed: TestBed) -> Iterator[str]:
    """Every context with its tables, the devices, the references, the arena."""
    for context in guest_contexts(bed):
        yield from tables(bed, context)
    yield from devices(bed)
    yield from references(bed)
    yield from arena(bed)


def contexts(bed: TestBed) -> Iterator[str]:
    """One line for each context."""
    for context in _contexts(bed):
        yield _headline(bed, context)


def guest_contexts(bed: TestBed) -> Iterator[IommuContext]:
    """The contexts that guests made, dom0's first, in order."""
    return (context for context in _contexts(bed) if context.number)


def context_numbered(bed: TestBed, number: int) -> IommuContext | None:
    """dom0's context with this number, if there is one."""
    iommu = bed.dom0.iommu
    return None if iommu is None else iommu.get(number)


def tables(bed: TestBed, context: IommuContext) -> Iterator[str]:
    """A context's whole tree, indented by level; superpages are named."""
    yield _headline(bed, context)
    root = tree(bed.memory, context)
    if root is not None:
        yield from _below(root, "  ")


def devices(bed: TestBed) -> Iterator[str]:
    """Where each device is."""
    for domain in bed.xen.all_domains():
        whose = f"domain {domain.domid}, " if domain is not bed.dom0 else ""
        if domain is bed.xen.quarantined:
            whose = "quarantine, "
        for sbdf, device in domain.devices.items():
            where = whose + (f"context {device.context.number}" if device.context is not None else "no context")
            regions = ", ".join(f"{first:#x} to {last:#x}" for first, last in device.reserved)
            name = f"{_name(int(sbdf))} ({format_sbdf(sbdf)})"
            yield f"{name}: {where}" + (f", reserved dfns {regions}" if regions else "")


def references(bed: TestBed) -> Iterator[str]:
    """Guest pages that are held by more than their owner or no longer by it, alike neighbours together."""
    frames, mfns = bed.xen.frames, bed.mfns
    start, last = 0, (1, 0, 1)
    for page in range(len(mfns) + 1):
        if page < len(mfns):
            mfn = mfns[page]
            now = (frames.count(mfn), frames.writable_count(mfn), frames.allocated[mfn])
            if now == last:
                continue
        if last != (1, 0, 1):
            held, writable, owned = last
            what = f"{held} references, {writable} of them to write" + ("" if owned else ", taken from the guest")
            yield f"ram:{start}" + (f" to ram:{page - 1}" if page - 1 > start else "") + f": {what}"
        start, last = page, now


def reference(bed: TestBed, page: int) -> str:
    """One guest page: its frame and who holds it."""
    frames, mfn = bed.xen.frames, bed.mfns[page]
    owned = "its owner's reference among them" if frames.allocated[mfn] else "taken from the guest"
    return (
        f"ram:{page} is frame {mfn:#x}: {frames.count(mfn)} references, {frames.writable_count(mfn)} to write, {owned}"
    )


def arena(bed: TestBed) -> Iterator[str]:
    """How full each domain's arena for tables is."""
    for domain in bed.xen.domains.values():
        pool = domain.iommu.arena if domain.iommu is not None else None
        if pool is not None:
            whose = "" if domain is bed.dom0 else f" of domain {domain.domid}"
            yield f"arena{whose}: {pool.used} of {pool.pages} pages in use"


def log(bed: TestBed) -> Iterator[str]:
    """Xen's console, and how many faults each unit has recorded."""
    yield from bed.xen.console
    for unit in bed.units:
        yield f"{unit.name}: {unit.counters.faults} faults"


def walk(bed: TestBed, device: int, dfn: int, write: bool) -> Iterator[str]:
    """How the unit finds what a device reaches at ``dfn``, structure by structure."""
    found = bed.walk(device, dfn << PAGE_SHIFT, write)
    yield f"{_name(device)}, {'write' if write else 'read'} at dfn {dfn:#x}"
    yield from _steps(found)


def _steps(found: Walk) -> Iterator[str]:
    for step in found.steps:
        words = " ".join(f"{word:016x}" for word in step.words)
        level = "" if step.level is None else f"level {step.level} "
        slot = "" if step.slot is None else f" [{step.slot}]"
        yield f"  {level}{step.name}{slot} at {step.maddr:#x}: {words}  {step.meaning}"
    if found.maddr is None:
        yield f"  blocked: {found.blocked}"
    else:
        rights = ("r" if found.readable else "-") + ("w" if found.writable else "-")
        size = "not translated" if found.page_size is None else f"a page of {found.page_size // 1024} KiB"
        yield f"  reaches {found.maddr:#x}, {rights}, {size}"


def _contexts(bed: TestBed) -> Iterator[IommuContext]:
    for domain in bed.xen.domains.values():
        if domain.iommu is not None:
            yield domain.iommu.default
            yield from (domain.iommu.contexts[number] for number in sorted(domain.iommu.contexts))


def _owner(bed: TestBed, context: IommuContext) -> str:
    """ "domain 1, " for a context of a guest's, nothing for one of dom0's."""
    for domain in bed.xen.domains.values():
        if domain is not bed.dom0 and domain.iommu is not None and domain.iommu.get(context.number) is context:
            return f"domain {domain.domid}, "
    return ""


def _headline(bed: TestBed, context: IommuContext) -> str:
    inside = ", ".join(_name(int(device.sbdf)) for device in context.devices) or "no devices"
    root = tree(bed.memory, context)
    if root is None:
        return f"{_owner(bed, context)}context {context.number} ({inside}): passes everything through"
    pages = sum(leaves.count << leaves.order for leaves in flat(root))
    what = f"{_owner(bed, context)}context {context.number} ({inside}): {pages} pages mapped"
    return what + (", dying" if context.dying else "")


def _below(node: Table, margin: str) -> Iterator[str]:
    for part in node.content:
        if isinstance(part, Leaves):
            first, size = part.iova >> PAGE_SHIFT, part.count << part.order
            where = f"dfn {first:#x}" + (f" to {first + size - 1:#x}" if size > 1 else "")
            leaf = f"frame {part.maddr >> PAGE_SHIFT:#x} {part.rights} {PAGE_NAMES[part.order]} x {part.count}"
            yield f"{margin}{where} -> {leaf}"
        else:
            where = f"at {part.maddr:#x} for dfn {part.iova >> PAGE_SHIFT:#x} on"
            yield f"{margin}level {part.level} table {where}, {part.used} used"
            yield from _below(part, margin + "  ")


def _name(sbdf: int) -> str:
    return NAMES.get(sbdf) or format_sbdf(sbdf)

# SPDX-License-Identifier: GPL-2.0-or-later
"""A context's page tables, read from memory for people: the tree with superpages marked, runs of leaves as one."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hypervisor.iommu.context import IommuContext
from hypervisor.pagetable.format import ADDRESS_MASK
from hypervisor.pagetable.radix import PageTable
from machine.memory import PhysicalMemory

PAGE_NAMES = {0: "4 KiB", 9: "2 MiB", 18: "1 GiB"}
"""By order of a leaf."""


@dataclass(slots=True)
class Leaves:
    """``count`` leaves of the same size and rights side by side, whose frames follow each other."""

    iova: int
    maddr: int
    order: int
    count: int
    rights: str
    first_entry: int


@dataclass(slots=True)
class Table:
    """A table page: where it lies, the I/O virtual address its first entry is for, and what is in it."""

    level: int
    maddr: int
    iova: int
    used: int = 0
    """Entries that are not empty."""
    content: list["Leaves | Table"] = field(default_factory=list)


def tree(memory: PhysicalMemory, context: IommuContext) -> Table | None:
    """The tree of ``context``, ``None`` if it has none (pass-through)."""
    table = context.table
    if table is None:
        return None
    root = Table(table.levels, table.root << 12, 0)
    _fill(memory, table, root, table.root_frames << 9)
    return root


def flat(table: Table) -> Iterator[Leaves]:
    """Every run of leaves below ``table``, in order of address."""
    for part in table.content:
        if isinstance(part, Leaves):
            yield part
        else:
            yield from flat(part)


def _fill(memory: PhysicalMemory, tables: PageTable, node: Table, entries: int) -> None:
    fmt = tables.format
    order = 9 * (node.level - 1)
    words = memory.words[node.maddr >> 3 : (node.maddr >> 3) + entries].tolist()
    run: Leaves | None = None
    for index, entry in enumerate(words):
        if not entry & fmt.present:
            run = None
            continue
        node.used += 1
        iova = node.iova + (index << order + 12)
        maddr = entry & ADDRESS_MASK
        if not fmt.is_leaf(entry, node.level):
            run = None
            below = Table(node.level - 1, maddr, iova)
            node.content.append(below)
            _fill(memory, tables, below, 512)
            continue
        rights = ("R" if fmt.readable(entry) else "-") + ("W" if fmt.writable(entry) else "-")
        if run is not None and run.rights == rights and maddr == run.maddr + (run.count << order + 12):
            run.count += 1
            continue
        run = Leaves(iova, maddr, order, 1, rights, entry)
        node.content.append(run)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Global properties: what has to hold between any two hypercalls, whatever they were.

Each is a small function with its prose; :func:`check` runs them and lists what is broken.  They read the state and
change nothing: no cache is filled, no fault recorded.  Trees are read from the bytes that hardware walks, not through
the code that wrote them.

The hypervisor keeps what hardware did not confirm to have forgotten (``Xen.kept``); that counts as held.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Final, NamedTuple

from base.units import Sbdf, format_sbdf
from hypervisor.domain import Domain
from hypervisor.frames import DOMID_IO, DOMID_NONE, DOMID_XEN
from hypervisor.iommu.context import IommuContext
from hypervisor.iommu.pool import Arena
from machine.iommu.unit import IommuUnit
from testbed.build import TestBed
from testbed.caches import cached_leaves, cached_tables, doubted, tags
from testbed.reachable import Leaf, Reachable, reachable


class Violation(NamedTuple):
    """A property that does not hold, and where."""

    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"


class View:
    """A test bed's state, every context's tree read once."""

    def __init__(self, testbed: TestBed) -> None:
        self.testbed: Final = testbed
        self.xen: Final = testbed.xen
        self.frames: Final = testbed.xen.frames
        self.contexts: Final[list[tuple[Domain, IommuContext, Reachable]]] = [
            (domain, context, reachable(testbed.memory, context.table))
            for domain in self.xen.all_domains()
            if domain.iommu is not None
            for context in (domain.iommu.default, *domain.iommu.contexts.values())
            if context.table is not None
        ]

    def leaves(self) -> Iterator[tuple[Domain, IommuContext, Leaf]]:
        """Every run of leaves of every context."""
        for domain, context, tree in self.contexts:
            for leaf in tree.leaves:
                yield domain, context, leaf


Property = Callable[[View], Iterator[str]]
INVARIANTS: Final[dict[str, Property]] = {}
"""By name, in the order in which :func:`check` runs them; each yields what is broken."""


def invariant(function: Property) -> Property:
    INVARIANTS[function.__name__] = function
    return function


def check(testbed: TestBed, *only: str) -> list[Violation]:
    """Every violation of all properties, or of those named in ``only``; ``ValueError`` for a name there is none of."""
    unknown = [name for name in only if name not in INVARIANTS]
    if unknown:
        raise ValueError(f"unknown invariant {unknown[0]!r}; there are: {', '.join(INVARIANTS)}")
    view = View(testbed)
    return [Violation(name, what) for name in only or INVARIANTS for what in INVARIANTS[name](view)]


# ------------------------------------------------------------------------------------------------------------- frames


def _held(view: View, writable: bool) -> "array[int]":
    """By frame: how many references device mappings hold, or writable type references."""
    steps = [0] * (view.frames.frames + 1)

    def add(domain: Domain, mfn: int, count: int, referenced: bool, write: bool) -> None:
        if referenced and mfn + count <= view.frames.frames and (not writable or (write and domain.pv)):
            steps[mfn] += 1
            steps[mfn + count] -= 1

    for domain, _, leaf in view.leaves():
        add(domain, leaf.mfn, leaf.pages, leaf.referenced, leaf.writable)
    fmt = view.xen.backend.format
    for domain, _, changes in view.xen.kept:
        for mfn, count, entry in changes.removed:
            add(domain, mfn, count, bool(entry & fmt.referenced), bool(entry & fmt.write))
    return array("Q", accumulate(steps[:-1]))


def _guest_tables(view: View) -> Counter[int]:
    """References that nested contexts hold on the frames of guests' tables."""
    contexts = (c for d in view.xen.domains.values() if d.iommu is not None for c in d.iommu.contexts.values())
    return Counter(mfn for context in contexts if context.nested is not None for mfn in context.nested.frames)


@invariant
def references(view: View) -> Iterator[str]:
    """A frame's reference count: its owner's, one for each device mapping, one for each nested table that it is in."""
    frames = view.frames
    held = _held(view, False)
    for mfn, count in _guest_tables(view).items():
        held[mfn] += count
    for mfn in range(frames.frames):
        expected = held[mfn] + frames.allocated[mfn]
        if frames.count(mfn) != expected:
            yield f"frame {mfn:#x} has {frames.count(mfn)} references, its owner and mappings account for {expected}"


@invariant
def writable_references(view: View) -> Iterator[str]:
    """A frame's writable type count is the number of writable device mappings of it in PV guests' contexts."""
    held = _held(view, True)
    for mfn in range(view.frames.frames):
        if view.frames.writable_count(mfn) != held[mfn]:
            yield f"frame {mfn:#x} has {view.frames.writable_count(mfn)} writable references, mappings hold {held[mfn]}"


@invariant
def free_frames(view: View) -> Iterator[str]:
    """A frame is free (nobody's) exactly if nothing refers to it."""
    frames = view.frames
    for mfn, (owner, refs) in enumerate(zip(frames.owner, frames.refs)):
        if (owner == DOMID_NONE) != (refs == 0):
            yield f"frame {mfn:#x} of domain {owner:#x} has a reference word of {refs:#x}"


@invariant
def no_reach_into_others(view: View) -> Iterator[str]:
    """No device reaches a free frame, one of Xen's own, or firmware's: those are for the devices whose reserved regions
    they are, and for domains that may access them as MMIO."""
    frames = view.frames
    for domain, context, leaf in view.leaves():
        for mfn in range(leaf.mfn, min(leaf.mfn + leaf.pages, frames.frames)):
            owner = frames.owner[mfn]
            allowed = owner not in (DOMID_NONE, DOMID_XEN, DOMID_IO)
            if owner == DOMID_IO and mfn == leaf.dfn + mfn - leaf.mfn:
                allowed = context.number == 0 or context.identity_offset(mfn, 1) is not None
            if not allowed and not (owner == DOMID_IO and domain.may_access_mmio(mfn, 1)):
                yield f"{domain} {context}: dfn {leaf.dfn + mfn - leaf.mfn:#x} leads to frame {mfn:#x} of {owner:#x}"


@invariant
def page_tables_are_not_writable(view: View) -> Iterator[str]:
    """No device can write to a frame that a PV guest uses as a page table."""
    for domain, context, leaf in view.leaves():
        if context.number and leaf.writable and view.frames.has_pagetable(leaf.mfn, leaf.pages):
            yield f"{domain} {context}: dfn {leaf.dfn:#x}+{leaf.pages:#x} lets devices write to a page table"


# -------------------------------------------------------------------------------------------------------------- trees


@invariant
def tables_are_accounted_for(view: View) -> Iterator[str]:
    """The tables that hardware can walk are those that the tree's bookkeeping knows, with as many entries."""
    owners: dict[int, IommuContext] = {}
    for domain, context, tree in view.contexts:
        assert context.table is not None
        if tree.tables != dict(context.table.filled):
            odd = tree.tables.items() ^ context.table.filled.items()
            yield f"{domain} {context}: tables (frame, entries) that differ: {sorted(odd)}"
        for frame in tree.tables:
            if owners.setdefault(frame, context) is not context:
                yield f"{domain} {context}: its table at frame {frame:#x} is one of {owners[frame]} too"


@invariant
def arenas_are_accounted_for(view: View) -> Iterator[str]:
    """The pages in use in a domain's arena are the roots, tables and deposits of its contexts."""
    for domain in view.xen.all_domains():
        arena = domain.iommu.arena if domain.iommu is not None else None
        if arena is None:
            continue
        uses: Counter[int] = Counter()
        for owner, context, tree in view.contexts:
            if owner is domain and context.pool is arena and context.table is not None:
                uses.update(range(context.table.root, context.table.root + context.table.root_frames))
                uses.update(list(tree.tables))
                uses.update(context.table.deposits.values())
        for _, context, changes in view.xen.kept:
            if context.pool is arena:
                uses.update(changes.tables)
        yield from _compare_arena(domain, arena, uses)


def _compare_arena(domain: Domain, arena: Arena, uses: Counter[int]) -> Iterator[str]:
    for frame, times in uses.items():
        if times > 1:
            yield f"{domain}: arena frame {frame:#x} is used {times} times"
    in_use = arena.in_use()
    for frame in sorted(in_use - uses.keys()):
        yield f"{domain}: arena frame {frame:#x} is in use and no context's"
    for frame in sorted(uses.keys() - in_use):
        yield f"{domain}: arena frame {frame:#x} is a context's and free"


@invariant
def deposits_stand_by_for_leaves(view: View) -> Iterator[str]:
    """A table is kept aside only for a superpage that was folded from it, or for one inside a larger fold."""
    for domain, context, tree in view.contexts:
        assert context.table is not None
        for level, dfn in context.table.deposits:
            leaf = tree.at(dfn)
            if leaf is None or leaf.order not in (9 * (level - 1), 18):
                yield f"{domain} {context}: a table is kept for a superpage at dfn {dfn:#x} that is not there"


# ----------------------------------------------------------------------------------------------- contexts and devices


@invariant
def contexts_are_numbered(view: View) -> Iterator[str]:
    """A domain's contexts are filed under their own numbers, within the limit it asked for."""
    for domain in view.xen.all_domains():
        if domain.iommu is not None:
            for number, context in domain.iommu.contexts.items():
                if context.number != number or not 1 <= number <= domain.iommu.limit:
                    yield f"{domain}: {context} is filed as {number}, {domain.iommu.limit} are allowed"


@invariant
def devices_and_contexts_agree(view: View) -> Iterator[str]:
    """Every device that a unit covers is on the list of the one context that it names, and no dying context has any."""
    for domain in view.xen.all_domains():
        if domain.iommu is None:
            continue
        places: Counter[tuple[Sbdf, int]] = Counter()
        for context in (domain.iommu.default, *domain.iommu.contexts.values()):
            for device in context.devices:
                places[device.sbdf, context.number] += 1
                if device.context is not context:
                    yield f"{domain} {context}: {device.function} is listed and thinks of {device.context}"
            if context.dying and context.devices:
                yield f"{domain} {context}: dying, with devices"
        for sbdf in domain.devices:
            lists = [number for (where, number), times in places.items() for _ in range(times) if where == sbdf]
            unlisted = domain is view.xen.quarantined or sbdf not in view.testbed.pci.functions
            if len(lists) != (not unlisted or domain.devices[sbdf].context is not None):
                yield f"{domain}: {format_sbdf(sbdf)} is on the lists of {lists or 'no context'}"


@invariant
def reserved_regions_are_mapped(view: View) -> Iterator[str]:
    """A context maps the reserved regions of its devices one to one, and counts the devices that need each."""
    for domain, context, _ in view.contexts:
        assert context.table is not None
        needed = Counter(region for device in context.devices for region in device.reserved)
        counted = {(region.first, region.last): region.users for region in context.identity}
        if context.number and needed != counted:
            yield f"{domain} {context}: regions are counted as {counted}, devices need {dict(needed)}"
        for first, last in counted:
            for dfn in range(first, last + 1):
                found = context.table.lookup(dfn)
                if found is None or found[0] != dfn:
                    yield f"{domain} {context}: dfn {dfn:#x} of a reserved region leads to {found and hex(found[0])}"


@invariant
def tags_are_unique(view: View) -> Iterator[str]:
    """On one unit no two contexts share a tag of its caches."""
    seen: dict[tuple[int, int], IommuContext] = {}
    for domain, context, _ in view.contexts:
        for unit, tag in enumerate(tags(context.hw)):
            if seen.setdefault((unit, tag), context) is not context:
                yield f"{domain} {context}: has tag {tag} on unit {unit} together with {seen[unit, tag]}"


# ----------------------------------------------------------------------------------------------------------- hardware


@invariant
def hardware_walks_what_contexts_say(view: View) -> Iterator[str]:
    """Every id of a device translates as its context's tree says, tried where runs of mappings begin and end.

    Ids that one unit finds the same configuration for, word by word, are tried once.  A device that is cut off until
    hardware confirms what it was told of the context reaches nothing, whatever the tree says.
    """
    testbed, cut_off = view.testbed, view.xen.backend.cut_off
    for domain, context, tree in view.contexts:
        tried = set()
        doubtful = context.stage2.unconfirmed and doubted(context.stage2.hw)
        devices = [device for device in context.devices if device.translated and not (doubtful and cut_off(device))]
        for requester in [id for device in devices for id in device.requester_ids]:
            unit, _ = testbed.fabric.route(requester)
            configuration = tuple(step.words for step in testbed.walk(requester, 0).steps if step.level is None)
            if (unit, configuration) in tried:
                continue
            tried.add((unit, configuration))
            for dfn, leaf in tree.edges(view.xen.max_dfn):
                if not _special(testbed, dfn, leaf):
                    yield from _compare_walk(testbed, f"{domain} {context}", requester, dfn, leaf)


def _special(testbed: TestBed, dfn: int, leaf: Leaf | None) -> bool:
    """Whether the doorbell of message interrupts, which goes around translation, is involved."""
    base, length = testbed.backend.doorbell_window
    window = range(base >> 12, base + length >> 12)
    if testbed.backend.doorbell_is_translated:
        return False
    return dfn in window or (leaf is not None and leaf.mfn + dfn - leaf.dfn in window)


def _compare_walk(testbed: TestBed, where: str, requester: Sbdf, dfn: int, leaf: Leaf | None) -> Iterator[str]:
    for write in (False, True):
        walk = testbed.walk(requester, dfn << 12, write)
        expected = None
        if leaf is not None and (leaf.writable if write else leaf.readable):
            expected = leaf.mfn + dfn - leaf.dfn << 12
        if walk.maddr != expected:
            kind = "write" if write else "read"
            got, said = ("nothing" if maddr is None else f"{maddr:#x}" for maddr in (walk.maddr, expected))
            yield f"{where}: {format_sbdf(requester)} {kind} at dfn {dfn:#x} reaches {got}, the tree says {said}"


@invariant
def caches_say_what_tables_say(view: View) -> Iterator[str]:
    """Nothing is cached that a walk would not find now: whatever was taken away has been invalidated.

    Of a context that hardware has not confirmed to have forgotten it may be anything.
    """
    for index, unit in enumerate(view.testbed.units):
        by_tag = {tags(context.hw)[index]: (context, tree) for _, context, tree in view.contexts if tags(context.hw)}
        yield from _stale(unit, by_tag)


def _stale(unit: IommuUnit, by_tag: Mapping[int, tuple[IommuContext, Reachable]]) -> Iterator[str]:
    """What ``unit`` remembers that the tree filed under its tag does not say."""
    for cached in cached_leaves(unit):
        if cached.tag not in by_tag:
            yield f"{cached} is under a tag that no context has"
            continue
        context, tree = by_tag[cached.tag]
        if context.unconfirmed:
            continue
        dfn, end = cached.page, cached.page + (1 << cached.order)
        while dfn < end:
            leaf = tree.at(dfn)
            if (
                leaf is None
                or leaf.mfn - leaf.dfn != cached.mfn - cached.page
                or (cached.readable and not leaf.readable)
                or (cached.writable and not leaf.writable)
            ):
                yield f"{context}: {cached} is stale, dfn {dfn:#x} has now {leaf}"
                break
            dfn = leaf.dfn + leaf.pages
    for pointer in cached_tables(unit):
        found = by_tag.get(pointer.tag)
        if found is None:
            yield f"{pointer} is under a tag that no context has"
        elif not found[0].unconfirmed and found[1].table_below.get((pointer.order, pointer.page)) != pointer.mfn:
            yield f"{found[0]}: {pointer} is stale"

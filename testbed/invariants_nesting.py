# SPDX-License-Identifier: GPL-2.0-or-later
"""What has to hold between two hypercalls where guests own tables, and where contexts enforce coherency (x1-nested).

Each reads what hardware reads: stream entries and leaves in memory, and the unit's caches.  Beside
:mod:`testbed.invariants`, which holds for every interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, cast

from abi.x1 import FAULTS_KEPT
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.vtd.driver import VtdBackend
from hypervisor.vtd.format import SNP
from machine.iommu.smmuv3.ste import Ste0, Ste2, Ste3
from machine.iommu.smmuv3.tlb import Stage1Tag
from machine.iommu.smmuv3.unit import Smmuv3Unit
from testbed.build import TestBed
from testbed.caches import tags

Check = Callable[[TestBed], Iterator[str]]


class Invariant(NamedTuple):
    """A property with its prose."""

    id: str
    text: str
    check: Check


INVARIANTS: Final[dict[str, Invariant]] = {}


def invariant(id: str, text: str) -> Callable[[Check], Check]:
    def add(function: Check) -> Check:
        assert id not in INVARIANTS
        INVARIANTS[id] = Invariant(id, text, function)
        return function

    return add


def check(testbed: TestBed) -> dict[str, str]:
    """What does not hold: by invariant, the first complaint."""
    found = {}
    for entry in INVARIANTS.values():
        what = next(entry.check(testbed), None)
        if what is not None:
            found[entry.id] = what
    return found


def _contexts(testbed: TestBed) -> Iterator[IommuContext]:
    for domain in testbed.xen.domains.values():
        if domain.iommu is not None:
            yield domain.iommu.default
            yield from domain.iommu.contexts.values()


def _devices(testbed: TestBed) -> Iterator[tuple[PciDevice, IommuContext]]:
    for context in _contexts(testbed):
        for device in context.devices:
            if device.translated:
                yield device, context


@invariant(
    "nested-stage2", "a device in a nested context is translated by its parent's stage 2, under its parent's tag"
)
def parents_translate(testbed: TestBed) -> Iterator[str]:
    for device, context in _devices(testbed):
        unit, sid = testbed.fabric.route(device.sbdf)
        if not isinstance(unit, Smmuv3Unit) or context.stage2.table is None:
            continue
        entry = next((step.words for step in unit.walk(sid, 0).steps if step.name == "STE"), None)
        if entry is None:
            continue
        number = testbed.units.index(unit)
        wanted = 7 if context.parent is not None else 6
        if Ste0.config.get(entry[0]) not in (wanted, 0):
            yield f"{device.function}: Config {Ste0.config.get(entry[0])} in {context}"
        elif Ste0.config.get(entry[0]):
            if Ste2.s2vmid.get(entry[2]) != tags(context.stage2.hw)[number]:
                yield f"{device.function}: VMID {Ste2.s2vmid.get(entry[2])} is not that of {context.stage2}"
            if entry[3] & Ste3.s2ttb.mask != context.stage2.table.root << 12:
                yield f"{device.function}: its stage 2 is another table than that of {context.stage2}"


@invariant("nested-cached", "what a unit has cached of two stages together leads where the parent's stage 2 leads")
def combined_translations_are_the_parents(testbed: TestBed) -> Iterator[str]:
    parents = [context for context in _contexts(testbed) if context.children and context.table is not None]
    for number, unit in enumerate(testbed.units):
        if not isinstance(unit, Smmuv3Unit):
            continue
        by_vmid = {tags(context.hw)[number]: context for context in parents}
        for tag, page, order, (delta, _, _, middle) in unit.combined_tlb.entries():
            space = cast(Stage1Tag, tag)[0]
            parent = by_vmid.get(space)
            if parent is None or parent.table is None:
                yield f"page {page:#x} is cached under VMID {space}, which has no nested context"
                continue
            found = parent.table.lookup(page + (middle >> 12))
            if found is None or found[0] != page + (delta >> 12):
                yield f"{parent}: page {page:#x}+{1 << order:#x} leads to a frame that stage 2 does not lead to"


@invariant("nested-children", "a parent knows how many nested contexts it has, and outlives them")
def children_are_counted(testbed: TestBed) -> Iterator[str]:
    everyone = list(_contexts(testbed))
    for context in everyone:
        children = sum(other.parent is context for other in everyone)
        if children != context.children:
            yield f"{context} counts {context.children} nested contexts, there are {children}"
        if context.parent is not None and (context.parent.dying or context.parent not in everyone):
            yield f"{context} is over a context that is gone"


@invariant("guest-faults", "a guest is told of faults of its own stage by its own devices, and of no more than fit")
def faults_are_the_guests(testbed: TestBed) -> Iterator[str]:
    for domain in testbed.xen.domains.values():
        if domain.iommu is None:
            continue
        for fault in domain.iommu.faults:
            if fault.sbdf not in domain.devices:
                yield f"{domain} is told of a device {fault.sbdf:#x} that it does not have"
        if len(domain.iommu.faults) > FAULTS_KEPT:
            yield f"{len(domain.iommu.faults)} faults are kept for {domain}"


@invariant(
    "snoop-entries", "every leaf of a context that enforces coherency has the snoop bit, and no other leaf has it"
)
def snoop_bits(testbed: TestBed) -> Iterator[str]:
    if not isinstance(testbed.xen.backend, VtdBackend):
        return
    for context in _contexts(testbed):
        for dfn, entry, _ in context.table.leaves() if context.table is not None else ():
            if bool(entry & SNP) != context.enforces_cache:
                yield f"{context}: dfn {dfn:#x} has the entry {entry:#x}"


@invariant("snoop-units", "no device behind a unit without snoop control is in a context that enforces coherency")
def snoop_units(testbed: TestBed) -> Iterator[str]:
    backend = testbed.xen.backend
    if not isinstance(backend, VtdBackend):
        return
    for device, context in _devices(testbed):
        if context.enforces_cache and not backend.enforces_cache(device):
            yield f"{device.function} is in {context}"

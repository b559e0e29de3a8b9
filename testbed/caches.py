# SPDX-License-Identifier: GPL-2.0-or-later
"""What units remember, in one vocabulary for all vendors, so that it can be held against the tables.

A backend from outside registers its own unit and context data with :func:`cached_leaves`, :func:`cached_tables`,
:func:`tags` and :func:`doubted`; one that does not is taken to cache nothing.
"""

from collections.abc import Iterator
from functools import singledispatch
from typing import NamedTuple

from hypervisor.smmuv3.context_hw import ContextHw
from hypervisor.vtd.driver import VtdContext
from machine.iommu.smmuv3.unit import Smmuv3Unit
from machine.iommu.vtd.unit import VtdUnit


class CachedLeaf(NamedTuple):
    """2^``order`` pages from ``page`` lead to frames from ``mfn`` under ``tag``."""

    tag: int
    page: int
    order: int
    mfn: int
    readable: bool
    writable: bool


class CachedTable(NamedTuple):
    """The walk of any of 2^``order`` pages from ``page`` under ``tag`` goes on in the table at frame ``mfn``."""

    tag: int
    page: int
    order: int
    mfn: int


@singledispatch
def cached_leaves(unit: object) -> Iterator[CachedLeaf]:
    """The translations that ``unit`` would use without looking at memory."""
    return iter(())


@singledispatch
def cached_tables(unit: object) -> Iterator[CachedTable]:
    """The tables in which ``unit`` would start a walk."""
    return iter(())


@singledispatch
def tags(hw: object) -> tuple[int, ...]:
    """Under which tag each unit, in order, files what belongs to the context with ``hw`` as its driver's data."""
    return ()


@singledispatch
def doubted(hw: object) -> bool:
    """Whether a driver still has a unit to ask about the context with ``hw`` as its data, and devices of it may have
    to stay blocked until that unit confirms."""
    return False


@cached_leaves.register
def _(unit: VtdUnit) -> Iterator[CachedLeaf]:
    for tag, page, order, entry in unit.iotlb.entries():
        if entry & 3:  # the others are cached faults
            assert isinstance(tag, int)
            yield CachedLeaf(tag, page, order, page + (entry >> 12), bool(entry & 1), bool(entry & 2))


@cached_leaves.register
def _(unit: Smmuv3Unit) -> Iterator[CachedLeaf]:
    for tag, page, order, (delta, allowed) in unit.iotlb.entries():
        assert isinstance(tag, int)
        yield CachedLeaf(tag, page, order, page + (delta >> 12), bool(allowed & 1), bool(allowed & 2))


@cached_tables.register
def _(unit: VtdUnit) -> Iterator[CachedTable]:
    for tag, page, order, entry in unit.second_level.structures.entries():
        assert isinstance(tag, int)
        yield CachedTable(tag, page, order, entry >> 12 & (1 << 40) - 1)


@cached_tables.register
def _(unit: Smmuv3Unit) -> Iterator[CachedTable]:
    for tag, page, order, table in unit.walk_cache.entries():
        yield CachedTable(tag, page, order, table >> 12)


@tags.register
def _(hw: VtdContext) -> tuple[int, ...]:
    return hw.dids


@tags.register
def _(hw: ContextHw) -> tuple[int, ...]:
    return hw.vmids


@doubted.register
def _(hw: ContextHw) -> bool:
    return bool(hw.doubtful)

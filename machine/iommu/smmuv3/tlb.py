# SPDX-License-Identifier: GPL-2.0-or-later
"""The translation caches: leaves and table descriptors of both stages (IHI 0070, 3.17, 4.4 and 16.2).

Stage 2 is tagged by VMID.  Stage 1, and what stages 1 and 2 give together, is tagged by (space, ASID), where the
space is a VMID or one of the EL2 worlds; pages that are not nG lie under (space, ``GLOBAL``).  Invalidation
removes what the command must remove and nothing else, so that a hint that does not match the tables, or a leaf-only
command after a table was freed, leaves an entry stale here as it may on silicon.
"""

from collections.abc import Hashable, Iterable, Iterator, MutableMapping
from itertools import islice
from typing import Any, Final, Generic, TypeVar, cast

from machine.iommu.iotlb import ORDERS, Entry, IoTlb
from machine.iommu.replacement import Oldest, Replacement

TlbEntry = tuple[int, int]
"""Stage 2: output address minus input address, and the ``walk.ALLOW_*`` bits of the leaf."""

Stage1Entry = tuple[int, int, int, int]
"""Stage 1, or both: machine address minus virtual address; what stage 1 allows; what stage 2 allows; output of
stage 1 minus virtual address."""

Stage1Tag = tuple[int, int]
"""(VMID or EL2 world, ASID or ``GLOBAL``)."""

GLOBAL: Final = -1
"""Added to CD.ASET (0 or 1): the ASIDs of pages that every ASID of the set shares."""
CONFLICT: Final = 1 << 9
"""Among the rights of an entry: a larger entry covers its page too.  The true rights are shifted above it."""
CONFLICT_SHIFT: Final = 10

Tag = TypeVar("Tag", bound=Hashable)
Pointer = TypeVar("Pointer")
KnownTables = tuple[dict[int, int], dict[int, int], dict[int, int]]
"""For descriptors of levels 0, 1 and 2: input address >> 39, 30 or 21, to the table that they point to."""
KnownTables1 = tuple[dict[int, tuple[int, int]], dict[int, tuple[int, int]], dict[int, tuple[int, int]]]
"""The same for stage 1: to the table's address and the attributes inherited on the way."""

_ORDER_OF_TTL: Final = {1: 18, 2: 9, 3: 0}
_TABLE_ORDERS: Final = (27, 18, 9)
"""log2 of the pages that a table descriptor of level 0, 1 and 2 covers."""


class LeveledTlb(IoTlb[Entry]):
    """Translations of 4 KiB, 2 MiB and 1 GiB that remember, by their size, from which level they came."""

    def invalidate_level(self, tag: Hashable, page: int, count: int, ttl: int) -> int:
        """Drop entries of ``tag`` that cover any of ``count`` pages from ``page`` and came from level ``ttl``.

        ``ttl`` 1 to 3 is the level of the leaf, 0 any level (4.4.1.1).  Returns how many entries went.
        """
        if not ttl:
            return self.invalidate_pages(tag, page, count)
        sizes = self._tags.get(tag)
        if sizes is None:
            return 0
        order = _ORDER_OF_TTL[ttl]
        gone = _drop(sizes[ORDERS.index(order)], page >> order, page + count - 1 >> order)
        self._size -= gone
        return gone

    def covered(self, tag: Hashable, page: int, order: int) -> list[tuple[int, int, Entry]]:
        """Entries smaller than ``order`` within its 2^``order`` pages: (page, order, entry)."""
        sizes = self._tags.get(tag)
        if sizes is None:
            return []
        found = []
        for small, table in zip(ORDERS, sizes):
            if small < order:
                found += [(key << small, small, table[key]) for key in table if key << small >> order == page >> order]
        return found

    def replace(self, tag: Hashable, page: int, order: int, entry: Entry) -> None:
        """Change the entry of this very size, which exists."""
        self._tags[tag][order // 9][page >> order] = entry

    def larger(self, tag: Hashable, page: int) -> Entry | None:
        """The largest entry that covers ``page`` beside a smaller one; ``None`` if there is one entry at most."""
        sizes = self._tags.get(tag)
        if sizes is None:
            return None
        entries = [table[page >> order] for order, table in zip(ORDERS, sizes) if page >> order in table]
        return entries[-1] if len(entries) > 1 else None


class Stage2Tlb(LeveledTlb[TlbEntry]):
    """Tags are VMIDs, pages those of intermediate addresses."""


class Stage1Tlb(LeveledTlb[Stage1Entry]):
    """Tags are :data:`Stage1Tag`, pages those of virtual address bits 55:12."""


class WalkCache(Generic[Tag, Pointer]):
    """Table descriptors by tag: where a walk may go on without reading the levels above.

    ``replacement`` is asked once per walk.  ``capacity`` overrules it: so many descriptors of one tag, 0 keeps none.
    """

    def __init__(self, capacity: int | None = None, replacement: Replacement | None = None) -> None:
        self._replacement: Final = replacement if capacity is None else Oldest(capacity)
        self._tags: dict[Tag, tuple[dict[int, Pointer], dict[int, Pointer], dict[int, Pointer]]] = {}

    def known(self, tag: Tag) -> tuple[dict[int, Pointer], dict[int, Pointer], dict[int, Pointer]] | None:
        """What is known of ``tag``, for a walk to use and to add to; ``None`` if nothing may be kept."""
        tables = self._tags.get(tag)
        if self._replacement is not None:
            victims = self._replacement.victims(sum(map(len, tables)) if tables else 0)
            if victims is None:
                return None
            for position in victims if tables else ():
                _evict(cast("Iterable[dict[int, Pointer]]", tables), position)
        if tables is None:
            tables = self._tags[tag] = ({}, {}, {})
        return tables

    def invalidate_all(self) -> None:
        self._tags.clear()

    def invalidate_tag(self, tag: Tag) -> None:
        self._tags.pop(tag, None)

    def invalidate_pages(self, tag: Tag, page: int, count: int, ttl: int = 0) -> None:
        """Drop descriptors on the way to any of ``count`` pages; with a hint only those above level ``ttl``."""
        tables = self._tags.get(tag)
        if tables is not None:
            last = page + count - 1
            for order, level in zip(_TABLE_ORDERS[: ttl or 3], tables):
                _drop(level, page >> order, last >> order)

    def tags(self) -> list[Tag]:
        """The tags under which something may be cached."""
        return list(self._tags)

    def entries(self) -> Iterator[tuple[Tag, int, int, Pointer]]:
        """(tag, first page, order of the range, what it points to) of every descriptor that is cached now."""
        for tag, tables in list(self._tags.items()):
            for order, level in zip(_TABLE_ORDERS, tables):
                for key, pointer in list(level.items()):
                    yield tag, key << order, order, pointer

    def save(self) -> object:
        return {tag: (dict(t[0]), dict(t[1]), dict(t[2])) for tag, t in self._tags.items()}

    def restore(self, state: object) -> None:
        saved = cast("dict[Tag, tuple[dict[int, Pointer], dict[int, Pointer], dict[int, Pointer]]]", state)
        self._tags = {tag: (dict(t[0]), dict(t[1]), dict(t[2])) for tag, t in saved.items()}


def make_room(
    replacement: Replacement, cache: MutableMapping[Any, Any], beside: MutableMapping[Any, Any] | None = None
) -> bool:
    """Ask ``replacement`` before something is added to ``cache``; whether it may be.

    What has to go also goes from ``beside``, a second view of the same entries.
    """
    victims = replacement.victims(len(cache))
    if victims is None:
        return False
    for position in victims:
        key = next(islice(cache, position, None))
        del cache[key]
        if beside is not None:
            beside.pop(key, None)
    return True


def _evict(tables: Iterable[dict[int, Pointer]], position: int) -> None:
    for table in tables:
        if position < len(table):
            del table[next(islice(table, position, None))]
            return
        position -= len(table)


def _drop(table: dict[int, Any], first: int, last: int) -> int:
    """Remove the keys ``first`` to ``last``, inclusive; how many there were."""
    if last - first < len(table):
        stale = [key for key in range(first, last + 1) if key in table]
    else:
        stale = [key for key in table if first <= key <= last]
    for key in stale:
        del table[key]
    return len(stale)

# SPDX-License-Identifier: GPL-2.0-or-later
"""A translation cache tagged the way the manuals tag theirs.

Entries live under a tag (VT-d: the domain id; SMMUv3: VMID, or ASID with VMID) and cover 4 KiB, 2 MiB or 1 GiB.
Invalidating one page drops every entry that covers it, whatever its size, as both manuals require.

How long a stale entry may live is the choice of a replacement policy (:mod:`machine.iommu.replacement`).
"""

from collections.abc import Hashable, Iterator
from itertools import islice
from typing import Final, Generic, TypeVar, cast

from machine.iommu.replacement import Oldest, Replacement

Entry = TypeVar("Entry")
_Sizes = tuple[dict[int, Entry], dict[int, Entry], dict[int, Entry]]

ORDERS: Final = (0, 9, 18)
"""log2 of the pages that an entry may cover."""


class IoTlb(Generic[Entry]):
    """Maps (tag, page number) to what the model wants to remember of a leaf.

    ``capacity``: how many entries are kept, the oldest makes way; ``None`` leaves that to ``replacement``, whose
    ``None`` keeps everything until it is invalidated.
    """

    def __init__(self, capacity: int | None = None, replacement: Replacement | None = None) -> None:
        self._replacement: Final = replacement if capacity is None else Oldest(capacity)
        self._tags: dict[Hashable, _Sizes[Entry]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def lookup(self, tag: Hashable, page: int) -> Entry | None:
        """The entry under ``tag`` that covers 4 KiB page number ``page``, smallest size first."""
        sizes = self._tags.get(tag)
        if sizes is None:
            return None
        entry = sizes[0].get(page)
        if entry is None:
            entry = sizes[1].get(page >> 9)
            if entry is None:
                entry = sizes[2].get(page >> 18)
        return entry

    def order(self, tag: Hashable, page: int) -> int | None:
        """log2 of the pages that the entry of :meth:`lookup` covers, ``None`` if there is no entry."""
        sizes = self._tags.get(tag, ())
        return next((order for order, table in zip(ORDERS, sizes) if page >> order in table), None)

    def insert(self, tag: Hashable, page: int, order: int, entry: Entry) -> None:
        """Remember ``entry`` for the 2^``order`` pages (0, 9 or 18) around ``page``."""
        if self._replacement is not None:
            victims = self._replacement.victims(self._size)
            if victims is None:
                return
            for position in victims:
                self._evict(position)
        sizes = self._tags.get(tag)
        if sizes is None:
            sizes = self._tags[tag] = ({}, {}, {})
        table = sizes[order // 9]
        key = page >> order
        if key not in table:
            self._size += 1
        table[key] = entry

    def invalidate_all(self) -> int:
        """Drop everything; returns how many entries went."""
        gone, self._size = self._size, 0
        self._tags.clear()
        return gone

    def invalidate_tag(self, tag: Hashable) -> int:
        """Drop every entry under ``tag``; returns how many went."""
        sizes = self._tags.pop(tag, None)
        gone = sum(map(len, sizes)) if sizes else 0
        self._size -= gone
        return gone

    def invalidate_pages(self, tag: Hashable, page: int, count: int) -> int:
        """Drop every entry under ``tag`` that covers any of ``count`` pages from ``page``; how many went."""
        sizes = self._tags.get(tag)
        if sizes is None:
            return 0
        if count == 1:  # what most commands name, so worth three plain look-ups
            small, large, huge = sizes
            gone = 0
            if page in small:
                del small[page]
                gone = 1
            if page >> 9 in large:
                del large[page >> 9]
                gone += 1
            if page >> 18 in huge:
                del huge[page >> 18]
                gone += 1
            self._size -= gone
            return gone
        gone = 0
        last = page + count - 1
        for order, table in zip(ORDERS, sizes):
            if not table:
                continue
            first_key, last_key = page >> order, last >> order
            if last_key - first_key < len(table):
                for key in range(first_key, last_key + 1):
                    gone += table.pop(key, None) is not None
            else:
                for key in [key for key in table if first_key <= key <= last_key]:
                    del table[key]
                    gone += 1
        self._size -= gone
        return gone

    def entries(self) -> Iterator[tuple[Hashable, int, int, Entry]]:
        """(tag, first page, order, entry) of everything that is cached now."""
        for tag, sizes in list(self._tags.items()):
            for order, table in zip(ORDERS, sizes):
                for key, entry in list(table.items()):
                    yield tag, key << order, order, entry

    def tags(self) -> Iterator[Hashable]:
        """The tags under which something is cached."""
        return iter(list(self._tags))

    def save(self) -> object:
        """A copy that :meth:`restore` accepts."""
        return (self._size, {tag: (dict(s[0]), dict(s[1]), dict(s[2])) for tag, s in self._tags.items()})

    def restore(self, state: object) -> None:
        size, tags = cast("tuple[int, dict[Hashable, _Sizes[Entry]]]", state)
        self._size = size
        self._tags = {tag: (dict(s[0]), dict(s[1]), dict(s[2])) for tag, s in tags.items()}

    def _evict(self, position: int) -> None:
        """Drop the entry at ``position``, counted tag by tag and within a tag size by size, oldest first."""
        for tag, sizes in self._tags.items():
            for table in sizes:
                if position < len(table):
                    del table[next(islice(table, position, None))]
                    self._size -= 1
                    if not any(sizes):
                        del self._tags[tag]
                    return
                position -= len(table)

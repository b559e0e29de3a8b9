# SPDX-License-Identifier: GPL-2.0-or-later
"""The translation caches: leaves and table descriptors of stage 2, tagged by VMID (IHI 0070, 3.17, 4.4 and 16.2).

Invalidation removes what the command must remove and nothing else, so that a hint that does not match the
tables, or a leaf-only command after a table was freed, leaves an entry stale here as it may on silicon.
"""

from collections.abc import Iterator
from typing import Final, cast

from machine.iommu.iotlb import ORDERS, IoTlb

TlbEntry = tuple[int, int]
"""Output address minus input address, and the ``walk.ALLOW_*`` bits of the leaf."""

KnownTables = tuple[dict[int, int], dict[int, int], dict[int, int]]
"""For descriptors of levels 0, 1 and 2: input address >> 39, 30 or 21, to the table that they point to."""

_ORDER_OF_TTL: Final = {1: 18, 2: 9, 3: 0}
_TABLE_ORDERS: Final = (27, 18, 9)
"""log2 of the pages that a table descriptor of level 0, 1 and 2 covers."""


class Stage2Tlb(IoTlb[TlbEntry]):
    """Translations of 4 KiB, 2 MiB and 1 GiB; tags are VMIDs."""

    def invalidate_level(self, vmid: int, page: int, count: int, ttl: int) -> int:
        """Drop entries of ``vmid`` that cover any of ``count`` pages from ``page`` and came from level ``ttl``.

        ``ttl`` 1 to 3 is the level of the leaf, 0 any level (4.4.1.1).  Returns how many entries went.
        """
        if not ttl:
            return self.invalidate_pages(vmid, page, count)
        sizes = self._tags.get(vmid)
        if sizes is None:
            return 0
        order = _ORDER_OF_TTL[ttl]
        gone = _drop(sizes[ORDERS.index(order)], page >> order, page + count - 1 >> order)
        self._size -= gone
        return gone


class WalkCache:
    """Table descriptors by VMID: where a walk may go on without reading the levels above.

    ``capacity``: ``None`` keeps everything until it is invalidated; a number is how many descriptors of one VMID
    are kept before all of them are forgotten; 0 keeps none.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity: Final = capacity
        self._vmids: dict[int, KnownTables] = {}

    def known(self, vmid: int) -> KnownTables | None:
        """What is known of ``vmid``, for a walk to use and to add to; ``None`` if nothing may be kept."""
        tables = self._vmids.get(vmid)
        if tables is None:
            if self._capacity == 0:
                return None
            tables = self._vmids[vmid] = ({}, {}, {})
        elif self._capacity is not None and sum(map(len, tables)) >= self._capacity:
            for level in tables:
                level.clear()
        return tables

    def invalidate_all(self) -> None:
        self._vmids.clear()

    def invalidate_vmid(self, vmid: int) -> None:
        self._vmids.pop(vmid, None)

    def invalidate_pages(self, vmid: int, page: int, count: int, ttl: int = 0) -> None:
        """Drop descriptors on the way to any of ``count`` pages; with a hint only those above level ``ttl``."""
        tables = self._vmids.get(vmid)
        if tables is not None:
            last = page + count - 1
            for order, level in zip(_TABLE_ORDERS[: ttl or 3], tables):
                _drop(level, page >> order, last >> order)

    def entries(self) -> Iterator[tuple[int, int, int, int]]:
        """(VMID, first page, order of the range, table) of every descriptor that is cached now."""
        for vmid, tables in list(self._vmids.items()):
            for order, level in zip(_TABLE_ORDERS, tables):
                for key, table in list(level.items()):
                    yield vmid, key << order, order, table

    def save(self) -> object:
        return {vmid: (dict(t[0]), dict(t[1]), dict(t[2])) for vmid, t in self._vmids.items()}

    def restore(self, state: object) -> None:
        saved = cast(dict[int, KnownTables], state)
        self._vmids = {vmid: (dict(t[0]), dict(t[1]), dict(t[2])) for vmid, t in saved.items()}


def _drop(table: dict[int, int] | dict[int, TlbEntry], first: int, last: int) -> int:
    """Remove the keys ``first`` to ``last``, inclusive; how many there were."""
    if last - first < len(table):
        stale = [key for key in range(first, last + 1) if key in table]
    else:
        stale = [key for key in table if first <= key <= last]
    for key in stale:
        del table[key]
    return len(stale)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The translation cache: stage 2 translations tagged by VMID (IHI 0070, 3.17 and 4.4).

An entry is ``(delta, allowed)``: output address minus input address, and the ``walk.ALLOW_*`` bits of the leaf.
Invalidation removes what the command must remove and nothing else, so that a hint that does not match the
tables leaves the entry stale here as it may on silicon.
"""

from typing import Final

from machine.iommu.iotlb import ORDERS, IoTlb

TlbEntry = tuple[int, int]

_ORDER_OF_TTL: Final = {1: 18, 2: 9, 3: 0}


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
        table = sizes[ORDERS.index(order)]
        first, last = page >> order, page + count - 1 >> order
        if last - first < len(table):
            gone = sum(table.pop(key, None) is not None for key in range(first, last + 1))
        else:
            stale = [key for key in table if first <= key <= last]
            for key in stale:
                del table[key]
            gone = len(stale)
        self._size -= gone
        return gone

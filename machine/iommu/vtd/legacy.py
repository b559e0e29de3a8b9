# SPDX-License-Identifier: GPL-2.0-or-later
"""Legacy mode asked one question at a time, for translation services: the same caches and tables that DMA uses.

Plain DMA takes the shorter way in ``unit``; a test holds the two together.
"""

from collections.abc import Callable
from typing import Final

from machine.iommu.vtd.reasons import BEYOND_WIDTH, BLOCKED_BY_TYPE, NO_READ, NO_WRITE, SM_LEGACY_WITH_PASID
from machine.iommu.vtd.tables import Context
from machine.iommu.vtd.walk import ALLOWED_SHIFT, REASON_SHIFT, SNP, R, SecondLevel, W

_WITH_PASID: Final = Context(-1, 0, 0, 0, False, -1, SM_LEGACY_WITH_PASID)


class LegacyResolver:
    """Context entries and second-level tables; see :class:`machine.iommu.vtd.device_tlb.Resolver`."""

    def __init__(self, look_up: Callable[[int], Context], second_level: SecondLevel) -> None:
        self._look_up: Final = look_up
        self._second_level: Final = second_level

    def admit(self, sid: int, pasid: int | None, ats: bool) -> Context:
        if pasid is not None:
            return _WITH_PASID
        context = self._look_up(sid)
        if ats and not context.code and not context.device_tlb:
            return context._replace(code=BLOCKED_BY_TYPE)
        return context

    def locate(self, context: Context, iova: int, write: bool) -> int:
        if iova > context.limit:
            return iova if iova <= context.through else -BEYOND_WIDTH
        need = W if write else R
        entry = self._second_level.iotlb.lookup(context.did, iova >> 12)
        if entry is None:
            return self._second_level.translate(context.did, context.root, context.shift, iova, need)
        if entry & need:
            return iova + (entry & -4096)
        if entry >> ALLOWED_SHIFT & need:
            return -(entry >> REASON_SHIFT & 0x7F)
        return -(NO_WRITE if write else NO_READ)

    def extent(self, context: Context, iova: int) -> tuple[int, bool]:
        iotlb = self._second_level.iotlb
        entry = iotlb.lookup(context.did, iova >> 12)
        return iotlb.order(context.did, iova >> 12) or 0, bool(entry is not None and entry & SNP)

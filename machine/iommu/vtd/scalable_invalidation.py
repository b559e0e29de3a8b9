# SPDX-License-Identifier: GPL-2.0-or-later
"""What the invalidation commands drop in scalable mode (VT-d specification 6.5.2.1 to 6.5.2.4).

Legacy mode's commands reach further here: context entries carry no domain id, so a domain-selective command takes
all of them; domain-selective IOTLB commands take every PASID of the domain; page-selective ones take the second
stage's pages and all nested translations.  Two descriptors are new: PASID-based IOTLB (type 6) for what the first stage
translated, and PASID cache (type 7).
"""

from typing import Final

from machine.iommu.unit import Counters
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.invalidation import DEVICE, DOMAIN, FUNCTION_MASKS, GLOBAL, PAGES, Invalidation
from machine.iommu.vtd.queue import RESERVED_FIELD, InvalidationQueue
from machine.iommu.vtd.scalable import ScalableMode
from machine.iommu.vtd.tables import ContextCache
from machine.iommu.vtd.walk import SecondLevel

PASID_IOTLB: Final = 6
PASID_CACHE: Final = 7

PASID_IOTLB_RESERVED_LOW: Final = 0xFFF0_0000_0000_F1C0
PASID_IOTLB_RESERVED_HIGH: Final = 0xF80
PASID_CACHE_RESERVED_LOW: Final = 0xFFF0_0000_0000_F1C0

OF_DOMAIN: Final = 0
OF_PASID: Final = 1
OF_ALL: Final = 3
"""Granularities of a PASID-cache invalidation."""


class ScalableInvalidation(Invalidation):
    """The commands of a unit with scalable mode; they act on the caches of both modes."""

    def __init__(
        self,
        config: VtdConfig,
        contexts: ContextCache,
        second_level: SecondLevel,
        counters: Counters,
        scalable: ScalableMode,
    ) -> None:
        super().__init__(config, contexts, second_level, counters)
        self._scalable: Final = scalable
        no_did = 0xFFFF_0000 & ~((1 << config.domain_id_bits) - 1 << 16)
        self._iotlb_reserved_low: Final = PASID_IOTLB_RESERVED_LOW | no_did
        self._cache_reserved_low: Final = PASID_CACHE_RESERVED_LOW | no_did

    def register(self, queue: InvalidationQueue) -> None:
        """Let ``queue`` execute the descriptors of scalable mode."""
        queue.actions[PASID_IOTLB] = self._pasid_iotlb
        queue.actions[PASID_CACHE] = self._pasid_cache

    def context_cache(self, granularity: int, did: int, sid: int, function_mask: int) -> int:
        requesters = self._scalable.requesters
        if granularity in (GLOBAL, DOMAIN):
            requesters.clear()
        elif granularity == DEVICE:
            ignore = FUNCTION_MASKS[function_mask]
            for each in [each for each in requesters if each & ~ignore == sid & ~ignore]:
                del requesters[each]
        return super().context_cache(granularity, did, sid, function_mask)

    def iotlb(self, granularity: int, did: int, address: int) -> int:
        used = super().iotlb(granularity, did, address)
        if used == DOMAIN:
            self._scalable.forget_domain(did)
        elif used == PAGES:
            count = 1 << (address & 0x3F)
            self._scalable.forget_pages(did, address >> 12 & -count, count, bool(address & 0x40))
        return used

    def all_translations(self) -> None:
        super().all_translations()
        for cache in self._scalable.caches():
            cache.invalidate_all()

    def all_entries(self) -> None:
        super().all_entries()
        self._scalable.requesters.clear()
        self._scalable.spaces.clear()

    def _pasid_iotlb(self, low: int, high: int) -> int:
        if low & self._iotlb_reserved_low or high & PASID_IOTLB_RESERVED_HIGH:
            return RESERVED_FIELD
        granularity, order = low >> 4 & 3, high & 0x3F
        if granularity < DOMAIN or (granularity == PAGES and order > self._mamv):
            return RESERVED_FIELD
        tag = (low >> 16 & 0xFFFF, low >> 32 & 0xF_FFFF)
        first = self._scalable.first
        if granularity == PAGES:
            count = 1 << order
            page = high >> 12 & -count
            first.iotlb.invalidate_pages(tag, page, count)
            first.nested.invalidate_pages(tag, page, count)
            if not high & 0x40:
                first.structures.invalidate_pages(tag, page, count)
        else:
            for cache in (first.iotlb, first.nested, first.structures):
                cache.invalidate_tag(tag)
        self._commands["PASID-based IOTLB"] += 1
        return 0

    def _pasid_cache(self, low: int, high: int) -> int:
        granularity = low >> 4 & 3
        if low & self._cache_reserved_low or high or granularity == 2:
            return RESERVED_FIELD
        did, pasid = low >> 16 & 0xFFFF, low >> 32 & 0xF_FFFF
        spaces = self._scalable.spaces
        for key, space in list(spaces.items()):
            if granularity == OF_ALL or (space.did == did and (granularity == OF_DOMAIN or key[1] == pasid)):
                del spaces[key]
        self._commands["PASID cache"] += 1
        return 0

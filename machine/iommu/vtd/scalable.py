# SPDX-License-Identifier: GPL-2.0-or-later
"""Scalable mode assembled: its caches, and the decision for a request with or without a PASID.

Caches: context entries by source id, untagged; PASID table entries by source id and PASID, tagged with their domain
id; the two stages' translations.  Missing and broken entries are remembered only with caching mode, and then under
domain id 0; missing pages are not remembered at all.
"""

from typing import Any, Final, NamedTuple

from machine.iommu.replacement import Replacement, make_room
from machine.iommu.unit import Counters
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.first_stage import FirstStage
from machine.iommu.vtd.reasons import (
    SM_BEYOND_HOST_WIDTH,
    SM_INTERRUPT_ADDRESS,
    SM_NO_DEVICE_TLB,
    SM_NO_PASID,
    SM_NO_SUPERVISOR,
    SM_PASID_TOO_LARGE,
    SM_RID_PASID,
)
from machine.iommu.vtd.registers import DOORBELL_MEGABYTE
from machine.iommu.vtd.scalable_tables import (
    PGTT_PASS_THROUGH,
    PGTT_SECOND,
    AddressSpace,
    Requester,
    ScalableTables,
)
from machine.iommu.vtd.second_stage import SecondStage, TableMemory
from machine.iommu.vtd.visibility import Words
from machine.iommu.vtd.walk import SNP, R, SecondLevel, W
from machine.memory import PhysicalMemory


class Granted(NamedTuple):
    """A requester's address space, or the reason ``code`` why it has none."""

    code: int
    fpd: bool
    space: AddressSpace = AddressSpace(0, False)
    supervisor: bool = False


class ScalableMode:
    """See :class:`machine.iommu.vtd.device_tlb.Resolver` for what it answers."""

    def __init__(
        self,
        config: VtdConfig,
        memory: PhysicalMemory,
        view: Words,
        rules: SecondLevel,
        counters: Counters,
        replacement: Replacement | None,
    ) -> None:
        self.tables: Final = ScalableTables(config, view)
        self.requesters: Final[dict[int, Requester]] = {}
        self.spaces: Final[dict[tuple[int, int], AddressSpace]] = {}
        """Keyed by source id and PASID."""
        self._walked: Final = TableMemory(memory, view)
        self.second: Final = SecondStage(rules, self._walked, replacement, config.paging_structure_caches)
        self.first: Final = FirstStage(config, self._walked, self.second, replacement)
        self._counters: Final = counters
        self._replacement: Final = replacement
        self._negative: Final = config.caching_mode

    def admit(self, sid: int, pasid: int | None, ats: bool) -> Granted:
        requester = self.requesters.get(sid)
        if requester is None:
            self._counters.config_misses += 1
            requester = self.tables.requester(sid)
            if (not requester.code or self._negative) and make_room(self.requesters, self._replacement):
                self.requesters[sid] = requester
        else:
            self._counters.config_hits += 1
        code, fpd, supervisor = requester.code, requester.fpd, False
        if not code:
            if pasid is None:
                pasid, supervisor = requester.rid_pasid, requester.rid_supervisor
                code = SM_RID_PASID if pasid >= requester.pasids else 0
            elif not requester.with_pasid:
                code = SM_NO_PASID
            elif pasid >= requester.pasids:
                code = SM_PASID_TOO_LARGE
            if not code and ats and not requester.device_tlb:
                code = SM_NO_DEVICE_TLB
        if code or pasid is None:
            return Granted(code, fpd)
        space = self.spaces.get((sid, pasid))
        if space is None:
            space = self.tables.address_space(requester, pasid)
            if (not space.code or self._negative) and make_room(self.spaces, self._replacement):
                self.spaces[sid, pasid] = space
        code = space.code
        if supervisor and not code and space.kind not in (PGTT_SECOND, PGTT_PASS_THROUGH) and not space.supervisor:
            code = SM_NO_SUPERVISOR
        return Granted(code, space.fpd, space, supervisor)

    def translate(self, granted: Granted, iova: int, write: bool) -> int:
        """:meth:`locate`, counted as a hit or a miss."""
        walks = self._walked.walks
        result = self.locate(granted, iova, write)
        if self._walked.walks != walks:
            self._counters.iotlb_misses += 1
        elif granted.space.kind != PGTT_PASS_THROUGH:
            self._counters.iotlb_hits += 1
        return result

    def locate(self, granted: Granted, iova: int, write: bool) -> int:
        space, need = granted.space, W if write else R
        if space.kind == PGTT_SECOND:
            maddr = self.second.locate(space, iova, need)
        elif space.kind == PGTT_PASS_THROUGH:
            maddr = iova if iova <= space.limit else -SM_BEYOND_HOST_WIDTH
        else:
            maddr = self.first.locate(space, iova, need, granted.supervisor)
        return -SM_INTERRUPT_ADDRESS if maddr >> 20 == DOORBELL_MEGABYTE else maddr

    def extent(self, granted: Granted, iova: int) -> tuple[int, bool]:
        space = granted.space
        if space.kind == PGTT_PASS_THROUGH:
            return 0, space.snooped
        tag = space.did if space.kind == PGTT_SECOND else (space.did, space.pasid)
        cache = self.second.iotlb if space.kind == PGTT_SECOND else self.first.cache(space)
        entry = cache.lookup(tag, iova >> 12) or 0
        return cache.order(tag, iova >> 12) or 0, space.snooped or bool(entry & SNP)

    def caches(self) -> tuple[Any, ...]:
        """The translation caches, for snapshots and for commands that empty them all."""
        first, second = self.first, self.second
        return second.iotlb, second.structures, first.iotlb, first.nested, first.structures

    def forget_domain(self, did: int) -> None:
        """Drop every translation tagged with ``did``, whatever its PASID."""
        self.second.iotlb.invalidate_tag(did)
        self.second.structures.invalidate_tag(did)
        for cache in (self.first.iotlb, self.first.nested, self.first.structures):
            for tag in cache.tags():
                if isinstance(tag, tuple) and tag[0] == did:
                    cache.invalidate_tag(tag)

    def forget_pages(self, did: int, page: int, count: int, leaf_only: bool) -> None:
        """Drop second-stage translations of the pages, and every nested one of the domain: nobody knows which of
        those went through the pages."""
        self.second.iotlb.invalidate_pages(did, page, count)
        if not leaf_only:
            self.second.structures.invalidate_pages(did, page, count)
        for tag in self.first.nested.tags():
            if isinstance(tag, tuple) and tag[0] == did:
                self.first.nested.invalidate_tag(tag)

    def save(self) -> object:
        return (
            self.tables.root_table,
            dict(self.requesters),
            dict(self.spaces),
            [cache.save() for cache in self.caches()],
        )

    def restore(self, state: Any) -> None:
        self.tables.root_table, requesters, spaces, caches = state
        self.requesters.clear()
        self.requesters.update(requesters)
        self.spaces.clear()
        self.spaces.update(spaces)
        for cache, saved in zip(self.caches(), caches):
            cache.restore(saved)

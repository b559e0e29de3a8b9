# SPDX-License-Identifier: GPL-2.0-or-later
"""A device's own translation cache (PCIe: ATC) and the port of a device that has one.

The cache keeps what the IOMMU completed until the IOMMU takes it back.  Nothing else makes it forget, so a missing
device-TLB invalidation leaves the device writing to memory that it lost, past the IOMMU.
"""

from collections.abc import Hashable
from typing import Final, cast

from machine.dma import DmaFabric, PiecewisePort
from machine.iommu.ats import (
    AtsUnit,
    Completion,
    InvalidateCompletion,
    InvalidateRequest,
    Status,
)
from machine.iommu.iotlb import ORDERS, IoTlb
from machine.iommu.replacement import Replacement
from machine.iommu.unit import Fault, IommuUnit

NO_TRANSLATION: Final = 0
"""``Fault.code`` of a request that the device itself gave up: the IOMMU recorded nothing."""


class TranslationCache:
    """Completions by PASID (``None``: none) and page.  The IOMMU's end is :meth:`invalidate`."""

    def __init__(self, replacement: Replacement | None = None) -> None:
        self._entries: Final[IoTlb[Completion]] = IoTlb(replacement=replacement)
        self.answering = True
        """A device that hangs, or was reset, does not answer invalidations and does not obey them."""

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, pasid: int | None, page: int) -> Completion | None:
        return self._entries.lookup(pasid, page)

    def keep(self, pasid: int | None, page: int, completion: Completion) -> None:
        """Remember a completion for the largest size of 4 KiB, 2 MiB and 1 GiB that it covers around ``page``."""
        order = max(order for order in ORDERS if order <= completion.order)
        self._entries.insert(pasid, page, order, completion)

    def invalidate(self, request: InvalidateRequest) -> InvalidateCompletion | None:
        if not self.answering:
            return None
        tags: list[Hashable] = list(self._entries.tags()) if request.every_pasid else [request.pasid]
        for tag in tags:
            self._entries.invalidate_pages(tag, request.iova >> 12, 1 << request.order)
        return InvalidateCompletion(request.sid, request.itag)

    def save(self) -> object:
        return (self.answering, self._entries.save())

    def restore(self, state: object) -> None:
        self.answering, entries = cast("tuple[bool, object]", state)
        self._entries.restore(entries)

    def reset(self) -> None:
        """Function-level reset: nothing is cached, and the device answers again."""
        self._entries.invalidate_all()
        self.answering = True


class CachingPort(PiecewisePort):
    """The port of a device with a translation cache, enabled; ``ValueError`` if its unit offers no translations."""

    def __init__(
        self, fabric: DmaFabric, sbdf: int, pasid: int | None = None, cache: TranslationCache | None = None
    ) -> None:
        super().__init__(fabric, sbdf)
        unit, sid = fabric.route(sbdf)
        if not isinstance(unit, AtsUnit):
            raise ValueError(f"the unit of requester {sbdf:#x} offers no translation services")
        self._unit: Final = unit
        self._sid: Final = sid
        self.pasid: Final = pasid
        self.cache: Final = TranslationCache() if cache is None else cache
        unit.connect_device_tlb(sid, self.cache)

    def translate(self, unit: IommuUnit, iova: int, write: bool) -> int | Fault:
        sid, page = self._sid, iova >> 12
        found = self.cache.lookup(self.pasid, page)
        if found is None or not (found.write if write else found.read):
            found = self._unit.translation_request(sid, iova, not write, self.pasid)
            if found.status is not Status.SUCCESS:
                return found.fault or Fault(
                    unit.name, sid, iova, write, NO_TRANSLATION, found.status.value, pasid=self.pasid
                )
            if not (found.write if write else found.read):
                name = f"device found no translation to {'write' if write else 'read'}"
                return Fault(unit.name, sid, iova, write, NO_TRANSLATION, name, pasid=self.pasid)
            if found.untranslated:
                return unit.translate(sid, iova, write)
            self.cache.keep(self.pasid, page, found)
        return self._unit.translated_request(sid, found.maddr | iova & (4096 << found.order) - 1, write)

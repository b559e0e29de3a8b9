# SPDX-License-Identifier: GPL-2.0-or-later
"""Device TLBs (VT-d specification chapter 4, 6.5.2.5, 6.5.2.6): translation requests, translated requests, and
the descriptors that take translations back.

A translation request that finds nothing mapped, or no permission, succeeds without permissions and is not a
fault: the device may ask for the page.  Structures that are missing or types that forbid it answer "unsupported
request", structures that are broken or cannot be read answer "completer abort"; both are recorded.

A device that does not answer an invalidation makes the next wait descriptor time out: FSTS.ITE is set, the wait is
aborted (its status is never written), and nothing more is fetched until software clears ITE.  An answer that nobody
asked for, by source or tag, sets FSTS.ICE; the true answer is then still missing.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

from machine.iommu.ats import (
    EVERYTHING,
    Completion,
    InvalidateCompletion,
    InvalidateRequest,
    InvalidationPort,
    Status,
)
from machine.iommu.unit import Fault
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.queue import RESERVED_FIELD, SOFTWARE_RAN, InvalidationQueue
from machine.iommu.vtd.reasons import (
    BEYOND_WIDTH,
    BLOCKED_BY_TYPE,
    CONTEXT_NOT_PRESENT,
    FS_NOT_PRESENT,
    INTERRUPT_ADDRESS,
    NO_READ,
    NO_WRITE,
    ROOT_NOT_PRESENT,
    SM_BEYOND_HOST_WIDTH,
    SM_BEYOND_WIDTH,
    SM_CONTEXT_NOT_PRESENT,
    SM_DIRECTORY_NOT_PRESENT,
    SM_LEGACY_WITH_PASID,
    SM_NO_DEVICE_TLB,
    SM_NO_PASID,
    SM_NO_READ,
    SM_NO_WRITE,
    SM_NOT_CANONICAL,
    SM_PASID_NOT_PRESENT,
    SM_PASID_TOO_LARGE,
    SM_RID_PASID,
    SM_ROOT_NOT_PRESENT,
    SM_SUPERVISOR_PAGE,
    SS_NOT_PRESENT,
)
from machine.iommu.vtd.registers import DOORBELL_MEGABYTE

NOTHING_THERE: Final = frozenset(
    (
        NO_WRITE,
        NO_READ,
        BEYOND_WIDTH,
        FS_NOT_PRESENT,
        SS_NOT_PRESENT,
        SM_NOT_CANONICAL,
        SM_SUPERVISOR_PAGE,
        SM_BEYOND_HOST_WIDTH,
        SM_BEYOND_WIDTH,
        SM_NO_WRITE,
        SM_NO_READ,
    )
)
"""Reasons that a translation request answers with a success without permissions."""
NOT_FOR_IT: Final = frozenset(
    (
        ROOT_NOT_PRESENT,
        CONTEXT_NOT_PRESENT,
        BLOCKED_BY_TYPE,
        SM_LEGACY_WITH_PASID,
        SM_ROOT_NOT_PRESENT,
        SM_CONTEXT_NOT_PRESENT,
        SM_NO_DEVICE_TLB,
        SM_NO_PASID,
        SM_PASID_TOO_LARGE,
        SM_RID_PASID,
        SM_DIRECTORY_NOT_PRESENT,
        SM_PASID_NOT_PRESENT,
    )
)
"""Reasons that a translation request answers with "unsupported request"; the others abort it."""

AT_TRANSLATION: Final = 1
AT_TRANSLATED: Final = 2
"""The address type of a request, as TLPs and fault records have it."""

DEVICE_IOTLB: Final = 3
PASID_DEVICE_IOTLB: Final = 8
DEVICE_RESERVED_LOW: Final = 0x000F_0000_FFE0_01F0
DEVICE_RESERVED_HIGH: Final = 0xFFE
PASID_DEVICE_RESERVED_HIGH: Final = 0x7FE


class Grant(Protocol):
    """What the tables say about a requester, as far as this file cares."""

    @property
    def code(self) -> int: ...

    @property
    def fpd(self) -> bool: ...


class Resolver(Protocol):
    """The tables of one mode, asked without recording anything."""

    def admit(self, sid: int, pasid: int | None, ats: bool) -> Grant:
        """Root, context and PASID entries; ``code`` is the fault reason of a requester that they refuse."""
        ...

    def locate(self, grant: Any, iova: int, write: bool) -> int:
        """Machine address, or minus the fault reason."""
        ...

    def extent(self, grant: Any, iova: int) -> tuple[int, bool]:
        """(log2 of the pages that the translation covers, whether its leaf says SNP); 0 where nobody remembers."""
        ...


RecordFault = Callable[[int, int, bool, int, bool, int | None, int], Fault]
"""(sid, address, write, code, fpd, pasid, address type)."""


class DeviceTlbRequests:
    """Answers devices.  ``resolver`` follows the mode of the unit; ``None`` while it does not translate."""

    def __init__(self, record: RecordFault) -> None:
        self._record: Final = record
        self.resolver: Resolver | None = None

    def translation(self, sid: int, iova: int, no_write: bool, pasid: int | None) -> Completion:
        """A translation request (4.1): both permissions are looked up, since the device keeps both."""
        resolver = self.resolver
        if resolver is None:
            return Completion(Status.UNSUPPORTED)
        page = iova & -4096
        if pasid is None and iova >> 20 == DOORBELL_MEGABYTE:
            return Completion(Status.SUCCESS, page, 0, False, True, untranslated=True)
        grant = resolver.admit(sid, pasid, True)
        if grant.code:
            return self._refused(sid, iova, not no_write, grant.code, grant.fpd, pasid)
        found = [resolver.locate(grant, page, False), -NO_WRITE if no_write else resolver.locate(grant, page, True)]
        for maddr in found:
            if maddr < 0 and -maddr not in NOTHING_THERE:
                return self._refused(sid, iova, not no_write, -maddr, grant.fpd, pasid)
        maddr = max(found)
        if maddr < 0:
            return Completion(Status.SUCCESS)
        order, snooped = resolver.extent(grant, page)
        return Completion(
            Status.SUCCESS, maddr >> 12 + order << 12 + order, order, found[0] >= 0, found[1] >= 0, snooped=snooped
        )

    def translated(self, sid: int, maddr: int, write: bool) -> int | Fault:
        """A translated request (4.2): whether the tables still allow this requester to issue it."""
        resolver = self.resolver
        if resolver is None:
            return self._record(sid, maddr, write, BLOCKED_BY_TYPE, True, None, AT_TRANSLATED)
        grant = resolver.admit(sid, None, True)
        if grant.code:
            return self._record(sid, maddr, write, grant.code, grant.fpd, None, AT_TRANSLATED)
        if maddr >> 20 == DOORBELL_MEGABYTE:
            return self._record(sid, maddr, write, INTERRUPT_ADDRESS, grant.fpd, None, AT_TRANSLATED)
        return maddr

    def _refused(self, sid: int, iova: int, write: bool, code: int, fpd: bool, pasid: int | None) -> Completion:
        fault = self._record(sid, iova, write, code, fpd, pasid, AT_TRANSLATION)
        return Completion(Status.UNSUPPORTED if code in NOT_FOR_IT else Status.ABORT, fault=fault)


class DeviceTlbInvalidation:
    """Descriptor types 3 and 8, and the devices that they reach."""

    def __init__(self, config: VtdConfig, queue: InvalidationQueue, commands: dict[str, int]) -> None:
        self._queue: Final = queue
        self._commands: Final = commands
        self.ports: Final[dict[int, InvalidationPort]] = {}
        """By source id: the cables of the machine, no part of a snapshot."""
        self._itag = 0
        if config.device_tlb:
            queue.actions[DEVICE_IOTLB] = self._device_iotlb
            if config.scalable:
                queue.actions[PASID_DEVICE_IOTLB] = self._pasid_device_iotlb

    def _device_iotlb(self, low: int, high: int) -> int:
        if low & DEVICE_RESERVED_LOW or high & DEVICE_RESERVED_HIGH:
            return RESERVED_FIELD
        self._commands["device-TLB"] += 1
        iova, order = _range(high, high & 1)
        return self._send(InvalidateRequest(low >> 32 & 0xFFFF, self._next_itag(), iova, order))

    def _pasid_device_iotlb(self, low: int, high: int) -> int:
        if high & PASID_DEVICE_RESERVED_HIGH:
            return RESERVED_FIELD
        self._commands["PASID-based device-TLB"] += 1
        iova, order = _range(high, high >> 11 & 1)
        sid, pasid = low >> 16 & 0xFFFF, low >> 32 & 0xF_FFFF
        return self._send(InvalidateRequest(sid, self._next_itag(), iova, order, pasid, bool(high & 1)))

    def _next_itag(self) -> int:
        """PCIe gives an invalidation one of 32 tags."""
        self._itag = self._itag + 1 & 31
        return self._itag

    def _send(self, request: InvalidateRequest) -> int:
        port = self.ports.get(request.sid)
        answer = port.invalidate(request) if port is not None else None
        if answer == InvalidateCompletion(request.sid, request.itag):
            return 0
        if answer is not None:
            self._queue.completion_error(answer.sid)
        self._queue.completion_missing(request.sid)
        return SOFTWARE_RAN


def _range(high: int, large: int) -> tuple[int, int]:
    """(first address, log2 of its pages) of an invalidation address: the lowest 0 from bit 12 up gives the size."""
    page = high >> 12
    if not large:
        return page << 12, 0
    order = min((page + 1 & ~page).bit_length(), EVERYTHING)
    return page >> order << order + 12, order

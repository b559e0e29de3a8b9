# SPDX-License-Identifier: GPL-2.0-or-later
"""Address translation services (PCI Express base specification, chapter 10): what passes between an IOMMU and a
device that keeps translations in a cache of its own.

The device asks with a translation request and gets a :class:`Completion`.  What it then does to memory at the
translated address is a translated request.  The IOMMU takes translations back with an :class:`InvalidateRequest`,
which the device answers when it will not use them any more.
"""

from enum import Enum
from typing import NamedTuple, Protocol, runtime_checkable

from machine.iommu.unit import Fault, IommuUnit

EVERYTHING: int = 52
"""Order of an invalidation that names all of the 64-bit address space."""


class Status(Enum):
    """How a translation request ends (PCIe 10.2.3.1)."""

    SUCCESS = "success"
    UNSUPPORTED = "unsupported request"
    """The device must stop asking: translation services are not for it."""
    ABORT = "completer abort"
    """The tables are broken; asking again may succeed once they are repaired."""


class Completion(NamedTuple):
    """Answer to a translation request.  Neither ``read`` nor ``write``: nothing is mapped there, do not go there."""

    status: Status
    maddr: int = 0
    """First byte of the translated range, which is naturally aligned."""
    order: int = 0
    """log2 of the 4 KiB pages in the range."""
    read: bool = False
    write: bool = False
    untranslated: bool = False
    """U: the range may be reached with untranslated requests only."""
    snooped: bool = False
    """N: requests to the range must be snooped."""
    fault: Fault | None = None
    """What the unit recorded, if anything."""


class InvalidateRequest(NamedTuple):
    """Forget what covers any of 2^``order`` pages at ``iova``; ``pasid`` ``None``: of requests without one."""

    sid: int
    itag: int
    iova: int
    order: int
    pasid: int | None = None
    every_pasid: bool = False
    """G: whatever the PASID."""


class InvalidateCompletion(NamedTuple):
    """The device does not use what the request named any more."""

    sid: int
    itag: int


class InvalidationPort(Protocol):
    """The end of a device's translation cache that the IOMMU sees."""

    def invalidate(self, request: InvalidateRequest) -> InvalidateCompletion | None:
        """``None``: no answer within the time that the IOMMU waits."""
        ...


@runtime_checkable
class AtsUnit(IommuUnit, Protocol):
    """An IOMMU that offers translation services."""

    def connect_device_tlb(self, sid: int, port: InvalidationPort) -> None:
        """Invalidations that name ``sid`` go to ``port``."""
        ...

    def translation_request(self, sid: int, iova: int, no_write: bool = False, pasid: int | None = None) -> Completion:
        """Translate the page of ``iova`` for a device's cache; ``no_write``: the device only means to read."""
        ...

    def translated_request(self, sid: int, maddr: int, write: bool) -> int | Fault:
        """An access to an address that a completion gave: ``maddr`` if this requester may issue such."""
        ...

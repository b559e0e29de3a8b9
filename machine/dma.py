# SPDX-License-Identifier: GPL-2.0-or-later
"""DMA: from a device's request to the unit that covers it, and on to RAM, registers or a fault.

A device holds a :class:`DmaPort`.  The fabric finds the unit for the port's requester id, splits the request at
4 KiB boundaries, and lets the unit translate each piece.  What a fault leaves behind is as on the bus: pieces
before it have happened, pieces after it have not.
"""

from collections.abc import Iterator
from typing import Final

from base.units import PAGE_SIZE
from machine.iommu.unit import Fault, IommuUnit
from machine.mmio import SystemBus

Route = tuple[IommuUnit | None, int]
"""The unit that a request reaches, and the stream id that it carries there."""


class DmaFabric:
    """Routes requests: a unit for all or per requester id, none means untranslated DMA."""

    def __init__(self, bus: SystemBus) -> None:
        self.bus: Final = bus
        self._named: Final[dict[int, tuple[IommuUnit, int]]] = {}
        self._default: tuple[IommuUnit | None, int] = (None, 0)
        self._routes: Final[dict[int, Route]] = {}
        """What :meth:`route` answered before, since the last :meth:`cover`."""

    def cover(self, unit: IommuUnit, sbdf: int | None = None, stream_offset: int = 0) -> None:
        """Put requester ``sbdf`` (``None``: every id that no other call named) behind ``unit``.

        Requests carry the stream id (requester id without its segment) + ``stream_offset`` there.
        """
        if sbdf is None:
            self._default = (unit, stream_offset)
        else:
            self._named[sbdf] = (unit, stream_offset)
        self._routes.clear()

    def route(self, sbdf: int) -> Route:
        """Where requests of requester ``sbdf`` go."""
        route = self._routes.get(sbdf)
        if route is None:
            unit, offset = self._named.get(sbdf, self._default)
            route = self._routes[sbdf] = (unit, (sbdf & 0xFFFF) + offset)
        return route

    def unit_for(self, sbdf: int) -> IommuUnit | None:
        """The unit that translates for requester ``sbdf``."""
        return self.route(sbdf)[0]

    def port(self, sbdf: int) -> "DmaPort":
        """The way into memory for requester ``sbdf``."""
        return DmaPort(self, sbdf)


class DmaPort:
    """One requester's way to memory.  ``faults`` collects what was blocked, newest last."""

    def __init__(self, fabric: DmaFabric, sbdf: int) -> None:
        self.fabric: Final = fabric
        self.sbdf: Final = sbdf
        self.faults: Final[list[Fault]] = []

    def read(self, iova: int, length: int) -> bytes | Fault:
        """``length`` bytes from ``iova``, or the fault that stopped the request."""
        unit, sid = self.fabric.route(self.sbdf)
        bus = self.fabric.bus
        if unit is None:
            return bus.dma_read(iova, length)
        first = PAGE_SIZE - (iova & PAGE_SIZE - 1)
        if length <= first:
            maddr = unit.translate(sid, iova, False)
            if maddr.__class__ is not int:
                return self._blocked(maddr)
            return bus.dma_read(maddr, length)
        parts = []
        while length > 0:
            size = min(length, PAGE_SIZE - (iova & PAGE_SIZE - 1))
            maddr = unit.translate(sid, iova, False)
            if maddr.__class__ is not int:
                return self._blocked(maddr)
            parts.append(bus.dma_read(maddr, size))
            iova += size
            length -= size
        return b"".join(parts)

    def write(self, iova: int, data: bytes) -> Fault | None:
        """Store ``data`` at ``iova``; the fault that stopped the request, or ``None``."""
        unit, sid = self.fabric.route(self.sbdf)
        bus = self.fabric.bus
        if unit is None:
            bus.dma_write(iova, data)
            return None
        done = 0
        while done < len(data):
            size = min(len(data) - done, PAGE_SIZE - (iova & PAGE_SIZE - 1))
            maddr = unit.translate(sid, iova, True)
            if maddr.__class__ is not int:
                return self._blocked(maddr)
            bus.dma_write(maddr, data if size == len(data) else data[done : done + size])
            iova += size
            done += size
        return None

    def _blocked(self, fault: int | Fault) -> Fault:
        assert isinstance(fault, Fault)
        self.faults.append(fault)
        return fault


class PiecewisePort(DmaPort):
    """A port whose requests reach translation in a way of their own, piece by piece: see :meth:`translate`."""

    def translate(self, unit: IommuUnit, iova: int, write: bool) -> int | Fault:
        """Where an access that does not cross a 4 KiB boundary goes, or why it does not."""
        raise NotImplementedError

    def read(self, iova: int, length: int) -> bytes | Fault:
        unit = self.fabric.unit_for(self.sbdf)
        if unit is None:
            return self.fabric.bus.dma_read(iova, length)
        parts = []
        for at, size in _pieces(iova, length):
            maddr = self.translate(unit, at, False)
            if isinstance(maddr, Fault):
                return self._blocked(maddr)
            parts.append(self.fabric.bus.dma_read(maddr, size))
        return b"".join(parts)

    def write(self, iova: int, data: bytes) -> Fault | None:
        unit = self.fabric.unit_for(self.sbdf)
        if unit is None:
            self.fabric.bus.dma_write(iova, data)
            return None
        for at, size in _pieces(iova, len(data)):
            maddr = self.translate(unit, at, True)
            if isinstance(maddr, Fault):
                return self._blocked(maddr)
            self.fabric.bus.dma_write(maddr, data[at - iova : at - iova + size])
        return None


class PasidPort(PiecewisePort):
    """A requester's way to memory with a PASID (process address space id) in every request."""

    def __init__(self, fabric: DmaFabric, sbdf: int, pasid: int) -> None:
        super().__init__(fabric, sbdf)
        self.pasid: Final = pasid

    def translate(self, unit: IommuUnit, iova: int, write: bool) -> int | Fault:
        return unit.translate(self.fabric.route(self.sbdf)[1], iova, write, self.pasid)


def _pieces(iova: int, length: int) -> Iterator[tuple[int, int]]:
    """(address, length) of the parts of a request that do not cross a 4 KiB boundary."""
    end = iova + length
    while iova < end:
        size = min(end - iova, PAGE_SIZE - (iova & PAGE_SIZE - 1))
        yield iova, size
        iova += size

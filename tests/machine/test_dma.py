# SPDX-License-Identifier: GPL-2.0-or-later
"""The way from a device to memory: routing, pieces of 4 KiB, and what a fault leaves behind."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine.dma import DmaFabric
from machine.iommu.unit import Fault
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus

FRAMES = 16


class Table:
    """A unit that translates by a dictionary: page to frame, and the pages that may be written."""

    def __init__(self, name: str, pages: dict[int, int], writable: set[int] | None = None) -> None:
        self.name = name
        self.pages = pages
        self.writable = set(pages) if writable is None else writable
        self.asked: list[tuple[int, int, bool]] = []

    def translate(self, sid: int, iova: int, write: bool) -> int | Fault:
        self.asked.append((sid, iova, write))
        frame = self.pages.get(iova >> 12)
        if frame is None or (write and iova >> 12 not in self.writable):
            return Fault(self.name, sid, iova, write, 6, "not there")
        return frame << 12 | iova & 0xFFF


@pytest.fixture
def bus() -> SystemBus:
    return SystemBus(PhysicalMemory(FRAMES << 12))


def test_a_device_behind_no_unit_reaches_memory_untranslated(bus: SystemBus) -> None:
    port = DmaFabric(bus).port(0x18)
    assert port.write(0x1FFE, b"abcd") is None
    assert port.read(0x1FFE, 4) == b"abcd"
    assert bus.memory.read(0x2000, 2) == b"cd"


def test_the_unit_of_a_requester_goes_before_the_one_for_all(bus: SystemBus) -> None:
    fabric = DmaFabric(bus)
    rest, special = Table("rest", {0: 1}), Table("special", {0: 2})
    fabric.cover(rest)
    fabric.cover(special, 0x1_0020)
    assert fabric.unit_for(0x1_0020) is special
    fabric.port(0x1_0020).write(0, b"s")
    fabric.port(0x20).write(0, b"r")
    assert bus.memory.read(0x2000, 1) == b"s"
    assert bus.memory.read(0x1000, 1) == b"r"
    assert special.asked == [(0x20, 0, True)], "a unit sees bus, device and function"


def test_a_request_is_translated_once_for_every_page_it_touches(bus: SystemBus) -> None:
    fabric = DmaFabric(bus)
    unit = Table("u", {0: 7, 1: 3, 2: 9})
    fabric.cover(unit)
    port = fabric.port(8)
    assert port.write(0xFFC, bytes(range(8)) + bytes(4096)) is None
    assert unit.asked == [(8, 0xFFC, True), (8, 0x1000, True), (8, 0x2000, True)]
    assert bus.memory.read(0x7FFC, 4) == bytes(range(4))
    assert bus.memory.read(0x3000, 4) == bytes(range(4, 8))


def test_a_fault_stops_a_write_after_the_pieces_before_it(bus: SystemBus) -> None:
    fabric = DmaFabric(bus)
    fabric.cover(Table("u", {0: 7, 2: 9}))
    port = fabric.port(8)
    fault = port.write(0xFFC, b"x" * 8192)
    assert fault == Fault("u", 8, 0x1000, True, 6, "not there")
    assert port.faults == [fault]
    assert bus.memory.read(0x7FFC, 4) == b"xxxx"
    assert bus.memory.read(0x9000, 4) == bytes(4)


def test_a_fault_is_all_that_a_read_gives(bus: SystemBus) -> None:
    fabric = DmaFabric(bus)
    fabric.cover(Table("u", {0: 7}))
    port = fabric.port(8)
    assert port.read(0, 4096) == bytes(4096)
    assert port.read(0xFF0, 100) == Fault("u", 8, 0x1000, False, 6, "not there")
    assert port.read(0x5000, 1) == Fault("u", 8, 0x5000, False, 6, "not there")
    assert len(port.faults) == 2


def test_reading_is_no_right_to_write(bus: SystemBus) -> None:
    fabric = DmaFabric(bus)
    fabric.cover(Table("u", {0: 7}, writable=set()))
    port = fabric.port(8)
    assert port.read(0, 1) == b"\0"
    assert isinstance(port.write(0, b"x"), Fault)


def test_nothing_needs_no_translation(bus: SystemBus) -> None:
    fabric = DmaFabric(bus)
    unit = Table("u", {})
    fabric.cover(unit)
    assert fabric.port(8).write(0x1234, b"") is None
    assert unit.asked == []


@settings(max_examples=100, deadline=None)
@given(
    pages=st.dictionaries(st.integers(0, 5), st.integers(0, FRAMES - 1), max_size=6),
    iova=st.integers(0, 6 * 4096),
    data=st.binary(min_size=1, max_size=9000),
)
def test_requests_are_what_single_bytes_would_be(pages: dict[int, int], iova: int, data: bytes) -> None:
    """Up to the page that faults, for pages that share no frame."""
    if len(set(pages.values())) != len(pages):
        return
    bus = SystemBus(PhysicalMemory(FRAMES << 12))
    fabric = DmaFabric(bus)
    fabric.cover(Table("u", pages))
    port = fabric.port(8)
    model = bytearray(FRAMES << 12)
    stopped = None
    for k, byte in enumerate(data):
        frame = pages.get(iova + k >> 12)
        if frame is None:
            stopped = iova + k
            break
        model[frame << 12 | iova + k & 0xFFF] = byte
    fault = port.write(iova, data)
    assert (fault.iova if fault else None) == stopped
    assert bus.memory.read(0, FRAMES << 12) == bytes(model)
    answer = port.read(iova, len(data))
    assert answer == data if stopped is None else isinstance(answer, Fault)

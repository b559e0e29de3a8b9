# SPDX-License-Identifier: GPL-2.0-or-later
"""The system bus: who answers at an address, and what nobody's address gives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine.memory import PhysicalMemory
from machine.mmio import SystemBus

RAM = 4 * 4096
BLOCK = 0x10_0000


class Recorder:
    """Registers that remember what happened to them; a read gives the offset in every byte's place."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.reads.append((offset, size))
        return 0xFFFF_FFFF_FFFF_0000 | offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


@pytest.fixture
def bus() -> SystemBus:
    return SystemBus(PhysicalMemory(RAM))


def test_a_block_sees_offsets_from_its_start(bus: SystemBus) -> None:
    block = Recorder()
    bus.map(BLOCK, 0x2000, block)
    assert bus.load(BLOCK + 0x1008, 2) == 0x1008
    bus.store(BLOCK + 4, 4, 7)
    bus.write64(BLOCK + 8, 9)
    bus.write32(BLOCK + 16, 10)
    assert block.reads == [(0x1008, 2)]
    assert block.writes == [(4, 4, 7), (8, 8, 9), (16, 4, 10)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_read_is_cut_to_its_size(bus: SystemBus, size: int) -> None:
    bus.map(BLOCK, 0x1000, Recorder())
    assert bus.load(BLOCK + 0x10, size) == 0xFFFF_FFFF_FFFF_0010 & (1 << 8 * size) - 1
    assert bus.read32(BLOCK) == 0xFFFF_0000
    assert bus.read64(BLOCK) == 0xFFFF_FFFF_FFFF_0000


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_nobodys_address_reads_as_all_ones_and_swallows_writes(bus: SystemBus, size: int) -> None:
    assert bus.load(BLOCK, size) == (1 << 8 * size) - 1
    bus.store(BLOCK, size, 0)
    assert not bus.is_mmio(BLOCK)


def test_blocks_are_whole_pages_outside_ram_and_do_not_overlap(bus: SystemBus) -> None:
    bus.map(BLOCK, 0x2000, Recorder())
    assert bus.is_mmio(BLOCK + 0x1FFF)
    assert not bus.is_mmio(BLOCK + 0x2000)
    for base, length, complaint in (
        (BLOCK + 8, 0x1000, "whole pages"),
        (BLOCK, 0x10, "whole pages"),
        (BLOCK, 0, "whole pages"),
        (BLOCK, -0x1000, "whole pages"),
        (RAM - 0x1000, 0x1000, "hide RAM"),
        (BLOCK + 0x1000, 0x1000, "two register blocks"),
        (BLOCK - 0x1000, 0x3000, "two register blocks"),
    ):
        with pytest.raises(ValueError, match=complaint):
            bus.map(base, length, Recorder())


def test_a_refused_block_leaves_nothing_behind(bus: SystemBus) -> None:
    bus.map(BLOCK + 0x1000, 0x1000, Recorder())
    with pytest.raises(ValueError, match="two"):
        bus.map(BLOCK, 0x2000, Recorder())
    assert not bus.is_mmio(BLOCK)


def test_dma_reaches_ram_and_registers(bus: SystemBus) -> None:
    block = Recorder()
    bus.map(BLOCK, 0x1000, block)
    bus.dma_write(100, b"hello")
    assert bus.dma_read(98, 9) == b"\0\0hello\0\0"
    bus.dma_write(BLOCK + 2, bytes(range(8)))
    assert block.writes == [(2, 1, 0), (3, 1, 1), (4, 4, 0x0504_0302), (8, 1, 6), (9, 1, 7)]
    assert bus.dma_read(BLOCK, 4) == bytes([0, 0, 0xFF, 0xFF])
    assert bus.dma_read(1 << 50, 6) == b"\xff" * 6
    bus.dma_write(1 << 50, b"lost")


def test_dma_across_the_end_of_ram_does_what_it_can(bus: SystemBus) -> None:
    bus.dma_write(RAM - 3, b"abcdef")
    assert bus.memory.read(RAM - 3, 3) == b"abc"
    assert bus.dma_read(RAM - 4, 8) == b"\0abc" + b"\xff" * 4


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.integers(0, 2 * RAM), st.integers(RAM - 40, RAM + 2)), st.binary(max_size=5000))
def test_dma_is_byte_by_byte_whatever_the_pieces(maddr: int, data: bytes) -> None:
    bus = SystemBus(PhysicalMemory(RAM))
    bus.dma_write(maddr, data)
    expected = bytearray(RAM) + b"\xff" * (2 * RAM + 5000)
    inside = data[: max(0, RAM - maddr)]
    expected[maddr : maddr + len(inside)] = inside
    assert bus.dma_read(maddr, len(data)) == bytes(expected[maddr : maddr + len(data)])
    assert bus.memory.read(0, RAM) == bytes(expected[:RAM])

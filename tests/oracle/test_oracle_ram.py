# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM shared with a model: the same bytes on both sides, at the model's addresses."""

import os

import pytest

from machine.memory import PhysicalMemory
from oracle.shared_ram import SharedRam

MIB = 1 << 20


@pytest.fixture(params=[0, 1 << 30], ids=["at 0", "at 1 GiB"])
def ram(request):
    shared = SharedRam(4 * MIB, request.param)
    yield shared
    shared.close()


def test_a_write_to_memory_is_seen_in_the_file_and_back(ram):
    ram.memory.write64(ram.start + 0x1000, 0x1122334455667788)
    assert os.pread(ram.fd, 8, 0x1000) == bytes.fromhex("8877665544332211")
    os.pwrite(ram.fd, b"from below", 0x2000)
    assert ram.memory.read(ram.start + 0x2000, 10) == b"from below"


def test_memory_ends_where_the_shared_ram_ends(ram):
    assert ram.memory.size == ram.start + 4 * MIB
    ram.memory.write64(ram.memory.size - 8, 1)
    assert os.pread(ram.fd, 1, 4 * MIB - 8) == b"\1"


def test_snapshots_work_on_shared_ram(ram):
    ram.memory.write64(ram.start, 5)
    ram.memory.snapshot()
    ram.memory.write64(ram.start, 6)
    assert ram.memory.reset() == 1
    assert ram.memory.read64(ram.start) == 5


def test_find_looks_in_written_pages_only_and_gives_machine_addresses(ram):
    ram.memory.write(ram.start + 0x3FFC, b"needle!!")
    ram.memory.write(ram.start + 3 * MIB, b"needle!!")
    assert ram.find(b"needle!!") == [ram.start + 0x3FFC, ram.start + 3 * MIB]
    assert ram.find(b"no such thing") == []


def test_what_lies_below_the_shared_ram_is_private_memory():
    shared = SharedRam(MIB, 1 << 30)
    shared.memory.write64(0x5000, 7)
    assert shared.memory.read64(0x5000) == 7
    assert shared.find((7).to_bytes(8, "little")) == []
    shared.close()


def test_a_mapping_of_another_size_is_refused():
    import mmap

    with mmap.mmap(-1, 4096) as mapping, pytest.raises(ValueError, match="0x1000 bytes"):
        PhysicalMemory(8192, mapping)

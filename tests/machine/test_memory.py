# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM: bounds, the two views, snapshots at the cost of what was written, and sparseness."""

import mmap
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine.memory import BusError, PhysicalMemory

FRAMES = 8
SIZE = FRAMES * 4096


@pytest.mark.parametrize("size", [0, -4096, 1, 4095, 4097])
def test_a_size_that_is_not_whole_frames_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="4 KiB"):
        PhysicalMemory(size)


def test_a_mapping_that_is_brought_has_to_be_of_that_size() -> None:
    with pytest.raises(ValueError, match="mapping"):
        PhysicalMemory(SIZE, mmap.mmap(-1, 4096))


def test_ram_starts_as_zeros_in_both_views() -> None:
    memory = PhysicalMemory(SIZE)
    assert memory.frames == FRAMES
    assert len(memory.bytes) == SIZE
    assert len(memory.words) == SIZE // 8
    assert memory.read(0, SIZE) == bytes(SIZE)


def test_both_views_are_the_same_bytes_little_endian() -> None:
    memory = PhysicalMemory(SIZE)
    memory.write(16, bytes(range(1, 9)))
    assert memory.words[2] == 0x0807_0605_0403_0201
    memory.write64(24, 0xFF)
    assert memory.read(24, 8) == b"\xff" + bytes(7)
    assert memory.read64(24) == 0xFF
    assert memory.bytes[24] == 0xFF


@pytest.mark.parametrize("maddr, length", [(-1, 1), (SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (1 << 52, 8)])
def test_an_access_outside_is_a_bus_error_that_names_it(maddr: int, length: int) -> None:
    memory = PhysicalMemory(SIZE)
    with pytest.raises(BusError) as caught:
        memory.read(maddr, length)
    assert (caught.value.maddr, caught.value.length) == (maddr, length)
    with pytest.raises(BusError):
        memory.write(maddr, bytes(length))
    assert memory.read(0, SIZE) == bytes(SIZE)


@pytest.mark.parametrize("maddr", [-8, SIZE, SIZE - 7, 1, 4])
def test_words_are_aligned_and_inside(maddr: int) -> None:
    memory = PhysicalMemory(SIZE)
    with pytest.raises(BusError):
        memory.read64(maddr)
    with pytest.raises(BusError):
        memory.write64(maddr, 1)


def test_nothing_can_be_written_anywhere() -> None:
    memory = PhysicalMemory(SIZE)
    memory.snapshot()
    memory.write(SIZE, b"")
    assert memory.reset() == 0


def test_a_reset_costs_the_frames_that_were_written() -> None:
    memory = PhysicalMemory(SIZE)
    memory.write(0, b"before")
    memory.snapshot()
    assert memory.reset() == 0
    memory.write(4094, b"across")
    memory.write64(5 * 4096, 1)
    memory.zero_frame(0)
    assert memory.reset() == 3
    assert memory.read(0, 6) == b"before"
    assert memory.read(4090, 20) == bytes(20)
    assert memory.reset() == 0


def test_the_journal_has_what_written_frames_held_at_the_snapshot() -> None:
    memory = PhysicalMemory(SIZE)
    memory.write(0, b"before")
    memory.snapshot()
    assert not list(memory.journal())
    memory.write(0, b"during")
    memory.write(0, b"after")
    ((frame, content),) = memory.journal()
    assert frame == 0 and content == b"before".ljust(4096, b"\0")
    memory.reset()
    assert not list(memory.journal())


def test_a_snapshot_can_be_gone_back_to_again_and_again() -> None:
    memory = PhysicalMemory(SIZE)
    memory.write(100, b"kept")
    memory.snapshot()
    for k in range(5):
        memory.write(100, bytes([k]) * 4)
        assert memory.reset() == 1
        assert memory.read(100, 4) == b"kept"


def test_a_new_snapshot_replaces_the_old_one() -> None:
    memory = PhysicalMemory(SIZE)
    memory.snapshot()
    memory.write(0, b"first")
    memory.snapshot()
    memory.write(0, b"other")
    memory.reset()
    assert memory.read(0, 5) == b"first"


writes = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, SIZE - 1), st.binary(max_size=300)),
        st.tuples(st.just("word"), st.integers(0, SIZE // 8 - 1), st.integers(0, 2**64 - 1)),
        st.tuples(st.just("zero"), st.integers(0, FRAMES - 1), st.none()),
        st.tuples(st.just("raw"), st.integers(0, SIZE // 8 - 1), st.integers(0, 2**64 - 1)),
    ),
    max_size=12,
)


def apply(memory: PhysicalMemory, model: bytearray, steps: list) -> None:
    for what, where, value in steps:
        if what == "write":
            data = value[: SIZE - where]
            memory.write(where, data)
            model[where : where + len(data)] = data
        elif what == "zero":
            memory.zero_frame(where)
            model[where * 4096 : where * 4096 + 4096] = bytes(4096)
        else:
            if what == "word":
                memory.write64(where * 8, value)
            else:
                if not memory.touched[where >> 9]:
                    memory.touch(where >> 9)
                memory.words[where] = value
            model[where * 8 : where * 8 + 8] = value.to_bytes(8, "little")


@settings(max_examples=60, deadline=None)
@given(writes, writes, writes)
def test_going_back_gives_every_byte_back(before: list, after: list, again: list) -> None:
    memory, model = PhysicalMemory(SIZE), bytearray(SIZE)
    apply(memory, model, before)
    memory.snapshot()
    kept = bytes(model)
    for steps in (after, again):
        apply(memory, model, steps)
        assert memory.read(0, SIZE) == bytes(model)
        memory.reset()
        assert memory.read(0, SIZE) == kept
        model[:] = kept


def test_a_gigabyte_is_under_a_hundred_megabytes_until_it_is_touched() -> None:
    """In a process of its own, so that nothing else is counted."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc to ask")
    code = (
        "from machine.memory import PhysicalMemory\n"
        "m = PhysicalMemory(1 << 30)\n"
        "m.snapshot()\n"
        "[m.write(k << 20, b'x') for k in range(0, 1024, 16)]\n"
        "assert m.reset() == 64\n"
        "print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])\n"
    )
    root = Path(__file__).parents[2]
    peak = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert int(peak) < 100 * 1024, f"{peak} KiB resident"

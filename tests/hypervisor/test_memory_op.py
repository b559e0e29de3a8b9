# SPDX-License-Identifier: GPL-2.0-or-later
"""XENMEM_reserved_device_memory_map, by the bytes that a guest sees."""

import struct

import pytest
from guest_calls import RMRR_BASE, RMRR_DFN, Caller, bed

from abi.errno import EFAULT, EINVAL, ENOBUFS, ENOSYS
from guest_driver.linux.page_alloc import PageAllocator
from guest_driver.linux.printk import Printk
from guest_driver.xen_rdm import reserved_device_memory
from machine.firmware import Rmrr
from testbed.build import COPIER, NIC, ROGUE

MAP = struct.Struct("<IIQHBB4x")  # flags, nr_entries, buffer, segment, bus, devfn
BUFFER = 0x6000
REGIONS = (
    Rmrr(RMRR_BASE, RMRR_BASE + 0x3FFF, (COPIER,)),
    Rmrr(RMRR_BASE + 0x1_0000, RMRR_BASE + 0x1_0FFF, (COPIER, ROGUE)),
)
COPIERS = [(RMRR_DFN, 4), (RMRR_DFN + 16, 1)]


@pytest.fixture(params=["pv", "pvh"])
def caller(request: pytest.FixtureRequest) -> Caller:
    return bed(guest=request.param, rmrrs=REGIONS)


def ask(
    caller: Caller, sbdf: int, slots: int, flags: int = 0, buffer: int | None = None, command: int = 27
) -> tuple[int, int, list[tuple[int, int]]]:
    """(result, nr_entries afterwards, the entries that were written)."""
    ram = caller.testbed.ram
    ram.write(BUFFER, b"\xee" * 128)
    where = ram.linear(BUFFER) if buffer is None else buffer
    ram.write(0x5000, MAP.pack(flags, slots, where, sbdf >> 16, sbdf >> 8 & 0xFF, sbdf & 0xFF))
    rc = caller.xen.hypercall(caller.vcpu, 12, command, ram.linear(0x5000))
    raw = ram.read(BUFFER, 128)
    written = [entry for entry in struct.iter_unpack("<QQ", raw) if entry != (0xEEEE_EEEE_EEEE_EEEE,) * 2]
    return rc, MAP.unpack(ram.read(0x5000, MAP.size))[1], written


def test_a_device_gets_its_own_regions(caller: Caller) -> None:
    assert ask(caller, COPIER, 4) == (0, 2, COPIERS)
    assert ask(caller, ROGUE, 4) == (0, 1, COPIERS[1:])
    assert ask(caller, NIC, 4) == (0, 0, [])
    assert ask(caller, 0x1_0020, 4) == (0, 0, []), "another segment"


def test_the_flag_gives_every_region_once(caller: Caller) -> None:
    for sbdf in (COPIER, NIC, 0xFFFF_FFFF):
        assert ask(caller, sbdf, 4, flags=1) == (0, 2, COPIERS)


@pytest.mark.parametrize("slots", [0, 1])
def test_too_few_slots_are_enobufs_with_the_number_needed(caller: Caller, slots: int) -> None:
    """The header's comment says -ERANGE."""
    assert ask(caller, COPIER, slots) == (-ENOBUFS, 2, COPIERS[:slots])


def test_no_slots_need_no_buffer(caller: Caller) -> None:
    assert ask(caller, COPIER, 0, buffer=0) == (-ENOBUFS, 2, [])
    assert ask(caller, NIC, 0, buffer=0) == (0, 0, [])


def test_unknown_flags_are_einval_and_nothing_is_written(caller: Caller) -> None:
    for flags in (2, 3, 1 << 31):
        assert ask(caller, COPIER, 4, flags=flags) == (-EINVAL, 4, [])


def test_a_resumed_call_is_einval(caller: Caller) -> None:
    assert ask(caller, COPIER, 4, command=27 | 1 << 6) == (-EINVAL, 4, [])


def test_other_memory_ops_are_enosys(caller: Caller) -> None:
    for command in (0, 1, 26, 28, 63):
        assert ask(caller, COPIER, 4, command=command)[0] == -ENOSYS


def test_bad_pointers_are_efault(caller: Caller) -> None:
    for where in (0, 1 << 47, 2**64 - 1, 0xFFFF_8000_0000_0000):
        assert caller.xen.hypercall(caller.vcpu, 12, 27, where) == -EFAULT
        assert ask(caller, COPIER, 4, buffer=where) == (-EFAULT, 0, [])


def test_a_buffer_that_ends_too_early_gets_what_fits(caller: Caller) -> None:
    page = 0x7000_0000
    caller.testbed.linear.pages[page] = (6, True)
    rc, needed, _ = ask(caller, COPIER, 4, buffer=(page << 12) + 4096 - 16)
    assert (rc, needed) == (-EFAULT, 1)
    assert struct.unpack("<QQ", caller.testbed.ram.read((7 << 12) - 16, 16)) == COPIERS[0]


def test_a_struct_that_cannot_be_written_back_is_efault(caller: Caller) -> None:
    caller.testbed.linear.pages[0x7000_0000] = (9, False)
    ram = caller.testbed.ram
    ram.write(9 << 12, MAP.pack(0, 0, 0, 0, 0, NIC & 0xFF))
    assert caller.xen.hypercall(caller.vcpu, 12, 27, 0x7000_0000 << 12) == -EFAULT


def test_the_guests_driver_reads_the_same(caller: Caller) -> None:
    ram, printk = caller.testbed.ram, Printk()
    pages = PageAllocator(ram, printk, 100)
    for sbdf, expected in ((COPIER, COPIERS), (ROGUE, COPIERS[1:]), (NIC, [])):
        assert reserved_device_memory(caller.testbed.hypercalls, ram, pages, sbdf) == expected
    assert pages.allocated == 0

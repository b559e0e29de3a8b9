# SPDX-License-Identifier: GPL-2.0-or-later
"""Pointers that a guest passes: where they may lead, and that a bad one changes nothing."""

import pytest
from guest_calls import RW, Caller

from abi.errno import EFAULT, EINVAL
from hypervisor.guest_access import DIRECT_MAP, HYPERVISOR_END, HYPERVISOR_START
from hypervisor.p2m import RAM_RO

BUFFER = 0x7000_0000_0000
"""A linear page number's worth of user space where these tests map pages."""

NOWHERE = {
    "null": 0,
    "never mapped": 0x1234_5000,
    "the last byte": 2**64 - 1,
    "non-canonical": 0x0000_8000_0000_0000,
    "non-canonical, high": 0xFFFF_7FFF_FFFF_F000,
    "Xen's own, first page": HYPERVISOR_START,
    "Xen's own, last page": HYPERVISOR_END - 4096,
    "below the direct map": DIRECT_MAP - 4096,
    "behind the direct map": DIRECT_MAP + (16 << 20),
}


def calls_of(caller: Caller) -> list[str]:
    return [name for name, subop in caller.abi.by_name.items() if subop.codec is not None and subop.implemented]


def request(caller: Caller, name: str) -> bytes:
    """A struct that would change something, were it let."""
    fields = {
        "map_pages": {"ctx_no": 1, "gfn": caller.gfn(64), "dfn": 0x900, "flags": RW},
        "unmap_pages": {"ctx_no": 1, "dfn": 0x100},
        "free_context": {"ctx_no": 2},
        "reattach_device": {"ctx_no": 1, "bus": 1},
        "lookup_page": {"ctx_no": 1, "dfn": 0x100},
    }
    return caller.encode(name, **fields.get(name, {}))


def prepare(caller: Caller) -> None:
    assert (caller.alloc(), caller.alloc()) == (1, 2)
    assert caller.map(1, 300, 0x100).rc == 0


@pytest.mark.parametrize("where", NOWHERE.values(), ids=list(NOWHERE))
def test_a_pointer_that_leads_nowhere_is_efault_and_changes_nothing(caller: Caller, where: int) -> None:
    prepare(caller)
    before = caller.everything()
    for name in calls_of(caller):
        assert caller.call_at(name, where) == -EFAULT, name
    assert caller.xen.save() == before
    assert not caller.changed_frames()


def test_a_struct_that_runs_out_of_mapped_memory_is_efault_and_changes_nothing(caller: Caller) -> None:
    prepare(caller)
    caller.testbed.linear.pages[BUFFER >> 12] = (9, True)
    before = caller.everything()
    for name in calls_of(caller):
        size = caller.abi.by_name[name].codec.size
        assert caller.call_at(name, BUFFER + 4096 - size + 1) == -EFAULT, name
        assert caller.call_at(name, BUFFER - 1) == -EFAULT, name
    assert caller.xen.save() == before
    assert not caller.changed_frames()


@pytest.mark.parametrize("offset", [1, 3, 8, 777, 4096 - 1, 4096 - 7, 4096 - 16, 4096 - 31])
def test_misaligned_and_page_crossing_structs_work(caller: Caller, offset: int) -> None:
    """Two linear pages that are far apart in the guest's memory, and in the other order."""
    prepare(caller)
    linear = caller.testbed.linear
    linear.pages[BUFFER >> 12] = (2050, True)
    linear.pages[(BUFFER >> 12) + 1] = (40, True)
    for name in calls_of(caller):
        if name in ("init", "remote_cmd"):
            continue
        raw = request(caller, name)
        assert linear.write(BUFFER + offset, raw)
        assert caller.call_at(name, BUFFER + offset) == 0, name
        codec = caller.abi.by_name[name].codec
        answer = linear.read(BUFFER + offset, codec.size)
        outs = {field: value for field, value in codec.as_dict(answer).items() if field in codec.out}
        if name == "map_pages":
            assert outs == {"mapped": 1}
            assert caller.lookup(1, 0x900) == caller.mfn(64)
        if name == "unmap_pages":
            assert outs == {"unmapped": 1}
            assert caller.lookup(1, 0x100) is None
            assert caller.map(1, 300, 0x100).rc == 0
        if name == "alloc_context":
            assert outs == {"ctx_no": 3}


def test_only_the_out_fields_are_written_back(caller: Caller) -> None:
    prepare(caller)
    ram = caller.testbed.ram
    for name in ("map_pages", "unmap_pages", "alloc_context"):
        codec = caller.abi.by_name[name].codec
        raw = request(caller, name)
        ram.write(0x5000 - 64, b"\xee" * 256)
        ram.write(0x5000, raw)
        assert caller.call_at(name, ram.linear(0x5000)) == 0
        expected = bytearray(raw)
        codec.patch_out(expected, 3 if name == "alloc_context" else 1)
        assert ram.read(0x5000 - 64, 256) == b"\xee" * 64 + bytes(expected) + b"\xee" * (192 - len(raw)), name


def test_a_struct_that_could_not_be_written_back_is_refused_before_anything_is_done(caller: Caller) -> None:
    prepare(caller)
    linear = caller.testbed.linear
    linear.pages[BUFFER >> 12] = (9, True)
    before = None
    for name in ("alloc_context", "map_pages", "unmap_pages", "query_capabilities"):
        linear.pages[BUFFER >> 12] = (9, True)
        assert linear.write(BUFFER + 100, request(caller, name))
        linear.pages[BUFFER >> 12] = (9, False)
        before = caller.everything()
        assert caller.call_at(name, BUFFER + 100) == -EFAULT, name
        assert caller.xen.save() == before
        assert not caller.changed_frames()


def test_a_hole_is_seen_before_whether_the_answer_could_be_written(caller7: Caller) -> None:
    prepare(caller7)
    linear = caller7.testbed.linear
    for name in ("alloc_context", "map_pages", "unmap_pages"):
        codec = caller7.abi.by_name[name].codec
        linear.pages[BUFFER >> 12] = (9, True)
        assert linear.write(BUFFER, codec.hole_mask.to_bytes(codec.size, "little"))
        linear.pages[BUFFER >> 12] = (9, False)
        assert caller7.call_at(name, BUFFER) == -EINVAL


def test_half_a_struct_on_a_read_only_page_is_refused_as_a_whole(caller: Caller) -> None:
    prepare(caller)
    linear = caller.testbed.linear
    linear.pages[BUFFER >> 12] = (9, True)
    linear.pages[(BUFFER >> 12) + 1] = (10, True)
    at = BUFFER + 4096 - 4
    for name in ("alloc_context", "map_pages", "unmap_pages"):
        linear.pages[(BUFFER >> 12) + 1] = (10, True)
        assert linear.write(at, request(caller, name))
        linear.pages[(BUFFER >> 12) + 1] = (10, False)
        before = caller.everything()
        assert caller.call_at(name, at) == -EFAULT, name
        assert caller.xen.save() == before
        assert not caller.changed_frames()


def test_a_struct_that_is_only_read_may_lie_in_read_only_memory(caller7: Caller) -> None:
    """Nothing is ever written back by these sub-ops, so nothing has to be writable."""
    caller = caller7
    prepare(caller)
    linear = caller.testbed.linear
    for name in ("reattach_device", "free_context"):
        linear.pages[BUFFER >> 12] = (9, True)
        assert linear.write(BUFFER, request(caller, name))
        linear.pages[BUFFER >> 12] = (9, False)
        assert caller.call_at(name, BUFFER) == 0, name


def test_the_whole_union_is_copied_back_so_it_has_to_be_writable_for_every_sub_op(caller3: Caller) -> None:
    caller = caller3
    prepare(caller)
    linear = caller.testbed.linear
    for name in caller.abi.by_name:
        linear.pages[BUFFER >> 12] = (9, True)
        assert linear.write(BUFFER, request(caller, name))
        linear.pages[BUFFER >> 12] = (9, False)
        before = caller.everything()
        assert caller.call_at(name, BUFFER) == -EFAULT, name
        assert caller.xen.save() == before


def test_a_page_that_was_taken_away_from_the_guest_is_no_place_for_a_struct(caller: Caller) -> None:
    prepare(caller)
    address = caller.testbed.ram.linear(70 << 12)
    caller.testbed.ram.write(70 << 12, request(caller, "alloc_context"))
    assert caller.xen.remove_page(caller.dom0, caller.gfn(70)) == 0
    before = caller.everything()
    assert caller.call_at("alloc_context", address) == -EFAULT
    assert caller.xen.save() == before


def test_a_read_only_page_of_a_translated_guest_can_be_read_but_not_answered_into(pvh_caller: Caller) -> None:
    caller = pvh_caller
    prepare(caller)
    caller.testbed.ram.write(70 << 12, request(caller, "alloc_context"))
    caller.dom0.p2m.set(70, caller.mfn(70), 1, RAM_RO)
    before = caller.everything()
    assert caller.call_at("alloc_context", caller.testbed.ram.linear(70 << 12)) == -EFAULT
    assert caller.xen.save() == before


def test_noop_needs_no_struct_where_the_sub_op_is_a_register(caller7: Caller) -> None:
    assert caller7.call_at("noop", 0) == 0
    assert caller7.xen.hypercall(caller7.vcpu, caller7.abi.hypercall, 0) == 0


@pytest.mark.parametrize("pfn", [-1, 1 << 20, 10**7, 1 << 60])
def test_a_mapping_of_a_page_that_the_guest_does_not_have_is_a_fault(caller: Caller, pfn: int) -> None:
    prepare(caller)
    caller.testbed.linear.pages[BUFFER >> 12] = (pfn, True)
    for name in calls_of(caller):
        assert caller.call_at(name, BUFFER) == -EFAULT, name

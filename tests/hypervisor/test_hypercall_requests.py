# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests that are wrong in themselves: the errno, the order of the checks, and that nothing was done."""

import pytest
from guest_calls import RW, Caller, R, W, bed

from abi.errno import (
    E2BIG,
    EADDRINUSE,
    EBUSY,
    EINVAL,
    ENODEV,
    ENOENT,
    ENOSPC,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
)

U32 = 2**32 - 1
U64 = 2**64 - 1


def last_dfn(caller: Caller) -> int:
    return caller.xen.backend.max_iova >> 12


def quietly(caller: Caller, expected: int, name: str, **fields: int) -> dict[str, int]:
    """The call answers ``expected`` and nothing but its own struct changes; the struct's fields."""
    before = caller.everything()
    answer = caller.call(name, **fields)
    assert answer.rc == expected, (name, fields, answer)
    assert caller.xen.save() == before
    assert caller.changed_frames() <= {caller.mfn(5)}
    return answer.fields


# ------------------------------------------------------------------------------------------- hypercall, sub-op


def test_other_hypercalls_do_not_exist(caller: Caller) -> None:
    for number in (0, 1, 11, 13, 42, 44, 56, 63, U32, U64):
        assert caller.xen.hypercall(caller.vcpu, number, 0, 0) == -ENOSYS


def test_unknown_sub_ops_are_eopnotsupp_where_the_number_is_a_register(caller7: Caller) -> None:
    for number in (13, 14, 43, 0xFF, 0x1_0000, 0x7FFF_FFFF, U32):
        assert caller7.xen.hypercall(caller7.vcpu, 43, number, 0) == -EOPNOTSUPP, hex(number)


def test_only_32_bits_of_the_sub_op_register_count(caller7: Caller) -> None:
    assert caller7.xen.hypercall(caller7.vcpu, 43, 0xABCD_0000_0000, 0) == 0
    assert caller7.xen.hypercall(caller7.vcpu, 43, 0xABCD_0000_000D, 0) == -EOPNOTSUPP


def test_unknown_sub_ops_are_einval_in_the_union(caller3: Caller) -> None:
    ram = caller3.testbed.ram
    for number in (8, 9, 0x100, 0xFFFF):
        raw = number.to_bytes(2, "little") + b"\x55" * 30
        ram.write(0x5000, raw)
        assert caller3.xen.hypercall(caller3.vcpu, 43, ram.linear(0x5000)) == -EINVAL
        assert ram.read(0x5000, 32) == raw


def test_reserved_numbers_answer_eopnotsupp_without_looking_at_their_argument(caller7: Caller) -> None:
    for name in ("alloc_nested", "flush_nested", "attach_pasid", "detach_pasid"):
        assert caller7.call_at(name, U64) == -EOPNOTSUPP


def test_noop_does_nothing(caller: Caller) -> None:
    before = caller.everything()
    assert caller.noop() == 0
    assert caller.xen.save() == before


# --------------------------------------------------------------------------------------- holes, flags, page size


def holes_of(caller: Caller, name: str) -> list[int]:
    codec = caller.abi.by_name[name].codec
    assert codec is not None
    return [bit for bit in range(8 * codec.size) if codec.hole_mask >> bit & 1]


@pytest.mark.parametrize("name", ["alloc_context", "free_context", "reattach_device", "map_pages", "unmap_pages"])
def test_a_bit_in_a_hole_is_einval(caller7: Caller, name: str) -> None:
    caller = caller7
    assert caller.alloc() == 1
    assert caller.map(1, 300, 0x100).rc == 0
    ram = caller.testbed.ram
    holes = holes_of(caller, name)
    assert holes, f"{name} has no holes?"
    fields = {
        "map_pages": {"ctx_no": 1, "flags": RW, "gfn": caller.gfn(9), "dfn": 0x900},
        "free_context": {"ctx_no": 1},
    }
    good = caller.encode(name, **fields.get(name, {"ctx_no": 1, "dfn": 0x100} if name == "unmap_pages" else {}))
    for bit in holes:
        raw = (int.from_bytes(good, "little") | 1 << bit).to_bytes(len(good), "little")
        ram.write(0x5000, raw)
        before = caller.everything()
        assert caller.call_at(name, ram.linear(0x5000)) == -EINVAL, bit
        assert caller.xen.save() == before
        assert ram.read(0x5000, len(raw)) == raw, "a request that was not understood is left as it was"


def test_capabilities_have_no_stale_bytes(caller: Caller) -> None:
    """The posted versions copy a struct from their stack and leak what its padding held."""
    ram = caller.testbed.ram
    codec = caller.abi.by_name["query_capabilities"].codec
    ram.write(0x5000, caller.encode("query_capabilities") if not codec.hole_mask else b"\xff" * codec.size)
    assert caller.call_at("query_capabilities", ram.linear(0x5000)) == 0
    assert not int.from_bytes(ram.read(0x5000, codec.size), "little") & codec.hole_mask


def test_reserved_flags_are_einval(caller: Caller) -> None:
    assert caller.alloc() == 1
    abi = caller.abi
    for bit in range(32):
        flag = 1 << bit
        if not flag & abi.map_flags_mask:
            fields = quietly(
                caller, -EINVAL, "map_pages", ctx_no=1, gfn=caller.gfn(64), dfn=8, flags=RW | flag, mapped=77
            )
            assert fields["mapped"] == 0
        if not flag & abi.alloc_flags_mask:
            quietly(caller, -EINVAL, "alloc_context", flags=flag)
        if not flag & abi.free_flags_mask:
            quietly(caller, -EINVAL, "free_context", ctx_no=1, flags=flag)


def test_identity_contexts_are_refused_because_the_capability_is_not_offered(caller7: Caller) -> None:
    assert not caller7.call("query_capabilities").fields["cap_flags"] & caller7.abi.caps["identity"]
    quietly(caller7, -EOPNOTSUPP, "alloc_context", flags=caller7.abi.alloc_identity)


def test_cache_is_honoured_because_the_capability_is_offered(caller7: Caller) -> None:
    assert caller7.call("query_capabilities").fields["cap_flags"] & caller7.abi.caps["cache"]
    ctx = caller7.alloc()
    assert caller7.map(ctx, 64, 8, flags=R | caller7.abi.map_cache).rc == 0
    quietly(caller7, -EINVAL, "map_pages", ctx_no=ctx, gfn=caller7.gfn(65), dfn=9, flags=caller7.abi.map_cache)


def test_a_mapping_that_nobody_may_use_is_einval(caller: Caller) -> None:
    """H1: it would take a reference, be invisible to unmap, and never go away."""
    ctx = caller.alloc()
    quietly(caller, -EINVAL, "map_pages", ctx_no=ctx, gfn=caller.gfn(64), dfn=8, flags=0)
    assert caller.map(ctx, 64, 8, flags=R).rc == 0
    assert caller.map(ctx, 65, 9, flags=W).rc == 0


def test_page_sizes_outside_the_mask_are_einval(caller7: Caller) -> None:
    caller = caller7
    ctx = caller.alloc()
    mask = caller.call("query_capabilities").fields["pgsize_mask"]
    assert mask == 4096 | 2 << 20 | 1 << 30
    sizes = [0, 1, 2, 512, 2048, 4095, 4097, 4096 | 2 << 20, 8192, 1 << 20, 3 << 20, 1 << 31, mask, U32]
    for size in sizes:
        quietly(
            caller, -EINVAL, "map_pages", ctx_no=ctx, gfn=caller.gfn(512), dfn=512, flags=RW, pgsize=size, nr_pages=1
        )
        quietly(caller, -EINVAL, "unmap_pages", ctx_no=ctx, dfn=512, pgsize=size, nr_pages=1)
        quietly(caller, -EINVAL, "map_pages", ctx_no=ctx, flags=RW, pgsize=size, nr_pages=0)


def test_superpage_units_have_to_be_aligned_on_both_sides(caller7: Caller) -> None:
    caller = caller7
    ctx = caller.alloc()
    for off_dfn, off_gfn in ((1, 0), (0, 1), (256, 256), (511, 0)):
        quietly(
            caller,
            -EINVAL,
            "map_pages",
            ctx_no=ctx,
            gfn=caller.gfn(512) + off_gfn,
            dfn=0x1000 + off_dfn,
            flags=RW,
            pgsize=2 << 20,
        )
    quietly(caller, -EINVAL, "unmap_pages", ctx_no=ctx, dfn=0x1001, pgsize=2 << 20)


# --------------------------------------------------------------------------------------------- counts and ranges


def test_no_pages_is_a_success_that_does_nothing(caller: Caller) -> None:
    ctx = caller.alloc()
    for dfn in (0, 5, last_dfn(caller)):
        fields = quietly(caller, 0, "map_pages", ctx_no=ctx, gfn=U64, dfn=dfn, flags=RW, nr_pages=0, mapped=9)
        assert fields["mapped"] == 0
        fields = quietly(caller, 0, "unmap_pages", ctx_no=ctx, dfn=dfn, nr_pages=0, unmapped=9)
        assert fields["unmapped"] == 0


def test_no_pages_does_not_excuse_a_bad_request(caller: Caller) -> None:
    ctx = caller.alloc()
    quietly(caller, -EINVAL, "map_pages", ctx_no=ctx + 1, flags=RW, nr_pages=0)
    quietly(caller, -EINVAL, "map_pages", ctx_no=ctx, flags=0, nr_pages=0)
    quietly(caller, -EINVAL, "map_pages", ctx_no=ctx, flags=RW, dfn=last_dfn(caller) + 2, nr_pages=0)
    quietly(caller, -EINVAL, "unmap_pages", ctx_no=0, nr_pages=0)


def test_more_than_256_pages_are_e2big_before_the_context_is_looked_at(caller3: Caller) -> None:
    caller = caller3
    ctx = caller.alloc()
    for number in (ctx, 0, 255, 0xFFFF):
        for pages in (257, U32):
            fields = quietly(
                caller, -E2BIG, "map_pages", ctx_no=number, gfn=caller.gfn(512), dfn=0, flags=RW, nr_pages=pages
            )
            assert fields["mapped"] == 0
            quietly(caller, -E2BIG, "unmap_pages", ctx_no=number, dfn=0, nr_pages=pages)
    assert caller.map(ctx, 512, 0, 256).fields["mapped"] == 256


def test_every_page_there_is_maps_what_the_guest_has_and_stops(caller7: Caller) -> None:
    """nr_pages of 2^32 - 1 is no error in itself: it goes on until a page cannot be mapped."""
    caller = caller7
    ctx = caller.alloc()
    tail = 100
    first = len(caller.testbed.mfns) - tail
    answer = caller.map(ctx, first, 0x1000, U32)
    if caller.dom0.pv:
        run = next(k for k in range(1, tail + 1) if k == tail or caller.mfn(first + k) != caller.mfn(first) + k)
        assert answer.rc in (-EPERM, -ENOENT, -EADDRINUSE)
        assert answer.fields["mapped"] >= run
    else:
        assert answer == (-ENOENT, answer.fields)
        assert answer.fields["mapped"] == tail
    mapped = answer.fields["mapped"]
    answer = caller.unmap(ctx, 0x1000, U32)
    assert (answer.rc, answer.fields["unmapped"]) == (-ENOENT, mapped)
    assert all(caller.refs(pfn) == 0 for pfn in range(len(caller.testbed.mfns)))


def test_units_beyond_what_one_call_can_cover_are_refused(caller7: Caller) -> None:
    ctx = caller7.alloc()
    fits = (last_dfn(caller7) + 1 >> 9) - 1
    for count, expected in ((U32, -EINVAL), (fits, -E2BIG), ((1 << 23) + 1, -E2BIG)):
        quietly(caller7, expected, "unmap_pages", ctx_no=ctx, dfn=0, pgsize=2 << 20, nr_pages=count)
        quietly(caller7, expected, "map_pages", ctx_no=ctx, gfn=0, dfn=0, flags=RW, pgsize=2 << 20, nr_pages=count)
        quietly(caller7, -EINVAL, "map_pages", ctx_no=ctx, gfn=8, dfn=0, flags=RW, pgsize=2 << 20, nr_pages=count)


def test_device_frames_that_no_unit_can_translate_are_einval(caller: Caller) -> None:
    """H2: the posted versions let high frames alias low ones."""
    ctx = caller.alloc()
    last = last_dfn(caller)
    gfn = caller.gfn(64)
    for dfn, pages in ((last, 2), (last + 1, 1), (1 << 36, 1), (1 << 40, 1), (1 << 52, 1), (U64, 1), (U64, 2)):
        quietly(caller, -EINVAL, "map_pages", ctx_no=ctx, gfn=gfn, dfn=dfn, flags=RW, nr_pages=pages)
        quietly(caller, -EINVAL, "unmap_pages", ctx_no=ctx, dfn=dfn, nr_pages=pages)
    assert caller.map(ctx, 64, last).rc == 0
    assert caller.lookup(ctx, last) == caller.mfn(64)
    assert caller.attach(ctx) == 0
    assert caller.reach(last) == caller.mfn(64)
    assert caller.lookup(ctx, 0) is None
    assert caller.unmap(ctx, last).rc == 0


def test_guest_frames_that_wrap_or_do_not_exist_stop_the_call_where_they_are(caller: Caller) -> None:
    ctx = caller.alloc()
    for gfn in (U64, U64 - 1, 1 << 52, 1 << 40):
        fields = quietly(
            caller, -caller.xen.profile.errno_hole, "map_pages", ctx_no=ctx, gfn=gfn, dfn=8, flags=RW, nr_pages=4
        )
        assert fields["mapped"] == 0


# ------------------------------------------------------------------------------------------------------ contexts


def test_contexts_that_do_not_exist_are_einval_for_mappings_and_enoent_for_the_rest(caller: Caller) -> None:
    ctx = caller.alloc()
    gfn = caller.gfn(64)
    for number in (ctx + 1, 200, 0x7FFF, 0xFFFF):
        quietly(caller, -EINVAL, "map_pages", ctx_no=number, gfn=gfn, dfn=8, flags=RW)
        quietly(caller, -EINVAL, "unmap_pages", ctx_no=number, dfn=8)
        quietly(caller, -ENOENT, "free_context", ctx_no=number)
        quietly(caller, -ENOENT, "reattach_device", ctx_no=number, bus=1)
        if caller.abi.has("lookup_page"):
            quietly(caller, -EINVAL, "lookup_page", ctx_no=number, dfn=8)


def test_the_default_context_is_not_the_guests_to_change(caller: Caller) -> None:
    """A1: the posted v3 lets a guest unmap Xen's own identity mappings."""
    dfn = caller.gfn(300)
    quietly(caller, -EINVAL, "map_pages", ctx_no=0, gfn=caller.gfn(64), dfn=0x20_0000, flags=RW)
    quietly(caller, -EINVAL, "unmap_pages", ctx_no=0, dfn=dfn)
    quietly(caller, -EINVAL, "free_context", ctx_no=0)
    quietly(caller, -EINVAL, "free_context", ctx_no=0, flags=1)
    if caller.abi.has("lookup_page"):
        quietly(caller, -EINVAL, "lookup_page", ctx_no=0, dfn=dfn)
    assert caller.reach(dfn) == caller.mfn(300)


def test_a_dying_context_takes_nothing_any_more(caller: Caller) -> None:
    ctx = caller.alloc()
    assert caller.map(ctx, 300, 0x100).rc == 0
    caller.context(ctx).dying = True
    quietly(caller, -EINVAL, "map_pages", ctx_no=ctx, gfn=caller.gfn(64), dfn=8, flags=RW)
    quietly(caller, -EINVAL, "unmap_pages", ctx_no=ctx, dfn=0x100)
    quietly(caller, -EINVAL, "reattach_device", ctx_no=ctx, bus=1)
    assert caller.free(ctx) == 0
    assert caller.refs(300) == 0


# ------------------------------------------------------------------------------------------------------- devices


def test_devices_that_the_caller_does_not_have_are_enodev(caller: Caller) -> None:
    caller.alloc()
    for where in ({"bus": 2}, {"bus": 1, "devfn": 1}, {"segment": 1, "bus": 1}, {"segment": 0xFFFF, "devfn": 0xFF}):
        quietly(caller, -ENODEV, "reattach_device", ctx_no=1, **where)
        quietly(caller, -ENODEV, "reattach_device", ctx_no=77, **where)


def test_another_domains_device_is_enodev(caller: Caller) -> None:
    device = caller.dom0.devices.pop(0x28)
    caller.alloc()
    quietly(caller, -ENODEV, "reattach_device", ctx_no=1, devfn=0x28)
    caller.dom0.devices[device.sbdf] = device


def test_a_pasid_is_eopnotsupp_because_the_capability_is_not_offered(caller7: Caller) -> None:
    caller7.alloc()
    for pasid in (1, 0xFFFFF, U32):
        quietly(caller7, -EOPNOTSUPP, "reattach_device", ctx_no=1, bus=1, pasid=pasid)
        quietly(caller7, -EOPNOTSUPP, "reattach_device", ctx_no=99, bus=99, pasid=pasid)


def test_moving_a_device_to_where_it_is_does_nothing(caller: Caller) -> None:
    quietly(caller, 0, "reattach_device", ctx_no=0, bus=1)
    ctx = caller.alloc()
    assert caller.attach(ctx) == 0
    quietly(caller, 0, "reattach_device", ctx_no=ctx, bus=1)


def test_a_context_with_devices_is_ebusy_and_stays_usable(caller: Caller) -> None:
    """C2: the posted versions leave it dying for ever."""
    ctx = caller.alloc()
    assert caller.attach(ctx) == 0
    quietly(caller, -EBUSY, "free_context", ctx_no=ctx)
    assert caller.map(ctx, 64, 8).rc == 0
    assert caller.reach(8, write=True) == caller.mfn(64)
    assert caller.attach(ctx, 0x28) == 0
    assert caller.attach(0) == 0
    assert caller.attach(0, 0x28) == 0
    assert caller.free(ctx) == 0


# -------------------------------------------------------------------------------------------- who may call at all


def test_a_domain_without_an_iommu_is_told_so_before_anything_else(caller: Caller) -> None:
    xen = caller.xen
    other = xen.create_domain(7, p2m_frames=64, iommu=False)
    vcpu = xen.add_vcpu(other, caller.vcpu.memory)
    caller.testbed.ram.write(0x5000, bytes(64))
    for name in caller.abi.by_name:
        args = caller.abi.registers(name, caller.testbed.ram.linear(0x5000))
        assert xen.hypercall(vcpu, 43, *args) == -caller.abi.errno_unusable, name
    if caller.abi.has("init"):
        assert xen.hypercall(vcpu, 43, 999, 0) == -caller.abi.errno_unusable


def test_in_v3_only_the_hardware_domain_may_call(caller3: Caller) -> None:
    other = caller3.xen.create_domain(7, p2m_frames=64)
    vcpu = caller3.xen.add_vcpu(other, caller3.vcpu.memory)
    caller3.testbed.ram.write(0x5000, bytes(64))
    assert caller3.xen.hypercall(vcpu, 43, caller3.testbed.ram.linear(0x5000)) == -EPERM


def test_before_init_there_are_no_contexts(caller7: Caller) -> None:
    caller = bed(caller7.testbed.config.backend, "v7-fixed", caller7.testbed.config.guest, init=False)
    assert caller.call("query_capabilities").fields["max_ctx_no"] == 0
    quietly(caller, -ENOSPC, "alloc_context")
    quietly(caller, -ENOENT, "free_context", ctx_no=1)
    quietly(caller, -EINVAL, "map_pages", ctx_no=1, gfn=caller.gfn(64), flags=RW)

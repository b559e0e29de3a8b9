# SPDX-License-Identifier: GPL-2.0-or-later
"""remote_cmd: a sub-op run on another domain, with its struct in the caller's memory."""

from typing import Any

import pytest
from guest_calls import RW, Answer, Caller

from abi.errno import EACCES, EADDRINUSE, EFAULT, EINVAL, ENOENT, ENOSPC, EOPNOTSUPP, EPERM
from base.units import DomId
from hypervisor.domain import Domain
from hypervisor.guest_access import LinearMemory

TARGET = DomId(7)
INNER = 6
"""The guest page that holds the inner struct."""


def target_of(caller: Caller, **how: Any) -> Domain:
    """Another domain with 64 frames of its own at gfn 0."""
    domain = caller.xen.create_domain(TARGET, p2m_frames=64, **how)
    base = caller.frames.allocate(TARGET, 6)
    assert base is not None
    domain.p2m.set(0, base, 64)
    return domain


def remote(caller: Caller, name: str, domid: int = TARGET, *, at: int | None = None, **fields: int) -> Answer:
    ram = caller.testbed.ram
    raw = caller.encode(name, **fields) if name != "noop" else b""
    ram.write(INNER << 12, raw)
    arg = ram.linear(INNER << 12) if at is None else at
    rc = caller.call("remote_cmd", domid=domid, subop=caller.abi.by_name[name].number, arg=arg).rc
    codec = caller.abi.by_name[name].codec
    return Answer(rc, codec.as_dict(ram.read(INNER << 12, codec.size)) if codec is not None else {})


def test_the_whole_life_of_another_domains_contexts(caller7: Caller) -> None:
    caller = caller7
    target = target_of(caller)
    assert remote(caller, "noop").rc == 0
    assert remote(caller, "query_capabilities").fields["max_ctx_no"] == 0
    assert remote(caller, "query_capabilities").fields["cap_flags"] & caller.abi.caps["default_identity"] == 0
    assert remote(caller, "alloc_context").rc == -ENOSPC
    assert remote(caller, "init", max_ctx_no=2, arena_order=4).rc == 0
    assert remote(caller, "init", max_ctx_no=2, arena_order=4).rc == -EACCES
    assert remote(caller, "query_capabilities").fields["max_ctx_no"] == 2
    assert remote(caller, "alloc_context") == (0, {"ctx_no": 1, "flags": 0})
    assert remote(caller, "map_pages", ctx_no=1, gfn=3, dfn=8, flags=RW, nr_pages=4).fields["mapped"] == 4
    assert target.iommu.contexts[1].table.lookup(8)[0] == target.p2m.run(3, 1)[0]
    assert caller.call("query_capabilities").fields["max_ctx_no"] == 16
    assert caller.map(1, 64, 8).rc == -EINVAL, "the caller's own contexts are others"
    answer = remote(caller, "map_pages", ctx_no=1, gfn=3, dfn=6, flags=RW, nr_pages=4)
    assert (answer.rc, answer.fields["mapped"]) == (-EADDRINUSE, 2)
    answer = remote(caller, "unmap_pages", ctx_no=1, dfn=6, nr_pages=9)
    assert (answer.rc, answer.fields["unmapped"]) == (-ENOENT, 6)
    assert remote(caller, "free_context", ctx_no=1).rc == 0
    assert caller.alloc() == 1


def test_what_is_mapped_remotely_has_to_be_the_targets(caller7: Caller) -> None:
    caller = caller7
    target_of(caller)
    assert remote(caller, "init", max_ctx_no=2, arena_order=4).rc == 0
    assert remote(caller, "alloc_context").rc == 0
    for gfn in (64, 5000, 1 << 40):
        assert remote(caller, "map_pages", ctx_no=1, gfn=gfn, dfn=8, flags=RW).rc == -ENOENT
    assert remote(caller, "reattach_device", ctx_no=1, bus=1).rc < 0, "dom0's device stays dom0's"


def test_a_domain_can_be_its_own_target_but_not_as_domid_self(caller7: Caller) -> None:
    assert remote(caller7, "alloc_context", 0) == (0, {"ctx_no": 1, "flags": 0})
    assert caller7.alloc() == 2
    assert remote(caller7, "noop", 0x7FF0).rc == -ENOENT


def test_only_the_hardware_domain_may(caller7: Caller) -> None:
    xen = caller7.xen
    guest = target_of(caller7)
    vcpu = xen.add_vcpu(guest, LinearMemory(xen.platform.memory, guest.translation, 64, None, reserved=False))
    linear = vcpu.memory
    from hypervisor.guest_access import DIRECT_MAP

    number = caller7.abi.by_name["remote_cmd"].number
    for domid in (0, TARGET, 99):
        linear.write(DIRECT_MAP + 0x5000, caller7.encode("remote_cmd", domid=domid, subop=0, arg=0))
        assert xen.hypercall(vcpu, 43, number, DIRECT_MAP + 0x5000) == -EPERM


def test_unknown_domains_are_enoent(caller7: Caller) -> None:
    for domid in (1, 7, 0x7FEF, 0x7FF1, 0x7FF2, 0x7FF4, 0xFFFF):
        assert remote(caller7, "noop", domid).rc == -ENOENT


def test_nesting_is_einval(caller7: Caller) -> None:
    target_of(caller7)
    for domid in (0, TARGET):
        assert remote(caller7, "remote_cmd", domid).rc == -EINVAL
    assert remote(caller7, "remote_cmd", 99).rc == -ENOENT, "the domain is looked up first"


def test_unknown_and_reserved_inner_sub_ops_are_eopnotsupp(caller7: Caller) -> None:
    target_of(caller7)
    for subop in (9, 10, 11, 12, 13, 43, 0x100, 0x106, 0x8000, 0xFFFF):
        for domid in (0, TARGET):
            assert caller7.call("remote_cmd", domid=domid, subop=subop, arg=0).rc == -EOPNOTSUPP, hex(subop)


def test_a_target_without_an_iommu_is_refused(caller7: Caller) -> None:
    """H5: the posted versions follow a null pointer."""
    target_of(caller7, iommu=False)
    before = caller7.everything()
    for name in ("noop", "init", "alloc_context", "map_pages"):
        assert remote(caller7, name).rc == -caller7.abi.errno_unusable
    assert caller7.xen.save() == before


def test_a_hole_of_the_outer_struct_is_einval(caller7: Caller) -> None:
    ram = caller7.testbed.ram
    codec = caller7.abi.by_name["remote_cmd"].codec
    raw = caller7.encode("remote_cmd", domid=0, subop=0, arg=0)
    for bit in range(8 * codec.size):
        if codec.hole_mask >> bit & 1:
            ram.write(0x5000, (int.from_bytes(raw, "little") | 1 << bit).to_bytes(len(raw), "little"))
            assert caller7.call_at("remote_cmd", ram.linear(0x5000)) == -EINVAL


@pytest.mark.parametrize("where", [0, 1 << 47, 0xFFFF_8000_0000_0000, 2**64 - 1])
def test_a_bad_inner_pointer_is_efault_and_changes_nothing(caller7: Caller, where: int) -> None:
    target_of(caller7)
    assert remote(caller7, "init", max_ctx_no=2, arena_order=4).rc == 0
    before = caller7.everything()
    for name in ("query_capabilities", "init", "alloc_context", "free_context", "map_pages", "unmap_pages"):
        assert remote(caller7, name, at=where).rc == -EFAULT
    assert caller7.xen.save() == before


def test_the_inner_struct_may_overlap_the_outer_one(caller7: Caller) -> None:
    """The outer struct is decoded before the inner one is written."""
    ram = caller7.testbed.ram
    number = caller7.abi.by_name["query_capabilities"].number
    at = ram.linear(0x5000)
    ram.write(0x5000, caller7.encode("remote_cmd", domid=0, subop=number, arg=at))
    assert caller7.call_at("remote_cmd", at) == 0
    codec = caller7.abi.by_name["query_capabilities"].codec
    assert codec.as_dict(ram.read(0x5000, codec.size))["max_ctx_no"] == 16


def test_a_preempted_remote_map_goes_on_where_it_was(caller7: Caller) -> None:
    caller7.xen.preempt = lambda vcpu: True
    ctx = caller7.alloc()
    answer = remote(caller7, "map_pages", 0, ctx_no=ctx, gfn=caller7.gfn(0), dfn=0x1FF, flags=RW, nr_pages=2048)
    assert (answer.rc, answer.fields["mapped"]) == (0, 2048)
    answer = remote(caller7, "unmap_pages", 0, ctx_no=ctx, dfn=0x1FF, nr_pages=2048)
    assert (answer.rc, answer.fields["unmapped"]) == (0, 2048)


def test_forged_progress_of_a_remote_sub_op_that_never_resumes_is_eopnotsupp(caller7: Caller) -> None:
    ram = caller7.testbed.ram
    ram.write(INNER << 12, caller7.encode("alloc_context"))
    number = caller7.abi.by_name["alloc_context"].number
    ram.write(0x5000, caller7.encode("remote_cmd", domid=0, subop=number, arg=ram.linear(INNER << 12)))
    outer = caller7.abi.by_name["remote_cmd"].number
    assert caller7.xen.hypercall(caller7.vcpu, 43, outer | 0x100, ram.linear(0x5000)) == -EOPNOTSUPP
    assert caller7.alloc() == 1

# SPDX-License-Identifier: GPL-2.0-or-later
"""Preempted calls: the result of an uninterrupted one, and a progress register that a hostile guest may set itself."""

import pytest
from guest_calls import RW, Caller, R, bed
from hypothesis import given, settings
from hypothesis import strategies as st

from abi.errno import EADDRINUSE, EINVAL, ENOENT, EOPNOTSUPP
from hypervisor.pviommu import mappings

MIB2 = 2 << 20


@pytest.fixture(autouse=True, scope="module")
def short_passes():
    """Look often, so that short calls are preempted too."""
    usual, mappings.PASS_PAGES = mappings.PASS_PAGES, 512
    yield
    mappings.PASS_PAGES = usual


def always(vcpu: object) -> bool:
    return True


def pattern(bits: int, length: int = 16):
    """Yield where ``bits`` has a one, round and round."""
    step = -1

    def ask(vcpu: object) -> bool:
        nonlocal step
        step += 1
        return bool(bits >> step % length & 1)

    return ask


def passes(caller: Caller) -> list[tuple[int, ...]]:
    """A list that gets the registers of every re-issued call."""
    seen: list[tuple[int, ...]] = []
    entry = caller.xen.entry
    again = entry.again

    def spy(args: tuple[int, ...], progress: tuple[int, ...]) -> tuple[int, ...]:
        seen.append(again(args, progress))
        return seen[-1]

    entry.again = spy
    return seen


def state(caller: Caller, ctx: int) -> object:
    table = caller.context(ctx).table
    pages = [
        (dfn + k, (entry >> 12 & 0xFF_FFFF_FFFF) + k, table.format.readable(entry), table.format.writable(entry))
        for dfn, entry, order in table.leaves()
        for k in range(1 << order)
    ]
    return pages, [caller.refs(pfn) for pfn in range(len(caller.testbed.mfns))]


def test_a_call_that_always_yields_ends_like_one_that_never_does(caller7: Caller) -> None:
    calm = bed(caller7.testbed.config.backend, "v7-fixed", caller7.testbed.config.guest)
    seen = passes(caller7)
    caller7.xen.preempt = always
    for caller in (calm, caller7):
        ctx = caller.alloc()
        assert caller.attach(ctx) == 0
        assert caller.map(ctx, 0, 0x1FF, 2048).fields["mapped"] == 2048
    assert seen, "nothing was preempted"
    assert state(caller7, 1) == state(calm, 1)
    seen.clear()
    for caller in (calm, caller7):
        assert caller.unmap(1, 0x300, 1500).fields["unmapped"] == 1500
    assert state(caller7, 1) == state(calm, 1)
    for caller in (calm, caller7):
        assert caller.attach(0) == 0
        assert caller.free(1) == 0
        assert caller.arena_used == 0
        assert all(caller.refs(pfn) == 0 for pfn in range(len(caller.testbed.mfns)))


def test_what_the_guest_gets_back_does_not_show_the_preemption(caller7: Caller) -> None:
    """A9: the posted versions move gfn, dfn and nr_pages on in the guest's own struct."""
    caller7.xen.preempt = always
    ctx = caller7.alloc()
    answer = caller7.map(ctx, 0, 0x1000, 2048, mapped=7)
    assert answer.rc == 0
    assert answer.fields["mapped"] == 2048
    assert answer.fields["dfn"] == 0x1000
    assert answer.fields["gfn"] == caller7.gfn(0)
    assert answer.fields["nr_pages"] == 2048


def test_an_error_after_a_preemption_counts_the_pages_of_all_passes(caller7: Caller) -> None:
    caller = caller7
    ctx = caller.alloc()
    assert caller.map(ctx, 3000, 0x1000 + 1700).rc == 0
    caller.xen.preempt = always
    answer = caller.map(ctx, 0, 0x1000, 2048)
    assert (answer.rc, answer.fields["mapped"]) == (-EADDRINUSE, 1700)
    answer = caller.unmap(ctx, 0x1000, 2048)
    assert (answer.rc, answer.fields["unmapped"]) == (-ENOENT, 1701)


@pytest.mark.parametrize("offset", [0, 1, 255, 256, 511])
def test_a_long_unmap_of_superpages_yields_again_and_again_wherever_it_starts(caller7: Caller, offset: int) -> None:
    """However the range lies, the call may not go through without looking whether another should run."""
    backend, guest = caller7.testbed.config.backend, caller7.testbed.config.guest
    caller = bed(backend, "v7-fixed", guest, ram=64 << 20, guest_ram=48 << 20)
    ctx = caller.alloc()
    pages = 12 * 512 - offset
    dfn = 0x1000 + offset
    assert caller.map(ctx, offset, dfn, pages).fields["mapped"] == pages
    seen = passes(caller)
    caller.xen.preempt = always
    assert caller.unmap(ctx, dfn, pages).fields["unmapped"] == pages
    assert len(seen) >= 1
    seen.clear()
    assert caller.map(ctx, offset, dfn, pages).fields["mapped"] == pages
    assert len(seen) >= 1


@settings(max_examples=30, deadline=None)
@given(
    guest=st.sampled_from(("pv", "pvh")),
    bits=st.integers(0, 2**16 - 1),
    ranges=st.lists(
        st.tuples(st.integers(0, 4000), st.integers(0, 3000), st.integers(0, 1500), st.booleans(), st.booleans()),
        min_size=1,
        max_size=6,
    ),
)
def test_any_pattern_of_preemption_gives_the_same_result(guest, bits, ranges) -> None:
    calm, busy = bed(guest=guest), bed(guest=guest)
    busy.xen.preempt = pattern(bits)
    for caller in (calm, busy):
        assert caller.alloc() == 1
    for pfn, dfn, pages, mapping, writable in ranges:
        if mapping:
            flags = RW if writable else R
            first, second = (caller.map(1, pfn, 0x1000 + dfn, pages, flags) for caller in (calm, busy))
        else:
            first, second = (caller.unmap(1, 0x1000 + dfn, pages) for caller in (calm, busy))
        assert first == second
    assert state(calm, 1) == state(busy, 1)


def test_a_union_carries_no_progress_so_its_256_pages_go_through_at_once(caller3: Caller) -> None:
    caller3.xen.preempt = always
    seen = passes(caller3)
    ctx = caller3.alloc()
    for pfn, dfn in ((440, 2445), (1, 0x1001), (1300, 0x20FF)):
        assert caller3.map(ctx, pfn, dfn, 255).fields["mapped"] == 255
        assert caller3.unmap(ctx, dfn, 255).fields["unmapped"] == 255
    assert seen == []


# --------------------------------------------------------------------------------------------------- superpage units


def scattered_units(caller: Caller) -> int:
    """A context with two 2 MiB units of single pages at dfn 0x1000, the last page of the second one missing."""
    ctx = caller.alloc()
    for k in range(1023):
        assert caller.map(ctx, 1 + k, 0x1000 + k, flags=RW if k & 1 else R).rc == 0
    return ctx


def test_a_unit_that_is_not_whole_stays_as_a_whole_whether_preempted_or_not(caller7: Caller) -> None:
    for preempt in (None, always, pattern(0b10), pattern(0b100)):
        caller = bed(caller7.testbed.config.backend, "v7-fixed", caller7.testbed.config.guest)
        ctx = scattered_units(caller)
        caller.xen.preempt = preempt
        answer = caller.unmap(ctx, 0x1000, 2, pgsize=MIB2)
        assert (answer.rc, answer.fields["unmapped"]) == (-ENOENT, 1)
        assert caller.lookup(ctx, 0x1000 + 511) is None
        assert caller.lookup(ctx, 0x1000 + 512) == caller.mfn(513)


def test_a_unit_that_cannot_be_mapped_as_a_whole_is_not_mapped_at_all_whether_preempted_or_not(
    caller7: Caller,
) -> None:
    for preempt in (None, always, pattern(0b10), pattern(0b1000)):
        caller = bed(caller7.testbed.config.backend, "v7-fixed", caller7.testbed.config.guest)
        ctx = caller.alloc()
        assert caller.map(ctx, 3000, 0x1000 + 512 + 300).rc == 0
        caller.xen.preempt = preempt
        answer = caller.map(ctx, 0, 0x1000, 2, pgsize=MIB2)
        assert (answer.rc, answer.fields["mapped"]) == (-EADDRINUSE, 1)
        assert caller.lookup(ctx, 0x1000 + 511) == caller.mfn(511)
        assert caller.lookup(ctx, 0x1000 + 512) is None
        assert [caller.refs(pfn) for pfn in (0, 511, 512, 811, 812)] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_units_over_scattered_frames_are_never_left_half_done(backend: str) -> None:
    """Every few pages the frames go on elsewhere, so there is a chance to yield in the middle of a unit."""
    for preempt in (None, always, pattern(0b0110)):
        caller = bed(backend, "v7-fixed", "pvh")
        caller.xen.preempt = preempt
        ctx = caller.alloc()
        answer = caller.map(ctx, 2048, 0x1000, 3, pgsize=MIB2)
        assert (answer.rc, answer.fields["mapped"]) == (0, 3)
        assert [caller.lookup(ctx, 0x1000 + k) for k in range(1536)] == [caller.mfn(2048 + k) for k in range(1536)]
        answer = caller.unmap(ctx, 0x1000, 3, pgsize=MIB2)
        assert (answer.rc, answer.fields["unmapped"]) == (0, 3)


# --------------------------------------------------------------------------------------- a forged progress register


def forged(caller: Caller, name: str, progress: int, **fields: int) -> int:
    number = caller.abi.by_name[name].number
    ram = caller.testbed.ram
    ram.write(0x5000, caller.encode(name, **fields))
    return caller.xen.hypercall(caller.vcpu, 43, number | progress, ram.linear(0x5000))


def test_a_guest_that_forges_progress_skips_pages_of_its_own_call(caller7: Caller) -> None:
    caller = caller7
    ctx = caller.alloc()
    fields = {"ctx_no": ctx, "gfn": caller.gfn(0), "dfn": 0x1000, "flags": RW, "nr_pages": 600}
    assert forged(caller, "map_pages", 512, **fields) == 0
    assert caller.lookup(ctx, 0x1000 + 511) is None
    assert caller.lookup(ctx, 0x1000 + 512) == caller.mfn(512)
    assert sum(caller.refs(pfn) for pfn in range(700)) == 88
    assert forged(caller, "unmap_pages", 512, ctx_no=ctx, dfn=0x1000, nr_pages=600) == 0
    assert sum(caller.refs(pfn) for pfn in range(700)) == 0


def test_progress_beyond_the_end_is_einval(caller7: Caller) -> None:
    ctx = caller7.alloc()
    before = caller7.everything()
    for progress in (256, 512, 0xFFFF_FF00):
        fields = {"ctx_no": ctx, "gfn": caller7.gfn(0), "dfn": 0x1000, "flags": RW}
        for pages in (0, 1, 256 if progress == 256 else 257):
            if pages <= progress:
                assert forged(caller7, "map_pages", progress, nr_pages=pages, **fields) == -EINVAL
                assert forged(caller7, "unmap_pages", progress, ctx_no=ctx, dfn=0x1000, nr_pages=pages) == -EINVAL
    assert caller7.xen.save() == before


def test_sub_ops_that_never_resume_take_no_progress(caller7: Caller) -> None:
    ctx = caller7.alloc()
    before = caller7.everything()
    for name in ("noop", "query_capabilities", "init", "alloc_context", "free_context", "reattach_device"):
        fields = {} if name in ("noop", "query_capabilities", "init", "alloc_context") else {"ctx_no": ctx}
        if name == "noop":
            assert caller7.xen.hypercall(caller7.vcpu, 43, 0x100, 0) == -EOPNOTSUPP
        else:
            assert forged(caller7, name, 0x100, **fields) == -EOPNOTSUPP
    for name in ("alloc_nested", "flush_nested", "attach_pasid", "detach_pasid"):
        assert caller7.xen.hypercall(caller7.vcpu, 43, caller7.abi.by_name[name].number | 0x100, 0) == -EOPNOTSUPP
    assert caller7.xen.save() == before


@pytest.mark.parametrize("progress", [256, 512, 768, 1024 + 256])
def test_progress_into_the_middle_of_a_superpage_unit_harms_nobody(caller7: Caller, progress: int) -> None:
    """The clean-up of a half-mapped unit must not reach for pages that this call never mapped."""
    caller = caller7
    ctx = caller.alloc()
    assert caller.map(ctx, 3000, 0x1000 + 1500).rc == 0
    assert caller.map(ctx, 3001, 0x1000 + 100).rc == 0
    before = state(caller, ctx)
    fields = {"ctx_no": ctx, "gfn": caller.gfn(0), "dfn": 0x1000, "flags": RW, "pgsize": MIB2, "nr_pages": 3}
    rc = forged(caller, "map_pages", progress, **fields)
    assert rc in (-EINVAL, -EADDRINUSE)
    if progress % 512:
        assert state(caller, ctx) == before
    rc = forged(caller, "unmap_pages", progress, ctx_no=ctx, dfn=0x1000, pgsize=MIB2, nr_pages=3)
    assert rc in (0, -EINVAL, -ENOENT)
    assert caller.lookup(ctx, 0x1000 + 100) == caller.mfn(3001)


def test_progress_does_not_reach_a_remote_sub_op_through_its_number(caller7: Caller) -> None:
    """A remote sub-op's number is 16 bits of the caller's struct: no place for progress."""
    ctx = caller7.alloc()
    ram = caller7.testbed.ram
    fields = {"ctx_no": ctx, "gfn": caller7.gfn(0), "dfn": 0x1000, "flags": RW, "nr_pages": 600}
    ram.write(0x6000, caller7.encode("map_pages", **fields))
    number = caller7.abi.by_name["map_pages"].number
    answer = caller7.call("remote_cmd", domid=0, subop=number | 0x200, arg=ram.linear(0x6000))
    assert answer.rc == -EOPNOTSUPP
    assert caller7.refs(512) == 0


# --------------------------------------------------------------------------------- what others may do in between


def test_other_vcpus_run_only_between_passes_and_find_a_consistent_context(caller7: Caller) -> None:
    caller = caller7
    ctx = caller.alloc()
    assert caller.attach(ctx) == 0
    other = caller.xen.add_vcpu(caller.dom0, caller.vcpu.memory)
    number = caller.abi.by_name["unmap_pages"].number
    seen = []

    def others(vcpu: object) -> None:
        table = caller.context(ctx).table
        mapped = sum(1 << order for _, _, order in table.leaves())
        seen.append(mapped)
        assert sum(caller.refs(pfn) for pfn in range(2048)) == mapped
        assert mapped % 256 == 0
        caller.xen.preempt = None
        caller.testbed.ram.write(0x6000, caller.encode("unmap_pages", ctx_no=ctx, dfn=0x9000))
        assert caller.xen.hypercall(other, 43, number, caller.testbed.ram.linear(0x6000)) == -ENOENT
        caller.xen.preempt = always

    caller.xen.preempt, caller.xen.rescheduled = always, others
    assert caller.map(ctx, 0, 0x1000, 2048).fields["mapped"] == 2048
    assert seen == sorted(seen)
    assert seen


def test_a_context_freed_between_passes_ends_the_call(caller7: Caller) -> None:
    caller = caller7
    ctx = caller.alloc()
    other = caller.xen.add_vcpu(caller.dom0, caller.vcpu.memory)

    def others(vcpu: object) -> None:
        caller.xen.preempt = caller.xen.rescheduled = None
        caller.testbed.ram.write(0x6000, caller.encode("free_context", ctx_no=ctx))
        number = caller.abi.by_name["free_context"].number
        assert caller.xen.hypercall(other, 43, number, caller.testbed.ram.linear(0x6000)) == 0

    caller.xen.preempt, caller.xen.rescheduled = always, others
    answer = caller.map(ctx, 0, 0x1000, 2048)
    assert answer.rc == -EINVAL
    assert caller.arena_used == 0
    assert all(caller.refs(pfn) == 0 for pfn in range(2048))


def test_a_free_that_yields_leaves_a_dying_context_and_goes_on(caller: Caller) -> None:
    ctx = caller.alloc()
    for k in range(0, 2000, 2):  # every other page, so that nothing folds
        assert caller.map(ctx, k, 0x1000 + k).rc == 0
        assert caller.map(ctx, k, 0x3000 + k).rc == 0
    seen = []

    def others(vcpu: object) -> None:
        seen.append(caller.context(ctx).dying)

    caller.xen.preempt, caller.xen.rescheduled = always, others
    assert caller.free(ctx) == 0
    assert seen
    assert all(seen)
    assert caller.arena_used == 0 or caller.abi.has("lookup_page")
    assert all(caller.refs(pfn) == 0 for pfn in range(2000))

# SPDX-License-Identifier: GPL-2.0-or-later
"""init, alloc_context, free_context, reattach_device: life of contexts, and running out of numbers, tables and heap."""

import pytest
from guest_calls import RW, Caller, bed

from abi.errno import E2BIG, EACCES, EADDRINUSE, EBUSY, EINVAL, ENOENT, ENOMEM, ENOSPC
from hypervisor.frames import DOMID_XEN
from testbed.build import COPIER, NIC, ROGUE

U32 = 2**32 - 1
DEVICES = (NIC, COPIER, ROGUE)


def uninitialised(caller: Caller) -> Caller:
    return bed(caller.testbed.config.backend, "v7-fixed", caller.testbed.config.guest, init=False)


def mapped_pages(caller: Caller) -> int:
    return sum(caller.refs(pfn) for pfn in range(len(caller.testbed.mfns)))


# ------------------------------------------------------------------------------------------------------------- init


def test_init_opens_as_many_contexts_as_were_asked_for(caller7: Caller) -> None:
    """A2: in the posted versions the first context is leaked, because init runs on into alloc_context."""
    caller = uninitialised(caller7)
    answer = caller.call("init", max_ctx_no=3, arena_order=6)
    assert answer == (0, {"max_ctx_no": 3, "arena_order": 6})
    assert caller.call("query_capabilities").fields["max_ctx_no"] == 3
    assert [caller.alloc() for _ in range(3)] == [1, 2, 3]
    assert caller.call("alloc_context").rc == -ENOSPC


def test_init_works_once(caller7: Caller) -> None:
    before = caller7.everything()
    for contexts, order in ((16, 6), (0, 0), (1, 1)):
        assert caller7.call("init", max_ctx_no=contexts, arena_order=order).rc == -EACCES
    assert caller7.xen.save() == before


def test_more_contexts_than_16_bits_can_number_are_e2big_first_of_all(caller7: Caller) -> None:
    """A3: 0xFFFF is a crash of the host in the posted versions, 0x10000 is no context for ever."""
    caller = uninitialised(caller7)
    for _ in range(2):
        before = caller.everything()
        for contexts in (0xFFFF, 0x1_0000, 0x1_0001, 0x7FFF_FFFF, U32):
            assert caller.call("init", max_ctx_no=contexts, arena_order=6).rc == -E2BIG
            assert caller.call("init", max_ctx_no=contexts, arena_order=U32).rc == -E2BIG
        assert caller.xen.save() == before
        if not caller.dom0.iommu.initialised:
            assert caller.init(0xFFFE, 6) == 0
            assert caller.call("query_capabilities").fields["max_ctx_no"] == 0xFFFE


@pytest.mark.parametrize("order", [14, 20, 31, 32, 60, 63, 64, 0xFFFF, U32])
def test_an_arena_larger_than_memory_is_enomem_and_may_be_asked_for_smaller(caller7: Caller, order: int) -> None:
    """C8: one failed init disables PV-IOMMU for good in the posted versions."""
    caller = uninitialised(caller7)
    before = caller.everything()
    assert caller.call("init", max_ctx_no=8, arena_order=order).rc == -ENOMEM
    assert caller.xen.save()[2:] == before[2:]
    assert caller.call("query_capabilities").fields["max_ctx_no"] == 0
    assert caller.call("alloc_context").rc == -ENOSPC
    assert caller.init(8, 4) == 0
    assert caller.alloc() == 1


def test_an_arena_of_order_0_is_one_page(caller7: Caller) -> None:
    """T4: it is accepted and then a BUG in the posted versions."""
    caller = uninitialised(caller7)
    assert caller.init(4, 0) == 0
    rc = caller.call("alloc_context").rc
    assert rc in (0, -ENOMEM)
    if rc == 0:
        assert caller.arena_used == 1
        assert caller.map(1, 64, 8).rc == -ENOMEM
        assert caller.call("alloc_context").rc == -ENOMEM
        assert caller.attach(1) == 0
        assert caller.reach(8) is None


def test_no_contexts_is_a_legal_wish(caller7: Caller) -> None:
    caller = uninitialised(caller7)
    assert caller.init(0, 0) == 0
    assert caller.call("alloc_context").rc == -ENOSPC
    assert caller.call("init", max_ctx_no=4, arena_order=4).rc == -EACCES


def test_v3_has_255_contexts_from_the_start(caller3: Caller) -> None:
    assert caller3.call("query_capabilities").fields["max_ctx_no"] == 255
    assert [caller3.alloc() for _ in range(255)] == list(range(1, 256))
    assert caller3.call("alloc_context").rc == -ENOSPC
    assert caller3.noop() == 0
    assert caller3.free(7) == 0
    assert caller3.alloc() == 7


# ------------------------------------------------------------------------------------------------------ alloc and free


def test_the_lowest_free_number_comes_next(caller: Caller) -> None:
    assert [caller.alloc() for _ in range(5)] == [1, 2, 3, 4, 5]
    assert caller.free(4) == 0
    assert caller.free(2) == 0
    assert [caller.alloc() for _ in range(3)] == [2, 4, 6]


def test_an_exhausted_domain_goes_on_working(caller7: Caller) -> None:
    """B1: in the posted v1 to v3 the refusal leaves a lock held."""
    caller = caller7
    numbers = [caller.alloc() for _ in range(16)]
    for _ in range(3):
        answer = caller.call("alloc_context", ctx_no=0x1234)
        assert answer.rc == -ENOSPC
        assert answer.fields["ctx_no"] == 0x1234, "a refused call names no context"
    assert caller.map(16, 64, 8).rc == 0
    for number in numbers:
        assert caller.free(number) == 0
    assert caller.arena_used == 0


def test_free_of_an_unknown_context_leaves_the_domain_working(caller: Caller) -> None:
    """B2."""
    for _ in range(2):
        assert caller.free(9) == -ENOENT
    assert caller.alloc() == 1
    assert caller.free(1) == 0
    assert caller.free(1) == -ENOENT


def test_a_new_context_is_empty_even_under_an_old_number(caller: Caller) -> None:
    ctx = caller.alloc()
    assert caller.attach(ctx) == 0
    assert caller.map(ctx, 512, 0x1000, 200).rc == 0
    assert caller.reach(0x1000) == caller.mfn(512)
    assert caller.free(ctx, flags=1) == 0
    assert caller.alloc() == ctx
    assert caller.attach(ctx) == 0
    assert caller.reach(0x1000) is None
    assert caller.lookup(ctx, 0x1000) is None
    assert caller.map(ctx, 2000, 0x1000).rc == 0
    assert caller.reach(0x1000) == caller.mfn(2000)


def test_thousands_of_contexts_come_and_go_without_a_leak(caller: Caller) -> None:
    """T5: the posted versions lose the root of every context."""
    used = caller.arena_used
    for round_ in range(300):
        ctx = caller.alloc()
        assert caller.map(ctx, 64, round_ << 20).rc == 0
        assert caller.free(ctx) == 0
    assert caller.arena_used == used
    assert mapped_pages(caller) == 0


def test_free_with_the_flag_moves_every_device_home(caller: Caller) -> None:
    """C1: the posted versions walk the wrong list after the first."""
    ctx = caller.alloc()
    for sbdf in DEVICES:
        assert caller.attach(ctx, sbdf) == 0
    assert caller.map(ctx, 512, 0x4_0000, 16).rc == 0
    for sbdf in DEVICES:
        assert caller.reach(0x4_0000, sbdf) == caller.mfn(512)
    assert caller.free(ctx) == -EBUSY
    assert caller.free(ctx, flags=1) == 0
    for sbdf in DEVICES:
        assert caller.dom0.devices[sbdf].context is caller.context(0)
        assert caller.reach(0x4_0000, sbdf) is None
        assert caller.reach(caller.gfn(64), sbdf) == caller.mfn(64)
    assert {device.sbdf for device in caller.context(0).devices} >= set(DEVICES)
    assert mapped_pages(caller) == 0
    assert caller.alloc() == ctx


def test_free_with_the_flag_and_no_device_is_a_plain_free(caller: Caller) -> None:
    ctx = caller.alloc()
    assert caller.free(ctx, flags=1) == 0
    assert caller.alloc() == ctx


def test_devices_of_other_contexts_stay_where_they_are(caller: Caller) -> None:
    first, second = caller.alloc(), caller.alloc()
    assert caller.attach(first, NIC) == 0
    assert caller.attach(second, COPIER) == 0
    assert caller.map(second, 64, 8).rc == 0
    assert caller.free(first, flags=1) == 0
    assert caller.reach(8, COPIER) == caller.mfn(64)
    assert caller.free(second) == -EBUSY


def test_a_context_with_superpages_gives_everything_back(caller7: Caller) -> None:
    """T1: the posted versions never get to the end of a superpage."""
    caller = caller7
    ctx = caller.alloc()
    assert caller.map(ctx, 0, 0x1000, 2048).fields["mapped"] == 2048
    for pfn in range(512):
        assert caller.map(ctx, pfn, 0x4000 + pfn).rc == 0
    assert caller.unmap(ctx, 0x4005).rc == 0
    assert mapped_pages(caller) == 2048 + 511
    assert caller.free(ctx) == 0
    assert mapped_pages(caller) == 0
    assert caller.arena_used == 0


def test_a_table_kept_for_a_fold_goes_back_with_the_superpage(caller: Caller) -> None:
    ctx = caller.alloc()
    root = caller.arena_used
    for _ in range(3):
        for pfn in range(0, 512, 128):
            assert caller.map(ctx, pfn, 0x4000 + pfn, 128).rc == 0
        assert caller.arena_used > root
        for dfn in (0x4000, 0x4100):
            assert caller.unmap(ctx, dfn, 256).rc == 0
        for pfn in range(0, 512, 128):
            assert caller.map(ctx, pfn, 0x4000 + pfn, 128).rc == 0
        if caller.abi.has("init"):
            assert caller.unmap(ctx, 0x4000, 512).rc == 0
        else:
            assert caller.free(ctx) == 0
            assert caller.alloc() == ctx
        assert caller.arena_used <= root + 1, "an empty tree may keep its upper levels"
    assert caller.free(ctx) == 0
    assert caller.arena_used == 0


def test_bridges_can_be_moved_and_keep_their_context_busy(caller: Caller) -> None:
    """R6: the posted v3 frees the context under a bridge."""
    bridge = next(sbdf for sbdf, device in caller.dom0.devices.items() if not device.translated)
    ctx = caller.alloc()
    assert caller.attach(ctx, bridge) == 0
    assert caller.free(ctx) == -EBUSY
    assert caller.free(ctx, flags=1) == 0
    assert caller.dom0.devices[bridge].context is caller.context(0)


def test_a_device_sees_exactly_the_context_it_is_in(caller: Caller) -> None:
    first, second = caller.alloc(), caller.alloc()
    assert caller.map(first, 64, 8).rc == 0
    assert caller.map(second, 65, 8).rc == 0
    home = caller.gfn(300)
    for target, dfn, expected in (
        (first, 8, caller.mfn(64)),
        (second, 8, caller.mfn(65)),
        (0, home, caller.mfn(300)),
        (second, 8, caller.mfn(65)),
        (first, 8, caller.mfn(64)),
        (first, home, None),
    ):
        assert caller.attach(target) == 0
        assert caller.reach(dfn) == expected


# ------------------------------------------------------------------------------------------------------- running out


def test_an_exhausted_arena_is_enomem_with_the_mapped_prefix_and_heals(caller7: Caller) -> None:
    caller = uninitialised(caller7)
    assert caller.init(4, 3) == 0  # 8 pages
    ctx = caller.alloc()
    assert caller.attach(ctx) == 0
    mapped = []
    for k in range(8):
        dfn = 0x1000 + 512 * k
        answer = caller.map(ctx, 2048 + 4 * k, dfn)
        if answer.rc:
            break
        mapped.append((dfn, 2048 + 4 * k))
    assert answer.rc == -ENOMEM
    assert answer.fields["mapped"] == 0
    assert caller.arena_used == 8
    assert mapped_pages(caller) == len(mapped)
    for dfn, pfn in mapped:
        assert caller.reach(dfn) == caller.mfn(pfn)
    assert caller.call("alloc_context").rc == -ENOMEM
    assert caller.alloc if caller.free(ctx) == -EBUSY else None
    assert caller.unmap(ctx, mapped[0][0]).rc == 0
    assert caller.arena_used == 7
    assert caller.map(ctx, 3000, 0x1000 + 512 * 20).rc == 0
    assert caller.free(ctx, flags=1) == 0
    assert caller.arena_used == 0


def test_a_range_that_runs_out_of_tables_in_the_middle_keeps_its_prefix(caller7: Caller) -> None:
    caller = uninitialised(caller7)
    assert caller.init(2, 3) == 0
    ctx = caller.alloc()
    room = 8 - caller.arena_used
    start = 0x1FF  # odd against the frames, so that no superpage can save tables
    answer = caller.map(ctx, 0, start, 2048)
    assert answer.rc == (-ENOMEM if answer.fields["mapped"] < 2048 else 0)
    again = caller.map(ctx, 2048, 0x40_0000 - 1, 1)
    if answer.rc == 0:
        assert again.rc in (0, -ENOMEM)
        return
    done = answer.fields["mapped"]
    assert done % 512 == 1
    assert done // 512 <= room
    assert mapped_pages(caller) == done
    assert caller.unmap(ctx, start, done).fields["unmapped"] == done
    assert mapped_pages(caller) == 0


def test_what_one_call_mapped_one_call_unmaps_with_the_arena_full(caller7: Caller) -> None:
    """Jason Gunthorpe's rule: unmap of what was mapped needs no memory."""
    caller = uninitialised(caller7)
    assert caller.init(2, 4) == 0
    ctx = caller.alloc()
    calls = []
    for dfn, pfn, pages in ((0x1000, 0, 512), (0x1400, 512, 700), (0x2000, 1300, 300), (0x3000, 0, 1024)):
        assert caller.map(ctx, pfn, dfn, pages).rc == 0
        calls.append((dfn, pages))
    for half in range(512):  # folds from two kinds of calls
        assert caller.map(ctx, half, 0x8000 + half).rc == 0
    calls += [(0x8000 + k, 1) for k in (0, 511, 255)]
    while (pfn := len(calls)) and caller.map(ctx, pfn, 0x10_0000 + (pfn << 18)).rc == 0:
        calls.append((0x10_0000 + (pfn << 18), 1))
    assert caller.call("alloc_context").rc == -ENOMEM
    for dfn, pages in calls[4:] + calls[:4]:
        answer = caller.unmap(ctx, dfn, pages)
        assert (answer.rc, answer.fields["unmapped"]) == (0, pages), hex(dfn)


def test_a_slice_out_of_a_superpage_needs_a_table_and_is_refused_exactly_without_one(caller7: Caller) -> None:
    caller = uninitialised(caller7)
    assert caller.init(2, 3) == 0
    ctx = caller.alloc()
    assert caller.map(ctx, 0, 0x1000, 512).rc == 0
    assert caller.map(ctx, 600, 0x1200 - 1).rc == -EADDRINUSE
    assert caller.map(ctx, 600, 0x1200, 3).rc == 0
    k = 1
    while caller.map(ctx, 700 + k, k << 18).rc == 0:
        k += 1
    answer = caller.unmap(ctx, 0x1100, 0x103)
    assert (answer.rc, answer.fields["unmapped"]) == (-ENOMEM, 0)
    assert mapped_pages(caller) == 512 + 3 + k - 1
    assert caller.unmap(ctx, 1 << 18).rc == 0
    answer = caller.unmap(ctx, 0x1100, 0x103)
    assert (answer.rc, answer.fields["unmapped"]) == (0, 0x103)


def test_a_full_heap_is_enomem_and_no_context(caller7: Caller) -> None:
    caller = uninitialised(caller7)
    taken = []
    while (mfn := caller.frames.allocate(DOMID_XEN)) is not None:
        taken.append(mfn)
    assert caller.call("init", max_ctx_no=4, arena_order=0).rc == -ENOMEM
    assert caller.call("init", max_ctx_no=4, arena_order=3).rc == -ENOMEM
    for mfn in taken[-16:]:
        caller.frames.put(mfn, 1, 1)
    assert caller.init(4, 3) == 0
    assert caller.alloc() == 1


def test_a_refused_alloc_gives_its_number_and_tags_back(caller7: Caller) -> None:
    """C3: the posted versions free the wrong bit."""
    caller = uninitialised(caller7)
    assert caller.init(300, 3) == 0
    first = caller.alloc()
    assert caller.map(first, 64, 8).rc == 0
    while caller.call("alloc_context").rc == 0:
        pass
    for _ in range(2000):  # more often than a unit has tags
        assert caller.call("alloc_context").rc == -ENOMEM
    last = max(caller.dom0.iommu.contexts)
    assert caller.free(last) == 0
    assert caller.alloc() == last


def test_tags_of_the_hardware_are_a_limit_of_their_own(caller7: Caller) -> None:
    caller = uninitialised(caller7)
    units = caller.xen.backend.units
    assert caller.init(8, 6) == 0
    taken = 0
    take = units[0].take_did if hasattr(units[0], "take_did") else units[0].take_vmid
    while (tag := take()) is not None and tag != -1:
        taken += 1
    assert caller.call("alloc_context").rc == -ENOSPC
    assert caller.arena_used == 0
    assert taken


def test_capabilities_say_what_the_machine_can_do(caller: Caller) -> None:
    answer = caller.call("query_capabilities")
    assert answer.rc == 0
    caps = answer.fields
    assert caps["max_iova_addr"] == caller.xen.backend.max_iova
    if caller.abi.has("init"):
        assert caps["max_ctx_no"] == 16
        assert caps["max_pasid"] == 0
        assert caps["cap_flags"] == caller.abi.caps["default_identity"] | caller.abi.caps["cache"]
    else:
        assert caps["max_nr_pages"] == 256


def test_an_invalid_move_leaves_the_device_where_it_was(caller: Caller) -> None:
    ctx = caller.alloc()
    assert caller.attach(ctx) == 0
    assert caller.map(ctx, 64, 8).rc == 0
    for number in (ctx + 1, 0xFFFF):
        assert caller.attach(number) == -ENOENT
    dying = caller.alloc()
    caller.context(dying).dying = True
    assert caller.attach(dying) == -EINVAL
    assert caller.reach(8) == caller.mfn(64)
    assert caller.dom0.devices[NIC].context is caller.context(ctx)


def test_flags_of_a_mapping_decide_what_devices_may_do(caller: Caller) -> None:
    ctx = caller.alloc()
    assert caller.attach(ctx) == 0
    for dfn, flags, reads, writes in ((8, 1, True, False), (9, 2, False, True), (10, RW, True, True)):
        assert caller.map(ctx, 64, dfn, flags=flags).rc == 0
        assert (caller.reach(dfn) is not None) == reads
        assert (caller.reach(dfn, write=True) is not None) == writes

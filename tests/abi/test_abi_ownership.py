# SPDX-License-Identifier: GPL-2.0-or-later
"""The fixed versions' specification under bad luck: flushes unconfirmed, memory short, pages taken, calls preempted."""

import pytest
from abi_bench import DISK, MAP, NIC, do, request, sbdf, world

from abi.conditions import FrameKind
from abi.contract_fixed import contract_called
from abi.errno import EBUSY, EINVAL, EIO, ENOENT, ENOMEM, ENOSPC, EOPNOTSUPP, EPERM, ERESTART
from abi.ownership import become, give_up
from abi.semantics import call, step
from abi.world import Chance, Context, Device, Leaf, Request

V7 = "v7-fixed"
CONTRACT = contract_called(V7)


def mapped(**facts):
    contexts = {0: Context(), 1: Context({0x1000: Leaf(0x100, 3)}), 2: Context()}
    return world(V7, contexts=contexts, **facts)


def test_an_unconfirmed_unmap_has_happened_and_answers_eio():
    state, result, fields, outcome = do(V7, mapped(), "unmap_pages", Chance(unconfirmed=True), ctx_no=1, dfn=0x1000)
    assert (result, fields["unmapped"], outcome.condition) == (-EIO, 1, "unconfirmed")
    assert not state[0].contexts[1].leaves and state[0].unconfirmed


def test_eio_comes_before_what_stopped_the_loop():
    values = {"ctx_no": 1, "dfn": 0x1000, "nr_pages": 2}
    assert do(V7, mapped(), "unmap_pages", Chance(), **values)[1] == -ENOENT
    assert do(V7, mapped(), "unmap_pages", Chance(unconfirmed=True), **values)[1:2] == (-EIO,)


def test_a_pass_that_is_preempted_and_not_confirmed_is_the_last():
    chance = Chance(preempt_after=2, unconfirmed=True)
    state, result, fields, outcome = do(V7, world(V7), "map_pages", chance, **MAP)
    assert (result, fields["mapped"], outcome.again) == (-EIO, 2, None) and len(state[0].contexts[1].leaves) == 2


@pytest.mark.parametrize(("driver_errno", "errno"), [(EIO, EIO), (ENOMEM, ENOMEM)])
def test_a_free_ends_with_the_device_that_cannot_be_moved(driver_errno, errno):
    devices = {NIC: Device(1), DISK: Device(1)}
    chance = Chance(driver_errno=driver_errno, unconfirmed=driver_errno == EIO, stay=frozenset({DISK}))
    state, result, _, _ = do(V7, mapped(devices=devices), "free_context", chance, ctx_no=1, flags=1)
    assert result == -errno and {s: d.context for s, d in state[0].devices.items()} == {NIC: 0, DISK: 1}
    assert not state[0].contexts[1].dying and state[0].contexts[1].leaves


def test_a_free_that_is_not_confirmed_leaves_a_dying_context_that_a_second_one_finishes():
    chance = Chance(driver_errno=EIO, unconfirmed=True)
    state, result, _, _ = do(V7, mapped(), "free_context", chance, ctx_no=1)
    assert result == -EIO and state[0].contexts[1].dying
    assert do(V7, state, "map_pages", **MAP)[1] == -EINVAL
    assert do(V7, state, "reattach_device", ctx_no=1, **sbdf(NIC))[1] == -EINVAL
    state, result, _, _ = do(V7, state, "free_context", ctx_no=1)
    assert result == 0 and 1 not in state[0].contexts


def test_a_preempted_free_is_issued_again_and_the_context_is_dying_meanwhile():
    asked = request(V7, "free_context", Chance(preempt_after=1), ctx_no=1)
    state, outcome = step(CONTRACT, mapped(), asked)
    assert outcome.result == -ERESTART and state[0].contexts[1].dying
    state, outcome = call(CONTRACT, mapped(), asked)
    assert outcome.result == 0 and 1 not in state[0].contexts


def test_a_move_that_is_not_confirmed_leaves_the_device_where_it_was():
    chance = Chance(driver_errno=EIO, unconfirmed=True)
    state, result, _, _ = do(V7, world(V7), "reattach_device", chance, ctx_no=1, **sbdf(NIC))
    assert result == -EIO and state[0].devices[NIC].context == 0 and state[0].unconfirmed


def test_no_tag_is_enospc_and_takes_no_number():
    state, result, _, _ = do(V7, world(V7), "alloc_context", Chance(no_tag=True))
    assert result == -ENOSPC and set(state[0].contexts) == {0, 1}


def test_progress_that_a_guest_claims_skips_pages_counted_from_the_grain():
    number = CONTRACT.abi.by_name["map_pages"].number
    args = (1, 0, 0x10FE, 3, 0x1000, 4, 0)
    frames = dict.fromkeys(range(4), FrameKind.RAM)
    state, outcome = step(CONTRACT, world(V7, frames=frames), Request(0, number, args, progress=0x100))
    assert (outcome.result, outcome.args[-1], set(state[0].contexts[1].leaves)) == (0, 4, {0x1100, 0x1101})
    assert step(CONTRACT, world(V7, frames=frames), Request(0, number, args, progress=0x200))[1].result == -EINVAL
    free = CONTRACT.abi.by_name["free_context"].number
    assert step(CONTRACT, mapped(), Request(0, free, (1, 0), progress=0x100))[1].result == -EOPNOTSUPP


@pytest.mark.parametrize("direct", [True, False])
def test_a_page_that_was_given_up_can_be_mapped_no_more(direct):
    state, result = give_up(world(V7, direct=direct), 0, 0x100)
    assert result == 0 and do(V7, state, "map_pages", **MAP)[1] == (-EPERM if direct else -ENOENT)
    assert give_up(state, 0, 0x100)[1] == -EINVAL and become(state, 0, 0x100, None)[1] == -EINVAL


def test_a_pv_guest_keeps_a_page_that_it_gave_up_as_long_as_it_maps_it():
    state, _ = give_up(mapped(direct=True), 0, 0x100)
    again = {"ctx_no": 2, "gfn": 0x100, "dfn": 0x2000, "flags": 3}
    state, result, _, _ = do(V7, state, "map_pages", **again)
    assert result == 0
    for ctx_no, dfn in ((1, 0x1000), (2, 0x2000)):
        state = do(V7, state, "unmap_pages", ctx_no=ctx_no, dfn=dfn)[0]
    assert do(V7, state, "map_pages", **again)[1] == -EPERM


def test_after_an_unconfirmed_flush_nobody_can_say_whether_it_is_gone():
    state, _ = give_up(mapped(direct=True), 0, 0x100)
    state = do(V7, state, "unmap_pages", Chance(unconfirmed=True), ctx_no=1, dfn=0x1000)[0]
    again = {"ctx_no": 2, "gfn": 0x100, "dfn": 0x2000, "flags": 3}
    assert do(V7, state, "map_pages", Chance(gone_from=0), **again)[1] == -EPERM
    assert do(V7, state, "map_pages", **again)[1] == 0


def test_giving_up_fails_without_memory_or_confirmation_and_changes_nothing_then():
    state = world(V7)
    assert give_up(state, 0, 0x100, Chance(no_memory_at=0)) == (state, -ENOMEM)
    after, result = give_up(state, 0, 0x100, Chance(unconfirmed=True))
    assert result == -EIO and not after[0].given_up and after[0].unconfirmed


def test_a_page_table_is_mapped_to_be_read_and_not_made_of_what_devices_write():
    assert become(mapped(direct=True), 0, 0x100, FrameKind.READ_ONLY)[1] == -EBUSY
    state, result = become(mapped(direct=True), 0, 0x101, FrameKind.READ_ONLY)
    assert result == 0
    target = {"ctx_no": 2, "gfn": 0x101, "dfn": 0x2000}
    assert do(V7, state, "map_pages", flags=3, **target)[1] == -EPERM
    assert do(V7, state, "map_pages", flags=1, **target)[1] == 0


@pytest.mark.parametrize("kind", [FrameKind.READ_ONLY, FrameKind.SHARED])
def test_what_the_guest_may_not_write_its_devices_may_not(kind):
    state, _ = become(world(V7), 0, 0x100, kind)
    assert do(V7, state, "map_pages", **MAP)[1] == -EPERM
    assert do(V7, state, "map_pages", **MAP | {"flags": 1, "nr_pages": 1})[1] == 0
    state, _ = become(state, 0, 0x100, None)
    assert do(V7, state, "map_pages", **MAP)[1] == 0


def test_lookup_finds_no_number_for_a_frame_that_went_away():
    contexts = {0: Context(), 1: Context({0x1000: Leaf(0x100, 3)})}
    state = world("v3-fixed", contexts=contexts)
    assert do("v3-fixed", state, "lookup_page", ctx_no=1, dfn=0x1000)[1] == 0
    state, _ = give_up(state, 0, 0x100)
    assert do("v3-fixed", state, "lookup_page", ctx_no=1, dfn=0x1000)[1] == -ENOENT

# SPDX-License-Identifier: GPL-2.0-or-later
"""The executable specification of contexts and devices: order of the tests, what is written back and when."""

from dataclasses import replace

import pytest
from abi_bench import DISK, FIXED, LATE, MAP, NIC, POSTED, RUNNING, do, request, sbdf, world

from abi import versions
from abi.conditions import CONDITIONS
from abi.contract import NoContract, contract_of
from abi.contract_fixed import EVERY, contract_called
from abi.errno import (
    E2BIG,
    EACCES,
    EADDRINUSE,
    EBUSY,
    EFAULT,
    EILSEQ,
    EINVAL,
    EIO,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    EOPNOTSUPP,
    EPERM,
    ERESTART,
)
from abi.predicates import PAGE_TESTS, TESTS
from abi.semantics import AFTERWARDS, EFFECTS, PAGE_EFFECTS, step
from abi.world import READ, WRITE, Chance, Context, Device, Leaf, Request, domain_for

# --- the tables are total


def test_every_condition_of_every_table_has_words_and_a_test():
    for contract in EVERY.values():
        for name, rows in contract.tables.items():
            for row in rows:
                assert row.condition in CONDITIONS
                if contract.runs and row.condition not in AFTERWARDS:
                    assert row.condition in (PAGE_TESTS if row.each else TESTS), (contract.name, name, row)
        assert set(contract.frames.values()) <= set(CONDITIONS)


def test_every_running_version_has_a_table_and_an_effect_for_every_sub_op():
    for name in RUNNING:
        contract = contract_called(name)
        for subop in contract.abi.subops.values():
            assert subop.name in contract.tables
            if subop.implemented:
                assert subop.name in EFFECTS or subop.name in PAGE_EFFECTS


def test_versions_that_nobody_implemented_say_so():
    for name in ("P-1", "P0", "H0", "N", "E3"):
        with pytest.raises(NoContract, match=name):
            contract_of(name)
    assert contract_of("V7").name == "v7"


# --- framing


@pytest.mark.parametrize("name", RUNNING)
def test_a_caller_that_may_not_learns_nothing_else(name):
    state = world(name, usable=False)
    errno = versions.get(name.removesuffix("-fixed")).errno_unusable
    for subop in contract_called(name).abi.by_name:
        assert do(name, state, subop)[1] == -errno
    number = Request(0, 99, ())
    assert step(contract_called(name), state, number)[1].result == -errno


@pytest.mark.parametrize("name", RUNNING)
def test_unknown_numbers(name):
    contract = contract_called(name)
    outcome = step(contract, world(name), Request(0, 99, ()))[1]
    assert outcome.result == -(EINVAL if name.startswith(("v1", "v2", "v3")) else EOPNOTSUPP)
    assert outcome.condition == "unknown"


def test_the_order_of_reading_and_asking_changed_with_v4():
    faulty = Chance(readable=False)
    assert do("v3", world("v3", usable=False), "map_pages", faulty, **MAP)[1] == -EFAULT
    assert do("v4", world("v4", usable=False), "map_pages", faulty, **MAP)[1] == -ENODEV


@pytest.mark.parametrize("name", LATE)
def test_numbers_without_an_implementation_do_not_touch_their_argument(name):
    for subop in ("alloc_nested", "flush_nested", "attach_pasid", "detach_pasid"):
        chance = Chance(readable=False, writable=False)
        assert do(name, world(name), subop, chance)[1] == -EOPNOTSUPP


@pytest.mark.parametrize("name", POSTED)
def test_an_answer_that_cannot_be_written_back_is_efault_and_the_work_stays(name):
    state, result, fields, _ = do(name, world(name), "map_pages", Chance(writable=False), **MAP)
    assert result == -EFAULT and fields["mapped"] == 0
    assert len(state[0].contexts[1].leaves) == 4


@pytest.mark.parametrize("name", FIXED)
def test_fixed_profiles_do_nothing_that_they_could_not_report(name):
    before = world(name)
    state, result, _, _ = do(name, before, "map_pages", Chance(writable=False), **MAP)
    assert result == -EFAULT and state == before


@pytest.mark.parametrize("name", POSTED[:3])
def test_union_versions_write_back_whatever_the_result(name):
    for usable in (True, False):
        for subop in (99, 0):
            state = world(name, usable=usable)
            outcome = step(contract_called(name), state, Request(0, subop, (), Chance(writable=False)))[1]
            assert outcome.result == -EFAULT


# --- query, init, alloc, free


@pytest.mark.parametrize("name", RUNNING)
def test_query_reports_limits(name):
    _, result, fields, _ = do(name, world(name), "query_capabilities")
    assert result == 0 and fields["max_ctx_no"] == 4 and fields["max_pasid"] == 0
    assert fields["max_nr_pages"] == (256 if name.startswith(("v1", "v2", "v3")) else 0)


def test_query_reports_no_contexts_before_init():
    state = {0: domain_for("v7")}
    assert do("v7", state, "query_capabilities")[2]["max_ctx_no"] == 0
    assert do("v7", state, "alloc_context")[1] == -ENOSPC
    assert do("v3", {0: domain_for("v3")}, "query_capabilities")[2]["max_ctx_no"] == 255


@pytest.mark.parametrize("name", LATE)
def test_posted_init_goes_on_into_alloc_on_the_same_bytes(name):
    state, result, fields, _ = do(name, {0: domain_for(name)}, "init", max_ctx_no=0x10080, arena_order=12)
    assert result == 0 and fields == {"max_ctx_no": 0x10001, "arena_order": 12}
    assert set(state[0].contexts) == {0, 1} and state[0].max_ctx_no == 0x80
    state, result, fields, _ = do(name, state, "init", max_ctx_no=128, arena_order=12)
    assert result == 0 and fields["max_ctx_no"] == 2  # never -EACCES
    assert do(name, {0: domain_for(name)}, "init", max_ctx_no=0)[1] == -ENOSPC  # though it worked
    too_many = do(name, {0: domain_for(name)}, "init", max_ctx_no=0xFFFFFFFF)
    assert too_many[1] == -ENOSPC and not too_many[0][0].initialized
    assert do(name, {0: domain_for(name)}, "init", Chance(readable=False))[1] == -EFAULT


@pytest.mark.parametrize("name", LATE)
def test_posted_init_wraps_at_16_bits(name):
    outcome = do(name, {0: domain_for(name)}, "init", max_ctx_no=0xFFFF)[3]
    assert "16 bits" in outcome.bug
    again = do(name, world(name), "init", max_ctx_no=0xFFFF)[3]
    assert again.bug == outcome.bug, "an earlier init is looked for after the count is cut"
    assert do(name, world(name), "init", max_ctx_no=0x1FFFF)[3].bug
    assert not do(name, world(name), "init", max_ctx_no=0xFFFFFFFF)[3].bug, "-E2BIG comes first"
    state, result, _, _ = do(name, {0: domain_for(name)}, "init", max_ctx_no=0x10000)
    assert result == -ENOSPC and state[0].initialized and state[0].max_ctx_no == 0


@pytest.mark.parametrize("name", LATE)
def test_posted_init_without_memory_has_no_second_try(name):
    state, result, _, _ = do(name, {0: domain_for(name)}, "init", Chance(no_memory_at=0), max_ctx_no=8)
    assert result == -ENOSPC and state[0].initialized


def test_fixed_init_answers_for_itself():
    fresh = {0: domain_for("v7-fixed")}
    state, result, fields, _ = do("v7-fixed", fresh, "init", max_ctx_no=128, arena_order=12)
    assert result == 0 and fields == {"max_ctx_no": 128, "arena_order": 12} and set(state[0].contexts) == {0}
    assert do("v7-fixed", state, "init", max_ctx_no=1)[1] == -EACCES
    assert do("v7-fixed", fresh, "init", max_ctx_no=0xFFFF)[1] == -E2BIG
    state, result, _, _ = do("v7-fixed", fresh, "init", Chance(no_memory_at=0), max_ctx_no=8)
    assert result == -ENOMEM and state == fresh


@pytest.mark.parametrize("name", RUNNING)
def test_alloc_takes_the_lowest_free_number(name):
    state, result, fields, _ = do(
        name, world(name, contexts={0: Context(), 1: Context(), 3: Context()}), "alloc_context"
    )
    assert result == 0 and fields["ctx_no"] == 2
    state, _, fields, _ = do(name, state, "alloc_context")
    assert fields["ctx_no"] == 4
    after, result, fields, _ = do(name, state, "alloc_context", ctx_no=77)
    assert result == -ENOSPC and fields["ctx_no"] == 77 and after == state
    assert do(name, world(name), "alloc_context", Chance(no_memory_at=0))[1] == -ENOMEM


@pytest.mark.parametrize("name", RUNNING)
def test_free_order_of_tests(name):
    state = world(name, devices={NIC: Device(1)})
    assert do(name, state, "free_context", ctx_no=0, flags=1)[1] == -EINVAL
    assert do(name, state, "free_context", ctx_no=9)[1] == -ENOENT
    assert do(name, state, "free_context", ctx_no=1)[1] == -EBUSY
    freed, result, _, _ = do(name, state, "free_context", ctx_no=1, flags=1)
    assert result == 0 and set(freed[0].contexts) == {0} and freed[0].devices[NIC].context == 0


@pytest.mark.parametrize("name", RUNNING)
def test_a_refused_free_poisons_the_context_in_posted_versions(name):
    state = world(name, devices={NIC: Device(1), DISK: Device()})
    state, result, _, _ = do(name, state, "free_context", ctx_no=1)
    assert result == -EBUSY
    poisoned = do(name, state, "reattach_device", ctx_no=1, **sbdf(DISK))[1]
    assert poisoned == (0 if name in FIXED else -EINVAL)
    if name in POSTED:
        assert do(name, state, "map_pages", **MAP)[1] == 0


# --- reattach


@pytest.mark.parametrize("name", RUNNING)
def test_reattach_order_of_tests(name):
    state = world(name)
    absent = -ENODEV if name in ("v7", *FIXED) else -ENOENT
    assert do(name, state, "reattach_device", ctx_no=9, **sbdf(0x99))[1] == absent
    assert do(name, state, "reattach_device", ctx_no=9, **sbdf(NIC))[1] == -ENOENT
    moved, result, _, _ = do(name, state, "reattach_device", ctx_no=1, **sbdf(NIC))
    assert result == 0 and moved[0].devices[NIC].context == 1
    for errno in (ENOMEM, EILSEQ, EIO):
        after, result, _, _ = do(name, state, "reattach_device", Chance(driver_errno=errno), ctx_no=1, **sbdf(NIC))
        assert result == -errno and after == state


@pytest.mark.parametrize("name", [*LATE, *FIXED])
def test_a_device_that_is_there_already_is_answered_0_before_anything_else(name):
    dying = {0: Context(), 1: Context(dying=True)}
    state = world(name, devices={NIC: Device(1), DISK: Device()}, contexts=dying)
    for errno in (0, ENOMEM, EILSEQ, EIO):
        chance = Chance(driver_errno=errno)
        after, result, _, outcome = do(name, state, "reattach_device", chance, ctx_no=1, **sbdf(NIC))
        assert result == 0 and outcome.condition == "in-place" and after == state
    assert do(name, state, "reattach_device", ctx_no=1, **sbdf(DISK))[1] == -EINVAL
    conditions = [row.condition for row in contract_called(name).table("reattach_device")]
    assert conditions.index("in-place") < conditions.index("target-dying")


@pytest.mark.parametrize("name", POSTED[:3])
def test_v1_to_v3_program_a_device_that_is_there_already_again(name):
    dying = {0: Context(), 1: Context(dying=True)}
    state = world(name, devices={NIC: Device(1)}, contexts=dying)
    assert do(name, state, "reattach_device", ctx_no=1, **sbdf(NIC))[1] == -EINVAL
    state = world(name, devices={NIC: Device(1)})
    assert do(name, state, "reattach_device", Chance(driver_errno=ENOMEM), ctx_no=1, **sbdf(NIC))[1] == -ENOMEM


def test_a_device_that_was_never_attached_is_refused_by_v7():
    state = world("v7", devices={NIC: Device(None)})
    _, result, _, outcome = do("v7", state, "reattach_device", ctx_no=1, **sbdf(NIC))
    assert (result, outcome.condition) == (-ENOENT, "device-unattached")


@pytest.mark.parametrize("name", ("v7", "v6", "v3"))
def test_a_device_whose_context_is_gone(name):
    lost = world(name, devices={NIC: Device(3)})
    assert do(name, lost, "reattach_device", ctx_no=1, **sbdf(NIC))[1] == -ENOENT


@pytest.mark.parametrize("name", RUNNING)
def test_reserved_regions_move_with_the_device(name):
    state, result, _, _ = do(name, world(name), "reattach_device", ctx_no=1, **sbdf(DISK))
    leaves = state[0].contexts[1].leaves
    assert result == 0 and set(leaves) == set(range(0x500, 0x504))
    assert all(leaf == Leaf(dfn, READ | WRITE, True) for dfn, leaf in leaves.items())
    state, result, _, _ = do(name, state, "reattach_device", ctx_no=0, **sbdf(DISK))
    assert result == 0
    if not name.startswith(("v1", "v2", "v3")):
        assert state[0].contexts[1].leaves == {}


def test_reserved_region_where_the_guest_has_mapped_something():
    occupied = {0: Context(), 1: Context({0x502: Leaf(0x100, READ)})}
    for name, answer in (("v3", -EINVAL), ("v7", 0), ("v3-fixed", -EADDRINUSE), ("v7-fixed", -EADDRINUSE)):
        state, result, _, _ = do(name, world(name, contexts=occupied), "reattach_device", ctx_no=1, **sbdf(DISK))
        assert result == answer, name
        leaf = state[0].contexts[1].leaves[0x502]
        assert leaf.reserved == (name == "v7")


def test_overlapping_reserved_regions_are_refused_and_equal_ones_shared():
    devices = {
        NIC: Device(1, ((0x500, 0x503),)),
        DISK: Device(0, ((0x500, 0x503),)),
        0x28: Device(0, ((0x502, 0x509),)),
    }
    state = world("v7", devices=devices, contexts={0: Context(), 1: Context()})
    state, result, _, _ = do("v7", state, "reattach_device", ctx_no=1, **sbdf(DISK))
    assert result == 0
    assert do("v7", state, "reattach_device", ctx_no=1, **sbdf(0x28))[1] == -EADDRINUSE
    state, _, _, _ = do("v7", state, "reattach_device", ctx_no=0, **sbdf(DISK))
    assert 0x500 in state[0].contexts[1].leaves, "the other device still needs it"


def test_fixed_reattach_refuses_a_pasid():
    assert do("v7-fixed", world("v7-fixed"), "reattach_device", ctx_no=1, pasid=1, **sbdf(NIC))[1] == -EOPNOTSUPP
    assert do("v7", world("v7"), "reattach_device", ctx_no=1, pasid=1, **sbdf(NIC))[1] == 0


# --- remote_cmd


def remote(name, subop, inner, target=5, **facts):
    contract = contract_called(name)
    state = world(name) | {5: world(name, hardware=False, **facts)[0]}
    number = contract.abi.by_name[subop].number
    return do(name, state, "remote_cmd", None, inner, domid=target, subop=number, arg=0x1000)


@pytest.mark.parametrize("name", [*LATE, "v7-fixed"])
def test_remote_cmd_works_on_the_target_with_the_callers_struct(name):
    state, result, _, outcome = remote(name, "map_pages", (1, 0x100, 0x1000, 3, 0x1000, 4, 0))
    assert result == 0 and outcome.inner[-1] == 4
    assert len(state[5].contexts[1].leaves) == 4 and state[0].contexts[1].leaves == {}
    assert remote(name, "map_pages", (9, 0x100, 0x1000, 3, 0x1000, 4, 0))[1] == -EINVAL
    assert remote(name, "remote_cmd", (5, 0, 0))[1] == -EINVAL
    assert remote(name, "noop", (), target=6)[1] == -ENOENT
    contract = contract_called(name)
    not_dom0 = {5: world(name, hardware=False)[0]}
    asked = Request(5, contract.abi.by_name["remote_cmd"].number, (5, 0, 0))
    assert step(contract, not_dom0, asked)[1].result == -EPERM


def test_remote_cmd_on_a_target_without_an_iommu():
    for name in LATE:
        assert remote(name, "alloc_context", (0, 0), usable=False)[3].bug
    assert remote("v7-fixed", "alloc_context", (0, 0), usable=False)[1] == -ENODEV


# (inner sub-op, its fields, what comes of it: None for a stopped hypervisor)
ON_NO_IOMMU = [
    ("noop", (), 0),
    ("query_capabilities", (0,) * 5, None),
    ("init", (8, 4), None),  # goes on into alloc_context, which has numbers then
    ("init", (0, 4), -ENOSPC),
    ("init", (0xFFFFFFFF, 4), -ENOSPC),
    ("init", (0xFFFF, 4), None),
    ("alloc_context", (0, 0), -ENOSPC),
    ("free_context", (0, 0), -EINVAL),
    ("free_context", (1, 0), -ENOENT),
    ("map_pages", (0, 0x100, 0x1000, 3, 0x1000, 1, 0), -EINVAL),
    ("map_pages", (1, 0x100, 0x1000, 3, 0x1000, 1, 0), -EINVAL),
    ("unmap_pages", (1, 0x1000, 0x1000, 1, 0), -EINVAL),
    ("reattach_device", (0, 0, 0, NIC, 0), 0),
    ("reattach_device", (1, 0, 0, NIC, 0), -ENOENT),
    ("remote_cmd", (5, 0, 0), -EINVAL),
    *((name, (), -EOPNOTSUPP) for name in ("alloc_nested", "flush_nested", "attach_pasid", "detach_pasid")),
]


@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize(("subop", "fields", "answer"), ON_NO_IOMMU)
def test_remote_cmd_stops_the_hypervisor_only_where_the_driver_is_reached(name, subop, fields, answer):
    facts = {"usable": False, "initialized": False, "max_ctx_no": 0, "contexts": {0: Context()}}
    _, result, _, outcome = remote(name, subop, fields, **facts)
    assert bool(outcome.bug) == (answer is None)
    assert answer is None or result == answer
    assert contract_called("v7-fixed") and remote("v7-fixed", "noop", (), **facts)[1] == -ENODEV


@pytest.mark.parametrize(
    ("subop", "fields"),
    [
        ("free_context", (1, 0)),
        ("map_pages", (1, 0x100, 0x1000, 3, 0x1000, 1, 0)),
        ("unmap_pages", (1, 0x1000, 0x1000, 1, 0)),
        ("reattach_device", (1, 0, 0, NIC, 0)),
    ],
)
def test_remote_cmd_on_contexts_without_a_driver_stops_the_hypervisor(subop, fields):
    assert remote("v7", subop, fields, usable=False)[3].bug


def test_remote_cmd_continues_with_the_outer_call():
    contract = contract_called("v7")
    state = world("v7") | {5: world("v7", hardware=False)[0]}
    outer = request("v7", "remote_cmd", Chance(preempt_after=3), (1, 0x100, 0x1000, 3, 0x1000, 4, 0), domid=5, subop=6)
    state, outcome = step(contract, state, outer)
    assert outcome.result == -ERESTART and outcome.again.inner == (1, 0x103, 0x1003, 3, 0x1000, 1, 3)
    state, outcome = step(contract, state, replace(outcome.again, chance=Chance()))
    assert outcome.result == 0 and outcome.inner[-1] == 4 and len(state[5].contexts[1].leaves) == 4

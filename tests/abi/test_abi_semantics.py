# SPDX-License-Identifier: GPL-2.0-or-later
"""The executable specification: order of the tests, what is written back, how counts evolve, and that it is pure."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi import versions
from abi.canonical import CANONICAL
from abi.conditions import CONDITIONS, FrameKind
from abi.contract import NoContract, contract_of
from abi.contract_fixed import EVERY, contract_called
from abi.errno import (
    E2BIG,
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
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
from abi.explain import explain
from abi.predicates import PAGE_TESTS, TESTS
from abi.semantics import EFFECTS, PAGE_EFFECTS, call, step
from abi.world import READ, WRITE, Chance, Context, Device, Leaf, Request, domain_for

POSTED = ("v1", "v2", "v3", "v4", "v5", "v6", "v7")
LATE = POSTED[3:]
FIXED = ("v3-fixed", "v7-fixed")
RUNNING = POSTED + FIXED
NIC, DISK = 0x18, 0x20


def world(name, **facts):
    """Domain 0 with contexts 0 and 1, two devices in context 0, RAM at frames 0x100 to 0x10f."""
    defaults = {
        "initialized": True,
        "max_ctx_no": 4,
        "contexts": {0: Context(), 1: Context()},
        "devices": {NIC: Device(), DISK: Device(reserved=((0x500, 0x503),))},
        "frames": dict.fromkeys(range(0x100, 0x110), FrameKind.RAM),
    }
    return {0: domain_for(name, **{**defaults, **facts})}


def request(name, subop, chance=None, inner=(), /, **values):
    contract = contract_called(name)
    args = tuple(values.get(f.name, f.default) for f in CANONICAL[subop])
    return Request(0, contract.abi.by_name[subop].number, args, chance or Chance(), inner)


def do(name, state, subop, chance=None, inner=(), /, **values):
    """(state, result, fields of the struct afterwards, outcome)."""
    contract = contract_called(name)
    state, outcome = step(contract, state, request(name, subop, chance, inner, **values))
    fields = dict(zip((f.name for f in CANONICAL[subop]), outcome.args))
    return state, outcome.result, fields, outcome


def sbdf(value):
    return {"segment": value >> 16, "bus": value >> 8 & 0xFF, "devfn": value & 0xFF}


MAP = {"ctx_no": 1, "gfn": 0x100, "dfn": 0x1000, "flags": 3, "nr_pages": 4}


# --- the tables are total


def test_every_condition_of_every_table_has_words_and_a_test():
    for contract in EVERY.values():
        for name, rows in contract.tables.items():
            for row in rows:
                assert row.condition in CONDITIONS
                if contract.runs and row.condition != "unwritable":
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


# --- map and unmap


@pytest.mark.parametrize("name", RUNNING)
def test_map_then_unmap_leaves_nothing(name):
    before = world(name)
    state, result, fields, _ = do(name, before, "map_pages", **MAP)
    assert result == 0 and fields["mapped"] == 4
    assert state[0].contexts[1].leaves[0x1002] == Leaf(0x102, READ | WRITE)
    state, result, fields, _ = do(name, state, "unmap_pages", ctx_no=1, dfn=0x1000, nr_pages=4)
    assert result == 0 and fields["unmapped"] == 4 and state == before


@pytest.mark.parametrize(
    ("name", "ok", "early", "late"),
    [("v3", 4, 7, 2), ("v6", 11, 7, 9), ("v7", 11, 7, 9), ("v3-fixed", 4, 0, 2), ("v7-fixed", 4, 0, 2)],
)
def test_mapped_as_the_guest_left_it_is_set_added_to_or_reset(name, ok, early, late):
    """With 7 in ``mapped``: after success, after an early error, and after an error at the third page."""
    state = world(name)
    assert do(name, state, "map_pages", **MAP | {"mapped": 7})[2]["mapped"] == ok
    _, result, fields, _ = do(name, state, "map_pages", **MAP | {"mapped": 7, "ctx_no": 3})
    assert result == -EINVAL and fields["mapped"] == early
    occupied = {0: Context(), 1: Context({0x1002: Leaf(0x100, READ)})}
    state, result, fields, _ = do(name, world(name, contexts=occupied), "map_pages", **MAP | {"mapped": 7})
    assert result == -EADDRINUSE and fields["mapped"] == late
    assert set(state[0].contexts[1].leaves) == {0x1000, 0x1001, 0x1002}, "the prefix stays"


def test_additive_counts_wrap_at_32_bits():
    assert do("v7", world("v7"), "map_pages", **MAP | {"mapped": 0xFFFFFFFE})[2]["mapped"] == 2


@pytest.mark.parametrize("name", POSTED[:3])
def test_early_versions_refuse_large_batches_first_of_all(name):
    _, result, fields, _ = do(name, world(name), "map_pages", **MAP | {"nr_pages": 257, "ctx_no": 9, "mapped": 5})
    assert result == -E2BIG and fields["mapped"] == 5
    assert do(name, world(name), "unmap_pages", ctx_no=9, dfn=0, nr_pages=257)[1] == -E2BIG


@pytest.mark.parametrize("name", RUNNING)
def test_the_default_context_belongs_to_the_hypervisor_from_v4_on(name):
    result = do(name, world(name), "map_pages", **MAP | {"ctx_no": 0})[1]
    assert result == (0 if name in POSTED[:3] else -EINVAL)


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        (
            "v3",
            {"SHARED": -EINVAL, "PAGED_OUT": -EIO, "MMIO": -EPERM, "FOREIGN": -EPERM, "XEN": -EPERM, "HOLE": -EPERM},
        ),
        ("v6", {"SHARED": 0, "PAGED_OUT": -ENOENT, "MMIO": 0, "MMIO_DENIED": -EPERM, "FOREIGN": 0, "HOLE": -ENOENT}),
        ("v7", {"SHARED": 0, "PAGED_OUT": -ENOENT, "MMIO": 0, "MMIO_DENIED": -EPERM, "FOREIGN": 0, "XEN": -EPERM}),
        ("v7-fixed", {"MMIO": 0, "FOREIGN": 0, "XEN": -EPERM, "HOLE": -ENOENT, "READ_ONLY": -EPERM}),
        ("v3-fixed", {"MMIO": -EPERM, "FOREIGN": -EPERM, "XEN": -EPERM, "HOLE": -EPERM, "PAGED_OUT": -EIO}),
    ],
)
def test_which_frames_the_hardware_domain_may_map(name, answers):
    for kind, answer in answers.items():
        state = world(name, frames={0x100: FrameKind[kind]})
        assert do(name, state, "map_pages", **MAP | {"nr_pages": 1})[1] == answer, kind


def test_other_domains_may_not_map_foreign_frames_from_v7_on():
    for name, answer in (("v6", 0), ("v7", -EPERM), ("v7-fixed", -EPERM)):
        state = world(name, hardware=False, frames={0x100: FrameKind.FOREIGN})
        assert do(name, state, "map_pages", **MAP | {"nr_pages": 1})[1] == answer


def test_the_frame_is_looked_at_before_the_device_frame():
    occupied = {0: Context(), 1: Context({0x1000: Leaf(0x100, READ)})}
    for name in ("v3", "v7"):
        state = world(name, contexts=occupied, frames={})
        assert do(name, state, "map_pages", **MAP)[1] in (-EPERM, -ENOENT)


@pytest.mark.parametrize(
    ("name", "map_into", "unmap_into"), [("v6", -EADDRINUSE, 0), ("v7", -EADDRINUSE, -EADDRNOTAVAIL)]
)
def test_entering_a_reserved_region_from_below(name, map_into, unmap_into):
    state, _, _, _ = do(name, world(name), "reattach_device", ctx_no=1, **sbdf(DISK))
    assert do(name, state, "map_pages", **MAP | {"dfn": 0x501})[1] == -EADDRNOTAVAIL
    below, result, fields, _ = do(name, state, "map_pages", **MAP | {"dfn": 0x4FE})
    assert (result, fields["mapped"]) == (map_into, 2)
    assert do(name, below, "unmap_pages", ctx_no=1, dfn=0x4FE, nr_pages=4)[1] == unmap_into


def test_fixed_profiles_see_a_reserved_region_wherever_it_begins():
    for name in FIXED:
        state, _, _, _ = do(name, world(name), "reattach_device", ctx_no=1, **sbdf(DISK))
        _, result, fields, _ = do(name, state, "map_pages", **MAP | {"dfn": 0x4FE})
        assert (result, fields["mapped"]) == (-EADDRNOTAVAIL, 2)


@pytest.mark.parametrize("name", POSTED)
def test_posted_versions_take_a_map_without_permissions_and_map_nothing(name):
    state, result, fields, _ = do(name, world(name), "map_pages", **MAP | {"flags": 0xFFFFFFF8})
    assert (result, fields["mapped"]) == (0, 4) and state[0].contexts[1].leaves == {}


@pytest.mark.parametrize("name", POSTED)
def test_posted_versions_drop_the_high_bits_of_device_frames(name):
    state, _, _, _ = do(name, world(name), "map_pages", **MAP | {"dfn": 0})
    assert do(name, state, "map_pages", **MAP | {"dfn": 1 << 36})[1] == -EADDRINUSE


@pytest.mark.parametrize(
    "wrong",
    [
        {"flags": 0},
        {"flags": 0x13},
        {"pgsize": 0x2000},
        {"pgsize": 0},
        {"dfn": (1 << 36) - 2},
        {"pgsize": 0x200000, "gfn": 0x101},
    ],
)
def test_fixed_v7_refuses_what_it_cannot_honour(wrong):
    before = world("v7-fixed", pgsize_mask=0x201000)
    state, result, fields, _ = do("v7-fixed", before, "map_pages", **MAP | wrong | {"mapped": 3})
    assert (result, fields["mapped"]) == (-EINVAL, 0) and state == before


def test_fixed_v7_maps_superpage_units_whole_or_not_at_all():
    frames = dict.fromkeys(range(0x200, 0x500), FrameKind.RAM)
    state = world("v7-fixed", pgsize_mask=0x201000, frames=frames)
    big = {"ctx_no": 1, "gfn": 0x200, "dfn": 0x800, "flags": 3, "pgsize": 0x200000, "nr_pages": 2}
    state, result, fields, _ = do("v7-fixed", state, "map_pages", **big)
    assert (result, fields["mapped"]) == (-ENOENT, 1)
    assert set(state[0].contexts[1].leaves) == set(range(0x800, 0xA00))
    state, result, fields, _ = do("v7-fixed", state, "unmap_pages", ctx_no=1, dfn=0x800, pgsize=0x200000, nr_pages=1)
    assert (result, fields["unmapped"]) == (0, 1) and state[0].contexts[1].leaves == {}


def test_holes_are_looked_at_by_the_fixed_profile_alone():
    dirty = Chance(holes_zero=False)
    assert do("v7", world("v7"), "map_pages", dirty, **MAP)[1] == 0
    assert do("v7-fixed", world("v7-fixed"), "map_pages", dirty, **MAP | {"mapped": 3})[1:3] == (
        -EINVAL,
        dict(zip((f.name for f in CANONICAL["map_pages"]), (1, 0x100, 0x1000, 3, 0x1000, 4, 3))),
    )


@pytest.mark.parametrize("name", RUNNING)
def test_memory_runs_out_where_chance_says(name):
    state, result, fields, _ = do(name, world(name), "map_pages", Chance(no_memory_at=3), **MAP)
    assert (result, fields["mapped"]) == (-ENOMEM, 3) and len(state[0].contexts[1].leaves) == 3
    state, result, fields, _ = do(name, state, "unmap_pages", Chance(no_memory_at=1), ctx_no=1, dfn=0x1000, nr_pages=3)
    assert (result, fields["unmapped"]) == (-ENOMEM, 1) and len(state[0].contexts[1].leaves) == 2


def test_a_hole_in_the_middle_stops_an_unmap_there():
    for name in RUNNING:
        leaves = {dfn: Leaf(0x100, READ) for dfn in (0x10, 0x11, 0x13)}
        state = world(name, contexts={0: Context(), 1: Context(leaves)})
        state, result, fields, _ = do(name, state, "unmap_pages", ctx_no=1, dfn=0x10, nr_pages=4)
        assert (result, fields["unmapped"]) == (-ENOENT, 2) and set(state[0].contexts[1].leaves) == {0x13}


def test_an_opaque_context_maps_nothing_and_says_it_did():
    state = world("v3", contexts={0: Context(opaque=True)})
    state, result, fields, _ = do("v3", state, "map_pages", **MAP | {"ctx_no": 0})
    assert (result, fields["mapped"]) == (0, 4)
    assert do("v3", state, "lookup_page", ctx_no=0, dfn=0x1000)[1] == -ENOENT


def test_lookup_finds_what_was_mapped():
    for name in ("v1", "v2", "v3", "v3-fixed"):
        state, _, _, _ = do(name, world(name), "map_pages", **MAP)
        assert do(name, state, "lookup_page", ctx_no=1, dfn=0x1003)[2]["gfn"] == 0x103
        _, result, fields, _ = do(name, state, "lookup_page", ctx_no=1, dfn=0x1004, gfn=9)
        assert (result, fields["gfn"]) == (-ENOENT, 0 if name == "v3-fixed" else 9)
        assert do(name, state, "lookup_page", ctx_no=9, dfn=0x1004)[1] == -EINVAL


# --- continuations


def test_a_preempted_call_leaves_its_place_in_the_struct_from_v4_on():
    contract = contract_called("v7")
    state, outcome = step(
        contract, world("v7"), request("v7", "map_pages", Chance(preempt_after=3), **MAP | {"mapped": 7})
    )
    assert outcome.result == -ERESTART and outcome.again is not None
    assert outcome.args == (1, 0x103, 0x1003, 3, 0x1000, 1, 10)
    state, outcome = step(contract, state, replace(outcome.again, chance=Chance()))
    assert outcome.result == 0 and outcome.args == (1, 0x103, 0x1003, 3, 0x1000, 1, 11)
    assert len(state[0].contexts[1].leaves) == 4


def test_the_last_page_may_be_followed_by_an_empty_pass():
    contract = contract_called("v7")
    _, outcome = call(contract, world("v7"), request("v7", "map_pages", Chance(preempt_after=4), **MAP))
    assert outcome.result == 0 and outcome.args == (1, 0x104, 0x1004, 3, 0x1000, 0, 4)


def test_a_pending_restart_is_lost_when_the_struct_cannot_be_written():
    chance = Chance(preempt_after=2, writable=False)
    state, result, fields, outcome = do("v7", world("v7"), "map_pages", chance, **MAP)
    assert result == -EFAULT and outcome.again is None and fields["nr_pages"] == 4
    assert len(state[0].contexts[1].leaves) == 2


def test_v3_never_pauses():
    state, result, fields, outcome = do("v3", world("v3"), "map_pages", Chance(preempt_after=2), **MAP)
    assert outcome.again is None and (result, fields["mapped"]) == (0, 4) and len(state[0].contexts[1].leaves) == 4


@settings(max_examples=80)
@given(
    name=st.sampled_from([*LATE, *FIXED]),
    pauses=st.lists(st.integers(1, 5), max_size=6),
    pages=st.integers(0, 12),
    hole=st.integers(0, 14),
)
def test_preemption_changes_neither_the_mappings_nor_the_result_nor_the_count(name, pauses, pages, hole):
    frames = {0x100 + n: FrameKind.RAM for n in range(16) if n != hole}
    state = world(name, frames=frames)
    contract = contract_called(name)
    plain, whole = call(contract, state, request(name, "map_pages", **MAP | {"nr_pages": pages}))
    first, *later = [Chance(preempt_after=pause) for pause in pauses] or [Chance()]
    split, parts = call(contract, state, request(name, "map_pages", first, **MAP | {"nr_pages": pages}), *later)
    assert split == plain
    assert (parts.result, parts.args[-1]) == (whole.result, whole.args[-1])
    if contract.fixed:
        assert parts.args == whole.args


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
    assert remote("v7", "alloc_context", (0, 0), usable=False)[3].bug
    assert remote("v7-fixed", "alloc_context", (0, 0), usable=False)[1] == -ENODEV


def test_remote_cmd_continues_with_the_outer_call():
    contract = contract_called("v7")
    state = world("v7") | {5: world("v7", hardware=False)[0]}
    outer = request("v7", "remote_cmd", Chance(preempt_after=3), (1, 0x100, 0x1000, 3, 0x1000, 4, 0), domid=5, subop=6)
    state, outcome = step(contract, state, outer)
    assert outcome.result == -ERESTART and outcome.again.inner == (1, 0x103, 0x1003, 3, 0x1000, 1, 3)
    state, outcome = step(contract, state, replace(outcome.again, chance=Chance()))
    assert outcome.result == 0 and outcome.inner[-1] == 4 and len(state[5].contexts[1].leaves) == 4


# --- purity, totality, and the oracle

small = st.integers(0, 12) | st.sampled_from([0x100, 0x102, 0x500, 0x1000, 0xFFFF, 0x10000, 0xFFFFFFFF, (1 << 36) + 1])
chances = st.builds(
    Chance,
    readable=st.booleans() | st.just(True),
    writable=st.booleans() | st.just(True),
    holes_zero=st.booleans() | st.just(True),
    no_memory_at=st.none() | st.integers(0, 3),
    preempt_after=st.none() | st.integers(0, 4),
    driver_errno=st.sampled_from([0, 0, ENOMEM, EILSEQ, EIO]),
)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_step_is_pure_and_total_and_answers_only_from_its_table(data):
    name = data.draw(st.sampled_from(RUNNING))
    contract = contract_called(name)
    state = world(name)
    for _ in range(data.draw(st.integers(1, 6))):
        subop = data.draw(st.integers(0, 14))
        row = contract.abi.subops.get(subop)
        args = tuple(data.draw(small) for _ in CANONICAL[row.name]) if row is not None else ()
        wide = {field.name: n for n, field in enumerate(CANONICAL[row.name])} if row is not None else {}
        if "nr_pages" in wide:  # a huge batch is as good as a small one here, and quicker
            args = tuple(value % 300 if n == wide["nr_pages"] else value for n, value in enumerate(args))
        asked = Request(0, subop, args, data.draw(chances), inner=(0,) * 8)
        before = repr(state)
        after, outcome = step(contract, state, asked)
        assert repr(state) == before
        if outcome.bug:
            return
        allowed = {0, -ERESTART, -EFAULT}
        table = contract.tables[row.name if row is not None else ""]
        allowed |= {-test.errno for test in table}
        if row is not None and row.name == "init" and contract.init_alters:
            allowed |= {-test.errno for test in contract.tables["alloc_context"]}
        if row is not None and row.name != "remote_cmd":
            assert outcome.result in allowed
        assert len(outcome.args) == len(args)
        assert (outcome.again is not None) == (outcome.result == -ERESTART)
        state = after


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_the_oracle_accepts_every_outcome_of_the_specification(data):
    name = data.draw(st.sampled_from(RUNNING))
    contract = contract_called(name)
    subop = data.draw(st.sampled_from(["map_pages", "unmap_pages", "alloc_context", "reattach_device", "free_context"]))
    chance = data.draw(chances)
    if chance.preempt_after == 0:
        chance = replace(chance, preempt_after=None)
    state = world(name, contexts={0: Context(), 1: Context({dfn: Leaf(0x100, 3) for dfn in range(0x1000, 0x1003)})})
    values = {"ctx_no": data.draw(st.integers(0, 2)), "dfn": data.draw(st.sampled_from([0, 0x1000, 0x1002]))}
    values |= {"gfn": 0x100, "flags": 3 if "map" in subop else 0, "nr_pages": data.draw(st.integers(0, 5))}
    asked = request(name, subop, chance, (), **values | sbdf(NIC))
    after, outcome = call(contract, state, asked)
    if outcome.bug:
        return
    known = Chance(readable=chance.readable, writable=chance.writable, holes_zero=chance.holes_zero)
    explained = explain(contract, state, replace(asked, chance=known), outcome.result, outcome.args)
    assert explained is not None
    if chance.writable:  # else nothing tells how far the call got
        assert explained[0] == after


def test_the_oracle_refuses_a_wrong_answer():
    contract = contract_called("v7")
    asked = request("v7", "map_pages", **MAP)
    assert explain(contract, world("v7"), asked, 0, (1, 0x100, 0x1000, 3, 0x1000, 4, 4)) is not None
    assert explain(contract, world("v7"), asked, 0, (1, 0x100, 0x1000, 3, 0x1000, 4, 3)) is None
    assert explain(contract, world("v7"), asked, -EBUSY, (1, 0x100, 0x1000, 3, 0x1000, 4, 4)) is None
    assert explain(contract, world("v7"), asked, -ENOMEM, (1, 0x100, 0x1000, 3, 0x1000, 4, 2)) is not None

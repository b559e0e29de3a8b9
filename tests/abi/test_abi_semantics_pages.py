# SPDX-License-Identifier: GPL-2.0-or-later
"""The executable specification of map, unmap and lookup: tests per page, counts, frames, continuations."""

from dataclasses import replace

import pytest
from abi_bench import DISK, FIXED, LATE, MAP, POSTED, RUNNING, do, request, sbdf, world
from hypothesis import given, settings
from hypothesis import strategies as st

from abi.canonical import CANONICAL
from abi.conditions import FrameKind
from abi.contract_fixed import contract_called
from abi.errno import E2BIG, EADDRINUSE, EADDRNOTAVAIL, EFAULT, EINVAL, EIO, ENOENT, ENOMEM, EPERM, ERESTART
from abi.semantics import call, step
from abi.world import READ, WRITE, Chance, Context, Leaf

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
        ("v7", {"SHARED": 0, "PAGED_OUT": -ENOENT, "MMIO": 0, "MMIO_DENIED": -EPERM, "FOREIGN": 0, "XEN": 0}),
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
        state = world(name, hardware=False, frames={0x100: FrameKind.XEN})
        assert do(name, state, "map_pages", **MAP | {"nr_pages": 1})[1] == answer
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

# SPDX-License-Identifier: GPL-2.0-or-later
"""Defects of locks beyond their demonstrations: seen without the unlucky moment, and in every way that they end."""

import pytest

from testbed.build import COPIER, ROGUE, build
from testbed.config import Config, DomU
from testbed.schedule import Caller, Hypercall, RandomWalk, run_concurrently


def bed_of(profile, *defects):
    bed = build(
        Config(
            profile=profile,
            vcpus=2,
            ram=32 << 20,
            guest_ram=16 << 20,
            domus=(DomU(2 << 20, devices=(COPIER,)),),
            defects=defects,
        )
    )
    caller = Caller(bed, bed.vcpu)
    if bed.xen.abi.has("init"):
        assert caller.call("init", max_ctx_no=8, arena_order=6).result == 0
    return bed, caller


def swap(bed):
    """Two devices change places between dom0 and the guest."""
    rogue, copier = bed.dom0.devices[ROGUE], bed.domus[0].devices[COPIER]
    return [
        (bed.vcpus[0], [lambda: bed.xen.assign_device(bed.domus[0], rogue)]),
        (bed.vcpus[1], [lambda: bed.xen.assign_device(bed.dom0, copier)]),
    ]


def with_programs(bed_and_caller, programs):
    return bed_and_caller[0], programs(bed_and_caller[0])


def test_b4_is_seen_when_the_moves_come_one_after_the_other():
    assert not run_concurrently(*with_programs(bed_of("v3-fixed"), swap)).inversions
    run = run_concurrently(*with_programs(bed_of("v3-fixed", "B4"), swap))
    assert run.outcome == "done"
    assert ("d0 hd->lock", "d1 hd->lock") in {tuple(sorted((i.first, i.then))) for i in run.inversions}


def test_c5_is_seen_when_the_calls_come_one_after_the_other():
    for defects, seen in (((), False), (("C5",), True)):
        bed, caller = bed_of("v7-fixed", *defects)
        caller.call("alloc_context")
        caller.call("alloc_context")
        move = Hypercall("reattach_device", {"ctx_no": 1, "devfn": ROGUE & 0xFF})
        back = Hypercall("reattach_device", {"ctx_no": 0, "devfn": ROGUE & 0xFF})
        free = Hypercall("free_context", {"ctx_no": 1, "flags": bed.xen.abi.free_reattach_default})
        run = run_concurrently(bed, [(bed.vcpus[0], [move, back]), (bed.vcpus[1], [free])])
        pairs = {frozenset((i.first, i.then)) for i in run.inversions}
        assert (frozenset(("pcidevs_lock", "d0 context 1 ctx->lock")) in pairs) is seen


def test_c4_ends_in_a_shared_number_and_in_the_release_of_somebody_elses_lock():
    bed, _ = bed_of("v7-fixed", "C4")
    bed.snapshot()
    ends = set()
    for seed in range(60):
        bed.reset()
        alloc = [Hypercall("alloc_context")]
        run = run_concurrently(bed, [(bed.vcpus[0], alloc), (bed.vcpus[1], alloc)], RandomWalk(seed, every=2))
        numbers = [answer.fields["ctx_no"] for answers in run.results for answer in answers]
        ends.add("same number" if numbers in ([1, 1], [2, 2]) else str(run.stopped or "two numbers"))
    assert "same number" in ends and "two numbers" in ends
    assert any("releases d0 context 1 ctx->lock, which" in end for end in ends)


@pytest.mark.parametrize(("profile", "defects"), [("v3-fixed", ("B4",)), ("v7-fixed", ())])
def test_a_reset_frees_the_locks_that_a_stopped_host_had(profile, defects):
    bed, _ = bed_of(profile, *defects)
    bed.snapshot()
    outcomes = set()
    for step in range(6):
        bed.reset()
        run = run_concurrently(bed, swap(bed), f"{step}>1")
        outcomes.add(run.outcome)
        if run.stopped is not None:
            assert len(run.stopped.cycle) == 2
            assert run.left_held
    bed.reset()
    assert not bed.xen.locks.held
    assert run_concurrently(bed, swap(bed)).outcome == "done"
    assert outcomes == ({"done", "XenDeadlock"} if defects else {"done"})


def test_what_b2_leaves_locked_another_vcpu_waits_for_and_says_so():
    bed, caller = bed_of("v3-fixed", "B2")
    caller.call("free_context", ctx_no=9)
    run = run_concurrently(bed, [(bed.vcpus[1], [Hypercall("alloc_context")])])
    assert run.outcome == "XenDeadlock"
    assert "d0v1 (alloc_context) waits for d0 hd->lock, which d0v0 has held since free_context" in str(run.stopped)
    assert caller.call("noop").result == 0


@pytest.mark.parametrize("profile", ["v2", "v5", "v7"])
def test_posted_versions_end_well_or_by_name_under_any_schedule(profile):
    bed, caller = bed_of(profile)
    for _ in range(2):
        caller.call("alloc_context")
    bed.xen.preempt = lambda vcpu: True
    bed.snapshot()
    flag = bed.xen.abi.free_reattach_default
    pages = {"ctx_no": 2, "dfn": 0x1FE, "nr_pages": 4}
    move = {"segment": 0, "bus": 0, "devfn": ROGUE & 0xFF}
    programs = [
        (
            bed.vcpus[0],
            [
                Hypercall("map_pages", {**pages, "gfn": bed.ram.pfn_to_gfn(64), "flags": 3}),
                Hypercall("reattach_device", {"ctx_no": 2, **move}),
                Hypercall("unmap_pages", pages),
                Hypercall("alloc_context"),
            ],
        ),
        (
            bed.vcpus[1],
            [
                Hypercall("map_pages", {**pages, "dfn": 0x1FF, "gfn": bed.ram.pfn_to_gfn(80), "flags": 3}),
                Hypercall("free_context", {"ctx_no": 2, "flags": flag}),
                Hypercall("alloc_context"),
                Hypercall("reattach_device", {"ctx_no": 0, **move}),
            ],
        ),
    ]
    outcomes = set()
    for seed in range(20):
        bed.reset()
        run = run_concurrently(bed, programs, RandomWalk(seed, every=2))
        outcomes.add(run.outcome)
        bed.reset()
        assert run_concurrently(bed, programs, str(run.schedule)).points == run.points
    assert "done" in outcomes
    assert outcomes <= {"done", "XenBug", "XenDeadlock", "XenHang"}

# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of several vCPUs: repeatable to the point, whole again afterwards, and never stuck without saying so."""

import re
from pathlib import Path

import pytest

from hypervisor.errors import XenBug, XenDeadlock
from hypervisor.locking.guards import GUARDS
from hypervisor.locking.install import install_places
from hypervisor.locking.locks import CONTEXT, DOMAIN, PCIDEVS, Locks
from hypervisor.locking.places import KINDS
from hypervisor.pviommu.table import ROWS
from testbed.build import COPIER, build
from testbed.config import Config
from testbed.invariants import check
from testbed.schedule import Caller, FaultPlan, Hypercall, RandomWalk, Schedule, injected, run_concurrently

BEDS = [(backend, profile) for backend in ("vtd", "smmuv3") for profile in ("v3-fixed", "v7-fixed")]


def bed_of(backend="vtd", profile="v7-fixed", **more):
    bed = build(Config(backend=backend, profile=profile, vcpus=2, ram=32 << 20, guest_ram=16 << 20, **more))
    caller = Caller(bed, bed.vcpu)
    if bed.xen.abi.has("init"):
        assert caller.call("init", max_ctx_no=8, arena_order=6).result == 0
    return bed, caller


def mapping(bed, ctx, pfn, dfn, pages=1):
    where = {"ctx_no": ctx, "dfn": dfn, "nr_pages": pages}
    return Hypercall("map_pages", {**where, "gfn": bed.ram.pfn_to_gfn(pfn), "flags": 3}), Hypercall(
        "unmap_pages", where
    )


def attach(ctx):
    return Hypercall("reattach_device", {"ctx_no": ctx, "devfn": COPIER & 0xFF})


def free(ctx):
    return Hypercall("free_context", {"ctx_no": ctx})


def two_programs(bed):
    alloc = Hypercall("alloc_context")
    one, two = mapping(bed, 1, 9, 0x10), mapping(bed, 1, 10, 0x10)
    return [
        (bed.vcpus[0], [alloc, one[0], attach(1), one[1], free(1), attach(0)]),
        (bed.vcpus[1], [alloc, two[0], free(2), two[1], free(1)]),
    ]


@pytest.mark.parametrize(("backend", "profile"), BEDS)
def test_a_run_is_repeated_to_the_point_by_the_schedule_that_it_recorded(backend, profile):
    bed, _ = bed_of(backend, profile)
    bed.snapshot()
    programs = two_programs(bed)
    outcomes = set()
    for seed in range(15):
        bed.reset()
        run = run_concurrently(bed, programs, RandomWalk(seed))
        assert run.outcome == "done", run
        assert not run.inversions
        assert not run.left_held
        outcomes.add(str(run.results))
        assert not check(bed, "references", "arenas_are_accounted_for", "devices_and_contexts_agree", "free_frames")
        bed.reset()
        again = run_concurrently(bed, programs, str(run.schedule))
        assert (again.points, again.results, again.schedule) == (run.points, run.results, run.schedule)
    assert len(outcomes) > 1, "the schedules made no difference"


def test_the_empty_schedule_runs_one_program_after_the_other():
    bed, _ = bed_of()
    run = run_concurrently(bed, two_programs(bed))
    order = [point.vcpu for point in run.points]
    assert order == sorted(order)
    assert not run.schedule.switches


def test_locks_are_taken_in_the_order_of_their_classes():
    bed, _ = bed_of(guest="pvh")
    run_concurrently(bed, two_programs(bed))
    locks = bed.xen.locks
    rank = {lock.name: (lock.cls.rank, lock.name) for lock in locks._locks.values()}
    assert locks.taken
    assert all(rank[held] < rank[then] for held, then in locks.taken)


def test_afterwards_the_hypervisor_is_what_it_was():
    bed, _ = bed_of()
    parts = [bed.xen, bed.xen.backend, bed.xen.frames, bed.vcpu.memory, *bed.xen.backend.units]
    run_concurrently(bed, [])  # guards stay once they are there
    before = [dict(vars(part)) for part in parts]
    run_concurrently(bed, two_programs(bed))
    for part, was in zip(parts, before):
        assert vars(part).keys() == was.keys()
    assert bed.vcpu.memory.window(bed.ram.linear(0), 8) is not None


def test_a_preempted_call_lets_others_run_between_its_passes():
    bed, caller = bed_of(profile="v7-fixed")
    assert caller.call("alloc_context").fields["ctx_no"] == 1
    for pfn in range(0, 2400, 2):
        assert caller.run(mapping(bed, 1, pfn % 1024, pfn)[0]).result == 0
    bed.xen.preempt = lambda vcpu: True
    programs = [(bed.vcpus[0], [free(1)]), (bed.vcpus[1], [mapping(bed, 1, 9, 0x5000)[0]])]
    plain = run_concurrently(bed, [(bed.vcpus[1], [mapping(bed, 1, 9, 0x5001)[0]])])
    assert plain.results[0][0].result == 0

    class AtThePass:
        def choose(self, point, runnable):
            return 1 if point.kind == "pass" and 1 in runnable else point.vcpu if point.vcpu in runnable else 0

    run = run_concurrently(bed, programs, AtThePass())
    assert any(point.kind == "pass" for point in run.points)
    assert run.results[0][0].result == 0
    assert run.results[1][0].result < 0, "a dying context was mapped into"


def test_two_who_take_locks_in_opposite_orders_are_a_deadlock_with_its_circle():
    bed, _ = bed_of()
    locks = install_places(bed.xen).locks
    first, second = locks.of(PCIDEVS), locks.of(DOMAIN, "d9")

    def ab():
        with locks.holding(first, second):
            pass

    def ba():
        with locks.holding(second, first):
            pass

    programs = [(bed.vcpus[0], [ab]), (bed.vcpus[1], [ba])]
    peaceful = run_concurrently(bed, programs)
    assert peaceful.outcome == "done"
    assert [(i.first, i.then) for i in peaceful.inversions] == [("d9 hd->lock", "pcidevs_lock")]
    run = next(
        run
        for step in range(8)
        for run in [run_concurrently(bed, programs, f"{step}>1")]
        if run.outcome != "done" or bed.xen.locks.reset()
    )
    assert isinstance(run.stopped, XenDeadlock)
    assert len(run.stopped.cycle) == 2
    assert "holds pcidevs_lock and waits for d9 hd->lock" in str(run.stopped)


def test_a_lock_that_is_never_released_is_a_deadlock_without_anybody_to_wait_for():
    locks = Locks()
    lock = locks.of(DOMAIN, "d0")
    locks.begin("d0v0", "alloc_context")
    locks.acquire(lock)
    locks.begin("d0v1", "map_pages")
    with pytest.raises(XenDeadlock, match=r"d0v1 .map_pages. waits for d0 hd->lock, .* since alloc_context and never"):
        locks.acquire(lock)


def test_the_owner_of_a_plain_lock_waits_for_itself_and_that_of_a_recursive_one_does_not():
    locks = Locks()
    plain, recursive = locks.of(DOMAIN, "d0"), locks.of(CONTEXT, "d0 context 1")
    with locks.holding(recursive, recursive, plain):
        pass
    assert not locks.held
    locks.acquire(plain)
    with pytest.raises(XenDeadlock, match="itself"):
        locks.acquire(plain)


def test_releasing_what_somebody_else_has_is_a_bug():
    locks = Locks()
    lock = locks.of(PCIDEVS)
    locks.begin("d0v0", "reattach_device")
    locks.acquire(lock)
    locks.begin("d0v1", "free_context")
    with pytest.raises(XenBug, match="releases pcidevs_lock, which d0v0"):
        locks.release(lock)


def test_endless_work_is_a_hang():
    bed, _ = bed_of()

    def forever():
        while True:
            bed.xen.xmalloc("nothing")

    run = run_concurrently(bed, [(bed.vcpus[0], [forever])], steps=500)
    assert run.outcome == "XenHang"


def test_every_sub_op_has_a_guard():
    assert GUARDS.keys() == ROWS.keys()


@pytest.mark.parametrize("text", ["1>0", "", "3>1 10>0"])
def test_a_schedule_is_read_as_it_is_written(text):
    assert str(Schedule.parse(text)) == text


@pytest.mark.parametrize("text", ["1", "x>1", "4>1 4>0", "5>1 4>0"])
def test_a_wrong_schedule_is_refused(text):
    with pytest.raises(ValueError, match=r"schedule"):
        Schedule.parse(text)


@pytest.mark.parametrize("text", ["arena:1", "", "any:3+ copy-in:1"])
def test_a_plan_is_read_as_it_is_written(text):
    assert str(FaultPlan.parse(text)) == text


@pytest.mark.parametrize("text", ["arena", "arena:0", "acquire:1", "moon:1"])
def test_a_wrong_plan_is_refused(text):
    with pytest.raises(ValueError, match="is no fault"):
        FaultPlan.parse(text)


def test_a_plan_fails_what_it_says_and_says_what_failed():
    bed, caller = bed_of()
    with injected(bed) as faults:
        assert caller.call("alloc_context").result == 0
    reached = faults.reached
    assert reached["any"] == sum(count for kind, count in reached.items() if kind != "any") > 3
    for nth in range(1, reached["any"] + 1):
        with injected(bed, f"any:{nth}") as faults:
            assert caller.call("alloc_context").result < 0
        assert len(faults.failed) == 1
    assert caller.call("alloc_context").result == 0


def test_the_page_about_it_is_true():
    page = (Path(__file__).parents[3] / "docs" / "scheduling.md").read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", page, re.S)[0]
    scope: dict[str, object] = {}
    exec(example, scope)
    assert scope["again"].outcome == "done"
    listed = set(re.findall(r"`([a-z-]+)`", page.split("## Places")[1].split("## Locks")[0]))
    assert set(KINDS) <= listed

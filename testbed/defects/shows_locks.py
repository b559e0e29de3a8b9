# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong between two vCPUs: B3, B4, C4, C5, C6, F4, S6, S7, each on the schedule that brings it about."""

from collections.abc import Sequence

from abi.errno import ENOENT, EPERM
from hypervisor.frames import REF
from testbed.build import COPIER, ROGUE
from testbed.defects.stage import Stage
from testbed.schedule import Hypercall, Item, Point, Run, run_concurrently


def _together(stage: Stage, one: Sequence[Item], two: Sequence[Item], schedule: str) -> Run:
    """Run two programs, noted in the transcript."""
    bed = stage.bed
    run = run_concurrently(bed, [(bed.vcpus[0], one), (bed.vcpus[1], two)], schedule)
    stage.lines.extend(str(run).splitlines())
    stage.lines.extend(f"    locks in both orders: {inversion}" for inversion in run.inversions)
    return run


def _first_bad(stage: Stage, one: Sequence[Item], two: Sequence[Item]) -> Run:
    """The first run with one change of vCPU that ends badly or takes locks in both orders, else the last one."""
    bed = stage.bed
    programs = [(bed.vcpus[0], one), (bed.vcpus[1], two)]
    bed.snapshot()
    plain = run_concurrently(bed, programs)
    for point in plain.points:
        bed.reset()
        run = run_concurrently(bed, programs, f"{point.step}>1")
        if run.stopped is not None:
            bed.reset()
            return _together(stage, one, two, str(run.schedule))
    bed.reset()
    stage.note(f"none of {len(plain.points)} schedules with one change of vCPU ends badly; without a change:")
    return _together(stage, one, two, "")


def s6(stage: Stage) -> bool:
    """Two calls in different contexts, the first one interrupted where it asks for a table."""
    stage.set_up()
    contexts = stage.alloc(), stage.alloc()
    maps = [Hypercall("map_pages", {"ctx_no": ctx, "gfn": stage.gfn(9), "dfn": 1, "flags": 3}) for ctx in contexts]
    bed = stage.bed

    class InTheMiddle:
        def choose(self, point: Point, runnable: Sequence[int]) -> int:
            if point.vcpu == 0 and point.kind == "arena" and 1 in runnable:
                return 1
            return point.vcpu if point.vcpu in runnable else runnable[0]

    run = run_concurrently(bed, [(bed.vcpus[0], maps[:1]), (bed.vcpus[1], maps[1:])], InTheMiddle())
    order = [f"vcpu{point.vcpu}" for point in run.points if point.kind == "end"]
    stage.lines.extend([*str(run).splitlines(), f"ended in this order: {', '.join(order)}, then the other"])
    return order == ["vcpu1"]


def s7(stage: Stage) -> bool:
    stage.set_up()
    _together(stage, [Hypercall("reattach_device", {"ctx_no": stage.alloc(), "devfn": ROGUE & 0xFF})], [], "")
    locks = stage.xen.locks
    assert locks is not None
    order = [f"{held}, then {then}" for held, then in locks.taken]
    stage.lines.extend(f"    {line}" for line in order)
    return any("d0 hd->lock" in line for line in order)


def b3(stage: Stage) -> bool:
    rogue = stage.dom0.devices[ROGUE]
    stage.note(f"detach of {rogue.function} = {stage.xen.detach_device(stage.dom0, rogue)}")
    stage.note("assign to dom0")
    result = stage.xen.assign_device(stage.dom0, rogue)
    stage.note(f"    = {result}")
    return result == 0


def b4(stage: Stage) -> bool:
    """Two devices change places between dom0 and a guest."""
    xen, guest = stage.xen, stage.bed.domus[0]
    rogue = stage.dom0.devices[ROGUE]
    copier = guest.devices[COPIER]

    def rogue_to_guest() -> int:
        return xen.assign_device(guest, rogue)

    def copier_to_dom0() -> int:
        return xen.assign_device(stage.dom0, copier)

    return _first_bad(stage, [rogue_to_guest], [copier_to_dom0]).stopped is None


def c4(stage: Stage) -> bool:
    stage.set_up()
    alloc = [Hypercall("alloc_context")]
    bed = stage.bed
    programs = [(bed.vcpus[0], alloc), (bed.vcpus[1], alloc)]
    bed.snapshot()
    for point in run_concurrently(bed, programs).points:
        bed.reset()
        run = run_concurrently(bed, programs, f"{point.step}>1")
        numbers = [answer.fields["ctx_no"] for answers in run.results for answer in answers]
        if run.stopped is not None or len(set(numbers)) != 2:
            bed.reset()
            _together(stage, alloc, alloc, str(run.schedule))
            return False
    stage.note("two allocs at once, each time with one change of vCPU at another place: two numbers every time")
    return True


def c5(stage: Stage) -> bool:
    stage.set_up()
    first, second = stage.alloc(), stage.alloc()
    free = Hypercall("free_context", {"ctx_no": first, "flags": stage.xen.abi.free_reattach_default})
    there = Hypercall("reattach_device", {"ctx_no": first, "devfn": ROGUE & 0xFF})
    return _first_bad(stage, [free], [there, Hypercall("free_context", {"ctx_no": second})]).stopped is None


def c6(stage: Stage) -> bool:
    xen, dom0 = stage.xen, stage.dom0
    assert dom0.iommu is not None
    rogue = dom0.devices[ROGUE]
    stage.note(f"detach of {rogue.function} = {xen.detach_device(dom0, rogue)}")
    again = xen.attach_device(dom0, rogue)
    listed = rogue in dom0.iommu.default.devices
    stage.note(f"attach to context 0 = {again}; it is {'' if listed else 'not '}on the context's list")
    if listed:
        xen.detach_device(dom0, rogue)
    stage.note("attach to a context that there is not")
    unknown = xen.attach_device(dom0, rogue, 9)
    stage.note(f"    = {unknown}")
    return listed and unknown == -ENOENT


def f4(stage: Stage) -> bool:
    """Another domain's frame under a RAM type of the caller's p2m."""
    stage.set_up()
    context = stage.alloc()
    foreign = stage.bed.rams[1].mfns[3]
    stage.dom0.p2m.set(9, foreign)
    stage.xen.frames.get(foreign, 1, REF)
    first, _ = stage.map(context, 9, 0x10)
    run = _together(stage, [], [Hypercall("map_pages", {"ctx_no": context, "gfn": 10, "dfn": 0x11, "flags": 3})], "")
    return first == -EPERM and run.stopped is None and run.results[1][0].result == 0

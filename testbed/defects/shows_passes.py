# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong with passes, tables on their way out, and memory that is not there: H3, R2, T2, T6, T7."""

from abi.errno import ENOMEM
from hypervisor.domain import Vcpu
from hypervisor.pviommu.contexts import TEARDOWN_LEAVES
from testbed.build import COPIER
from testbed.defects.stage import Stage, _replace
from testbed.schedule import injected


def h3(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    passes: list[Vcpu] = []
    stage.xen.preempt = lambda vcpu: True
    stage.xen.rescheduled = passes.append
    stage.note("the vCPU is wanted elsewhere all the time")
    stage.map(context, 9, 0x10, 4)
    stage.note(f"the call was issued again {len(passes)} times")
    return not passes


def r2(stage: Stage) -> bool:
    """A page at the end of one superpage and one at the start of the next, in a full arena."""
    stage.set_up(order=3)
    context = stage.alloc()
    stage.map(context, 1, 0x1FF)
    stage.map(context, 512, 0x200, 256)
    stage.map(context, 768, 0x300, 256)
    assert stage.dom0.iommu is not None and stage.dom0.iommu.arena is not None
    while stage.dom0.iommu.arena.allocate() is not None:
        pass
    stage.arena()
    return stage.unmap(context, 0x1FF, 2)[0] == 0


def t2(stage: Stage) -> bool:
    stage.set_up(order=8)
    context = stage.alloc()
    for dfn in range(0, 2 * TEARDOWN_LEAVES + 2, 2):
        stage.map(context, 1, dfn)
    del stage.lines[2:]
    stage.note(f"{TEARDOWN_LEAVES + 1} mappings that form no superpage; the vCPU is wanted elsewhere all the time")
    passes: list[Vcpu] = []
    stage.xen.preempt = lambda vcpu: True
    stage.xen.rescheduled = passes.append
    stage.call("free_context", ctx_no=context)
    del stage.lines[4:]
    stage.note(f"others could run {len(passes)} times")
    return bool(passes)


def t6(stage: Stage) -> bool:
    """The only page of a table goes, and with it the table."""
    stage.set_up()
    context = stage.alloc()
    stage.reattach(COPIER, context)
    stage.map(context, 9, 0x10)
    assert stage.dom0.iommu is not None and stage.dom0.iommu.arena is not None
    arena = stage.dom0.iommu.arena
    free = arena.free

    def note_free(frame: int) -> None:
        stage.flushed.append(f"table {frame:#x} goes back to the arena")
        free(frame)

    _replace(arena, "free", note_free)
    stage.unmap(context, 0x10)
    kinds = [event.split()[0] for event in stage.flushed]
    return "table" in kinds and kinds.index("flush") < kinds.index("table")


def t7(stage: Stage) -> bool:
    with injected(stage.bed, "xenheap:2"):
        stage.note("from here on there is no room for the arena's bitmap")
        result, _ = stage.call("init", max_ctx_no=4, arena_order=4)
    again, _ = stage.call("init", max_ctx_no=4, arena_order=4)
    return result == -ENOMEM and again == 0

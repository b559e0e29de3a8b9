# SPDX-License-Identifier: GPL-2.0-or-later
"""Software halves: what every :class:`hypervisor.iommu.backend.Backend` must do with its own resources.

What devices can reach is the pair's business; these clauses look at frames, errnos and values.
"""

from base.units import CtxNo
from hypervisor.frames import DOMID_XEN
from hypervisor.iommu.context import IommuContext
from hypervisor.iommu.pool import Arena, HeapPool
from testbed.build import Stateful
from testbed.conformance.clause import Clause, require
from testbed.conformance.rig import Rig


def properties_are_consistent(rig: Rig) -> None:
    """4 KiB leaves always exist, orders ascend, and the input range is whole pages."""
    driver = rig.driver
    require(driver.orders[:1] == (0,), f"orders {driver.orders} do not begin with 4 KiB")
    require(list(driver.orders) == sorted(set(driver.orders)), f"orders {driver.orders} do not ascend")
    require(driver.orders in ((0,), (0, 9), (0, 9, 18)), f"orders {driver.orders} skip a size")
    require(driver.max_iova & 0xFFF == 0xFFF, f"max_iova {driver.max_iova:#x} is not the last byte of a page")


def a_context_costs_its_root_and_returns_it(rig: Rig) -> None:
    """Making and releasing a context gives every frame of the pool back."""
    base = rig.frames.allocate(DOMID_XEN, 6)
    require(base is not None, "the rig has no memory for an arena")
    assert base is not None
    arena = Arena(base, 64)
    for number in (1, 2, 1):
        context = IommuContext(CtxNo(number), arena)
        error = rig.driver.context_init(context)
        require(not error, f"context_init() answered {error}")
        require(arena.used == rig.table(context).root_frames, f"an empty context uses {arena.used} frames of its pool")
        rig.driver.context_release(context)
        require(arena.used == 0, f"{arena.used} frames are still used after context_release()")


def a_context_without_memory_is_refused_and_keeps_nothing(rig: Rig) -> None:
    """context_init() with an empty pool answers -ENOMEM (12), and the next one with memory succeeds."""
    base = rig.frames.allocate(DOMID_XEN, 6)
    assert base is not None
    arena = Arena(base, 64)
    taken = [arena.allocate() for _ in range(64)]
    for _ in range(3):
        error = rig.driver.context_init(IommuContext(CtxNo(1), arena))
        require(error == -12, f"context_init() without memory answered {error}")
    for frame in taken:
        assert frame is not None
        arena.free(frame)
    error = rig.driver.context_init(IommuContext(CtxNo(1), arena))
    require(not error, f"context_init() answered {error} although there is memory again")


def contexts_can_be_made_until_tags_run_out_and_again_after_release(rig: Rig) -> None:
    """Running out of tags answers -ENOSPC (28) or memory ends first; releasing one context makes room for one."""
    contexts: list[IommuContext] = []
    error = 0
    while not error and len(contexts) < 600:
        context = IommuContext(CtxNo(1), HeapPool(rig.frames))
        error = rig.driver.context_init(context)
        if not error:
            contexts.append(context)
    require(error in (0, -28, -12), f"the {len(contexts) + 1}th context_init() answered {error}")
    require(len(contexts) >= 60, f"only {len(contexts)} contexts could be made")
    rig.driver.context_release(contexts.pop())
    again = IommuContext(CtxNo(1), contexts[0].pool)
    require(not rig.driver.context_init(again), "a released context made no room for another")


def hw_values_are_replaced_never_changed(rig: Rig) -> None:
    """What the driver keeps in a context or device stays as it was in a snapshot taken before."""
    context, device = rig.attached()
    kept = (context.hw, repr(context.hw), device.hw, repr(device.hw))
    second = rig.context()
    rig.driver.attach(device, second)
    rig.driver.attach(rig.device(device.sbdf), context)
    require(repr(kept[0]) == kept[1], "context.hw was changed in place; replace it, snapshots keep references to it")
    require(repr(kept[2]) == kept[3], "device.hw was changed in place; replace it, snapshots keep references to it")


def a_restored_driver_goes_on_where_it_was(rig: Rig) -> None:
    """save() and restore(), with memory taken back as well, undo allocation of tags and positions in queues."""
    context, _ = rig.attached()
    table = rig.table(context)
    parts: tuple[Stateful, ...] = (rig.driver, rig.frames, rig.unit, table)
    states = [part.save() for part in parts]
    rig.memory.snapshot()
    tags = []
    for _ in range(3):
        fresh = rig.context()
        tags.append(repr(fresh.hw))
        rig.map(context, 0x100, rig.data)
        rig.unmap(context, 0x100)
        rig.memory.reset()
        for part, state in zip(parts, states):
            part.restore(state)
    require(len(set(tags)) == 1, f"the same step after a reset took different tags: {tags}")


SOFTWARE_CLAUSES: tuple[Clause, ...] = (
    properties_are_consistent,
    a_context_costs_its_root_and_returns_it,
    a_context_without_memory_is_refused_and_keeps_nothing,
    contexts_can_be_made_until_tags_run_out_and_again_after_release,
    hw_values_are_replaced_never_changed,
    a_restored_driver_goes_on_where_it_was,
)

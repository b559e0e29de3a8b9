# SPDX-License-Identifier: GPL-2.0-or-later
"""Every allocation of SVA and of nesting fails once: an error comes out, nothing leaks, trying again succeeds."""

import pytest

from abi.errno import ENOMEM, ENOSPC
from guest_driver.iommufd.release import release
from guest_driver.linux.iommu_core import iommu_domain_free, iommu_paging_domain_alloc
from guest_driver.sva.mm import mm_alloc, mmput
from testbed.invariants import check as check_bed
from testbed.invariants_sva import check
from testbed.scenarios.nesting import VirtualMachine, seen, start
from testbed.sva.watch import VA, Watch


class Nth:
    """Fails allocation number ``n``, counted over slab, pages and (``arena``) Xen's table frames."""

    def __init__(self, n, kernel, arena=None):
        self.left, self.hit, self.where = n, False, ""
        kernel.slab_fault = lambda purpose: self.one(f"slab: {purpose}")
        kernel.pages.fault = lambda order: self.one(f"pages: order {order}")
        if arena is not None:
            allocate = arena.allocate
            arena.allocate = lambda: None if self.one("arena") else allocate()

    def one(self, where):
        self.left -= 1
        if self.left == 0:
            self.hit, self.where = True, where
        return self.left == 0


def twice(nth, operation):
    """The result of ``operation``, tried again if it met the failing allocation."""
    result = operation()
    if isinstance(result, int) and result < 0:
        assert nth.hit and result in (-ENOMEM, -ENOSPC), (nth.where, result)
        nth.hit = False
        result = operation()
    assert not isinstance(result, int) or result >= 0, (nth.where, result)
    return result


def sva_life(watch, nth):
    """Processes, a paging domain, bindings, an end."""
    m = watch.machine
    kernel = m.kernel
    mm, other = (twice(nth, lambda: mm_alloc(kernel)) for _ in range(2))
    for process in (mm, other):
        twice(nth, lambda process=process: process.mmap(VA, 2))
    steps = []

    def step(operation):
        steps.append(operation())
        assert not check(watch, steps[-1]), nth.where
        return steps[-1].result

    paging = twice(nth, lambda: iommu_paging_domain_alloc(m.dev1))
    handles = [twice(nth, lambda dev=dev: step(lambda: watch.bind(dev, mm))) for dev in (m.dev1, m.dev2, m.pair[0])]
    twice(nth, lambda: step(lambda: watch.attach(m.dev1, paging)))
    handles.append(twice(nth, lambda: step(lambda: watch.bind(m.dev1, other))))
    assert all(not isinstance(handle, int) for handle in handles)
    twice(nth, lambda: paging.ops.map_pages(paging, VA, 0x5000, 4096, 1, 3, 0)[0])
    assert watch.dma(m.dev1, pasid=mm.iommu_mm.pasid) == "\0" * 8
    mmput(mm)
    twice(nth, lambda: step(lambda: watch.attach(m.dev1, m.smmu.identity)))
    for handle in handles:
        watch.unbind(handle)
    mmput(other)
    iommu_domain_free(paging)


@pytest.mark.parametrize("xen", [False, True], ids=["bare", "xen"])
def test_every_allocation_of_sva_fails_once(xen):
    n = 0
    while True:
        n += 1
        watch = Watch(xen=xen)
        kernel = watch.machine.kernel
        arena = watch.machine.testbed.dom0.iommu.arena if xen else None
        nth = Nth(n, kernel, arena)
        sva_life(watch, nth)
        kernel.slab_fault = kernel.pages.fault = None
        watch.machine.shutdown()
        assert kernel.pages.allocated == 0 and not kernel.iommu.global_pasids, nth.where
        assert not watch.machine.smmu.asids and not kernel.printk.warnings, (nth.where, kernel.printk.lines)
        if xen:
            assert not watch.machine.testbed.dom0.iommu.contexts and not watch.machine.port.stranded
            assert not check_bed(watch.machine.testbed)
        if nth.left > 0:
            break
    assert n > 25


def nested_life(session, machine, nth):
    vm = VirtualMachine(session, "dev1")
    dev1 = session.bound["dev1"]
    twice(nth, lambda: session.table("parent", "dev1", "ioas1", flags=1))
    twice(nth, vm.boot)
    twice(nth, lambda: session.call("VIOMMU_ALLOC", type=1, dev_id=dev1.id, hwpt_id=session.ids["parent"])[0])
    twice(nth, lambda: vm.nested("nested", "parent"))
    twice(nth, lambda: dev1.attach(session.ids["nested"])[0])
    assert seen(machine, session) == "guest's!"
    twice(nth, lambda: vm.invalidate("nested", (0x10, 0))[0])
    twice(nth, lambda: dev1.replace(session.ids["parent"])[0])
    twice(nth, lambda: dev1.replace(session.ids["nested"])[0])
    assert seen(machine, session) == "guest's!"


def test_every_allocation_of_nesting_fails_once():
    n = 0
    while True:
        n += 1
        session, machine = start(release())
        kernel, bed = machine.kernel, machine.testbed
        before = kernel.pages.allocated, len(kernel.iommu.domains)
        nth = Nth(n, kernel, bed.dom0.iommu.arena)
        nested_life(session, machine, nth)
        kernel.slab_fault = kernel.pages.fault = None
        session.ctx.exit()
        session.mm.munmap(0x7000_1000, 4096)
        assert (kernel.pages.allocated, len(kernel.iommu.domains) <= before[1]) == (before[0], True), nth.where
        assert not kernel.printk.warnings, (nth.where, kernel.printk.lines[-3:])
        assert not any(context.parent or context.children for context in bed.dom0.iommu.contexts.values())
        assert not check_bed(bed), nth.where
        if nth.left > 0:
            break
    assert n > 12

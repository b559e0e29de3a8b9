# SPDX-License-Identifier: GPL-2.0-or-later
"""A to D and S: one demonstration each; every one answers whether what a sound hypervisor guarantees was the case."""

from typing import Final

from abi.errno import EACCES, EADDRINUSE, EADDRNOTAVAIL, EBUSY, EFAULT, EINVAL, ENODEV, ENOENT, ENOMEM
from hypervisor.iommu.context import IommuContext
from testbed.build import COPIER, NIC, ROGUE
from testbed.defects.stage import Stage, _replace

RMRR_BASE: Final = 0x3000_0000
"""A reserved region of 4 pages for the NIC, in every demonstration: outside RAM, where firmware also keeps some."""
RMRR_DFN: Final = RMRR_BASE >> 12
UNKNOWN_DEVICE: Final = 0x98


def s1(stage: Stage) -> bool:
    stage.set_up(order=2)
    context = stage.alloc()
    stage.map(context, 512, 0x200, 256)
    stage.map(context, 768, 0x300, 256)
    stage.map(context, 0, 0x1000)
    stage.arena()
    return stage.unmap(context, 0x280)[0] == 0


def s2(stage: Stage) -> bool:
    context = stage.alloc()
    assert stage.dom0.iommu is not None
    ids = stage.dom0.iommu.contexts[context].hw.dids
    stage.note(f"context {context} has domain ids {', '.join(map(hex, ids))}")
    return all(did < 0x8000 for did in ids)


def s3(stage: Stage) -> bool:
    stage.set_up()
    assert stage.dom0.iommu is not None
    result, _ = stage.call_read_only("alloc_context")
    stage.note(f"contexts now: {sorted(stage.dom0.iommu.contexts)}")
    return result == -EFAULT and not stage.dom0.iommu.contexts


def s4(stage: Stage) -> bool:
    return d5(stage)


def s5(stage: Stage) -> bool:
    context = stage.alloc()
    stage.map(context, 1, RMRR_DFN + 1)
    moved = stage.reattach(NIC, context)
    return moved == -EADDRINUSE and not stage.mapped(context, RMRR_DFN)


def a1(stage: Stage) -> bool:
    result, _ = stage.unmap(0, stage.gfn(9))
    stage.references(9)
    return result == -EINVAL


def a2(stage: Stage) -> bool:
    stage.call("init", max_ctx_no=4, arena_order=4)
    refused, _ = stage.call("init", max_ctx_no=4, arena_order=4)
    return refused == -EACCES and stage.alloc() == 1


def a3(stage: Stage) -> bool:
    return stage.call("init", max_ctx_no=0xFFFF, arena_order=4)[0] != 0


def a4(stage: Stage) -> bool:
    stage.call("query_capabilities")
    padding = stage.raw_struct("query_capabilities")[22:24]
    stage.note(f"the struct's padding reads {padding.hex()}")
    return padding == bytes(2)


def a5(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    result, _ = stage.map(context, 512, 0x200, 1, pgsize=2 << 20)
    found, _ = stage.unmap(context, 0x201)
    return result == 0 and found == 0


def a6(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    return stage.map(context, 1, 0x10, flags=3 | 1 << 9)[0] == -EINVAL


def a7(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    result, after = stage.call32("map_pages", ctx_no=context, gfn=stage.gfn(1), dfn=0x10, flags=3, nr_pages=1, mapped=0)
    return result == 0 and after["mapped"] == 1 and stage.mapped(context, 0x10)


def a8(stage: Stage) -> bool:
    stage.set_up()
    return stage.reattach(UNKNOWN_DEVICE, stage.alloc()) == -ENODEV


def a9(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    return stage.map(context, 1, 0x10, mapped=7)[1]["mapped"] == 1


def a10(stage: Stage) -> bool:
    context = stage.alloc()
    return stage.map(context, 1, 0x10, 300, mapped=9)[1]["mapped"] == 0


def b1(stage: Stage) -> bool:
    stage.set_up(contexts=2)
    assert stage.dom0.iommu is not None
    for _ in range(stage.dom0.iommu.limit):
        stage.alloc()
    del stage.lines[1:-1]
    stage.alloc()
    return stage.map(1, 1, 0x10)[0] == 0


def b2(stage: Stage) -> bool:
    stage.set_up()
    stage.call("free_context", ctx_no=7)
    return stage.call("alloc_context")[0] == 0


def b5(stage: Stage) -> bool:
    stage.note("Xen was started with dom0-iommu=nb-ctx=3")
    return stage.call("query_capabilities")[1]["max_ctx_no"] == 2


def c1(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.reattach(COPIER, context)
    stage.reattach(ROGUE, context)
    flag = stage.xen.abi.free_reattach_default
    return stage.call("free_context", ctx_no=context, flags=flag)[0] == 0


def c2(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.reattach(COPIER, context)
    refused, _ = stage.call("free_context", ctx_no=context)
    return refused == -EBUSY and stage.reattach(ROGUE, context) == 0


def c3(stage: Stage) -> bool:
    stage.set_up()
    first = stage.alloc()
    second = stage.alloc()
    stage.call("free_context", ctx_no=first)
    backend = stage.xen.backend
    init = backend.context_init

    def no_memory(context: IommuContext) -> int:
        _replace(backend, "context_init", init)
        return -ENOMEM

    _replace(backend, "context_init", no_memory)
    stage.call("alloc_context")
    return stage.map(second, 1, 0x10)[0] == 0


def c7(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.reattach(COPIER, context)
    return stage.reattach(COPIER, context) == 0 and not stage.flushed


def c8(stage: Stage) -> bool:
    refused, _ = stage.call("init", max_ctx_no=4, arena_order=60)
    return refused == -ENOMEM and stage.call("init", max_ctx_no=4, arena_order=4)[0] == 0


def d1(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.reattach(NIC, context)
    return stage.map(context, 1, RMRR_DFN - 1, 2)[0] == -EADDRNOTAVAIL


def d2(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.reattach(NIC, context)
    stage.map(context, 1, RMRR_DFN - 1)
    return stage.unmap(context, RMRR_DFN - 1, 2)[0] == -EADDRNOTAVAIL


def d3(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.reattach(NIC, context)
    return stage.unmap(context, RMRR_DFN)[0] == -EADDRNOTAVAIL


def d4(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.reattach(NIC, context)
    behind = RMRR_DFN + 4
    return stage.map(context, 1, behind)[0] == 0


def d5(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.map(context, 1, RMRR_DFN)
    moved = stage.reattach(NIC, context)
    stage.references(1)
    return moved == -EADDRINUSE


def d6(stage: Stage) -> bool:
    context = stage.alloc()
    stage.map(context, 9, 0x10)
    stage.xen.remove_page(stage.dom0, 9)
    stage.note("dom0 gives its page 9 back; the device mapping holds the frame")
    return stage.call("lookup_page", ctx_no=context, dfn=0x10)[0] == -ENOENT

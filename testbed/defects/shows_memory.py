# SPDX-License-Identifier: GPL-2.0-or-later
"""T, F, G, H and R: one demonstration each, as in :mod:`testbed.defects.shows`."""

from dataclasses import replace

from abi.errno import EADDRINUSE, EBUSY, EINVAL, EIO, ENODEV, ENOMEM, ENOSPC, EPERM
from abi.versions import Convention
from base.units import U64_MAX, Sbdf, make_sbdf
from hypervisor.frames import DOMID_IO
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.p2m import RAM_RO
from hypervisor.pagetable.radix import Changes
from hypervisor.vtd.driver import VtdBackend
from machine.iommu.unit import Fault
from machine.pci import PciFunction
from testbed.build import COPIER
from testbed.defects.stage import Stage, _replace

ROOT_PORT = make_sbdf(0, 0, 0x1C, 0)
MMIO_FRAME = 0xE0000
XENS_FRAME = 0x40


def t1(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.map(context, 512, 0x200, 256)
    stage.map(context, 768, 0x300, 256)
    result, _ = stage.call("free_context", ctx_no=context)
    return result == 0 and stage.references(512) == 1


def _fill(stage: Stage) -> int:
    """A context that takes all of an arena of 4 pages, or of one more for a wider root."""
    stage.set_up(order=2)
    context = stage.alloc()
    stage.map(context, 1, 0x10)
    for step in range(1, 4):
        stage.map(context, 2, 0x200 * step)
    stage.arena()
    return context


def t3(stage: Stage) -> bool:
    _fill(stage)
    result, fields = stage.call("alloc_context")
    if result == 0:
        stage.map(fields["ctx_no"], 3, 0x10)
        stage.reattach(COPIER, fields["ctx_no"])
        stage.call("free_context", ctx_no=fields["ctx_no"])
    return result == -ENOMEM


def t4(stage: Stage) -> bool:
    stage.call("init", max_ctx_no=4, arena_order=0)
    return stage.call("alloc_context")[0] is not None


def t5(stage: Stage) -> bool:
    stage.set_up()
    before = stage.arena()
    for _ in range(3):
        stage.call("free_context", ctx_no=stage.alloc())
    return stage.arena() == before


def f1(stage: Stage) -> bool:
    context = _fill(stage)
    before = stage.references(9)
    result, _ = stage.map(context, 9, 0x40000)
    return result == -ENOMEM and stage.references(9) == before


def f2(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    result, _ = stage.call("map_pages", ctx_no=context, gfn=XENS_FRAME, dfn=0x10, flags=3, nr_pages=1)
    stage.unmap(context, 0x10)
    return result == -EPERM


def f3(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    xen = stage.xen
    mfn = xen.frames.allocate(DOMID_IO)
    assert mfn is not None
    stage.dom0.mmio.append((mfn, mfn))
    stage.note(f"frame {mfn:#x} is a firmware's, within RAM; dom0 may access it as it may access MMIO")
    stage.call("map_pages", ctx_no=context, gfn=mfn, dfn=0x10, flags=3, nr_pages=1)
    stage.unmap(context, 0x10)
    stage.note(f"frame {mfn:#x} holds {xen.frames.count(mfn)} references")
    return xen.frames.count(mfn) == 1


def f5(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    free = stage.xen.frames.frames - 1
    result, _ = stage.call("map_pages", ctx_no=context, gfn=free, dfn=0x10, flags=3, nr_pages=1)
    stage.unmap(context, 0x10)
    return result == -EPERM


def f6(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.reattach(COPIER, context)
    stage.map(context, 9, 0x10)
    stage.unmap(context, 0x10)
    order = ["flush" if event.startswith("flush") else "put" for event in stage.flushed]
    return order == ["flush", "put"]


def f7(stage: Stage) -> bool:
    stage.set_up()
    stage.dom0.p2m.set(9, stage.bed.mfns[9], 1, RAM_RO)
    return stage.map(stage.alloc(), 9, 0x10)[0] == -EPERM


def _vtd(stage: Stage) -> VtdBackend:
    backend = stage.xen.backend
    assert isinstance(backend, VtdBackend)
    return backend


def g1(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    function = replace(stage.bed.pci.functions[COPIER], phantom_functions=1)
    phantom = Sbdf(COPIER + 4)
    device = PciDevice(function, (COPIER, phantom))
    stage.xen.assign_device(stage.dom0, device)
    stage.note("the copier may also use the id of phantom function 00:04.4")
    stage.reattach(COPIER, context)
    unit = _vtd(stage).units[0]
    own, other = unit.read_context(COPIER), unit.read_context(phantom)
    stage.note(f"context entries: its own {_words(own)}, its phantom's {_words(other)}")
    return own == other


def _words(entry: tuple[int, int] | None) -> str:
    return "none" if entry is None else f"{entry[0]:#x}, {entry[1]:#x}"


def g2(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    function = PciFunction(make_sbdf(1, 0, 0, 0))
    stage.dom0.devices[function.sbdf] = PciDevice(function, (function.sbdf,))
    stage.note("dom0 has a device on a segment that no unit covers")
    return stage.reattach(function.sbdf, context) == -ENODEV


def g3(stage: Stage) -> bool:
    stage.set_up(contexts=300, order=9)
    unit = _vtd(stage).units[0]
    result = 0
    while not result and (stage.dom0.iommu is not None and len(stage.dom0.iommu.contexts) < 258):
        result, _ = stage.call("alloc_context")
    assert stage.dom0.iommu is not None
    del stage.lines[3:-2]
    highest = max(did for context in stage.dom0.iommu.contexts.values() for did in context.hw.dids)
    stage.note(f"the unit has {unit.dids} domain ids; the highest in use is {highest:#x}")
    return result == -ENOSPC and highest < unit.dids


def g4(stage: Stage) -> bool:
    stage.set_up()
    unit = _vtd(stage).units[0]
    while unit.take_did() != 0x7FFF:
        pass
    stage.note("domain ids below 0x8000 are in use by others, 0 by dom0's default context")
    stage.call("free_context", ctx_no=stage.alloc())
    context = stage.alloc()
    assert stage.dom0.iommu is not None
    ids: list[int] = [c.hw.dids[0] for c in (stage.dom0.iommu.default, stage.dom0.iommu.contexts[context])]
    stage.note(f"domain id of context 0: {ids[0]:#x}, of context {context}: {ids[1]:#x}")
    return ids[0] != ids[1]


def g5(stage: Stage) -> bool:
    stage.set_up()
    says = stage.call("query_capabilities")[1]["max_iova_addr"]
    if stage.xen.abi.convention is Convention.UNION:
        return says == stage.xen.backend.max_iova
    context = stage.alloc()
    stage.reattach(COPIER, context)
    beyond = 1 << 27
    result, _ = stage.map(context, 9, beyond)
    met = stage.bed.translate(COPIER, beyond << 12, False)
    stage.note(f"the copier's access to device frame {beyond:#x}: {met if isinstance(met, Fault) else hex(met)}")
    honest = says == (1 << 39) - 1 and result == -EINVAL
    return honest or not isinstance(met, Fault)


def g6(stage: Stage) -> bool:
    stage.set_up()
    first, second = stage.alloc(), stage.alloc()
    stage.map(first, 9, 0x10)
    stage.reattach(COPIER, first)
    stage.bed.translate(COPIER, 0x10 << 12, False)
    stage.reattach(COPIER, second)
    met = stage.bed.translate(COPIER, 0x10 << 12, False)
    stage.note(
        f"the copier, now in context {second}, reads device frame 0x10: {met if isinstance(met, Fault) else hex(met)}"
    )
    return isinstance(met, Fault)


def h1(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    result, _ = stage.map(context, 9, 0x10, flags=0)
    stage.references(9)
    stage.unmap(context, 0x10)
    return result == -EINVAL


def h2(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.map(context, 1, 0)
    return stage.map(context, 2, stage.xen.max_dfn + 1)[0] == -EINVAL


def h4(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    if stage.bed.faults is not None:
        stage.bed.faults.loop.flags_on_absent = 0
    stage.note("the driver's lookup clears its flags where nothing is mapped, as v7's for AMD does")
    stage.map(context, 9, 0x10)
    return stage.mapped(context, 0x10)


def h8(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.xen.frames.owner[0] = stage.dom0.domid
    stage.note("machine frame 0 is dom0's")
    stage.call("map_pages", ctx_no=context, gfn=0, dfn=0x10, flags=3, nr_pages=1)
    return stage.unmap(context, 0x10)[0] == 0


def h9(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.map(context, 9, 0x10)
    twice, _ = stage.map(context, 9, 0x10)
    return twice == -EADDRINUSE and stage.unmap(context, 0x10)[0] == 0


def h7(stage: Stage) -> bool:
    stage.set_up()
    context = stage.alloc()
    stage.reattach(COPIER, context)
    stage.map(context, 9, 0x10)

    def refused(context: IommuContext, dfn: int, pages: int, changes: Changes) -> int:
        return -EIO

    _replace(stage.xen.backend, "flush", refused)
    stage.note("from here on the unit refuses invalidations")
    return stage.unmap(context, 0x10)[0] == -EIO


def r1(stage: Stage) -> bool:
    stage.xen.map_default(stage.dom0, MMIO_FRAME, MMIO_FRAME, 1)
    return stage.unmap(0, MMIO_FRAME)[0] == -EINVAL


def r3(stage: Stage) -> bool:
    context = stage.alloc()
    result, _ = stage.map(context, 1, U64_MAX)
    stage.unmap(context, U64_MAX)
    stage.arena()
    return result == -EINVAL


def r4(stage: Stage) -> bool:
    result, _ = stage.map(0, 9, 0x70000)
    stage.references(9)
    stage.call("lookup_page", ctx_no=0, dfn=0x70000)
    return result == -EINVAL


def r5(stage: Stage) -> bool:
    context = stage.alloc()
    stage.xen.frames.pagetable[stage.bed.mfns[9]] = 1
    return stage.map(context, 9, 0x10)[0] == -EPERM


def r6(stage: Stage) -> bool:
    context = stage.alloc()
    stage.reattach(ROOT_PORT, context)
    return stage.call("free_context", ctx_no=context)[0] == -EBUSY


def r7(stage: Stage) -> bool:
    context = stage.alloc()
    stage.reattach(COPIER, context)
    stage.map(context, 9, 0x301, 2)
    return not stage.flushed

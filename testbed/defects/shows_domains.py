# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong with guest domains, devices in quarantine and the end of a domain: C9, C10, F8, G7, H5."""

from typing import Final

from abi.errno import ENODEV, ENOMEM
from testbed.build import COPIER
from testbed.config import MIB, DomU
from testbed.defects.stage import Stage
from testbed.schedule import Caller

NEIGHBOUR: Final = DomU(ram=2 * MIB, devices=(COPIER,))
"""The guest domain of these demonstrations."""


def _guest(stage: Stage) -> Caller:
    return Caller(stage.bed, stage.bed.domus[0].vcpus[0])


def _call(stage: Stage, caller: Caller, name: str, on: int | None = None, **fields: int) -> int:
    """A hypercall of somebody else than the stage's own vCPU, noted in the transcript."""
    answer = caller.call(name, on=on, **fields)
    where = f" on d{on}" if on is not None else ""
    given = " ".join(f"{key}={value:#x}" for key, value in fields.items())
    stage.note(f"{caller.vcpu}: {name}{where} {given} = {answer}")
    return answer.result


def c9(stage: Stage) -> bool:
    guest, caller = stage.bed.domus[0], _guest(stage)
    _call(stage, caller, "init", max_ctx_no=1, arena_order=4)
    _call(stage, caller, "alloc_context")
    _call(stage, caller, "map_pages", ctx_no=1, gfn=3, dfn=0x10, flags=3)
    assert guest.iommu is not None and guest.iommu.arena is not None
    arena = guest.iommu.arena.base
    stage.note(f"destroy d1 = {stage.xen.destroy_domain(guest)}")
    frames = stage.xen.frames
    left = frames.count(stage.bed.rams[1].mfns[3])
    stage.note(f"its page 3 holds {left} references; its arena is {'in use' if frames.refs[arena] else 'free'}")
    return not left and not frames.refs[arena]


def c10(stage: Stage) -> bool:
    return _call(stage, _guest(stage), "init", max_ctx_no=1, arena_order=11) == -ENOMEM


def f8(stage: Stage) -> bool:
    guest, caller = stage.bed.domus[0], _guest(stage)
    _call(stage, caller, "init", max_ctx_no=1, arena_order=4)
    _call(stage, caller, "alloc_context")
    stage.xen.begin_dying(guest)
    stage.note("d1 is dying")
    tools = Caller(stage.bed, stage.bed.vcpu)
    result = _call(stage, tools, "map_pages", on=1, ctx_no=1, gfn=3, dfn=0x10, flags=3)
    assert guest.iommu is not None
    table = guest.iommu.contexts[1].table
    held = stage.xen.frames.count(stage.bed.rams[1].mfns[3])
    mapped = table is not None and table.lookup(0x10) is not None
    stage.note(f"dfn 0x10 is {'' if mapped else 'not '}mapped; page 3 of d1 holds {held} references")
    return result == -ENODEV and held == 1


def g7(stage: Stage) -> bool:
    guest = stage.bed.domus[0]
    copier = guest.devices[COPIER]
    result = stage.xen.deassign_device(guest, copier)
    stage.note(f"deassign of {copier.function} from d1 = {result}")
    stage.note(f"it is in {copier.context} of {'d1' if copier.sbdf in guest.devices else 'dom_io'}")
    return result == 0


def h5(stage: Stage) -> bool:
    stage.xen.create_domain(2, p2m_frames=16, iommu=False)
    stage.note("d2 has no IOMMU; query_capabilities on its behalf")
    return _call(stage, Caller(stage.bed, stage.bed.vcpu), "query_capabilities", on=2) == -ENODEV

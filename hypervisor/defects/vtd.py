# SPDX-License-Identifier: GPL-2.0-or-later
"""G: the VT-d driver."""

from typing import Any, Final

from abi.versions import Convention
from base.units import Sbdf
from hypervisor.defects.model import V1_TO_7, Defect
from hypervisor.defects.posted_table import PostedPageTable
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain, Vcpu
from hypervisor.errors import XenBug
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.pagetable.format import ADDRESS_MASK
from hypervisor.pviommu.result import Result
from hypervisor.vtd import layouts as reg
from hypervisor.vtd.driver import VtdBackend
from hypervisor.vtd.unit import INVALID_DID, Unit
from hypervisor.xen import Xen

MAX_DIDS: Final = 0xFFFF
"""Ids that the posted search goes through; the number itself means that there is none."""
DOMID_MASK: Final = 0x7FFF


def _units(seams: Seams) -> tuple[Unit, ...]:
    backend = seams.xen.backend
    return backend.units if isinstance(backend, VtdBackend) else ()


def phantoms_are_not_programmed(seams: Seams) -> None:
    """G1."""
    backend = seams.xen.backend
    if not isinstance(backend, VtdBackend):
        return
    write_all = backend._write_all

    def its_own_id_again(unit: Unit, device: PciDevice, low: int, high: int) -> int:
        own = PciDevice(device.function, (device.requester_ids[0],) * len(device.requester_ids), hw=device.hw)
        error = write_all(unit, own, low, high)
        device.hw = own.hw
        return error

    replace(backend, "_write_all", its_own_id_again)


def unit_is_read_before_it_is_tested(seams: Seams) -> None:
    """G2."""
    backend = seams.xen.backend
    if not isinstance(backend, VtdBackend):
        return
    attach = backend.attach

    def null_drhd(device: PciDevice, context: IommuContext) -> int:
        if backend.covering(device) is None:
            raise XenBug(f"null pointer: drhd->iommu for {device.function}, which no unit covers")
        return attach(device, context)

    replace(backend, "attach", null_drhd)


class DidsWithoutEnd:
    """The search for a free id that does not stop at the end of the unit's bitmap: what lies behind it."""

    def __init__(self, unit: Unit) -> None:
        self.dids: Final = unit.dids
        self.beyond: set[int] = set()

    def save(self) -> Any:
        return set(self.beyond)

    def restore(self, state: Any) -> None:
        self.beyond = set(state)


def search_runs_past_the_bitmap(seams: Seams) -> None:
    """G3."""
    for unit in _units(seams):
        ids = DidsWithoutEnd(unit)
        seams.stateful.append(ids)
        take, give = unit.take_did, unit.give_did

        def take_did(ids: DidsWithoutEnd = ids, take: Any = take) -> int:
            did: int = take()
            if did != INVALID_DID:
                return did
            for did in range(ids.dids, MAX_DIDS):
                if did not in ids.beyond:
                    ids.beyond.add(did)
                    return did
            return INVALID_DID

        def give_did(did: int, ids: DidsWithoutEnd = ids, give: Any = give) -> None:
            if did < ids.dids:
                give(did)
            ids.beyond.discard(did)

        replace(unit, "take_did", take_did)
        replace(unit, "give_did", give_did)


def no_id_is_an_id(seams: Seams) -> None:
    """G4."""
    for unit in _units(seams):
        take, give = unit.take_did, unit.give_did

        def take_did(take: Any = take) -> int:
            did: int = take()
            return MAX_DIDS if did == INVALID_DID else did

        def give_did(did: int, give: Any = give) -> None:
            give(did & DOMID_MASK)

        replace(unit, "take_did", take_did)
        replace(unit, "give_did", give_did)


def reach_is_not_the_units(seams: Seams) -> None:
    """G5: the constant of v1 to v3, and for all versions trees of 4 levels, whatever the units walk."""
    if seams.xen.abi.convention is Convention.UNION:
        _says_39_bits(seams)
    backend, xen = seams.xen.backend, seams.xen
    if not isinstance(backend, VtdBackend) or all(4 in unit.levels for unit in backend.units):
        return
    init, write_all = backend.context_init, backend._write_all

    def with_a_root_for_three_levels(context: IommuContext) -> int:
        error = init(context)
        if not error and isinstance(context.table, PostedPageTable) and context.table.root:
            error = min(context.table.reach_level_3(), 0)
            if error:
                backend.context_release(context)
        return error

    def short_trees(unit: Unit, device: PciDevice, low: int, high: int) -> int:
        if low & ADDRESS_MASK and 4 not in unit.levels:
            level_3 = xen.platform.memory.words[(low & ADDRESS_MASK) >> 3] & ADDRESS_MASK
            low = low & ~ADDRESS_MASK | level_3
            high = reg.ContextEntryHigh.pack(aw=1, did=reg.ContextEntryHigh.did.get(high))
        return write_all(unit, device, low, high)

    replace(backend, "levels", 4)
    replace(backend, "max_iova", (1 << 48) - 1)
    replace(xen, "max_dfn", (1 << 36) - 1)
    replace(backend, "context_init", with_a_root_for_three_levels)
    replace(backend, "_write_all", short_trees)


def _says_39_bits(seams: Seams) -> None:
    query = seams.rows["query_capabilities"].handler

    def hard_coded(xen: Xen, vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
        result, out = query(xen, vcpu, domain, args, start)
        return result, ((1 << 39) - 1, *out[1:])

    seams.replace_handler("query_capabilities", hard_coded)


def moves_are_not_flushed(seams: Seams) -> None:
    """G6."""
    for unit in _units(seams):
        write, forget, flush = unit.write_context, unit._forget_context, unit.flush_did

        def write_context(
            rid: Sbdf,
            low: int,
            high: int,
            unit: Unit = unit,
            write: Any = write,
            forget: Any = forget,
            flush: Any = flush,
        ) -> int:
            if unit.caching_mode:
                return int(write(rid, low, high))
            replace(unit, "_forget_context", lambda rid, did: 0)
            replace(unit, "flush_did", lambda did: 0)
            error = int(write(rid, low, high))
            replace(unit, "_forget_context", forget)
            replace(unit, "flush_did", flush)
            return error

        replace(unit, "write_context", write_context)


DEFECTS: Final = (
    Defect(
        "G1",
        ("v7",),
        "the context entry of a phantom function is not written: its device's own is, once more",
        "DMA under a phantom function's id goes where it went before, or is blocked",
        "catalogue G1",
        phantoms_are_not_programmed,
        backends=("vtd",),
    ),
    Defect(
        "G2",
        ("v7",),
        "the unit that covers a device is read before it is tested whether there is one",
        "reattach_device of a device that no unit covers stops the host; -ENODEV is meant",
        "catalogue G2",
        unit_is_read_before_it_is_tested,
        backends=("vtd",),
    ),
    Defect(
        "G3",
        ("v5", "v6", "v7"),
        "the search for a free domain id goes on behind the end of the unit's bitmap",
        "with 256 ids in a unit the context that finds none left gets id 0x100 instead of -ENOSPC",
        "catalogue G3",
        search_runs_past_the_bitmap,
        backends=("vtd",),
    ),
    Defect(
        "G4",
        ("v5", "v6", "v7"),
        "no domain id left counts as id 0xffff, and an id from 0x8000 on is given back as the one 0x8000 below",
        "freeing a context with id 0x8000 frees id 0, and the next context shares it with the hardware domain",
        "catalogue G4",
        no_id_is_an_id,
        backends=("vtd",),
    ),
    Defect(
        "G5",
        V1_TO_7,
        "the highest I/O virtual address is a constant, whatever the units walk: 39 bits up to v3, 48 bits from v4 on",
        "max_iova_addr is 0x7fffffffff with units of 48 bits; with units of 39 bits pages above are mapped, and out of "
        "every device's reach",
        "catalogue G5 and 2.1; golden record sys",
        reach_is_not_the_units,
        needs=("S1",),
    ),
    Defect(
        "G6",
        ("e1", "e2"),
        "without caching mode a device's move is not flushed: its old context entry counts as not present",
        "after reattach_device the unit goes on using the old context, and the device reaches its pages",
        "catalogue G6",
        moves_are_not_flushed,
        backends=("vtd",),
    ),
)

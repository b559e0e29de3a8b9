# SPDX-License-Identifier: GPL-2.0-or-later
"""Invariants 43 to 52: tables and what needs them, groups, reserved regions, coherency, doorbells."""

from __future__ import annotations

from collections.abc import Iterator

from abi.errno import EADDRINUSE, EBUSY, EINVAL, ENOENT, errno_name
from guest_driver.linux.iommu import IOMMU_RESV_DIRECT_RELAXABLE, IOMMU_RESV_SW_MSI
from guest_driver.linux.iommu_resv import iommu_get_resv_regions
from testbed.invariants_iommufd.registry import invariant
from testbed.invariants_iommufd.watch import GroupView, Step, View, Watch

_CHECK_EXTENSION = 0x3B65
_DMA_CC = 4


def _group_of(watch: Watch, view: View, device: str) -> GroupView:
    group = watch.devices[device].iommu_group
    assert group is not None
    return view.groups[group.id]


def _attached(view: View, hwpt: int) -> list[str]:
    """Devices on a table without a PASID."""
    pairs = (group.attached.get(0, (0, ())) for group in view.groups.values())
    return [name for number, names in pairs if number == hwpt for name in names]


@invariant(43, "a table has one reference for each attached device and each object on it, and is busy exactly then")
def references_are_attachments(watch: Watch, step: Step) -> Iterator[str]:
    for number, hwpt in step.after.hwpts.items():
        if hwpt.users != len(hwpt.holders):
            yield f"table {number} has {hwpt.users} references and is held by {hwpt.holders}"
    target = step.before.hwpts.get(step.args.get("id", 0))
    if step.name == "DESTROY" and target is not None and (step.result == -EBUSY) != bool(target.holders):
        yield f"destroying a table that {target.holders or 'nobody'} holds answers {errno_name(step.result)}"


@invariant(44, "all attached devices of a group are on one table, and the group is there")
def group_is_on_its_table(watch: Watch, step: Step) -> Iterator[str]:
    for number, group in step.after.groups.items():
        hwpt, _ = group.attached.get(0, (0, ()))
        if hwpt and step.after.hwpts[hwpt].domain is not group.domain:
            yield f"group {number} has table {hwpt} in its books and is on {group.domain}"
        if not hwpt and group.owner is not None and group.domain is not group.blocking:
            yield f"group {number} is nowhere attached and on {group.domain}"


@invariant(45, "reserved regions of exactly the attached devices are kept out of a table's address space")
def reservations_follow(watch: Watch, step: Step) -> Iterator[str]:
    for number, ioas in step.after.ioases.items():
        hwpts = [at for at, hwpt in step.after.hwpts.items() if hwpt.ioas == number]
        wanted = set()
        for name in (name for hwpt in hwpts for name in _attached(step.after, hwpt)):
            for region in iommu_get_resv_regions(watch.devices[name]):
                if region.type != IOMMU_RESV_DIRECT_RELAXABLE:
                    wanted.add((region.start, region.last, name))
        names = {idev: name for name, idev in watch.bound.items()}
        there = {(first, last, names[owner]) for first, last, owner in ioas.reserved if owner in names}
        if there != wanted:
            yield f"address space {number} keeps {sorted(there)} free, the attached devices want {sorted(wanted)}"


@invariant(46, "a replace that fails changes nothing: tables, references, reserved regions")
def failed_replace_is_nothing(watch: Watch, step: Step) -> Iterator[str]:
    if step.name == "replace" and step.failed and _books(step.before) != _books(step.after):
        yield f"it failed ({errno_name(step.result)}) and the books have changed"


def _books(view: View) -> object:
    reserved = {number: ioas.reserved for number, ioas in view.ioases.items()}
    return view.groups, {number: hwpt.users for number, hwpt in view.hwpts.items()}, reserved


@invariant(47, "attaching to another table than the group's is -EINVAL, and so is a replace without an attach")
def one_table_for_a_group(watch: Watch, step: Step) -> Iterator[str]:
    if step.name not in ("attach", "replace") or step.args["pasid"]:
        return
    hwpt, names = _group_of(watch, step.before, step.args["device"]).attached.get(0, (0, ()))
    pt, mine = step.args["pt"], step.args["device"] in names
    if pt not in step.before.objects:
        if step.result != -ENOENT and not (mine and step.name == "attach"):
            yield f"an id that is not there answers {errno_name(step.result)}"
    elif pt in step.before.hwpts:
        foreign = step.name == "attach" and hwpt and hwpt != pt and not mine
        if (foreign or (step.name == "replace" and not mine)) and step.result != -EINVAL:
            yield f"{step.name} of a group that is {'on ' + str(hwpt) if hwpt else 'nowhere'} answers {step.result}"


@invariant(48, "an automatic table goes with its last device, another one stays")
def automatic_tables_go(watch: Watch, step: Step) -> Iterator[str]:
    for number, hwpt in step.after.hwpts.items():
        if hwpt.automatic and not hwpt.holders:
            yield f"automatic table {number} has no device and is still there"
    if step.name in ("DESTROY", "close"):
        return
    for number, hwpt in step.before.hwpts.items():
        if not hwpt.automatic and number not in step.after.hwpts:
            yield f"table {number} has gone by itself"


@invariant(49, "whether a table enforces coherency never changes; any device may use one that does not")
def coherency_is_constant(watch: Watch, step: Step) -> Iterator[str]:
    for number, hwpt in step.after.hwpts.items():
        was = step.before.hwpts.get(number)
        if was is not None and was.domain is hwpt.domain and was.enforce_cc != hwpt.enforce_cc:
            yield f"table {number} has been {'promoted' if hwpt.enforce_cc else 'demoted'}"
        without = watch.mock.no_snoop_control
        weak = [name for name in _attached(step.after, number) if watch.devices[name].name in without]
        if hwpt.enforce_cc and weak:
            yield f"{weak[0]} cannot enforce coherency and is on table {number}, which does"


@invariant(50, "coherency is settled before the first page is mapped")
def coherency_comes_first(watch: Watch, step: Step) -> Iterator[str]:
    late = [op for op in step.ops if op[0] == "enforce" and op[2]]
    if late:
        yield f"a table with {late[0][2]} entries is told to enforce coherency"


@invariant(51, "VFIO_DMA_CC_IOMMU says whether every table of the container's address space enforces coherency")
def vfio_tells_coherency(watch: Watch, step: Step) -> Iterator[str]:
    ioas = watch.ctx.vfio_ioas
    if ioas is None or ioas.id not in step.after.ioases:
        return
    wanted = all(step.after.hwpts[number].enforce_cc for number in step.after.ioases[ioas.id].hwpts)
    said = watch.ctx.ioctl(watch.process, _CHECK_EXTENSION, _DMA_CC)
    if said != int(wanted):
        yield f"VFIO is told {said}"


@invariant(52, "the doorbell's place is fixed once, on the paging table, whichever table is attached first")
def doorbell_is_the_parents(watch: Watch, step: Step) -> Iterator[str]:
    for number, hwpt in step.after.hwpts.items():
        was = step.before.hwpts.get(number)
        if was is not None and was.cookie is not None and was.paging is hwpt.paging and was.cookie is not hwpt.cookie:
            yield f"the doorbell of table {number} was placed again"
        if hwpt.domain is not hwpt.paging and hwpt.domain.cookie is not None:
            yield f"nested table {number} has a doorbell of its own"
        for name in _attached(step.after, number):
            regions = iommu_get_resv_regions(watch.devices[name])
            if any(region.type == IOMMU_RESV_SW_MSI for region in regions) and hwpt.cookie is None:
                yield f"{name} is on table {number}, where its doorbell has no place"


@invariant(60, "an attach over an address in use is -EADDRINUSE and leaves the device out")
def refused_attach_is_nothing(watch: Watch, step: Step) -> Iterator[str]:
    if step.name != "attach" or step.result != -EADDRINUSE:
        return
    if _books(step.before) != _books(step.after):
        yield "it was refused and the books have changed"
    regions = [(region.start, region.last) for region in iommu_get_resv_regions(watch.devices[step.args["device"]])]
    hits = (
        at <= last and first < at + area[0]
        for first, last in regions
        for ioas in step.before.ioases.values()
        for at, area in ioas.areas.items()
    )
    allowed = any(
        start <= last and first <= end
        for first, last in regions
        for ioas in step.before.ioases.values()
        for start, end in ioas.allowed
    )
    if not any(hits) and not allowed:
        yield "nothing was in the way"

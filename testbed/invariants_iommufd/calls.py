# SPDX-License-Identifier: GPL-2.0-or-later
"""Invariants 62 to 68: sizes and ids, accesses, invalidation, dirty pages, page requests, failed allocations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from abi.errno import E2BIG, EBUSY, EINVAL, ENOENT, errno_name
from base.units import PAGE_SHIFT
from guest_driver.iommufd.hw_pagetable import HwptNested, HwptPaging
from guest_driver.iommufd.uapi import BY_NAME
from guest_driver.linux.io_pgfault import RESP_INVALID
from guest_driver.linux.mock_domain import IOTLB_WORDS, MockDomain
from testbed.invariants_iommufd.registry import invariant
from testbed.invariants_iommufd.watch import DATA, SCRATCH, Step, View, Watch


@invariant(62, "a short struct is -EINVAL, a long one with something in its tail -E2BIG, with zeros like the exact one")
def sizes_are_checked(watch: Watch, step: Step) -> Iterator[str]:
    row = BY_NAME.get(step.name)
    if row is None or watch.ctx.release.version < row.since:
        return
    # An id that nobody has: none of these may do anything.
    known = row.size(watch.ctx.release.version)
    saved = watch.mm.read(SCRATCH, known + 8) or b""
    for size, tail, wanted in ((row.min_size - 1, b"", -EINVAL), (known + 4, b"\1\0\0\0", -E2BIG)):
        watch.mm.write(SCRATCH, size.to_bytes(4, "little") + b"\xff" * (known - 4) + tail)
        got = watch.ctx.ioctl(watch.process, row.request, SCRATCH)
        if got != wanted:
            yield f"{size} bytes of {known} answer {errno_name(got)}"
    exact, longer = (_unknown(watch, step.name, known, size) for size in (known, known + 8))
    if exact != longer:
        yield f"zeros behind the struct change the answer from {exact} to {longer}"
    watch.mm.write(SCRATCH, saved)


def _unknown(watch: Watch, name: str, known: int, size: int) -> int:
    """The answer to a struct whose ids do not exist, with zeros behind it up to ``size``."""
    refused = b"\0\0\1\0"  # flags that nobody knows, or an id that nobody has
    watch.mm.write(SCRATCH, size.to_bytes(4, "little") + refused.ljust(known - 4, b"\0") + bytes(8))
    return watch.ctx.ioctl(watch.process, BY_NAME[name].request, SCRATCH)


@invariant(63, "destroying what is not there is -ENOENT, what is in use -EBUSY; close leaves nothing behind")
def ids_and_close(watch: Watch, step: Step) -> Iterator[str]:
    if step.name == "DESTROY":
        there = step.before.objects.get(step.args["id"])
        wanted = -ENOENT if there is None else -EBUSY if there[1] else 0
        if step.result != wanted:
            yield f"destroying {there or 'nothing'} answers {step.result}"
        if not step.result and step.args["id"] in step.after.objects:
            yield "it is destroyed and still there"
    if step.name == "close":
        if step.after.objects or step.after.pins or step.after.charged != (0, 0):
            yield f"left: {step.after.objects}, {len(step.after.pins)} pins, {step.after.charged} pages charged"
        for number, group in step.after.groups.items():
            if group.owner is not None or group.domain is not group.default:
                yield f"group {number} is owned, or not on its default domain"
    if step.after.warnings > step.before.warnings:
        yield f"a WARN: {watch.kernel.printk.lines[-1]}"


@invariant(64, "an access has let go of a range when its unmap returns, and what it pins stays pinned until then")
def accesses_let_go(watch: Watch, step: Step) -> Iterator[str]:
    access = watch.access
    if access is None:
        return
    for (iova, length), taken in access.pins.items():
        for area, first, last in taken:
            if access.ioas is None or access.ioas.iopt.areas.get(area.iova) is not area:
                yield f"{iova:#x} ({length:#x} bytes) is unmapped and still used"
            for index in range(first, last + 1):
                if area.pages.paddrs.get(index, 0) >> PAGE_SHIFT not in step.after.pins:
                    yield f"page {index} behind {iova:#x} is used and not pinned"


@invariant(65, "an invalidation says how many entries were done, also on an error, and does not do later ones")
def invalidation_counts(watch: Watch, step: Step) -> Iterator[str]:
    if step.name != "HWPT_INVALIDATE" or step.args.get("entry_len") != 8:
        return
    hwpt = watch.ctx.objects.get(step.args["hwpt_id"], HwptNested)
    if hwpt is None or not isinstance(hwpt.domain, MockDomain):
        return
    raw = watch.mm.read(DATA, 8 * step.args["entry_num"]) or b""
    entries = [(raw[at], int.from_bytes(raw[at + 4 : at + 8], "little")) for at in range(0, len(raw), 8)]
    good = 0
    for flags, number in entries:
        if flags > 1 or number >= IOTLB_WORDS:
            break
        good += 1
    if step.out["entry_num"] != good or (step.result == 0) != (good == len(entries)):
        yield f"{good} of {len(entries)} entries are good, it says {step.out['entry_num']} and {step.result}"
    cleared = {word for flags, number in entries[:good] for word in ((number,) if not flags else range(IOTLB_WORDS))}
    fresh = step.args.get("fresh", False)
    if fresh and {at for at, word in enumerate(hwpt.domain.iotlb) if not word} != cleared:
        yield f"words {sorted(cleared)} should be cleared, the table has {hwpt.domain.iotlb}"


@invariant(66, "a dirty page is reported once by a reading that clears, any number of times by one that does not")
def dirty_once(watch: Watch, step: Step) -> Iterator[str]:
    hwpt = watch.ctx.objects.get(step.args.get("hwpt_id", 0), HwptPaging)
    if hwpt is None or step.failed or not isinstance(hwpt.domain, MockDomain):
        return
    written = watch.written.setdefault(hwpt.domain, set())
    if step.name == "HWPT_SET_DIRTY_TRACKING":
        written.clear()
        if step.args["flags"] and hwpt.domain.dirty:
            yield "tracking does not start clean"
    if step.name == "HWPT_GET_DIRTY_BITMAP":
        iova, size, length = step.args["iova"], step.args["page_size"], step.args["length"]
        raw = watch.mm.read(step.args["data"], (length // size + 7) // 8) or b""
        said = {iova + at * size for at in range(length // size) if raw[at >> 3] >> (at & 7) & 1}
        wanted = {page & -size for page in written if iova <= page < iova + length}
        if said != wanted:
            yield f"reported {sorted(map(hex, said))}, written {sorted(map(hex, wanted))}"
        if not step.args["flags"]:
            written -= {page for page in written if iova <= page < iova + length}


@invariant(67, "a page request group is answered once at most, and as INVALID when its attachment ends")
def requests_are_answered_once(watch: Watch, step: Step) -> Iterator[str]:
    answers = Counter((name, group) for name, group, _ in watch.mock.responses)
    for who, count in answers.items():
        if count > watch.requests.get(who, 0):
            yield f"{who} was answered {count} times"
    live = [
        attachment.handle
        for igroup in watch.ctx.groups.values()
        for attachment in (igroup.rid, *igroup.pasids.values())
    ]
    if any(handle not in live for _, handle in watch.pending()):
        yield "a group waits for an answer, and its attachment is gone"
    if step.name in ("detach", "replace", "close") and any(code != RESP_INVALID for _, _, code in step.answers):
        yield "a group that nobody answered was not answered INVALID"


@invariant(68, "an allocation that fails is an error that leaves nothing, and trying again works")
def failed_allocation_is_nothing(watch: Watch, step: Step) -> Iterator[str]:
    if step.name != "fail-nth":
        return
    reached = step.args["reached"][0] < 0
    if step.failed and not reached:
        yield f"{step.args['of']} does not work even with memory ({errno_name(step.result)})"
    if step.failed and _everything(step.before) != _everything(step.after):
        yield f"{step.args['of']} without allocation {step.args['number']} left something"


def _everything(view: View) -> object:
    users = {number: hwpt.users for number, hwpt in view.hwpts.items()}
    return view.objects, view.ioases, users, view.groups, view.pins, view.charged, view.warnings

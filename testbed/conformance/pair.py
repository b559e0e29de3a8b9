# SPDX-License-Identifier: GPL-2.0-or-later
"""Pairs: what devices can reach through a software half and a hardware half working together.

Requests go through the unit with its caches at their most hostile (everything is kept until it is invalidated), so a
missing or wrong invalidation shows as memory that a device still reaches.
"""

from machine.iommu.unit import Fault
from testbed.conformance.clause import Clause, require
from testbed.conformance.rig import READ, WRITE, Rig


def _reaches(rig: Rig, dfn: int, write: bool = True, sbdf: int | None = None) -> int | None:
    """The frame that a request for device frame ``dfn`` gets to."""
    requester = rig.requester if sbdf is None else sbdf
    answer = rig.unit.translate(requester & 0xFFFF, dfn << 12 | 0xABC, write)
    if isinstance(answer, Fault):
        return None
    require(answer & 0xFFF == 0xABC, f"the offset in the page became {answer & 0xFFF:#x}")
    return answer >> 12


def mapped_pages_are_reached_with_their_rights(rig: Rig) -> None:
    """A page mapped with some rights is reached with these and no others; its neighbours are not reached."""
    context, _ = rig.attached()
    for k, rights in enumerate((READ, WRITE, READ | WRITE)):
        dfn = 0x1000 + 2 * k
        rig.map(context, dfn, rig.data + k, 1, rights)
        for write, right in ((False, READ), (True, WRITE)):
            got = _reaches(rig, dfn, write)
            # Hardware may let a write-only page be read; none may let a read-only page be written.
            if rights & right:
                require(got == rig.data + k, f"rights {rights}, {'write' if write else 'read'}: reached {got!r}")
            elif write:
                require(got is None, f"a page with rights {rights} was written")
        require(_reaches(rig, dfn + 1) is None, f"dfn {dfn + 1:#x} is reached without being mapped")


def an_unmapped_page_is_out_of_reach_after_the_flush(rig: Rig) -> None:
    """A translation that was used, and cached, is gone once the flush of its unmapping has returned."""
    context, _ = rig.attached()
    for count, dfn in ((1, 0x10), (2, 0x31), (8, 0x40), (300, 0x101)):
        rig.map(context, dfn, rig.data, count)
        require(_reaches(rig, dfn + count - 1) == rig.data + count - 1, f"{count} pages at {dfn:#x} are not reached")
        for k in range(count):
            _reaches(rig, dfn + k)
        rig.unmap(context, dfn, count)
        for k in range(count):
            require(
                _reaches(rig, dfn + k) is None, f"page {k} of {count} at dfn {dfn:#x} is reached after its unmapping"
            )


def a_page_mapped_after_a_fault_is_reached(rig: Rig) -> None:
    """That an address was not mapped is forgotten by the time it is."""
    context, _ = rig.attached()
    require(_reaches(rig, 0x555) is None, "an empty context translates")
    rig.map(context, 0x555, rig.data)
    require(_reaches(rig, 0x555) == rig.data, "a page mapped after a fault is not reached")
    rig.unmap(context, 0x555)
    rig.map(context, 0x555, rig.data + 9)
    require(_reaches(rig, 0x555) == rig.data + 9, "a page mapped again elsewhere is reached where it was")


def superpages_are_folded_and_split_under_use(rig: Rig) -> None:
    """512 pages become one leaf and come apart again while their device uses them, and always lead where they must."""
    context, _ = rig.attached()
    if 9 not in rig.driver.orders:
        return
    table = rig.table(context)
    for start in range(0, 512, 64):
        rig.map(context, 0x400 + start, rig.data + start, 64)
        for k in (0, start, start + 63):
            require(_reaches(rig, 0x400 + k) == rig.data + k, f"page {k} is not reached after {start + 64} pages")
    require(table.folds == 1, f"512 consecutive pages folded {table.folds} times")
    rig.unmap(context, 0x400 + 77)
    require(table.splits == 1, f"taking one page out split {table.splits} times")
    for k in range(512):
        expected = None if k == 77 else rig.data + k
        got = _reaches(rig, 0x400 + k)
        require(got == expected, f"page {k} of a split superpage reaches {got!r}")
    rig.map(context, 0x400 + 77, rig.data + 77)
    require(table.folds == 2, "putting the page back did not fold")
    rig.unmap(context, 0x400, 512)
    for k in (0, 77, 511):
        require(_reaches(rig, 0x400 + k) is None, f"page {k} of a removed superpage is still reached")


def contexts_are_separate(rig: Rig) -> None:
    """The same device frame leads two devices in two contexts to two frames."""
    first, _ = rig.attached(rig.requester)
    second, _ = rig.attached(rig.other)
    rig.map(first, 0x20, rig.data)
    rig.map(second, 0x20, rig.data + 1)
    for _ in range(2):
        require(_reaches(rig, 0x20, sbdf=rig.requester) == rig.data, "a device translates through another context")
        require(_reaches(rig, 0x20, sbdf=rig.other) == rig.data + 1, "a device translates through another context")
    rig.unmap(first, 0x20)
    require(_reaches(rig, 0x20, sbdf=rig.requester) is None, "an unmapped page is reached")
    require(_reaches(rig, 0x20, sbdf=rig.other) == rig.data + 1, "unmapping in one context unmapped in another")


def devices_in_one_context_share_it(rig: Rig) -> None:
    """Two devices in one context reach the same frames, and one flush serves both."""
    context, _ = rig.attached(rig.requester)
    require(not rig.driver.attach(rig.device(rig.other), context), "a second device could not be attached")
    rig.map(context, 0x7, rig.data + 7)
    for sbdf in (rig.requester, rig.other):
        require(_reaches(rig, 0x7, sbdf=sbdf) == rig.data + 7, f"device {sbdf:#x} does not reach a shared page")
    rig.unmap(context, 0x7)
    for sbdf in (rig.requester, rig.other):
        require(_reaches(rig, 0x7, sbdf=sbdf) is None, f"device {sbdf:#x} reaches a page after its unmapping")


def a_moved_device_leaves_its_old_context(rig: Rig) -> None:
    """After attach() to another context nothing of the old one is reached, cached or not; and back again."""
    first, device = rig.attached()
    second = rig.context()
    rig.map(first, 0x30, rig.data)
    rig.map(second, 0x31, rig.data + 1)
    for _ in range(2):
        require(_reaches(rig, 0x30) == rig.data, "the first context's page is not reached")
        require(not rig.driver.attach(device, second), "the device could not be moved")
        require(_reaches(rig, 0x30) is None, "a moved device reaches a page of its old context")
        require(_reaches(rig, 0x31) == rig.data + 1, "a moved device does not reach its new context")
        require(not rig.driver.attach(device, first), "the device could not be moved back")
        require(_reaches(rig, 0x31) is None, "a device moved back reaches a page of the other context")


def a_detached_device_reaches_nothing(rig: Rig) -> None:
    """After detach() every request of the device is blocked."""
    context, device = rig.attached()
    rig.map(context, 0x9, rig.data)
    _reaches(rig, 0x9)
    require(not rig.driver.detach(device), "detach() failed")
    require(_reaches(rig, 0x9) is None, "a detached device reaches a page")


def a_released_tag_carries_nothing_over(rig: Rig) -> None:
    """A context made after another's release never sees what was cached for that one."""
    for round_ in range(4):
        context, device = rig.attached()
        require(_reaches(rig, 0x66) is None, f"round {round_}: a fresh context translates")
        rig.map(context, 0x66, rig.data + round_)
        require(_reaches(rig, 0x66) == rig.data + round_, f"round {round_}: a mapped page is not reached")
        require(not rig.driver.detach(device), "detach() failed")
        rig.unmap(context, 0x66)
        require(not rig.driver.flush_all(context), "flush_all() failed")
        rig.driver.context_release(context)


def faults_are_read_back_as_they_happened(rig: Rig) -> None:
    """What the unit recorded is what the driver reports: requester, address, direction; and once only."""
    rig.attached()
    rig.attached(rig.other)
    made = []
    for sbdf, iova, write in ((rig.requester, 0x1234_5678, True), (rig.other, 0x9_8765_4000, False)):
        fault = rig.unit.translate(sbdf & 0xFFFF, iova, write)
        require(isinstance(fault, Fault), f"{iova:#x} is translated in an empty context")
        made.append((sbdf & 0xFFFF, iova >> 12, write))
        reports = rig.driver.take_faults()
        seen = [(report.sid, report.iova >> 12, report.write) for report in reports]
        require(seen == made[-1:], f"the driver reports {seen}, the unit blocked {made[-1:]}")
    require(not rig.driver.take_faults(), "a fault is reported twice")


def the_whole_input_range_translates(rig: Rig) -> None:
    """The first and the last page of the range work; beyond it nothing does."""
    context, _ = rig.attached()
    last = rig.driver.max_iova >> 12
    rig.map(context, 0, rig.data)
    rig.map(context, last, rig.data + 1)
    require(_reaches(rig, 0) == rig.data, "device frame 0 is not reached")
    require(_reaches(rig, last) == rig.data + 1, f"the last device frame {last:#x} is not reached")
    for beyond in (last + 1, last << 1 | 1, (1 << 52) - 1):
        require(_reaches(rig, beyond) is None, f"device frame {beyond:#x} is translated beyond max_iova")


PAIR_CLAUSES: tuple[Clause, ...] = (
    mapped_pages_are_reached_with_their_rights,
    an_unmapped_page_is_out_of_reach_after_the_flush,
    a_page_mapped_after_a_fault_is_reached,
    superpages_are_folded_and_split_under_use,
    contexts_are_separate,
    devices_in_one_context_share_it,
    a_moved_device_leaves_its_old_context,
    a_detached_device_reaches_nothing,
    a_released_tag_carries_nothing_over,
    faults_are_read_back_as_they_happened,
    the_whole_input_range_translates,
)

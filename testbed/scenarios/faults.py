# SPDX-License-Identifier: GPL-2.0-or-later
"""Known upstream faults of iommufd, each as a run that ends well on a mended kernel and not on one that has it."""

from __future__ import annotations

from collections.abc import Iterator

from abi.errno import EBUSY, EINVAL, ENOMEM, EOPNOTSUPP
from guest_driver.iommufd.hw_pagetable import HwptPaging
from guest_driver.iommufd.release import Release
from testbed.iommufd_machine import MOCK, make_machine
from testbed.scenarios.bench import SCRATCH, Session
from testbed.scenarios.step import Step, answered, held

IOVA = 0x400_0000
PAGE = 0x1000


def _start(place: str, release: Release, flags: int = 0) -> tuple[Session, list[Step]]:
    """dev1 attached to hwpt1 over ioas1."""
    session = Session(make_machine(place), release)
    steps = [answered("bind dev1", session.bind("dev1"), 0)]
    ret = session.ioas("ioas1") or session.table("hwpt1", "dev1", "ioas1", flags)
    steps.append(answered("make ioas1 and hwpt1", ret, 0))
    steps.append(answered("attach dev1", session.bound["dev1"].attach(session.ids["hwpt1"])[0], 0))
    return session, steps


def map_error(place: str, release: Release) -> Iterator[Step]:
    """The driver cannot map; user space has to hear of it."""
    session, steps = _start(place, release)
    yield from steps
    session.bench.map_error = ENOMEM
    yield answered("map a page that the driver refuses", session.map("ioas1", IOVA), -ENOMEM, state=session.state(IOVA))
    session.bench.map_error = 0
    yield answered("map it again", session.map("ioas1", IOVA), 0, "there was nothing in the way")
    yield held("dev1 reaches it", session.bench.dma(session.devices["dev1"], IOVA) == "ok", state=session.state(IOVA))
    session.ctx.exit()


def dirty_hole(place: str, release: Release) -> Iterator[Step]:
    """Three pages are asked about, the one in the middle is not mapped; the third was written."""
    if place != MOCK:
        yield from _nothing_tracks(place, release)
        return
    session, steps = _start(place, release, flags=2)
    yield from steps
    for page in (0, 2):
        yield answered(f"map page {page}", session.map("ioas1", IOVA + page * PAGE), 0)
    set_fields = {"hwpt_id": session.ids["hwpt1"], "flags": 1}
    yield answered("switch dirty tracking on", session.call("HWPT_SET_DIRTY_TRACKING", **set_fields)[0], 0)
    hwpt = session.hwpt("hwpt1")
    assert isinstance(hwpt, HwptPaging)
    written = session.bench.fabric.port(session.devices["dev1"].pci.sbdf).write(IOVA + 2 * PAGE, bytes(8))
    yield held("dev1 writes page 2", written is None)
    session.mm.mmap(SCRATCH + PAGE, PAGE)
    fields = {"hwpt_id": hwpt.id, "iova": IOVA, "length": 3 * PAGE, "page_size": PAGE, "data": SCRATCH + PAGE}
    ret, _ = session.call("HWPT_GET_DIRTY_BITMAP", **fields)
    bitmap = int.from_bytes(session.mm.read(SCRATCH + PAGE, 1) or b"", "little")
    yield answered("read the bitmap of all three", ret, -EINVAL, f"bitmap {bitmap:03b}: page 2 is not in it")
    yield from session.end()


def _nothing_tracks(place: str, release: Release) -> Iterator[Step]:
    """The PV-IOMMU has no sub-op for dirty pages: each question about them is refused, and writes go on."""
    session, steps = _start(place, release)
    yield from steps
    why = "the ABI has no dirty tracking"
    yield answered("make a table that tracks", session.table("tracking", "dev1", "ioas1", flags=2), -EOPNOTSUPP, why)
    ret, out = session.call("GET_HW_INFO", dev_id=session.bound["dev1"].id)
    yield held("hardware information does not promise it", not ret and not out["out_capabilities"] & 1)
    yield answered("map a page", session.map("ioas1", IOVA), 0)
    table = {"hwpt_id": session.ids["hwpt1"]}
    yield answered("switch it on", session.call("HWPT_SET_DIRTY_TRACKING", flags=1, **table)[0], -EOPNOTSUPP)
    session.mm.mmap(SCRATCH + PAGE, PAGE)
    asked = {"iova": IOVA, "length": PAGE, "page_size": PAGE, "data": SCRATCH + PAGE}
    yield answered("read a bitmap", session.call("HWPT_GET_DIRTY_BITMAP", **table, **asked)[0], -EOPNOTSUPP)
    yield held("no bit was made up", session.mm.read(SCRATCH + PAGE, 8) == bytes(8))
    yield from session.end()


def unmap_race(place: str, release: Release) -> Iterator[Step]:
    """Another thread maps the first page anew while both pages are being unmapped."""
    session, steps = _start(place, release)
    yield from steps
    for page in (0, 1):
        yield answered(f"map page {page}", session.map("ioas1", IOVA + page * PAGE), 0)
    hwpt = session.hwpt("hwpt1")
    assert isinstance(hwpt, HwptPaging)
    iopt = hwpt.ioas.iopt
    answers: list[int] = []

    def other_thread() -> None:
        if not answers:
            answers.append(0)
            answers[0] = session.map("ioas1", IOVA)

    iopt.after_area_unmapped = other_thread
    removed = session.unmap("ioas1", IOVA, 2 * PAGE)
    iopt.after_area_unmapped = None
    yield answered("meanwhile: another thread maps page 0", answers[0], 0)
    yield held("unmap says two pages", removed == 2 * PAGE, f"{removed:#x} bytes")
    seen = session.bench.dma(session.devices["dev1"], IOVA)
    yield held("the other thread's page is there", seen == "ok", f"dev1's read: {seen}", session.state(IOVA))
    yield from session.end()


def attach_twice(place: str, release: Release) -> Iterator[Step]:
    """One device calls attach a second time: refused from 6.15 on, a damaged list before."""
    session, steps = _start(place, release)
    yield from steps
    ret = session.bound["dev1"].attach(session.ids["hwpt1"])[0]
    refused = release.knows_who_attached
    yield answered("attach dev1 again", ret, -EBUSY if refused else 0, "" if refused else "VFIO has a flag against it")
    warned = session.bench.kernel.printk.warnings
    yield held("the group's list is whole", refused == (warned == 0), f"{warned} WARN")
    session.ctx.exit()

# SPDX-License-Identifier: GPL-2.0-or-later
"""iommufd over a driver: what a program gets must not depend on what is underneath.

The subject is a machine (:mod:`testbed.iommufd_machine`): the mock driver, or the xen-iommu driver with the real tables
of a backend.  What devices reach is asked of the devices, through the machine's fabric; nothing looks into tables.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

from abi.errno import EBUSY, EEXIST, EINVAL, ENOENT, ENOMEM
from base.units import PAGE_SIZE
from guest_driver.iommufd.context import iommufd_open
from guest_driver.iommufd.device import iommufd_device_bind, iommufd_device_unbind
from guest_driver.iommufd.hw_pagetable import Hwpt
from guest_driver.iommufd.release import release
from guest_driver.linux.iommu_owner import iommu_device_unuse_default_domain, iommu_device_use_default_domain
from testbed.conformance.clause import ConformanceError, Result, require
from testbed.iommufd_machine import DeviceSpec, make_machine
from testbed.scenarios.bench import BUFFER, SCRATCH, Session

BASE: Final = 0x400_0000
ONE_GROUP: Final = (DeviceSpec("dev1", 0), DeviceSpec("dev2", 0), DeviceSpec("dev3", 1))
_WINDOW: Final = 24
_MARK: Final = 0x5A


class Subject(Session):
    """A session with two devices in one group and one in another, and what its devices see."""

    def __init__(self, place: str) -> None:
        super().__init__(make_machine(place, ONE_GROUP), release())
        for dev in self.bench.devices:
            self.bench.regions[dev.name] = []
        for page in range(16):
            self.mm.write(BUFFER + page * PAGE_SIZE, bytes([_MARK + page]) * PAGE_SIZE)

    def attached(self, device: str = "dev1", ioas: str = "ioas") -> None:
        """``device`` bound and attached to an address space, which is made if there is none."""
        if ioas not in self.ids:
            require(self.ioas(ioas) == 0, "IOAS_ALLOC failed")
        if device not in self.bound:
            require(self.bind(device) == 0, "bind failed")
        ret, _ = self.bound[device].attach(self.ids[ioas])
        require(ret == 0, f"attach answers {ret}")

    def put(self, page: int, iova: int, pages: int = 1, flags: int = 7, ioas: str = "ioas") -> int:
        """Map pages of the buffer; the result."""
        fields = {"user_va": BUFFER + page * PAGE_SIZE, "length": pages * PAGE_SIZE, "iova": iova}
        return self.call("IOAS_MAP", flags=flags, ioas_id=self.ids[ioas], **fields)[0]

    def sees(self, iova: int, device: str = "dev1") -> int | None:
        """The number of the buffer's page that a device reads at ``iova``, ``None`` if it is blocked."""
        data = self.bench.fabric.port(self.devices[device].pci.sbdf).read(iova, 8)
        if not isinstance(data, bytes):
            return None
        require(len(set(data)) == 1, f"{data.hex()} is read at {iova:#x}")
        return data[0] - _MARK

    def writes(self, iova: int, value: int, device: str = "dev1") -> bool:
        """Whether a device's store of a byte pattern at ``iova`` arrives."""
        return self.bench.fabric.port(self.devices[device].pci.sbdf).write(iova, bytes([value]) * 8) is None


Clause = Callable[[Subject], None]


def a_mapping_is_reached_and_nothing_beside_it(s: Subject) -> None:
    """A device reads and writes the pages of a mapping, and is blocked on both sides of it."""
    s.attached()
    require(s.put(3, BASE, 2) == 0, "IOAS_MAP failed")
    require((s.sees(BASE), s.sees(BASE + PAGE_SIZE)) == (3, 4), "other pages are read")
    require(s.sees(BASE - 8) is None and s.sees(BASE + 2 * PAGE_SIZE) is None, "neighbours are reached")
    require(s.writes(BASE + PAGE_SIZE + 64, 0x77), "the store is blocked")
    require(s.mm.read(BUFFER + 4 * PAGE_SIZE + 64, 8) == b"\x77" * 8, "the store went somewhere else")


def rights_are_kept(s: Subject) -> None:
    """A read-only mapping cannot be written by a device."""
    s.attached()
    require(s.put(1, BASE, flags=5) == 0, "IOAS_MAP failed")
    require(s.sees(BASE) == 1 and not s.writes(BASE, 0x77), "a read-only page was written")


def an_unmapped_page_is_out_of_reach(s: Subject) -> None:
    """When IOAS_UNMAP has returned, no device reaches the pages, cached or not."""
    s.attached()
    for pages in (1, 3, 16):
        require(s.put(0, BASE, pages) == 0, "IOAS_MAP failed")
        require([s.sees(BASE + at * PAGE_SIZE) for at in range(pages)] == list(range(pages)), "other pages are read")
        require(s.unmap("ioas", BASE, pages * PAGE_SIZE) == pages * PAGE_SIZE, "IOAS_UNMAP failed")
        require(all(s.sees(BASE + at * PAGE_SIZE) is None for at in range(pages)), "an unmapped page is reached")
    require(s.mm.pins == {}, "pages are still pinned")


def a_late_table_shows_everything(s: Subject) -> None:
    """What was mapped before the first table existed, and before the second, is in both."""
    require(s.ioas("ioas") == 0 and s.put(5, BASE) == 0, "IOAS_MAP without a table failed")
    s.attached()
    require(s.put(6, BASE + PAGE_SIZE) == 0, "IOAS_MAP failed")
    s.attached("dev3")
    for device in ("dev1", "dev3"):
        require((s.sees(BASE, device), s.sees(BASE + PAGE_SIZE, device)) == (5, 6), f"{device} reads other pages")


def a_copy_is_the_same_page(s: Subject) -> None:
    """IOAS_COPY shows the same memory in another address space, and keeps it when the first lets go."""
    s.attached()
    s.attached("dev3", "other")
    require(s.put(2, BASE) == 0, "IOAS_MAP failed")
    fields = {"dst_ioas_id": s.ids["other"], "src_ioas_id": s.ids["ioas"], "length": PAGE_SIZE}
    ret, _ = s.call("IOAS_COPY", flags=7, dst_iova=BASE + PAGE_SIZE, src_iova=BASE, **fields)
    require(ret == 0 and s.sees(BASE + PAGE_SIZE, "dev3") == 2, "the copy is not reached")
    require(set(s.mm.pins.values()) == {1}, "the page is pinned twice")
    require(s.unmap("ioas", BASE, PAGE_SIZE) == PAGE_SIZE, "IOAS_UNMAP failed")
    require(s.sees(BASE) is None and s.sees(BASE + PAGE_SIZE, "dev3") == 2, "the copy went with the original")


def a_bound_device_is_blocked_until_attached(s: Subject) -> None:
    """Between bind and attach, and after detach, a device reaches nothing; the group moves as one."""
    require(s.bind("dev1") == 0, "bind failed")
    require(s.sees(BASE) is None and s.sees(BASE, "dev2") is None, "a device of user space is not blocked")
    s.attached()
    require(s.put(7, BASE) == 0 and s.sees(BASE, "dev2") == 7, "the group does not move as one")
    s.bound["dev1"].detach()
    require(s.sees(BASE) is None, "a detached device is not blocked")


def replace_shows_the_new_table_only(s: Subject) -> None:
    """After a replace the devices of the group see the new address space and nothing of the old."""
    s.attached()
    require(s.ioas("other") == 0 and s.put(1, BASE) == 0 and s.put(2, BASE, ioas="other") == 0, "mapping failed")
    require(s.put(3, BASE + PAGE_SIZE) == 0 and s.sees(BASE) == 1, "mapping failed")
    require(s.bound["dev1"].replace(s.ids["other"])[0] == 0, "replace failed")
    for device in ("dev1", "dev2"):
        require((s.sees(BASE, device), s.sees(BASE + PAGE_SIZE, device)) == (2, None), f"{device} sees the old table")


def a_failed_replace_leaves_the_old_table(s: Subject) -> None:
    """A replace that a device of the group refuses leaves all of them where they were, and works afterwards."""
    s.attached()
    require(s.put(1, BASE) == 0 and s.ioas("other") == 0 and s.put(2, BASE, ioas="other") == 0, "mapping failed")
    require(s.table("hwpt", "dev1", "other") == 0, "HWPT_ALLOC failed")
    hwpt = s.ctx.objects.get(s.ids["hwpt"], Hwpt)
    assert hwpt is not None
    for device in ("dev1", "dev2"):
        s.bench.refuse[hwpt.domain, s.devices[device].name] = ENOMEM
        require(s.bound["dev1"].replace(hwpt.id)[0] == -ENOMEM, "the refusal is not answered")
        require((s.sees(BASE), s.sees(BASE, "dev2")) == (1, 1), "the group has moved")
        s.bench.refuse.clear()
    require(s.bound["dev1"].replace(hwpt.id)[0] == 0 and s.sees(BASE, "dev2") == 2, "it does not work afterwards")


def a_map_that_the_driver_refuses_leaves_nothing(s: Subject) -> None:
    """An error of the driver reaches the program; no page is pinned or reached; trying again works."""
    s.attached()
    s.bench.map_error = ENOMEM
    require(s.put(0, BASE, 4) == -ENOMEM, "the error is lost")
    s.bench.map_error = 0
    require(not s.mm.pins and s.sees(BASE) is None, "something was left")
    require(s.put(0, BASE, 4) == 0 and s.sees(BASE + 3 * PAGE_SIZE) == 3, "it does not work afterwards")


def reserved_and_outside_is_refused(s: Subject) -> None:
    """IOVA_RANGES is where fixed maps are accepted: at both ends of every range inside, and not beside it."""
    s.attached()
    s.mm.mmap(SCRATCH + PAGE_SIZE, PAGE_SIZE)
    ret, out = s.call("IOAS_IOVA_RANGES", ioas_id=s.ids["ioas"], num_iovas=64, allowed_iovas=SCRATCH + PAGE_SIZE)
    raw = s.mm.read(SCRATCH + PAGE_SIZE, 16 * out["num_iovas"]) or b""
    words = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
    require(ret == 0 and words, "IOVA_RANGES failed")
    for first, last in zip(words[::2], words[1::2]):
        for iova in (-(-first // PAGE_SIZE) * PAGE_SIZE, last + 1 - PAGE_SIZE & -PAGE_SIZE):
            require(s.put(0, iova) == 0, f"{iova:#x} is offered and refused")
            require(s.sees(iova) == 0, f"{iova:#x} is mapped and not reached")
            require(s.put(0, iova) == -EEXIST, f"{iova:#x} is mapped twice")
            require(s.unmap("ioas", iova, PAGE_SIZE) == PAGE_SIZE, f"{iova:#x} cannot be unmapped")
        if last + 1 < 1 << 64:
            require(s.put(0, last + 1 & -PAGE_SIZE) == -EINVAL, f"{last + 1:#x} is accepted and not offered")


def one_owner_at_a_time(s: Subject) -> None:
    """A group is a kernel driver's or one process's; it goes back to its default domain with the last."""
    dev1, dev2 = s.devices["dev1"], s.devices["dev2"]
    require(iommu_device_use_default_domain(dev2) == 0, "a kernel driver cannot bind")
    require(s.bind("dev1") < 0, "user space takes a group in use")
    iommu_device_unuse_default_domain(dev2)
    require(s.bind("dev1") == 0, "bind failed")
    require(iommu_device_use_default_domain(dev2) == -EBUSY, "a kernel driver binds beside user space")
    other = iommufd_open(s.bench.kernel)
    assert not isinstance(other, int)
    require(isinstance(iommufd_device_bind(other, dev2), int), "a second process takes the group")
    other.close()
    iommufd_device_unbind(s.bound.pop("dev1"))
    group = dev1.iommu_group
    require(group is not None and group.domain is group.default_domain, "the group did not go back")
    require(iommu_device_use_default_domain(dev2) == 0, "a kernel driver cannot bind any more")
    iommu_device_unuse_default_domain(dev2)


def random_programs_do_what_a_dict_does(s: Subject) -> None:
    """Maps, unmaps, attaches and detaches in any order: what devices see is what a dict of pages says."""
    rng = random.Random(7)
    require(s.ioas("ioas") == 0, "IOAS_ALLOC failed")
    areas: dict[int, tuple[int, int]] = {}
    for step in range(120):
        start, pages, page = rng.randrange(_WINDOW), rng.randint(1, 4), rng.randrange(12)
        hit = {at: area for at, area in areas.items() if at < start + pages and start < at + area[0]}
        iova = BASE + start * PAGE_SIZE
        kind = rng.choice(("map", "map", "unmap", "move"))
        if kind == "map":
            ret = s.put(page, iova, pages)
            require(ret == (-EEXIST if hit else 0), f"step {step}: IOAS_MAP answers {ret}")
            if not hit:
                areas[start] = (pages, page)
        elif kind == "unmap":
            whole = hit and all(at >= start and at + area[0] <= start + pages for at, area in hit.items())
            ret = s.unmap("ioas", iova, pages * PAGE_SIZE)
            expected = sum(area[0] for area in hit.values()) * PAGE_SIZE if whole else -ENOENT
            require(ret == expected, f"step {step}: IOAS_UNMAP answers {ret}")
            # A partial unmap has taken the areas before the one that stopped it.
            for at in sorted(hit):
                if at < start or at + hit[at][0] > start + pages:
                    break
                del areas[at]
        else:
            device = rng.choice(("dev1", "dev3"))
            if device in s.bound and s.bound[device].attached:
                s.bound[device].detach()
            else:
                s.attached(device)
        model = {at + n: page + n for at, (count, page) in areas.items() for n in range(count)}
        for device, idev in s.bound.items():
            for at in range(_WINDOW + 4):
                wanted = model.get(at) if idev.attached else None
                require(s.sees(BASE + at * PAGE_SIZE, device) == wanted, f"step {step}: {device} at page {at}")


CLAUSES: Final[tuple[Clause, ...]] = (
    a_mapping_is_reached_and_nothing_beside_it,
    rights_are_kept,
    an_unmapped_page_is_out_of_reach,
    a_late_table_shows_everything,
    a_copy_is_the_same_page,
    a_bound_device_is_blocked_until_attached,
    replace_shows_the_new_table_only,
    a_failed_replace_leaves_the_old_table,
    a_map_that_the_driver_refuses_leaves_nothing,
    reserved_and_outside_is_refused,
    one_owner_at_a_time,
    random_programs_do_what_a_dict_does,
)


def run_clause(place: str, clause: Clause) -> Result:
    """One clause on a machine of its own, which has to be clean afterwards."""
    subject = Subject(place)
    failure = None
    try:
        clause(subject)
        left = [step.text for step in subject.end() if not step.ok]
        require(not left, f"afterwards not so: {', '.join(left)}")
    except ConformanceError as error:
        failure = str(error)
    return Result(f"iommufd on {place}", clause.__name__, failure)


def check_iommufd(place: str) -> Iterator[Result]:
    """Every clause over a place: ``mock``, or the name of a backend."""
    for clause in CLAUSES:
        yield run_clause(place, clause)

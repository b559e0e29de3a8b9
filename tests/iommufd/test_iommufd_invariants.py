# SPDX-License-Identifier: GPL-2.0-or-later
"""Invariants 43 to 68: they hold over random programs, and each complains when what it says is broken on purpose."""

import random
from contextlib import suppress
from struct import pack

import pytest

from abi.errno import EINVAL, ENOENT, EPERM
from guest_driver.iommufd import attach, device, hw_pagetable, user_copy, vfio_compat
from guest_driver.iommufd.eventq import FaultQueue
from guest_driver.iommufd.io_pagetable import IoPagetable
from guest_driver.iommufd.iova_ranges import ReservedRanges
from guest_driver.iommufd.objects import ObjectTable
from guest_driver.iommufd.pages import IoptArea, IoptPages
from guest_driver.iommufd.release import as_released, release
from guest_driver.linux.iommu import IOMMU_RESV_MSI, IOMMU_RESV_SW_MSI, IommuResvRegion
from guest_driver.linux.mock_domain import DATA_TYPE, INVALIDATE_TYPE, MockIommu
from testbed.invariants_iommufd import INVARIANTS, check
from testbed.invariants_iommufd.watch import BUFFER, DATA, SCRATCH, Watch

BASE = 0x200_0000
FIXED = 7


def watch(of=None):
    made = Watch(check, of)
    for number, name in enumerate(("dev1", "dev2", "dev3")):
        made.machine.regions[made.devices[name].name] = [
            IommuResvRegion(0x800_0000 + (number << 12), 4096, 0, IOMMU_RESV_MSI)
        ]
    doorbell = IommuResvRegion(0x900_0000, 0x1000, 0, IOMMU_RESV_SW_MSI)
    made.machine.regions[made.devices["dev4"].name] = [doorbell]
    return made


def session(w):
    """Every kind of operation once, in an order that makes sense; stops nowhere, whatever is answered."""
    a, b = (w.call("IOAS_ALLOC")[1].get("out_ioas_id", 0) for _ in range(2))
    for name in ("dev1", "dev2", "dev3", "dev4"):
        w.bind(name)
    ids = {name: idev.id for name, idev in w.bound.items()}

    def table(name, pt, **fields):
        return w.call("HWPT_ALLOC", dev_id=ids[name], pt_id=pt, **fields)[1].get("out_hwpt_id", 0)

    w.call("VFIO_IOAS", op=1, ioas_id=a)
    cc, plain, other = table("dev1", a), table("dev3", a), table("dev1", b)
    again = table("dev2", a)
    w.map(a, BASE, 0, 3 * 4096)
    w.map(a, BASE + 0x10000, 4)
    w.map(a, BASE, 9)
    w.map(a, BASE + 0x20000, 4000)
    w.call("IOAS_COPY", flags=FIXED, dst_ioas_id=b, src_ioas_id=a, length=4096, dst_iova=BASE, src_iova=BASE + 4096)
    w.attach("dev1", cc)
    w.attach("dev2", other)
    w.attach("dev2", cc)
    w.attach("dev3", cc)
    w.attach("dev3", plain)
    w.map(a, 0x800_0000, 6)
    w.machine.refuse[w.ctx.objects.get(again, hw_pagetable.Hwpt).domain, w.devices["dev2"].name] = EPERM
    w.replace("dev1", again)
    w.machine.refuse.clear()
    w.replace("dev1", other)
    w.detach("dev3")
    w.replace("dev3", cc)
    w.attach("dev3", a)
    w.attach("dev3", 999)
    w.map(b, 0x800_2000, 7)
    w.replace("dev3", b)
    w.detach("dev3")
    w.attach("dev3", b)
    w.call("DESTROY", id=cc)
    w.call("DESTROY", id=other)
    w.call("DESTROY", id=999)
    w.call("IOAS_UNMAP", ioas_id=a, iova=BASE + 4096, length=4096)
    w.call("IOAS_UNMAP", ioas_id=b, iova=0x800_2000, length=4096)
    w.call("IOAS_IOVA_RANGES", ioas_id=a, num_iovas=16, allowed_iovas=DATA)
    w.mm.write(DATA, pack("<QQ", BASE, BASE + 0xFFFFF))
    w.call("IOAS_ALLOW_IOVAS", ioas_id=a, num_iovas=1, allowed_iovas=DATA)
    w.mm.write(DATA, pack("<QQ", 0, 0xFFFFF))
    w.call("IOAS_ALLOW_IOVAS", ioas_id=a, num_iovas=1, allowed_iovas=DATA)
    w.call("IOAS_MAP", flags=3, ioas_id=a, user_va=BUFFER + 0x8000, length=8192)
    w.attach("dev4", plain)
    w.detach("dev4")
    # A nested table with a page request queue, attached before its parent.
    parent = table("dev4", a, flags=1)
    queue = w.call("FAULT_QUEUE_ALLOC")[1].get("out_fault_id", 0)
    w.mm.write(DATA, pack("<I", 7))
    nested = {"data_type": DATA_TYPE, "data_len": 4, "data_uptr": DATA}
    child = table("dev4", parent, flags=4, fault_id=queue, **nested)
    w.attach("dev4", child)
    w.mm.write(DATA, b"".join(pack("<II", 0, word) for word in (1, 2, 9, 3)))
    entries = {"data_type": INVALIDATE_TYPE, "entry_len": 8, "entry_num": 4, "data_uptr": DATA}
    w.call("HWPT_INVALIDATE", hwpt_id=child, fresh=1, **entries)
    w.request_page("dev4", 1)
    w.request_page("dev4", 2)
    fd = next((at for at, file in w.files.files.items() if isinstance(file, FaultQueue)), None)
    if fd is not None:
        file = w.files.get(fd)
        w.do("read", lambda: file.read(w.mm, DATA, 40), {})
        cookie = (w.mm.read(DATA, 40) or bytes(40))[36:]
        w.mm.write(DATA + 64, cookie + bytes(4))
        w.do("answer", lambda: file.write(w.mm, DATA + 64, 8), {})
    w.replace("dev4", parent)
    w.detach("dev4")
    # Dirty pages.
    tracked = table("dev4", a, flags=2)
    w.attach("dev4", tracked)
    w.call("HWPT_SET_DIRTY_TRACKING", hwpt_id=tracked, flags=1)
    w.write_by("dev4", BASE + 4096)
    w.write_by("dev4", BASE + 0x10000)
    bitmap = {"hwpt_id": tracked, "iova": BASE, "length": 3 * 4096, "page_size": 4096, "data": DATA}
    for flags in (1, 1, 0, 0):
        w.mm.write(DATA, bytes(64))
        w.call("HWPT_GET_DIRTY_BITMAP", flags=flags, **bitmap)
    w.detach("dev4")
    # An access, and allocations that fail.
    w.pin(a, BASE, 8192)
    w.pin(a, BASE + 0x10000, 4096)
    w.call("IOAS_UNMAP", ioas_id=a, iova=BASE + 0x10000, length=4096)
    more = {"flags": FIXED, "ioas_id": a, "user_va": BUFFER + 0xC000, "length": 8192, "iova": BASE + 0x30000}
    w.fail_nth("map", lambda: w.ctx.call(w.process, "IOAS_MAP", SCRATCH, **more)[0])
    w.fail_nth("attach", lambda: w.bound["dev4"].attach(a)[0])
    w.call("IOAS_UNMAP", ioas_id=a, iova=0, length=(1 << 64) - 1)
    w.close()
    return w


@pytest.mark.parametrize("name", ["6.12", "6.14", "7.0"])
def test_they_hold_over_a_session(name):
    w = session(watch(release(name)))
    assert w.found == {} and w.steps > 60


def program(w, seed):
    """Random operations with arguments that often make sense."""
    rng = random.Random(seed)
    ioases = [w.call("IOAS_ALLOC")[1]["out_ioas_id"] for _ in range(2)]
    hwpts = []
    for name in w.devices:
        w.bind(name)
    for _ in range(70):
        name, ioas = rng.choice(list(w.devices)), rng.choice(ioases)
        targets = [*ioases, *hwpts, 999]
        iova = BASE + rng.randrange(24) * 2048
        kind = rng.choice(
            ("table", "attach", "replace", "detach", "map", "map", "copy", "unmap", "destroy", "nested", "fail")
        )
        if kind == "table":
            ret, out = w.call("HWPT_ALLOC", dev_id=w.bound[name].id, pt_id=ioas, flags=rng.choice((0, 0, 1, 2, 8)))
            hwpts += [out["out_hwpt_id"]] if not ret else []
        elif kind == "nested":
            w.mm.write(DATA, pack("<I", 7))
            fields = {"data_type": DATA_TYPE, "data_len": 4, "data_uptr": DATA}
            ret, out = w.call("HWPT_ALLOC", dev_id=w.bound[name].id, pt_id=rng.choice(targets), **fields)
            hwpts += [out["out_hwpt_id"]] if not ret else []
        elif kind in ("attach", "replace"):
            pasid = rng.choice((0, 0, 0, 5)) if name == "dev4" else 0
            getattr(w, kind)(name, rng.choice(targets), pasid)
        elif kind == "detach" and w.bound[name].attachments():
            w.detach(name, rng.choice(w.bound[name].attachments()))
        elif kind == "map":
            w.map(ioas, iova, rng.randrange(40), rng.choice((2048, 4096, 12288)))
        elif kind == "copy":
            fields = {"dst_ioas_id": rng.choice(ioases), "src_ioas_id": ioas, "length": rng.choice((2048, 4096))}
            w.call("IOAS_COPY", flags=FIXED, dst_iova=BASE + rng.randrange(24) * 2048, src_iova=iova, **fields)
        elif kind == "unmap":
            w.call("IOAS_UNMAP", ioas_id=ioas, iova=iova, length=rng.choice((2048, 4096, 20480)))
        elif kind == "destroy":
            w.call("DESTROY", id=rng.choice(targets))
            hwpts = [number for number in hwpts if number in w.view().hwpts]
        elif kind == "fail":
            fields = {"flags": FIXED, "ioas_id": ioas, "user_va": BUFFER, "length": 4096, "iova": iova}
            space = w.view().ioases.get(ioas)
            if space is None or space.areas:
                continue
            w.fail_nth("map", lambda fields=fields: w.ctx.call(w.process, "IOAS_MAP", SCRATCH, **fields)[0])
    w.close()


@pytest.mark.parametrize("seed", range(8))
def test_they_hold_over_random_programs(seed):
    w = watch()
    program(w, seed)
    assert w.found == {}


# ------------------------------------------------------------------------------------- each broken on purpose


def patched(owner, name, make):
    """Replace a function by ``make(original)``."""

    def apply(monkeypatch):
        monkeypatch.setattr(owner, name, make(getattr(owner, name)))

    return apply


def forget_users(original):
    def replace(idev, hwpt, pasid):
        ret, old = original(idev, hwpt, pasid)
        hwpt.users -= not ret and old is not None
        return ret, old

    return replace


def forget_the_second(original):
    """As first posted: only the caller's own regions move."""

    def enforce(iopt, idev):
        return 0 if idev.igroup.devices and idev.igroup.devices[-1] is idev and idev.attached else original(iopt, idev)

    return enforce


def upgrade(original):
    def hwpt_attach(hwpt, idev, pasid=0):
        ret = original(hwpt, idev, pasid)
        if idev.enforce_cache_coherency and not hwpt.paging.enforce_cache_coherency:
            hwpt.paging.enforce_cache_coherency = True
        return ret

    return hwpt_attach


def late_enforce(original):
    def show(self):
        ret = original(self)
        self.enforce_cache_coherency = False
        self.enforce_coherency()
        return ret

    return show


def wrong_count(original):
    def cache_invalidate_user(self, domain, kind, entries):
        ret, done = original(self, domain, kind, entries)
        return ret, 0 if ret else done

    return cache_invalidate_user


def keep_areas(original):
    def unmap(self, start, last):
        ret, removed = original(self, start, last)
        return ret, removed + 4096 if removed else removed

    return unmap


def leave_area(original):
    def _drop(self, areas):
        for area in areas:
            if not area.runs and self.domains:
                return None
        return original(self, areas)

    return _drop


def second_table(original):
    def do_attach(idev, hwpt, pasid):
        return (0, None) if idev.igroup.hwpt not in (None, hwpt) else original(idev, hwpt, pasid)

    return do_attach


def count_down(original):
    """A reference is given back, and nobody looks whether it was the last."""
    return lambda hwpt: setattr(hwpt, "users", hwpt.users - 1)


def one_run_less(original):
    return lambda self, *span: original(self, *span)[:-1] or original(self, *span)


def half_unmaps(original):
    return lambda self, domain, runs: original(self, domain, [(at, size - 2048) for at, size in runs if size > 2048])


def allow_anything(original):
    return lambda self, ranges: setattr(self, "allowed", ranges) or -EINVAL


def leave_a_reservation(original):
    def enforce(iopt, idev):
        ret = original(iopt, idev)
        if ret:
            iopt.reserved.add(0x100, 0x1FF, object())
        return ret

    return enforce


def always_clear(original):
    return lambda self, domain, iova, size, keep: original(self, domain, iova, size, False)


def charge_failures(original):
    def get(self, first, last):
        ret = original(self, first, last)
        if ret:
            self._charge(1)
        return ret

    return get


BREAKS = {
    43: patched(device, "do_replace", forget_users),
    44: patched(attach, "iommu_replace_group_handle", lambda original: lambda *args: 0),
    45: patched(attach, "enforce_dev_resv_regions", forget_the_second),
    46: "replace-drops-reservations",
    47: patched(device, "do_attach", second_table),
    48: patched(device, "hwpt_put", count_down),
    49: patched(attach, "hwpt_attach", upgrade),
    50: patched(hw_pagetable.HwptPaging, "show", late_enforce),
    51: patched(vfio_compat, "_check_extension", lambda original: lambda ctx, extension: 0),
    52: patched(attach, "_setup_msi", lambda original: lambda igroup, paging: 0),
    53: patched(IoptArea, "_runs", one_run_less),
    54: patched(IoptPages, "put", lambda original: lambda self, first, last: None),
    55: patched(IoptArea, "_unmap", half_unmaps),
    56: patched(IoPagetable, "unmap", keep_areas),
    57: patched(IoPagetable, "_drop", leave_area),
    58: patched(ReservedRanges, "holes", lambda original: lambda self: original(self)[:-1]),
    59: patched(IoPagetable, "set_allowed", allow_anything),
    60: patched(attach, "enforce_dev_resv_regions", leave_a_reservation),
    61: patched(IoPagetable, "recalculate_alignment", lambda original: lambda self, domains=None: 0),
    62: patched(user_copy, "E2BIG", lambda original: EINVAL),
    63: patched(ObjectTable, "remove", lambda original: lambda self, number: original(self, number) and -ENOENT),
    64: patched(IoPagetable, "_evict", lambda original: lambda self, area: True),
    65: patched(MockIommu, "cache_invalidate_user", wrong_count),
    66: patched(MockIommu, "read_and_clear_dirty", always_clear),
    67: patched(FaultQueue, "drop", lambda original: lambda self, handle: None),
    68: patched(IoptPages, "get", charge_failures),
}


def test_each_invariant_has_a_break():
    assert sorted(INVARIANTS, key=int) == [str(number) for number in range(43, 69)] == sorted(map(str, BREAKS), key=int)


@pytest.mark.parametrize("number", BREAKS)
def test_each_complains_when_it_is_broken(number, monkeypatch):
    broken = BREAKS[number]
    of = release("7.0", frozenset({broken})) if isinstance(broken, str) else None
    if not isinstance(broken, str):
        broken(monkeypatch)
    w = watch(of)
    # What is broken may break more later; what counts is what was seen first.
    with suppress(KeyError, AssertionError, AttributeError, TypeError, ValueError, IndexError):
        session(w)
    assert str(number) in w.found, w.found


def test_one_list_has_all_numbers():
    from typer.testing import CliRunner

    from pviommu.cli import app

    listed = CliRunner().invoke(app, ["invariants"]).stdout
    numbers = [int(line.split()[0]) for line in listed.splitlines() if line.split()[0].isdigit()]
    assert numbers == list(range(1, 74))


def test_the_faults_of_released_kernels_are_seen():
    assert "46" in session(watch(as_released("6.12"))).found

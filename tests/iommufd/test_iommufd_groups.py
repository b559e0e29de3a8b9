# SPDX-License-Identifier: GPL-2.0-or-later
"""Binding, and attach, replace and detach in groups of several devices."""

from struct import pack

import pytest
from iommufd_rig import BUFFER, MIB, SCRATCH, Rig

from abi.errno import EADDRINUSE, EBUSY, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP, EPERM
from guest_driver.defects.iommufd import REPLACE_DROPS_RESERVATIONS, REPLACE_UNATTACHED
from guest_driver.iommufd.context import iommufd_open
from guest_driver.iommufd.device import iommufd_device_bind, iommufd_device_unbind
from guest_driver.linux.iommu import IOMMU_RESV_DIRECT, IOMMU_RESV_MSI, IOMMU_RESV_SW_MSI, IommuResvRegion
from guest_driver.linux.iommu_owner import iommu_device_use_default_domain
from guest_driver.linux.mock_domain import DATA_TYPE, INVALIDATE_TYPE

KERNELS = ["6.6", "6.12", "6.14", "7.0"]


def resv(page, kind=IOMMU_RESV_MSI):
    return IommuResvRegion(page << 12, 4096, 0, kind)


def three(name="7.0", defects=None):
    """Three devices of one group, each with a reserved page of its own, bound; two tables over two IOASes."""
    rig = Rig((3,), name=name, defects=defects)
    for number, dev in enumerate(rig.devs[0]):
        rig.mock.regions[dev.name] = [resv(0x8000 + number)]
    idevs = [rig.bind(dev) for dev in rig.devs[0]]
    ioas1, ioas2 = rig.ioas(), rig.ioas()
    rig.tables = rig.hwpt(idevs[0], ioas1), rig.hwpt(idevs[0], ioas2)
    return rig, idevs, ioas1, ioas2, *rig.tables


def users(rig, number):
    return rig.obj(number).users - 1


def owners(rig, ioas):
    return [owner for owner in rig.obj(ioas).iopt.reserved.owners() if hasattr(owner, "igroup")]


def state(rig, ioases, hwpts):
    group = rig.devs[0][0].iommu_group
    return (
        group.domain,
        [users(rig, number) for number in hwpts],
        [owners(rig, ioas) for ioas in ioases],
        dict(rig.mock.where.items()),
        next(iter(rig.ctx.groups.values())).hwpt,
    )


@pytest.mark.parametrize("name", KERNELS)
def test_scenario_1_all_three_move_with_the_first_replace(name):
    rig, (d1, d2, d3), ioas1, ioas2, h1, h2 = three(name)
    for idev in (d1, d2, d3):
        assert idev.attach(h1) == (0, h1)
    assert d1.replace(h2) == (0, h2)
    assert (users(rig, h1), users(rig, h2)) == (0, 3)
    assert owners(rig, ioas1) == [] and owners(rig, ioas2) == [d1, d2, d3]
    assert {rig.mock.where[dev.name] for dev in rig.devs[0]} == {rig.obj(h2).domain}
    before = len(rig.mock.calls)
    assert d2.replace(h2) == (0, h2) and d3.replace(h2) == (0, h2)
    assert len(rig.mock.calls) == before
    assert rig.destroy(h1) == 0 and rig.destroy(h2) == -EBUSY
    rig.finish()


def test_scenario_2_a_detached_device_moves_but_counts_for_nothing():
    rig, (d1, d2, d3), _, ioas2, h1, h2 = three()
    for idev in (d1, d2, d3):
        idev.attach(h1)
    d3.detach()
    assert d1.replace(h2) == (0, h2)
    assert users(rig, h2) == 2 and owners(rig, ioas2) == [d1, d2]
    assert rig.mock.where[d3.dev.name] is rig.obj(h2).domain
    assert d3.attach(h1) == (-EINVAL, 0)
    assert d3.replace(h1) == (-EINVAL, 0)
    assert d3.attach(h2) == (0, h2)
    assert users(rig, h2) == 3 and d3 in owners(rig, ioas2)
    rig.finish()


def test_scenario_3_one_device_left():
    rig, (d1, d2, d3), ioas1, ioas2, h1, h2 = three()
    for idev in (d1, d2, d3):
        idev.attach(h1)
    d3.detach()
    d2.detach()
    assert d1.replace(h2) == (0, h2)
    assert (users(rig, h1), users(rig, h2)) == (0, 1)
    assert owners(rig, ioas1) == [] and owners(rig, ioas2) == [d1]
    d1.detach()
    assert {rig.mock.where[dev.name] for dev in rig.devs[0]} == {rig.mock.blocked}
    rig.finish()


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_replace_that_fails_at_any_device_changes_nothing(position):
    rig, idevs, ioas1, ioas2, h1, h2 = three()
    for idev in idevs:
        idev.attach(h1)
    before = state(rig, (ioas1, ioas2), (h1, h2))
    rig.mock.refuse[rig.obj(h2).domain, rig.devs[0][position].name] = ENOMEM
    assert idevs[0].replace(h2) == (-ENOMEM, 0)
    assert state(rig, (ioas1, ioas2), (h1, h2)) == before
    rig.mock.refuse.clear()
    assert idevs[0].replace(h2) == (0, h2)
    rig.finish()


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_replace_whose_reservation_fails_at_any_device_changes_nothing(position):
    rig, idevs, ioas1, ioas2, h1, h2 = three()
    rig.buffer()
    for idev in idevs:
        idev.attach(h1)
    assert rig.map(ioas2, 0x8000000 + position * 4096) > 0
    before = state(rig, (ioas1, ioas2), (h1, h2))
    assert idevs[0].replace(h2) == (-EADDRINUSE, 0)
    assert state(rig, (ioas1, ioas2), (h1, h2)) == before
    rig.finish()


@pytest.mark.parametrize("defect", [False, True])
def test_reservations_survive_a_failed_replace_within_one_ioas_unless_as_released(defect):
    defects = frozenset({REPLACE_DROPS_RESERVATIONS}) if defect else None
    rig, idevs, ioas1, _, h1, _ = three("6.12", defects)
    rig.buffer()
    for idev in idevs:
        idev.attach(h1)
    other = rig.hwpt(idevs[0], ioas1)
    rig.mock.refuse[rig.obj(other).domain, rig.devs[0][1].name] = ENOMEM
    assert idevs[0].replace(other) == (-ENOMEM, 0)
    assert owners(rig, ioas1) == ([] if defect else idevs)
    assert rig.map(ioas1, 0x8000000) == (0x8000000 if defect else -EINVAL)
    rig.finish()


@pytest.mark.parametrize("defect", [False, True])
def test_replace_by_a_device_that_is_not_attached(defect):
    defects = frozenset({REPLACE_UNATTACHED}) if defect else None
    rig, (d1, d2, _), _, ioas2, h1, h2 = three("6.14", defects)
    d1.attach(h1)
    assert d2.replace(h2) == ((0, h2) if defect else (-EINVAL, 0))
    if defect:
        assert owners(rig, ioas2) == [d1]
    rig.finish()


def test_replace_without_an_attach_is_einval():
    rig, (d1, _, _), _, _, _h1, h2 = three()
    assert d1.replace(h2) == (-EINVAL, 0)
    assert d1.attach(999) == (-ENOENT, 0)
    assert d1.attach(d1.id) == (-EINVAL, 0)
    rig.finish()


def test_second_attach_of_a_device_is_ebusy_from_6_15():
    rig, (d1, _, _), _, _, h1, h2 = three("7.0")
    d1.attach(h1)
    assert d1.attach(h1) == (-EBUSY, 0)
    assert d1.attach(h2) == (-EBUSY, 0)
    rig.finish()
    rig, (d1, _, _), _, _, h1, _ = three("6.14")
    d1.attach(h1)
    assert d1.attach(h1) == (0, h1)
    assert len(rig.warnings) == 1


def test_attach_over_a_used_address_leaves_the_device_out():
    rig, (d1, _, _), ioas1, _, h1, _ = three()
    rig.buffer()
    rig.map(ioas1, 0x8000000)
    assert d1.attach(h1) == (-EADDRINUSE, 0)
    assert owners(rig, ioas1) == [] and users(rig, h1) == 0
    rig.finish()


def test_automatic_tables_are_shared_and_go_with_their_last_device():
    rig = Rig((2, 1))
    ioas, other = rig.ioas(), rig.ioas()
    a, b, c = (rig.bind(dev) for dev in (*rig.devs[0], *rig.devs[1]))
    _, hwpt = a.attach(ioas)
    assert b.attach(ioas) == (0, hwpt) and c.attach(ioas) == (0, hwpt)
    assert users(rig, hwpt) == 3 and rig.destroy(ioas) == -EBUSY
    assert b.attach(other) == (-EBUSY, 0)
    ret, second = a.replace(other)
    assert ret == 0 and users(rig, hwpt) == 1 and users(rig, second) == 2
    c.detach()
    assert rig.obj(hwpt) is None
    assert rig.destroy(ioas) == 0
    rig.finish()


def test_manual_table_stays_without_devices():
    rig, (d1, _, _), _, _, h1, _ = three()
    d1.attach(h1)
    d1.detach()
    assert rig.obj(h1) is not None and rig.destroy(h1) == 0
    rig.finish()


def test_bind_errors():
    rig = Rig((2, 1))
    first, second = rig.devs[0]
    rig.mock.incoherent.add(first.name)
    assert iommufd_device_bind(rig.ctx, first) == -EINVAL
    rig.mock.incoherent.clear()
    rig.ctx.isolated_msi = lambda group: False
    assert iommufd_device_bind(rig.ctx, first) == -EPERM
    rig.ctx.isolated_msi = lambda group: True
    assert iommu_device_use_default_domain(second) == 0
    assert iommufd_device_bind(rig.ctx, first) == -EPERM
    second.iommu_group.owner_cnt = 0
    idev = rig.bind(first)
    assert rig.destroy(idev.id) == -EBUSY
    assert iommu_device_use_default_domain(second) == -EBUSY
    assert iommufd_device_bind(iommufd_open(rig.kernel), second) == -EPERM
    rig.bind(second)
    assert len(rig.ctx.groups) == 1
    iommufd_device_unbind(idev)
    rig.finish()


def test_a_device_that_firmware_needs_mapped_cannot_be_bound():
    rig = Rig((1,))
    dev = rig.devs[0][0]
    dev.iommu.require_direct = True
    assert iommufd_device_bind(rig.ctx, dev) == -EINVAL
    assert dev.iommu_group.domain is rig.mock.identity
    assert resv(1, IOMMU_RESV_DIRECT).last == 0x1FFF


def nested(rig, idev, parent, **fields):
    rig.mm.write(SCRATCH + 4096, (7).to_bytes(8, "little"))
    data = {"data_type": DATA_TYPE, "data_len": 8, "data_uptr": SCRATCH + 4096} | fields
    return rig.hwpt(idev, parent, **data)


def test_hwpt_alloc_errors_and_nesting():
    rig = Rig((1,))
    ioas = rig.ioas()
    idev = rig.bind(rig.devs[0][0])
    assert rig.hwpt(idev, ioas, data_type=1) == -EINVAL
    assert rig.hwpt(idev, ioas, data_len=1) == -EINVAL
    assert rig.ret("HWPT_ALLOC", dev_id=ioas, pt_id=ioas) == -ENOENT
    assert rig.hwpt(idev, 99) == -EINVAL
    assert rig.hwpt(idev, idev.id) == -EINVAL
    assert rig.hwpt(idev, ioas, flags=1 << 10) == -EOPNOTSUPP
    assert rig.hwpt(idev, ioas, flags=5) == -EOPNOTSUPP
    assert rig.hwpt(idev, ioas, flags=4) == -ENOENT
    plain, parent = rig.hwpt(idev, ioas), rig.hwpt(idev, ioas, flags=1)
    assert nested(rig, idev, plain) == -EINVAL
    assert nested(rig, idev, parent, flags=1) == -EOPNOTSUPP
    assert nested(rig, idev, parent, data_type=3) == -EOPNOTSUPP
    child = nested(rig, idev, parent)
    assert nested(rig, idev, child) == -EINVAL
    assert rig.destroy(parent) == -EBUSY
    assert idev.attach(child) == (0, child)
    assert rig.destroy(child) == -EBUSY
    words = rig.obj(child).domain.iotlb
    rig.mm.write(SCRATCH + 4096, b"".join(pack("<II", 0, n) for n in (1, 3, 4, 2)))
    inv = {"data_uptr": SCRATCH + 4096, "entry_len": 8, "data_type": INVALIDATE_TYPE}
    ret, out = rig.call("HWPT_INVALIDATE", hwpt_id=child, entry_num=4, **inv)
    assert (ret, out["entry_num"]) == (-EINVAL, 2) and words == [7, 0, 7, 0]
    assert rig.call("HWPT_INVALIDATE", hwpt_id=child, entry_num=2, **inv)[1]["entry_num"] == 2
    assert rig.ret("HWPT_INVALIDATE", hwpt_id=parent, **inv) == -EINVAL
    assert rig.ret("HWPT_INVALIDATE", hwpt_id=child, entry_num=1) == -EINVAL
    assert rig.ret("HWPT_INVALIDATE", hwpt_id=child, **(inv | {"data_type": DATA_TYPE})) == -EINVAL
    rig.finish()


def test_doorbell_page_is_set_up_on_the_parent_even_if_the_nested_table_comes_first():
    rig = Rig((1,))
    dev = rig.devs[0][0]
    rig.mock.regions[dev.name] = [resv(0x8000, IOMMU_RESV_SW_MSI)]
    ioas = rig.ioas()
    idev = rig.bind(dev)
    parent = rig.hwpt(idev, ioas, flags=1)
    child = nested(rig, idev, parent)
    assert idev.attach(child) == (0, child)
    cookie = rig.obj(parent).domain.cookie
    assert cookie is not None and cookie.msi_iova == 0x8000000
    assert rig.map(ioas, 0x8000000) == -EINVAL
    assert idev.replace(parent) == (0, parent)
    assert rig.obj(parent).domain.cookie is cookie
    rig.finish()


def test_two_doorbell_regions_are_a_driver_bug():
    rig = Rig((1,))
    dev = rig.devs[0][0]
    rig.mock.regions[dev.name] = [resv(0x8000, IOMMU_RESV_SW_MSI), resv(0x9000)]
    idev = rig.bind(dev)
    assert idev.attach(rig.ioas()) == (-EINVAL, 0)
    assert len(rig.warnings) == 1


def test_hardware_information():
    rig = Rig((1,))
    idev = rig.bind(rig.devs[0][0])
    where = SCRATCH + 4096
    rig.mm.write(where, b"\xaa" * 32)
    ret, out = rig.call("GET_HW_INFO", dev_id=idev.id, data_len=16, data_uptr=where)
    assert ret == 0 and out["out_data_type"] == 0xFEEDBEEF and out["data_len"] == 8 and out["out_capabilities"] == 1
    assert rig.mm.read(where, 17) == bytes(4) + (0xDEADBEEF).to_bytes(4, "little") + bytes(8) + b"\xaa"
    assert rig.ret("GET_HW_INFO", dev_id=99) == -ENOENT
    rig.finish()


def test_dirty_pages_are_reported_once():
    rig = Rig((1,))
    rig.buffer()
    dev = rig.devs[0][0]
    ioas = rig.ioas()
    idev = rig.bind(dev)
    plain, hwpt = rig.hwpt(idev, ioas), rig.hwpt(idev, ioas, flags=2)
    assert rig.ret("HWPT_SET_DIRTY_TRACKING", hwpt_id=plain, flags=1) == -EOPNOTSUPP
    assert idev.attach(hwpt)[0] == 0
    rig.map(ioas, 16 * MIB, length=8 * 4096)
    assert rig.ret("HWPT_SET_DIRTY_TRACKING", hwpt_id=hwpt, flags=1) == 0
    rig.mock.dma(dev, 16 * MIB + 2048, write=True)
    rig.mock.dma(dev, 16 * MIB + 6 * 2048, write=True)
    where = SCRATCH + 4096
    get = {"hwpt_id": hwpt, "iova": 16 * MIB, "length": 8 * 4096, "page_size": 2048, "data": where}
    for flags, expected in ((1, 0x42), (1, 0x42), (0, 0x42), (0, 0)):
        rig.mm.write(where, bytes(8))
        assert rig.ret("HWPT_GET_DIRTY_BITMAP", flags=flags, **get) == 0
        assert rig.mm.read(where, 2) == expected.to_bytes(2, "little")
    assert rig.ret("HWPT_GET_DIRTY_BITMAP", **(get | {"page_size": 0})) == -EINVAL
    assert rig.ret("HWPT_GET_DIRTY_BITMAP", **(get | {"length": 9 * 4096})) == -EINVAL
    rig.finish()


def test_a_hole_in_the_dirty_range_is_silent_as_released():
    for defects, ret in ((frozenset(), -EINVAL), (frozenset({"dirty-walk-errors-dropped"}), 0)):
        rig = Rig((1,), defects=defects)
        idev = rig.bind(rig.devs[0][0])
        hwpt = rig.hwpt(idev, rig.ioas(), flags=2)
        get = {"hwpt_id": hwpt, "iova": 16 * MIB, "length": 4096, "page_size": 4096, "data": SCRATCH + 4096}
        assert rig.ret("HWPT_GET_DIRTY_BITMAP", **get) == ret
        rig.finish()


def test_a_lost_map_error_leaves_a_hole_in_the_table():
    for defects, ret in ((frozenset(), -ENOMEM), (frozenset({"map-errno-lost"}), 16 * MIB)):
        rig = Rig((1,), defects=defects)
        rig.buffer()
        ioas = rig.ioas()
        rig.bind(rig.devs[0][0]).attach(ioas)
        rig.mock.page_budget = 1
        assert rig.map(ioas, 16 * MIB, va=BUFFER) == ret
        assert rig.mock.dma(rig.devs[0][0], 16 * MIB) == "not present"


def test_coherency_is_settled_when_the_table_is_made():
    rig = Rig((1, 1))
    rig.buffer()
    weak, strong = rig.devs[0][0], rig.devs[1][0]
    rig.mock.no_snoop_control.add(weak.name)
    ioas = rig.ioas()
    iw, istrong = rig.bind(weak), rig.bind(strong)
    cc, plain = rig.hwpt(istrong, ioas), rig.hwpt(iw, ioas)
    assert iw.attach(cc) == (-EINVAL, 0)
    assert istrong.attach(plain) == (0, plain) and not rig.obj(plain).enforce_cache_coherency
    assert all(call[2] == 0 for call in rig.mock.calls if call[0] == "enforce")
    istrong.detach()
    ret, auto = istrong.attach(ioas)
    ret2, other = iw.attach(ioas)
    assert ret == ret2 == 0 and other != auto
    rig.map(ioas, 16 * MIB)
    assert rig.mock.dma(weak, 16 * MIB) == "ok" and rig.mock.dma(strong, 16 * MIB, no_snoop=True) == "ok"
    rig.finish()


@pytest.mark.parametrize("release", KERNELS)
def test_every_allocation_fails_once_without_a_leak(release):
    attempt = 0
    while True:
        rig = Rig((2,), name=release)
        rig.buffer()
        countdown = [attempt]

        def fault(purpose, countdown=countdown):
            countdown[0] -= 1
            return countdown[0] == -1

        rig.kernel.slab_fault = fault
        ok = life(rig)
        rig.kernel.slab_fault = None
        assert not rig.mm.pins or ok
        if not ok:
            assert life(rig)
        rig.finish()
        if ok and countdown[0] >= 0:
            assert attempt > 10
            return
        attempt += 1


def life(rig):
    """A session that stops at its first error; whether it came to its end."""
    ret, out = rig.call("IOAS_ALLOC")
    if ret:
        return False
    first = out["out_ioas_id"]
    ret, out = rig.call("IOAS_ALLOC")
    if ret:
        return False
    second = out["out_ioas_id"]
    if rig.map(first, 16 * MIB) < 0:
        return False
    idevs = []
    for dev in rig.devs[0]:
        idev = iommufd_device_bind(rig.ctx, dev)
        if isinstance(idev, int):
            return undo(idevs)
        idevs.append(idev)
        if idev.attach(first)[0]:
            return undo(idevs)
    copy = {"flags": 7, "src_ioas_id": first, "dst_ioas_id": second, "dst_iova": 16 * MIB, "src_iova": 16 * MIB}
    if rig.ret("IOAS_COPY", length=4096, **copy) or idevs[0].replace(second)[0]:
        return undo(idevs)
    undo(idevs)
    return rig.unmap(second, 16 * MIB, 4096) == 4096


def undo(idevs):
    for idev in idevs:
        if idev.attached:
            idev.detach()
        iommufd_device_unbind(idev)
    return False

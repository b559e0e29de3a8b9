# SPDX-License-Identifier: GPL-2.0-or-later
"""VFIO type 1 on /dev/iommu, and kernel drivers' accesses."""

import struct

import pytest
from iommufd_rig import BUFFER, MIB, SCRATCH, Rig

from abi.errno import EADDRINUSE, EBUSY, EDEADLOCK, EINVAL, ENODEV, ENOENT, ENOTTY, EPERM
from guest_driver.iommufd import vfio_compat as vfio
from guest_driver.iommufd.access import AccessOps, iommufd_access_create, iommufd_access_destroy

U64 = (1 << 64) - 1


class Container(Rig):
    def vfio(self, nr, arg=SCRATCH):
        return self.ctx.ioctl(self.process, 0x3B00 | nr, arg)

    def vmap(self, iova, length=4096, va=BUFFER, flags=3, argsz=32):
        self.mm.write(SCRATCH, struct.pack("<IIQQQ", argsz, flags, va, iova, length))
        return self.vfio(vfio.VFIO_IOMMU_MAP_DMA)

    def vunmap(self, iova, length, flags=0):
        self.mm.write(SCRATCH, struct.pack("<IIQQ", 24, flags, iova, length))
        ret = self.vfio(vfio.VFIO_IOMMU_UNMAP_DMA)
        return ret or struct.unpack("<Q", self.mm.read(SCRATCH + 16, 8))[0]


def container(kind=None, name="7.0", **kw):
    rig = Container((1,), name=name, **kw)
    rig.buffer(64)
    assert vfio.compat_ioas_create(rig.ctx) == 0
    if kind is not None:
        assert rig.vfio(vfio.VFIO_SET_IOMMU, kind) == 0
    return rig


def test_without_an_ioas_there_is_no_container():
    rig = Container()
    assert rig.vfio(vfio.VFIO_GET_API_VERSION) == 0
    assert [rig.vfio(vfio.VFIO_CHECK_EXTENSION, number) for number in range(10)] == [0, 1, 0, 1, -ENODEV, 0, 0, 0, 0, 1]
    assert rig.vfio(vfio.VFIO_SET_IOMMU, 1) == -ENODEV
    assert rig.vfio(vfio.VFIO_SET_IOMMU, 6) == -EINVAL
    assert rig.vmap(0) == -ENODEV and rig.vmap(0, argsz=31) == -EINVAL and rig.vmap(0, flags=4) == -EINVAL
    assert rig.vunmap(0, 4096) == -ENODEV
    rig.mm.write(SCRATCH, struct.pack("<I", 24))
    assert rig.vfio(vfio.VFIO_IOMMU_GET_INFO) == -ENODEV
    assert rig.vfio(117) == -ENOTTY


def test_the_compat_ioas_is_chosen_and_forgotten():
    rig = Container()
    assert rig.ret("VFIO_IOAS", op=0) == -ENODEV
    assert rig.ret("VFIO_IOAS", op=1, ioas_id=5) == -ENOENT
    ioas = rig.ioas()
    assert rig.ret("VFIO_IOAS", op=1, ioas_id=ioas) == 0
    assert rig.call("VFIO_IOAS", op=0)[1]["ioas_id"] == ioas
    assert rig.ret("VFIO_IOAS", op=2) == 0 and rig.ret("VFIO_IOAS", op=0) == -ENODEV
    rig.ret("VFIO_IOAS", op=1, ioas_id=ioas)
    assert rig.destroy(ioas) == 0 and rig.ret("VFIO_IOAS", op=0) == -ENODEV


@pytest.mark.parametrize(("kind", "partial"), [(1, 4096), (3, -ENOENT)])
def test_type_1_cuts_where_version_2_refuses(kind, partial):
    rig = container(kind)
    assert rig.bind(rig.devs[0][0]).attach(rig.ctx.vfio_ioas.id)[0] == 0
    assert rig.vmap(16 * MIB, 16 * 4096) == 0
    assert rig.vunmap(16 * MIB + 5 * 4096, 4096) == partial
    if kind == 1:
        assert rig.mock.dma(rig.devs[0][0], 16 * MIB + 4 * 4096) == "ok"
        assert rig.mock.dma(rig.devs[0][0], 16 * MIB + 5 * 4096) == "not present"
        assert set(rig.mm.pins.values()) == {1} and len(rig.mm.pins) == 15
        assert rig.vunmap(16 * MIB + 100, 4096) == -EINVAL
    assert rig.vunmap(0, 0, flags=2) == (15 if kind == 1 else 16) * 4096
    rig.finish()


def test_unmapping_nothing_changed_in_7_0():
    assert container(3, "6.14").vunmap(16 * MIB, 4096) == -ENOENT
    assert container(3, "7.0").vunmap(16 * MIB, 4096) == 0
    rig = container(3)
    assert rig.vunmap(4096, 0, flags=2) == -EINVAL and rig.vunmap(0, 4096, flags=1) == -EINVAL


def test_pages_are_charged_to_the_address_space():
    rig = container(3)
    rig.bind(rig.devs[0][0]).attach(rig.ctx.vfio_ioas.id)
    rig.vmap(16 * MIB, 8192)
    assert (rig.process.locked_vm, rig.mm.pinned_vm) == (0, 2)
    rig.finish()


@pytest.mark.parametrize("argsz", [16, 20, 24, 40, 71, 72, 200])
def test_info_never_writes_past_argsz(argsz):
    rig = container(3)
    rig.bind(rig.devs[0][0]).attach(rig.ctx.vfio_ioas.id)
    rig.mm.write(SCRATCH, b"\xaa" * 300)
    rig.mm.write(SCRATCH, struct.pack("<I", argsz))
    assert rig.vfio(vfio.VFIO_IOMMU_GET_INFO) == 0
    needed, flags, sizes = struct.unpack("<IIQ", rig.mm.read(SCRATCH, 16))
    assert flags == 3 and sizes & 0xFFF == 0 and sizes & 4096
    assert rig.mm.read(SCRATCH + argsz, 300 - argsz) == b"\xaa" * (300 - argsz)
    if argsz < needed:
        return
    at, ids = struct.unpack("<I", rig.mm.read(SCRATCH + 16, 4))[0], []
    while at:
        kind, _, following = struct.unpack("<HHI", rig.mm.read(SCRATCH + at, 8))
        ids.append(kind)
        if kind == 1:
            count, _, start, last = struct.unpack("<IIQQ", rig.mm.read(SCRATCH + at + 8, 24))
            assert (count, start, last) == (1, *rig.mock.aperture)
        at = following
    assert ids == [3, 1]


def test_info_rejects_a_small_struct():
    rig = container(3)
    rig.mm.write(SCRATCH, struct.pack("<I", 15))
    assert rig.vfio(vfio.VFIO_IOMMU_GET_INFO) == -EINVAL


def test_dma_cc_is_the_and_over_all_tables():
    rig = container(3)
    check = lambda: rig.vfio(vfio.VFIO_CHECK_EXTENSION, 4)  # noqa: E731
    assert check() == 1
    idev = rig.bind(rig.devs[0][0])
    rig.hwpt(idev, rig.ctx.vfio_ioas.id)
    assert check() == 1
    idev.enforce_cache_coherency = False
    rig.hwpt(idev, rig.ctx.vfio_ioas.id)
    assert check() == 0
    rig.finish()


# ------------------------------------------------------------------------------------------------- accesses


def test_access_reads_and_writes_across_areas():
    rig = Rig()
    rig.buffer()
    ioas = rig.ioas()
    rig.map(ioas, 0x10000, length=4096)
    rig.map(ioas, 0x11000, va=BUFFER + 8192, length=4096, flags=5)
    access = iommufd_access_create(rig.ctx, AccessOps())
    assert access.rw(0x10000, None, 4) == (-ENOENT, b"")
    assert access.attach(99) == -ENOENT and access.attach(ioas) == 0 and access.attach(ioas) == -EINVAL
    rig.mm.write(BUFFER + 4090, b"abcdef")
    rig.mm.write(BUFFER + 8192, b"ghi")
    assert access.rw(0x10FFA, None, 9) == (0, b"abcdefghi")
    assert access.rw(0x10FFA, b"x", 1) == (0, b"x") and rig.mm.read(BUFFER + 4090, 2) == b"xb"
    assert access.rw(0x10FFF, b"xx", 2) == (-EPERM, b"")
    assert access.rw(0x11FFF, None, 2)[0] == -ENOENT and access.rw(0x10000, None, 0)[0] == -EINVAL
    assert rig.destroy(ioas) == -EBUSY and rig.destroy(access.id) == -EBUSY
    iommufd_access_destroy(access)
    rig.finish()


def test_unmap_waits_for_the_driver_to_let_go():
    rig = Rig()
    rig.buffer()
    ioas = rig.ioas()
    told = []

    def unmap(iova, length):
        told.append((iova, length))
        if len(told) > 2:
            for key in list(access.pins):
                access.unpin_pages(*key)

    assert iommufd_access_create(rig.ctx, AccessOps(needs_pin_pages=True)) == -EINVAL
    access = iommufd_access_create(rig.ctx, AccessOps(True, unmap))
    rig.map(ioas, 0x10000, length=8192)
    assert access.attach(ioas) == 0 and rig.obj(ioas).iopt.iova_alignment == 4096
    ret, pages = access.pin_pages(0x10000, 8192, True)
    assert ret == 0 and pages == [rig.mm.phys(BUFFER), rig.mm.phys(BUFFER + 4096)]
    assert access.pin_pages(0x10000, 3 * 4096, True)[0] == -ENOENT
    rig.mm.munmap(BUFFER, 4096)
    assert rig.unmap(ioas, 0x10000, 8192) == 8192
    assert len(told) == 3 and not rig.mm.pins
    iommufd_access_destroy(access)
    rig.finish()


def test_a_driver_that_never_lets_go_blocks_unmap():
    rig = Rig()
    rig.buffer()
    ioas = rig.ioas()
    access = iommufd_access_create(rig.ctx, AccessOps(True, lambda iova, length: None))
    rig.map(ioas, 0x10000)
    access.attach(ioas)
    access.pin_pages(0x10000, 4096, False)
    assert rig.unmap(ioas, 0x10000, 4096) == -EDEADLOCK
    access.unpin_pages(0x10000, 4096)
    assert access.pin_pages(0x10000, 4096, False)[0] == 0
    access.unpin_pages(0x10000, 4096)
    iommufd_access_destroy(access)
    rig.finish()


def test_an_access_that_pins_needs_whole_pages():
    rig = Rig()
    ioas, other = rig.ioas(), rig.ioas()
    rig.map(ioas, 0x10000, length=100)
    access = iommufd_access_create(rig.ctx, AccessOps(True, lambda iova, length: None))
    assert access.attach(ioas) == -EADDRINUSE
    assert access.replace(other) == -ENOENT
    assert access.attach(other) == 0 and access.replace(ioas) == -EADDRINUSE
    assert access.ioas is rig.obj(other)
    iommufd_access_destroy(access)
    rig.finish()

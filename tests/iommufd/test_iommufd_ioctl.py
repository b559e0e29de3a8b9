# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects, ids, the size protocol and the IOAS ioctls."""

import pytest
from iommufd_rig import BUFFER, MIB, SCRATCH, Rig

from abi.errno import (
    E2BIG,
    EADDRINUSE,
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    EMSGSIZE,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOTTY,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
)
from guest_driver.iommufd.lockdep import Lockdep
from guest_driver.iommufd.uapi import BY_NAME, pack
from guest_driver.linux.printk import Printk

U64 = (1 << 64) - 1
EVERYTHING = list(BY_NAME)


def raw(rig, name, data):
    rig.mm.write(SCRATCH, data)
    return rig.ctx.ioctl(rig.process, BY_NAME[name].request, SCRATCH)


@pytest.mark.parametrize("name", EVERYTHING)
def test_sizes_short_is_einval_long_nonzero_is_e2big_long_zero_is_as_exact(name):
    rig = Rig()
    exact = pack(name)
    row = BY_NAME[name]
    assert raw(rig, name, (row.min_size - 1).to_bytes(4, "little") + bytes(100)) == -EINVAL
    longer = (len(exact) + 1).to_bytes(4, "little") + exact[4:]
    assert raw(rig, name, longer + b"\xff") == -E2BIG
    assert raw(rig, name, longer + b"\0") == raw(Rig(), name, exact)
    minimal = row.min_size.to_bytes(4, "little") + exact[4 : row.min_size]
    assert raw(Rig(), name, minimal + b"\xff" * 32) == raw(Rig(), name, exact)


def test_an_older_kernel_knows_fewer_bytes_and_fewer_ioctls():
    old, new = Rig(name="6.6"), Rig(name="7.0")
    hwpt = pack("HWPT_ALLOC", fault_id=5)
    assert raw(old, "HWPT_ALLOC", hwpt) == -E2BIG
    assert raw(new, "HWPT_ALLOC", hwpt) == -ENOENT
    assert raw(old, "HWPT_SET_DIRTY_TRACKING", pack("HWPT_SET_DIRTY_TRACKING")) == -ENOTTY


def test_commands_that_cannot_work():
    rig = Rig()
    assert rig.destroy(0) == -ENOENT
    assert rig.ctx.ioctl(rig.process, BY_NAME["DESTROY"].request, 0) == -EFAULT
    assert rig.ctx.ioctl(rig.process, 0x3B7F, SCRATCH) == -ENOTTY
    assert rig.ctx.ioctl(rig.process, 0x3A80, SCRATCH) == -ENOTTY
    assert rig.ret("IOAS_ALLOC", flags=1) == -EOPNOTSUPP
    assert rig.ret("OPTION", option_id=9) == -EOPNOTSUPP


def test_ids_start_at_one_and_the_lowest_free_is_used():
    rig = Rig()
    assert [rig.ioas(), rig.ioas(), rig.ioas()] == [1, 2, 3]
    assert rig.destroy(2) == 0
    assert rig.destroy(2) == -ENOENT
    assert rig.ioas() == 2


def test_an_answer_that_cannot_be_delivered_leaves_no_object():
    rig = Rig()
    rig.mm.mmap(0x9000_0000, 4096)
    rig.mm.write(0x9000_0000, pack("IOAS_ALLOC"))
    page = rig.mm._pages[0x90000]
    rig.mm._pages[0x90000] = (page[0], False)
    assert rig.ctx.ioctl(rig.process, BY_NAME["IOAS_ALLOC"].request, 0x9000_0000) == -EFAULT
    assert len(rig.ctx.objects) == 0


def test_no_memory_leaves_no_id():
    rig = Rig()
    rig.kernel.slab_fault = lambda purpose: True
    assert rig.ret("IOAS_ALLOC") == -ENOMEM
    rig.kernel.slab_fault = None
    assert rig.ioas() == 1


def test_close_takes_everything_leaf_first():
    rig = Rig((2, 1))
    rig.buffer()
    a, b = rig.ioas(), rig.ioas()
    for number, ioas in enumerate((a, b)):
        idev = rig.bind(rig.devs[number][0])
        assert idev.attach(ioas)[0] == 0
        rig.map(ioas, 32 * MIB, flags=7)
        rig.hwpt(idev, ioas)
    rig.finish()


def test_map_errors_in_their_order():
    rig = Rig()
    rig.buffer()
    ioas = rig.ioas()
    assert rig.map(ioas, 0, flags=8) == -EOPNOTSUPP
    assert rig.ret("IOAS_MAP", flags=7, ioas_id=ioas, __reserved=1) == -EOPNOTSUPP
    assert rig.map(ioas, U64) == -EOVERFLOW
    assert rig.map(ioas, 0, length=U64) == -EOVERFLOW
    assert rig.map(999, 0, flags=1) == -EINVAL
    assert rig.map(999, 0) == -ENOENT
    assert rig.map(ioas, 0, va=U64 - 100, length=4096) == -EOVERFLOW
    assert rig.map(ioas, 0, length=0) == -EINVAL
    assert rig.map(ioas, U64 - 4095, length=8192) == -EOVERFLOW
    assert rig.map(ioas, 0x10000) == 0x10000
    assert rig.map(ioas, 0x10800) == -EEXIST
    rig.obj(ioas).iopt.reserve(0x20000, 0x2FFFF, rig)
    assert rig.map(ioas, 0x1F000, length=8192) == -EINVAL
    assert rig.map(ioas, 0, flags=6, length=1 << 63) == -EOVERFLOW


def test_alignment_follows_the_domains():
    rig = Rig()
    rig.buffer()
    ioas = rig.ioas()
    assert rig.map(ioas, 16 * MIB, length=1) == 16 * MIB
    idev = rig.bind(rig.devs[0][0])
    assert idev.attach(ioas) == (-EADDRINUSE, 0)
    assert not idev.attached and rig.obj(ioas).iopt.iova_alignment == 1
    assert rig.unmap(ioas, 16 * MIB, 1) == 1
    assert idev.attach(ioas)[0] == 0
    assert rig.obj(ioas).iopt.iova_alignment == 2048
    assert rig.map(ioas, 16 * MIB, length=1000) == -EINVAL
    assert rig.map(ioas, 16 * MIB + 5) == -EINVAL
    assert rig.map(ioas, 16 * MIB, va=BUFFER + 7) == -EINVAL
    assert rig.map(ioas, 16 * MIB, va=BUFFER + 2048, length=2048) == 16 * MIB
    assert rig.mock.iova_to_phys(rig.mock.where[rig.devs[0][0].name], 16 * MIB) == rig.mm.phys(BUFFER + 2048)
    idev.detach()
    assert rig.obj(ioas).iopt.iova_alignment == 1
    rig.finish()


def test_a_bad_address_is_found_when_pages_are_needed():
    rig = Rig()
    ioas = rig.ioas()
    assert rig.map(ioas, 16 * MIB, va=0x5000_0000) == 16 * MIB
    idev = rig.bind(rig.devs[0][0])
    assert idev.attach(ioas) == (-EFAULT, 0)
    assert rig.unmap(ioas, 16 * MIB, 4096) == 4096
    assert idev.attach(ioas)[0] == 0
    rig.buffer(2)
    assert rig.map(ioas, 16 * MIB, length=3 * 4096) == -EFAULT
    assert not rig.mm.pins and not rig.obj(ioas).iopt.areas
    rig.finish()


def test_read_only_memory_cannot_be_mapped_for_writing():
    rig = Rig()
    rig.buffer(writable=False)
    ioas, other = rig.ioas(), rig.ioas()
    assert rig.bind(rig.devs[0][0]).attach(ioas)[0] == 0
    assert rig.map(ioas, 16 * MIB) == -EFAULT
    assert rig.map(ioas, 16 * MIB, flags=5) == 16 * MIB
    copy = {"src_ioas_id": ioas, "dst_ioas_id": other, "length": 4096, "src_iova": 16 * MIB, "dst_iova": 0}
    assert rig.ret("IOAS_COPY", flags=7, **copy) == -EPERM
    assert rig.ret("IOAS_COPY", flags=5, **copy) == 0
    rig.finish()


def test_unmap_takes_whole_areas_only():
    rig = Rig()
    ioas = rig.ioas()
    assert rig.unmap(ioas, 0, U64) == 0
    assert rig.unmap(ioas, 0x10000, 4096) == -ENOENT
    for iova in (0x10000, 0x12000, 0x14000):
        rig.map(ioas, iova, length=8192 if iova == 0x10000 else 4096)
    assert rig.unmap(ioas, 0x10000, 4096) == -ENOENT
    assert rig.unmap(ioas, 0x11000, 4096) == -ENOENT
    assert rig.unmap(ioas, 0xF000, 0x4000) == 12288
    assert rig.unmap(ioas, 0, U64) == 4096
    assert rig.ret("IOAS_UNMAP", ioas_id=77, iova=0, length=1) == -ENOENT
    assert rig.unmap(ioas, 0, 0) == -EINVAL


def test_copy_covers_or_fails_and_pins_once():
    rig = Rig((1, 1))
    rig.buffer()
    a, b = rig.ioas(), rig.ioas()
    rig.map(a, 16 * MIB, length=8192)
    rig.map(a, 16 * MIB + 8192, va=BUFFER + 8192, length=8192)
    assert rig.bind(rig.devs[0][0]).attach(a)[0] == 0
    assert rig.bind(rig.devs[1][0]).attach(b)[0] == 0
    copy = {"flags": 7, "src_ioas_id": a, "dst_ioas_id": b, "dst_iova": 64 * MIB}
    assert rig.ret("IOAS_COPY", length=16384, src_iova=16 * MIB + 2048, **copy) == -ENOENT
    assert rig.ret("IOAS_COPY", length=0, src_iova=16 * MIB, **copy) == -EINVAL
    assert rig.ret("IOAS_COPY", length=12288, src_iova=16 * MIB + 2048, **copy) == 0
    assert set(rig.mm.pins.values()) == {1}
    theirs = rig.mock.where[rig.devs[1][0].name]
    for offset in range(0, 12288, 2048):
        assert rig.mock.iova_to_phys(theirs, 64 * MIB + offset) == rig.mm.phys(BUFFER + 2048 + offset)
    assert rig.unmap(a, 0, U64) == 16384
    assert set(rig.mm.pins.values()) == {1}
    assert rig.unmap(b, 0, U64) == 12288
    assert not rig.mm.pins
    rig.finish()


def test_automatic_addresses_keep_alignment_and_avoid_what_is_reserved():
    rig = Rig()
    ioas = rig.ioas()
    iopt = rig.obj(ioas).iopt
    assert rig.map(ioas, 0, flags=6, va=0x20_0000, length=1 << 21) == 0x20_0000
    assert rig.map(ioas, 0, flags=6, va=0x1000, length=4096) == 0x1000
    assert rig.map(ioas, 0, flags=6, va=0x1234, length=4) & 0xFFF == 0x234
    rig.unmap(ioas, 0, U64)
    assert iopt.reserve(0, 0xFF_FFFF_FFFF, rig) == 0
    assert rig.map(ioas, 0, flags=6, va=0x1000, length=4096) == 0x100_0000_0000
    assert iopt.reserve(0x100_0000_1000, U64, rig) == 0
    assert rig.map(ioas, 0, flags=6, va=0x1000, length=4096) == -ENOSPC


def allow(rig, ioas, *ranges):
    words = [word for pair in ranges for word in pair]
    rig.mm.write(SCRATCH + 4096, b"".join(word.to_bytes(8, "little") for word in words))
    return rig.ret("IOAS_ALLOW_IOVAS", ioas_id=ioas, num_iovas=len(ranges), allowed_iovas=SCRATCH + 4096)


def test_allowed_ranges_are_replaced_as_a_whole_and_never_reserved():
    rig = Rig()
    ioas = rig.ioas()
    iopt = rig.obj(ioas).iopt
    assert allow(rig, ioas, (0x50000, 0x5FFFF)) == 0
    assert rig.map(ioas, 0, flags=6, va=0x1000) == 0x50000
    assert rig.map(ioas, 0x90000) == 0x90000
    assert iopt.reserve(0x50000, 0x50FFF, rig) == -EADDRINUSE
    iopt.reserve(0x70000, 0x7FFFF, rig)
    assert allow(rig, ioas, (0x40000, 0x4FFFF), (0x78000, 0x80000)) == -EADDRINUSE
    assert allow(rig, ioas, (5, 5)) == -EINVAL
    assert allow(rig, ioas, (0, 9), (9, 12)) == -EINVAL
    assert iopt.allowed == [(0x50000, 0x5FFFF)]
    assert allow(rig, ioas) == 0
    assert rig.map(ioas, 0, flags=6, va=0x1000) == 0x1000


def test_iova_ranges_is_the_complement_of_reserved():
    rig = Rig()
    ioas = rig.ioas()
    rig.obj(ioas).iopt.reserve(0x10000, 0x1FFFF, rig)
    where = SCRATCH + 4096
    rig.mm.write(where, b"\xaa" * 64)
    ret, out = rig.call("IOAS_IOVA_RANGES", ioas_id=ioas, num_iovas=1, allowed_iovas=where)
    assert (ret, out["num_iovas"]) == (-EMSGSIZE, 2)
    assert rig.mm.read(where + 16, 48) == b"\xaa" * 48
    ret, out = rig.call("IOAS_IOVA_RANGES", ioas_id=ioas, num_iovas=4, allowed_iovas=where)
    words = [int.from_bytes(rig.mm.read(where + 8 * at, 8), "little") for at in range(4)]
    assert ret == 0 and out["num_iovas"] == 2 and words == [0, 0xFFFF, 0x20000, U64]
    assert out["out_iova_alignment"] == 1
    assert rig.ret("IOAS_IOVA_RANGES", ioas_id=ioas, num_iovas=4, allowed_iovas=8) == -EFAULT


def test_huge_pages_option():
    rig = Rig()
    rig.buffer()
    ioas = rig.ioas()
    opt = {"option_id": 1, "object_id": ioas}
    assert rig.call("OPTION", op=1, **opt)[1]["val64"] == 1
    assert rig.ret("OPTION", option_id=1) == -ENOENT
    assert rig.ret("OPTION", val64=2, **opt) == -EINVAL
    assert rig.ret("OPTION", op=2, **opt) == -EOPNOTSUPP
    rig.map(ioas, 1, length=5)
    assert rig.ret("OPTION", **opt) == -EADDRINUSE
    rig.unmap(ioas, 0, U64)
    assert rig.ret("OPTION", **opt) == 0
    assert rig.ret("OPTION", **opt) == 0
    assert rig.bind(rig.devs[0][0]).attach(ioas)[0] == 0
    rig.map(ioas, 16 * MIB, length=8 * 4096)
    assert {call[4] * call[5] for call in rig.mock.calls if call[0] == "map"} == {4096}
    assert rig.ret("OPTION", val64=1, **opt) == 0
    assert rig.ret("OPTION", **opt) == -EINVAL
    rig.finish()


def test_rlimit_mode_is_for_the_mighty_and_for_the_start():
    rig = Rig()
    rig.process.cap_sys_resource = False
    assert rig.ret("OPTION", val64=1) == -EPERM
    rig.process.cap_sys_resource = True
    assert rig.ret("OPTION", val64=2) == -EINVAL
    assert rig.ret("OPTION", val64=1) == 0
    assert rig.call("OPTION", op=1)[1]["val64"] == 1
    rig.ioas()
    assert rig.ret("OPTION", val64=0) == -EBUSY


@pytest.mark.parametrize("mode", [0, 1])
def test_locked_memory_is_charged_and_limited(mode):
    rig = Rig()
    rig.buffer()
    assert rig.ret("OPTION", val64=mode) == 0
    ioas = rig.ioas()
    assert rig.bind(rig.devs[0][0]).attach(ioas)[0] == 0
    rig.process.rlimit_memlock = 4
    assert rig.map(ioas, 16 * MIB, length=5 * 4096) == -ENOMEM
    assert rig.map(ioas, 16 * MIB, length=4 * 4096) == 16 * MIB
    assert (rig.process.locked_vm, rig.mm.pinned_vm) == ((4, 0) if mode == 0 else (0, 4))
    rig.finish()


def test_unmap_restarting_takes_what_was_mapped_meanwhile():
    for defects, left in ((frozenset(), 1), (frozenset({"unmap-restarts"}), 0)):
        rig = Rig(name="6.14", defects=defects)
        ioas = rig.ioas()
        iopt = rig.obj(ioas).iopt
        rig.map(ioas, 0x10000)
        rig.map(ioas, 0x11000)

        def map_again(rig=rig, ioas=ioas, iopt=iopt):
            iopt.after_area_unmapped = None
            assert iopt.map_user(rig.process, 0x10000, BUFFER, 4096, 3) == (0, 0x10000)

        iopt.after_area_unmapped = map_again
        rig.unmap(ioas, 0x10000, 0x2000)
        assert len(iopt.areas) == left


def test_locks_out_of_order_are_noticed():
    printk = Printk()
    locks = Lockdep(printk)
    with locks.hold("igroup->lock", 1), locks.hold("iova_rwsem", 1):
        pass
    assert printk.warnings == 0
    with locks.hold("iova_rwsem", 1), locks.hold("igroup->lock", 1):
        pass
    with locks.hold("iova_rwsem", 1), locks.hold("iova_rwsem", 1):
        pass
    assert printk.warnings == 2
    locks.assert_held("iova_rwsem", 1)
    assert printk.warnings == 3

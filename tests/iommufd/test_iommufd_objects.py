# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects and ioctls that came after 6.6: when they came, each error that they answer, whom pages are charged to."""

from struct import pack

import pytest
from iommufd_rig import BUFFER, MIB, SCRATCH, Rig

from abi.errno import EBADF, EINVAL, EMFILE, ENOENT, ENOMEM, ENOTTY, EOPNOTSUPP, EOVERFLOW, errno_name
from guest_driver.iommufd import selftest
from guest_driver.iommufd.eventq import FaultQueue
from guest_driver.iommufd.mock_viommu import HW_QUEUE_TYPE, VEVENT_TYPE, VIOMMU_TYPE, add_viommu
from guest_driver.iommufd.process import Files, MemFd, Process, UserMemory
from guest_driver.iommufd.selftest import NUMBERS, OPS, Selftest
from guest_driver.iommufd.uapi import BY_NAME, IOMMU_TEST_CMD
from guest_driver.linux.errno import ESPIPE
from guest_driver.linux.io_pgfault import LAST_PAGE, PASID_VALID, IopfFault
from guest_driver.linux.mock_domain import DATA_TYPE, MockIommu

DATA = SCRATCH + 4096
SINCE = {
    "6.6": ("HWPT_ALLOC", "GET_HW_INFO"),
    "6.12": ("HWPT_SET_DIRTY_TRACKING", "HWPT_GET_DIRTY_BITMAP", "HWPT_INVALIDATE", "FAULT_QUEUE_ALLOC"),
    "6.14": ("IOAS_MAP_FILE", "VIOMMU_ALLOC", "VDEVICE_ALLOC", "IOAS_CHANGE_PROCESS"),
    "7.0": ("VEVENTQ_ALLOC", "HW_QUEUE_ALLOC"),
}


def rig(name="7.0", groups=(1, 1)):
    mock = MockIommu()
    add_viommu(mock)
    made = Rig(groups, name=name, mock=mock)
    made.buffer()
    return made


def test_a_release_knows_its_ioctls_and_no_later_ones():
    seen = set()
    for name in SINCE:
        seen |= set(SINCE[name])
        r = rig(name)
        for row in BY_NAME.values():
            ret = r.ctx.ioctl(r.process, row.request, 8)
            there = row.since <= (6, 2) or row.name in seen
            assert ret == (-14 if there else -ENOTTY), (name, row.name, errno_name(ret))


def nest(r, **fields):
    """A device, a nesting parent and a vIOMMU over it."""
    ioas = r.ioas()
    idev = r.bind(r.devs[0][0])
    parent = r.hwpt(idev, ioas, flags=1)
    ret, out = r.call("VIOMMU_ALLOC", type=VIOMMU_TYPE, dev_id=idev.id, hwpt_id=parent, **fields)
    assert ret == 0
    return ioas, idev, parent, out["out_viommu_id"]


@pytest.mark.parametrize(
    ("name", "fields", "wanted"),
    [
        ("FAULT_QUEUE_ALLOC", {"flags": 1}, EOPNOTSUPP),
        ("VIOMMU_ALLOC", {"flags": 1}, EOPNOTSUPP),
        ("VIOMMU_ALLOC", {"type": 0}, EOPNOTSUPP),
        ("VIOMMU_ALLOC", {"type": 77}, EOPNOTSUPP),
        ("VIOMMU_ALLOC", {"dev_id": 99}, ENOENT),
        ("VIOMMU_ALLOC", {"hwpt_id": 99}, ENOENT),
        ("VIOMMU_ALLOC", {"hwpt_id": "plain"}, EINVAL),
        ("VIOMMU_ALLOC", {"data_len": 4, "data_uptr": 8}, 14),
        ("VIOMMU_ALLOC", {"data_len": 4, "data_uptr": DATA}, EINVAL),
        ("VDEVICE_ALLOC", {"viommu_id": 99}, ENOENT),
        ("VDEVICE_ALLOC", {"dev_id": 99}, ENOENT),
        ("VEVENTQ_ALLOC", {"flags": 1}, EOPNOTSUPP),
        ("VEVENTQ_ALLOC", {"type": 0}, EOPNOTSUPP),
        ("VEVENTQ_ALLOC", {"veventq_depth": 0}, EINVAL),
        ("VEVENTQ_ALLOC", {"viommu_id": 99}, ENOENT),
        ("HW_QUEUE_ALLOC", {"flags": 1}, EOPNOTSUPP),
        ("HW_QUEUE_ALLOC", {"type": 0}, EOPNOTSUPP),
        ("HW_QUEUE_ALLOC", {"type": 5}, EOPNOTSUPP),
        ("HW_QUEUE_ALLOC", {"length": 0}, EINVAL),
        ("HW_QUEUE_ALLOC", {"length": 1 << 63, "nesting_parent_iova": 1 << 63}, 0),
        ("HW_QUEUE_ALLOC", {"length": 4097, "nesting_parent_iova": (1 << 64) - 4096}, EOVERFLOW),
        ("HW_QUEUE_ALLOC", {"viommu_id": 99}, ENOENT),
        ("HW_QUEUE_ALLOC", {"nesting_parent_iova": 32 * MIB}, ENOENT),
        ("HW_QUEUE_ALLOC", {"index": 2}, EINVAL),
        ("HW_QUEUE_ALLOC", {"length": 8192}, 14),
        ("IOAS_MAP_FILE", {"flags": 8}, EOPNOTSUPP),
        ("IOAS_MAP_FILE", {"flags": 1}, EINVAL),
        ("IOAS_MAP_FILE", {"iova": (1 << 64) - 1}, EOVERFLOW),
        ("IOAS_MAP_FILE", {"ioas_id": 99}, ENOENT),
        ("IOAS_MAP_FILE", {"fd": 99}, EBADF),
        ("IOAS_MAP_FILE", {"fd": -1}, EBADF),
        ("IOAS_MAP_FILE", {"fd": "other"}, EINVAL),
        ("IOAS_MAP_FILE", {"length": 0}, EINVAL),
        ("IOAS_MAP_FILE", {"length": 3 * 4096}, EINVAL),
        ("IOAS_MAP_FILE", {"start": 4096}, EINVAL),
        ("IOAS_CHANGE_PROCESS", {"__reserved": 1}, EOPNOTSUPP),
        ("IOAS_CHANGE_PROCESS", {}, EINVAL),
    ],
)
def test_errors(name, fields, wanted):
    r = rig()
    ioas, idev, parent, viommu = nest(r)
    plain = r.hwpt(idev, ioas)
    assert r.map(ioas, 16 * MIB, length=8192) == 16 * MIB
    files = r.process.files
    memory, other = files.reserve(), files.reserve()
    files.install(memory, MemFd(r.kernel, 8192))
    files.install(other, object())
    good = {
        "FAULT_QUEUE_ALLOC": {},
        "VIOMMU_ALLOC": {"type": VIOMMU_TYPE, "dev_id": idev.id, "hwpt_id": parent},
        "VDEVICE_ALLOC": {"viommu_id": viommu, "dev_id": idev.id, "virt_id": 1},
        "VEVENTQ_ALLOC": {"viommu_id": viommu, "type": VEVENT_TYPE, "veventq_depth": 1},
        "HW_QUEUE_ALLOC": {
            "viommu_id": viommu,
            "type": HW_QUEUE_TYPE,
            "nesting_parent_iova": 16 * MIB,
            "length": 4096,
        },
        "IOAS_MAP_FILE": {"ioas_id": ioas, "flags": 7, "fd": memory, "length": 8192, "iova": 24 * MIB},
        "IOAS_CHANGE_PROCESS": {},
    }[name]
    named = {"plain": plain, "other": other}
    changed = {field: named.get(value, value) for field, value in fields.items()}
    objects = len(r.ctx.objects)
    ret = r.ret(name, **good | changed)
    assert ret == (-wanted if wanted else -ENOENT), errno_name(ret)
    assert len(r.ctx.objects) == objects and r.warnings == []
    if name != "IOAS_CHANGE_PROCESS":
        assert r.ret(name, **good) == 0


def test_a_viommu_gives_its_data_back():
    r = rig()
    r.mm.write(DATA, pack("<II", 0x1234, 0))
    nest(r, data_len=8, data_uptr=DATA)
    assert r.mm.read(DATA, 8) == pack("<II", 0x1234, 0x1234)


def test_without_a_descriptor_there_is_no_queue():
    r = rig()
    r.process.files = Files(limit=3)
    assert r.ret("FAULT_QUEUE_ALLOC") == -EMFILE
    assert len(r.ctx.objects) == 0


def test_before_6_17_a_device_may_have_two_numbers():
    for name, wanted in (("6.14", 0), ("7.0", -17)):
        r = rig(name)
        _, idev, _, viommu = nest(r)
        assert r.ret("VDEVICE_ALLOC", viommu_id=viommu, dev_id=idev.id, virt_id=1) == 0
        assert r.ret("VDEVICE_ALLOC", viommu_id=viommu, dev_id=idev.id, virt_id=2) == wanted


def test_groups_of_page_requests_are_read_whole():
    r = rig()
    _, idev, parent, _ = nest(r)
    ret, out = r.call("FAULT_QUEUE_ALLOC")
    queue = r.obj(out["out_fault_id"])
    assert ret == 0 and r.process.files.get(out["out_fault_fd"]) is queue
    r.mm.write(DATA, pack("<I", 7))
    fields = {"data_type": DATA_TYPE, "data_len": 4, "data_uptr": DATA, "flags": 4, "fault_id": queue.id}
    child = r.hwpt(idev, parent, **fields)
    assert r.mock.request_page(idev.dev, IopfFault(0x1000, 1, 3)) == -EINVAL, "nobody takes it"
    assert r.mock.responses == [(idev.dev.name, 3, 1)]
    assert idev.attach(child)[0] == 0
    r.mock.request_page(idev.dev, IopfFault(0x1000, 1, 4, flags=0))
    r.mock.request_page(idev.dev, IopfFault(0x9000, 1, 9))
    r.mock.request_page(idev.dev, IopfFault(0x2000, 1, 4, pasid=6, flags=LAST_PAGE | PASID_VALID))
    assert [len(group.faults) for group in queue.deliver] == [1, 2], "a PASID of user space's own table comes as well"
    assert queue.read(r.mm, DATA, 41) == -ESPIPE and queue.write(r.mm, DATA, 9) == -ESPIPE
    assert queue.read(r.mm, 8, 40) == -14 and queue.read(r.mm, DATA, 0) == 0
    assert queue.read(r.mm, DATA, 80) == 40, "the second group does not fit any more"
    assert queue.read(r.mm, DATA, 40) == 0
    assert queue.read(r.mm, DATA, 80) == 80 and not queue.readable()
    r.mm.write(DATA, pack("<IIII", 2, 0, 77, 0))
    assert queue.write(r.mm, DATA, 16) == 8, "one answer is good"
    assert queue.write(r.mm, 8, 8) == -14
    idev.detach()
    assert r.mock.responses[1:] == [(idev.dev.name, 4, 0), (idev.dev.name, 9, 1)]
    assert isinstance(queue, FaultQueue) and not queue.response


@pytest.mark.parametrize("mode", [0, 1])
def test_pages_are_charged_to_who_asks_for_it(mode):
    r = rig()
    assert r.ret("OPTION", option_id=0, op=0, val64=mode) == 0
    ioas, idev = r.ioas(), r.bind(r.devs[0][0])
    fd = r.process.files.reserve()
    r.process.files.install(fd, MemFd(r.kernel, 4 * 4096))
    idev.attach(ioas)
    assert r.ret("IOAS_MAP_FILE", flags=7, ioas_id=ioas, fd=fd, length=4 * 4096, iova=16 * MIB) == 0

    def charged(process):
        return process.mm.pinned_vm if mode else process.locked_vm

    child = Process(UserMemory(r.kernel), rlimit_memlock=3)
    child.mm.mmap(SCRATCH, 4096)
    assert charged(r.process) == 4
    assert r.ctx.call(child, "IOAS_CHANGE_PROCESS", SCRATCH)[0] == -ENOMEM and charged(r.process) == 4
    child.rlimit_memlock = 4
    assert r.ctx.call(child, "IOAS_CHANGE_PROCESS", SCRATCH)[0] == 0
    assert (charged(r.process), charged(child)) == (0, 4)
    r.ctx.exit()
    assert charged(child) == 0 and r.warnings == []


def test_pasid_widths_and_types_of_hardware_information():
    r = rig()
    r.devs[0][0].iommu.max_pasids = 1 << 16
    idev = r.bind(r.devs[0][0])
    assert r.call("GET_HW_INFO", dev_id=idev.id)[1]["out_max_pasid_log2"] == 16
    assert r.ret("GET_HW_INFO", dev_id=idev.id, flags=1, out_data_type=0xFEEDBEEF) == 0
    assert r.ret("GET_HW_INFO", dev_id=idev.id, flags=1, out_data_type=5) == -EOPNOTSUPP
    assert r.ret("GET_HW_INFO", dev_id=idev.id, flags=2) == -EOPNOTSUPP
    old = rig("6.14")
    idev = old.bind(old.devs[0][0])
    assert old.ret("GET_HW_INFO", dev_id=idev.id, flags=1) == -EOPNOTSUPP


def test_a_pasid_table_is_the_groups():
    r = rig(groups=(2,))
    for dev in r.devs[0]:
        dev.iommu.max_pasids = 64
    a, b = (r.bind(dev) for dev in r.devs[0])
    ioas = r.ioas()
    one, two = r.hwpt(a, ioas, flags=8), r.hwpt(a, ioas, flags=8)
    assert a.attach(one, 5) == (0, one) and b.attach(two, 5) == (-EINVAL, 0) and b.attach(one, 5) == (0, one)
    assert a.attach(one, 64) == (-EINVAL, 0), "beyond what the devices have"
    assert r.obj(one).users == 3
    assert b.replace(two, 5) == (0, two) and (r.obj(one).users, r.obj(two).users) == (1, 3)
    assert {r.mock.pasids[dev.name, 5] for dev in r.devs[0]} == {r.obj(two).domain}
    a.detach(5)
    assert (r.devs[0][0].name, 5) in r.mock.pasids
    b.detach(5)
    assert r.mock.pasids == {} and a.attachments() == []
    r.finish()


def test_a_release_knows_its_test_commands():
    for name in SINCE:
        r = rig(name)
        assert r.ctx.ioctl(r.process, IOMMU_TEST_CMD, SCRATCH) == -ENOTTY
        selftest.offer(r.ctx, Selftest(r.kernel))
        for number, (_, since, _, _) in {**OPS, 99: ("", (9, 9), "", None)}.items():
            r.mm.write(SCRATCH, pack("<IIII", 72, number, 0x999, 0).ljust(72, b"\0"))
            if r.release.version < (6, 7):
                r.mm.write(SCRATCH, pack("<I", 56))
            ret = r.ctx.ioctl(r.process, IOMMU_TEST_CMD, SCRATCH)
            known = r.release.version >= since
            assert (ret == -EOPNOTSUPP) == (not known), (name, number, errno_name(ret))
    assert NUMBERS["PASID_CHECK_HWPT"] == 21 and BUFFER

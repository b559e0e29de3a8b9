# SPDX-License-Identifier: GPL-2.0-or-later
"""IOMMU_TEST_CMD, the ioctl of CONFIG_IOMMUFD_TEST: mock devices, accesses, and looks behind the scenes.

Source: drivers/iommu/iommufd/selftest.c and iommufd_test.h.  Operation numbers are those of the kernel; a release
answers -EOPNOTSUPP to those that came later, and everybody does to DMA-BUF.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from abi.errno import EFAULT, EINVAL, EIO, ENOENT, ENOMEM, EOPNOTSUPP
from base.units import PAGE_SIZE, make_sbdf
from guest_driver.iommufd import selftest_access
from guest_driver.iommufd.context import IommufdCtx
from guest_driver.iommufd.device import IommufdDevice, iommufd_device_bind, iommufd_device_unbind
from guest_driver.iommufd.hw_pagetable import Hwpt, HwptNested, HwptPaging
from guest_driver.iommufd.ioas import Ioas
from guest_driver.iommufd.mock_viommu import add_viommu, trigger_event
from guest_driver.iommufd.objects import IommufdObject
from guest_driver.iommufd.user_copy import check_zeroed_user
from guest_driver.iommufd.viommu import Viommu
from guest_driver.linux.device import Device
from guest_driver.linux.io_pgfault import LAST_PAGE, PASID_VALID, IopfFault
from guest_driver.linux.iommu_group import IommuGroup
from guest_driver.linux.iommu_pasid import iommu_attach_handle_get
from guest_driver.linux.iommu_probe import bus_iommu_probe, iommu_release_device
from guest_driver.linux.kernel import Kernel
from guest_driver.linux.mock_domain import MockDomain, MockIommu
from guest_driver.port import PciInfo

if TYPE_CHECKING:
    from guest_driver.iommufd.process import Process

_SEGMENT: Final = 0x7E57
"""PCI segment of mock devices: nobody else's."""
_NO_DIRTY, _HUGE_IOVA, _PASID = 1, 2, 4
_PASID_WIDTH: Final = 20
_HEAD: Final = struct.Struct("<IIII")
_UNION: Final = 16


class TestCmd:
    """One operation under way; fields of its union are found by name."""

    __test__ = False  # not a test case, whatever pytest thinks of the name
    __slots__ = ("_layout", "_names", "_values", "address", "ctx", "id", "process", "size")

    def __init__(
        self, ctx: IommufdCtx, process: Process, address: int, size: int, number: int, raw: bytes, fields: str
    ) -> None:
        self.ctx: Final = ctx
        self.process: Final = process
        self.address: Final = address
        self.size: Final = size
        self.id: Final = number
        names, codes = [], "<"
        for field in fields.split():
            name, _, kind = field.partition(":")
            names.append(name)
            codes += "Q" if kind == "u64" else "I"
        self._names: Final = names
        self._layout: Final = struct.Struct(codes)
        self._values: Final[dict[str, int]] = dict(zip(names, self._layout.unpack_from(raw, _UNION)))

    def __getitem__(self, field: str) -> int:
        return self._values[field]

    def __setitem__(self, field: str, value: int) -> None:
        self._values[field] = value

    def respond(self) -> int:
        data = self._layout.pack(*self._values.values())[: max(self.size - _UNION, 0)]
        return 0 if self.process.mm.write(self.address + _UNION, data) else -EFAULT


class Selftest:
    """The mock bus of a kernel: its driver, and the devices that test commands made."""

    __test__ = False

    def __init__(self, kernel: Kernel) -> None:
        self.kernel: Final = kernel
        self.mock: Final = MockIommu(covers=lambda dev: dev.pci.sbdf >> 16 == _SEGMENT)
        self.mock.unit.max_pasids = 1 << _PASID_WIDTH
        self.mock.ops.device_group = lambda dev: IommuGroup(dev.kernel.iommu)
        self.memory_limit = 65536
        """Bytes that a batch of page numbers may take; kept and otherwise unused, as there are no batches here."""
        add_viommu(self.mock)
        self.mock.register(kernel)

    def add_device(self, flags: int) -> Device | int:
        """A mock device in a group of its own; -EINVAL for unknown flags, -ENOMEM."""
        if flags & ~(_NO_DIRTY | _HUGE_IOVA | _PASID):
            return -EINVAL
        if not self.kernel.kzalloc("mock device"):
            return -ENOMEM
        used = {dev.pci.sbdf for dev in self.kernel.devices}
        free = (make_sbdf(_SEGMENT, at >> 5, at & 31, 0) for at in range(1 << 13))
        pasids = 1 << _PASID_WIDTH if flags & _PASID else 0
        info = PciInfo(next(sbdf for sbdf in free if sbdf not in used), max_pasids=pasids)
        dev = Device(self.kernel, info)
        if flags & _NO_DIRTY:
            self.mock.no_dirty.add(dev.name)
        self.kernel.devices.append(dev)
        bus_iommu_probe(self.kernel, self.mock.ops)
        if dev.iommu_group is None:
            self.remove_device(dev)
            return -ENOMEM
        return dev

    def remove_device(self, dev: Device) -> None:
        iommu_release_device(dev)
        self.kernel.devices.remove(dev)
        self.mock.no_dirty.discard(dev.name)
        for kept in (self.mock.where, self.mock.caches, self.mock.requests):
            kept.pop(dev.name, None)


class SelftestDevice(IommufdObject):
    """A mock device that a program made, bound and attached."""

    __slots__ = ("idev", "selftest")

    def __init__(self, ctx: IommufdCtx, selftest: Selftest) -> None:
        super().__init__(ctx)
        self.selftest: Final = selftest
        self.idev: IommufdDevice | None = None

    def destroy(self) -> None:
        if self.idev is not None:
            dev = self.idev.dev
            for pasid in self.idev.attachments():
                self.idev.detach(pasid)
            iommufd_device_unbind(self.idev)
            self.selftest.remove_device(dev)


# ------------------------------------------------------------------------------------------------ the table

Handler = Callable[[Selftest, TestCmd], int]


def _add_reserved(selftest: Selftest, cmd: TestCmd) -> int:
    ioas = cmd.ctx.objects.get(cmd.id, Ioas)
    if ioas is None:
        return -ENOENT
    with cmd.ctx.locks.hold("iova_rwsem", ioas.iopt):
        return ioas.iopt.reserve(cmd["start"], cmd["start"] + cmd["length"] - 1, None)


def _mock_domain(selftest: Selftest, cmd: TestCmd) -> int:
    return _make_device(selftest, cmd, 0)


def _mock_domain_flags(selftest: Selftest, cmd: TestCmd) -> int:
    return _make_device(selftest, cmd, cmd["dev_flags"])


def _make_device(selftest: Selftest, cmd: TestCmd, flags: int) -> int:
    """Make a device, bind and attach it to the table or IOAS that ``id`` names."""
    made = SelftestDevice(cmd.ctx, selftest)
    ret = cmd.ctx.objects.alloc(made)
    if ret:
        return ret
    dev = selftest.add_device(flags)
    if isinstance(dev, int):
        cmd.ctx.objects.abort(made)
        return dev
    idev = iommufd_device_bind(cmd.ctx, dev, keeps_open=False)
    if isinstance(idev, int):
        selftest.remove_device(dev)
        cmd.ctx.objects.abort(made)
        return idev
    made.idev = idev
    ret, hwpt_id = idev.attach(cmd.id)
    if not ret:
        cmd["out_stdev_id"], cmd["out_hwpt_id"], cmd["out_idev_id"] = made.id, hwpt_id, idev.id
        ret = cmd.respond()
    if ret:
        cmd.ctx.objects.abort_and_destroy(made)
        return ret
    cmd.ctx.objects.finalize(made)
    return 0


def _mock_domain_replace(selftest: Selftest, cmd: TestCmd) -> int:
    made = cmd.ctx.objects.get(cmd.id, SelftestDevice)
    if made is None or made.idev is None:
        return -ENOENT
    ret, cmd["pt_id"] = made.idev.replace(cmd["pt_id"])
    return ret or cmd.respond()


def _check_map(selftest: Selftest, cmd: TestCmd) -> int:
    """Every mock page of the range leads to the page that is pinned behind the address beside it."""
    hwpt = cmd.ctx.objects.get(cmd.id, HwptPaging)
    if hwpt is None:
        return -ENOENT
    if not isinstance(hwpt.domain, MockDomain):
        return -EINVAL
    page = selftest.mock.page
    iova, length, address = cmd["iova"], cmd["length"], cmd["uptr"]
    if (iova | length | address) & page - 1 or address + length > 1 << 64:
        return -EINVAL
    for offset in range(0, length, page):
        if cmd.process.mm.read(address + offset, 1) is None:
            return -EFAULT
        if selftest.mock.iova_to_phys(hwpt.domain, iova + offset) != cmd.process.mm.phys(address + offset):
            return -EINVAL
    return 0


def _check_refs(selftest: Selftest, cmd: TestCmd) -> int:
    length, address = cmd["length"], cmd["uptr"]
    if (length | address) & PAGE_SIZE - 1 or address + length > 1 << 64:
        return -EINVAL
    for at in range(address, address + length, PAGE_SIZE):
        if cmd.process.mm.read(at, 1) is None:
            return -EFAULT
        if cmd.process.mm.pins_at(at) != cmd["refs"]:
            return -EIO
    return 0


def _memory_limit(selftest: Selftest, cmd: TestCmd) -> int:
    selftest.memory_limit = cmd["limit"]
    return 0


def _dirty(selftest: Selftest, cmd: TestCmd) -> int:
    """Mark the pages of a bitmap as written by a device; how many were mapped comes back."""
    hwpt = cmd.ctx.objects.get(cmd.id, HwptPaging)
    if hwpt is None:
        return -ENOENT
    iova, length, size = cmd["iova"], cmd["length"], cmd["page_size"]
    if not size or not length or iova % size or length % size or not cmd["uptr"]:
        return -EINVAL
    domain = hwpt.domain
    if not isinstance(domain, MockDomain) or not domain.tracking:
        return -EINVAL
    pages = length // size
    bitmap = cmd.process.mm.read(cmd["uptr"], (pages + 7) // 8)
    if bitmap is None:
        return -EFAULT
    count = 0
    for number in range(pages):
        at = iova + number * size
        if bitmap[number >> 3] >> (number & 7) & 1 and at & -selftest.mock.page in domain.table:
            domain.dirty.add(at & -selftest.mock.page)
            count += 1
    cmd["out_nr_dirty"] = count
    return cmd.respond()


def _check_iotlb(selftest: Selftest, cmd: TestCmd) -> int:
    hwpt = cmd.ctx.objects.get(cmd.id, HwptNested)
    if hwpt is None:
        return -ENOENT
    domain = hwpt.domain
    if not isinstance(domain, MockDomain) or cmd["id"] >= len(domain.iotlb) or domain.iotlb[cmd["id"]] != cmd["iotlb"]:
        return -EINVAL
    return 0


def _trigger_iopf(selftest: Selftest, cmd: TestCmd) -> int:
    idev = cmd.ctx.objects.get(cmd["dev_id"], IommufdDevice)
    if idev is None:
        return -ENOENT
    flags = LAST_PAGE | (PASID_VALID if cmd["pasid"] else 0)
    return selftest.mock.request_page(idev.dev, IopfFault(cmd["addr"], cmd["perm"], cmd["grpid"], cmd["pasid"], flags))


def _check_cache(selftest: Selftest, cmd: TestCmd) -> int:
    idev = cmd.ctx.objects.get(cmd.id, IommufdDevice)
    if idev is None:
        return -ENOENT
    words = selftest.mock.cache_of(idev.dev)
    return 0 if cmd["id"] < len(words) and words[cmd["id"]] == cmd["cache"] else -EINVAL


def _trigger_vevent(selftest: Selftest, cmd: TestCmd) -> int:
    idev = cmd.ctx.objects.get(cmd["dev_id"], IommufdDevice)
    if idev is None:
        return -ENOENT
    having = (obj for obj in cmd.ctx.objects if isinstance(obj, Viommu) and obj.find_vdevice(idev.dev) is not None)
    viommu = next(having, None)
    return -ENOENT if viommu is None else trigger_event(viommu, idev.dev)


def _pasid_attach(selftest: Selftest, cmd: TestCmd) -> int:
    made = cmd.ctx.objects.get(cmd.id, SelftestDevice)
    if made is None or made.idev is None:
        return -ENOENT
    ret, cmd["pt_id"] = made.idev.attach(cmd["pt_id"], cmd["pasid"])
    if not ret:
        ret = cmd.respond()
        if ret:
            made.idev.detach(cmd["pasid"])
    return ret


def _pasid_replace(selftest: Selftest, cmd: TestCmd) -> int:
    made = cmd.ctx.objects.get(cmd.id, SelftestDevice)
    if made is None or made.idev is None:
        return -ENOENT
    ret, cmd["pt_id"] = made.idev.replace(cmd["pt_id"], cmd["pasid"])
    return ret or cmd.respond()


def _pasid_detach(selftest: Selftest, cmd: TestCmd) -> int:
    made = cmd.ctx.objects.get(cmd.id, SelftestDevice)
    if made is None or made.idev is None:
        return -ENOENT
    made.idev.detach(cmd["pasid"])
    return 0


def _pasid_check(selftest: Selftest, cmd: TestCmd) -> int:
    """0 if the PASID has exactly the table ``hwpt_id`` (0: none)."""
    made = cmd.ctx.objects.get(cmd.id, SelftestDevice)
    if made is None or made.idev is None:
        return -ENOENT
    group = made.idev.igroup.group
    missing, _ = iommu_attach_handle_get(group, cmd["pasid"])
    if missing or not cmd["hwpt_id"]:
        return 0 if missing and not cmd["hwpt_id"] else -EINVAL
    hwpt = cmd.ctx.objects.get(cmd["hwpt_id"], Hwpt)
    if hwpt is None:
        return -ENOENT
    return 0 if group.pasid_array[cmd["pasid"]][0] is hwpt.domain else -EINVAL


def _access(function: Callable[[TestCmd], int]) -> Handler:
    return lambda selftest, cmd: function(cmd)


_MADE: Final = "out_stdev_id out_hwpt_id out_idev_id"
OPS: Final[dict[int, tuple[str, tuple[int, int], str, Handler]]] = {
    1: ("ADD_RESERVED", (6, 2), "start:u64 length:u64", _add_reserved),
    2: ("MOCK_DOMAIN", (6, 2), _MADE, _mock_domain),
    3: ("MD_CHECK_MAP", (6, 2), "iova:u64 length:u64 uptr:u64", _check_map),
    4: ("MD_CHECK_REFS", (6, 2), "length:u64 uptr:u64 refs", _check_refs),
    5: ("CREATE_ACCESS", (6, 2), "out_access_fd flags", _access(selftest_access.create)),
    6: ("DESTROY_ACCESS_PAGES", (6, 2), "access_pages_id", _access(selftest_access.destroy_pages)),
    7: (
        "ACCESS_PAGES",
        (6, 2),
        "flags out_access_pages_id iova:u64 length:u64 uptr:u64",
        _access(selftest_access.pages),
    ),
    8: ("ACCESS_RW", (6, 2), "iova:u64 length:u64 uptr:u64 flags", _access(selftest_access.rw)),
    9: ("SET_TEMP_MEMORY_LIMIT", (6, 2), "limit", _memory_limit),
    10: ("MOCK_DOMAIN_REPLACE", (6, 5), "pt_id", _mock_domain_replace),
    11: ("ACCESS_REPLACE_IOAS", (6, 6), "ioas_id", _access(selftest_access.replace_ioas)),
    12: ("MOCK_DOMAIN_FLAGS", (6, 7), f"{_MADE} dev_flags", _mock_domain_flags),
    13: (
        "DIRTY",
        (6, 7),
        "flags pad iova:u64 length:u64 page_size:u64 uptr:u64 out_nr_dirty:u64",
        _dirty,
    ),
    14: ("MD_CHECK_IOTLB", (6, 7), "id iotlb", _check_iotlb),
    15: ("TRIGGER_IOPF", (6, 11), "dev_id pasid grpid perm addr:u64", _trigger_iopf),
    16: ("DEV_CHECK_CACHE", (6, 13), "id cache", _check_cache),
    17: ("TRIGGER_VEVENT", (6, 15), "dev_id", _trigger_vevent),
    18: ("PASID_ATTACH", (6, 15), "pasid pt_id", _pasid_attach),
    19: ("PASID_REPLACE", (6, 15), "pasid pt_id", _pasid_replace),
    20: ("PASID_DETACH", (6, 15), "pasid", _pasid_detach),
    21: ("PASID_CHECK_HWPT", (6, 15), "pasid hwpt_id", _pasid_check),
}
"""Number to (name, first release, fields of its union, what it does)."""
NUMBERS: Final = {name: number for number, (name, _, _, _) in OPS.items()}


def _sizes(version: tuple[int, int]) -> tuple[int, int]:
    """(smallest struct that is accepted, size that is known)."""
    return (68, 72) if version >= (6, 7) else (52, 56)


def offer(ctx: IommufdCtx, selftest: Selftest) -> None:
    """Let an open context answer IOMMU_TEST_CMD."""

    def run(process: Process, address: int) -> int:
        head = process.mm.read(address, 4)
        if head is None:
            return -EFAULT
        size = int.from_bytes(head, "little")
        smallest, known = _sizes(ctx.release.version)
        if size < smallest:
            return -EINVAL
        raw = process.mm.read(address, min(size, known))
        if raw is None:
            return -EFAULT
        if size > known:
            ret = check_zeroed_user(process.mm, address + known, size - known)
            if ret:
                return ret
        raw = raw.ljust(known, b"\0")
        _, number, target, _ = _HEAD.unpack_from(raw)
        entry = OPS.get(number)
        if entry is None or ctx.release.version < entry[1]:
            return -EOPNOTSUPP
        cmd = TestCmd(ctx, process, address, size, target, raw, entry[2])
        return entry[3](selftest, cmd)

    ctx.test_command = run

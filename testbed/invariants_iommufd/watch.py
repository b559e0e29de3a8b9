# SPDX-License-Identifier: GPL-2.0-or-later
"""A process that uses iommufd on the mock machine, watched: every operation is a step with the state before and after.

Reads the state of objects directly, and changes nothing that they could notice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from guest_driver.iommufd.access import AccessOps, IommufdAccess, iommufd_access_create, iommufd_access_destroy
from guest_driver.iommufd.attach import AttachHandle
from guest_driver.iommufd.context import IommufdCtx, iommufd_open
from guest_driver.iommufd.device import IommufdDevice, iommufd_device_bind
from guest_driver.iommufd.eventq import FaultQueue
from guest_driver.iommufd.hw_pagetable import Hwpt, HwptNested, HwptPaging
from guest_driver.iommufd.ioas import Ioas
from guest_driver.iommufd.process import Files, Process, UserMemory
from guest_driver.iommufd.release import Release, release
from guest_driver.iommufd.viommu import Viommu
from guest_driver.linux.io_pgfault import IopfFault
from guest_driver.linux.iommu import IommuDomain
from guest_driver.linux.mock_domain import MockDomain
from testbed.iommufd_machine import DeviceSpec, MockMachine

SCRATCH: Final = 0x7000_0000
DATA: Final = SCRATCH + 0x1000
BUFFER: Final = 0x1000_0000
BUFFER_PAGES: Final = 32
SPECS: Final = (
    DeviceSpec("dev1", 0),
    DeviceSpec("dev2", 0),
    DeviceSpec("dev3", 1, snoop_control=False),
    DeviceSpec("dev4", 2, pasids=1 << 12),
)


@dataclass(frozen=True)
class IoasView:
    """``areas``: I/O address to (bytes, id of the pages, offset); ``reserved``: (first, last, owner)."""

    areas: dict[int, tuple[int, int, int]]
    reserved: tuple[tuple[int, int, object], ...]
    allowed: tuple[tuple[int, int], ...]
    alignment: int
    hwpts: tuple[int, ...]


@dataclass(frozen=True)
class HwptView:
    """``holders``: what needs the table, devices by name and objects by id."""

    users: int
    holders: tuple[object, ...]
    automatic: bool
    enforce_cc: bool
    domain: IommuDomain
    paging: IommuDomain
    cookie: object
    ioas: int


@dataclass(frozen=True)
class GroupView:
    """``attached``: PASID to (id of the table, names of the devices that called attach)."""

    domain: IommuDomain | None
    default: IommuDomain | None
    blocking: IommuDomain | None
    owner: object
    attached: dict[int, tuple[int, tuple[str, ...]]]


@dataclass(frozen=True)
class View:
    """The state at one moment."""

    objects: dict[int, tuple[str, int]]
    """Id to (kind, users without the table of ids)."""
    ioases: dict[int, IoasView]
    hwpts: dict[int, HwptView]
    groups: dict[int, GroupView]
    pins: dict[int, int]
    charged: tuple[int, int]
    warnings: int


@dataclass
class Step:
    """One operation.  ``ops`` are the driver's calls meanwhile; ``out`` what came back beside the result."""

    name: str
    result: int
    before: View
    after: View
    ops: list[tuple[Any, ...]]
    args: dict[str, Any] = field(default_factory=dict)
    out: dict[str, Any] = field(default_factory=dict)
    answers: list[tuple[str, int, int]] = field(default_factory=list)
    """(device name, group, code) of page requests that were answered meanwhile."""

    @property
    def failed(self) -> bool:
        return self.result < 0


class Watch:
    """The process.  ``judge`` hears of every step; what it finds is kept in ``found``."""

    def __init__(self, judge: Callable[[Watch, Step], dict[str, str]], of: Release | None = None) -> None:
        self.machine: Final = MockMachine(SPECS, page=2048)
        self.kernel: Final = self.machine.kernel
        self.mock: Final = self.machine.mock
        self.devices: Final = {spec.name: dev for spec, dev in zip(SPECS, self.machine.devices)}
        self.names: Final = {dev: name for name, dev in self.devices.items()}
        self.mm: Final = UserMemory(self.kernel)
        self.files: Final = Files()
        self.process: Final = Process(self.mm, files=self.files)
        self.mm.mmap(SCRATCH, 0x4000)
        self.mm.mmap(BUFFER, BUFFER_PAGES * 4096)
        ctx = iommufd_open(self.kernel, of or release())
        assert isinstance(ctx, IommufdCtx)
        self.ctx: Final = ctx
        self.bound: Final[dict[str, IommufdDevice]] = {}
        self.access: IommufdAccess | None = None
        self.written: dict[MockDomain, set[int]] = {}
        """Pages that devices wrote while their table was tracked, since they were last reported."""
        self.requests: dict[tuple[str, int], int] = {}
        """(device name, group) to page request groups that were raised."""
        self.found: Final[dict[str, str]] = {}
        self._judge: Final = judge
        self.steps = 0

    # ------------------------------------------------------------------------------------------------- steps

    def do(self, name: str, act: Callable[[], int], args: dict[str, Any], out: dict[str, Any] | None = None) -> int:
        """One step: ``act`` answers 0 or more, or -errno; ``out`` is what it fills."""
        before, calls, answers = self.view(), len(self.mock.calls), len(self.mock.responses)
        result = act()
        done, told = self.mock.calls[calls:], self.mock.responses[answers:]
        step = Step(name, result, before, self.view(), done, args, {} if out is None else out, told)
        self.steps += 1
        for number, complaint in self._judge(self, step).items():
            self.found.setdefault(number, f"{name} {args}: {complaint}")
        return result

    def call(self, name: str, **fields: int) -> tuple[int, dict[str, Any]]:
        """An ioctl by name."""
        out: dict[str, Any] = {}

        def act() -> int:
            ret, after = self.ctx.call(self.process, name, SCRATCH, **fields)
            out.update(after)
            return ret

        return self.do(name, act, dict(fields), out), out

    def bind(self, device: str) -> int:
        def act() -> int:
            made = iommufd_device_bind(self.ctx, self.devices[device])
            if isinstance(made, int):
                return made
            self.bound[device] = made
            return 0

        return self.do("bind", act, {"device": device})

    def attach(self, device: str, pt: int, pasid: int = 0) -> int:
        out: dict[str, Any] = {}

        def act() -> int:
            ret, out["pt"] = self.bound[device].attach(pt, pasid)
            return ret

        return self.do("attach", act, {"device": device, "pt": pt, "pasid": pasid}, out)

    def replace(self, device: str, pt: int, pasid: int = 0) -> int:
        out: dict[str, Any] = {}

        def act() -> int:
            ret, out["pt"] = self.bound[device].replace(pt, pasid)
            return ret

        return self.do("replace", act, {"device": device, "pt": pt, "pasid": pasid}, out)

    def detach(self, device: str, pasid: int = 0) -> None:
        def act() -> int:
            self.bound[device].detach(pasid)
            return 0

        self.do("detach", act, {"device": device, "pasid": pasid})

    def close(self) -> None:
        """The process ends."""

        def act() -> int:
            if self.access is not None:
                iommufd_access_destroy(self.access)
            for fd in list(self.files.files):
                self.files.close(fd)
            self.ctx.exit()
            return 0

        self.do("close", act, {})

    def map(self, ioas: int, iova: int, page: int = 0, length: int = 4096, flags: int = 7) -> int:
        return self.call("IOAS_MAP", flags=flags, ioas_id=ioas, user_va=BUFFER + page * 4096, length=length, iova=iova)[
            0
        ]

    def pin(self, ioas: int, iova: int, length: int) -> int:
        """A kernel driver pins a range through an access of its own, made when it is first wanted."""

        def act() -> int:
            if self.access is None:
                made = iommufd_access_create(self.ctx, AccessOps(True, self._let_go))
                if isinstance(made, int):
                    return made
                self.access = made
            if self.access.ioas is None:
                ret = self.access.attach(ioas)
                if ret:
                    return ret
            return self.access.pin_pages(iova, length, False)[0]

        return self.do("pin", act, {"ioas": ioas, "iova": iova, "length": length})

    def _let_go(self, iova: int, length: int) -> None:
        assert self.access is not None
        for at, size in list(self.access.pins):
            if at < iova + length and iova < at + size:
                self.access.unpin_pages(at, size)

    def write_by(self, device: str, iova: int) -> str:
        """A device writes; whether the page is dirty now is for the invariants to know."""
        word = self.mock.dma(self.devices[device], iova, write=True)
        domain = self.mock.where[self.devices[device].name]
        table = domain.parent or domain
        if word == "ok" and table.tracking:
            self.written.setdefault(table, set()).add(iova & -self.mock.page)
        return word

    def request_page(self, device: str, group: int, addr: int = 0x5000) -> int:
        dev = self.devices[device]
        self.requests[dev.name, group] = self.requests.get((dev.name, group), 0) + 1
        fault = IopfFault(addr, 1, group)
        return self.do("request", lambda: self.mock.request_page(dev, fault), {"device": device, "group": group})

    def fail_nth(self, name: str, act: Callable[[], int]) -> int:
        """Let each allocation of an operation fail once, then the operation work; how many there were."""
        failures = 0
        while True:
            left = [failures]

            def fault(purpose: str, left: list[int] = left) -> bool:
                left[0] -= 1
                return left[0] == -1

            self.kernel.slab_fault = fault
            result = self.do("fail-nth", act, {"of": name, "number": failures, "reached": left})
            self.kernel.slab_fault = None
            if left[0] >= 0 or not result:
                return failures
            failures += 1

    # -------------------------------------------------------------------------------------------------- views

    def view(self) -> View:
        objects = {obj.id: (type(obj).__name__, obj.users - 1) for obj in self.ctx.objects}
        ioases = {obj.id: _ioas(obj) for obj in self.ctx.objects if isinstance(obj, Ioas)}
        hwpts = {obj.id: self._hwpt(obj) for obj in self.ctx.objects if isinstance(obj, Hwpt)}
        groups = {group.id: self._group(group) for group in self.kernel.iommu.groups}
        charged = (self.mm.pinned_vm, self.process.locked_vm)
        return View(objects, ioases, hwpts, groups, dict(self.mm.pins), charged, self.kernel.printk.warnings)

    def _hwpt(self, hwpt: Hwpt) -> HwptView:
        holders: list[object] = []
        for igroup in self.ctx.groups.values():
            for attachment in (igroup.rid, *igroup.pasids.values()):
                if attachment.hwpt is hwpt:
                    holders += [self.names[idev.dev] for idev in attachment.devices]
        for obj in self.ctx.objects:
            if (isinstance(obj, HwptNested) and obj.viommu is None and obj.parent is hwpt) or (
                isinstance(obj, Viommu) and obj.hwpt is hwpt
            ):
                holders.append(obj.id)
        paging = hwpt.paging
        return HwptView(
            hwpt.users - 1,
            tuple(holders),
            isinstance(hwpt, HwptPaging) and hwpt.auto_domain,
            paging.enforce_cache_coherency,
            hwpt.domain,
            paging.domain,
            paging.domain.cookie,
            paging.ioas.id,
        )

    def _group(self, group: Any) -> GroupView:
        igroup = self.ctx.groups.get(group)
        attached = {}
        for pasid, attachment in {} if igroup is None else {0: igroup.rid, **igroup.pasids}.items():
            if attachment.hwpt is not None:
                attached[pasid] = (attachment.hwpt.id, tuple(self.names[idev.dev] for idev in attachment.devices))
        return GroupView(group.domain, group.default_domain, group.blocking_domain, group.owner, attached)

    def pending(self) -> list[tuple[FaultQueue, AttachHandle]]:
        """Page request groups that wait for an answer, with the attachment they came through."""
        return [
            (queue, group.handle)
            for queue in self.ctx.objects
            if isinstance(queue, FaultQueue)
            for group in (*queue.deliver, *queue.response.values())
            if isinstance(group.handle, AttachHandle)
        ]


def _ioas(ioas: Ioas) -> IoasView:
    iopt = ioas.iopt
    return IoasView(
        {at: (area.length, id(area.pages), area.offset) for at, area in iopt.areas.items()},
        tuple(iopt.reserved.ranges),
        tuple(iopt.allowed),
        iopt.iova_alignment,
        tuple(hwpt.id for hwpt in ioas.hwpt_list),
    )

# SPDX-License-Identifier: GPL-2.0-or-later
"""A test bed in which a driver is put through programs: every call is recorded, every end of a program is undone.

The guest boots anew for each program from a snapshot of the machine, which takes about a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Final

from base.units import Sbdf
from guest_driver.boot import GuestKernel, boot
from guest_driver.drivers import DriverVersion
from guest_driver.linux.device import Device
from guest_driver.linux.dma import CoherentBuffer
from guest_driver.linux.iommu import IommuDomain, IommuDomainOps
from guest_driver.linux.iommu_group import IommuGroup
from guest_driver.linux.kernel import CommandLine, Kernel
from guest_driver.linux.oops import KernelOops, NullTable
from guest_driver.linux.scatterlist import Scatterlist
from guest_driver.linux.uevent import PciHotplug, parse_uevent, pci_uevent
from guest_driver.port import PciInfo
from guest_driver.xen_iommu import X86_MSI_WINDOW, XenIommu, XenIommuDomain
from hypervisor.iommu.context import IommuContext
from hypervisor.iommu.moves import move_device
from machine.firmware import Rmrr
from testbed.build import COPIER, NIC, ROGUE, TestBed, build
from testbed.config import MIB, SWITCHED_ON, Config
from testbed.guest import HypercallCall, ObservedHypercalls
from testbed.reachable import mapped_pages
from testbed.validate.faults import FaultyHypercalls
from testbed.validate.record import GroupState, OpCall, Pages, Step, View

DEVICES: Final = {"nic": NIC, "copier": COPIER, "rogue": ROGUE}
STUCK: Final = 20_000
"""Hypercalls in one call of a program after which the guest is taken to be in an endless loop."""
RMRR: Final = Rmrr(0x260_0000, 0x260_3FFF, (COPIER,))
"""Four pages that firmware keeps for the copier, where a scenario wants such a region."""

_CHANGES: Final = ("map_pages", "unmap_pages", "alloc_context", "free_context")
_RAM: Final = 64 * MIB
_GUEST_RAM: Final = 16 * MIB


class World:
    """A machine, a hypervisor and one driver version; ``perform`` (see :mod:`testbed.validate.calls`) acts on it."""

    def __init__(
        self,
        driver: DriverVersion,
        *,
        backend: str = "vtd",
        profile: str = "v7-fixed",
        guest: str = "pvh",
        rmrr: bool = False,
        defects: tuple[str, ...] = (),
        sabotage: Callable[[XenIommu], None] | None = None,
    ) -> None:
        """``defects``: faults of the hypervisor besides those of its profile.  ``sabotage`` exchanges functions of the
        driver before they are recorded (tests break things with it)."""
        self.driver: Final = driver
        self.guest_kind: Final = guest
        self.sabotage: Final = sabotage
        self.config: Final = Config(
            backend=backend,
            profile=profile,
            guest="pv" if guest == "pv" else "pvh",
            ram=_RAM,
            guest_ram=_GUEST_RAM,
            rmrrs=(RMRR,) if rmrr else (),
            defects=(*SWITCHED_ON.get(), *defects),
        )
        self.testbed: TestBed
        self.faults: FaultyHypercalls
        self.verified_groups: Final[set[frozenset[frozenset[int]]]] = set()
        """Partitions into groups that were found again when the bus was probed backwards."""
        self._fresh()

    def _fresh(self) -> None:
        self.testbed = build(self.config)
        self.testbed.snapshot()
        self._forget()

    def _forget(self) -> None:
        testbed = self.testbed
        memory = copy(testbed.vcpu.memory)  # who looks on is not met by failures that are put into the vCPU's own
        self.faults = FaultyHypercalls(testbed.hypercalls, testbed.xen.abi, memory)
        self.port: ObservedHypercalls = ObservedHypercalls(self.faults, testbed.xen.abi, memory)
        self.port.watch = self._heard
        self.kernel: GuestKernel | None = None
        self.domains: dict[int, XenIommuDomain] = {}
        """Domains that the program allocated, by its own number."""
        self.dma: dict[int, tuple[Device, int, int]] = {}
        """DMA API mappings of the program: (device, address, bytes)."""
        self.lists: dict[int, tuple[Device, list[Scatterlist]]] = {}
        self.coherent: dict[int, CoherentBuffer] = {}
        self.unplugged: dict[str, Device] = {}
        self.one_group = False
        """Copier and rogue share a group, as functions without ACS do."""
        self.patch_pci: Callable[[PciInfo], PciInfo] | None = None
        """What enumeration finds, changed."""
        self.equip: Callable[[XenIommu], None] | None = None
        """Gives the driver what no posted one has, before it is registered."""
        self.pasids: dict[tuple[int, int], IommuDomain] = {}
        """(device, PASID) to the domain that a driver with PASIDs has set."""
        self.pasid_fault: int | None = None
        """How many more devices get a PASID before one fails."""
        self._mapped: dict[int, Pages] = {}
        """Contexts' tables as last read; a hypercall that may change one takes it out."""
        self._last: View | None = None
        self._step: Step | None = None
        self._budget = STUCK

    def reset(self) -> None:
        """Power off: back to a machine on which no guest has booted."""
        self.testbed.reset()
        self._forget()

    def rebuild(self) -> None:
        """A new machine, after one on which the hypervisor died."""
        self._fresh()

    # -- booting

    @property
    def booted(self) -> GuestKernel:
        if self.kernel is None:
            raise ValueError("the program has to boot the guest first")
        return self.kernel

    @property
    def xen_iommu(self) -> XenIommu | None:
        return None if self.kernel is None else self.kernel.xen

    def boot(self, passthrough: bool = False) -> int:
        """Boot the guest; 0, or why its driver did not start."""
        testbed = self.testbed

        def before_probe(kernel: Kernel) -> None:
            if self.patch_pci is not None:
                kernel.devices[:] = [Device(kernel, self.patch_pci(dev.pci)) for dev in kernel.devices]

        def start(*args: Any, **options: Any) -> XenIommu | int:
            return self.driver.init(*args, observe=self._observe, **options)

        self.kernel = boot(
            self.port,
            testbed.ram,
            testbed.guest_pci,
            testbed.mmio,
            testbed.xen.abi,
            cmdline=CommandLine(passthrough=passthrough),
            initial_domain=self.guest_kind != "hvm",
            msi_window=None if testbed.backend.doorbell_is_translated else X86_MSI_WINDOW,
            before_probe=before_probe,
            init=start,
        )
        return self.kernel.xen_errno

    def hotplug(self, info: PciInfo, action: str) -> int:
        """A function comes or goes, told by the uevent's bytes."""
        message = bytes(pci_uevent(info, action))
        return PciHotplug(self.booted.kernel, {info.sbdf: info}).handle(parse_uevent(message))

    def device(self, name: str) -> Device:
        """The device of that name, plugged or not."""
        if name in self.unplugged:
            return self.unplugged[name]
        return self.booted.devices[DEVICES[name]]

    # -- recording

    def _heard(self, call: HypercallCall) -> None:
        self._budget -= 1
        if call.name in _CHANGES:
            self._mapped.pop(call.before.get("ctx_no", -1), None)
        elif call.name == "reattach_device":
            self._mapped.clear()  # firmware's regions move with the device
        if self._budget < 0:
            raise KernelOops(f"watchdog: soft lockup, {STUCK} hypercalls and no end ({call.name})")
        if self._step is not None:
            self._step.hypercalls.append(call)

    def begin(self, step: Step) -> None:
        """Record into ``step`` from here on."""
        self._budget = STUCK
        step.before = self.view() if self._last is None else self._last
        step.injected = -self.faults.injected
        self._step = step

    def end(self) -> None:
        """Nothing more belongs to the step."""
        step = self._step
        assert step is not None
        self._step = None
        step.injected += self.faults.injected
        step.after = self._last = self.view()

    def _observe(self, driver: XenIommu) -> None:
        if self.sabotage is not None:
            self.sabotage(driver)
        if self.one_group:
            self._share_group(driver)
        if self.equip is not None:
            self.equip(driver)
        self._wrap(driver.domain_ops)

        def wrap_static() -> int:
            for domain in (driver.blocked, driver.identity):
                if domain is not None and not isinstance(domain.ops, NullTable):
                    self._wrap(domain.ops)
            return 0

        driver.static_domains.append(wrap_static)

    def _share_group(self, driver: XenIommu) -> None:
        ordinary = driver.ops.device_group

        def device_group(dev: Device) -> IommuGroup | int:
            if dev.pci.sbdf in (COPIER, ROGUE):
                for group in dev.kernel.iommu.groups:
                    if any(member.pci.sbdf in (COPIER, ROGUE) for member in group.devices):
                        return group
            return ordinary(dev)

        driver.ops.device_group = device_group

    def _wrap(self, ops: IommuDomainOps) -> None:
        for name in ("attach_dev", "map_pages", "unmap_pages", "iotlb_sync_map", "iotlb_sync", "flush_iotlb_all"):
            function = getattr(ops, name)
            if function is not None:
                setattr(ops, name, self._recorded(name, function))

    def _recorded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(domain: XenIommuDomain, *args: Any) -> Any:
            step = self._step
            if step is None:
                return function(domain, *args)
            op = OpCall(name, (domain, *args))
            step.ops.append(op)
            moves = name in ("map_pages", "unmap_pages")
            used = self.arena_used()
            if moves:
                op.before = self.mapped(domain)
            elif name == "attach_dev":
                op.where = self.context_of(args[0].pci.sbdf), None
            op.result = function(domain, *args)
            if moves:
                op.after = self.mapped(domain)
            elif name == "attach_dev":
                op.where = op.where[0], self.context_of(args[0].pci.sbdf)
            op.arena = used, self.arena_used()
            return op.result

        recorded.__name__ = getattr(function, "__name__", name)
        return recorded

    # -- the truth

    def arena_used(self) -> int:
        iommu = self.testbed.dom0.iommu
        return iommu.arena.used if iommu is not None and iommu.arena is not None else 0

    def context(self, number: int) -> IommuContext | None:
        """The hypervisor's context of that number."""
        iommu = self.testbed.dom0.iommu
        return None if iommu is None else iommu.default if number == 0 else iommu.contexts.get(number)

    def context_of(self, sbdf: int) -> int | None:
        """Number of the context that the device is in."""
        device = self.testbed.xen.find_device(self.testbed.dom0, sbdf)
        return None if device is None or device.context is None else device.context.number

    def mapped(self, domain: IommuDomain) -> Pages:
        """What hardware would find in the domain's context, without what firmware keeps there."""
        number = getattr(domain, "ctx_no", None)
        context = None if not number else self.context(number)
        if number is None or context is None or context.table is None:
            return {}
        if number in self._mapped:
            return self._mapped[number]
        pages = mapped_pages(self.testbed.memory, context.table)
        for region in context.identity:
            for dfn in range(region.first, region.last + 1):
                pages.pop(dfn, None)
        self._mapped[number] = pages
        return pages

    def view(self) -> View:
        """The state of now."""
        iommu = self.testbed.dom0.iommu
        kernel = self.kernel
        if kernel is None:
            return View(contexts=frozenset(iommu.contexts) if iommu is not None else frozenset())
        domains: Sequence[IommuDomain] = list(kernel.iommu.domains)
        groups = tuple(
            GroupState(
                group,
                tuple(dev.pci.sbdf for dev in group.devices),
                group.domain,
                group.default_domain,
                group.owner,
                group.owner_cnt,
                tuple(self.context_of(dev.pci.sbdf) for dev in group.devices),
            )
            for group in kernel.iommu.groups
        )
        live: dict[IommuDomain, tuple[tuple[int, int], ...]] = {}
        for domain in domains:
            if domain.cookie is not None and domain.cookie.iovad is not None:
                live[domain] = tuple(domain.cookie.iovad.live_ranges())
        return View(
            {domain: self.mapped(domain) for domain in domains},
            groups,
            frozenset(iommu.contexts) if iommu is not None else frozenset(),
            kernel.warnings,
            live,
        )

    def pulled_out(self, dev: Device) -> None:
        """Xen hears that the device is gone; should it come back, it comes back in the default context."""
        testbed = self.testbed
        device = testbed.xen.find_device(testbed.dom0, dev.pci.sbdf)
        self._mapped.clear()
        self._last = None
        if device is not None and testbed.dom0.iommu is not None:
            move_device(testbed.xen, testbed.dom0, device, testbed.dom0.iommu.default)

    def dma_reaches(self, sbdf: Sbdf, iova: int, write: bool = False) -> int | None:
        """Machine address that a DMA of the device reaches right now through the caches; ``None`` if it is blocked."""
        answer = self.testbed.translate(sbdf, iova, write)
        return answer if isinstance(answer, int) else None

    def frames(self, kind: str, count: int) -> int:
        """First pfn of ``count`` neighbouring pages: ``near``, whose machine frames are neighbours too and start at a
        2 MiB boundary, or ``far``, whose machine frames are not neighbours (in a PV guest)."""
        mfns = self.testbed.mfns
        if kind == "near":
            return 1024
        half = len(mfns) // 2
        for pfn in range(half, len(mfns) - count):
            if mfns[pfn + 1] != mfns[pfn] + 1:
                return pfn
        raise ValueError("this guest's memory has no frames out of order")

    def mfn(self, pfn: int) -> int:
        return self.testbed.mfns[pfn]

    def with_driver(self, driver: DriverVersion) -> World:
        """An equal world with another driver."""
        config = self.config
        return World(
            driver,
            backend=config.backend,
            profile=config.profile,
            guest=self.guest_kind,
            rmrr=bool(config.rmrrs),
            defects=config.defects,
        )


def patched(**changes: Any) -> Callable[[PciInfo], PciInfo]:
    """For ``World.patch_pci``: the same changes to every function."""
    return lambda info: replace(info, **changes)

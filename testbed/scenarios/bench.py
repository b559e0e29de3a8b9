# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a scenario runs: devices in groups, a process, and iommufd open, over the mock driver or over Xen.

On Xen three functions of the test bed share a group, and every DMA goes through the real tables of the chosen backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from abi.errno import errno_name
from base.units import make_sbdf
from guest_driver.boot import boot
from guest_driver.iommufd.context import IommufdCtx, iommufd_open
from guest_driver.iommufd.device import IommufdDevice, IommufdGroup
from guest_driver.iommufd.hw_pagetable import Hwpt
from guest_driver.iommufd.ioas import Ioas
from guest_driver.iommufd.process import Process, UserMemory
from guest_driver.iommufd.release import Release
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import IOMMU_RESV_RESERVED, IommuDomain, IommuResvRegion
from guest_driver.linux.iommu_group import IommuGroup
from guest_driver.linux.kernel import CommandLine, Kernel
from guest_driver.linux.mock_domain import MockIommu
from guest_driver.port import PciInfo
from guest_driver.xen_iommu import X86_MSI_WINDOW, XenIommu, xen_iommu_init
from testbed.build import COPIER, NIC, ROGUE, build
from testbed.config import MIB, Config

SCRATCH: Final = 0x7000_0000
BUFFER: Final = 0x1000_0000
RESERVED: Final = 0x800_0000
"""dev1's reserved page, a page each from here for the others."""
MOCK: Final = "mock"


class Bench(Protocol):
    """A place to run; ``devices`` are dev1, dev2, dev3."""

    kernel: Kernel
    devices: list[Device]
    refuse: dict[tuple[IommuDomain | None, str], int]
    """(domain or None for any, device name) to the error with which attaching is refused."""
    regions: dict[str, list[IommuResvRegion]]

    def dma(self, dev: Device, iova: int) -> str:
        """What becomes of a device's read: "ok" or a word for the fault."""
        ...


class _Ram:
    """Memory of the mock bench."""

    xen_pv_domain = False

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._data = bytearray(pages << 12)

    def read(self, paddr: int, length: int) -> bytes:
        return bytes(self._data[paddr : paddr + length])

    def write(self, paddr: int, data: bytes) -> None:
        self._data[paddr : paddr + len(data)] = data

    def linear(self, paddr: int) -> int:
        return paddr

    def pfn_to_gfn(self, pfn: int) -> int:
        return pfn


class _Pci:
    def __init__(self, functions: list[PciInfo]) -> None:
        self._functions = functions

    def devices(self) -> Sequence[PciInfo]:
        return self._functions

    def request_irq(self, handler: Callable[[], None]) -> tuple[int, int] | None:
        return None


class _NoMmio:
    def readl(self, address: int) -> int:
        return 0

    def writel(self, address: int, value: int) -> None:
        pass


class MockBench:
    """Three functions over the mock driver, in one group or apart."""

    def __init__(self, together: bool = True, checked: bool = True) -> None:
        functions = [
            PciInfo(make_sbdf(0, 0, 5 if together else 5 + number, number if together else 0), multifunction=together)
            for number in range(3)
        ]
        self.kernel = Kernel(_Ram(256), _Pci(functions), _NoMmio(), CommandLine())
        self.devices = [Device(self.kernel, info) for info in functions]
        self.kernel.devices.extend(self.devices)
        self.mock: Final = MockIommu(page=4096, checked=checked)
        self.refuse = self.mock.refuse
        self.regions = self.mock.regions
        error = self.mock.register(self.kernel)
        if error:
            raise ValueError(f"the mock driver did not start ({errno_name(error)})")

    def dma(self, dev: Device, iova: int) -> str:
        return self.mock.dma(dev, iova)


class XenBench:
    """The test bed's NIC, copier and rogue device over the PV-IOMMU, in one group."""

    def __init__(self, backend: str, profile: str = "v7-fixed") -> None:
        self.testbed: Final = build(
            Config(backend=backend, profile=profile, guest="pvh", ram=64 * MIB, guest_ram=16 * MIB)
        )
        self.refuse: dict[tuple[IommuDomain | None, str], int] = {}
        self.regions: dict[str, list[IommuResvRegion]] = {}
        testbed = self.testbed
        guest = boot(
            testbed.hypercalls,
            testbed.ram,
            testbed.guest_pci,
            testbed.mmio,
            testbed.xen.abi,
            msi_window=None if testbed.backend.doorbell_is_translated else X86_MSI_WINDOW,
            init=partial(xen_iommu_init, adjust=self._adjust),
        )
        if guest.xen is None:
            raise ValueError(f"the guest found no PV-IOMMU ({errno_name(guest.xen_errno)})")
        self.kernel = guest.kernel
        self.devices = [guest.devices[sbdf] for sbdf in (NIC, COPIER, ROGUE)]

    def _adjust(self, driver: XenIommu) -> None:
        ops = driver.ops
        attach, group, regions = (
            ops.default_domain_ops.attach_dev,
            ops.device_group,
            ops.get_resv_regions or (lambda dev: []),
        )

        def attach_dev(domain: IommuDomain, dev: Device, old: IommuDomain | None) -> int:
            errno = self.refuse.get((domain, dev.name), self.refuse.get((None, dev.name), 0))
            return -errno if errno else attach(domain, dev, old)

        def device_group(dev: Device) -> IommuGroup | int:
            if dev.pci.sbdf in (NIC, COPIER, ROGUE):
                for other in dev.kernel.devices:
                    if other.pci.sbdf in (NIC, COPIER, ROGUE) and other.iommu_group is not None:
                        return other.iommu_group
            return group(dev)

        ops.default_domain_ops.attach_dev = attach_dev
        ops.device_group = device_group
        ops.get_resv_regions = lambda dev: [*regions(dev), *self.regions.get(dev.name, [])]

    def dma(self, dev: Device, iova: int) -> str:
        answer = self.testbed.fabric.port(dev.pci.sbdf).read(iova, 8)
        return "ok" if isinstance(answer, bytes) else "fault"


class Session:
    """A process that uses iommufd on a bench, and names for what it has made."""

    def __init__(self, bench: Bench, release: Release) -> None:
        self.bench: Final = bench
        self.devices: Final = {f"dev{number}": dev for number, dev in enumerate(bench.devices, 1)}
        for number, dev in enumerate(bench.devices):
            bench.regions[dev.name] = [IommuResvRegion(RESERVED + (number << 12), 4096, 0, IOMMU_RESV_RESERVED)]
        self.mm: Final = UserMemory(bench.kernel)
        self.process: Final = Process(self.mm)
        if self.mm.mmap(SCRATCH, 4096) or self.mm.mmap(BUFFER, 16 * 4096):
            raise ValueError("the guest has no memory for a process")
        ctx = iommufd_open(bench.kernel, release)
        if isinstance(ctx, int):
            raise ValueError("iommufd could not be opened")
        self.ctx: Final[IommufdCtx] = ctx
        self.bound: Final[dict[str, IommufdDevice]] = {}
        self.ids: Final[dict[str, int]] = {}

    def call(self, name: str, **fields: int) -> tuple[int, dict[str, int]]:
        return self.ctx.call(self.process, name, SCRATCH, **fields)

    def ioas(self, name: str) -> int:
        ret, out = self.call("IOAS_ALLOC")
        self.ids[name] = out["out_ioas_id"]
        return ret

    def table(self, name: str, device: str, ioas: str, flags: int = 0) -> int:
        ret, out = self.call("HWPT_ALLOC", dev_id=self.bound[device].id, pt_id=self.ids[ioas], flags=flags)
        if not ret:
            self.ids[name] = out["out_hwpt_id"]
        return ret

    def map(self, ioas: str, iova: int) -> int:
        ret, _ = self.call("IOAS_MAP", flags=7, ioas_id=self.ids[ioas], user_va=BUFFER, length=4096, iova=iova)
        return ret

    def hwpt(self, name: str) -> Hwpt | None:
        return self.ctx.objects.get(self.ids[name], Hwpt) if name in self.ids else None

    def name_of(self, number: int) -> str:
        return next((name for name, known in self.ids.items() if known == number), f"id {number}")

    def owners(self, ioas: Ioas) -> list[str]:
        """Devices that keep reserved regions in ``ioas``."""
        held = ioas.iopt.reserved.owners()
        return [name for name, dev in self.bound.items() if any(owner is dev for owner in held)]

    def state(self, probe: int | None = None) -> list[str]:
        """Groups, tables, references and devices as lines; ``probe`` is an address that each device reads."""
        lines = []
        for group in dict.fromkeys(dev.iommu_group for dev in self.devices.values()):
            if group is None:
                continue
            names = [name for name, dev in self.devices.items() if dev.iommu_group is group]
            lines.append(f"group {{{', '.join(names)}}}: on {self._where(group)}, owner count {group.owner_cnt}")
            igroup: IommufdGroup | None = self.ctx.groups.get(group)
            if igroup is not None:
                attached = [name for name, idev in self.bound.items() if idev in igroup.devices]
                lines.append(f"  attached: {', '.join(attached) or 'none'}")
        for obj in self.ctx.objects:
            if isinstance(obj, Hwpt):
                lines.append(f"  {self.name_of(obj.id)}: {obj.users - 1} references")
            elif isinstance(obj, Ioas):
                lines.append(f"  {self.name_of(obj.id)}: reserved for {', '.join(self.owners(obj)) or 'nobody'}")
        if probe is not None:
            seen = ", ".join(f"{name} {self.bench.dma(dev, probe)}" for name, dev in self.devices.items())
            lines.append(f"  DMA to {probe:#x}: {seen}")
        return lines

    def _where(self, group: IommuGroup) -> str:
        if group.domain is group.default_domain:
            return "its default domain"
        if group.domain is group.blocking_domain:
            return "the blocking domain"
        for obj in self.ctx.objects:
            if isinstance(obj, Hwpt) and obj.domain is group.domain:
                return self.name_of(obj.id)
        return "another domain"


def bench(name: str, together: bool = True, checked: bool = True) -> Bench:
    """``mock`` or a backend's name; ``ValueError`` for others."""
    return MockBench(together, checked) if name == MOCK else XenBench(name)

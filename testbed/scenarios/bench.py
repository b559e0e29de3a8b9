# SPDX-License-Identifier: GPL-2.0-or-later
"""What a scenario runs with: a process that uses iommufd on a machine, and names for what it makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from guest_driver.iommufd.context import IommufdCtx, iommufd_open
from guest_driver.iommufd.device import IommufdDevice, IommufdGroup, iommufd_device_bind
from guest_driver.iommufd.hw_pagetable import Hwpt
from guest_driver.iommufd.ioas import Ioas
from guest_driver.iommufd.process import Process, UserMemory
from guest_driver.iommufd.release import Release
from guest_driver.linux.iommu import IOMMU_RESV_RESERVED, IommuResvRegion
from guest_driver.linux.iommu_group import IommuGroup
from testbed.iommufd_machine import Machine
from testbed.scenarios.step import Step, held

SCRATCH: Final = 0x7000_0000
BUFFER: Final = 0x1000_0000
RESERVED: Final = 0x800_0000
"""dev1's reserved page, a page each from here for the others."""


class Session:
    """The process."""

    def __init__(self, bench: Machine, release: Release) -> None:
        self.bench: Final = bench
        self.devices: Final = {spec.name: dev for spec, dev in zip(bench.specs, bench.devices)}
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

    def unmap(self, ioas: str, iova: int, length: int) -> int:
        """Bytes that are gone, or -errno."""
        ret, out = self.call("IOAS_UNMAP", ioas_id=self.ids[ioas], iova=iova, length=length)
        return ret or out["length"]

    def bind(self, name: str) -> int:
        """Give a device to this process."""
        idev = iommufd_device_bind(self.ctx, self.devices[name])
        if isinstance(idev, int):
            return idev
        self.bound[name] = idev
        return 0

    def end(self) -> Iterator[Step]:
        """The process ends; whether nothing is left."""
        warnings = self.bench.kernel.printk.warnings
        self.ctx.exit()
        groups = {dev.iommu_group for dev in self.devices.values()}
        clean = all(group is not None and group.domain is group.default_domain for group in groups)
        yield held(
            "close: nothing pinned, every group on its default domain, no warning",
            clean and not self.mm.pins and not warnings,
            state=self.state(),
        )

    def reserved(self, device: str) -> int:
        """Where the reserved page of a device is."""
        return RESERVED + (list(self.devices).index(device) << 12)

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

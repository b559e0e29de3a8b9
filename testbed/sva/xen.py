# SPDX-License-Identifier: GPL-2.0-or-later
"""The same driver in a guest of Xen: its context descriptors lie in the guest's memory, under Xen's stage 2.

The hardware domain of a test bed whose unit has both stages, with x1-nested.  Four endpoints as in
:mod:`testbed.sva.linux`; every DMA goes through the guest's tables and Xen's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from abi.errno import errno_name
from base.units import make_sbdf
from guest_driver.arm_smmu_v3.domains import ArmSmmuDevice, ArmSmmuMaster
from guest_driver.arm_smmu_v3.xen_port import XenSmmu, xen_smmu_probe
from guest_driver.linux.device import Device
from guest_driver.linux.kernel import CommandLine, Kernel
from guest_driver.port import GuestRam, PciInfo
from guest_driver.xen_hypercall import IommuOp
from machine.dma import DmaPort, PasidPort
from machine.iommu.smmuv3.unit import Smmuv3Unit
from machine.iommu.unit import Fault
from testbed.build import TestBed
from testbed.config import MIB, Config
from testbed.sva.linux import PASIDS, Adjust
from testbed.sva.stores import Entry
from testbed.units import UnitSpec

_SBDFS: Final = tuple(make_sbdf(0, 0, slot, function) for slot, function in ((8, 0), (9, 0), (10, 0), (10, 1)))
ARENA_ORDER: Final = 8
CONTEXTS: Final = 32


class _Endpoints:
    """The guest's PCI, less everything but the four endpoints."""

    def __init__(self, everything: Sequence[PciInfo]) -> None:
        mine = [info for info in everything if info.sbdf in _SBDFS]
        self._found: Final = [replace(info, max_pasids=PASIDS, multifunction=info.sbdf in _SBDFS[2:]) for info in mine]

    def devices(self) -> Sequence[PciInfo]:
        return self._found

    def request_irq(self, handler: Callable[[], None]) -> tuple[int, int] | None:
        return None


class SmmuXen:
    """The guest with the driver started; like :class:`testbed.sva.linux.SmmuLinux`."""

    def __init__(
        self, adjust: Adjust | None = None, *, iotlb: str = "stale", ram: Callable[[GuestRam], GuestRam] | None = None
    ) -> None:
        self.testbed: Final = TestBed(
            Config(
                backend="smmuv3",
                profile="x1-nested",
                guest="pvh",
                ram=24 * MIB,
                guest_ram=8 * MIB,
                iotlb=iotlb,
                units=(UnitSpec("nested"),),
                endpoints=_SBDFS,
            )
        )
        unit = self.testbed.unit
        assert isinstance(unit, Smmuv3Unit)
        self.unit: Final = unit
        self.memory: Final = self.testbed.memory
        own: GuestRam = self.testbed.ram
        pci = _Endpoints(self.testbed.guest_pci.devices())
        self.kernel: Final = Kernel(ram(own) if ram else own, pci, self.testbed.mmio, CommandLine(passthrough=True))
        self.kernel.devices.extend(Device(self.kernel, info) for info in pci.devices())
        self.dev1, self.dev2, *self.pair = self.kernel.devices
        self.op: Final = self._initialise()
        ret, fields = self.op.call("alloc_context", 0, 0)
        port = ret or xen_smmu_probe(self.kernel, self.op, self.dev1.pci.sbdf, blocked=fields[0])
        if isinstance(port, int):
            raise ValueError(f"the guest found no unit with context descriptors ({errno_name(port)})")
        self.port: Final[XenSmmu] = port
        self.smmu: Final = ArmSmmuDevice(self.kernel, port)
        if adjust is not None:
            adjust(self.smmu)
        ret = self.smmu.register()
        if ret:
            raise ValueError(f"the devices could not be probed ({errno_name(ret)})")

    def _initialise(self) -> IommuOp:
        pfn = self.kernel.pages.alloc_pages(0)
        op = IommuOp(self.testbed.hypercalls, self.testbed.ram, self.kernel.pages, self.testbed.xen.abi, pfn)
        ret, _ = op.call("init", CONTEXTS, ARENA_ORDER)
        if ret:
            raise ValueError(f"PV-IOMMU could not be set up ({errno_name(ret)})")
        return op

    def master(self, dev: Device) -> ArmSmmuMaster:
        return self.smmu.masters[dev]

    def dma(self, dev: Device, iova: int, pasid: int | None = None) -> bytes | Fault:
        """Eight bytes that the device reads, or why it does not."""
        fabric, sbdf = self.testbed.fabric, dev.pci.sbdf
        port = DmaPort(fabric, sbdf) if pasid is None else PasidPort(fabric, sbdf, pasid)
        return port.read(iova, 8)

    def stream_entry(self, dev: Device) -> Entry:
        """The stream's entry, which is Xen's, as the unit finds it."""
        return stream_entry(self.unit, dev)

    def shutdown(self) -> None:
        """Remove the driver; what stays allocated afterwards is a leak."""
        self.smmu.unregister()
        for dev in self.kernel.devices:
            sbdf = dev.pci.sbdf
            self.op.call("reattach_device", 0, 0, sbdf >> 8 & 0xFF, sbdf & 0xFF, 0)
        self.op.call("free_context", self.port.blocked, 0)
        self.port.remove()
        self.op.release()


def stream_entry(unit: Smmuv3Unit, dev: Device) -> Entry:
    """The eight words of the device's stream table entry, as a walk finds them."""
    for step in unit.walk(dev.pci.sbdf & 0xFFFF, 0).steps:
        if step.name == "STE":
            return step.words
    raise ValueError(f"{dev.name} has no stream table entry")

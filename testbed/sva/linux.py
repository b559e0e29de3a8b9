# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux on the bare metal of a machine with an SMMUv3 that has stage 1 and substreams: where SVA happens.

No hypervisor: guest memory is the machine's, tables and queues are the driver's, and the unit walks them.  Two devices
in groups of their own, ``dev1`` and ``dev2``, and ``pair``, two functions of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from abi.errno import errno_name
from base.units import make_sbdf
from guest_driver.arm_smmu_v3.domains import ArmSmmuDevice, ArmSmmuMaster
from guest_driver.arm_smmu_v3.smmu import BareSmmu, arm_smmu_device_probe
from guest_driver.linux.device import Device
from guest_driver.linux.kernel import CommandLine, Kernel
from guest_driver.port import GuestRam, PciInfo
from machine.dma import DmaFabric, DmaPort, PasidPort
from machine.iommu.replacement import Replacement
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.unit import Smmuv3Unit
from machine.iommu.unit import Fault
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus
from testbed.config import MIB
from testbed.ports import BusMmio, DomainRam
from testbed.sva.stores import WORDS, Entry

BARE: Final = "bare-smmuv3"
"""What this place is called."""
SMMU_BASE: Final = 0x4000_0000
SSID_BITS: Final = 12
"""More PASIDs than one leaf of a two-level table has descriptors for."""
PASIDS: Final = 1 << SSID_BITS
_FUNCTIONS: Final = (
    PciInfo(make_sbdf(0, 0, 4, 0), max_pasids=PASIDS),
    PciInfo(make_sbdf(0, 0, 5, 0), max_pasids=PASIDS),
    PciInfo(make_sbdf(0, 0, 6, 0), multifunction=True, max_pasids=PASIDS),
    PciInfo(make_sbdf(0, 0, 6, 1), multifunction=True, max_pasids=PASIDS),
)
Adjust = Callable[[ArmSmmuDevice], None]


class _Enumeration:
    """PCI as the kernel finds it."""

    def devices(self) -> Sequence[PciInfo]:
        return _FUNCTIONS

    def request_irq(self, handler: Callable[[], None]) -> tuple[int, int] | None:
        return None


class SmmuLinux:
    """The machine with the driver started.  ``adjust`` changes the driver before it meets a device."""

    def __init__(
        self,
        adjust: Adjust | None = None,
        *,
        two_level: bool = True,
        ssid_bits: int = SSID_BITS,
        replacement: Replacement | None = None,
        ram: Callable[[GuestRam], GuestRam] | None = None,
    ) -> None:
        self.memory: Final = PhysicalMemory(16 * MIB)
        self.bus: Final = SystemBus(self.memory)
        self.unit: Final = Smmuv3Unit(
            "smmu0",
            self.bus,
            Smmuv3Config(stage1=True, ssid_bits=ssid_bits, two_level_cd=two_level),
            replacement=replacement,
        )
        self.bus.map(SMMU_BASE, self.unit.register_size, self.unit)
        self.fabric: Final = DmaFabric(self.bus)
        self.fabric.cover(self.unit)
        own: GuestRam = DomainRam(self.memory, list(range(self.memory.frames)), False)
        mmio = BusMmio(self.bus)
        self.kernel: Final = Kernel(ram(own) if ram else own, _Enumeration(), mmio, CommandLine(passthrough=True))
        self.kernel.devices.extend(Device(self.kernel, info) for info in _FUNCTIONS)
        self.dev1, self.dev2, *self.pair = self.kernel.devices
        port = arm_smmu_device_probe(self.kernel, SMMU_BASE)
        ret = port if isinstance(port, int) else port.arm_smmu_device_reset()
        if isinstance(port, int) or ret:
            raise ValueError(f"the SMMU did not start ({errno_name(ret)})")
        self.port: Final[BareSmmu] = port
        self.smmu: Final = ArmSmmuDevice(self.kernel, port)
        if adjust is not None:
            adjust(self.smmu)
        ret = self.smmu.register()
        if ret:
            raise ValueError(f"the devices could not be probed ({errno_name(ret)})")

    def master(self, dev: Device) -> ArmSmmuMaster:
        return self.smmu.masters[dev]

    def dma(self, dev: Device, iova: int, pasid: int | None = None) -> bytes | Fault:
        """Eight bytes that the device reads, or why it does not."""
        sbdf = dev.pci.sbdf
        port = DmaPort(self.fabric, sbdf) if pasid is None else PasidPort(self.fabric, sbdf, pasid)
        return port.read(iova, 8)

    def stream_entry(self, dev: Device) -> Entry:
        """The eight words of the device's stream table entry."""
        first = self.port.ste_address(dev.pci.sbdf & 0xFFFF) >> 3
        return tuple(self.memory.words[first : first + WORDS])

    def shutdown(self) -> None:
        """Remove the driver; what stays allocated afterwards is a leak."""
        self.smmu.unregister()
        self.port.arm_smmu_device_remove()

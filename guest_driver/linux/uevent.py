# SPDX-License-Identifier: GPL-2.0-or-later
"""Hot plug as a uevent says it (lib/kobject_uevent.c, drivers/pci/pci-driver.c: pci_uevent).

A message is ``ACTION@DEVPATH`` and then properties, each ended by a zero byte, as it arrives on a
NETLINK_KOBJECT_UEVENT socket; what ``pyroute2.UeventSocket`` makes of one is taken too.  So what a real host said while
a card was pulled and put back can be said to this guest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from abi.errno import EEXIST, EINVAL, ENODEV
from base.units import Sbdf, format_sbdf, parse_sbdf
from guest_driver.linux.device import Device
from guest_driver.linux.iommu_probe import pci_bus_add_device, pci_stop_and_remove_bus_device
from guest_driver.linux.kernel import Kernel
from guest_driver.port import PciInfo


@dataclass(frozen=True, slots=True)
class Uevent:
    """``action`` (add, remove, bind, ...) on the object at ``devpath``; ``properties`` without these two."""

    action: str
    devpath: str
    properties: Mapping[str, str] = field(default_factory=dict)

    def __bytes__(self) -> bytes:
        """The message."""
        own = {"ACTION": self.action, "DEVPATH": self.devpath} | dict(self.properties)
        lines = [f"{self.action}@{self.devpath}", *(f"{name}={value}" for name, value in own.items())]
        return b"".join(line.encode() + b"\0" for line in lines)


def parse_uevent(message: bytes) -> Uevent | None:
    """The kernel's message, ``None`` if it is none (udev's own have a binary header)."""
    try:
        head, *lines = message.decode().split("\0")
    except UnicodeDecodeError:
        return None
    return _uevent(head, dict(line.split("=", 1) for line in lines if "=" in line))


def from_pyroute2(message: Mapping[str, Any]) -> Uevent | None:
    """What ``UeventSocket.get()`` yields."""
    header = message.get("header")
    head = header.get("message", "") if isinstance(header, Mapping) else ""
    return _uevent(head, {name: value for name, value in message.items() if isinstance(value, str)})


def _uevent(head: str, properties: dict[str, str]) -> Uevent | None:
    action, at, devpath = head.partition("@")
    if not at or not devpath.startswith("/") or properties.pop("ACTION", action) != action:
        return None
    properties.pop("DEVPATH", "")
    return Uevent(action, devpath, properties)


def pci_uevent(info: PciInfo, action: str, seqnum: int = 0) -> Uevent:
    """What the kernel says about a PCI function."""
    slot = format_sbdf(info.sbdf)
    properties = {
        "SUBSYSTEM": "pci",
        "PCI_CLASS": f"{info.class_code:X}",
        "PCI_ID": f"{info.vendor_id:04X}:{info.device_id:04X}",
        "PCI_SLOT_NAME": slot,
        "SEQNUM": str(seqnum),
    }
    return Uevent(action, f"/devices/pci{slot[:7]}/{slot}", properties)


class PciHotplug:
    """The guest's PCI bus, driven by uevents.  A function that is added is looked up in ``present``, the functions in
    the machine's slots; by default what enumeration finds."""

    def __init__(self, kernel: Kernel, present: Mapping[Sbdf, PciInfo] | None = None) -> None:
        self._kernel: Final = kernel
        self._present: Final = {info.sbdf: info for info in kernel.pci.devices()} if present is None else dict(present)

    def handle(self, event: Uevent | None) -> int:
        """0, also for events that are not about PCI functions coming and going.

        -EINVAL: no event, or it names no function; -ENODEV: the function is not in the machine (add) or on the bus
        (remove); -EEXIST: it is on the bus already; -EBUSY: it has a driver; or the error of probing it.
        """
        if event is None:
            return -EINVAL
        if event.properties.get("SUBSYSTEM") != "pci" or event.action not in ("add", "remove"):
            return 0
        try:
            sbdf = parse_sbdf(event.properties.get("PCI_SLOT_NAME", ""))
        except ValueError:
            return -EINVAL
        on_bus = next((dev for dev in self._kernel.devices if dev.pci.sbdf == sbdf), None)
        if event.action == "remove":
            return -ENODEV if on_bus is None else pci_stop_and_remove_bus_device(on_bus)
        if on_bus is not None:
            return -EEXIST
        if sbdf not in self._present:
            return -ENODEV
        return pci_bus_add_device(Device(self._kernel, self._present[sbdf]))

# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program finds: the machine, and its devices with groups, coherency and reserved regions, from a TOML file.

::

    machine = "vtd"             # mock (default), vtd or smmuv3
    kernel = "7.0"              # whose iommufd
    as_released = false         # with that kernel's faults
    memory = "64M"              # the kernel's pages: how much can be pinned

    [[device]]                  # /dev/vfio/devices/vfio0, vfio1, ... in this order
    name = "copier"
    group = 0
    coherent = true
    snoop_control = true        # mock only, as the next two
    dirty = true
    pasids = 0
    reserved = [{ start = 0xfee00000, length = 0x100000, type = "msi" }]
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from base.units import PAGE_SIZE
from guest_driver.iommufd.release import LATEST, Release, as_released, release
from guest_driver.linux.iommu import (
    IOMMU_RESV_DIRECT,
    IOMMU_RESV_DIRECT_RELAXABLE,
    IOMMU_RESV_MSI,
    IOMMU_RESV_RESERVED,
    IOMMU_RESV_SW_MSI,
    IommuResvRegion,
)
from testbed import backends
from testbed.config import MIB
from testbed.iommufd_machine import MOCK, DeviceSpec, Machine, MockMachine, XenMachine

_TYPES: Final = {
    "direct": IOMMU_RESV_DIRECT,
    "direct-relaxable": IOMMU_RESV_DIRECT_RELAXABLE,
    "reserved": IOMMU_RESV_RESERVED,
    "msi": IOMMU_RESV_MSI,
    "sw-msi": IOMMU_RESV_SW_MSI,
}
_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_MACHINE_FIELDS: Final = ("machine", "kernel", "as_released", "memory", "device")
_DEVICE_FIELDS: Final = {
    "name": str,
    "group": int,
    "coherent": bool,
    "snoop_control": bool,
    "dirty": bool,
    "pasids": int,
    "reserved": list,
}
_XEN_OVERHEAD: Final = 48 * MIB
"""What the machine has beside the hardware domain's memory."""


@dataclass(frozen=True, slots=True)
class Description:
    """A machine for a program."""

    machine: str = MOCK
    release: Release = field(default_factory=release)
    memory: int = 64 * MIB
    devices: tuple[DeviceSpec, ...] = (DeviceSpec("vfio0", 0), DeviceSpec("vfio1", 1))

    def build(self) -> Machine:
        """``ValueError`` says what is wrong with it."""
        if self.machine == MOCK:
            return MockMachine(self.devices, ram=self.memory)
        return XenMachine(self.machine, self.devices, ram=self.memory + _XEN_OVERHEAD, guest_ram=self.memory)


def read(path: Path) -> Description:
    """``ValueError`` names the entry that is wrong; ``OSError`` if there is no such file."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        return _parse(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _parse(raw: dict[str, Any]) -> Description:
    _known(raw, _MACHINE_FIELDS, "the file")
    machine = raw.get("machine", MOCK)
    if machine != MOCK and machine not in backends.names():
        raise ValueError(f"unknown machine {machine!r}; there are: {MOCK}, {', '.join(backends.names())}")
    kernel = str(raw.get("kernel", LATEST))
    made = as_released(kernel) if raw.get("as_released", False) else release(kernel)
    devices = raw.get("device", [])
    if not isinstance(devices, list) or not all(isinstance(entry, dict) for entry in devices):
        raise ValueError("devices are written as [[device]] tables")
    specs = tuple(_device(entry, number) for number, entry in enumerate(devices))
    memory = _bytes(raw.get("memory", "64M"))
    return Description(machine, made, memory, specs or Description().devices)


def _device(entry: dict[str, Any], number: int) -> DeviceSpec:
    where = f"device {number}"
    _known(entry, tuple(_DEVICE_FIELDS), where)
    for name, value in entry.items():
        kind = _DEVICE_FIELDS[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{where}: {name} is a {kind.__name__}, not {value!r}")
    values = {"name": f"vfio{number}", "group": number, **entry}
    regions = tuple(_region(region, where) for region in values.pop("reserved", []))
    return DeviceSpec(**values, regions=regions)


def _region(region: Any, where: str) -> IommuResvRegion:
    if not isinstance(region, dict):
        raise ValueError(f"{where}: a reserved region is {{ start, length, type }}, not {region!r}")
    _known(region, ("start", "length", "type"), f"{where}, reserved")
    kind = region.get("type", "reserved")
    if kind not in _TYPES:
        raise ValueError(f"{where}: unknown region type {kind!r}; there are: {', '.join(_TYPES)}")
    start, length = region.get("start"), region.get("length")
    if not isinstance(start, int) or not isinstance(length, int) or length <= 0 or start < 0:
        raise ValueError(f"{where}: a reserved region needs start and a positive length")
    if start % PAGE_SIZE or length % PAGE_SIZE:
        raise ValueError(f"{where}: reserved regions are whole pages")
    return IommuResvRegion(start, length, 0, _TYPES[kind])


def _known(entry: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in entry:
        if name not in names:
            raise ValueError(f"{where}: unknown entry {name!r}; there are: {', '.join(names)}")


def _bytes(text: Any) -> int:
    """A size such as "64M"; a multiple of 2 MiB."""
    digits, unit = (text[:-1], text[-1:]) if isinstance(text, str) else ("", "")
    if not digits.isdigit() or unit not in _UNITS:
        raise ValueError(f'memory is a number with K, M or G, as in "64M", not {text!r}')
    size = int(digits) * _UNITS[unit]
    if size % (2 * MIB) or not size:
        raise ValueError(f"memory of {text}: a multiple of 2M")
    return size

# SPDX-License-Identifier: GPL-2.0-or-later
"""PCI as an IOMMU sees it: who issues which requester ids, and which bridges stand in between.

Segments hold buses, buses hold functions.  A function behind a PCIe-to-PCI bridge issues its requests under the
bridge's id (secondary bus, devfn 0); a function may also use phantom functions' ids.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from base.units import Sbdf, format_sbdf


class PortType(Enum):
    """The PCI Express device/port types that matter to DMA (PCIe base specification 7.5.3.2)."""

    ENDPOINT = "endpoint"
    ROOT_PORT = "root port"
    SWITCH_UPSTREAM = "switch upstream port"
    SWITCH_DOWNSTREAM = "switch downstream port"
    PCIE_TO_PCI_BRIDGE = "PCIe-to-PCI bridge"
    HOST_BRIDGE = "host bridge"
    CONVENTIONAL = "conventional PCI function"


BRIDGES: Final = frozenset(
    {PortType.ROOT_PORT, PortType.SWITCH_UPSTREAM, PortType.SWITCH_DOWNSTREAM, PortType.PCIE_TO_PCI_BRIDGE}
)


@dataclass(frozen=True, slots=True)
class Bar:
    """A memory BAR as firmware left it: machine address and length in bytes."""

    base: int
    length: int


@dataclass(frozen=True, slots=True)
class PciFunction:
    """One function as enumeration finds it."""

    sbdf: Sbdf
    port_type: PortType = PortType.ENDPOINT
    class_code: int = 0xFF0000
    vendor_id: int = 0x1AF4
    device_id: int = 0x0000
    bars: tuple[Bar, ...] = ()
    secondary_bus: int | None = None
    """For bridges: the bus behind them."""
    acs: bool = False
    """Source validation, request and completion redirect and upstream forwarding all on."""
    multifunction: bool = False
    phantom_functions: int = 0
    """log2 of the number of functions whose ids it may issue (PCIe 7.5.3.3, Phantom Functions Supported)."""
    ats: bool = False
    """Has the Address Translation Services capability: it may keep translations in a cache of its own."""

    def __str__(self) -> str:
        return f"{format_sbdf(self.sbdf)} ({self.port_type.value})"


@dataclass(slots=True)
class PciTopology:
    """Every function of the machine, by address."""

    functions: dict[Sbdf, PciFunction] = field(default_factory=dict)
    _above: dict[int, PciFunction] = field(default_factory=dict)
    """Bridges by what their secondary bus is: segment << 8 | bus."""

    def add(self, function: PciFunction) -> PciFunction:
        if function.sbdf in self.functions:
            raise ValueError(f"two functions at {format_sbdf(function.sbdf)}")
        if (function.port_type in BRIDGES) != (function.secondary_bus is not None):
            raise ValueError(f"{function}: bridges and only bridges have a secondary bus")
        self.functions[function.sbdf] = function
        if function.secondary_bus is not None:
            self._above.setdefault(function.sbdf >> 16 << 8 | function.secondary_bus, function)
        return function

    def bridge_above(self, sbdf: Sbdf) -> PciFunction | None:
        """The bridge whose secondary bus ``sbdf`` sits on, ``None`` on a root bus."""
        return self._above.get(sbdf >> 8)

    def bridges_above(self, sbdf: Sbdf) -> Iterator[PciFunction]:
        """The bridges from ``sbdf`` up to the root bus."""
        bridge = self.bridge_above(sbdf)
        while bridge is not None:
            yield bridge
            bridge = self.bridge_above(bridge.sbdf)

    def requester_ids(self, sbdf: Sbdf) -> tuple[Sbdf, ...]:
        """Every id under which DMA of the function may arrive, its usual one first."""
        for bridge in self.bridges_above(sbdf):
            if bridge.port_type is PortType.PCIE_TO_PCI_BRIDGE:
                assert bridge.secondary_bus is not None
                return (Sbdf(bridge.sbdf >> 16 << 16 | bridge.secondary_bus << 8),)
        function = self.functions[sbdf]
        stride = 8 >> function.phantom_functions
        return tuple(Sbdf(sbdf + step) for step in range(0, 8 - (sbdf & 7), stride))

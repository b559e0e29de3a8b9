# SPDX-License-Identifier: GPL-2.0-or-later
"""PCI groups: the devices that the fabric cannot keep apart (drivers/iommu/iommu.c, pci_device_group).

Two functions belong together if one issues requests under the other's requester id, or if a request of one can
reach the other without passing the IOMMU: through a bridge or a multifunction device without ACS.  The kernel finds
this by looking at the groups of devices probed earlier; here the relation is closed over everything that enumeration
found, so that the order of probing does not matter.
"""

from collections.abc import Iterable, Iterator

from guest_driver.linux.device import Device
from guest_driver.linux.iommu_group import IommuGroup
from guest_driver.port import PciInfo


def _bus_key(sbdf: int) -> int:
    return sbdf >> 8


class _Bus:
    """Lookups over all functions of a PCI hierarchy."""

    def __init__(self, functions: Iterable[PciInfo]) -> None:
        self.by_sbdf = {int(pci.sbdf): pci for pci in functions}
        self.bridge_of = {
            pci.sbdf >> 16 << 8 | pci.secondary_bus: pci
            for pci in self.by_sbdf.values()
            if pci.secondary_bus is not None
        }

    def above(self, pci: PciInfo) -> Iterator[PciInfo]:
        """Bridges from ``pci`` up to its root bus."""
        seen = {int(pci.sbdf)}
        bridge = self.bridge_of.get(_bus_key(pci.sbdf))
        while bridge is not None and bridge.sbdf not in seen:
            seen.add(int(bridge.sbdf))
            yield bridge
            bridge = self.bridge_of.get(_bus_key(bridge.sbdf))


def pci_dma_aliases(pci: PciInfo, functions: Iterable[PciInfo]) -> tuple[int, ...]:
    """Every requester id (as an SBDF) under which DMA of ``pci`` may reach the IOMMU, its own first.

    PCI Express bridges pass ids on; a PCI Express to PCI bridge replaces them by (secondary bus, 0); a conventional
    bridge takes requests over as its own.
    """
    return tuple(dict.fromkeys(_aliases(pci, _Bus(functions))))


def _aliases(pci: PciInfo, bus: _Bus) -> Iterator[int]:
    yield int(pci.sbdf)
    for devfn in pci.dma_aliases:
        yield pci.sbdf >> 8 << 8 | devfn
    for bridge in bus.above(pci):
        if bridge.pcie_to_pci:
            assert bridge.secondary_bus is not None
            yield bridge.sbdf >> 16 << 16 | bridge.secondary_bus << 8
        elif not bridge.is_pcie:
            yield int(bridge.sbdf)


def _neighbours(pci: PciInfo, bus: _Bus) -> Iterator[int]:
    """SBDFs of functions that ``pci`` is not isolated from, as seen from ``pci``."""
    aliases = set(_aliases(pci, bus))
    for alias in aliases:
        if alias in bus.by_sbdf:
            yield alias
    # Behind a bridge that takes over its requests, or one that may turn them around, it shares the bridge's fate.
    shared = False
    path = list(bus.above(pci))
    for position, bridge in enumerate(path):
        if bridge.pcie_to_pci or not bridge.is_pcie:
            shared = True
        if not all(upper.acs for upper in path[position:]):
            shared = True
        if shared:
            yield int(bridge.sbdf)
            break
    # Without ACS the functions of one device can reach each other inside it.
    if pci.multifunction and not pci.acs:
        slot = pci.sbdf >> 3
        for other in bus.by_sbdf.values():
            if other.sbdf >> 3 == slot and not other.acs:
                yield int(other.sbdf)


def pci_isolation_sets(functions: Iterable[PciInfo]) -> dict[int, int]:
    """SBDF of every function -> smallest SBDF of the set of functions that it cannot be isolated from."""
    bus = _Bus(functions)
    root = {sbdf: sbdf for sbdf in bus.by_sbdf}

    def find(sbdf: int) -> int:
        while root[sbdf] != sbdf:
            root[sbdf] = root[root[sbdf]]
            sbdf = root[sbdf]
        return sbdf

    claimed: dict[int, int] = {}
    for sbdf, pci in bus.by_sbdf.items():
        for other in _neighbours(pci, bus):
            low, high = sorted((find(sbdf), find(other)))
            root[high] = low
        # Two functions with one requester id are one to the IOMMU, whether or not a function has that id.
        for alias in _aliases(pci, bus):
            low, high = sorted((find(sbdf), find(claimed.setdefault(alias, sbdf))))
            root[high] = low
    return {sbdf: find(sbdf) for sbdf in root}


def pci_device_group(dev: Device) -> IommuGroup | int:
    """The group of the devices that ``dev`` cannot be isolated from; a new one if none of them is in a group yet."""
    sets = pci_isolation_sets(other.pci for other in dev.kernel.devices)
    mine = sets[int(dev.pci.sbdf)]
    for other in dev.kernel.devices:
        if other.iommu_group is not None and sets[int(other.pci.sbdf)] == mine:
            return other.iommu_group
    return IommuGroup(dev.kernel.iommu)

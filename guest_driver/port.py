# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's only doors to the world: a hypercall, its own memory, device registers, and what PCI enumeration finds.

Whatever offers these four can run the guest: the emulated hypervisor of this project, a recorded trace, another
emulator behind a socket.  Nothing else in ``guest_driver`` reaches outside.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from base.units import Sbdf


class HypercallPort(Protocol):
    """The ``syscall``/``vmcall`` instruction."""

    def hypercall(self, nr: int, *args: int) -> int:
        """Result register read as C's ``long``: 0 or more, or -errno."""
        ...


class GuestRam(Protocol):
    """The guest's own memory, addressed by pseudo-physical address (pfn << 12 plus offset)."""

    pages: int
    """Number of pfns, 0 to ``pages`` - 1."""
    xen_pv_domain: bool
    """True in a PV guest, whose frame numbers as Xen knows them are scattered machine frames."""

    def read(self, paddr: int, length: int) -> bytes: ...

    def write(self, paddr: int, data: bytes) -> None: ...

    def linear(self, paddr: int) -> int:
        """Guest linear address of ``paddr`` in the kernel's direct map, as put into hypercall arguments."""
        ...

    def pfn_to_gfn(self, pfn: int) -> int:
        """PV: the machine frame behind ``pfn``; PVH and HVM: ``pfn`` itself."""
        ...


class MmioPort(Protocol):
    """A device's registers, by the address that its BAR holds."""

    def readl(self, address: int) -> int: ...

    def writel(self, address: int, value: int) -> None: ...


@dataclass(frozen=True, slots=True)
class PciInfo:
    """One PCI function as the guest's enumeration finds it in configuration space."""

    sbdf: Sbdf
    class_code: int = 0xFF0000
    """24 bits as in configuration space: base class, sub-class, programming interface."""
    vendor_id: int = 0x1AF4
    device_id: int = 0
    is_bridge: bool = False
    """Header type 1."""
    is_pcie: bool = True
    """Has the PCI Express capability."""
    pcie_to_pci: bool = False
    """A PCI Express to PCI bridge: requests from behind it carry (secondary bus, devfn 0)."""
    secondary_bus: int | None = None
    """For bridges: the bus directly behind."""
    bars: tuple[tuple[int, int], ...] = ()
    """Memory BARs: (base address, length in bytes)."""
    acs: bool = False
    """ACS on: source validation, request and completion redirect, upstream forwarding."""
    multifunction: bool = False
    """Header type bit 7: the slot may hold further functions."""
    dma_aliases: tuple[int, ...] = ()
    """Further devfns on its own bus whose requester id it uses (phantom functions, quirks)."""
    untrusted: bool = False
    """Behind an external-facing port."""
    max_pasids: int = 0
    """PASIDs the function supports, 0 without the capability."""


class PciHost(Protocol):
    """PCI enumeration and message interrupts."""

    def devices(self) -> Sequence[PciInfo]:
        """Every function of every bus, bridges included, in bus order."""
        ...

    def request_irq(self, handler: Callable[[], None]) -> tuple[int, int] | None:
        """Route a message interrupt to ``handler``: (doorbell address, data) to program, ``None`` if there are none.

        The address is physical: a device behind a translating IOMMU needs it mapped (Arm) or exempt (x86).
        """
        ...

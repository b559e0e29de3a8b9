# SPDX-License-Identifier: GPL-2.0-or-later
"""The software half of a translation backend: what every vendor's driver offers to the rest of Xen.

A backend owns its units' registers, queues, tags (VT-d domain ids, SMMU VMIDs) and device entries.  The trees
themselves are walked and written by :class:`hypervisor.pagetable.radix.PageTable`; a backend only says what their
entries look like and which geometry the units walk.  It finds its units in the firmware tables and reaches them
through the bus, never through a model's Python object.
"""

from typing import NamedTuple, Protocol

from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.pagetable.format import Format
from hypervisor.pagetable.radix import Changes


class FaultReport(NamedTuple):
    """A fault as the driver read it from the unit's fault registers or event queue."""

    unit: int
    sid: int
    iova: int
    write: bool
    code: int
    name: str
    """The manual's name of ``code``."""
    record: tuple[int, ...]
    """The record's 64-bit words as hardware left them."""


class Backend(Protocol):
    """One vendor's driver.  Methods that can fail return 0 or a negative errno."""

    @property
    def name(self) -> str: ...

    @property
    def format(self) -> Format: ...

    @property
    def orders(self) -> tuple[int, ...]:
        """log2 of the pages of the leaf sizes that *every* unit walks: (0,), (0, 9) or (0, 9, 18)."""
        ...

    @property
    def flushes_additions(self) -> bool:
        """Whether a unit may have cached that an entry was empty, so that filling it needs a flush as well."""
        ...

    @property
    def max_iova(self) -> int:
        """Last I/O virtual address that every unit can translate."""
        ...

    @property
    def passes_through(self) -> bool:
        """Whether every unit can let a device's requests through untranslated."""
        ...

    def enable(self) -> int:
        """Switch every unit on with nothing attached: all DMA is blocked until :meth:`attach`."""
        ...

    def context_init(self, context: IommuContext) -> int:
        """Give ``context`` its root table (from ``context.pool``; none if it passes through) and hardware tags.

        -ENOMEM without a table, -ENOSPC without a tag; nothing is kept on failure.
        """
        ...

    def context_release(self, context: IommuContext) -> None:
        """Take root and tags back; the tree is empty and no device is attached."""
        ...

    def attach(self, device: PciDevice, context: IommuContext) -> int:
        """Make hardware translate ``device`` through ``context``, whatever it did before; all its requester ids
        or none."""
        ...

    def detach(self, device: PciDevice) -> int:
        """Block all DMA of ``device``."""
        ...

    def cut_off(self, device: PciDevice) -> bool:
        """Whether hardware may not act on what an attached device's context says: a move was neither confirmed nor
        could it be undone.  The device reaches nothing then, or what the other context says, which is unconfirmed.

        It is translated again when hardware confirms a later flush of its context, or :meth:`attach`.
        """
        ...

    def flush(self, context: IommuContext, dfn: int, pages: int, changes: Changes) -> int:
        """Make hardware forget what ``changes`` touched within ``pages`` pages from ``dfn``, and wait for it.

        -EIO if a unit does not confirm: then what was removed may still be reachable by devices.
        """
        ...

    def flush_all(self, context: IommuContext) -> int:
        """Make hardware forget every translation of ``context``, and wait for it."""
        ...

    def take_faults(self) -> list[FaultReport]:
        """Read and clear what the units recorded since the last call."""
        ...

    def save(self) -> object: ...

    def restore(self, state: object) -> None: ...

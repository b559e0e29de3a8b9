# SPDX-License-Identifier: GPL-2.0-or-later
"""An IOMMU context of a domain, and the devices in it.

Context 0 is the default one and belongs to Xen: devices are in it unless the guest moved them, it maps the guest's
own memory one to one, and no sub-op may change it.  The others are the guest's.
"""

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from base.units import CtxNo, Sbdf
from hypervisor.pagetable.radix import FramePool, PageTable
from machine.pci import PciFunction


class NestedTable(NamedTuple):
    """The guest's own first stage of a nested context."""

    address: int
    """Device address of the table, as the context underneath translates it."""
    flags: int
    """As :class:`abi.x1.NestedFlags` has them."""
    frames: tuple[int, ...]
    """Machine frames of the table that the context holds a reference on."""


class IommuContext:
    """One address space that devices can be put into.

    A *nested* context has no table of Xen's: ``nested`` is the guest's, and what comes out of it goes through
    ``parent``.
    """

    __slots__ = (
        "children",
        "devices",
        "dying",
        "enforces_cache",
        "hw",
        "identity",
        "nested",
        "number",
        "parent",
        "pasids",
        "passes_through",
        "pool",
        "table",
        "unconfirmed",
    )

    def __init__(
        self,
        number: CtxNo,
        pool: FramePool,
        *,
        enforces_cache: bool = False,
        passes_through: bool = False,
        parent: "IommuContext | None" = None,
        nested: NestedTable | None = None,
    ) -> None:
        self.number: Final = number
        self.pool: Final = pool
        self.enforces_cache: Final = enforces_cache
        """Every mapping makes DMA coherent, whatever the device asks for."""
        self.passes_through: Final = passes_through
        """Requests go through it untranslated; it has no tree."""
        self.parent: Final = parent
        self.nested: Final = nested
        self.children = 0
        """Nested contexts over this one."""
        self.pasids: list[tuple[PciDevice, int]] = []
        """(device, PASID) whose requests go through it."""
        self.table: PageTable | None = None
        """The tree; ``None`` for a context that passes everything through, or is nested."""
        self.devices: list[PciDevice] = []
        self.dying = False
        """Being torn down: nothing can be attached or mapped any more."""
        self.unconfirmed = False
        """Hardware was told to forget something of this context and did not confirm it."""
        self.identity: list[IdentityRange] = []
        """Reserved regions (RMRR) that are mapped one to one here and are not the guest's to change."""
        self.hw: Any = None
        """The backend's own data: tags and per-unit device counts."""

    @property
    def stage2(self) -> "IommuContext":
        """The context whose tree Xen keeps: its own, or the parent's."""
        return self if self.parent is None else self.parent

    def identity_offset(self, dfn: int, pages: int) -> int | None:
        """Offset of the first of ``pages`` pages from ``dfn`` on that lies in a reserved region, or ``None``."""
        first: int | None = None
        for region in self.identity:
            start = max(dfn, region.first)
            if start <= region.last and start < dfn + pages:
                offset = start - dfn
                first = offset if first is None else min(first, offset)
        return first

    def __repr__(self) -> str:
        return f"<context {self.number}{' dying' if self.dying else ''}, {len(self.devices)} devices>"


@dataclass(slots=True)
class IdentityRange:
    """Frames ``first`` to ``last`` (inclusive), mapped one to one; ``users`` devices need them."""

    first: int
    last: int
    users: int = 1


@dataclass(slots=True)
class PciDevice:
    """A PCI function as Xen manages it."""

    function: PciFunction
    requester_ids: tuple[Sbdf, ...]
    """Every id that its DMA may carry (phantom functions, the bridge in front of it)."""
    context: IommuContext | None = None
    pasids: dict[int, IommuContext] = field(default_factory=dict)
    """The context of each PASID that was attached."""
    reserved: list[tuple[int, int]] = field(default_factory=list)
    """(first, last) frames of the reserved memory regions that firmware declared for it."""
    hw: Any = None
    """The backend's own data."""

    @property
    def sbdf(self) -> Sbdf:
        return self.function.sbdf

    @property
    def translated(self) -> bool:
        """Whether the device issues DMA of its own (bridges are tracked, not programmed)."""
        return self.function.secondary_bus is None

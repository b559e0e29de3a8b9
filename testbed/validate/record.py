# SPDX-License-Identifier: GPL-2.0-or-later
"""What one call of a validation program did: the driver's functions that the core used, the hypercalls, and the state
before and after.  The invariants of :mod:`testbed.invariants_guest` are functions over a :class:`Step`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from guest_driver.linux.iommu import IommuDomain
from guest_driver.linux.iommu_group import IommuGroup
from testbed.guest import HypercallCall

Pages = Mapping[int, tuple[int, int]]
"""dfn -> (machine frame, rights: 1 readable, 2 writable)."""


@dataclass(slots=True)
class OpCall:
    """One call of a function in the driver's tables."""

    name: str
    args: tuple[Any, ...]
    result: Any = None
    before: Pages = field(default_factory=dict)
    """map_pages and unmap_pages: what the domain's context maps, as hardware sees it, when the call began."""
    after: Pages = field(default_factory=dict)
    arena: tuple[int, int] = (0, 0)
    """Pages of the arena in use before and after."""
    where: tuple[int | None, int | None] = (None, None)
    """attach_dev: the device's context number in the hypervisor before and after."""


@dataclass(frozen=True, slots=True)
class GroupState:
    """A group at one moment."""

    group: IommuGroup
    members: tuple[int, ...]
    domain: IommuDomain | None
    default: IommuDomain | None
    owner: object | None
    owner_cnt: int
    contexts: tuple[int | None, ...]
    """The members' context numbers in the hypervisor."""


@dataclass(slots=True)
class View:
    """The state at one moment."""

    mappings: dict[IommuDomain, Pages] = field(default_factory=dict)
    """What hardware would find, by domain."""
    groups: tuple[GroupState, ...] = ()
    contexts: frozenset[int] = frozenset()
    """Context numbers that exist in the hypervisor besides 0."""
    warnings: int = 0
    live_iovas: dict[IommuDomain, tuple[tuple[int, int], ...]] = field(default_factory=dict)


NOTHING: Final = View()


@dataclass(slots=True)
class Step:
    """One call of a program, done."""

    name: str
    args: tuple[Any, ...]
    result: Any = None
    domain: IommuDomain | None = None
    """The domain that the call named."""
    ops: list[OpCall] = field(default_factory=list)
    hypercalls: list[HypercallCall] = field(default_factory=list)
    before: View = field(default_factory=View)
    after: View = field(default_factory=View)
    injected: int = 0
    """Hypercalls that the fault plan made fail meanwhile."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return isinstance(self.result, int) and self.result < 0

    def named(self, name: str) -> list[OpCall]:
        """The calls of driver function ``name``."""
        return [op for op in self.ops if op.name == name]

# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of calls that programs are made of, and how a function gets into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from guest_driver.xen_iommu import XenIommuDomain
from testbed.validate.record import Step
from testbed.validate.world import World

Action = Callable[..., Any]
CALLS: Final[dict[str, Action]] = {}
"""Every call by name: (world, step, arguments of the call) -> result."""


def named(name: str) -> Callable[[Action], Action]:
    """Register the function that carries out call ``name``."""

    def add(action: Action) -> Action:
        assert name not in CALLS
        CALLS[name] = action
        return action

    return add


def named_domain(world: World, step: Step, number: int) -> XenIommuDomain | None:
    """The program's domain ``number``, noted as what the call is about."""
    domain = world.domains.get(number)
    step.domain = domain
    return domain

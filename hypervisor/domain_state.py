# SPDX-License-Identifier: GPL-2.0-or-later
"""What a snapshot keeps of a domain, and how it is brought back: the objects stay, their few fields are copied."""

from typing import Any

from hypervisor.domain import Domain
from hypervisor.iommu.context import IdentityRange, IommuContext


def save_domain(domain: Domain) -> Any:
    """All that changes of a domain, its contexts and devices included."""
    iommu = domain.iommu
    devices = {
        sbdf: (device, device.context, device.hw, dict(device.pasids)) for sbdf, device in domain.devices.items()
    }
    contexts = None
    if iommu is not None:
        contexts = (
            [(c, _save_context(c)) for c in (iommu.default, *iommu.contexts.values())],
            iommu.limit,
            iommu.arena,
            iommu.arena.save() if iommu.arena is not None else None,
            iommu.initialised,
            iommu.allowed,
            (tuple(iommu.faults), iommu.faults_lost),
        )
    return (domain.translation.save(), devices, contexts, domain.dying)


def _save_context(context: IommuContext) -> Any:
    return (
        context.table,
        context.table.save() if context.table is not None else None,
        context.devices[:],
        context.dying,
        context.unconfirmed,
        [(region.first, region.last, region.users) for region in context.identity],
        context.hw,
        context.children,
        context.pasids[:],
    )


def restore_domain(domain: Domain, state: Any) -> None:
    """What :func:`save_domain` said, brought back."""
    translation, devices, contexts, domain.dying = state
    domain.translation.restore(translation)
    domain.devices.clear()
    for sbdf, (device, context, hw, device.pasids) in devices.items():
        domain.devices[sbdf] = device
        device.context, device.hw = context, hw
    iommu = domain.iommu
    if iommu is None or contexts is None:
        return
    saved, iommu.limit, iommu.arena, arena, iommu.initialised, iommu.allowed, (faults, iommu.faults_lost) = contexts
    iommu.faults[:] = faults
    if iommu.arena is not None:
        iommu.arena.restore(arena)
    iommu.contexts.clear()
    for context, fields in saved:
        (
            table,
            table_state,
            members,
            context.dying,
            context.unconfirmed,
            identity,
            context.hw,
            context.children,
            pasids,
        ) = fields
        context.pasids[:] = pasids
        context.table = table
        if table is not None:
            table.restore(table_state)
        context.devices[:] = members
        context.identity[:] = [IdentityRange(*region) for region in identity]
        if context.number:
            iommu.contexts[context.number] = context

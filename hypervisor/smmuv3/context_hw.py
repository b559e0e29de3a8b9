# SPDX-License-Identifier: GPL-2.0-or-later
"""What the SMMUv3 driver knows of a context."""

from dataclasses import dataclass
from typing import cast

from hypervisor.iommu.context import IommuContext
from hypervisor.smmuv3.device_caches import Stream
from hypervisor.smmuv3.invalidation import Use


@dataclass(frozen=True, slots=True)
class ContextHw:
    """A context's VMID and number of streams on each unit, and what follows from them."""

    vmids: tuple[int, ...]
    streams: tuple[int, ...]
    doubtful: frozenset[int] = frozenset()
    """Units that may hold something of this context that they were told to forget."""
    uses: tuple[Use, ...] = ()
    """Units that have streams of this context."""
    caching: tuple[Stream, ...] = ()
    """Streams of this context that may keep translations themselves."""
    mixed: bool = False
    """An entry was exchanged although hardware did not confirm that it had forgotten the old one: it may have used
    both, and the flush of the pass says so."""


def hw_of(context: IommuContext) -> ContextHw:
    """A context that the SMMUv3 driver has initialised, as the driver knows it."""
    return cast(ContextHw, context.hw)

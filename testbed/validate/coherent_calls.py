# SPDX-License-Identifier: GPL-2.0-or-later
"""The calls ``dma-alloc`` and ``dma-free``: memory that CPU and device share.

Importing this module adds them to :data:`testbed.validate.calls.CALLS`.
"""

from __future__ import annotations

from abi.errno import EINVAL, ENOMEM
from testbed.validate.calls import CALLS
from testbed.validate.record import Step
from testbed.validate.world import World


def _alloc(world: World, step: Step, slot: int, device: str, size: int) -> int:
    dev = world.device(device)
    buffer = world.booted.dma.alloc_coherent(dev, size)
    step.domain = None if dev.iommu_group is None else dev.iommu_group.default_domain
    if buffer is None:
        return -ENOMEM
    world.coherent[slot] = buffer
    buffer.write(size - 1, b"\x5a")
    return 0


def _free(world: World, step: Step, slot: int) -> int:
    buffer = world.coherent.pop(slot, None)
    if buffer is None:
        return -EINVAL
    step.domain = None if buffer.dev.iommu_group is None else buffer.dev.iommu_group.default_domain
    world.booted.dma.free_coherent(buffer)
    return 0


CALLS["dma-alloc"] = _alloc
CALLS["dma-free"] = _free

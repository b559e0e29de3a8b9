# SPDX-License-Identifier: GPL-2.0-or-later
"""The mock driver's vIOMMU: nested tables, device caches, events and hardware queues (iommufd/selftest.c)."""

from __future__ import annotations

from typing import Final

from abi.errno import EEXIST, EFAULT, EINVAL, EIO, ENOENT, EOPNOTSUPP
from guest_driver.iommufd.viommu import HwQueue, Viommu
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import IommuDomain, ViommuOps
from guest_driver.linux.iommu_map import iommu_iova_to_phys
from guest_driver.linux.mock_domain import (
    CACHE_WORDS,
    INVALIDATE_ALL,
    INVALIDATE_TYPE,
    MockDomain,
    MockIommu,
    clear,
    entry_words,
)

VIOMMU_TYPE: Final = 0xDEADBEEF
HW_QUEUE_TYPE: Final = 0xDEADBEEF
VEVENT_TYPE: Final = 0xBEEFBEEF
_QUEUES: Final = 2


class MockViommu:
    """One vIOMMU's driver side."""

    def __init__(self, mock: MockIommu) -> None:
        self._mock: Final = mock
        self._queues: Final[dict[int, HwQueue]] = {}

    def ops(self) -> ViommuOps:
        return ViommuOps(
            alloc_domain_nested=self.alloc_domain_nested,
            cache_invalidate=self.cache_invalidate,
            hw_queue_types=(HW_QUEUE_TYPE,),
            hw_queue_init=self.hw_queue_init,
            hw_queue_destroy=self.hw_queue_destroy,
        )

    def alloc_domain_nested(self, viommu: Viommu, flags: int, data_type: int, data: bytes) -> IommuDomain | int:
        devices = viommu.ctx.kernel.devices
        dev = next(dev for dev in devices if dev.iommu is not None and dev.iommu.iommu_dev is self._mock.unit)
        domain = self._mock.domain_alloc_nested(dev, viommu.hwpt.domain, flags, data_type, data)
        if isinstance(domain, MockDomain) and viommu.ctx.release.version >= (6, 15):
            domain.viommu = viommu
        return domain

    def cache_invalidate(self, viommu: Viommu, data_type: int, entries: list[bytes]) -> tuple[int, int]:
        """Entries are u32 flags, id of the vDevice, number of the word of its cache."""
        if data_type != INVALIDATE_TYPE:
            return -EINVAL, 0
        parsed = [entry_words(entry, 3) for entry in entries]
        wrong = next((ret for ret, _ in parsed if ret), 0)
        if wrong:
            return wrong, 0  # all of them are copied before the first is looked at
        for done, (_, (flags, virt_id, number)) in enumerate(parsed):
            vdevice = viommu.vdevices.get(virt_id)
            if flags & ~INVALIDATE_ALL:
                return -EOPNOTSUPP, done
            if number >= CACHE_WORDS or vdevice is None or vdevice.idev is None:
                return -EINVAL, done
            clear(self._mock.cache_of(vdevice.idev.dev), flags, number)
        return 0, len(entries)

    def hw_queue_init(self, queue: HwQueue, paddr: int) -> int:
        """Queues are made in the order of their numbers; each needs the one before it."""
        if queue.index >= _QUEUES:
            return -EINVAL
        if queue.index in self._queues:
            return -EEXIST
        before = self._queues.get(queue.index - 1)
        if queue.index and before is None:
            return -EIO
        if iommu_iova_to_phys(queue.viommu.hwpt.domain, queue.base) != paddr:
            return -EFAULT
        if before is not None:
            before.users += 1
            queue.before = before
        self._queues[queue.index] = queue
        return 0

    def hw_queue_destroy(self, queue: HwQueue) -> None:
        del self._queues[queue.index]


def add_viommu(mock: MockIommu) -> None:
    """Let ``mock`` offer its vIOMMU type."""

    def init(viommu: Viommu, data: bytearray | None) -> ViommuOps | int:
        if data is not None:
            if len(data) < 8:
                return -EINVAL
            data[4:8] = data[:4]
        made = MockViommu(mock)
        viommu.priv = made
        return made.ops()

    mock.ops.viommu_types[VIOMMU_TYPE] = init
    mock.find_vdevice = lambda viommu, dev: viommu.find_vdevice(dev) if isinstance(viommu, Viommu) else None


def trigger_event(viommu: Viommu, dev: Device) -> int:
    """The device's vDevice has something to say; -ENOENT if it has none, or the error of the queue."""
    vdevice = viommu.find_vdevice(dev)
    if vdevice is None:
        return -ENOENT
    return viommu.report_event(VEVENT_TYPE, vdevice.virt_id.to_bytes(4, "little"))

# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults of the driver's start, and points of review that were looked at and found to be none."""

from typing import Final

from abi.errno import EOPNOTSUPP, EPERM
from abi.versions import Abi, Convention
from base.units import PAGE_SIZE
from guest_driver.defects.model import Defect
from guest_driver.port import GuestRam, HypercallPort

ENOTSUPP: Final = 524
"""The kernel's internal "operation is not supported"; no errno that user space knows."""

ALL: Final = ("rfc-v1", "rfc-v2", "rfc-v3", "edera")


class _IgnoresRefusal:
    """Answers 0 to a query_capabilities that was refused; the struct stays as the driver cleared it."""

    def __init__(self, port: HypercallPort, abi: Abi, ram: GuestRam) -> None:
        self._port: Final = port
        self._abi: Final = abi
        self._ram: Final = ram
        self._query: Final = abi.by_name["query_capabilities"].number
        self._linear: Final = ram.linear(0)

    def hypercall(self, nr: int, *args: int) -> int:
        result = self._port.hypercall(nr, *args)
        if result == -EPERM and nr == self._abi.hypercall and self._subop(args) == self._query:
            return 0
        return result

    def _subop(self, args: tuple[int, ...]) -> int:
        if self._abi.convention is Convention.SUBOP:
            return args[0]
        address = args[0] - self._linear
        if not 0 <= address < self._ram.pages * PAGE_SIZE:
            return -1
        return self._abi.subop_of(self._ram.read(address, 2))


def _internal_errno(errno: int) -> int:
    return -ENOTSUPP if errno == -EOPNOTSUPP else errno


STARTING: Final = (
    Defect(
        id="K9",
        versions=("rfc-v3", "edera"),
        title="IOMMU_init asks for 128 contexts and an arena of order 12, and gives up if that is too much",
        seen="a host without 16 MiB in one piece: no PV-IOMMU at all",
        source="reading of RFC v3 and the Edera tree",
        options={"arena_orders": (12,)},
    ),
    Defect(
        id="K11",
        versions=("rfc-v1", "rfc-v2"),
        title="only -ENOSYS means that there is no PV-IOMMU; -EPERM goes on with capabilities of zero",
        seen="a domain that may not call gets -ENOTSUPP instead of -ENODEV",
        source="reading of RFC v1 and v2",
        port=_IgnoresRefusal,
    ),
    Defect(
        id="L1.2-11",
        versions=ALL,
        title="-ENOTSUPP (524) leaves the driver, which is no errno for user space",
        seen="a hypervisor without contexts: the start answers -524",
        source="reading of every posted driver",
        answer=_internal_errno,
    ),
    Defect(
        id="K8",
        versions=ALL,
        title="RMRRs come from XENMEM_reserved_device_memory_map, an operation of the unstable tools interface",
        seen="not seen: there is no other way to ask, the reference driver asks the same and does without an answer",
        source="Jan Beulich on RFC v1: a kernel needs a stable interface",
    ),
    Defect(
        id="L1.2-10",
        versions=("rfc-v3", "edera"),
        title="neither iotlb_sync nor flush_iotlb_all: domains are strict",
        seen="not a fault: unmap flushes before it returns; it has to be said, and DEFERRED_FLUSH has to be false",
        source="reading of RFC v3 and the Edera tree",
    ),
    Defect(
        id="L1.2-12",
        versions=("rfc-v3", "edera"),
        title="RMRRs are RESERVED with no rights instead of DIRECT",
        seen="not a fault here: Xen maps them in every context that the device enters and refuses to map over them",
        source="open in the review; decided and tested in this project",
    ),
)

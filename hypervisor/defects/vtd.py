# SPDX-License-Identifier: GPL-2.0-or-later
"""G: the VT-d driver."""

from typing import Final

from hypervisor.defects.model import V1_TO_3, Defect
from hypervisor.defects.seams import Seams
from hypervisor.domain import Domain, Vcpu
from hypervisor.pviommu.result import Result
from hypervisor.xen import Xen


def says_39_bits(seams: Seams) -> None:
    """G5, as v1 to v3 have it."""
    query = seams.rows["query_capabilities"].handler

    def hard_coded(xen: Xen, vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
        result, out = query(xen, vcpu, domain, args, start)
        return result, ((1 << 39) - 1, *out[1:])

    seams.replace_handler("query_capabilities", hard_coded)


DEFECTS: Final = (
    Defect(
        "G5",
        V1_TO_3,
        "the highest I/O virtual address is a constant: 39 bits, whatever the units walk",
        "max_iova_addr is 0x7fffffffff with units of 48 bits",
        "catalogue G5 and 2.1; golden record sys",
        says_39_bits,
    ),
)

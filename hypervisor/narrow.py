# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypercall from 32-bit code: registers of 32 bits, structs as a 32-bit compiler lays them out.

Xen's hypercall table leads both kinds of callers to the same handlers; from RFC v4 on the structs differ, and a way in
of its own reads them.  Of other hypercalls there is no 32-bit form here.
"""

from typing import TYPE_CHECKING

from abi.errno import ENOSYS
from base.units import U32_MAX
from hypervisor.domain import Vcpu
from hypervisor.pviommu.result import RESTART

if TYPE_CHECKING:
    from hypervisor.xen import Xen


def hypercall32(xen: "Xen", vcpu: Vcpu, number: int, args: tuple[int, ...]) -> int:
    """What :meth:`hypervisor.xen.Xen.hypercall` does, for a caller of 32 bits."""
    if number != xen.abi.hypercall:
        return -ENOSYS
    registers = (*(arg & U32_MAX for arg in args), 0, 0)
    vcpu.narrow = True
    try:
        entry = xen.entry_of(vcpu)
        result = entry.enter(xen, vcpu, registers)
        while result == RESTART:
            registers = entry.again(registers, vcpu.restart)
            if xen.rescheduled is not None:
                xen.rescheduled(vcpu)
            result = entry.enter(xen, vcpu, registers)
    finally:
        vcpu.narrow = False
    return result

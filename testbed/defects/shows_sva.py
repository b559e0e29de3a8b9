# SPDX-License-Identifier: GPL-2.0-or-later
"""A fault of SVA happening: two devices of one domain, one of them bound to a process that ends.

What is printed is which properties of :mod:`testbed.invariants_sva` each operation broke.
"""

from abi.errno import errno_name
from guest_driver.defects.sva import DEFECTS
from guest_driver.linux.iommu_core import iommu_paging_domain_alloc
from testbed.defects.stage import Happening
from testbed.invariants_sva import check
from testbed.sva.watch import Step, Watch

_LEAF_ORDER = 4


def happen_sva(name: str, *, present: bool) -> Happening:
    """The story with the fault or without it."""
    watch = Watch(DEFECTS[name].build if present else None)
    machine = watch.machine
    domain = iommu_paging_domain_alloc(machine.dev1)
    if isinstance(domain, int):
        raise ValueError("the kernel has no memory for a domain")
    for dev in (machine.dev1, machine.dev2):
        watch.attach(dev, domain)
    mm = watch.process(text=b"secret")
    if name == "SVA-1":  # the binding is to fail at the second device: no memory for its next leaf
        machine.kernel.iommu.global_pasids.update(range(1, 1030))
        left = iter([False])
        machine.kernel.pages.fault = lambda order: order == _LEAF_ORDER and next(left, True)
    lines: list[str] = []
    holds = _tell(watch, watch.bind(machine.dev1, mm), "bind dev1 to a process", lines)
    machine.kernel.pages.fault = None
    holds = _tell(watch, watch.exit(mm), "the process ends", lines) and holds
    return Happening(holds, lines)


def _tell(watch: Watch, step: Step, text: str, lines: list[str]) -> bool:
    failed = isinstance(step.result, int) and step.result < 0
    answer = f"-{errno_name(step.result)}" if failed else "0"
    wrong = check(watch, step)
    lines.append(f"{text}: {answer}")
    lines.extend(f"  property {number}: {what}" for number, what in wrong.items())
    if not wrong:
        lines.append("  every property holds")
    return not wrong

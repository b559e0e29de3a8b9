# SPDX-License-Identifier: GPL-2.0-or-later
"""C: contexts between alloc and free, and devices moving in and out."""

from typing import Final

from abi.errno import ENOMEM
from base.units import CtxNo
from hypervisor.defects.model import V1_TO_3, V1_TO_7, V4_TO_7, Defect
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain, Vcpu
from hypervisor.errors import XenHang
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.pviommu.result import Result
from hypervisor.xen import Xen


def walks_into_the_other_list(seams: Seams) -> None:
    """C1."""
    contexts = seams.contexts

    def move_all(domain: Domain, context: IommuContext) -> int:
        assert domain.iommu is not None
        if context.devices:
            contexts.move(domain, context.devices[-1], domain.iommu.default)
            raise XenHang(
                f"free_context of {context.number} moved one device and goes on along the default context's list"
            )
        return 0

    replace(contexts, "move_all", move_all)


def refusal_leaves_it_dying(seams: Seams) -> None:
    """C2."""
    seams.loop.refuses_dying = False

    def free_begins(context: IommuContext) -> None:
        context.dying = True

    replace(seams.contexts, "free_begins", free_begins)


class LostNumbers:
    """Numbers that count as taken though there is no context."""

    def __init__(self) -> None:
        self.taken: dict[int, set[int]] = {}

    def save(self) -> object:
        return {domid: set(numbers) for domid, numbers in self.taken.items()}

    def restore(self, state: object) -> None:
        assert isinstance(state, dict)
        self.taken = {domid: set(numbers) for domid, numbers in state.items()}


def wrong_bit_is_cleared(seams: Seams) -> None:
    """C3."""
    lost = LostNumbers()
    seams.stateful.append(lost)

    def alloc_failed(domain: Domain, number: int) -> None:
        assert domain.iommu is not None
        lost.taken.setdefault(domain.domid, set()).add(number)
        domain.iommu.contexts.pop(number + 1, None)

    def free_number(domain: Domain) -> CtxNo | None:
        iommu = domain.iommu
        assert iommu is not None
        taken = lost.taken.get(domain.domid, set())
        for number in range(1, iommu.limit + 1):
            if number not in iommu.contexts and number not in taken:
                return CtxNo(number)
        return None

    replace(seams.contexts, "alloc_failed", alloc_failed)
    replace(seams.contexts, "free_number", free_number)


def same_context_is_entered_again(seams: Seams) -> None:
    """C7."""
    contexts, backend = seams.contexts, seams.xen.backend
    move = contexts.move

    def again(domain: Domain, device: PciDevice, target: IommuContext) -> int:
        if device.context is target and device.translated:
            return backend.attach(device, target)
        result: int = move(domain, device, target)
        return result

    def in_place(device: PciDevice, context: IommuContext) -> bool:
        return False

    replace(contexts, "in_place", in_place)
    replace(contexts, "move", again)


def failed_init_counts(seams: Seams) -> None:
    """C8."""
    init = seams.rows["init"].handler

    def sticks(xen: Xen, vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
        result = init(xen, vcpu, domain, args, start)
        if result[0] == -ENOMEM:
            assert domain.iommu is not None
            domain.iommu.initialised = True
        return result

    seams.replace_handler("init", sticks)


DEFECTS: Final = (
    Defect(
        "C1",
        V1_TO_7,
        "free_context with the reattach flag walks on along the default context's list of devices",
        "one device in the context: it is moved, and the call never returns; two: the other one stays",
        "catalogue C1; golden records destr-free_flag_1dev, destr-free_flag_2dev",
        walks_into_the_other_list,
    ),
    Defect(
        "C2",
        V1_TO_7,
        "a free that is refused with -EBUSY leaves the context dying",
        "reattach into it answers -EINVAL from then on",
        "catalogue C2; golden records sys, destr-dying_alloc",
        refusal_leaves_it_dying,
    ),
    Defect(
        "C3",
        V1_TO_7,
        "when a context cannot be made, its number stays taken and the next context's number is given free",
        "the context with the next number is unknown, and its number is handed out again under its devices",
        "catalogue C3",
        wrong_bit_is_cleared,
    ),
    Defect(
        "C7",
        V1_TO_3,
        "reattaching a device to the context that it is in enters it again",
        "a device-selective and a domain-selective invalidation with the context's own domain id",
        "catalogue C7; golden record sys",
        same_context_is_entered_again,
    ),
    Defect(
        "C8",
        V4_TO_7,
        "IOMMU_init that fails for want of memory counts as done",
        "an arena of 2^60 pages is -ENOMEM; a modest wish after it is -EACCES, for ever",
        "catalogue C8 and 2.2",
        failed_init_counts,
        subops=("init",),
    ),
)

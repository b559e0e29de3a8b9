# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program's toolstack does: domains come and go, devices go from one to another.

``create_domain``
    A guest domain with ``pages`` pages of RAM (16 to 512, a power of two, in one piece; ``ram:0`` to ``ram:7`` hold
    its hypercall arguments), translated or PV, that may reserve 2^``arena`` pages for PV-IOMMU; or one without IOMMU.
``destroy_domain``
    ``passes`` passes of its end (0: all that it takes).  From the first one on the domain makes no calls.
``assign``, ``deassign``
    A device goes to a domain, from wherever it is; or away from that domain, which has to have it, into quarantine.
``add_device``, ``remove_device``
    A device comes into the machine, dom0's, in that context; or it is taken out of it, whosever it is.

What Xen's domctls say of a domain that is not there is -ESRCH; dom0 is not to be destroyed (-EINVAL).
"""

from typing import TYPE_CHECKING, Final

from abi.errno import EBUSY, EEXIST, EINVAL, ENODEV, ENOMEM, ERESTART, ESRCH
from base.units import PAGE_SHIFT, PAGE_SIZE, DomId, Sbdf
from fuzz.linear import READ_ONLY_PAGE, WIDE, AddressSpace
from fuzz.verbs import DEVICES
from hypervisor import p2m
from hypervisor.domain import Domain, Vcpu
from hypervisor.guest_access import LinearMemory
from hypervisor.iommu.context import PciDevice
from hypervisor.pviommu.result import RESTART
from testbed.domu import build_domain
from testbed.ports import DomainRam

if TYPE_CHECKING:
    from testbed.build import TestBed

LARGEST: Final = 64
"""Bytes of the largest struct, or more."""
OUTER: Final = 4 << PAGE_SHIFT
"""Where a caller has the struct of remote_cmd that carries another."""
REGIONS: Final = OUTER + 1024
"""Where dom0 has the struct of a question for reserved regions."""
ENTRIES: Final = OUTER + 2048
"""Where the answers go."""
STRUCT_END: Final = (5 << PAGE_SHIFT) + 1024
"""Where the struct of a hypercall ends: whatever its size, what lies behind is not its own."""
SPLIT_END: Final = (6 << PAGE_SHIFT) + 4
"""The same for a struct that lies across two pages."""
WINDOWS: Final[dict[int, tuple[tuple[int, int], ...]]] = {
    4: ((0, LARGEST), (1024, 1024 + LARGEST), (2048, 3072)),
    5: ((1024 - LARGEST, 1024), (PAGE_SIZE - LARGEST, PAGE_SIZE)),
    6: ((0, 4),),
    READ_ONLY_PAGE: ((0, LARGEST),),
}
"""By page: [start, end) of the bytes that callers themselves write, and that their calls name."""
LEAST_PAGES: Final = 16
MOST_PAGES: Final = 512
MOST_ARENA: Final = 20
FIRST_RESERVED: Final = 0x7FF0
"""Domain ids from here on are not those of guests."""

_KINDS: Final = {
    "ram": p2m.RAM_RW,
    "ro": p2m.RAM_RO,
    "shared": p2m.RAM_SHARED,
    "paged": p2m.RAM_PAGED,
    "logdirty": p2m.RAM_LOGDIRTY,
    "hole": p2m.NONE,
    "foreign": p2m.RAM_RW,
}
_XENS_FRAME: Final = 3
"""What a foreign page leads to: a frame that nobody may map."""


class CallingDomain:
    """A domain that can make hypercalls: its vCPU and its memory."""

    __slots__ = ("address_end", "domain", "domid", "mfns", "pv", "ram", "space", "struct_frame", "structs", "vcpu")

    def __init__(self, domain: Domain, vcpu: Vcpu, ram: DomainRam, linear: LinearMemory, space: AddressSpace) -> None:
        self.domain: Final = domain
        self.domid: Final = int(domain.domid)
        self.vcpu: Final = vcpu
        self.ram: Final = ram
        self.mfns: Final = ram.mfns
        self.pv: Final = domain.pv
        self.struct_frame: Final = ram.mfns[STRUCT_END >> PAGE_SHIFT]
        """The machine frame that a call's struct lies in."""
        self.structs: Final = tuple(ram.window(STRUCT_END - size, size) for size in range(LARGEST + 1))
        """By size: the bytes of a call's struct."""
        self.space: Final = space
        self.address_end: Final = self.linear(STRUCT_END)
        """The same as hypercalls name it."""
        space.lay_out(linear, ram.pages)

    def linear(self, paddr: int) -> int:
        """The address at which it has that byte of its RAM."""
        return self.space.ram + paddr


class Toolstack:
    """The domains and devices of one test bed."""

    def __init__(self, bed: "TestBed", space: AddressSpace = WIDE) -> None:
        """``space``: where callers have their memory."""
        self._bed: Final = bed
        self._xen: Final = bed.xen
        self._space: Final = space
        self.dom0: Final = CallingDomain(bed.dom0, bed.vcpu, bed.ram, bed.linear, space)
        self.callers: Final[dict[int, CallingDomain]] = {0: self.dom0}
        """By domain id: dom0, and every guest until its end begins."""
        self.devices: Final[dict[str, PciDevice]] = {
            name: bed.dom0.devices[Sbdf(number)] for name, number in DEVICES.items() if number in bed.dom0.devices
        }

    def reset(self) -> None:
        """A program begins; the test bed has been reset."""
        self.callers.clear()
        self.callers[0] = self.dom0

    def create_domain(self, domid: int, pages: int, kind: str, arena: int, iommu: str) -> int:
        """-EEXIST for an id that is taken, -EINVAL for what no domain can have, -ENOMEM."""
        if domid in self._xen.domains:
            return -EEXIST
        sound = LEAST_PAGES <= pages <= MOST_PAGES and not pages & pages - 1
        if not 0 < domid < FIRST_RESERVED or not sound or arena > MOST_ARENA:
            return -EINVAL
        try:
            domain, mfns, linear = build_domain(
                self._xen,
                self._bed.memory,
                DomId(domid),
                pages,
                pages.bit_length() - 1,
                pv=kind == "pv",
                iommu=iommu == "yes",
                arena_pages=1 << arena,
            )
        except ValueError:
            return -ENOMEM
        ram = DomainRam(self._bed.memory, mfns, domain.pv)
        self.callers[domid] = CallingDomain(domain, self._xen.add_vcpu(domain, linear), ram, linear, self._space)
        return 0

    def destroy_domain(self, domid: int, passes: int) -> int:
        """-ERESTART if the passes were not enough, else what :meth:`hypervisor.xen.Xen.destroy_domain` answers."""
        domain = self._xen.domains.get(domid)
        if domain is None:
            return -ESRCH
        if domain.hardware:
            return -EINVAL
        self.callers.pop(domid, None)
        for _ in range(passes):
            error = self._xen.relinquish(domain)
            if error != RESTART:
                if error:
                    return error
                break
        else:
            if passes:
                return -ERESTART
        return self._xen.destroy_domain(domain)

    def remove_page(self, owner: CallingDomain, gfn: int) -> int:
        """What :meth:`hypervisor.xen.Xen.remove_page` answers; a PV guest unpins what it gives back."""
        frames = self._xen.frames
        if owner.pv and 0 <= gfn < frames.frames and frames.owner[gfn] == owner.domid:
            frames.pagetable[gfn] = 0
        return self._xen.remove_page(owner.domain, gfn)

    def retype_page(self, owner: CallingDomain, gfn: int, mfn: int, kind: str) -> int:
        """-EINVAL for a page that is not the domain's or cannot be of that kind, -EBUSY for a page table to which a
        device may write."""
        frames = self._xen.frames
        if not frames.allocated[mfn] or frames.owner[mfn] != owner.domid:
            return -EINVAL
        if kind != "ram" and owner.pv != (kind == "pagetable"):
            return -EINVAL
        if owner.pv:
            if kind == "pagetable" and frames.writable_count(mfn):
                return -EBUSY
            frames.pagetable[mfn] = kind == "pagetable"
        else:
            owner.domain.p2m.set(gfn, _XENS_FRAME if kind == "foreign" else mfn, 1, _KINDS[kind])
        return 0

    def assign(self, name: str, domid: int) -> int:
        """-ESRCH, -ENODEV, or what :meth:`hypervisor.xen.Xen.assign_device` answers."""
        domain, device = self._xen.domains.get(domid), self.devices.get(name)
        if domain is None:
            return -ESRCH
        return -ENODEV if device is None else self._xen.assign_device(domain, device)

    def deassign(self, name: str, domid: int) -> int:
        """-ESRCH, -ENODEV, or what :meth:`hypervisor.xen.Xen.deassign_device` answers."""
        domain, device = self._xen.domains.get(domid), self.devices.get(name)
        if domain is None:
            return -ESRCH
        return -ENODEV if device is None else self._xen.deassign_device(domain, device)

    def add_device(self, name: str, number: int) -> int:
        """-ENODEV, or what :meth:`hypervisor.xen.Xen.attach_device` answers."""
        device = self.devices.get(name)
        return -ENODEV if device is None else self._xen.attach_device(self._bed.dom0, device, number)

    def remove_device(self, name: str) -> int:
        """-ENODEV, or what :meth:`hypervisor.xen.Xen.remove_device` answers."""
        device = self.devices.get(name)
        return -ENODEV if device is None else self._xen.remove_device(device)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines that a program can ask for in its bench line, ``machine=NAME``: each is unlike the usual one in one thing.

Some faults need hardware or a boot that most machines do not have; here is where they show.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from abi.versions import Abi
from base.units import Sbdf
from fuzz.domain_ids import DomainIds
from fuzz.linear import NARROW, WIDE, AddressSpace
from fuzz.verbs import DEVICES
from hypervisor.frames import DOMID_IO
from hypervisor.iommu.context import PciDevice
from hypervisor.vtd.driver import VtdBackend
from hypervisor.xen import Xen
from machine.pci import PciFunction
from testbed.build import TestBed
from testbed.config import Config
from testbed.units import DEFAULT, UnitSpec

if TYPE_CHECKING:
    from fuzz.domains import Domains

USUAL: Final = "usual"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine has that others have not."""

    prose: str
    backends: tuple[str, ...] = ("vtd",)
    """Those that there is such a machine of; none: all."""
    unit: str = DEFAULT
    """Kind of its unit (:mod:`testbed.backends`)."""
    second: tuple[str, ...] = ()
    """Devices behind a unit of their own."""
    address_bits: int | None = None
    """Width of the I/O virtual addresses that its unit walks; ``None``: as wide as the backend says."""
    free_ids: int | None = None
    """Domain ids that its unit has left when the program begins; ``None``: more than a program uses."""
    phantom_functions: int = 0
    """log2 of the requester ids that the rogue device uses."""
    command_line: bool = False
    """Contexts and arena of the bench are given on Xen's command line."""
    uncovered: bool = False
    """The domain has a device that no unit covers."""
    frame_0: bool = False
    """A PV dom0 may map machine frame 0, as it may MMIO."""
    code_32: bool = False
    """Guests run 32-bit code."""
    guests: tuple[str, ...] = ("pv", "pvh")
    """Kinds of dom0 that may tell it from the usual one."""

    def is_of(self, backend: str) -> bool:
        """Whether there is such a machine of that backend."""
        return not self.backends or backend in self.backends

    def is_for(self, abi: Abi) -> bool:
        """Whether it is unlike the usual one for guests that speak ``abi``: since v4 they say themselves how many
        contexts they want."""
        return not (self.command_line and abi.has("init"))

    @property
    def beyond(self) -> frozenset[int]:
        """Devices of dom0 that no unit covers."""
        return frozenset({DEVICES["beyond"]} if self.uncovered else ())

    @property
    def address_space(self) -> AddressSpace:
        """Where its guests have their memory."""
        return NARROW if self.code_32 else WIDE

    def as_seen(self, abi: Abi) -> Abi:
        """The interface as its guests have it: structs as their compiler lays them out."""
        return abi.on("i386") if self.code_32 else abi

    def hypercall(self, xen: Xen) -> Callable[..., int]:
        """The way into the hypervisor, as :meth:`hypervisor.xen.Xen.hypercall`."""
        return xen.hypercall32 if self.code_32 else xen.hypercall

    def ids(self, domains: "Domains") -> DomainIds:
        """The domain ids of its units, which ``domains`` use up."""
        return DomainIds(self.free_ids, domains)

    @property
    def stranger(self) -> str:
        """A device that cannot be attached."""
        return "beyond" if self.uncovered else "foreign"

    def limit(self, contexts: int | None, found: int) -> int:
        """Most contexts of dom0, where the bench says ``contexts`` and the hypervisor came up with ``found``."""
        return contexts if self.command_line and contexts is not None else found

    def max_iova(self, usual: int) -> int:
        """The highest address that its units translate, ``usual`` for most machines."""
        return usual if self.address_bits is None else (1 << self.address_bits) - 1

    def configure(self, config: Config, contexts: int | None, arena: int) -> Config:
        """The test bed of ``config`` as this machine; ``contexts`` and 2^``arena`` pages are the bench's."""
        told = f"nb-ctx={contexts + 1},arena-order={arena}" if self.command_line and contexts is not None else ""
        units = [UnitSpec(self.unit)]
        if self.second:
            units.append(UnitSpec(self.unit, tuple(Sbdf(DEVICES[name]) for name in self.second)))
        return replace(config, units=tuple(units), phantom_functions=self.phantom_functions, dom0_iommu=told)

    def prepare(self, bed: TestBed) -> None:
        """What a configuration does not say, before the guest does anything."""
        xen, dom0 = bed.xen, bed.dom0
        if self.frame_0 and dom0.pv:
            dom0.mmio.insert(0, (0, 0))
            xen.frames.owner[0] = DOMID_IO
        if self.uncovered:
            function = PciFunction(Sbdf(DEVICES["beyond"]))
            dom0.devices[function.sbdf] = PciDevice(function, (function.sbdf,))
        if self.free_ids is not None:
            assert isinstance(xen.backend, VtdBackend)
            for unit in xen.backend.units:
                for _ in range(unit.dids - 1 - self.free_ids):  # dom0's default context has one
                    unit.take_did()


_UNITS: Final[dict[str, tuple[str, ...]]] = {
    "no-superpages": ("walks no superpages", "vtd"),
    "2m": ("walks no superpages of 1 GiB", "vtd"),
    "caching": ("may remember that nothing is there (caching mode)", "vtd"),
    "write-buffer": ("sees stores to tables after a flush of the write buffer only", "vtd"),
    "non-coherent": ("reads tables past the caches", "vtd"),
    "domain-selective": ("forgets no less than a whole domain", "vtd"),
    "no-snoop": ("cannot make DMA coherent", "vtd"),
    "scalable": ("is in scalable mode: trees hang on PASID entries", "vtd"),
    "no-draining": ("does not wait for requests that are on their way", "vtd"),
    "moved": ("has its registers elsewhere, and one for fault records", "vtd"),
    "device-tlb": ("lets devices keep translations of their own (ATS)", "vtd", "smmuv3"),
    "44-bit": ("has addresses of 44 bits", "smmuv3"),
    "vmid8": ("has 256 VMIDs", "smmuv3"),
    "nested": ("has stage 1 and substreams", "smmuv3"),
    "linear": ("has a stream table of one level", "smmuv3"),
    "sid-17": ("has stream ids of 17 bits", "smmuv3"),
    "no-ranges": ("forgets single pages or all, no ranges", "smmuv3"),
    "break-before-make": ("wants an entry to be empty, and that confirmed, before it is another (BBML 0)", "smmuv3"),
    "short-queues": ("has queues of four commands and four events", "smmuv3"),
}
"""Kinds of units (:mod:`testbed.backends`) to what such a unit does, and the backends that have them.  One is left out:
with addresses of 40 bits a tree has two roots side by side, and an arena may have two frames and not such a pair."""

MACHINES: Final[dict[str, Machine]] = {
    USUAL: Machine("one unit that covers every device, walks what is usual for the backend and has ids to spare", ()),
    "narrow": Machine("the unit walks trees of three levels only, 39 bits", unit="39-bit", address_bits=39),
    "few-ids": Machine(
        "the unit has 256 domain ids, and all but three are taken when the program begins",
        unit="few-domains",
        free_ids=3,
    ),
    "phantom": Machine("the rogue device issues requests under a phantom function's id as well", phantom_functions=1),
    "uncovered": Machine("the domain has a device (`beyond`) on a segment that no unit covers", uncovered=True),
    "frame-0": Machine(
        "machine frame 0 is I/O memory that dom0 may map, as a PC's first megabyte is", frame_0=True, guests=("pv",)
    ),
    "command-line": Machine(
        "v1 to v3: Xen was told how many contexts and pages dom0 has by `dom0-iommu=nb-ctx=N,arena-order=N`",
        (),
        command_line=True,
    ),
    "32-bit": Machine(
        "guests are 32-bit code: another way in, arguments below 4 GiB, structs as i386 lays them out", code_32=True
    ),
    "two-units": Machine("the NIC and the rogue device are behind a second unit", (), second=("nic", "rogue")),
    **{kind: Machine(f"the unit {prose}", tuple(backends), unit=kind) for kind, (prose, *backends) in _UNITS.items()},
}
"""By name."""


def get(name: str) -> Machine:
    """The machine called ``name``; ``ValueError`` lists what there is."""
    if name not in MACHINES:
        raise ValueError(f"unknown machine {name!r}; there are: {', '.join(MACHINES)}")
    return MACHINES[name]


def of(name: str, backend: str) -> Machine:
    """The same, if there is such a machine of ``backend``; else ``ValueError`` says of what there is."""
    machine = get(name)
    if not machine.is_of(backend):
        raise ValueError(f"machine={name} is of {' and '.join(machine.backends)}")
    return machine

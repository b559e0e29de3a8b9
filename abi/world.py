# SPDX-License-Identifier: GPL-2.0-or-later
"""What the executable specification talks about: domains, contexts, devices, frames, requests and outcomes.

Plain, immutable mappings.  There are no page tables, caches or arenas here: what depends on them (is there a page for
a table? does hardware confirm a flush? is the vCPU wanted elsewhere?) is a :class:`Chance` that whoever asks supplies
with the request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from abi.conditions import FrameKind

READ: Final = 1
WRITE: Final = 2


@dataclass(frozen=True, slots=True)
class Leaf:
    """One mapped page of a context."""

    gfn: int
    access: int
    """:data:`READ` | :data:`WRITE`."""
    reserved: bool = False
    """Put there by the hypervisor for a device's reserved region."""


@dataclass(frozen=True, slots=True)
class Context:
    """One IOMMU context of a domain."""

    leaves: Mapping[int, Leaf] = field(default_factory=dict)
    """Device frame -> what is mapped there."""
    dying: bool = False
    """Its free has begun: nothing leads into it any more, and what it still maps nobody can see."""
    opaque: bool = False
    """Shares the CPU's second-stage tables: maps answer 0 and do nothing, nothing is ever found in it."""


@dataclass(frozen=True, slots=True)
class Device:
    """One PCI function that a domain owns."""

    context: int | None = 0
    """The context that it is in; ``None``: none yet."""
    reserved: tuple[tuple[int, int], ...] = ()
    """Device frames that firmware reserves for it (RMRR): first and last of each range."""


@dataclass(frozen=True, slots=True)
class Domain:
    """What the contract has to know about one VM.  The defaults are a dom0 on VT-d hardware before any call."""

    usable: bool = True
    hardware: bool = True
    """The hardware domain."""
    initialized: bool = False
    max_ctx_no: int = 0
    """Contexts besides the default one."""
    contexts: Mapping[int, Context] = field(default_factory=lambda: {0: Context()})
    devices: Mapping[int, Device] = field(default_factory=dict)
    """By segment << 16 | bus << 8 | devfn."""
    frames: Mapping[int, FrameKind] = field(default_factory=dict)
    """Guest frame -> what it is; a frame that is not there is a hole."""
    max_iova_addr: int = (1 << 48) - 1
    cap_flags: int = 1
    pgsize_mask: int = 0x1000
    dfn_mask: int = (1 << 36) - 1
    """The device frames that the IOMMU's tables can tell apart; higher bits are dropped where nobody checks them."""
    arena_orders: int = 64
    """No arena has 2 to that many pages, or more: the machine does not."""
    direct: bool = False
    """Its frame numbers are the machine's (PV)."""
    changed: Mapping[int, FrameKind] = field(default_factory=dict)
    """Frames that are something else now than :attr:`frames` says (:mod:`abi.ownership`)."""
    given_up: frozenset[int] = frozenset()
    """Frames that it gave up.  A PV guest's are its own for as long as a mapping leads to them."""
    unconfirmed: bool = False
    """There was a flush that hardware did not confirm: it may remember what was unmapped, and those frames are kept."""

    def kind(self, gfn: int) -> FrameKind:
        """What guest frame ``gfn`` is now, one that was given up left to whoever asks."""
        return self.changed.get(gfn) or self.frames.get(gfn, FrameKind.HOLE)

    def holds(self, gfn: int, access: int = READ | WRITE) -> bool:
        """Whether a mapping of the domain's own contexts with one of these rights leads to ``gfn``."""
        return any(
            leaf.gfn == gfn and leaf.access & access and not leaf.reserved
            for context in self.contexts.values()
            for leaf in context.leaves.values()
        )


State = Mapping[int, Domain]
"""Every domain by its number."""


@dataclass(frozen=True, slots=True)
class Chance:
    """How what the contract leaves open turns out in one pass of one call."""

    readable: bool = True
    writable: bool = True
    holes_zero: bool = True
    no_memory_at: int | None = None
    """The page of this pass (0 the first) that lacks memory for a table; for calls without pages, 0 is a failure."""
    no_tag: bool = False
    """Hardware has no tag left for another context."""
    preempt_after: int | None = None
    """Pages after which the vCPU is wanted elsewhere; for a free, any number: before it is done."""
    driver_errno: int = 0
    """How reprogramming a device, or taking a context apart, fails: ENOMEM, EILSEQ or EIO."""
    stay: frozenset[int] = frozenset()
    """Devices that a free does not get out of its context, where one of them could not be reprogrammed."""
    unconfirmed: bool = False
    """Hardware does not confirm a flush of this pass."""
    gone_from: int | None = None
    """The page of this pass from which on frames that were given up are gone, where hardware may remember them."""
    inner: "Chance | None" = None
    """How the call that remote_cmd carries turns out, where that is not the same."""


@dataclass(frozen=True, slots=True)
class Request:
    """One pass of one hypercall."""

    caller: int
    subop: int
    args: tuple[int, ...] = ()
    """The struct's fields in canonical order (:mod:`abi.canonical`)."""
    chance: Chance = field(default_factory=Chance)
    inner: tuple[int, ...] = ()
    """remote_cmd only: the fields of the struct that ``arg`` points to."""
    start: int = 0
    """Pages that earlier passes of this call did, where that does not travel in the struct."""
    progress: int = 0
    """What the caller itself put into the bits of the sub-op register that say how far earlier passes got."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the caller sees."""

    result: int
    """0 or a negative errno; -ERESTART stays inside the hypervisor, which issues :attr:`again` instead."""
    args: tuple[int, ...]
    """The fields of the struct as they are in guest memory afterwards."""
    condition: str = ""
    """The condition of the contract that decided, "" if none did."""
    done: int = 0
    """Pages mapped or unmapped in this pass."""
    inner: tuple[int, ...] = ()
    """remote_cmd only: the fields that ``arg`` points to afterwards."""
    again: Request | None = None
    """The call as the hypervisor issues it again after a preemption."""
    bug: str = ""
    """Not "": the hypervisor stops here, and why."""


def domain_for(abi_name: str, **facts: object) -> Domain:
    """A domain as it is before its first call under version ``abi_name``: v1 to v3 come with 255 contexts."""
    early = abi_name.lower().removesuffix("-fixed") in ("v1", "v2", "v3")
    defaults: dict[str, object] = {"initialized": early, "max_ctx_no": 255 if early else 0}
    if early:
        defaults["max_iova_addr"] = (1 << 39) - 1
        defaults["cap_flags"] = 0
    return Domain(**{**defaults, **facts})  # type: ignore[arg-type]

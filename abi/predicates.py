# SPDX-License-Identifier: GPL-2.0-or-later
"""When the conditions of :mod:`abi.conditions` hold: one predicate each, over a pass of a call.

:data:`TESTS` are asked once, :data:`PAGE_TESTS` for every page in turn; which of them, in which order and with which
errno is what :mod:`abi.contract` says for each version.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from abi.canonical import CANONICAL
from abi.conditions import FrameKind
from abi.contract import READ_ONLY_KINDS, Contract
from abi.errno import EILSEQ, EIO, ENOMEM
from abi.model import SubOp
from abi.world import READ, WRITE, Context, Device, Domain, Leaf, Request, State

_U32: Final = 0xFFFFFFFF
_NUMBERLESS: Final = frozenset({FrameKind.HOLE, FrameKind.PAGED_OUT, FrameKind.FOREIGN, FrameKind.XEN})
GRAIN: Final = 256
"""What a caller's progress counts in: pages from the multiple of this at or below the call's first device frame."""


class Call:
    """One pass under way: the request with names, and the state as it changes."""

    def __init__(self, contract: Contract, state: State, request: Request, target: int, subop: SubOp) -> None:
        self.contract: Final = contract
        self.abi: Final = contract.abi
        self.state: State = state
        self.request: Final = request
        self.chance: Final = request.chance
        self.result = 0
        self.subop: Final = subop
        self.target: Final = target
        args = request.args or (0,) * len(CANONICAL[subop.name])
        self.args: dict[str, int] = dict(zip((f.name for f in CANONICAL[subop.name]), args))
        self.domain: Domain = state[target]
        self.done = 0
        self.bug = ""
        self.leaves: dict[int, Leaf] = {}
        """What the context maps, as a loop over pages changes it."""
        self.inner: tuple[int, ...] = request.inner
        self.again: Request | None = None
        flags = self.args.get("flags", 0)
        self.access: Final = (flags & self.abi.map_readable and READ) | (flags & self.abi.map_writeable and WRITE)
        self.unit: Final = self.args.get("pgsize", 0x1000) >> 12 if contract.units else 1
        self.pages: Final = self.args.get("nr_pages", 0) * self.unit
        self.start: Final = request.start or _claimed(request.progress, self.args.get("dfn", 0))
        """The page that the pass begins with."""
        self.met = ""
        """The condition that ended the call after it had changed something, "" for none."""

    @property
    def sbdf(self) -> int:
        return self.args["segment"] << 16 | self.args["bus"] << 8 | self.args["devfn"]

    @property
    def device(self) -> Device:
        return self.domain.devices[self.sbdf]

    @property
    def context(self) -> Context:
        return self.domain.contexts[self.args["ctx_no"]]

    def dfn(self, page: int) -> int:
        """The device frame of page number ``page`` of the call, as the tables see it; posted code drops high bits."""
        dfn = self.args["dfn"] + page
        return dfn if self.contract.fixed else dfn & self.domain.dfn_mask

    @property
    def driverless(self) -> bool:
        """Whether the target has no IOMMU driver to ask: posted remote_cmd does not look."""
        return not self.domain.usable and not self.contract.fixed

    def change(self, **facts: object) -> None:
        """Change facts of the target domain."""
        self.domain = replace(self.domain, **facts)  # type: ignore[arg-type]
        self.state = {**self.state, self.target: self.domain}

    def put(self, ctx_no: int, context: Context | None) -> None:
        """Replace a context, or remove it."""
        contexts = dict(self.domain.contexts)
        if context is None:
            del contexts[ctx_no]
        else:
            contexts[ctx_no] = context
        self.change(contexts=contexts)


TESTS: Final[dict[str, Callable[[Call], bool]]] = {
    "unreadable": lambda c: not c.chance.readable,
    "unwritable-first": lambda c: not c.chance.writable,
    "unusable": lambda c: not c.state[c.request.caller].usable,
    "unknown": lambda c: True,
    "unimplemented": lambda c: True,
    "holes": lambda c: not c.chance.holes_zero,
    "too-many-contexts": lambda c: c.args["max_ctx_no"] > (0xFFFE if c.contract.fixed else _U32 - 1),
    "count-wraps": lambda c: c.args["max_ctx_no"] + 1 & 0xFFFF == 0,
    "initialized": lambda c: c.domain.initialized,
    "no-arena": lambda c: c.chance.no_memory_at is not None or c.args["arena_order"] >= c.domain.arena_orders,
    "bad-flags": lambda c: bool(c.args["flags"] & ~_known_flags(c)),
    "identity-context": lambda c: bool(c.args["flags"] & c.abi.alloc_identity),
    "no-number": lambda c: free_number(c.domain) is None,
    "no-context-memory": lambda c: c.chance.no_memory_at is not None,
    "no-tag": lambda c: c.chance.no_tag,
    "default-context": lambda c: c.args["ctx_no"] == 0,
    "no-context": lambda c: c.args["ctx_no"] not in c.domain.contexts,
    "busy": lambda c: not c.args["flags"] & c.abi.free_reattach_default and bool(devices_in(c)),
    "pasid": lambda c: c.args["pasid"] != 0,
    "no-device": lambda c: c.sbdf not in c.domain.devices,
    "cut-off": lambda c: c.device.context == c.args["ctx_no"] and c.chance.driver_errno == EIO and c.chance.unconfirmed,
    "in-place": lambda c: c.device.context == c.args["ctx_no"],
    "device-unattached": lambda c: c.device.context is None,
    "device-lost": lambda c: c.device.context not in c.domain.contexts,
    "target-dying": lambda c: c.context.dying,
    "reserved-overlap": lambda c: _reserved_overlaps(c),
    "reserved-occupied": lambda c: _reserved_occupied(c),
    "no-table-memory": lambda c: c.chance.driver_errno == ENOMEM,
    "entry-changed": lambda c: c.chance.driver_errno == EILSEQ,
    "move-unconfirmed": lambda c: c.chance.driver_errno == EIO and c.chance.unconfirmed,
    "phantom": lambda c: c.chance.driver_errno == EIO,
    "bad-progress": lambda c: bool(c.request.progress) and (bool(c.start % c.unit) or not 0 <= c.start < c.pages),
    "too-many-pages": lambda c: _too_many(c),
    "bad-pgsize": lambda c: c.args["pgsize"].bit_count() != 1 or not c.args["pgsize"] & c.domain.pgsize_mask,
    "misaligned": lambda c: bool((c.args["dfn"] | c.args.get("gfn", 0)) & c.unit - 1),
    "out-of-range": lambda c: c.args["dfn"] + c.pages - 1 > c.domain.max_iova_addr >> 12,
    "no-access": lambda c: c.access == 0,
    "not-mapped": lambda c: c.dfn(0) not in c.context.leaves,
    "frame-lost": lambda c: not c.domain.direct and c.domain.kind(c.context.leaves[c.dfn(0)].gfn) in _NUMBERLESS,
    "nested-remote": lambda c: _inner(c) == "remote_cmd",
    "not-privileged": lambda c: not c.domain.hardware,
    "no-domain": lambda c: c.args["domid"] not in c.state,
    "target-unusable": lambda c: not c.state[c.args["domid"]].usable,
}
"""Condition -> whether it holds."""

DRIVER_TESTS: Final = frozenset(
    {
        "no-context-memory",
        "reserved-overlap",
        "reserved-occupied",
        "no-table-memory",
        "entry-changed",
        "phantom",
        "occupied",
        "not-mapped",
        "no-split-memory",
    }
)
"""Conditions that only the IOMMU driver of the target can answer."""

PAGE_TESTS: Final[dict[str, Callable[[Call, int], bool]]] = {
    "reserved-dfn": lambda c, page: _reserved(c, c.start if c.subop.name in c.contract.reserved_once else page),
    "frame-shared": lambda c, page: _frame(c, page) == "frame-shared",
    "frame-paged": lambda c, page: _frame(c, page) == "frame-paged",
    "frame-hole": lambda c, page: _frame(c, page) == "frame-hole",
    "frame-refused": lambda c, page: _frame(c, page) == "frame-refused",
    "occupied": lambda c, page: c.dfn(page) in c.leaves,
    "not-mapped": lambda c, page: c.dfn(page) not in c.leaves,
    "no-table-memory": lambda c, page: c.chance.no_memory_at == page - c.start,
    "no-split-memory": lambda c, page: c.chance.no_memory_at == page - c.start,
}
"""Condition that is tested for every page -> whether it holds for page number ``page`` of the call."""


def _claimed(progress: int, dfn: int) -> int:
    """The first page that ``progress`` says is left to do; negative for nonsense."""
    return progress - dfn % GRAIN if progress else 0


def _known_flags(c: Call) -> int:
    names = {"alloc_context": c.abi.alloc_flags_mask, "free_context": c.abi.free_flags_mask}
    return names.get(c.subop.name, c.abi.map_flags_mask)


def free_number(domain: Domain) -> int | None:
    return next((n for n in range(1, domain.max_ctx_no + 1) if n not in domain.contexts), None)


def devices_in(c: Call) -> list[int]:
    number = c.args["ctx_no"]
    return [sbdf for sbdf, d in c.domain.devices.items() if d.context == number]


def regions(c: Call, number: int | None, but: int) -> set[tuple[int, int]]:
    """Reserved ranges in a context on behalf of its devices, one device left out."""
    return {r for sbdf, d in c.domain.devices.items() if d.context == number and sbdf != but for r in d.reserved}


def _reserved(c: Call, page: int) -> bool:
    number = c.args["ctx_no"]
    dfn = c.dfn(page)
    return any(first <= dfn <= last for first, last in regions(c, number, -1))


def _reserved_overlaps(c: Call) -> bool:
    there = regions(c, c.args["ctx_no"], c.sbdf)
    mine = c.device.reserved
    return any(
        first <= last2 and first2 <= last and (first, last) != (first2, last2)
        for first, last in mine
        for first2, last2 in there
    )


def _reserved_occupied(c: Call) -> bool:
    number = c.args["ctx_no"]
    if number == 0:
        return False
    there = regions(c, number, -1) if c.contract.fixed else set()
    leaves = c.context.leaves
    return any(
        dfn in leaves and (c.contract.fixed or leaves[dfn] != Leaf(dfn, READ | WRITE, leaves[dfn].reserved))
        for first, last in c.device.reserved
        if (first, last) not in there
        for dfn in range(first, last + 1)
    )


def _too_many(c: Call) -> bool:
    limit = c.abi.max_nr_pages
    return c.args["nr_pages"] > limit if limit is not None else c.pages > _U32 + 1


def _frame(c: Call, page: int) -> str:
    gfn = c.args["gfn"] + page
    kind = c.domain.kind(gfn)
    if kind in READ_ONLY_KINDS and c.contract.fixed and c.access & WRITE:
        return "frame-refused"
    if c.domain.direct and gfn in c.domain.given_up and not _gone(c, gfn, page):
        return ""
    if c.domain.hardware and kind in c.contract.hardware_maps:
        return ""
    return c.contract.frames.get(kind, "")


def _gone(c: Call, gfn: int, page: int) -> bool:
    """Whether a frame that was given up is in other hands by now: not while a mapping leads to it, and perhaps not
    while hardware may remember one."""
    if c.domain.holds(gfn):
        return False
    return not c.domain.unconfirmed or (c.chance.gone_from is not None and page - c.start >= c.chance.gone_from)


def _inner(c: Call) -> str:
    inner = c.abi.subops.get(c.args["subop"])
    return inner.name if inner else ""

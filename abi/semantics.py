# SPDX-License-Identifier: GPL-2.0-or-later
"""The executable specification: :func:`step` is one pass of one hypercall, :func:`call` a whole one.

The tables of :mod:`abi.contract` say what is tested in which order, :mod:`abi.predicates` what each test means, and
this file what a sub-op does when every test is passed and what the guest finds in its struct afterwards.  It is pure:
the state that comes back is new, the one that went in is unchanged.

Where posted code stops the whole hypervisor, :attr:`abi.world.Outcome.bug` says so; where it corrupts itself in ways
that no guest can count on, this keeps to what was meant, and :mod:`abi.deviations` lists the difference.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from abi.conditions import CONDITIONS
from abi.contract import STOPS, Contract, Row
from abi.errno import EFAULT, EIO, ENOMEM, ERESTART
from abi.model import Convention, CopyBack
from abi.predicates import DRIVER_TESTS, PAGE_TESTS, TESTS, Call, devices_in, free_number, regions
from abi.world import READ, WRITE, Chance, Context, Leaf, Outcome, Request, State

_U16: Final = 0xFFFF
_U32: Final = 0xFFFFFFFF
NO_DRIVER: Final = "the target has no IOMMU driver, and is asked for it all the same"
_FRAMING: Final = frozenset({"unreadable", "unwritable-first", "unusable", "unknown", "unimplemented", "holes"})
"""Conditions under which the sub-op itself has not begun."""
AFTERWARDS: Final = frozenset({"unwritable", "unconfirmed", "not-moved"})
"""Conditions that end a call which has changed something."""


def step(contract: Contract, state: State, request: Request) -> tuple[State, Outcome]:
    """One pass of ``request``.  A preempted one answers -ERESTART, with the call to issue again in the outcome."""
    return _on(contract, state, request, request.caller)


def call(contract: Contract, state: State, request: Request, *chances: Chance) -> tuple[State, Outcome]:
    """A whole hypercall: passes until one is not preempted, the n-th re-issue under the n-th of ``chances``."""
    state, outcome = step(contract, state, request)
    left = iter(chances)
    while outcome.again is not None:
        state, outcome = step(contract, state, replace(outcome.again, chance=next(left, Chance())))
    return state, outcome


def _on(contract: Contract, state: State, request: Request, target: int) -> tuple[State, Outcome]:
    """One pass on domain ``target``, with the argument in the caller's memory."""
    subop = contract.abi.subops.get(request.subop)
    if subop is None or (request.progress and subop.name not in contract.resumable):
        return state, _refused_at_the_door(contract, state, request, target)
    c = Call(contract, state, request, target, subop)
    before = tuple(c.args.values())
    condition = _perform(c)
    if c.chance.unconfirmed:
        c.change(unconfirmed=True)
    if subop.name == "init" and contract.init_alters and condition != "unusable" and not c.bug:
        condition = _go_on_into_alloc(c, condition)
    if c.bug:
        return c.state, Outcome(0, before, condition, c.done, bug=c.bug)
    after = tuple(c.args.values())
    if not _written(c, condition):
        after = before
    elif not c.chance.writable:
        return c.state, Outcome(-EFAULT, before, "unwritable", c.done, c.inner)
    if condition:
        errno = next(row.errno for row in contract.table(subop.name) if row.condition == condition)
        c.result = -errno if c.result == 0 else c.result
    again = replace(c.again, args=after) if c.again is not None else None
    return c.state, Outcome(-ERESTART if again else c.result, after, condition, c.done, c.inner, again)


def _refused_at_the_door(contract: Contract, state: State, request: Request, target: int) -> Outcome:
    """A number without a sub-op: only the framing is tested."""
    noop = Call(contract, state, replace(request, args=()), target, contract.abi.by_name["noop"])
    met = next(row for row in contract.tables[""] if TESTS[row.condition](noop))
    union = contract.abi.convention is Convention.UNION
    if union and not contract.fixed and met.condition != "unreadable" and not request.chance.writable:
        return Outcome(-EFAULT, request.args, "unwritable")
    return Outcome(-met.errno, request.args, met.condition)


def _perform(c: Call) -> str:
    """Tests and effect of the sub-op; the condition that was met, "" for success."""
    table = c.contract.table(c.subop.name)
    for row in table:
        if row.each or row.condition in AFTERWARDS:
            continue
        if c.driverless and row.condition in DRIVER_TESTS:
            c.bug = NO_DRIVER
            return ""
        if TESTS[row.condition](c):
            c.bug = CONDITIONS[row.condition] if row.errno == STOPS else ""
            _left_behind(c, row.condition)
            return row.condition
    if c.subop.name in PAGE_EFFECTS:
        return _pages(c, [row for row in table if row.each])
    if c.driverless and c.subop.name in ("query_capabilities", "free_context"):
        c.bug = NO_DRIVER
    else:
        EFFECTS[c.subop.name](c)
    return c.met


def _left_behind(c: Call, condition: str) -> None:
    """What a refusal changes all the same."""
    if condition == "busy" and c.contract.refusal_marks:
        c.put(c.args["ctx_no"], replace(c.context, dying=True))
    if condition == "no-arena" and c.contract.init_sticks:
        c.change(initialized=True)
    if c.contract.count == "reset" and condition not in _FRAMING:
        c.args |= dict.fromkeys(c.args.keys() & {"mapped", "unmapped"}, 0)
        if c.subop.name == "lookup_page":
            c.args["gfn"] = 0


def _pages(c: Call, tests: list[Row]) -> str:
    """The loop of map_pages and unmap_pages, from where earlier passes got to until something stops it."""
    counter, effect = PAGE_EFFECTS[c.subop.name]
    number, context = c.args["ctx_no"], c.context
    c.leaves = dict(context.leaves)
    page = start = c.start
    pauses = c.contract.cursor or c.contract.fixed
    pause = (c.chance.preempt_after if pauses else None) or c.pages + 1
    met = ""
    while page < c.pages and page - start < pause and not met and not c.bug:
        kept = c.leaves if c.unit == 1 else dict(c.leaves)
        for part in range(page, page + c.unit):
            met = _stopped_by(c, tests, part)
            if met or c.bug:
                c.leaves = kept
                break
            effect(c, part)
        else:
            page += c.unit
    c.put(number, replace(context, leaves=c.leaves))
    c.done = page - start
    if c.contract.count == "add":
        c.args[counter] = c.args[counter] + c.done & _U32
    else:
        c.args[counter] = page // c.unit
    if c.chance.unconfirmed and c.contract.reports_flush:
        return "unconfirmed"
    if not met and c.done >= pause and (page < c.pages or c.contract.cursor):
        _pause(c, page)  # posted code may preempt itself behind the last page as well
    return met


def _stopped_by(c: Call, tests: list[Row], page: int) -> str:
    """The condition that page number ``page`` meets, "" for none."""
    for row in tests:
        if c.driverless and row.condition in DRIVER_TESTS:
            c.bug = NO_DRIVER
            return ""
        if PAGE_TESTS[row.condition](c, page):
            return row.condition
    return ""


def _pause(c: Call, page: int) -> None:
    """Leave the rest to another pass: its place is in the guest's struct, or in the re-issued call."""
    if c.contract.cursor:
        for field in c.args.keys() & {"gfn", "dfn"}:
            c.args[field] = c.args[field] + c.done & (1 << 64) - 1
        c.args["nr_pages"] -= c.done
        c.again = c.request
    else:
        c.again = replace(c.request, start=page, progress=0)


def _written(c: Call, condition: str) -> bool:
    """Whether the struct is written back to the guest."""
    if condition == "unreadable" or c.subop.copied_back is CopyBack.NEVER:
        return c.subop.name == "init" and c.contract.init_alters and condition not in ("unreadable", "unusable")
    if c.contract.fixed:
        return condition not in _FRAMING and c.again is None
    return c.abi.convention is Convention.UNION or condition not in _FRAMING


def _go_on_into_alloc(c: Call, condition: str) -> str:
    """v4 to v7: after init, on the same eight bytes, alloc_context; its answer is the only one the guest sees."""
    if condition == "unreadable":
        return condition
    alloc = c.abi.by_name["alloc_context"]
    bytes_as_alloc = (c.args["max_ctx_no"] & _U16, c.args["arena_order"])
    request = replace(c.request, subop=alloc.number, args=bytes_as_alloc)
    c.state, outcome = _on(c.contract, c.state, request, c.target)
    c.domain = c.state[c.target]
    c.bug = outcome.bug
    c.args["max_ctx_no"] = c.args["max_ctx_no"] & ~_U16 | outcome.args[0]
    c.result = outcome.result
    return ""


# --- what a sub-op does when every test is passed


def _nothing(c: Call) -> None:
    """noop; flush_pages, whose effect is on caches that a guest cannot see."""


def _query(c: Call) -> None:
    d = c.domain
    c.args |= {
        "max_iova_addr": d.max_iova_addr,
        "cap_flags": d.cap_flags,
        "pgsize_mask": d.pgsize_mask,
        "max_pasid": 0,
        "max_ctx_no": d.max_ctx_no & _U16,
        "max_nr_pages": c.abi.max_nr_pages or 0,
    }


def _init(c: Call) -> None:
    wanted = c.args["max_ctx_no"]
    if c.contract.init_wraps:
        wanted = (wanted + 1 & _U16) - 1
    c.change(initialized=True, max_ctx_no=wanted)


def _alloc(c: Call) -> None:
    number = free_number(c.domain)
    assert number is not None
    c.put(number, Context())
    c.args["ctx_no"] = number


def _free(c: Call) -> None:
    """Move the devices out and take the context apart; a sound hypervisor may fail, and pause, in the middle.

    Which devices have moved when one cannot, and what is left of a context that is half apart, nobody specifies.
    """
    number, stay = c.args["ctx_no"], c.chance.stay if c.contract.fixed else frozenset()
    for sbdf in devices_in(c):
        if sbdf not in stay:
            _move(c, sbdf, 0)
    failed = c.chance.driver_errno if c.contract.fixed else 0
    if stay.intersection(devices_in(c)):
        c.met = "not-moved" if failed == ENOMEM else "unconfirmed"
    elif failed == EIO or (c.contract.fixed and c.chance.preempt_after is not None):
        c.put(number, Context(dying=True))
        c.met = "unconfirmed" if failed == EIO else ""
        c.again = None if failed == EIO else c.request
    else:
        c.put(number, None)


def _reattach(c: Call) -> None:
    _move(c, c.sbdf, c.args["ctx_no"])


def _move(c: Call, sbdf: int, number: int) -> None:
    """Put a device into a context, its reserved regions with it."""
    device = c.domain.devices[sbdf]
    if number != 0:
        leaves = dict(c.domain.contexts[number].leaves)
        for first, last in device.reserved:
            leaves.update((dfn, Leaf(dfn, READ | WRITE, True)) for dfn in range(first, last + 1))
        c.put(number, replace(c.domain.contexts[number], leaves=leaves))
    old = device.context
    taken_out = c.contract.fixed or c.abi.convention is Convention.SUBOP  # v1 to v3 as posted leave the regions behind
    if old not in (None, 0, number) and old in c.domain.contexts and taken_out:
        leaves = dict(c.domain.contexts[old].leaves)
        for first, last in set(device.reserved) - regions(c, old, sbdf):
            for dfn in range(first, last + 1):
                leaves.pop(dfn, None)
        c.put(old, replace(c.domain.contexts[old], leaves=leaves))
    c.change(devices={**c.domain.devices, sbdf: replace(device, context=number)})


def _map(c: Call, page: int) -> None:
    if c.access and not c.context.opaque:
        c.leaves[c.dfn(page)] = Leaf(c.args["gfn"] + page, c.access)


def _unmap(c: Call, page: int) -> None:
    del c.leaves[c.dfn(page)]


def _lookup(c: Call) -> None:
    c.args["gfn"] = c.context.leaves[c.dfn(0)].gfn


def _remote(c: Call) -> None:
    """Run the inner sub-op on the target; its struct is in the caller's memory."""
    chance, request = c.chance.inner or c.chance, c.request
    inner = Request(request.caller, c.args["subop"], request.inner, chance, (), request.start, request.progress)
    c.state, outcome = _on(c.contract, c.state, inner, c.args["domid"])
    c.inner, c.bug, c.done = outcome.args, outcome.bug, outcome.done
    c.result = outcome.result
    if outcome.again is not None:
        again = outcome.again
        c.again = replace(request, inner=again.args, start=again.start, progress=again.progress)


EFFECTS: Final[Mapping[str, Callable[[Call], None]]] = {
    "noop": _nothing,
    "query_capabilities": _query,
    "init": _init,
    "alloc_context": _alloc,
    "free_context": _free,
    "reattach_device": _reattach,
    "lookup_page": _lookup,
    "flush_pages": _nothing,
    "remote_cmd": _remote,
}
PAGE_EFFECTS: Final[Mapping[str, tuple[str, Callable[[Call, int], None]]]] = {
    "map_pages": ("mapped", _map),
    "unmap_pages": ("unmapped", _unmap),
}
"""Sub-op -> (the field that counts pages, what it does to one page)."""

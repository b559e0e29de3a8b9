# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls worked through by the executable specification, for the pages: the guest's struct after each pass."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from abi.canonical import CANONICAL
from abi.conditions import FrameKind
from abi.contract import Contract
from abi.errno import errno_name
from abi.semantics import step
from abi.world import Chance, Context, Device, Domain, Request, State, domain_for


@dataclass(frozen=True, slots=True)
class Line:
    """The struct as it is in guest memory at one moment."""

    moment: str
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """One call, pass by pass."""

    title: str
    subop: str
    fields: tuple[str, ...]
    lines: tuple[Line, ...]


def traces(contract: Contract) -> Iterator[Trace]:
    """The calls that show how the counts and inputs evolve; none for versions without an implementation."""
    domain = _domain(contract)
    mapping = {"ctx_no": 1, "gfn": 0x100, "dfn": 0x1000, "flags": 3, "pgsize": 0x1000, "nr_pages": 6}
    yield _trace(contract, domain, "map of 6 pages, done in one pass", "map_pages", mapping)
    yield _trace(contract, domain, "the same with mapped left at 7 by the guest", "map_pages", mapping | {"mapped": 7})
    if contract.cursor or contract.fixed:
        pauses = (Chance(preempt_after=2), Chance(preempt_after=3))
        yield _trace(contract, domain, "the same, preempted after 2 and after 3 more", "map_pages", mapping, *pauses)
    yield _trace(contract, domain, "map whose 5th frame is a hole", "map_pages", mapping | {"gfn": 0x10C, "mapped": 7})
    yield _trace(
        contract, domain, "map into a context that is not there", "map_pages", mapping | {"ctx_no": 9, "mapped": 7}
    )
    mapped = _after(contract, domain, "map_pages", mapping)
    unmapping = {"ctx_no": 1, "dfn": 0x1000, "pgsize": 0x1000, "nr_pages": 8, "unmapped": 7}
    yield _trace(contract, mapped, "unmap of 8 pages of which 6 are mapped", "unmap_pages", unmapping)
    if contract.abi.has("init"):
        fresh = replace(domain, initialized=False, max_ctx_no=0, contexts={0: Context()})
        yield _trace(
            contract, fresh, "the first init, for 128 contexts", "init", {"max_ctx_no": 128, "arena_order": 12}
        )


def _domain(contract: Contract) -> Domain:
    frames = dict.fromkeys(range(256, 272), FrameKind.RAM)
    return domain_for(
        contract.name,
        initialized=True,
        max_ctx_no=128,
        contexts={0: Context(), 1: Context()},
        devices={0x18: Device()},
        frames=frames,
    )


def _request(contract: Contract, subop: str, values: dict[str, int], chance: Chance) -> Request:
    args = tuple(values.get(f.name, f.default) for f in CANONICAL[subop])
    return Request(0, contract.abi.by_name[subop].number, args, chance)


def _after(contract: Contract, domain: Domain, subop: str, values: dict[str, int]) -> Domain:
    state, _ = step(contract, {0: domain}, _request(contract, subop, values, Chance()))
    return state[0]


def _trace(
    contract: Contract, domain: Domain, title: str, subop: str, values: dict[str, int], *chances: Chance
) -> Trace:
    state: State = {0: domain}
    left = iter(chances)
    request = _request(contract, subop, values, next(left, Chance()))
    lines = [Line("before", request.args)]
    while True:
        state, outcome = step(contract, state, request)
        if outcome.again is None:
            break
        lines.append(Line("preempted", outcome.args))
        request = replace(outcome.again, chance=next(left, Chance()))
    answer = "0" if outcome.result == 0 else f"-{errno_name(outcome.result)}"
    lines.append(Line(f"answer {answer}", outcome.args))
    present = contract.abi.by_name[subop].codec_on("x86-64")
    assert present is not None
    keep = [n for n, f in enumerate(CANONICAL[subop]) if f.name in present.present]
    names = tuple(CANONICAL[subop][n].name for n in keep)
    shown = tuple(Line(line.moment, tuple(line.values[n] for n in keep)) for line in lines)
    return Trace(title, subop, names, shown)

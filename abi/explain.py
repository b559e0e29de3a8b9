# SPDX-License-Identifier: GPL-2.0-or-later
"""Holding an observed answer against the specification, where the specification leaves something open.

The specification knows no page tables, so it cannot say *when* a page for one is missing or a call is preempted; it
can say what must follow if so.  :func:`explain` looks for a turn of events under which the observed answer is right:
an oracle for hypervisors of any make.
"""

from collections.abc import Iterator
from dataclasses import replace

from abi.canonical import CANONICAL
from abi.contract import Contract
from abi.errno import EFAULT, EILSEQ, EIO, ENOMEM
from abi.semantics import call
from abi.world import Chance, Outcome, Request, State

_U32 = 0xFFFFFFFF


def explain(
    contract: Contract, state: State, request: Request, result: int, args: tuple[int, ...]
) -> tuple[State, Outcome] | None:
    """The state after the call and its outcome, if answer ``result`` with the struct reading ``args`` is right under
    some turn of events; ``None`` if it is wrong under all.

    What the caller knows (are the holes zero? is the buffer readable?) belongs into ``request.chance``.  An answer
    that could not be written back hides how far the call got; the state is then one of several.
    """
    for first, *later in _turns(contract, request, result, args):
        after, outcome = call(contract, state, replace(request, chance=first), *later)
        if not outcome.bug and outcome.result == result and outcome.args == args:
            return after, outcome
    return None


def _turns(contract: Contract, request: Request, result: int, args: tuple[int, ...]) -> Iterator[list[Chance]]:
    """Turns of events that the answer hints at, the uneventful one first."""
    known = request.chance
    yield [known]
    if result == -EFAULT:
        yield [replace(known, readable=False)]
        yield [replace(known, writable=False)]
    if result in (-ENOMEM, -EILSEQ, -EIO):
        yield [replace(known, driver_errno=-result)]
    subop = contract.abi.subops.get(request.subop)
    names = [field.name for field in CANONICAL[subop.name]] if subop is not None else []
    done = _done(contract, names, request.args, args)
    short = result == -ENOMEM
    if short:
        yield [replace(known, no_memory_at=done)]
    if contract.cursor and "dfn" in names and args:
        at = names.index("dfn")
        moved = args[at] - request.args[at] & (1 << 64) - 1
        if 0 < moved <= done:
            last = replace(known, no_memory_at=done - moved if short else None)
            yield [replace(known, preempt_after=moved), last]


def _done(contract: Contract, names: list[str], before: tuple[int, ...], after: tuple[int, ...]) -> int:
    """4 KiB pages that the struct says were done."""
    for counter in ("mapped", "unmapped"):
        if counter in names and before and after:
            at = names.index(counter)
            counted = after[at] - before[at] & _U32 if contract.count == "add" else after[at]
            unit = before[names.index("pgsize")] >> 12 if contract.units else 1
            return counted * unit
    return 0

# SPDX-License-Identifier: GPL-2.0-or-later
"""Is there an order of concurrent calls, one after the other, that answers and ends as they did?  (Wing, Gong 1993.)

The sequential specification is whatever runs calls in an order: here the hypervisor itself with one pass of a call
(:mod:`fuzz.passes`) at a time, which the oracle judges in programs of one vCPU.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Name = tuple[int, int]
"""A call, or whatever else happens at once: (vCPU, its number there)."""


class Call(NamedTuple):
    """One call of a history."""

    began: int
    ended: int
    answer: object


def linearize(
    history: Sequence[Sequence[Call]],
    end: object,
    in_order: Callable[[Sequence[Name]], tuple[list[object], object]],
) -> list[Name] | None:
    """An order that explains the history, ``None`` if there is none.

    ``in_order`` runs calls one after the other: (their answers as far as they came, the state afterwards).
    """
    total = sum(map(len, history))

    def search(done: list[Name], at: list[int]) -> list[Name] | None:
        if len(done) == total:
            return done if in_order(done)[1] == end else None
        left = [(vcpu, calls[at[vcpu]]) for vcpu, calls in enumerate(history) if at[vcpu] < len(calls)]
        first_end = min(call.ended for _, call in left)
        for vcpu, call in left:
            if call.began > first_end:  # it began when one that is still to come had ended
                continue
            order = [*done, (vcpu, at[vcpu])]
            answers, _ = in_order(order)
            if len(answers) < len(order) or answers[-1] != call.answer:
                continue
            at[vcpu] += 1
            found = search(order, at)
            at[vcpu] -= 1
            if found is not None:
                return found
        return None

    return search([], [0] * len(history))

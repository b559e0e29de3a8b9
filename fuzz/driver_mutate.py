# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of driver level out of programs: whole operations cut, doubled, exchanged and put in, then made legal again.

A kernel's callers keep rules that a piece put elsewhere breaks: what is freed was allocated, a slot holds one mapping,
a kernel boots once.  :func:`legal` restores them: numbers that mean nothing are turned to what there is, and an
operation that has no meaning left is dropped.
"""

from typing import Final

from fuzz.mutate import Mutator
from fuzz.verbs import DRIVER_VERBS, VERBS, Op

LONGEST: Final = 60
"""Operations of a program that has been put together."""
SHORT_OF_MEMORY: Final = 5
"""Memory that is short stays short: so many operations at most are worth running with it."""
_MAPS: Final = {"dma_map_page": "page", "dma_map_sg": "list", "dma_alloc_coherent": "buffer"}
_UNMAPS: Final = {"dma_unmap_page": "page", "dma_unmap_sg": "list", "dma_free_coherent": "buffer"}
_IN_DOMAIN: Final = frozenset(
    verb for verb in DRIVER_VERBS if VERBS[verb] and VERBS[verb][0].name == "domain" and verb != "domain_alloc"
)


class DriverMutator(Mutator):
    """:class:`fuzz.mutate.Mutator` at driver level: it changes no fields, and what it makes is legal."""

    def child(self, parent: tuple[Op, ...], other: tuple[Op, ...]) -> tuple[Op, ...]:
        return legal(super().child(parent, other)[:LONGEST]) or parent

    def _tweak(self, operation: Op) -> Op:
        """Another operation in its place."""
        fresh = self._generator.program(64)
        return fresh[int(self._rng.random() * len(fresh))]


def legal(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """``ops`` without what no caller may do."""
    kept: list[Op] = []
    booted = False
    domains: list[int] = []
    slots: dict[str, list[int]] = {"page": [], "list": [], "buffer": []}
    used = 0
    for place, operation in enumerate(ops):
        verb = operation[0]
        if verb == "boot":
            if booted:
                continue
        elif verb == "shutdown":
            if place + 1 < len(ops):
                continue
        elif verb == "no_memory":
            if place + 1 + SHORT_OF_MEMORY < len(ops):
                continue
        elif verb == "domain_alloc":
            if operation[1] in domains:
                continue
            domains.append(operation[1])
        elif verb in _IN_DOMAIN:
            if not domains:
                continue
            number = operation[1] if operation[1] in domains else domains[operation[1] % len(domains)]
            operation = (verb, number, *operation[2:])
            if verb == "domain_free":
                domains.remove(number)
        elif verb in _MAPS:
            live = slots[_MAPS[verb]]
            used = max(used, operation[1])
            if operation[1] in live:
                used += 1
                operation = (verb, used, *operation[2:])
            live.append(operation[1])
        elif verb in _UNMAPS:
            live = slots[_UNMAPS[verb]]
            if not live:
                continue
            slot = operation[1] if operation[1] in live else live[operation[1] % len(live)]
            live.remove(slot)
            operation = (verb, slot)
        booted |= verb != "fail_call"
        kept.append(operation)
    return tuple(kept)

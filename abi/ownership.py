# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens to a domain's frames beside hypercalls, as far as the contract of the fixed versions has to know.

The toolstack takes a page away (ballooning), a frame becomes another kind of frame, a PV guest pins a page table.  Like
:mod:`abi.semantics` this is pure, and what is left open is a :class:`abi.world.Chance`.
"""

from collections.abc import Mapping
from dataclasses import replace

from abi.conditions import FrameKind
from abi.errno import EBUSY, EINVAL, EIO, ENOMEM
from abi.world import WRITE, Chance, Domain, State


def give_up(state: State, domid: int, gfn: int, chance: Chance = Chance()) -> tuple[State, int]:  # noqa: B008 - a value
    """The toolstack takes frame ``gfn`` away from a domain: the state afterwards, and 0 or a negative errno.

    -EINVAL unless it is plain RAM of the domain's own (a PV guest's page table counts: it is unpinned first); -ENOMEM
    without memory for splitting a superpage of context 0; -EIO, and the frame stays the domain's, while hardware does
    not confirm that devices forgot it.
    """
    domain = state[domid]
    plain = domain.kind(gfn) is FrameKind.RAM and gfn not in domain.changed
    pinned = domain.direct and domain.changed.get(gfn) is FrameKind.READ_ONLY
    if not (plain or pinned):
        return state, -EINVAL
    if chance.no_memory_at is not None:
        return state, -ENOMEM
    if chance.unconfirmed:
        return _with(state, domid, replace(domain, unconfirmed=True)), -EIO
    changed = {**domain.changed, gfn: FrameKind.XEN if domain.direct else FrameKind.HOLE}
    return _with(state, domid, replace(domain, changed=changed, given_up=domain.given_up | {gfn})), 0


def become(
    state: State,
    domid: int,
    gfn: int,
    kind: FrameKind | None,
    chance: Chance = Chance(),  # noqa: B008 - a value
) -> tuple[State, int]:
    """A frame of the domain's own becomes one of that kind, or what it was at first (``None``).

    -EINVAL for one that was taken away; -EBUSY for a page table to be (a PV guest's :attr:`FrameKind.READ_ONLY`) that
    devices may write, or may still remember so (``chance.gone_from`` is not 0 then).
    """
    domain = state[domid]
    if gfn in domain.given_up:
        return state, -EINVAL
    if domain.direct and kind is FrameKind.READ_ONLY:
        remembered = domain.unconfirmed and chance.gone_from is None
        if domain.holds(gfn, WRITE) or remembered:
            return state, -EBUSY
    changed: Mapping[int, FrameKind] = {number: to for number, to in domain.changed.items() if number != gfn}
    if kind is not None:
        changed = {**changed, gfn: kind}
    return _with(state, domid, replace(domain, changed=changed)), 0


def _with(state: State, domid: int, domain: Domain) -> State:
    return {**state, domid: domain}

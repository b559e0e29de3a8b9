# SPDX-License-Identifier: GPL-2.0-or-later
"""A small world for tests of the executable specification, and one call in it."""

from abi.canonical import CANONICAL
from abi.conditions import FrameKind
from abi.contract_fixed import contract_called
from abi.semantics import step
from abi.world import Chance, Context, Device, Request, domain_for

POSTED = ("v1", "v2", "v3", "v4", "v5", "v6", "v7")
LATE = POSTED[3:]
FIXED = ("v3-fixed", "v7-fixed")
RUNNING = POSTED + FIXED
NIC, DISK = 0x18, 0x20


def world(name, **facts):
    """Domain 0 with contexts 0 and 1, two devices in context 0, RAM at frames 0x100 to 0x10f."""
    defaults = {
        "initialized": True,
        "max_ctx_no": 4,
        "contexts": {0: Context(), 1: Context()},
        "devices": {NIC: Device(), DISK: Device(reserved=((0x500, 0x503),))},
        "frames": dict.fromkeys(range(0x100, 0x110), FrameKind.RAM),
    }
    return {0: domain_for(name, **{**defaults, **facts})}


def request(name, subop, chance=None, inner=(), /, **values):
    contract = contract_called(name)
    args = tuple(values.get(f.name, f.default) for f in CANONICAL[subop])
    return Request(0, contract.abi.by_name[subop].number, args, chance or Chance(), inner)


def do(name, state, subop, chance=None, inner=(), /, **values):
    """(state, result, fields of the struct afterwards, outcome)."""
    contract = contract_called(name)
    state, outcome = step(contract, state, request(name, subop, chance, inner, **values))
    fields = dict(zip((f.name for f in CANONICAL[subop]), outcome.args))
    return state, outcome.result, fields, outcome


def sbdf(value):
    return {"segment": value >> 16, "bus": value >> 8 & 0xFF, "devfn": value & 0xFF}


MAP = {"ctx_no": 1, "gfn": 0x100, "dfn": 0x1000, "flags": 3, "nr_pages": 4}

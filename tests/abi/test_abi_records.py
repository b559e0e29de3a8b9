# SPDX-License-Identifier: GPL-2.0-or-later
"""The executable specification of v3 answers as a running Xen with RFC v3 did, call by call.

The records are answers of a hypervisor built from the posted series (PV dom0, VT-d, 4 levels): the decoded request,
the result and the struct afterwards.  ``F<k>`` and ``G<k>`` are frame k of two runs of dom0's frames.  What depends on
tables (is there a page left in the arena?) is taken from the record, everything else has to come out.
"""

import json
import re
from pathlib import Path

import pytest

from abi import versions
from abi.canonical import CANONICAL
from abi.conditions import FrameKind
from abi.contract import contract_of
from abi.errno import ENOMEM
from abi.semantics import step
from abi.world import READ, WRITE, Chance, Context, Device, Leaf, Request, domain_for

RECORDS = Path(__file__).parent / "records"
# dom0 also owns the two frames behind G.
RUNS = {"F": (0x40000, 6092), "G": (0x60000, 5122), "H": (0x68000, 1024)}
PAGE_TABLE = 0x700FA
ENDPOINTS = (0x18, 0x20, 0x28, 0xF8, 0xFA, 0xFB, 0x100, 0x308)
BRIDGES = (0x00, 0x30, 0x38, 0x200)
NAMES = {
    "caps": "query_capabilities",
    "alloc": "alloc_context",
    "free": "free_context",
    "map": "map_pages",
    "unmap": "unmap_pages",
    "lookup": "lookup_page",
    "reattach": "reattach_device",
    "noop": "noop",
}
FIELDS = {"ctx_no": "ctx", "nr_pages": "nr", "segment": "seg"}


class Frames(dict):
    """dom0's frames: its runs of RAM, and nothing else that it may map."""

    def get(self, gfn, default=None):
        ram = gfn == PAGE_TABLE or any(base <= gfn < base + length for base, length in RUNS.values())
        return FrameKind.RAM if ram else FrameKind.XEN


def number(value):
    """A frame or number as the records write it."""
    if isinstance(value, int):
        return value
    value = value.lstrip("=")
    run = re.fullmatch(r"([FGH])(\d+)", value)
    if run:
        return RUNS[run[1]][0] + int(run[2])
    page = re.fullmatch(r"arena\+(\d+)", value)
    return 0x7F000 + int(page[1]) if page else int(value, 16)


def canonical(name, record):
    return tuple(number(record.get(FIELDS.get(f.name, f.name), f.default)) for f in CANONICAL[name])


def chance(record, name):
    handle = record.get("handle", "")
    if handle.startswith("address"):
        return Chance(readable=False)
    short = None
    if record["ret"] == -ENOMEM:
        short = record["out"].get("mapped", record["out"].get("unmapped", 0))
    driver = ENOMEM if short is not None and name == "reattach_device" else 0
    return Chance(writable=handle != "read-only page", no_memory_at=short, driver_errno=driver)


def dom0():
    base = RUNS["F"][0]
    identity = {base + n: Leaf(base + n, READ | WRITE) for n in range(128)}
    devices = {sbdf: Device() for sbdf in ENDPOINTS + BRIDGES}
    return domain_for("v3", contexts={0: Context(identity)}, devices=devices, frames=Frames())


@pytest.mark.parametrize("name", ["sys", "arena3-free", "arena3-reattach", "freequeue"])
def test_v3_specification_answers_as_the_recorded_hypervisor(name):
    contract = contract_of("v3")
    state = {0: dom0()}
    numbers = {s.name: s.number for s in versions.get("v3").subops.values()}
    lines = (RECORDS / f"{name}.jsonl").read_text().splitlines()
    for line, text in enumerate(lines, 1):
        record = json.loads(text)
        if "hang" in record:  # a defect of that hypervisor stops it here; nothing to compare with
            continue
        subop = NAMES.get(record["op"], "")
        args = canonical(subop, record["in"]) if subop else ()
        wanted = numbers.get(subop, record["op"])
        if record["ret"] == -ENOMEM and subop == "reattach_device":
            continue  # a context without a root: only posted code has such
        state, outcome = step(contract, state, Request(0, wanted, args, chance(record, subop)))
        assert outcome.result == record["ret"], f"{name}:{line}: {text}"
        if subop and isinstance(record.get("out"), dict):
            assert outcome.args == canonical(subop, record["out"]), f"{name}:{line}: {text}"
    assert line == len(lines)

# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu abi ... --format json``: the same facts as plain values."""

from dataclasses import asdict
from typing import Any

from abi.check import Report
from abi.codec import Codec
from abi.conditions import CONDITIONS
from abi.contract import Contract
from abi.declare import ARCHES
from abi.deviations import deviations_of
from abi.diff import Change
from abi.errno import errno_name
from abi.layout import Layout, place
from abi.lint import Finding, Rule
from abi.model import Abi, SubOp
from abi.reading import decoded_fields, tag_disagrees


def summary(abi: Abi) -> dict[str, Any]:
    """One row of the list."""
    return {
        "name": abi.name,
        "posted": abi.posted,
        "hypercall": abi.hypercall,
        "convention": abi.convention.name.lower(),
        "subops": len(abi.subops),
        "structs": len(abi.structs),
        "same_as": abi.same_as or None,
        "implemented": abi.implemented,
    }


def version(abi: Abi, arch: str, only: SubOp | None) -> dict[str, Any]:
    """A whole version, or one sub-op of it."""
    rows = [only] if only else list(abi.subops.values())
    structs = [only.declaration] if only else list(abi.structs)
    return summary(abi) | {
        "arch": arch,
        "errno_unusable": errno_name(abi.errno_unusable),
        "errno_unknown_subop": errno_name(abi.errno_unknown_subop),
        "max_nr_pages": abi.max_nr_pages,
        "subops": [_subop(row) for row in rows],
        "constants": [
            {"name": c.name, "value": c.value, "group": c.group, "doc": c.doc, "needs": c.needs or None}
            for c in abi.constants
        ],
        "structs": [_struct(place(s, ARCHES[arch])) for s in structs if s is not None],
    }


def _subop(row: SubOp) -> dict[str, Any]:
    return {
        "number": row.number,
        "name": row.name,
        "c_name": row.c_name or None,
        "struct": row.struct or None,
        "case": row.case or None,
        "implemented": row.implemented,
        "copied_in": row.copied_in,
        "copied_back": row.copied_back.value,
        "needs": row.needs or None,
        "doc": row.doc,
    }


def _struct(layout: Layout) -> dict[str, Any]:
    return {
        "tag": layout.tag,
        "size": layout.size,
        "align": layout.align,
        "members": [
            {
                "path": m.path,
                "offset": m.offset,
                "size": m.size,
                "type": m.c_type,
                "direction": m.direction,
                "case": m.case or None,
                "doc": m.doc,
            }
            for m in layout.members
        ],
        "holes": [{"offset": h.offset, "size": h.size, "case": h.case or None} for h in layout.holes],
    }


def report(found: Report) -> dict[str, Any]:
    """One header on one architecture."""
    return {
        "version": found.abi,
        "header": found.header,
        "arch": found.arch,
        "compiler": found.compiler,
        "notes": list(found.notes),
        "differences": len(found.differences),
        "items": [
            {
                "kind": i.kind,
                "struct": i.struct or None,
                "name": i.name or None,
                "verdict": i.verdict,
                "version": i.version or None,
                "header": i.header or None,
            }
            for i in found.items
        ],
    }


def decoded(abi: Abi, row: SubOp, codec: Codec, raw: bytes) -> dict[str, Any]:
    """A struct's bytes and what they say."""
    return {
        "version": abi.name,
        "subop": row.name,
        "number": row.number,
        "arch": codec.layout.arch,
        "hex": raw.hex(),
        "disagrees": tag_disagrees(abi, row, codec, raw) or None,
        "canonical": codec.as_dict(raw),
        "fields": [
            {"path": f.path, "offset": f.offset, "size": f.size, "value": f.value, "meaning": f.meaning or None}
            for f in decoded_fields(abi, row, codec, raw)
        ],
    }


def contract(found: Contract, only: SubOp | None) -> dict[str, Any]:
    """The error contract of a version."""
    names = [only.name] if only else [name for name in found.tables if name]
    promises = {row.name: {p.condition: errno_name(p.errno) for p in row.promises} for row in found.abi.subops.values()}
    return {
        "version": found.name,
        "unusable_means": list(found.usability),
        "subops": {
            name: [
                {
                    "condition": row.condition,
                    "means": CONDITIONS[row.condition],
                    "errno": errno_name(row.errno) if row.errno > 0 else None,
                    "answer": row.answer,
                    "per_page": row.each,
                    "promised": promises[name].get(row.condition),
                }
                for row in found.tables[name]
            ]
            for name in names
        },
        "deviations": [
            {"defect": d.name, "subop": d.subop or None, "instead": d.instead}
            for d in (() if found.fixed else deviations_of(found.name))
            if not d.subop or d.subop in names
        ],
    }


def changes(old: str, new: str, arch: str, found: list[Change]) -> dict[str, Any]:
    """A diff."""
    return {"old": old, "new": new, "arch": arch, "changes": [asdict(change) for change in found]}


def findings(version: str, found: list[Finding]) -> dict[str, Any]:
    """What lint found."""
    return {"version": version, "findings": [asdict(finding) for finding in found]}


def rule(found: Rule) -> dict[str, Any]:
    """One lint rule."""
    return {
        "rule": found.name,
        "scope": found.scope,
        "severity": found.severity,
        "doc": found.doc,
        "mend": found.mend,
        "asked": found.asked,
    }

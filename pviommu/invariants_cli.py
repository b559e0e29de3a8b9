# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu invariants``: the numbered properties that the guest side is held against, as one list."""

import json
from typing import Final

from pviommu.options import Json
from testbed import invariants_guest, invariants_iommufd, invariants_nesting, invariants_sva

_TABLES: Final = {
    "guest": {name: entry.text for name, entry in invariants_guest.INVARIANTS.items()},
    "iommufd": {name: entry.text for name, entry in invariants_iommufd.INVARIANTS.items()},
    "nesting": {name: entry.text for name, entry in invariants_nesting.INVARIANTS.items()},
    "sva": {name: entry.text for name, entry in invariants_sva.INVARIANTS.items()},
}
"""Who checks it, to number (or word) and prose."""


def entries() -> list[tuple[str, str, str]]:
    """(number or word, who checks it, prose): numbers first, in order."""
    found = [(name, where, text) for where, table in _TABLES.items() for name, text in table.items()]
    return sorted(found, key=lambda entry: (not entry[0].isdigit(), int(entry[0]) if entry[0].isdigit() else 0))


def invariants(as_json: Json = False) -> None:
    """Every property with its number: 1 to 42 driver and core, 43 to 68 iommufd, 69 to 73 SVA and SMMUv3."""
    if as_json:
        keys = ("id", "checked_by", "text")
        print(json.dumps([dict(zip(keys, entry)) for entry in entries()], indent=2))
        return
    for name, where, text in entries():
        print(f"{name:>15} {where:8} {text}")

# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu defects run`` for a driver's defect."""

import json

from guest_driver import drivers
from guest_driver.defects.model import Defect
from pviommu.options import UsageError
from testbed import backends
from testbed.validate.show import Shown, show


def run_driver_defect(name: str, backend: str, as_json: bool) -> int:
    """Let every defect that is called ``name`` happen; 0 if each differs from the reference driver, 1 if not."""
    chosen = [defect for defect in drivers.DEFECTS.values() if name == defect.id or name in defect.also]
    if any(defect.id == name for defect in chosen):
        chosen = [defect for defect in chosen if defect.id == name]
    faults = [defect for defect in chosen if not defect.judged]
    if not faults:
        raise UsageError(f"{name} was looked at and is no fault ({chosen[0].seen}); there is nothing to run")
    if backend not in backends.names():
        raise UsageError(f"unknown backend {backend!r}; there are: {', '.join(backends.names())}")
    shown = [(defect, show(defect, backend)) for defect in faults]
    if as_json:
        print(json.dumps([_as_dict(defect, found) for defect, found in shown], indent=2))
    else:
        print("\n\n".join(_as_text(defect, found) for defect, found in shown))
    return 0 if all(found is not None for _, found in shown) else 1


def _as_text(defect: Defect, found: Shown | None) -> str:
    head = f"{defect.id}: {defect.title}\nseen: {defect.seen}"
    if found is None:
        return f"{head}\nno program of the validation shows it"
    parts = [head]
    for title, lines in (
        (f"driver {found.driver} with {defect.id}, profile {found.profile}, {found.guest} guest", found.with_it),
        (f"driver {found.driver}", found.without),
    ):
        parts += ["", f"{title}:", *(f"  {line}" for line in lines)]
    return "\n".join(parts)


def _as_dict(defect: Defect, found: Shown | None) -> dict[str, object]:
    both = {} if found is None else {"with": found.with_it, "without": found.without, "what": found.what}
    where = {} if found is None else {"driver": found.driver, "profile": found.profile, "guest": found.guest}
    return {"id": defect.id, "differs": found is not None, **where, **both}

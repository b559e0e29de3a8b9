# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu defects``: what was wrong with posted hypervisors and drivers, and one of them happening."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from guest_driver import drivers
from guest_driver.defects.iommufd import IOMMUFD, named
from guest_driver.defects.sva import SVA
from hypervisor.defects import catalogue
from pviommu.options import Json, UsageError

app = typer.Typer(
    name="defects",
    help="Faults of posted hypervisors and drivers: list them, explain them, see one happen.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Id = Annotated[str, typer.Argument(help="Id of a defect, as T1 or K3.")]


@dataclass(frozen=True, slots=True)
class Entry:
    """A defect of either side, as this command shows it."""

    id: str
    side: str
    versions: tuple[str, ...]
    title: str
    seen: str
    source: str
    needs: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    """Other ids for the same fault."""


def entries() -> dict[str, Entry]:
    """Both registries as one, hypervisors first."""
    found = {
        d.id: Entry(d.id, "hypervisor", d.versions, d.title, d.seen, d.source, d.needs, d.backends)
        for d in catalogue.DEFECTS.values()
    }
    for d in drivers.DEFECTS.values():
        found.setdefault(d.id, Entry(d.id, "driver", d.versions, d.title, d.seen, d.source, d.needs, also=d.also))
    for fault in IOMMUFD:
        found[fault.id] = Entry(fault.id, "iommufd", fault.versions, fault.title, fault.seen, fault.source)
    for flaw in SVA:
        found[flaw.id] = Entry(flaw.id, "sva", flaw.versions, flaw.title, flaw.seen, flaw.source)
    return found


@app.command("list")
def list_defects(as_json: Json = False) -> None:
    """Every defect: id, whose it is, the versions that have it, one sentence."""
    if as_json:
        print(json.dumps([_as_dict(entry) for entry in entries().values()], indent=2))
        return
    for entry in entries().values():
        print(f"{entry.id:8} {entry.side:10} {_span(entry.versions):16} {entry.title}")


@app.command()
def show(name: Id, as_json: Json = False) -> None:
    """One defect: what it is, how it is observed, where it was read."""
    entry = _entry(name)
    if as_json:
        print(json.dumps(_as_dict(entry), indent=2))
        return
    print(f"{entry.id} ({entry.side}: {', '.join(entry.versions)})\n  {entry.title}")
    print(f"  seen: {entry.seen}\n  read: {entry.source}")
    if entry.also:
        print(f"  also: {', '.join(entry.also)}")
    if entry.needs:
        print(f"  comes with: {', '.join(entry.needs)}")


@app.command()
def run(
    name: Id,
    backend: Annotated[str, typer.Option(help="Translation backend: vtd or smmuv3.")] = "vtd",
    as_json: Json = False,
) -> None:
    """Let one happen, and show the same calls without it.

    Exit status 0 if the two differ as they should, 1 if not.
    """
    from pviommu.driver_defects import run_driver_defect
    from pviommu.iommufd_defects import run_iommufd_defect
    from testbed.defects.run import happen, profile_for
    from testbed.defects.shows_sva import happen_sva

    entry = _entry(name)
    if entry.side == "driver":
        raise typer.Exit(run_driver_defect(name, backend, as_json))
    if entry.side == "iommufd":
        raise typer.Exit(run_iommufd_defect(named(name), as_json))
    if entry.side == "sva":
        shown, sound = (happen_sva(name, present=present) for present in (True, False))
        backend = profile = "bare-smmuv3"
    else:
        defect = catalogue.get(name)
        if backend not in defect.backends:
            raise UsageError(f"{name} is in the {' and '.join(defect.backends)} driver; --backend {backend} has none")
        shown, sound = (happen(defect, backend, present=present) for present in (True, False))
        profile = profile_for(defect, backend)
    ok = sound.holds and not shown.holds
    if as_json:
        both = {"with": shown.lines, "without": sound.lines}
        print(json.dumps({"id": name, "backend": backend, "profile": profile, "differs": ok, **both}, indent=2))
    else:
        print(f"{entry.id}: {entry.title}\nseen: {entry.seen}")
        for title, happening in ((f"{profile} with {name}", shown), (profile, sound)):
            print(f"\n{title}:")
            for line in happening.lines:
                print(f"  {line}")
    raise typer.Exit(0 if ok else 1)


def _entry(name: str) -> Entry:
    known = entries()
    found = known.get(name) or next((known[d.id] for d in drivers.DEFECTS.values() if name in d.also), None)
    if found is None:
        raise UsageError(f"unknown defect {name!r}; there are: {', '.join(entries())}")
    return found


def _as_dict(entry: Entry) -> dict[str, Any]:
    return {field: getattr(entry, field) for field in Entry.__slots__}


def _span(versions: tuple[str, ...]) -> str:
    return versions[0] if len(versions) == 1 else f"{versions[0]}..{versions[-1]}" if versions else ""

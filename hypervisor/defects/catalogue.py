# SPDX-License-Identifier: GPL-2.0-or-later
"""All defects by id, and how they are put onto a hypervisor."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from hypervisor.defects import (
    context_lifecycle,
    dispatch_abi,
    domain_life,
    locking,
    loops,
    observed,
    passes,
    races,
    references,
    rmrr,
    standing,
    tables_arena,
    vtd,
)
from hypervisor.defects.model import Defect
from hypervisor.defects.seams import Seams
from hypervisor.profile import Profile

if TYPE_CHECKING:
    from hypervisor.xen import Xen

_FAMILIES: Final = (
    standing,
    dispatch_abi,
    locking,
    context_lifecycle,
    races,
    domain_life,
    rmrr,
    tables_arena,
    passes,
    references,
    vtd,
    loops,
    observed,
)
DEFECTS: Final[dict[str, Defect]] = {defect.id: defect for family in _FAMILIES for defect in family.DEFECTS}
"""By id, in the order in which they are applied."""


def get(name: str) -> Defect:
    """The entry called ``name``; ``ValueError`` lists what there is."""
    try:
        return DEFECTS[name]
    except KeyError:
        raise ValueError(f"unknown defect {name!r} of the hypervisor; there are: {', '.join(DEFECTS)}") from None


_BUILT_ON: Final = {"e1": ("v7", ()), "e2": ("v7", ("A2",))}
"""Trees that were built on a posted version: which one, and what they mended of it."""


def of_version(version: str) -> tuple[str, ...]:
    """Ids of what the posted ``version`` has."""
    base, mended = _BUILT_ON.get(version, (version, ()))
    return tuple(
        defect.id
        for defect in DEFECTS.values()
        if defect.id not in mended and not defect.only_on and (base in defect.versions or version in defect.versions)
    )


def chosen(text: str, profile: Profile, backend: str) -> tuple[str, ...]:
    """The ids in ``text``, joined by commas; ``ValueError`` for one that there is not, or that ``profile`` over
    ``backend`` cannot show."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for defect in map(get, names):
        if backend not in defect.backends:
            raise ValueError(f"{defect.id} is in the {' and '.join(defect.backends)} driver, {backend} has none of it")
        missing = [subop for subop in defect.subops if not profile.abi.has(subop)]
        if missing:
            raise ValueError(f"{defect.id} cannot be shown by {profile.name}, whose interface has no {missing[0]}")
    return names


def complete(ids: Iterable[str]) -> list[Defect]:
    """``ids`` with everything that they need, each once, in the order of application."""
    wanted: set[str] = set()
    left = list(ids)
    while left:
        name = left.pop()
        if name not in wanted:
            wanted.add(name)
            left.extend(get(name).needs)
    return [defect for defect in DEFECTS.values() if defect.id in wanted]


def apply(xen: "Xen", ids: Iterable[str], *, debug_build: bool = False) -> Seams | None:
    """Put the defects ``ids`` onto ``xen``, which has no domains yet; those of another backend's driver are left out.

    Returns the replaced parts, whose state a snapshot has to keep; ``None`` when there is nothing to replace.
    ``ValueError`` for an unknown id, or one that the profile's interface cannot show.
    """
    defects = [defect for defect in complete(ids) if xen.backend.name in defect.backends]
    if not defects:
        return None
    seams = Seams(xen)
    seams.debug_build = debug_build
    for defect in defects:
        defect.apply(seams)
    seams.finish()
    return seams

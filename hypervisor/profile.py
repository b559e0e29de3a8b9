# SPDX-License-Identifier: GPL-2.0-or-later
"""A profile: one ABI version together with how this hypervisor answers where versions differ.

``v7-fixed`` speaks the ABI of the version posted as v7 and has none of that posting's faults; ``v3-fixed`` does the
same for v3.  Whatever a handler needs to know about "which version" is a field here or in the ABI value, so that no
handler asks for a version number.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from abi import versions
from abi.errno import EIO, ENOENT, EPERM


@dataclass(frozen=True)
class Profile:
    """How one hypervisor answers."""

    name: str
    abi: versions.Abi
    summary: str
    every_domain: bool
    """Any domain with an IOMMU may call (v4 on), or only the hardware domain."""
    contexts_at_creation: int
    """Contexts that a domain has from the start (versions without ``IOMMU_init``)."""
    arena_order_at_creation: int
    """log2 of the arena's pages in those versions."""
    maps_mmio: bool
    """Whether MMIO frames that the domain may access can be mapped."""
    maps_foreign: bool
    """Whether the hardware domain may map other domains' frames."""
    errno_hole: int
    """For a frame number behind which there is nothing."""
    errno_paged_out: int
    superpage_units: bool
    """Whether ``pgsize`` may name superpages."""
    guests_addresses: bool = False
    """Whether reattach_device reads a PCI address as one of the guest's own first."""
    defects: tuple[str, ...] = ()
    """Ids of :mod:`hypervisor.defects.catalogue`: what went wrong in the posted version of that name."""


POSTED: Final = ("v1", "v2", "v3", "v4", "v5", "v6", "v7")
"""Versions that were posted with an implementation, oldest first."""


def _v3_fixed() -> Profile:
    return Profile(
        name="v3-fixed",
        abi=versions.get("v3"),
        summary="RFC v3's ABI (one pointer to a tagged union), none of its faults",
        every_domain=False,
        contexts_at_creation=255,
        arena_order_at_creation=9,
        maps_mmio=False,
        maps_foreign=False,
        errno_hole=EPERM,
        errno_paged_out=EIO,
        superpage_units=False,
    )


def _v7_fixed() -> Profile:
    return Profile(
        name="v7-fixed",
        abi=versions.get("v7"),
        summary="RFC v7's ABI (sub-op number and a struct each), none of its faults",
        every_domain=True,
        contexts_at_creation=0,
        arena_order_at_creation=0,
        maps_mmio=True,
        maps_foreign=True,
        errno_hole=ENOENT,
        errno_paged_out=ENOENT,
        superpage_units=True,
    )


def _fixed(version: str, like: Profile) -> Profile:
    """``version``'s interface with none of its faults, answering like ``like`` where versions differ."""
    summary = like.summary.replace(like.abi.name, version)
    return replace(like, name=f"{version}-fixed", abi=versions.get(version), summary=summary)


def _posted(version: str, like: str = "") -> Profile:
    """``version`` as it was posted, as far as the catalogue of defects goes."""
    from hypervisor.defects import catalogue  # which knows the hypervisor, which knows its profile

    fixed = get(like or f"{version}-fixed")
    summary = f"RFC {version} as posted, defects included"
    return replace(fixed, name=version, summary=summary, superpage_units=False, defects=catalogue.of_version(version))


def _edera(version: str, summary: str) -> Profile:
    return replace(_posted(version, "v7-fixed"), summary=summary)


_PROFILES: Final[dict[str, Callable[[], Profile]]] = {
    "v1-fixed": lambda: _fixed("v1", _v3_fixed()),
    "v2-fixed": lambda: _fixed("v2", _v3_fixed()),
    "v3-fixed": _v3_fixed,
    "v4-fixed": lambda: _fixed("v4", _v7_fixed()),
    "v5-fixed": lambda: _fixed("v5", _v7_fixed()),
    "v6-fixed": lambda: _fixed("v6", _v7_fixed()),
    "v7-fixed": _v7_fixed,
    "e3-fixed": lambda: replace(
        _v7_fixed(),
        name="e3-fixed",
        abi=versions.get("E3"),
        summary="v7-fixed with the flush of a map that the caller may put off (IOMMU_MAP_no_flush, IOMMU_flush_pages)",
    ),
    **{version: lambda version=version: _posted(version) for version in POSTED},  # type: ignore[misc]
    "e1": lambda: _edera("e1", "Edera's tree on RFC v7, first state: v7's defects, and a flush lost in a rebase"),
    "e2": lambda: replace(
        _edera("e2", "Edera's tree on RFC v7, second state: IOMMU_init answers for itself, guests' own PCI addresses"),
        guests_addresses=True,
    ),
}

_EXPERIMENTAL: Final[dict[str, Callable[[], Profile]]] = {
    "x1-nested": lambda: replace(
        _v7_fixed(),
        name="x1-nested",
        abi=versions.get("x1-nested"),
        summary="experimental: v7-fixed with tables that a guest owns, and coherency settled by context",
    ),
}
"""For interfaces that nobody posted."""


def names() -> tuple[str, ...]:
    """Every profile for a posted interface, newest last."""
    return tuple(_PROFILES)


def experimental() -> tuple[str, ...]:
    """Profiles for interfaces that are experiments of this project."""
    return tuple(_EXPERIMENTAL)


def get(name: str) -> Profile:
    """The profile called ``name``; ``v6~A2`` is v6 with its defect A2 mended.  ``ValueError`` lists what there is."""
    base, *mended = name.split("~")
    known = {**_PROFILES, **_EXPERIMENTAL}
    if base not in known:
        raise ValueError(f"unknown profile {base!r}; there are: {', '.join(known)}")
    profile = known[base]()
    absent = [defect for defect in mended if defect not in profile.defects]
    if absent:
        raise ValueError(f"profile {base} has no defect {absent[0]}; it has: {', '.join(profile.defects) or 'none'}")
    kept = tuple(defect for defect in profile.defects if defect not in mended)
    return replace(profile, name=name, defects=kept) if mended else profile


def sound() -> tuple[str, ...]:
    """The profiles without defects, one for each interface that they can have."""
    return ("v3-fixed", "v7-fixed")


def with_arena(profile: Profile, order: int) -> Profile:
    """``profile`` on a host whose command line asks for an arena of 2^``order`` pages (``dom0-iommu=arena-order=``)."""
    return replace(profile, arena_order_at_creation=order) if profile.contexts_at_creation else profile

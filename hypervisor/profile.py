# SPDX-License-Identifier: GPL-2.0-or-later
"""A profile: one ABI version together with how this hypervisor answers where versions differ.

``v7-fixed`` speaks the ABI of the version posted as v7 and has none of that posting's faults; ``v3-fixed`` does the
same for v3.  Whatever a handler needs to know about "which version" is a field here or in the ABI value, so that no
handler asks for a version number.
"""

from dataclasses import dataclass

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


_PROFILES = {"v3-fixed": _v3_fixed, "v7-fixed": _v7_fixed}


def names() -> tuple[str, ...]:
    """Every profile that :func:`get` knows, newest last."""
    return tuple(_PROFILES)


def get(name: str) -> Profile:
    """The profile called ``name``; ``ValueError`` lists what there is."""
    try:
        return _PROFILES[name]()
    except KeyError:
        raise ValueError(f"unknown profile {name!r}; there are: {', '.join(_PROFILES)}") from None

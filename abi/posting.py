# SPDX-License-Identifier: GPL-2.0-or-later
"""What was posted around each header: facts about the hypervisor's side and the Linux driver, for lint.

Read in the postings themselves or in the review that followed; a fact that was not seen is left at its harmless value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Hypervisor:
    """The hypervisor series of one version."""

    amd: str = "none"
    """AMD-Vi: ``none``, ``no-lookup`` (ported without the call that finds a mapping), ``leaks``, ``whole``."""
    arm: str = "none"
    """Arm: ``none`` (the hypercall is in Arm's table, nothing behind it), ``whole``."""
    broken_builds: tuple[str, ...] = ()
    """Configurations that a reviewer reported as not building."""
    slips: tuple[str, ...] = ()
    """Slips that a reviewer found in its words."""
    unmarked_targets: bool = False
    """New functions are called through pointers without being marked as such, which control-flow checks refuse."""
    passthrough_fails: bool = False
    """Passing a device to an HVM guest failed in a reviewer's test."""
    quarantine_contexts: bool = False
    """The quarantine domain has contexts of its own, so that quarantined devices are kept from each other."""
    bounds_domain_ids: bool = False
    """Running out of the hardware's domain ids is an error, not an overrun."""
    zeroes_answers: bool = True
    """Structs that are built for the guest start out as zeroes."""
    translates_addresses: bool = False
    """A guest names its devices by the addresses that it sees."""
    tells_of_moves: bool = False
    """The guest learns when the hypervisor or toolstack moves a device to the default context behind its back."""


@dataclass(frozen=True, slots=True)
class Driver:
    """One posting of the Linux driver."""

    name: str
    legacy_domain_alloc: bool = False
    own_group_callback: bool = False
    uses_release_domain: bool = True
    releases_to_blocked: bool = False
    impossible_checks: bool = False
    """Tests in callbacks for what cannot reach them: other buses, the default context in unmap or free."""
    identity_domain: str = "sound"
    """``confusing`` (called the default domain, no type), ``untyped`` (no type and no operations), ``sound``."""
    claims_coherency: bool = True
    dma_ops_leftovers: bool = False
    """probe_finalize, dma-map-ops.h, an unused lock, printing left over from debugging."""
    unchecked_allocation: bool = False
    late_swiotlb: bool = False
    dead_exit: bool = False
    states_x86: bool = False
    claims_emulated: bool = True
    """Takes every PCI function, also those that no hardware IOMMU stands before."""
    page_size_arithmetic: bool = False
    loops_needlessly: bool = False
    unmap_hides_failure: bool = False
    """unmap returns the full size whatever happened, or a negative errno as a size."""
    editor_trailer: bool = False
    """Its copy of the header ends in an editor's settings."""
    tools_only_call: bool = True
    """Finds reserved regions through XENMEM_reserved_device_memory_map."""


_EARLY: Final = Hypervisor()
_V4: Final = Hypervisor(
    broken_builds=("AMD", "pv-shim"), unmarked_targets=True, passthrough_fails=True, zeroes_answers=False
)
_V5: Final = Hypervisor(zeroes_answers=False)

HYPERVISORS: Final[Mapping[str, Hypervisor]] = MappingProxyType(
    {
        "v1": replace(_EARLY, bounds_domain_ids=True),
        "v2": replace(_EARLY, bounds_domain_ids=True),
        "v3": replace(_EARLY, bounds_domain_ids=True),
        "v4": replace(_V4, bounds_domain_ids=True),
        "v5": _V5,
        "v6": replace(_V5, amd="no-lookup", broken_builds=("Arm",), slips=("typing errors", "'did' for DID")),
        "v7": replace(_V5, amd="leaks"),
    }
)

_L1: Final = Driver(
    "RFC v1 (13 Jun 2024)",
    legacy_domain_alloc=True,
    own_group_callback=True,
    uses_release_domain=False,
    impossible_checks=True,
    identity_domain="confusing",
    dma_ops_leftovers=True,
    unchecked_allocation=True,
    late_swiotlb=True,
    dead_exit=True,
    page_size_arithmetic=True,
    loops_needlessly=True,
    unmap_hides_failure=True,
    editor_trailer=True,
)
_L2: Final = replace(
    _L1,
    name="RFC v2 (21 Jun 2024)",
    legacy_domain_alloc=False,
    own_group_callback=False,
    uses_release_domain=True,
    editor_trailer=False,
)
_L3: Final = Driver("RFC v3 (4 Nov 2024)", identity_domain="untyped")
_LE: Final = Driver("Edera (2026)")

DRIVERS: Final[Mapping[str, Driver]] = MappingProxyType(
    {"v1": _L1, "v2": _L2, "v3": _L2, "v4": _L3, "v5": _L3, "v6": _L3, "v7": _L3, "E3": _LE}
)
"""The Linux driver that went with a version: the last one posted for its ABI."""

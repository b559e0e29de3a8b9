# SPDX-License-Identifier: GPL-2.0-or-later
"""Lint rules about what was posted with the header: the hypervisor's side and the Linux driver."""

from collections.abc import Iterator

from abi.conditions import USABILITY
from abi.lint import Subject, rule
from abi.model import CopyBack

_MAREK_V4 = "Marek Marczykowski-Górecki on v4"
_OWN_LIST = "the author's own list with v7"
_JASON_V1 = "Jason Gunthorpe on the Linux driver v1"
_ROBIN = "Robin Murphy on the Linux driver v2"

_AMD = {
    "none": "AMD-Vi is not ported: the hypercall has nothing behind it there",
    "no-lookup": "AMD-Vi cannot look mappings up: map finds no conflict, every unmap answers -ENOENT",
    "leaks": "AMD-Vi does not clean up contexts: references to the guest's pages are never dropped",
}


@rule(
    "vendor-missing",
    "hypervisor",
    "error",
    f"Marek Marczykowski-Górecki on v6; {_OWN_LIST}",
    "finish the port, or answer -EOPNOTSUPP to everything on such hardware",
)
def vendor_missing(s: Subject) -> Iterator[tuple[str, str]]:
    """An IOMMU vendor for which the series does nothing, or half."""
    if s.hypervisor is not None and s.hypervisor.amd in _AMD:
        yield "AMD-Vi", _AMD[s.hypervisor.amd]


@rule(
    "arch-missing",
    "hypervisor",
    "warning",
    f"Marek Marczykowski-Górecki on v6; {_OWN_LIST}",
    "leave the hypercall out of Arm's table until there is something behind it",
)
def arch_missing(s: Subject) -> Iterator[tuple[str, str]]:
    """An architecture that has the hypercall in its table and nothing behind it."""
    if s.hypervisor is not None and s.hypervisor.arm == "none":
        yield "Arm", "the hypercall is in the table, no IOMMU driver serves it"


@rule("build-broken", "hypervisor", "error", f"{_MAREK_V4} and v6", "build every configuration before posting")
def build_broken(s: Subject) -> Iterator[tuple[str, str]]:
    """A configuration that does not build."""
    for configuration in s.hypervisor.broken_builds if s.hypervisor else ():
        yield configuration, "does not build"


@rule("call-target-unmarked", "hypervisor", "error", f"{_MAREK_V4}, Jan Beulich", "mark the functions cf_check")
def call_target_unmarked(s: Subject) -> Iterator[tuple[str, str]]:
    """Functions called through pointers without the mark that control-flow enforcement needs."""
    if s.hypervisor is not None and s.hypervisor.unmarked_targets:
        yield "new IOMMU operations", "no endbr64 at their entry: the first call faults where CET is on"


@rule(
    "passthrough-fails",
    "hypervisor",
    "error",
    f"{_MAREK_V4}; defect G7",
    "give the quarantine domain its contexts before the first device is quarantined",
)
def passthrough_fails(s: Subject) -> Iterator[tuple[str, str]]:
    """Plain device passthrough, which worked before the series, fails with it."""
    if s.hypervisor is not None and s.hypervisor.passthrough_fails:
        yield "HVM passthrough", "-ENOSPC: a device on its way passes quarantine, which has no context for it"


@rule(
    "quarantine-shared",
    "hypervisor",
    "warning",
    f"{_OWN_LIST}; defect G7",
    "allocate a context per quarantined device",
)
def quarantine_shared(s: Subject) -> Iterator[tuple[str, str]]:
    """Quarantined devices are not kept from each other."""
    if s.hypervisor is not None and not s.hypervisor.quarantine_contexts:
        yield "quarantine", "the quarantine domain has no contexts besides the default one"


@rule(
    "domain-ids-unbounded",
    "hypervisor",
    "error",
    f"{_OWN_LIST}; defects G3, G4",
    "answer -ENOSPC when an IOMMU has no domain id left, and report the limit",
)
def domain_ids_unbounded(s: Subject) -> Iterator[tuple[str, str]]:
    """The hardware's domain ids run out without an error."""
    if s.hypervisor is not None and not s.hypervisor.bounds_domain_ids:
        yield "alloc_context", "takes one domain id per IOMMU and does not notice when there is none left"


@rule("stack-bytes-leak", "hypervisor", "error", "defect A4", "zero the struct before filling it in")
def stack_bytes_leak(s: Subject) -> Iterator[tuple[str, str]]:
    """Bytes of the hypervisor's stack reach the guest."""
    if s.hypervisor is None or s.hypervisor.zeroes_answers:
        return
    for row in s.abi.subops.values():
        codec = row.codec
        if codec is not None and not row.copied_in and row.copied_back is CopyBack.ALWAYS and codec.hole_mask:
            size = codec.hole_mask.bit_count() // 8
            yield row.name, f"{size} bytes of the answer are never written before they are copied out"


@rule(
    "machine-address",
    "hypervisor",
    "warning",
    _OWN_LIST,
    "take the addresses that the guest sees, and translate them",
)
def machine_address(s: Subject) -> Iterator[tuple[str, str]]:
    """Guests other than the hardware domain cannot name their devices."""
    if s.hypervisor is None or s.contract is None or s.hypervisor.translates_addresses:
        return
    if s.contract.usability == USABILITY["v4"]:
        yield "reattach_device", "wants the machine's PCI address, which a guest does not know"


@rule(
    "moves-unseen",
    "hypervisor",
    "warning",
    _OWN_LIST,
    "let the guest see in which context a device is, or refuse while the guest has it in a context of its own",
)
def moves_unseen(s: Subject) -> Iterator[tuple[str, str]]:
    """The toolstack moves devices to the default context and the guest's driver does not hear of it."""
    if s.hypervisor is not None and not s.hypervisor.tells_of_moves:
        yield "device assignment", "pci-assignable-remove puts a device into context 0 behind the driver's back"


@rule("prose", "hypervisor", "note", "Frediano Ziglio on v6", "read it once more")
def prose(s: Subject) -> Iterator[tuple[str, str]]:
    """Slips in the words of the posting."""
    for slip in s.hypervisor.slips if s.hypervisor else ():
        yield "design document", slip


@rule(
    "driver-legacy-alloc", "driver", "warning", _JASON_V1, "implement domain_alloc_paging and a static identity domain"
)
def driver_legacy_alloc(s: Subject) -> Iterator[tuple[str, str]]:
    """Domains made by the old callback, by type."""
    if s.driver is not None and s.driver.legacy_domain_alloc:
        yield s.driver.name, "uses domain_alloc with a type"


@rule("driver-group-callback", "driver", "note", _JASON_V1, "use pci_device_group itself")
def driver_group_callback(s: Subject) -> Iterator[tuple[str, str]]:
    """A callback that wraps what could be used directly."""
    if s.driver is not None and s.driver.own_group_callback:
        yield s.driver.name, "wraps pci_device_group"


@rule("driver-release", "driver", "warning", _JASON_V1, "set release_domain, to a blocked domain")
def driver_release(s: Subject) -> Iterator[tuple[str, str]]:
    """A device that its driver left can go on with DMA to all of memory."""
    if s.driver is not None and not s.driver.uses_release_domain:
        yield s.driver.name, "has release_device where release_domain is wanted"
    elif s.driver is not None and not s.driver.releases_to_blocked:
        yield s.driver.name, "releases devices to the identity domain instead of a blocked one"


@rule("driver-impossible-checks", "driver", "note", f"{_JASON_V1}; {_ROBIN}", "drop tests of what cannot happen")
def driver_impossible_checks(s: Subject) -> Iterator[tuple[str, str]]:
    """Tests for domains and devices that cannot reach the callback, and what they do then is wrong."""
    if s.driver is not None and s.driver.impossible_checks:
        yield s.driver.name, "tests for context 0 in unmap and free, and frees what it did not allocate"


@rule("driver-identity", "driver", "error", f"{_ROBIN}; defect K6", "a static identity domain with type and attach_dev")
def driver_identity(s: Subject) -> Iterator[tuple[str, str]]:
    """An identity domain that the core does not recognise as one."""
    if s.driver is not None and s.driver.identity_domain == "confusing":
        yield s.driver.name, "calls its identity domain the default domain and gives it no type"
    if s.driver is not None and s.driver.identity_domain == "untyped":
        yield (
            s.driver.name,
            "the identity domain has neither type nor operations: attaching to it is a null dereference",
        )


@rule(
    "driver-coherency",
    "driver",
    "warning",
    f"{_ROBIN}; Jason Gunthorpe on the same",
    "answer from what the hardware can do; add a capability that tells it",
)
def driver_coherency(s: Subject) -> Iterator[tuple[str, str]]:
    """Cache coherency claimed for all hardware."""
    if s.driver is not None and s.driver.claims_coherency:
        yield s.driver.name, "answers true to IOMMU_CAP_CACHE_COHERENCY unconditionally"


@rule("driver-leftovers", "driver", "note", _ROBIN, "drop them; the core sets DMA operations up")
def driver_leftovers(s: Subject) -> Iterator[tuple[str, str]]:
    """Code that the core made superfluous, or that debugging left."""
    if s.driver is not None and s.driver.dma_ops_leftovers:
        yield s.driver.name, "probe_finalize, dma-map-ops.h, an unused lock, commented-out prints"


@rule(
    "driver-allocation", "driver", "error", f"{_ROBIN}; defect K1", "allocate first, test the result, undo on failure"
)
def driver_allocation(s: Subject) -> Iterator[tuple[str, str]]:
    """An allocation whose result nobody looks at."""
    if s.driver is not None and s.driver.unchecked_allocation:
        yield s.driver.name, "kzalloc is not checked; the context that was allocated before is lost"


@rule("driver-swiotlb", "driver", "warning", f"{_ROBIN}; defect K11", "leave swiotlb alone")
def driver_swiotlb(s: Subject) -> Iterator[tuple[str, str]]:
    """swiotlb switched off when it is too late."""
    if s.driver is not None and s.driver.late_swiotlb:
        yield s.driver.name, "clears x86_swiotlb_enable at device_initcall time"


@rule("driver-dead-exit", "driver", "note", _ROBIN, "drop the exit code, or allow a module")
def driver_dead_exit(s: Subject) -> Iterator[tuple[str, str]]:
    """An exit function of something that is never a module."""
    if s.driver is not None and s.driver.dead_exit:
        yield s.driver.name, "module_exit, although Kconfig says bool"


@rule("driver-kconfig", "driver", "note", _ROBIN, "depend on X86")
def driver_kconfig(s: Subject) -> Iterator[tuple[str, str]]:
    """A dependency that is there and not stated."""
    if s.driver is not None and not s.driver.states_x86:
        yield s.driver.name, "x86 constants and calls, but the option does not depend on X86"


@rule("driver-emulated-devices", "driver", "warning", _ROBIN, "claim only functions that reattach_device knows")
def driver_emulated_devices(s: Subject) -> Iterator[tuple[str, str]]:
    """Devices that no hardware IOMMU stands before."""
    if s.driver is not None and s.driver.claims_emulated:
        yield s.driver.name, "probe takes every PCI function, emulated ones included"


@rule("driver-page-size", "driver", "note", _ROBIN, "use the count as it comes")
def driver_page_size(s: Subject) -> Iterator[tuple[str, str]]:
    """Arithmetic on a page size that can have one value."""
    if s.driver is not None and s.driver.page_size_arithmetic:
        yield s.driver.name, "multiplies by pgsize / 4 KiB while it advertises 4 KiB alone"


@rule("driver-loops", "driver", "note", _ROBIN, "return short; the core calls again")
def driver_loops(s: Subject) -> Iterator[tuple[str, str]]:
    """A loop that the core would do."""
    if s.driver is not None and s.driver.loops_needlessly:
        yield s.driver.name, "loops until every page is mapped or unmapped"


@rule(
    "driver-unmap-result",
    "driver",
    "error",
    f"{_ROBIN}; Jason Gunthorpe on the same; defect K3",
    "return the bytes that were really unmapped, 0 at worst: the caller must learn that the address space is broken",
)
def driver_unmap_result(s: Subject) -> Iterator[tuple[str, str]]:
    """An unmap that hides how much it unmapped."""
    if s.driver is not None and s.driver.unmap_hides_failure:
        yield s.driver.name, "returns the full size whatever happened, and -EINVAL as a size"


@rule(
    "driver-editor-trailer", "driver", "note", "Jan Beulich on the Linux driver v1", "drop it; Linux has no such lines"
)
def driver_editor_trailer(s: Subject) -> Iterator[tuple[str, str]]:
    """Editor settings at the end of a Linux header."""
    if s.driver is not None and s.driver.editor_trailer:
        yield s.driver.name, "its pv-iommu.h ends in an editor's settings"

# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry of drivers: the posted versions as they behaved, and the reference.

A posted version is the reference driver with what was different put on: *traits*, which are choices, and *defects*,
which are faults, each with an id.  Names can be changed with ``~ID`` (without that defect) and ``+ID`` (with it too)::

    get("rfc-v3~L1.2-1")        # RFC v3, but with *mapped summed up
    get("reference+L8.1")       # the reference driver on an unfixed Linux 7.0
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from abi.errno import EOPNOTSUPP
from abi.versions import DEFAULT_CONTEXT, Abi, Convention
from guest_driver.defects.core import CORE
from guest_driver.defects.domains import DOMAINS
from guest_driver.defects.mappings import MAPPINGS
from guest_driver.defects.model import Defect
from guest_driver.defects.starting import STARTING
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import IOMMU_DOMAIN_IDENTITY, IommuDomainOps
from guest_driver.linux.kernel import Kernel
from guest_driver.port import HypercallPort
from guest_driver.xen_iommu import XenIommu, XenIommuDomain, xen_iommu_init
from guest_driver.xen_lazy import queue_unmaps

DEFECTS: Final[Mapping[str, Defect]] = {defect.id: defect for defect in (*MAPPINGS, *DOMAINS, *STARTING, *CORE)}
"""Every known defect by id."""

_SUBOPS: Final = ("query_capabilities", "alloc_context", "free_context", "reattach_device", "map_pages", "unmap_pages")


def _identity_is_context_0(driver: XenIommu) -> None:
    """Identity, and where devices go that leave, is the default context, whatever the capabilities say."""

    def make_identity() -> int:
        ops = IommuDomainOps(attach_dev=driver.xen_iommu_attach_dev)
        driver.identity = XenIommuDomain(DEFAULT_CONTEXT, IOMMU_DOMAIN_IDENTITY, ops)
        driver.ops.identity_domain = driver.ops.release_domain = driver.identity
        return 0

    driver.static_domains[-1] = make_identity


def _pv_prefers_identity(driver: XenIommu) -> None:
    """PV guests keep machine addresses (swiotlb-xen) unless told otherwise."""
    if driver.kernel.ram.xen_pv_domain:

        def def_domain_type(dev: Device) -> int:
            return IOMMU_DOMAIN_IDENTITY

        driver.ops.def_domain_type = def_domain_type


@dataclass(frozen=True, slots=True)
class DriverVersion:
    """One driver; :meth:`init` starts it in a booting kernel (``boot(..., init=version.init)``)."""

    name: str
    posted: str
    summary: str
    convention: Convention | None
    """The calling convention of the ABI versions that it was written for; ``None``: any that has contexts."""
    traits: tuple[Callable[[XenIommu], None], ...] = ()
    defects: tuple[Defect, ...] = ()

    def speaks(self, abi: Abi) -> bool:
        """Whether the driver was written for ``abi``."""
        if not all(abi.has(name) for name in _SUBOPS):
            return False
        if self.convention is None:
            return True
        return abi.convention is self.convention and abi.has(
            "init" if self.convention is Convention.SUBOP else "lookup_page"
        )

    def init(
        self,
        kernel: Kernel,
        port: HypercallPort,
        abi: Abi,
        *,
        observe: Callable[[XenIommu], None] | None = None,
        **options: Any,
    ) -> XenIommu | int:
        """As :func:`guest_driver.xen_iommu.xen_iommu_init`; -EOPNOTSUPP for an ABI that it does not speak.

        ``observe`` sees the driver last, with everything put on and nothing registered.
        """
        if not self.speaks(abi):
            return -EOPNOTSUPP
        for defect in self.defects:
            options.update(defect.options)
            if defect.port is not None:
                port = defect.port(port, abi, kernel.ram)

        def adjust(driver: XenIommu) -> None:
            for change in (*self.traits, *(defect.build for defect in self.defects if defect.build is not None)):
                change(driver)
            if observe is not None:
                observe(driver)

        started = xen_iommu_init(kernel, port, abi, adjust=adjust, **options)
        if isinstance(started, int):
            for defect in self.defects:
                if defect.answer is not None:
                    started = defect.answer(started)
        return started

    def without(self, *ids: str) -> "DriverVersion":
        """The same driver with these defects mended."""
        kept = tuple(defect for defect in self.defects if defect.id not in ids)
        return replace(self, name=self.name + "".join(f"~{name}" for name in ids), defects=kept)

    def adding(self, *ids: str) -> "DriverVersion":
        """The same driver with these defects too."""
        have = {defect.id for defect in self.defects}
        new = tuple(defect(name) for name in ids if name not in have)
        return replace(self, name=self.name + "".join(f"+{name}" for name in ids), defects=(*self.defects, *new))


def defect(name: str) -> Defect:
    """The defect called ``name``, which may be one of its other ids; ``ValueError`` lists what there is."""
    if name in DEFECTS:
        return DEFECTS[name]
    for found in DEFECTS.values():
        if name in found.also:
            return found
    raise ValueError(f"unknown defect {name!r}; there are: {', '.join(DEFECTS)}")


def _of(name: str) -> tuple[Defect, ...]:
    return tuple(found for found in DEFECTS.values() if name in found.versions and not found.judged)


_POSTED: Final = (
    DriverVersion(
        "rfc-v1",
        "13 Jun 2024, Teddy Astie, RFC v1 to iommu@lists.linux.dev",
        "domain_alloc by type; one tagged union per hypercall; asks lookup_page",
        Convention.UNION,
        (_identity_is_context_0,),
        _of("rfc-v1"),
    ),
    DriverVersion(
        "rfc-v2",
        "21 Jun 2024, Teddy Astie, RFC v2",
        "domain_alloc_paging and a static default domain",
        Convention.UNION,
        (_identity_is_context_0,),
        _of("rfc-v2"),
    ),
    DriverVersion(
        "rfc-v3",
        "4 Nov 2024, Teddy Astie, RFC v3",
        "sub-op number and struct; IOMMU_init; a shadow table instead of lookup_page",
        Convention.SUBOP,
        (_identity_is_context_0,),
        _of("rfc-v3"),
    ),
    DriverVersion(
        "edera",
        "edera-dev/linux 2403de58, the newest public tree",
        "RFC v3 carried on: identity mended, one call per run of frames, one flush per mapping, PV on identity",
        Convention.SUBOP,
        (_identity_is_context_0, _pv_prefers_identity),
        _of("edera"),
    ),
    DriverVersion(
        "edera-single-page",
        "the same tree with its module parameter for single pages",
        "as edera, but PV guests map page by page in RFC v3's loop",
        Convention.SUBOP,
        (_identity_is_context_0, _pv_prefers_identity),
        (*_of("edera"), *_of("edera-single-page")),
    ),
    DriverVersion(
        "reference",
        "this project",
        "what the reviews asked for; every ABI version with contexts",
        None,
    ),
    DriverVersion(
        "lazy",
        "this project",
        "the reference, with the unmaps of DMA-FQ domains (iommu.strict=0) put off until their flush",
        None,
        (queue_unmaps,),
    ),
)
_REGISTRY: Final = {version.name: version for version in _POSTED}


def names() -> tuple[str, ...]:
    """Every driver, in the order of posting, this project's own last."""
    return tuple(_REGISTRY)


def get(name: str) -> DriverVersion:
    """The driver called ``name``, changed by ``~ID`` and ``+ID``; ``ValueError`` lists what there is."""
    base, *changes = re.split(r"(?=[~+])", name)
    if base not in _REGISTRY:
        raise ValueError(f"unknown driver {base!r}; there are: {', '.join(_REGISTRY)}")
    version = _REGISTRY[base]
    for change in changes:
        found = defect(change[1:]).id
        version = version.without(found) if change[0] == "~" else version.adding(found)
    return version

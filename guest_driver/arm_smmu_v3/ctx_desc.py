# SPDX-License-Identifier: GPL-2.0-or-later
"""Context descriptors: one table for each master, linear or of two levels, and how an entry is written.

A leaf of a two-level table holds 1024 descriptors and is made when the first of them is needed; it is published in the
first level only when its content is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from abi.errno import ENOMEM
from base.units import PAGE_SHIFT
from guest_driver.arm_smmu_v3.entry_writer import ArmSmmuEntryWriter, arm_smmu_get_cd_used, arm_smmu_write_entry
from guest_driver.arm_smmu_v3.layouts import (
    EMPTY,
    INNER_SHAREABLE,
    MAIR,
    S1FMT_64K_L2,
    S1FMT_LINEAR,
    WRITE_BACK,
    Cd0,
    Entry,
    L1Cd,
    cfgi_cd,
)
from guest_driver.linux.io_pgtable_arm import INPUT_BITS
from guest_driver.linux.page_alloc import GFP_KERNEL, GFP_ZERO

if TYPE_CHECKING:
    from guest_driver.arm_smmu_v3.domains import ArmSmmuMaster

CD_BYTES: Final = 64
CTXDESC_L2_ENTRIES: Final = 1024
_LEAF_ORDER: Final = 4
"""1024 descriptors of 64 bytes are 16 pages."""


class CtxDescTable:
    """struct arm_smmu_ctx_desc_cfg: a master's descriptors."""

    __slots__ = ("address", "in_ste", "leaves", "order", "s1cdmax", "s1fmt", "ssids")

    def __init__(self) -> None:
        self.address = 0
        """Where the table, or its first level, is; 0 before it is made."""
        self.order = 0
        self.s1fmt = S1FMT_LINEAR
        self.s1cdmax = 0
        self.leaves: dict[int, int] = {}
        """Address of each leaf by index."""
        self.ssids: set[int] = set()
        """PASIDs with a valid descriptor, 0 left out."""
        self.in_ste = False
        """The stream's entry points here."""


def arm_smmu_alloc_cd_tables(master: ArmSmmuMaster) -> int:
    """Make the table, its first level only where there are two: 0 or -ENOMEM."""
    table = master.cd_table
    if table.address:
        return 0
    contexts = 1 << master.ssid_bits
    table.s1cdmax = master.ssid_bits
    if master.smmu.features.two_level_cd and contexts > CTXDESC_L2_ENTRIES:
        table.s1fmt = S1FMT_64K_L2
        size = 8 * contexts // CTXDESC_L2_ENTRIES
    else:
        table.s1fmt = S1FMT_LINEAR
        size = CD_BYTES * contexts
    table.order = max(0, (size - 1).bit_length() - PAGE_SHIFT)
    pfn = master.smmu.kernel.pages.alloc_pages(GFP_KERNEL | GFP_ZERO, table.order)
    table.address = pfn << PAGE_SHIFT
    return 0 if pfn else -ENOMEM


def arm_smmu_free_cd_tables(master: ArmSmmuMaster) -> None:
    table, pages = master.cd_table, master.smmu.kernel.pages
    for leaf in table.leaves.values():
        pages.free_pages(leaf >> PAGE_SHIFT, _LEAF_ORDER)
    table.leaves.clear()
    if table.address:
        pages.free_pages(table.address >> PAGE_SHIFT, table.order)
    table.address = 0


def arm_smmu_get_cd_ptr(master: ArmSmmuMaster, ssid: int) -> int:
    """Address of the descriptor of ``ssid``; 0 if its leaf was never made.  Allocates nothing."""
    table = master.cd_table
    if not table.address:
        return 0
    if table.s1fmt == S1FMT_LINEAR:
        return table.address + CD_BYTES * ssid
    leaf = table.leaves.get(ssid // CTXDESC_L2_ENTRIES)
    return 0 if leaf is None else leaf + CD_BYTES * (ssid % CTXDESC_L2_ENTRIES)


def arm_smmu_alloc_cd_ptr(master: ArmSmmuMaster, ssid: int) -> int:
    """The same, making what is missing on the way; 0 if there is no memory."""
    if arm_smmu_alloc_cd_tables(master):
        return 0
    table, kernel = master.cd_table, master.smmu.kernel
    index = ssid // CTXDESC_L2_ENTRIES
    if table.s1fmt == S1FMT_64K_L2 and index not in table.leaves:
        pfn = kernel.pages.alloc_pages(GFP_KERNEL | GFP_ZERO, _LEAF_ORDER)
        if not pfn:
            return 0
        leaf = pfn << PAGE_SHIFT
        kernel.ram.write(table.address + 8 * index, (leaf | L1Cd.v.mask).to_bytes(8, "little"))
        table.leaves[index] = leaf
        # An SMMU may remember that there was nothing.
        master.smmu.issue([cfgi_cd(sid, ssid, leaf=False) for sid in master.sids])
    return arm_smmu_get_cd_ptr(master, ssid)


class ArmSmmuCdWriter(ArmSmmuEntryWriter):
    """The descriptor of one PASID of one master."""

    def __init__(self, master: ArmSmmuMaster, ssid: int, address: int) -> None:
        super().__init__(master.smmu.kernel.ram, master.smmu.kernel.printk, address)
        self._master: Final = master
        self._ssid: Final = ssid

    def get_used(self, entry: Entry) -> Entry:
        return arm_smmu_get_cd_used(entry)

    def sync(self) -> None:
        self._master.smmu.sync_cd(self._master, self._ssid)


def arm_smmu_write_cd_entry(master: ArmSmmuMaster, ssid: int, cdptr: int, target: Entry) -> None:
    """Make the descriptor at ``cdptr`` ``target``."""
    arm_smmu_write_entry(ArmSmmuCdWriter(master, ssid, cdptr), target)
    if ssid and Cd0.v.get(target[0]):
        master.cd_table.ssids.add(ssid)
    else:
        master.cd_table.ssids.discard(ssid)


def arm_smmu_clear_cd(master: ArmSmmuMaster, ssid: int) -> None:
    cdptr = arm_smmu_get_cd_ptr(master, ssid)
    if cdptr:
        arm_smmu_write_cd_entry(master, ssid, cdptr, EMPTY)


def read_cd(master: ArmSmmuMaster, ssid: int) -> Entry:
    """The descriptor of ``ssid`` as memory has it; all zeros if there is no leaf for it."""
    cdptr = arm_smmu_get_cd_ptr(master, ssid)
    return ArmSmmuCdWriter(master, ssid, cdptr).read() if cdptr else EMPTY


def arm_smmu_make_cd(root: int | None, asid: int, oas: int) -> Entry:
    """A descriptor for the table at ``root`` under ``asid``; no root: it is valid and translates nothing, quietly.

    Faults are recorded (R) only while there is a table, and requests that fail are aborted (A).
    """
    low = Cd0.pack(v=1, epd1=1, aa64=1, a=1, aset=1, ips=oas, asid=asid)
    if root is None:
        return (low | Cd0.epd0.mask, 0, 0, MAIR, 0, 0, 0, 0)
    low |= Cd0.pack(r=1, t0sz=64 - INPUT_BITS, irgn0=WRITE_BACK, orgn0=WRITE_BACK, sh0=INNER_SHAREABLE)
    return (low, root << PAGE_SHIFT, 0, MAIR, 0, 0, 0, 0)

# SPDX-License-Identifier: GPL-2.0-or-later
"""Stream table entries: the kinds that this driver makes, and how one is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from guest_driver.arm_smmu_v3.entry_writer import (
    ArmSmmuEntryWriter,
    arm_smmu_get_ste_update_safe,
    arm_smmu_get_ste_used,
)
from guest_driver.arm_smmu_v3.layouts import (
    CFG_ABORT,
    CFG_BYPASS,
    CFG_S1,
    INNER_SHAREABLE,
    S1DSS_BYPASS,
    SHCFG_INCOMING,
    WRITE_BACK,
    Entry,
    Ste0,
    Ste1,
)
from guest_driver.linux.printk import Printk
from guest_driver.port import GuestRam

if TYPE_CHECKING:
    from guest_driver.arm_smmu_v3.ctx_desc import CtxDescTable


class ArmSmmuSteWriter(ArmSmmuEntryWriter):
    """The entry of one stream; ``invalidate`` makes the unit forget it and waits."""

    def __init__(self, ram: GuestRam, printk: Printk, address: int, invalidate: Callable[[], object]) -> None:
        super().__init__(ram, printk, address)
        self._invalidate = invalidate

    def get_used(self, entry: Entry) -> Entry:
        return arm_smmu_get_ste_used(entry)

    def get_update_safe(self, entry: Entry, target: Entry) -> Entry:
        return arm_smmu_get_ste_update_safe(entry, target)

    def sync(self) -> None:
        self._invalidate()


def _entry(low: int, attributes: int = 0) -> Entry:
    return (low, attributes, 0, 0, 0, 0, 0, 0)


def arm_smmu_make_abort_ste() -> Entry:
    return _entry(Ste0.pack(v=1, cfg=CFG_ABORT))


def arm_smmu_make_bypass_ste() -> Entry:
    return _entry(Ste0.pack(v=1, cfg=CFG_BYPASS), Ste1.pack(shcfg=SHCFG_INCOMING))


def arm_smmu_make_cdtable_ste(table: CtxDescTable, s1dss: int) -> Entry:
    """Stage 1 through ``table``; ``s1dss`` says what requests without a PASID meet."""
    low = Ste0.pack(v=1, cfg=CFG_S1, s1fmt=table.s1fmt, s1cdmax=table.s1cdmax) | table.address
    attributes = Ste1.pack(s1dss=s1dss, s1cir=WRITE_BACK, s1cor=WRITE_BACK, s1csh=INNER_SHAREABLE)
    if s1dss == S1DSS_BYPASS:
        attributes |= Ste1.pack(shcfg=SHCFG_INCOMING)
    return _entry(low, attributes)

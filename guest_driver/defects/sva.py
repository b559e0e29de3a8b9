# SPDX-License-Identifier: GPL-2.0-or-later
"""What "iommu/arm-smmu-v3: Refactor write_ctx_desc" (v5 5/9, August 2023) and the code around it did wrong.

The posted function writes the descriptor of a PASID for every master on the list of the domain that requests *without*
a PASID use, one after the other; on an error it is called again with nothing, to undo.  Reviewers found that the lock
is dropped in between, that masters get descriptors that nobody asked for, and that the list which the notifier goes
through is never filled by PASIDs at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from abi.errno import ENOMEM
from guest_driver.arm_smmu_v3.ctx_desc import arm_smmu_alloc_cd_ptr, arm_smmu_clear_cd, arm_smmu_write_cd_entry
from guest_driver.arm_smmu_v3.domains import (
    ArmSmmuDevice,
    ArmSmmuDomain,
    ArmSmmuMaster,
    arm_smmu_remove_pasid,
    arm_smmu_set_pasid,
)
from guest_driver.arm_smmu_v3.layouts import EMPTY, WORDS, Entry
from guest_driver.linux.iommu import IommuDomain


@dataclass(frozen=True, slots=True)
class SvaDefect:
    """One fault, put on a driver before it meets a device."""

    id: str
    versions: tuple[str, ...]
    """Where it was: a posted patch, or the kernel around it."""
    title: str
    seen: str
    source: str
    build: Callable[[ArmSmmuDevice], None]


def arm_smmu_write_ctx_desc_devices(domain: ArmSmmuDomain, ssid: int, target: Entry | None) -> int:
    """The posted loop: every master of ``domain``; stops at the first error with the lock dropped."""
    with domain.devices_lock:
        return _write_ctx_desc_devices(domain, ssid, target)


def _write_ctx_desc_devices(domain: ArmSmmuDomain, ssid: int, target: Entry | None) -> int:
    for master in _masters(domain):
        if target is None:
            arm_smmu_clear_cd(master, ssid)
            continue
        cdptr = arm_smmu_alloc_cd_ptr(master, ssid)
        if not cdptr:
            return -ENOMEM
        arm_smmu_write_cd_entry(master, ssid, cdptr, target)
    return 0


def _masters(domain: ArmSmmuDomain) -> list[ArmSmmuMaster]:
    return [master for master, ssid in domain.devices if not ssid]


def _all_masters(smmu: ArmSmmuDevice, undo_under_lock: bool) -> None:
    def set_pasid(
        master: ArmSmmuMaster, domain: ArmSmmuDomain, pasid: int, target: Entry, old: IommuDomain | None
    ) -> int:
        primary = master.domain
        if not isinstance(primary, ArmSmmuDomain):
            return arm_smmu_set_pasid(master, domain, pasid, target, old)
        if undo_under_lock:
            with primary.devices_lock:
                ret = _write_ctx_desc_devices(primary, pasid, target)
                if ret:
                    _write_ctx_desc_devices(primary, pasid, None)
        else:
            ret = arm_smmu_write_ctx_desc_devices(primary, pasid, target)
            if ret:
                arm_smmu_write_ctx_desc_devices(primary, pasid, None)
        if not ret:
            with domain.devices_lock:
                domain.devices.append((master, pasid))
        return ret

    def remove_pasid(master: ArmSmmuMaster, old: ArmSmmuDomain, pasid: int) -> None:
        if isinstance(master.domain, ArmSmmuDomain):
            arm_smmu_write_ctx_desc_devices(master.domain, pasid, None)
        arm_smmu_remove_pasid(master, old, pasid)

    smmu.set_pasid, smmu.remove_pasid = set_pasid, remove_pasid


def _never_listed(smmu: ArmSmmuDevice) -> None:
    smmu.joins_list = False


def _word_by_word(smmu: ArmSmmuDevice) -> None:
    """Write a descriptor's words in their order, V first, and tell hardware once at the end."""

    def set_pasid(
        master: ArmSmmuMaster, domain: ArmSmmuDomain, pasid: int, target: Entry, old: IommuDomain | None
    ) -> int:
        ret = arm_smmu_set_pasid(master, domain, pasid, EMPTY, old)
        cdptr = arm_smmu_alloc_cd_ptr(master, pasid)
        if ret or not cdptr:
            return ret
        for word in range(WORDS):
            if target[word]:
                smmu.kernel.ram.write(cdptr + 8 * word, target[word].to_bytes(8, "little"))
        master.cd_table.ssids.add(pasid)
        smmu.sync_cd(master, pasid)
        return 0

    smmu.set_pasid = set_pasid


_POSTED: Final = ("ctx-desc-v5",)
_THREAD: Final = "iommu/arm-smmu-v3: Refactor write_ctx_desc, v5 5/9, August 2023"

SVA: Final = (
    SvaDefect(
        "SVA-1",
        _POSTED,
        "a failed update of several masters is undone after the lock was dropped",
        "a master that leaves the domain in between keeps a valid descriptor of a binding that failed",
        f"{_THREAD}; Will Deacon: why is it safe to drop the lock between these two calls?",
        lambda smmu: _all_masters(smmu, undo_under_lock=False),
    ),
    SvaDefect(
        "SVA-2",
        _POSTED,
        "binding one device writes the descriptor for every master of its domain",
        "a device that was never bound reads the memory of the process",
        f"{_THREAD}; Michael Shavit: this is weird; Jason Gunthorpe: we always have a singular master",
        lambda smmu: _all_masters(smmu, undo_under_lock=True),
    ),
    SvaDefect(
        "SVA-3",
        _POSTED,
        "nothing on the PASID path adds to the list that the notifier goes through",
        "what a device translates while the process ends stays cached: it reads pages that somebody else has by now",
        f"{_THREAD}; Jason Gunthorpe: I don't think this even works",
        _never_listed,
    ),
    SvaDefect(
        "SVA-4",
        ("unordered",),
        "a descriptor is stored word by word with its valid bit first",
        "a fetch in between takes an address space that is neither the old nor the new one",
        "what the order of stores in arm_smmu_write_ctx_desc (Linux 6.6) prevents",
        _word_by_word,
    ),
)
DEFECTS: Final = {defect.id: defect for defect in SVA}

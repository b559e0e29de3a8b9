# SPDX-License-Identifier: GPL-2.0-or-later
"""How a 64-byte entry that hardware may be reading is changed (arm_smmu_write_entry).

Hardware fetches an entry in pieces, whenever it likes, and software can store 64 bits at once.  What keeps it from
seeing a mixture is what it does *not* look at: an entry that is not valid is only its V bit, one that bypasses has no
context pointer.  So bits that the present entry does not use take their new values first; if what is left to change
then lies in a single word, one store does it and nothing is interrupted.  Otherwise the entry is made invalid in
between.  After each round of stores hardware is told to fetch anew and the driver waits, at most three times.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from guest_driver.arm_smmu_v3.layouts import (
    CFG_BYPASS,
    EATS_S1CHK,
    EATS_TRANS,
    EMPTY,
    S1,
    S1DSS_BYPASS,
    S2,
    WORDS,
    Cd0,
    Cd1,
    Entry,
    Ste0,
    Ste1,
    Ste2,
    Ste3,
)
from guest_driver.linux.printk import Printk
from guest_driver.port import GuestRam

_ALL: Final = (1 << 64) - 1


class ArmSmmuEntryWriter(ABC):
    """One entry at ``address`` in ``ram``."""

    def __init__(self, ram: GuestRam, printk: Printk, address: int) -> None:
        self.ram: Final = ram
        self.printk: Final = printk
        self.address: Final = address

    @abstractmethod
    def get_used(self, entry: Entry) -> Entry:
        """A mask of the bits that hardware looks at in ``entry``."""

    def get_update_safe(self, entry: Entry, target: Entry) -> Entry:
        """A mask of used bits that may change at any time all the same."""
        return EMPTY

    @abstractmethod
    def sync(self) -> None:
        """Make hardware fetch the entry anew, and wait until no earlier fetch counts."""

    def read(self) -> Entry:
        raw = self.ram.read(self.address, 8 * WORDS)
        return tuple(int.from_bytes(raw[8 * k : 8 * k + 8], "little") for k in range(WORDS))

    def store(self, word: int, value: int) -> None:
        """One 64-bit store."""
        self.ram.write(self.address + 8 * word, value.to_bytes(8, "little"))


def arm_smmu_entry_qword_diff(writer: ArmSmmuEntryWriter, entry: Entry, target: Entry) -> tuple[list[int], int]:
    """(the entry with its unused bits as ``target`` has them, a bit for each word that would still be wrong)."""
    used, target_used = writer.get_used(entry), writer.get_used(target)
    safe = writer.get_update_safe(entry, target)
    update = []
    differing = 0
    for k in range(WORDS):
        writer.printk.warn_on(bool(target[k] & ~target_used[k]), f"word {k} of an entry has bits that are not in use")
        keep = used[k] & ~safe[k]
        update.append(entry[k] & keep | target[k] & ~keep)
        if (update[k] ^ target[k]) & target_used[k]:
            differing |= 1 << k
    return update, differing


def entry_set(writer: ArmSmmuEntryWriter, target: Entry | list[int], start: int, count: int) -> None:
    """Store the words that differ, then sync if there was one."""
    now = writer.read()
    changed = [k for k in range(start, start + count) if now[k] != target[k]]
    for k in changed:
        writer.store(k, target[k])
    if changed:
        writer.sync()


def arm_smmu_write_entry(writer: ArmSmmuEntryWriter, target: Entry) -> bool:
    """Make the entry ``target``; whether that was possible without making it invalid in between."""
    entry = writer.read()
    update, differing = arm_smmu_entry_qword_diff(writer, entry, target)
    if not differing:
        entry_set(writer, target, 0, WORDS)
        return True
    if differing & differing - 1 == 0:
        critical = differing.bit_length() - 1
        update[critical] = entry[critical]
        entry_set(writer, update, 0, WORDS)
        entry_set(writer, target, critical, 1)
        entry_set(writer, target, 0, WORDS)
        return True
    entry_set(writer, EMPTY, 0, 1)
    entry_set(writer, target, 1, WORDS - 1)
    entry_set(writer, target, 0, 1)
    return False


def arm_smmu_get_ste_used(entry: Entry) -> Entry:
    """What hardware looks at in an STE, by its Config."""
    used = [0] * WORDS
    used[0] = Ste0.v.mask
    if not Ste0.v.get(entry[0]):
        return tuple(used)
    cfg = Ste0.cfg.get(entry[0])
    used[0] |= Ste0.cfg.mask
    if not cfg & 4:
        return tuple(used)
    if cfg == CFG_BYPASS:
        used[1] |= Ste1.shcfg.mask
        return tuple(used)
    if cfg & S1:
        used[0] |= Ste0.s1fmt.mask | Ste0.s1contextptr.mask | Ste0.s1cdmax.mask
        used[1] |= Ste1.s1dss.mask | Ste1.s1cir.mask | Ste1.s1cor.mask | Ste1.s1csh.mask
        used[1] |= Ste1.s1stalld.mask | Ste1.strw.mask | Ste1.eats.mask | Ste1.mev.mask
        used[2] |= Ste2.s2vmid.mask
        if Ste1.s1dss.get(entry[1]) == S1DSS_BYPASS:
            used[1] |= Ste1.shcfg.mask
    if cfg & S2:
        used[1] |= Ste1.s2fwb.mask | Ste1.eats.mask | Ste1.shcfg.mask | Ste1.mev.mask
        used[2] |= Ste2.s2vmid.mask | Ste2.vtcr.mask | Ste2.s2aa64.mask | Ste2.s2endi.mask
        used[2] |= Ste2.s2ptw.mask | Ste2.s2s.mask | Ste2.s2r.mask
        used[3] |= Ste3.s2ttb.mask
    return tuple(used)


def arm_smmu_get_ste_update_safe(entry: Entry, target: Entry) -> Entry:
    """MEV merges events and nothing else.  ATS is off at the device while a driver changes EATS between none and
    full, except where the other fields make the value 1 illegal."""
    safe = Ste1.mev.mask
    split = any(Ste1.eats.get(one[1]) & EATS_S1CHK for one in (entry, target))
    stalls = any(Ste2.s2s.get(one[2]) for one in (entry, target))
    if not split and not stalls:
        safe |= Ste1.eats.put(EATS_TRANS)
    return (0, safe, 0, 0, 0, 0, 0, 0)


def arm_smmu_get_cd_used(entry: Entry) -> Entry:
    """What hardware looks at in a CD; the lower half's fields only while that half is walked."""
    if not Cd0.v.get(entry[0]):
        return (Cd0.v.mask, *(0,) * (WORDS - 1))
    used = [_ALL] * WORDS
    if Cd0.epd0.get(entry[0]):
        lower = Cd0.t0sz.mask | Cd0.tg0.mask | Cd0.irgn0.mask | Cd0.orgn0.mask | Cd0.sh0.mask
        used[0] &= ~lower
        used[1] &= ~Cd1.ttb0.mask
    return tuple(used)

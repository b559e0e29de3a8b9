# SPDX-License-Identifier: GPL-2.0-or-later
"""Every field that a driver writes into a table or a queue, as one bit of it that may be wrong.

Xen's drivers declare what they write (their ``layouts.py``); what is spelt out here is what they write as plain words,
and what the stage 1 driver of the oracles writes.  "reserved" is the lowest bit of a word that belongs to no field.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from base.bits import Layout
from hypervisor.smmuv3 import layouts as smmu
from hypervisor.smmuv3.format import Stage2Descriptor
from hypervisor.vtd import layouts as vtd
from machine.iommu.unit import WalkStep


@dataclass(frozen=True, slots=True)
class Plant:
    """Bit ``bit`` of 64-bit word ``word`` of a structure, the lowest that counts of ``field``, is wrong."""

    structure: str
    field: str
    word: int
    bit: int

    def __str__(self) -> str:
        return f"{self.structure}: {self.field} (word {self.word}, bit {self.bit})"

    @property
    def where(self) -> str:
        """The field and its first bit, as manuals print it: word 2, bit 32 is ``[2].32``."""
        return f"{self.field} [{self.word}].{self.bit}"

    def spoil(self, structure: str, words: tuple[int, ...]) -> tuple[int, ...]:
        """``words`` of a structure with the bit flipped, if it is one of these."""
        if structure != self.structure or self.word >= len(words):
            return words
        flipped = words[self.word] ^ 1 << self.bit
        return (*words[: self.word], flipped, *words[self.word + 1 :])


_LAYOUTS: Final[tuple[tuple[str, int, type[Layout]], ...]] = (
    ("root entry", 0, vtd.RootEntryLow),
    ("context entry", 0, vtd.ContextEntryLow),
    ("context entry", 1, vtd.ContextEntryHigh),
    ("context-cache descriptor", 0, vtd.ContextCacheInvalidate),
    ("IOTLB descriptor", 0, vtd.IotlbInvalidate),
    ("IOTLB descriptor", 1, vtd.IotlbInvalidateHigh),
    ("device-TLB descriptor", 0, vtd.DeviceTlbInvalidate),
    ("device-TLB descriptor", 1, vtd.DeviceTlbInvalidateHigh),
    ("wait descriptor", 0, vtd.WaitDescriptor),
    ("first-level stream descriptor", 0, smmu.L1Descriptor),
    ("STE", 0, smmu.Ste0),
    ("STE", 1, smmu.Ste1),
    ("STE", 2, smmu.Ste2),
    ("STE", 3, smmu.Ste3),
    ("stream command", 0, smmu.Command),
    ("TLB command", 0, smmu.Tlbi),
    ("TLB command", 1, smmu.TlbiAddress),
    ("device-cache command", 1, smmu.AtcInvAddress),
    ("sync command", 0, smmu.Sync),
    ("sync command", 1, smmu.SyncAddress),
)

_SECOND_STAGE: Final = {"r": 0, "w": 1, "address": 12, "reserved": 2}
_STAGE_2: Final = {name: field.lsb for name, field in Stage2Descriptor.fields.items() if name != "software"}
_STAGE_1: Final = {
    "valid": 0,
    "not_block": 1,
    "attrindx": 2,
    "ns": 5,
    "ap_unprivileged": 6,
    "ap_read_only": 7,
    "sh": 8,
    "af": 10,
    "ng": 11,
    "address": 12,
    "pxn": 53,
    "uxn": 54,
}
_CD: Final = {
    "t0sz": 0,
    "tg0": 6,
    "ir0": 8,
    "or0": 10,
    "sh0": 12,
    "epd0": 14,
    "epd1": 30,
    "v": 31,
    "ips": 32,
    "affd": 35,
    "tbi0": 38,
    "aa64": 41,
    "r": 45,
    "a": 46,
    "aset": 47,
    "asid": 48,
}
_FIELDS: Final[tuple[tuple[str, int, Mapping[str, int]], ...]] = (
    ("root entry", 1, {"reserved": 0}),
    ("context-cache descriptor", 1, {"reserved": 0}),
    ("wait descriptor", 1, {"address": 12}),
    ("stream command", 1, {"leaf or range": 0}),
    ("device-cache command", 0, {"op": 0, "sid": 32}),
    ("second-stage leaf", 0, _SECOND_STAGE),
    ("second-stage superpage", 0, {**_SECOND_STAGE, "ps": 7, "address": 21}),
    ("second-stage table pointer", 0, _SECOND_STAGE),
    ("stage 2 page", 0, _STAGE_2),
    ("stage 2 block", 0, {**_STAGE_2, "address": 21}),
    ("stage 2 table", 0, {"valid": 0, "not_block": 1, "address": 12}),
    ("stage 1 TLB command", 0, {"op": 0, "asid": 48}),
    ("stage 1 TLB command", 1, {"leaf": 0, "address": 12}),
    ("CD command", 0, {"op": 0, "sid": 32}),
    ("stage 1 STE", 0, {"v": 0, "config": 1, "s1fmt": 4, "s1contextptr": 12, "s1cdmax": 59}),
    ("stage 1 STE", 1, {"s1dss": 0, "s1cir": 2, "s1cor": 4, "s1csh": 6, "strw": 30, "shcfg": 44, "privcfg": 48}),
    ("CD", 0, _CD),
    ("CD", 1, {"ttb0": 12}),
    ("CD", 3, {"mair": 0}),
    ("stage 1 page", 0, _STAGE_1),
    ("stage 1 block", 0, {**_STAGE_1, "address": 21}),
    ("stage 1 table", 0, {"valid": 0, "not_block": 1, "address": 12, "aptable": 62}),
)


def plants() -> Iterator[Plant]:
    """One bit for every field."""
    for structure, word, layout in _LAYOUTS:
        for name, field in layout.fields.items():
            yield Plant(structure, name, word, max(field.lsb, 12) if name == "s2ttb" else field.lsb)
        used = sum(field.mask for field in layout.fields.values())
        if used != (1 << 64) - 1:
            yield Plant(structure, "reserved", word, (~used & used + 1).bit_length() - 1)
    for structure, word, fields in _FIELDS:
        for name, bit in fields.items():
            yield Plant(structure, name, word, bit)


# ------------------------------------------------------------------------------------------------ what is what

_STAGE_1_ONLY: Final = 0b1011
"""V and Config of an STE."""


def structure_of(step: WalkStep) -> str:
    """What :func:`plants` call the structure of a walk's step."""
    if step.name == "L1STD":
        return "first-level stream descriptor"
    if step.name == "STE":
        return "stage 1 STE" if step.words and step.words[0] & 0xF == _STAGE_1_ONLY else "STE"
    if step.level is None or not step.words:
        return step.name
    word = step.words[0]
    if step.name.startswith("SL-"):
        if step.level == 1:
            return "second-stage leaf"
        return "second-stage superpage" if word & 1 << 7 else "second-stage table pointer"
    stage = "stage 1" if step.name.startswith("stage 1") else "stage 2"
    if step.level == 3:
        return f"{stage} page"
    return f"{stage} table" if word & 2 else f"{stage} block"


def vtd_descriptor(low: int) -> str:
    """What they call a descriptor in a VT-d invalidation queue."""
    kinds = {
        1: "context-cache descriptor",
        2: "IOTLB descriptor",
        3: "device-TLB descriptor",
        5: "wait descriptor",
    }
    return kinds.get(low & 0xF, "")


def smmu_command(low: int) -> str:
    """What they call a command in an SMMU's queue."""
    return _COMMANDS.get(low & 0xFF, "")


_COMMANDS: Final = {
    smmu.CMD_CFGI_STE: "stream command",
    smmu.CMD_CFGI_STE_RANGE: "stream command",
    0x06: "CD command",
    0x11: "stage 1 TLB command",
    0x12: "stage 1 TLB command",
    smmu.CMD_TLBI_S12_VMALL: "TLB command",
    smmu.CMD_TLBI_S2_IPA: "TLB command",
    smmu.CMD_TLBI_NSNH_ALL: "TLB command",
    smmu.CMD_ATC_INV: "device-cache command",
    smmu.CMD_SYNC: "sync command",
}

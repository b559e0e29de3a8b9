# SPDX-License-Identifier: GPL-2.0-or-later
"""Where QEMU's SMMUv3 departs from IHI 0070.  Nothing else is excused."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from machine.iommu.smmuv3.events import (
    C_BAD_CD,
    C_BAD_STE,
    C_BAD_STREAMID,
    F_ACCESS,
    F_ADDR_SIZE,
    F_CD_FETCH,
    F_PERMISSION,
    F_STE_FETCH,
    F_TRANSLATION,
    F_WALK_EABT,
)
from machine.iommu.unit import Fault, IommuUnit, Walk, WalkStep
from machine.memory import PhysicalMemory
from oracle.lockstep import Access, Blind, Deviation

OUTPUT: Final = 0x0000_FFFF_FFFF_F000
STAGE_2: Final = 1 << 39
"""S2 in the second word of an event: the fault is of stage 2."""
READ: Final = 1 << 35
"""RnW in the same word."""
ACCESSED: Final = 1 << 10
"""AF of a leaf."""
READ_ONLY: Final = 1 << 7
"""AP[2] of a stage 1 leaf."""
APTABLE_READ_ONLY: Final = 1 << 62
"""APTable[1] of a stage 1 table descriptor."""
QEMU_OAS: Final = 44
OAS_BITS: Final = (32, 36, 40, 42, 44, 48, 52)
STAGE_2_STE: Final = 0b1101
"""An STE that is valid and has stage 2 in its Config."""
STAGE_2_ONLY: Final = 6
"""Config of an STE."""
S1STALLD: Final = 1 << 27
WIDEST: Final = 48
"""Address bits that QEMU 7.2 lets through to its SMMU."""


@dataclass(frozen=True, slots=True)
class BlindSpot:
    """Bits that QEMU does not look at: it acts as if those of ``clear`` were 0 and those of ``set`` were 1."""

    name: str
    structure: str
    """Name of the walk's step."""
    word: int
    clear: int
    set: int
    reason: str
    evidence: str
    where: Callable[[WalkStep], bool] = lambda step: True
    """Whether they would mean something in that very step."""
    fixed_in: int = 1 << 30


def _is_leaf(step: WalkStep) -> bool:
    """A descriptor that says it leads to memory."""
    return step.level is not None and bool(step.words[0] & 1) and (not step.words[0] & 2 or step.level == 3)


def _has_stage_1(step: WalkStep) -> bool:
    """An STE with stage 1 in its Config; stage 2 knows no privileges."""
    return bool(step.words[0] >> 1 & 1)


BLIND_SPOTS: Final = (
    BlindSpot(
        name="S1ContextPtr above bit 47",
        structure="STE",
        word=0,
        clear=0xFF << 48,
        set=0,
        reason="S1ContextPtr has bits 55:6; an address beyond the SMMU's is C_BAD_STE (5.2).",
        evidence="QEMU 7.2 and 10.0: with bit 49 or 55 set the context descriptor is read as if it were 0.",
    ),
    BlindSpot(
        name="TTB0 above bit 50",
        structure="CD",
        word=1,
        clear=1 << 51,
        set=0,
        reason="TTB0 has bits 51:4; an address beyond the output size is C_BAD_CD (5.4).",
        evidence="QEMU 7.2: with bit 51 set the table is read as if it were 0.",
    ),
    BlindSpot(
        name="S2TTB above bit 47",
        structure="STE",
        word=3,
        clear=0xF << 48,
        set=0,
        reason="S2TTB has bits 51:4; an address beyond the output size is C_BAD_STE (5.2).",
        evidence="QEMU 10.0: with bit 50 set the table is read as if it were 0.",
    ),
    BlindSpot(
        name="S2HA and S2HD",
        structure="STE",
        word=2,
        clear=3 << 55,
        set=0,
        reason="An SMMU that does not update flags (IDR0.HTTU = 0) treats an STE that asks for it as C_BAD_STE (5.2).",
        evidence="QEMU 10.0: with S2HA set the stream translates.",
    ),
    BlindSpot(
        name="every request is privileged",
        structure="STE",
        word=1,
        clear=0,
        set=3 << 48,
        reason="A request without a PASID is unprivileged unless PRIVCFG says otherwise (3.13, 5.2): a leaf without"
        " AP[1], or below APTable[0], is F_PERMISSION to it.",
        evidence="QEMU 7.2 and 10.0: with PRIVCFG = 1 and AP[1] = 0 the access reaches the page.",
        where=_has_stage_1,
    ),
    BlindSpot(
        name="no request is an instruction fetch",
        structure="STE",
        word=1,
        clear=1 << 50,
        set=0,
        reason="INSTCFG = 3 makes every read an instruction fetch (5.2), which execute-never bits deny.",
        evidence="QEMU 7.2 and 10.0: with INSTCFG = 3 a read reaches a page with UXN and PXN.",
    ),
    BlindSpot(
        name="CD.PAN",
        structure="CD",
        word=0,
        clear=1 << 40,
        set=0,
        reason="With PAN a privileged access to a page that unprivileged ones may use is F_PERMISSION (5.4).",
        evidence="QEMU 7.2 and 10.0: the bit makes no difference.",
    ),
    BlindSpot(
        name="access flag not checked",
        structure="stage 1 descriptor",
        word=0,
        clear=0,
        set=1 << 10,
        reason="A leaf with AF=0 is an Access flag fault unless CD.AFFD (3.13.2; hardware that cannot set the flag).",
        evidence="QEMU 7.2: a descriptor with AF=0 translates; 10.0 reports F_ACCESS.",
        where=_is_leaf,
        fixed_in=10,
    ),
)


def as_seen(memory: PhysicalMemory, ours: IommuUnit, version: int, walk: Walk) -> Blind | None:
    """The walk as QEMU ``version`` does it: our unit's, with memory changed for the moment to what QEMU sees."""
    words = memory.words
    changed: list[tuple[int, int]] = []
    name = ""
    again = True
    while again:
        again = False
        for step in walk.steps:
            for spot in BLIND_SPOTS:
                if step.name != spot.structure or spot.word >= len(step.words) or version >= spot.fixed_in:
                    continue
                word = step.words[spot.word]
                seen = word & ~spot.clear | spot.set
                if seen != word and spot.where(step):
                    at = (step.maddr >> 3) + spot.word
                    changed.append((at, words[at]))
                    words[at] = words[at] & ~spot.clear | spot.set
                    name = spot.name
                    again = True
        if again:
            walk = ours.walk(walk.sid, walk.iova, walk.write)
    for at, old in reversed(changed):
        words[at] = old
    return Blind(walk, name) if name else None


def leaf_output(walk: Walk) -> int | None:
    """Where the last descriptor of a walk leads if it is taken for a leaf; ``None`` if no descriptor was read."""
    step = walk.steps[-1] if walk.steps else None
    if step is None or step.level is None or not step.words or not step.words[0] & 1:
        return None
    offset = (1 << 39 - 9 * step.level) - 1
    return step.words[0] & OUTPUT & ~offset | walk.iova & offset


def _recorded(answer: int | Fault) -> int | None:
    """The number of the event that the model recorded."""
    return answer.code if isinstance(answer, Fault) and answer.record else None


def _ours(access: Access) -> int | None:
    """The number of our event."""
    return access.ours.code if isinstance(access.ours, Fault) else None


def _passes_or_is_lost(access: Access) -> bool:
    """Whether the model let the access through to where the last descriptor says, or beyond all RAM."""
    theirs = access.model
    if isinstance(theirs, Fault):
        return not theirs.record
    return theirs == leaf_output(access.walk)


def _output_bits(access: Access) -> int:
    """The output size that the context descriptor asks for, as far as the unit has it."""
    word = next((step.words[0] for step in access.walk.steps if step.name == "CD"), 0)
    return min(OAS_BITS[min(word >> 32 & 7, 6)], QEMU_OAS)


def _is_too_large(access: Access) -> bool:
    """Our F_ADDR_SIZE for the address in the last descriptor."""
    step = access.walk.steps[-1]
    return (
        _ours(access) == F_ADDR_SIZE
        and step.level is not None
        and (step.words[0] & OUTPUT) >> _output_bits(access) != 0
    )


def _table_size(access: Access) -> bool:
    step = access.walk.steps[-1]
    is_table = step.level is not None and step.level < 3 and step.words[0] & 3 == 3
    return is_table and _is_too_large(access) and _recorded(access.model) == F_WALK_EABT


def _leaf_size(access: Access) -> bool:
    step = access.walk.steps[-1]
    if not _is_too_large(access) or (step.words[0] & 3 == 3 and step.level != 3):
        return False
    return _passes_or_is_lost(access)


def _leaf_size_last(access: Access) -> bool:
    step = access.walk.steps[-1]
    if not _is_too_large(access) or (step.words[0] & 3 == 3 and step.level != 3):
        return False
    found = _recorded(access.model)
    return found == F_PERMISSION or (found == F_ACCESS and not step.words[0] & ACCESSED)


def _address_beyond(access: Access) -> bool:
    """Our C_BAD_STE for a pointer that QEMU follows out of RAM."""
    step = access.walk.steps[-1]
    return (
        step.name == "STE"
        and _ours(access) == C_BAD_STE
        and step.words[0] >> 44 & 15 != 0
        and _recorded(access.model) == F_CD_FETCH
    )


def _level_0_block(access: Access) -> bool:
    """QEMU goes on as with any leaf, so what it finds next is a fault of the leaf, or no fault."""
    step = access.walk.steps[-1]
    if _ours(access) != F_TRANSLATION or step.level != 0 or step.words[0] & 3 != 1:
        return False
    return _recorded(access.model) in (F_ADDR_SIZE, F_ACCESS, F_PERMISSION) or _passes_or_is_lost(access)


def _table_rights_first(access: Access) -> bool:
    """A table descriptor is marked read-only, and the walk ends in something else there or below it."""
    marked = any(step.name == "stage 1 descriptor" and step.words[0] & APTABLE_READ_ONLY for step in access.walk.steps)
    return (
        marked
        and access.write
        and _ours(access) in (F_TRANSLATION, F_ADDR_SIZE, F_ACCESS, F_WALK_EABT)
        and _recorded(access.model) == F_PERMISSION
    )


def _table_rights_not_cached(access: Access) -> bool:
    """Cached by both halves, the write is denied by a table descriptor alone, and QEMU lets it through."""
    tables = [step for step in access.walk.steps if step.name == "stage 1 descriptor" and not _is_leaf(step)]
    return (
        access.cached
        and access.write
        and _ours(access) == F_PERMISSION
        and any(step.words[0] & APTABLE_READ_ONLY for step in tables)
        and not access.walk.steps[-1].words[0] & READ_ONLY
        and access.model == leaf_output(access.walk)
    )


def _other_granule(access: Access) -> bool:
    step = access.walk.steps[-1]
    if step.name == "CD":
        return _ours(access) == C_BAD_CD and step.words[0] >> 6 & 3 in (1, 2)
    return step.name == "STE" and _ours(access) == C_BAD_STE and step.words[2] >> 46 & 3 in (1, 2)


def _shallow_range(access: Access) -> bool:
    """S2SL0 starts at a level whose tables cover more than S2T0SZ leaves to translate."""
    step = access.walk.steps[-1]
    if step.name != "STE" or _ours(access) != C_BAD_STE:
        return False
    start_level = 2 - (step.words[2] >> 38 & 3)
    return 0 <= start_level <= 1 and 64 - (step.words[2] >> 32 & 63) <= 39 - 9 * start_level


def _input_wider_than_s2ps(access: Access) -> bool:
    ste = next((step.words for step in access.walk.steps if step.name == "STE"), None)
    if ste is None or ste[0] & STAGE_2_STE != STAGE_2_STE or _recorded(access.model) != C_BAD_STE:
        return False
    return 64 - (ste[2] >> 32 & 63) > OAS_BITS[min(ste[2] >> 48 & 7, 6)]


def _substreams(access: Access) -> bool:
    return any(step.name == "STE" and step.words[0] >> 59 for step in access.walk.steps) and (
        _recorded(access.model) == C_BAD_STE
    )


def _stall_bit_of_stage_1(access: Access) -> bool:
    ste = next((step.words for step in access.walk.steps if step.name == "STE"), None)
    return (
        ste is not None
        and ste[0] >> 1 & 7 == STAGE_2_ONLY
        and bool(ste[1] & S1STALLD)
        and _recorded(access.model) == C_BAD_STE
    )


def _wide_l2_pointer(access: Access) -> bool:
    step = access.walk.steps[0]
    return step.name == "L1STD" and step.words[0] >> 56 != 0 and _recorded(access.model) == F_STE_FETCH


def _bad_span(access: Access) -> bool:
    """The first-level descriptor's Span is reserved, or reaches one stream less than QEMU takes it to reach."""
    step = access.walk.steps[-1]
    return step.name == "L1STD" and _ours(access) == C_BAD_STREAMID


def _cd_fetch(access: Access) -> bool:
    mine, theirs = access.ours, access.model
    return (
        isinstance(mine, Fault)
        and isinstance(theirs, Fault)
        and mine.code == theirs.code == F_CD_FETCH
        and theirs.record == (mine.record[0], mine.record[1], mine.record[3], 0)
    )


def _read_of_a_cd(access: Access) -> bool:
    """Stage 2 stopped the fetch of a context descriptor for a write, which QEMU records as a read."""
    mine, theirs = access.ours, access.model
    if not isinstance(mine, Fault) or not isinstance(theirs, Fault) or not mine.record or not theirs.record:
        return False
    fetching = not any(step.name == "CD" for step in access.walk.steps) and bool(mine.record[1] & STAGE_2)
    as_a_read = (mine.record[0], mine.record[1] | READ, *mine.record[2:])
    return fetching and access.write and comparable_record(theirs.record) == comparable_record(as_a_read)


def _too_wide(access: Access) -> bool:
    return (
        access.iova >> WIDEST != 0
        and isinstance(access.ours, Fault)
        and isinstance(access.model, Fault)
        and not access.model.record
    )


def _too_wide_for_stage_2(access: Access) -> bool:
    mine, theirs = access.ours, access.model
    return (
        isinstance(mine, Fault)
        and mine.code == F_ADDR_SIZE
        and not access.walk.steps[-1].name.startswith("stage")
        and isinstance(theirs, Fault)
        and not theirs.record
    )


def _cached_denial(access: Access) -> bool:
    """Cached by our half, or part of a superpage that QEMU may have cached when our half, which remembers table
    descriptors, still walked the table that was folded into it."""
    mine, theirs = access.ours, access.model
    leaf = access.walk.steps[-1]
    return (
        (access.cached or (leaf.level is not None and leaf.level < 3))
        and isinstance(mine, Fault)
        and mine.code == F_PERMISSION
        and bool(mine.record)
        and bool(mine.record[1] & STAGE_2)
        and isinstance(theirs, Fault)
        and not theirs.record
    )


DEVIATIONS: Final[tuple[Deviation, ...]] = (
    Deviation(
        name="size of a table's address not checked",
        reason="A descriptor with an output address beyond the effective output size is F_ADDR_SIZE (7.3.14).",
        evidence="QEMU 7.2 and 10.0: a table descriptor with address bit 44 set is fetched, which ends in F_WALK_EABT.",
        excuses=_table_size,
    ),
    Deviation(
        name="size of a leaf's address not checked",
        reason="As for tables.",
        evidence="QEMU 7.2: a leaf with address bit 44 set sends the access there; 10.0 reports F_ADDR_SIZE.",
        excuses=_leaf_size,
        fixed_in=10,
    ),
    Deviation(
        name="size of a leaf's address checked last",
        reason="An address size fault comes before an access flag or a permission fault (Arm ARM D8.16).",
        evidence="QEMU 7.2 and 10.0: a leaf that is too far out and also has AF=0, or denies the access, reports that.",
        excuses=_leaf_size_last,
    ),
    Deviation(
        name="pointer to a context descriptor beyond the address size",
        reason="It makes the STE illegal (5.2): C_BAD_STE.",
        evidence="QEMU 7.2 and 10.0: with bit 44 of S1ContextPtr set it is fetched, which ends in F_CD_FETCH.",
        excuses=_address_beyond,
    ),
    Deviation(
        name="block descriptor at level 0",
        reason="With 4 KiB granule a block at level 0 is a translation fault (Arm ARM D8.3.1).",
        evidence="QEMU 7.2 and 10.0: it is taken for a block of 512 GiB.",
        excuses=_level_0_block,
    ),
    Deviation(
        name="APTable before everything below it",
        reason="Translation, address size and access flag faults come before permission faults (Arm ARM D8.16).",
        evidence="QEMU 7.2 and 10.0: a write through a table descriptor with APTable[1] is F_PERMISSION at once.",
        excuses=_table_rights_first,
    ),
    Deviation(
        name="APTable is not cached",
        reason="What a table descriptor withholds is part of the translation that is cached (Arm ARM D8.4.5).",
        evidence="QEMU 7.2 and 10.0: a read through a table descriptor with APTable[1] caches the page, and the write"
        " after it arrives; after an invalidation the same write is F_PERMISSION.",
        excuses=_table_rights_not_cached,
    ),
    Deviation(
        name="granules of 16 and 64 KiB",
        reason="Not a fault of QEMU's: its IDR5 has them and ours has not, so they are illegal for ours only.",
        evidence="IDR5 of QEMU 7.2 and 10.0 is 74h.",
        excuses=_other_granule,
    ),
    Deviation(
        name="start level above the input range",
        reason="S2SL0 must fit S2T0SZ: a table of the start level has to be used for more than one entry (5.2, D8.2).",
        evidence="QEMU 10.0: S2SL0 = 2 with S2T0SZ = 26 translates; only ranges too wide for S2SL0 are C_BAD_STE.",
        excuses=_shallow_range,
    ),
    Deviation(
        name="input range wider than S2PS",
        reason="S2T0SZ is limited by the SMMU's input address size (5.2); S2PS limits what comes out of the tables.",
        evidence="QEMU 10.0: S2T0SZ = 20 with S2PS = 0 (32 bits) is C_BAD_STE.",
        excuses=_input_wider_than_s2ps,
    ),
    Deviation(
        name="S1CDMax without substreams",
        reason="The field is ignored when IDR1.SSIDSIZE is 0 (5.2).",
        evidence="QEMU 7.2 and 10.0: any other value than 0 is C_BAD_STE.",
        excuses=_substreams,
    ),
    Deviation(
        name="S1STALLD without stage 1",
        reason="Fields of stage 1 are ignored when Config[0] is 0 (5.2).",
        evidence="QEMU 10.0: an STE with Config = stage 2 and S1STALLD set is C_BAD_STE.",
        excuses=_stall_bit_of_stage_1,
    ),
    Deviation(
        name="L2Ptr above bit 55",
        reason="Bits 63:56 of a first-level descriptor are reserved and ignored (5.1.1).",
        evidence="QEMU 7.2 and 10.0: they are part of the address, so the STE is F_STE_FETCH.",
        excuses=_wide_l2_pointer,
    ),
    Deviation(
        name="reserved Span",
        reason="A first-level descriptor whose Span is reserved counts as invalid, and streams that a Span does not"
        " reach are C_BAD_STREAMID (5.1.1, 7.3.3).",
        evidence="QEMU 7.2 and 10.0 take 2^Span entries for 2^(Span - 1), and report nothing or C_BAD_STE for more than"
        " SPLIT allows.",
        excuses=_bad_span,
    ),
    Deviation(
        name="F_CD_FETCH carries its address one word early",
        reason="FetchAddr is in bits 51:3 of the fourth word (7.3.11), as in F_STE_FETCH.",
        evidence="QEMU 7.2 and 10.0: the address of the context descriptor is in the third word, the fourth is 0.",
        excuses=_cd_fetch,
    ),
    Deviation(
        name="a write that stops at a context descriptor is recorded as a read",
        reason="RnW is the nature of the incoming transaction, whatever the access that faulted (7.3).",
        evidence="QEMU 10.0: nested, with the intermediate address of the CD not mapped, a write is F_TRANSLATION with"
        " RnW = 1.",
        excuses=_read_of_a_cd,
    ),
    Deviation(
        name="addresses of more than 48 bits do not arrive",
        reason="A request whose address no table covers is reported as F_TRANSLATION (7.3.13), or earlier if its stream"
        " is bad; this one is dropped before the SMMU sees it.",
        evidence="QEMU 7.2: a DMA to 2^48 is lost and EVENTQ_PROD does not move; one to 2^48 - 4096 is reported.",
        excuses=_too_wide,
        fixed_in=10,
    ),
    Deviation(
        name="beyond the address size with stage 2 alone",
        reason="An input address wider than the SMMU's is a stage 1 Address Size fault even when stage 1 is bypassed"
        " (3.4), which is reported; this one is dropped.",
        evidence="QEMU 10.0: a DMA to 2^44 through a stage 2 STE is lost and EVENTQ_PROD does not move.",
        excuses=_too_wide_for_stage_2,
    ),
    Deviation(
        name="cached denial at stage 2 is silent",
        reason="F_PERMISSION is recorded when STE.S2R is set, whether the translation was cached or not (7.3.16).",
        evidence="QEMU 10.0: a read caches a read-only page, the write after it is lost and EVENTQ_PROD does not move;"
        " after an invalidation the same write is reported.  At stage 1 it is reported.",
        excuses=_cached_denial,
    ),
)

_CLASS: Final = 3 << 40
_PNU: Final = 1 << 33
_IND: Final = 1 << 34
_TRANSLATION_EVENTS: Final = (F_WALK_EABT, F_TRANSLATION, F_ADDR_SIZE, F_ACCESS, F_PERMISSION)


def comparable_record(record: tuple[int, ...]) -> tuple[int, ...]:
    """An event without what QEMU does not fill in as 7.3 says.

    It leaves CLASS 0 (7.2) and PnU (all versions; every request counts as privileged), and its IPA, bits 51:12 of the
    fourth word, carries the offset in the page as well.
    """
    if not record or record[0] & 0xFF not in _TRANSLATION_EVENTS:
        return record
    ipa = 0xFFF if record[0] & 0xFF != F_WALK_EABT else 0
    return record[0], record[1] & ~(_CLASS | _PNU | _IND), record[2], record[3] & ~ipa


_ATTRIBUTE_OVERRIDES: Final = 3 << 26
_OTHER_GRANULES: Final = 3 << 5
_WITHOUT_MEANING: Final = {
    0x00: 1 << 0 | 1 << 18,  # IDR0.S2P: software is told that there is a stage 2; VMID16 says nothing without one
    0x04: _ATTRIBUTE_OVERRIDES,  # IDR1: our unit has them, QEMU's knows no attributes
    0x14: _OTHER_GRANULES,  # IDR5: QEMU's walks 16 and 64 KiB granules too, which nobody uses here
}


def meaningless_bits(has_gbpa: bool, command_error: Callable[[], bool]) -> Callable[[int, int, int], int]:
    """Register bits in which the halves may differ.

    That is GBPA as a whole where QEMU has none (7.2 reads 0), and CMDQ_CONS.ERR, which says something only while
    ``command_error()``, that is GERROR.CMDQ_ERR, is active (6.3.29).
    """
    bits = dict(_WITHOUT_MEANING)
    if not has_gbpa:
        bits[0x44] = 0xFFFF_FFFF

    def ignore(offset: int, size: int, value: int) -> int:
        if offset == 0x9C and not command_error():
            return 0x7F << 24
        return bits.get(offset, 0)

    return ignore

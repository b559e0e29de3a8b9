# SPDX-License-Identifier: GPL-2.0-or-later
"""What changed from one version to another, and whom it breaks.

Four comparisons: how the call is made, what the header declares (numbers, structs, constants), what is answered, and
what was posted around it.  Each change carries what it means for a guest built against the older version on the newer
hypervisor, and the reverse, where it means anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from abi.behaviour import BEHAVIOUR, FACTS
from abi.codec import Codec
from abi.conditions import CONDITIONS, FrameKind
from abi.contract import DONE, STOPS, Contract, Table
from abi.deviations import deviations_of
from abi.errno import errno_name
from abi.layout import Member
from abi.lint import Subject
from abi.model import Abi, Convention, SubOp

SECTIONS: Final = ("call", "numbers", "structs", "constants", "answers", "behaviour", "defects", "posting")


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.  ``old_guest``: what it means for a guest of the first version on the second's hypervisor;
    ``new_guest``: the reverse; "" for nothing."""

    section: str
    kind: str
    """``changed``, ``moved``, ``renamed``, ``respelled``, ``appeared``, ``vanished``."""
    place: str
    before: str
    after: str
    old_guest: str = ""
    new_guest: str = ""


def diff(old: Subject, new: Subject, arch: str = "x86-64") -> list[Change]:
    """Every difference, section by section."""
    a, b = old.abi, new.abi
    changes = [*_call(a, b), *_numbers(a, b), *_structs(a, b, arch), *_constants(a, b)]
    if old.contract is not None and new.contract is not None and Convention.BATCH not in (a.convention, b.convention):
        changes += [*_answers(old.contract, new.contract), *_behaviour(old.contract, new.contract)]
        changes += _defects(old.contract, new.contract)
    return [*changes, *_posting(old, new)]


def _call(a: Abi, b: Abi) -> Iterator[Change]:
    if a.hypercall != b.hypercall:
        yield Change(
            "call",
            "changed",
            "hypercall number",
            str(a.hypercall),
            str(b.hypercall),
            f"calls number {a.hypercall}, which is not iommu_op there: -ENOSYS",
            f"calls number {b.hypercall}, which is not iommu_op there: -ENOSYS",
        )
    if a.convention is not b.convention:
        there, back = _wrong_convention(a, b), _wrong_convention(b, a)
        yield Change("call", "changed", "calling convention", a.convention.value, b.convention.value, there, back)
    if a.max_nr_pages != b.max_nr_pages:
        before, after = (f"{x.max_nr_pages} at most" if x.max_nr_pages else "as many as nr_pages holds" for x in (a, b))
        yield Change(
            "call",
            "changed",
            "pages per call",
            before,
            after,
            "" if b.max_nr_pages is None else f"more than {b.max_nr_pages} pages are refused: -E2BIG",
            "" if a.max_nr_pages is None else f"more than {a.max_nr_pages} pages are refused: -E2BIG",
        )


def _wrong_convention(guest: Abi, hypervisor: Abi) -> str:
    """What happens to a guest that calls the way of another version."""
    if guest.hypercall != hypervisor.hypercall:
        return ""
    match guest.convention, hypervisor.convention:
        case (_, Convention.SUBOP):
            return (
                "passes an address where a sub-op number is read; it is none, so every call answers "
                f"-{errno_name(hypervisor.errno_unknown_subop)}"
            )
        case (Convention.SUBOP, _):
            return (
                "passes a sub-op number where an address is read; nothing is mapped that low, so every call is -EFAULT"
            )
        case (Convention.BATCH, _):
            return "the count is ignored: the first operation of every array is done, the others are not"
        case _:
            return "the count is whatever the register held: memory behind the struct is taken for more operations"


def _numbers(a: Abi, b: Abi) -> Iterator[Change]:
    same_way = a.convention is b.convention and a.hypercall == b.hypercall
    for name in {**a.by_name, **b.by_name}:
        before, after = a.by_name.get(name), b.by_name.get(name)
        if before is not None and after is not None:
            if before.number != after.number:
                yield Change(
                    "numbers",
                    "moved",
                    name,
                    str(before.number),
                    str(after.number),
                    f"{name} ({before.number}) runs {_what(b, before.number)}" if same_way else "",
                    f"{name} ({after.number}) runs {_what(a, after.number)}" if same_way else "",
                )
            if before.implemented != after.implemented:
                was, now = ("implemented" if row.implemented else "answers -EOPNOTSUPP" for row in (before, after))
                yield Change("numbers", "changed", name, was, now)
        elif before is not None:
            meaning = f"{name} ({before.number}) runs {_what(b, before.number)}" if same_way else ""
            yield Change("numbers", "vanished", name, f"{before.number}: {before.doc}", "", meaning)
        elif after is not None:
            meaning = f"{name} ({after.number}) runs {_what(a, after.number)}" if same_way else ""
            yield Change("numbers", "appeared", name, "", f"{after.number}: {after.doc}", "", meaning)


def _what(abi: Abi, number: int) -> str:
    row = abi.subops.get(number)
    return f"{row.name} there" if row is not None else f"nothing: -{errno_name(abi.errno_unknown_subop)}"


def _structs(a: Abi, b: Abi, arch: str) -> Iterator[Change]:
    for name, before in a.by_name.items():
        after = b.by_name.get(name)
        if after is None:
            continue
        one, other = before.codec_on(arch), after.codec_on(arch)
        if one is not None and other is not None:
            yield from _struct(name, before, one, after, other)


def _struct(name: str, before: SubOp, one: Codec, after: SubOp, other: Codec) -> Iterator[Change]:
    if (before.struct, one.size) != (after.struct, other.size):
        was, now = (f"struct {row.struct}, {codec.size} bytes" for row, codec in ((before, one), (after, other)))
        yield Change("structs", "changed", name, was, now)
    for field in one.fields:
        old, new = one.present.get(field), other.present.get(field)
        if old is not None and new is not None:
            yield from _field(name, old, new)
        elif old is not None:
            yield Change("structs", "vanished", f"{name}.{old.plain}", _at(old), "")
        elif new is not None:
            yield Change("structs", "appeared", f"{name}.{new.plain}", "", _at(new))
    pads = [{m.plain: m for m in c.layout.members if m.direction == "reserved"} for c in (one, other)]
    for plain in {**pads[0], **pads[1]}:
        if plain not in pads[0]:
            hole = f"padding that the compiler put there, {pads[1][plain].size} bytes at {pads[1][plain].offset}"
            yield Change("structs", "renamed", f"{name}.{plain}", hole, "the same bytes, named")
        elif plain not in pads[1]:
            yield Change("structs", "vanished", f"{name}.{plain}", _at(pads[0][plain]), "")


def _field(name: str, old: Member, new: Member) -> Iterator[Change]:
    if old.plain != new.plain:
        yield Change("structs", "renamed", f"{name}.{new.plain}", old.plain, new.plain)
    if (old.offset, old.size) != (new.offset, new.size):
        yield Change("structs", "moved", f"{name}.{new.plain}", _at(old), _at(new))
    if old.direction != new.direction:
        yield Change("structs", "changed", f"{name}.{new.plain}", _WAYS[old.direction], _WAYS[new.direction])


_WAYS: Final = {"in": "IN", "out": "OUT", "inout": "IN and OUT", "reserved": "padding"}


def _at(member: Member) -> str:
    return f"{member.size} byte{'' if member.size == 1 else 's'} at {member.offset}"


def _constants(a: Abi, b: Abi) -> Iterator[Change]:
    old = {c.name: c for c in a.constants}
    new = {c.name: c for c in b.constants}
    gone = {n: c for n, c in old.items() if n not in new}
    for name, constant in new.items():
        before = old.get(name)
        if before is None:
            heir = next((n for n, c in gone.items() if (c.group, c.value) == (constant.group, constant.value)), None)
            if heir is not None:
                del gone[heir]
                yield Change("constants", "renamed", name, heir, f"{name}, still {constant.value:#x}")
            else:
                unknown = f"must not be used: the capability {constant.needs} is not reported" if constant.needs else ""
                back = unknown if a.convention is b.convention else ""
                yield Change("constants", "appeared", name, "", f"{constant.value:#x}: {constant.doc}", "", back)
        elif before.value != constant.value:
            yield Change("constants", "changed", name, f"{before.value:#x}", f"{constant.value:#x}")
        elif before.spelling != constant.spelling and before.spelling:
            yield Change("constants", "respelled", name, before.spelling, constant.spelling)
    for name, constant in gone.items():
        yield Change("constants", "vanished", name, f"{constant.value:#x}: {constant.doc}", "")
    if a.enum_tag != b.enum_tag:
        yield Change("constants", "changed", "sub-op numbers", _enum(a), _enum(b))


def _enum(abi: Abi) -> str:
    if abi.enum_tag is None:
        return "#defines"
    return f"enum {abi.enum_tag}, explicit values" if abi.enum_tag else "anonymous enum, implicit values"


def _answers(old: Contract, new: Contract) -> Iterator[Change]:
    a, b = old.abi, new.abi
    for place, before, after in (
        ("every sub-op: the caller may not use PV-IOMMU", a.errno_unusable, b.errno_unusable),
        ("a number without a sub-op", a.errno_unknown_subop, b.errno_unknown_subop),
    ):
        if before != after:
            yield _errno_change(place, before, after)
    if old.usability != new.usability:
        yield Change(
            "answers", "changed", "who may not use PV-IOMMU", "; ".join(old.usability), "; ".join(new.usability)
        )
    for name in a.by_name:
        if name in old.tables and name in new.tables:
            promised = {p.condition: p.errno for p in b.by_name[name].promises}
            yield from _table(name, old.tables[name], new.tables[name], promised)
    yield from _frames(old, new)


def _errno_change(place: str, before: int, after: int, promised: int | None = None) -> Change:
    one, other = f"-{errno_name(before)}", f"-{errno_name(after)}"
    there, back = f"gets {other} where it looks for {one}", f"gets {one} where it looks for {other}"
    now = f"{other}, which is what the header promises" if after == promised else other
    was = f"{one}, which is what the header promises" if before == promised else one
    return Change("answers", "changed", place, was, now, there, back)


_COMMON: Final = frozenset({"unusable", "unreadable", "unwritable", "unwritable-first"})


def _table(name: str, before: Table, after: Table, promised: dict[str, int]) -> Iterator[Change]:
    old = {row.condition: row for row in before}
    new = {row.condition: row for row in after}
    for condition, row in new.items():
        if condition in _COMMON or condition.startswith("frame-") or row.errno in _TOLD:
            continue
        place = f"{name}: {CONDITIONS[condition]}"
        if condition not in old:
            heir = _EQUIVALENT.get(condition)
            if heir in old and heir not in new:
                if old[heir].errno != row.errno:
                    yield _errno_change(place, old[heir].errno, row.errno)
                continue
            code = f"-{errno_name(row.errno)}"
            yield Change("answers", "appeared", place, "not tested", code, f"gets {code} where nothing was refused")
        elif old[condition].errno != row.errno:
            yield _errno_change(place, old[condition].errno, row.errno, promised.get(condition))
    heirs = {_EQUIVALENT[c] for c in new if c in _EQUIVALENT and c not in old}
    for condition, row in old.items():
        if (
            condition not in new
            and condition not in _COMMON
            and condition not in heirs
            and not condition.startswith("frame-")
            and row.errno not in _TOLD
        ):
            place = f"{name}: {CONDITIONS[condition]}"
            code = f"-{errno_name(row.errno)}"
            yield Change("answers", "vanished", place, code, "not tested", "", f"gets {code} where nothing is refused")


_TOLD: Final = (DONE, STOPS)
"""Rows that are no errors: a flag of the contract says the same in words."""
_EQUIVALENT: Final = {"reserved-overlap": "reserved-occupied"}


def _frames(old: Contract, new: Contract) -> Iterator[Change]:
    for kind in FrameKind:
        before, after = old.frame_answer(kind), new.frame_answer(kind)
        if before != after:
            yield Change(
                "answers",
                "changed",
                f"map_pages: the frame is {kind.value}",
                before,
                after,
                _refused(before, after),
                _refused(after, before),
            )


def _refused(known: str, met: str) -> str:
    """What a guest that knows one answer makes of another."""
    if met.startswith("-") and not known.startswith("-"):
        return f"gets {met}"
    if known == "mapped" and met.startswith("mapped for"):
        return f"gets {met.split(', ')[1].split()[0]} unless it is the hardware domain"
    return ""


def _behaviour(old: Contract, new: Contract) -> Iterator[Change]:
    for attribute, (place, words) in BEHAVIOUR.items():
        before, after = getattr(old, attribute), getattr(new, attribute)
        if before != after and _comparable(attribute, old, new):
            one, other = words[before], words[after]
            yield Change("behaviour", "changed", place, one.what, other.what, other.for_old, one.for_new)
    if old.abi.has("init") != new.abi.has("init"):
        later = new if new.abi.has("init") else old
        trap = "; its own answer is replaced by alloc_context's" if later.init_alters else ""
        words_ = ("contexts are there from the start", f"no context until init has been called{trap}")
        fresh = new.abi.has("init")
        yield Change(
            "behaviour",
            "changed",
            "before the first context",
            *(words_ if fresh else words_[::-1]),
            "never calls init: max_ctx_no reads 0 and alloc_context answers -ENOSPC" if fresh else "",
            "" if fresh else "never calls init: max_ctx_no reads 0 and alloc_context answers -ENOSPC",
        )


def _defects(old: Contract, new: Contract) -> Iterator[Change]:
    """Departures of the posted code from its own contract that came or went."""
    before, after = (() if c.fixed else deviations_of(c.name) for c in (old, new))
    for d in after:
        if d not in before:
            yield Change("defects", "appeared", d.place, "", d.instead)
    for d in before:
        if d not in after and (not d.subop or new.abi.has(d.subop)):
            yield Change("defects", "vanished", d.place, d.instead, "")


def _comparable(attribute: str, old: Contract, new: Contract) -> bool:
    """Whether both versions have what the flag is about."""
    if attribute.startswith("init_"):
        return old.abi.has("init") == new.abi.has("init")
    if attribute == "reserved_once":
        return all(any(r.condition == "reserved-dfn" for r in c.table("map_pages")) for c in (old, new))
    return True


def _posting(old: Subject, new: Subject) -> Iterator[Change]:
    if old.hypervisor is not None and new.hypervisor is not None:
        for attribute, (place, words) in FACTS.items():
            before, after = getattr(old.hypervisor, attribute), getattr(new.hypervisor, attribute)
            if before != after:
                yield Change("posting", "changed", place, words[before], words[after])
    if old.driver is not None and new.driver is not None and old.driver.name != new.driver.name:
        yield Change("posting", "changed", "the Linux driver that goes with it", old.driver.name, new.driver.name)

# SPDX-License-Identifier: GPL-2.0-or-later
"""A diff as a review mail: what changed, and then who breaks and how."""

import textwrap
from collections.abc import Iterator
from typing import Final

from abi.diff import Change, diff
from abi.lint import Subject

_HEADINGS: Final = {
    "call": "The call",
    "numbers": "Sub-op numbers",
    "structs": "Structs",
    "constants": "Constants",
    "answers": "What is answered",
    "behaviour": "What a call does",
    "defects": "What goes wrong in the code as posted",
    "posting": "Around the interface",
}


def mail(old: Subject, new: Subject, arch: str = "x86-64", width: int = 80) -> str:
    """The diff in plain text, ``width`` columns wide."""
    return "\n".join(_Mail(old, new, arch, width).lines()).rstrip() + "\n"


class _Mail:
    def __init__(self, old: Subject, new: Subject, arch: str, width: int) -> None:
        self.old, self.new, self.arch, self.width = old, new, arch, width
        self.changes = diff(old, new, arch)
        self.names = tuple(s.contract.name if s.contract is not None else s.abi.name for s in (old, new))

    def of(self, *sections: str) -> list[Change]:
        return [change for change in self.changes if change.section in sections]

    def lines(self) -> Iterator[str]:
        before, after = self.names
        yield f"iommu_op {before} -> {after}"
        yield f"  {before}: {self.old.abi.posted}"
        yield f"  {after}: {self.new.abi.posted}"
        yield ""
        yield from self.wrap(self.verdict(), "", "")
        yield ""
        for section, heading in _HEADINGS.items():
            chosen = self.of(section)
            if chosen:
                yield f"{heading} ({self.arch})" if section == "structs" else heading
                yield from getattr(self, f"_{section}", self.plain)(chosen)
                yield ""
        yield from self.consequences()

    def wrap(self, text: str, first: str, later: str) -> list[str]:
        return textwrap.wrap(text, self.width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)

    def talks(self) -> bool:
        """Whether the two sides understand each other's calls at all."""
        a, b = self.old.abi, self.new.abi
        return a.convention is b.convention and a.hypercall == b.hypercall

    def verdict(self) -> str:
        """The change in a sentence or two."""
        before, after = self.names
        if not self.changes:
            return f"{before} and {after} are the same in everything that is recorded here."
        if not self.talks():
            return (
                f"A new interface. A guest built for one cannot talk to a hypervisor built for the other, and "
                f"mostly gets an error at its first call; what follows is for porting from {before} to {after}."
            )
        declared = self.of("numbers", "structs", "constants")
        bytes_moved = [c for c in declared if c.kind not in ("renamed", "respelled") and c.section != "constants"]
        parts = []
        if not declared:
            parts.append("No byte of the interface changed: same call, same numbers, same structs, same constants.")
        elif not bytes_moved:
            parts.append("No byte moved: source files may have to change, binaries need not.")
        else:
            moved = [c.place for c in self.of("numbers") if c.kind == "moved"]
            if moved:
                parts.append(f"The numbers of {len(moved)} sub-ops moved: binaries of the one misbehave on the other.")
            else:
                parts.append("What the two have in common is where it was.")
        answered = self.of("answers", "behaviour")
        if answered:
            parts.append(f"{len(answered)} things are answered or done differently.")
        elif self.old.contract is None or self.new.contract is None:
            unknown = before if self.old.contract is None else after
            parts.append(f"What {unknown} answers is not recorded, so answers are not compared.")
        return " ".join(parts)

    def plain(self, changes: list[Change]) -> Iterator[str]:
        """``place`` on a line of its own, before and after below it."""
        for change in changes:
            yield from self.wrap(change.place, "  ", "    ")
            if change.before and change.after:
                yield from self.wrap(change.before, "      was  ", "           ")
                yield from self.wrap(change.after, "      now  ", "           ")
            else:
                word = "new" if change.after else "gone"
                yield from self.wrap(change.after or change.before, f"      {word:<5}", "           ")

    def _answers(self, changes: list[Change]) -> Iterator[str]:
        """Sub-ops that share a condition and its change are one entry."""
        grouped: dict[tuple[str, str], list[str]] = {}
        for change in changes:
            grouped.setdefault((change.before, change.after), []).append(change.place)
        for (before, after), places in grouped.items():
            by_condition: dict[str, list[str]] = {}
            for place in places:
                subop, colon, condition = place.partition(": ")
                by_condition.setdefault(condition if colon else place, []).append(subop if colon else "")
            for condition, subops in by_condition.items():
                where = ", ".join(s for s in subops if s)
                yield from self.wrap(f"{where}: {condition}" if where else condition, "  ", "    ")
                arrow = f"{before} -> {after}"
                if len(arrow) + 6 <= self.width:
                    yield f"      {arrow}"
                else:
                    yield from self.wrap(before, "      was  ", "           ")
                    yield from self.wrap(after, "      now  ", "           ")

    def _numbers(self, changes: list[Change]) -> Iterator[str]:
        before, after = self.names
        yield f"  {'':<20}{before:>6}{after:>6}"
        for change in changes:
            if change.kind == "moved":
                yield f"  {change.place:<20}{change.before:>6}{change.after:>6}"
            elif change.kind == "changed":
                yield f"  {change.place:<20}{'':>12}   {change.before}, now {change.after}"
            else:
                number, _, meaning = (change.before or change.after).partition(": ")
                columns = f"{number if change.before else '-':>6}{number if change.after else '-':>6}"
                word = "gone" if change.before else "new"
                yield from self.wrap(f"{word}: {meaning}", f"  {change.place:<20}{columns}   ", " " * 37)

    def _structs(self, changes: list[Change]) -> Iterator[str]:
        places = dict.fromkeys(change.place.partition(".")[0] for change in changes)
        for place in places:
            mine = [c for c in changes if c.place.partition(".")[0] == place]
            whole = next((c for c in mine if c.place == place), None)
            yield f"  {place}" if whole is None else f"  {place}: {whole.before}"
            if whole is not None:
                yield f"  {'':<{len(place)}}  now {whole.after}"
            fields = dict.fromkeys(c.place.partition(".")[2] for c in mine if c is not whole)
            for field in fields:
                yield from self.field(field, [c for c in mine if c.place == f"{place}.{field}"])

    def field(self, name: str, changes: list[Change]) -> Iterator[str]:
        words = []
        for change in changes:
            match change.kind:
                case "appeared":
                    words.append(f"new, {change.after}")
                case "vanished":
                    words.append(f"gone, was {change.before}")
                case "moved":
                    words.append(f"{change.before} -> {_short(change.before, change.after)}")
                case "renamed" if change.after != name:
                    words.append(f"{change.before}: {change.after}")
                case "renamed":
                    words.append(f"was called {change.before}")
                case _:
                    words.append(f"was {change.before}, now {change.after}")
        yield from self.wrap("; ".join(words), f"      {name:<14}", " " * 20)

    def _constants(self, changes: list[Change]) -> Iterator[str]:
        for kind, word in (
            ("changed", ""),
            ("renamed", "renamed"),
            ("respelled", "respelled"),
            ("appeared", "new"),
            ("vanished", "gone"),
        ):
            for change in (c for c in changes if c.kind == kind):
                if kind == "renamed" and change.before.startswith("IOMMU"):
                    text = f"{change.before} -> {change.after}"
                elif kind in ("changed", "renamed", "respelled"):
                    text = f"{change.place}: {change.before} -> {change.after}"
                else:
                    text = f"{change.place} = {change.after or change.before}"
                yield from self.wrap(text, f"  {word:<9} " if word else "  ", "            ")

    def consequences(self) -> Iterator[str]:
        before, after = self.names
        yield from self.guest(
            f"A guest built for {before}, on {after}", [(c, c.old_guest) for c in self.changes], f"ported to {after}"
        )
        if before == after:
            return
        yield from self.guest(
            f"A guest built for {after}, on {before}",
            [(c, c.new_guest) for c in self.changes],
            f"taken back to {before}",
        )

    def guest(self, heading: str, told: list[tuple[Change, str]], ported: str) -> Iterator[str]:
        yield heading
        first = [(c, text) for c, text in told if text and (c.section == "call") and c.place != "pages per call"]
        rest = [(c, text) for c, text in told if text and (c, text) not in first]
        for change, text in first:
            yield from self.wrap(f"{change.place}: {text}", "  - ", "    ")
        if first and rest:
            yield f"  and once {ported}:"
        if not first and not rest:
            yield "  - notices nothing that is recorded here"
        grouped: dict[str, list[str]] = {}
        for change, text in rest:
            grouped.setdefault(text, []).append(change.place)
        for text, places in grouped.items():
            said = text.startswith(places[0])
            yield from self.wrap(text if said else f"{_together(places)}: {text}", "  - ", "    ")
        yield ""


def _short(before: str, after: str) -> str:
    """``2 bytes at 0`` as ``at 0`` where the size is the same."""
    return after[after.index("at ") :] if before.split(" at ")[0] == after.split(" at ")[0] else after


def _together(places: list[str]) -> str:
    """Places with a common sub-op or condition, said once."""
    conditions = dict.fromkeys(p.partition(": ")[2] for p in places)
    if len(places) > 1 and len(conditions) == 1 and next(iter(conditions)):
        return f"{', '.join(p.partition(': ')[0] for p in places)}: {next(iter(conditions))}"
    return "; ".join(places)

# SPDX-License-Identifier: GPL-2.0-or-later
"""A finding in words: what it is, every operation with its answer, the state before and after, the walk of hardware."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from fuzz import state
from fuzz.clauses import CLAUSES
from fuzz.program import format_op
from fuzz.run import Finding, runner_for
from fuzz.verbs import DEVICES, Op
from testbed.build import TestBed

STATE_LINES = 60
"""Of a state, as many lines are told; the whole is what ``pviommu replay --at`` shows."""


def clause_prose(clause: str) -> str:
    """What a clause says, whatever level it belongs to."""
    if clause not in CLAUSES:
        from fuzz.driver_run import CLAUSES as OF_DRIVERS

        return OF_DRIVERS.get(clause, "")
    return CLAUSES[clause]


def tell(finding: Finding, names: tuple[str, ...], seen: str, where: Path) -> str:
    """The text of a finding's ``story.txt``; ``where``: its directory."""
    program = finding.program
    runner = runner_for(program.bench)
    before, answers = program.ops[:-1], list[str]()
    runner.run(before, told=answers)
    lines = [f"Broken: {finding.clause}", clause_prose(finding.clause), "", finding.what, ""]
    lines += [f"Catalogue: {', '.join(names)}" if names else "Catalogue: no entry matches; this is new"]
    lines += [f"Key: {' '.join(finding.key)}", f"First seen: {seen}", ""]
    lines += ["What happens before", *_numbered(before, answers), "", "State before", *_state(runner.bed), ""]
    answers = []
    runner = runner_for(program.bench)
    runner.run(program.ops, told=answers)
    last = program.ops[-1:] if program.ops else ()
    said = answers[len(before)] if len(answers) > len(before) else finding.errno
    lines += ["The operation", *(f"  {format_op(operation)}  # {said}" for operation in last), ""]
    lines += ["State after", *_state(runner.bed), ""]
    walks = list(_walks(runner.bed, program.ops))
    if walks:
        lines += ["How hardware gets there", *walks, ""]
    lines += [f"Replay: pviommu replay {where / 'program.txt'}", f"Test: pytest {where}", ""]
    return "\n".join(lines)


def _numbered(ops: tuple[Op, ...], answers: list[str]) -> list[str]:
    answers = [*answers, *["-"] * len(ops)]
    return [f"  {format_op(operation)}  # {answer}" for operation, answer in zip(ops, answers)] or ["  nothing"]


def _state(bed: TestBed) -> list[str]:
    try:
        lines = [f"  {line}" for line in islice(state.overview(bed), STATE_LINES + 1)]
    except Exception as error:  # a hypervisor that corrupted itself may have no state to tell
        return [f"  cannot be told: {type(error).__name__}: {error}"]
    return lines if len(lines) <= STATE_LINES else [*lines[:STATE_LINES], "  ..."]


def _walks(bed: TestBed, ops: tuple[Op, ...]) -> Iterator[str]:
    """The page walk at the last device frame that the program names, by every device that is in a context."""
    at = next((place for operation in reversed(ops) if (place := _place(operation)) is not None), None)
    if at is None:
        return
    for name, device in DEVICES.items():
        found = next((d for d in bed.dom0.devices.values() if int(d.sbdf) == device), None)
        if found is None or found.context is None or not found.context.number or not found.translated:
            continue
        try:
            for line in state.walk(bed, device, at, False):
                yield f"  {line}"
        except Exception as error:  # as above
            yield f"  {name}: cannot be told: {type(error).__name__}: {error}"


def _place(operation: Op) -> int | None:
    """The device frame that an operation is about."""
    verb = operation[0]
    position = {"map": 3, "unmap": 2, "flush": 2, "dma": 2, "lookup": 2}.get(verb)
    if position is not None:
        return min(int(operation[position]), (1 << 36) - 1)
    return int(operation[2]) >> 12 if verb in ("iommu_map", "iommu_unmap", "iova_to_phys") else None

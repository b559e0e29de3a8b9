# SPDX-License-Identifier: GPL-2.0-or-later
"""The prompt of ``pviommu replay --shell``: walk through a program and look around."""

import cmd
from collections.abc import Iterator
from typing import Final

from fuzz import state
from fuzz.program import DEVICES, ProgramError, format_op, parse_op
from fuzz.session import Session


class ReplayShell(cmd.Cmd):
    """Commands of the prompt; a mistake is one line and the prompt stays."""

    intro = "Type help for the commands, quit to leave."

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session: Final = session
        self._prompt()

    # --------------------------------------------------------------------------------------------------- moving

    def do_step(self, arg: str) -> None:
        """step [N]: run the next operation, or the next N."""
        for _ in range(_number(arg or "1")):
            if self._session.position >= len(self._session.ops):
                print("that was the last operation")
                return
            print(f"{self._session.position + 1}: {self._session.step()}")

    def do_run(self, arg: str) -> None:
        """run: go on until a clause breaks or the program ends."""
        session = self._session
        while session.position < len(session.ops):
            step = session.step()
            print(f"{session.position}: {step}")
            if step.broken is not None:
                return

    def do_goto(self, arg: str) -> None:
        """goto N: be where N operations have run; backwards too."""
        position = _number(arg)
        if not 0 <= position <= len(self._session.ops):
            raise ValueError(f"the program has {len(self._session.ops)} operations")
        self._session.goto(position)

    def do_list(self, arg: str) -> None:
        """list: the program, with what has run and what it answered."""
        session = self._session
        for number, step in enumerate(session.steps, 1):
            print(f"{number}: {step}")
        for number, operation in enumerate(session.ops[session.position :], session.position + 1):
            print(f"{number}: {format_op(operation)}")

    def do_op(self, arg: str) -> None:
        """op OPERATION: put an operation of your own here and run it, as: op map ctx=1 frame=ram:9 at=0x400"""
        session = self._session
        operation = parse_op(arg.split() or [""], session.bench)
        if operation[0] == "vcpu" and session.bench.vcpus == 1:
            raise ValueError("the program is of one vCPU")
        session.ops.insert(session.position, operation)
        try:
            print(session.step())
        except ProgramError:  # it cannot be run, and would be in the way of the others
            del session.ops[session.position]
            raise

    # -------------------------------------------------------------------------------------------------- looking

    def do_tables(self, arg: str) -> None:
        """tables [CONTEXT]: the tree of a context, or of all that the guest made."""
        bed = self._session.bed
        if not arg:
            _print(state.contexts(bed))
            for context in state.guest_contexts(bed):
                _print(state.tables(bed, context))
            return
        named = state.context_numbered(bed, _number(arg))
        if named is None:
            raise ValueError(f"there is no context {arg}")
        _print(state.tables(bed, named))

    def do_walk(self, arg: str) -> None:
        """walk DEVICE DFN [w]: how the unit translates a read (or a write) of a device."""
        words = arg.split()
        if len(words) not in (2, 3) or words[0] not in DEVICES:
            raise ValueError(f"walk takes a device ({', '.join(DEVICES)}) and a dfn")
        _print(state.walk(self._session.bed, DEVICES[words[0]], _number(words[1]), words[2:] == ["w"]))

    def do_refs(self, arg: str) -> None:
        """refs [N]: who holds the guest's page ram:N; without N, every page that somebody else holds too."""
        bed = self._session.bed
        if not arg:
            _print(state.references(bed))
            return
        page = _number(arg.removeprefix("ram:"))
        if not 0 <= page < len(bed.mfns):
            raise ValueError(f"the guest has {len(bed.mfns)} pages")
        print(state.reference(bed, page))

    def do_devices(self, arg: str) -> None:
        """devices: which context each device is in."""
        _print(state.devices(self._session.bed))

    def do_log(self, arg: str) -> None:
        """log: Xen's console and the units' counts of faults."""
        _print(state.log(self._session.bed))

    # -------------------------------------------------------------------------------------------------- leaving

    def do_quit(self, arg: str) -> bool:
        """quit: leave."""
        return True

    def do_EOF(self, arg: str) -> bool:
        """The end of the input leaves too."""
        print()
        return True

    # --------------------------------------------------------------------------------------------------- prompt

    def onecmd(self, line: str) -> bool:
        try:
            return bool(super().onecmd(line))
        except (ValueError, ProgramError) as error:
            print(error)
        return False

    def postcmd(self, stop: bool, line: str) -> bool:
        self._prompt()
        return stop

    def emptyline(self) -> bool:
        return False

    def default(self, line: str) -> None:
        print(f"no command {line.split()[0]!r}; help lists them")

    def _prompt(self) -> None:
        session = self._session
        mark = " broken" if session.broken is not None else ""
        self.prompt = f"[{session.position}/{len(session.ops)}{mark}] "


def _number(text: str) -> int:
    """A number, decimal or hexadecimal; ``ValueError`` for anything else."""
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if number < 0:
        raise ValueError(f"{text!r} is not a number")
    return number


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        print(line)

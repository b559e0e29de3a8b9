# SPDX-License-Identifier: GPL-2.0-or-later
"""A program as a C file that a dom0's user space runs through ``/dev/xen/privcmd``.

The program is run here once: every call's struct is written into the file field by field, with context numbers, frames
and devices as what they stand for, and with the answer that the emulator gave.  What happens inside the hypervisor or a
device (DMA, allocation failures, preemption) has no call to make: it is said in the file and when that runs.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from abi.codec import Codec
from abi.errno import errno_name
from abi.model import Convention
from base.units import Sbdf, format_sbdf
from fuzz.program import DEVICES, Op, Program, ProgramError, format_bench, format_op
from fuzz.run import Runner
from fuzz.session import Session
from fuzz.target import Call, Target

TEMPLATE: Final = Path(__file__).with_name("privcmd.c")
_TOLD: Final = ("remote", "progress", "as")
"""Operations that say how the next call is made."""
_INSIDE: Final = "this happens inside the hypervisor, out of reach from here; later answers may differ"
_WHY: Final = {
    "dma": "a device's access has no counterpart in user space",
    "regions": "reserved regions are asked of memory_op, which this file does not do",
    "remove": "taking a page away from dom0 is not done here; later answers may differ",
    **dict.fromkeys(
        ("create_domain", "destroy_domain", "assign", "deassign", "add_device", "remove_device"),
        "this is done by toolstack and platform calls that this file does not make; later answers may differ",
    ),
}
_OTHERS: Final = "this is about a domain that the toolstack would have to make; later answers may differ"
_DEVICE_PARTS: Final = {"segment": " >> 16", "bus": " >> 8 & 0xff", "devfn": " & 0xff"}
_NOWHERE: Final = ("unmapped", "noncanonical")
_EACCES: Final = -13


class _Issued(NamedTuple):
    """A call that a program made."""

    number: int
    name: str
    raw: bytes
    argument: str
    carrier: int | None
    """The domain that remote_cmd takes it to."""
    progress: int
    """What the guest claims that earlier passes of it did."""
    answer: Call | None
    """``None`` if it stopped the hypervisor."""
    domid: int = 0
    """Of the caller."""


class _Recorder:
    """Listens to the calls that a target makes."""

    def __init__(self, target: Target) -> None:
        self.last: _Issued | None = None
        genuine: Callable[..., Call] = target.issue

        def issue(number: int, name: str, raw: bytes, argument: str) -> Call:
            carrier, progress = target.wrapping
            carrier = carrier if name != "remote_cmd" else None
            register = number if carrier is not None else number | progress
            domid = target.caller.domid
            self.last = _Issued(register, name, raw, argument, carrier, progress, None, domid)
            answer = genuine(number, name, raw, argument)
            self.last = self.last._replace(answer=answer)
            return answer

        setattr(target, "issue", issue)  # noqa: B010 -- on the instance


class CProgram:
    """Writes one program down."""

    def __init__(self, program: Program) -> None:
        """``ProgramError`` if the program cannot be run, or is none of hypercalls."""
        self._program: Final = program
        self._session: Final = Session(program)
        runner = self._session.runner
        if type(runner) is not Runner:
            raise ProgramError("only a program of hypercalls on one machine can be exported")
        self._target: Final = runner.target
        self._abi: Final = self._target.abi
        self._recorder: Final = _Recorder(self._target)
        bed = self._target.bed
        self._own: Final = {gfn: page for page, gfn in enumerate(bed.mfns if bed.dom0.pv else range(len(bed.mfns)))}
        """Guest frame number to the page ``ram:N`` that it is."""
        self._ram = 0
        self._contexts = 1
        self._devices: Final[set[str]] = set()
        self._guests: Final[set[int]] = set()

    def text(self) -> str:
        """The file."""
        body = "\n".join(f"\t{line}" if line else "" for line in self._body())
        return (
            TEMPLATE.read_text(encoding="utf-8")
            .replace("@HEAD@", "\n * ".join(self._head()))
            .replace("@CONSTANTS@", "\n".join(self._constants()))
            .replace("@FREE@", "\n".join(self._free()))
            .replace("@PROGRAM@", body)
        )

    def _head(self) -> Iterator[str]:
        yield f"A program of pviommu for iommu_op as in {self._abi.name}, run from dom0's user space."
        yield "Expected answers are those of the emulated hypervisor on"
        yield f"  {format_bench(self._program.bench)}"
        broken = self._session.broken
        if broken is not None:
            yield f"where the operation '{format_op(broken.operation)}' broke"
            yield f"  {_comment(broken.broken)}"

    def _constants(self) -> Iterator[str]:
        yield f"#define HYPERCALL {self._abi.hypercall} /* iommu_op */"
        tagged = self._abi.convention is Convention.UNION
        yield f"#define TAKES_SUBOP {int(not tagged)} /* 1: a sub-op and a pointer to its struct; 0: to a union */"
        yield f"#define RAM_PAGES {max(self._ram, 1)} /* the program's pages ram:0 on */"
        yield f"#define USES_RAM {int(self._ram > 0)}"
        yield f"#define CONTEXTS {self._contexts}"
        yield f"#define CARRIER {self._carrier()}"
        for name in sorted(self._devices):
            home = DEVICES[name]
            yield f'#define {name.upper()} device("PVIOMMU_{name.upper()}", {home:#x}) /* {format_sbdf(Sbdf(home))} */'

    def _carrier(self) -> str:
        """remote_cmd's number, size and fields, for the structs that carry other calls."""
        subop = self._abi.by_name.get("remote_cmd")
        if subop is None or subop.codec is None:
            return "{ 0, 0, { 0, 0 }, { 0, 0 }, { 0, 0 } }"
        places = [subop.codec.present[name] for name in ("domid", "subop", "arg")]
        fields = ", ".join(f"{{ {member.offset}, {member.size} }}" for member in places)
        return f"{{ {subop.number}, {subop.codec.size}, {fields} }}"

    def _body(self) -> Iterator[str]:
        bench = self._program.bench
        if bench.contexts is not None and self._abi.has("init"):
            yield "/* the bench: done before the program; dom0's kernel may have done it already */"
            subop = self._abi.by_name["init"]
            assert subop.codec is not None
            raw = subop.codec.encode(bench.contexts, bench.arena)
            init = _Issued(
                subop.number, "init", raw, "plain", None, 0, Call(subop.number, "init", "plain", raw, 0, raw, 0, None)
            )
            yield from self._call(("init", bench.contexts, bench.arena, "plain", 0), init, _EACCES)
        for operation in self._program.ops:
            self._recorder.last = None
            step = self._session.step()
            issued = self._recorder.last
            yield ""
            if step.broken is not None:
                yield f"/* broken here: {_comment(step.broken)} */"
            if operation[0] == "create_domain":
                self._guests.add(operation[1])
            if issued is not None:
                if issued.domid or issued.carrier in self._guests:
                    yield f'skip("{format_op(operation)}", "{_OTHERS}");'
                else:
                    yield from self._call(operation, issued)
                if issued.answer is None:
                    return
            elif operation[0] not in _TOLD:
                yield f'skip("{format_op(operation)}", "{_WHY.get(str(operation[0]), _INSIDE)}");'

    # -------------------------------------------------------------------------------------------------- one call

    def _call(self, operation: Op, issued: _Issued, also: int | None = None) -> Iterator[str]:
        """Statements for a call; ``also`` is a second answer that will do."""
        place = issued.argument.upper()
        yield f'begin("{format_op(operation)}", {issued.number:#x}, {len(issued.raw)}, {place});'
        codec = self._abi.by_name[issued.name].codec if issued.name else None
        if issued.carrier is not None:
            yield f"remote({issued.carrier}, {issued.progress:#x});"
        if operation[0] == "raw" and issued.raw:
            octets = ", ".join(f"{byte:#04x}" for byte in issued.raw)
            yield f"{{ static const unsigned char bytes[] = {{ {octets} }}; raw(bytes); }}"
        if codec is not None and issued.raw:
            yield from self._fields(operation, issued, codec)
        if issued.answer is None:
            yield "if (daring())"
            yield "\tissue(0, 0);"
            return
        result = issued.answer.result
        yield f"issue({result}, {result if also is None else also}); /* {errno_name(result)} */"
        if codec is not None and issued.raw and issued.argument not in _NOWHERE and also is None:
            yield from self._answers(issued.answer.inner if issued.carrier is not None else issued.answer, codec)

    def _fields(self, operation: Op, issued: _Issued, codec: Codec) -> Iterator[str]:
        values = codec.as_dict(issued.raw)
        as_bytes = operation[0] == "raw"
        device = str(operation[1]) if operation[0] == "attach" and operation[1] != "foreign" else None
        for name, member in codec.present.items():
            value = self._symbol(name, values, codec, device)
            if value is None and not as_bytes:
                value = f"{values[name]:#x}"
            if value is not None:
                yield f"set({member.offset}, {member.size}, {value}); /* {name} */"
        if as_bytes:
            return
        said = codec.encode(*values.values())
        if self._abi.convention is Convention.UNION:
            yield f"set(0, 2, {issued.number:#x}); /* sub-op */"
            said = issued.raw[:2] + said[2:]
        for offset, (wanted, have) in enumerate(zip(issued.raw, said)):
            if wanted != have:
                yield f"set({offset}, 1, {wanted:#x}); /* a byte that belongs to no field */"

    def _symbol(self, name: str, values: dict[str, int], codec: Codec, device: str | None) -> str | None:
        """What a field stands for, if it is a context, a frame or a device."""
        if name == "ctx_no" and name not in codec.out:
            return f"ctx({values[name]})"
        if name == "gfn" and values[name] in self._own:
            first = self._own[values[name]]
            unit = max(values.get("pgsize", 0) >> 12, 1)
            count = min(max(values.get("nr_pages", 1) * unit, 1), len(self._own) - first)
            self._ram = max(self._ram, first + count)
            return f"ram({first}, {count})"
        if device is not None and name in _DEVICE_PARTS:
            self._devices.add(device)
            return device.upper() + _DEVICE_PARTS[name]
        return None

    def _answers(self, call: Call | None, codec: Codec) -> Iterator[str]:
        assert call is not None
        after = codec.as_dict(call.after)
        for name in codec.out:
            member = codec.present.get(name)
            if member is None:
                continue
            at = f"{member.offset}, {member.size}"
            if call.name == "query_capabilities":
                yield f'show("{name}", {at});'
            elif call.name == "alloc_context" and not call.result:
                self._contexts = max(self._contexts, after[name] + 1)
                yield f"expect_context({at}, {after[name]});"
            elif name == "gfn" and not call.result and after[name] in self._own:
                page = self._own[after[name]]
                self._ram = max(self._ram, page + 1)
                yield f'expect("{name}", {at}, ram({page}, 1));'
            else:
                yield f'expect("{name}", {at}, {after[name]:#x});'
        covered = {byte for name in codec.out if (m := codec.present.get(name)) for byte in range(m.offset, m.end)}
        for offset, (before, now) in enumerate(zip(call.before, call.after)):
            if before != now and offset not in covered:
                yield f'expect("byte {offset}", {offset}, 1, {now:#x});'
        yield "rest();"
        if call.name == "free_context" and not call.result:
            yield f"gone({codec.as_dict(call.before)['ctx_no']});"

    def _free(self) -> Iterator[str]:
        """The function that frees a context, for tidying up."""
        subop = self._abi.by_name["free_context"]
        codec = subop.codec
        assert codec is not None
        yield "static void free_context(uint64_t number)"
        yield "{"
        yield f"\tsubop = {subop.number:#x};"
        yield f"\tsize = {codec.size};"
        if self._abi.convention is Convention.UNION:
            yield f"\tput(0, 2, {subop.number:#x});"
        for name, value in (("ctx_no", "number"), ("flags", f"{self._abi.free_reattach_default:#x}")):
            member = codec.present[name]
            yield f"\tput({member.offset}, {member.size}, {value});"
        yield "}"


def _comment(text: Any) -> str:
    return str(text).replace("*/", "* /")

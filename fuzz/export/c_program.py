# SPDX-License-Identifier: GPL-2.0-or-later
"""A program as a C file that a dom0's user space runs through ``/dev/xen/privcmd``.

The program is run here once: every call's struct is written into the file field by field, with context numbers, frames
and devices as what they stand for, and with the answer that the emulator gave.  What happens inside the hypervisor or a
device (DMA, allocation failures, preemption) has no call to make: it is said in the file and when that runs.

Of a program of driver level it is the calls that the guest's driver made which are written down.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from abi.codec import Codec
from abi.errno import errno_name
from abi.model import Convention
from base.units import Sbdf, format_sbdf
from fuzz.driver_run import DriverRunner
from fuzz.export.recorded import Issued, RegionsAsked, Tap, listen
from fuzz.machines import MACHINES, USUAL
from fuzz.program import DEVICES, Program, ProgramError, format_bench, format_op
from fuzz.run import Runner
from fuzz.session import Session, Step
from fuzz.target import Call

TEMPLATE: Final = Path(__file__).with_name("privcmd.c")
_TOLD: Final = ("remote", "progress", "as")
"""Operations that say how the next call is made."""
_INSIDE: Final = "this happens inside the hypervisor, out of reach from here; later answers may differ"
_WHY: Final = {
    "dma": "a device's access has no counterpart in user space",
    "remove": "taking a page away from dom0 is not done here; later answers may differ",
    **dict.fromkeys(
        ("create_domain", "destroy_domain", "assign", "deassign", "add_device", "remove_device"),
        "this is done by toolstack and platform calls that this file does not make; later answers may differ",
    ),
}
_MOVED: Final = "the device stays where it is here; later answers may differ"
_WHY_DRIVER: Final = {"dma": _WHY["dma"], "fault": _INSIDE, "plug": _MOVED, "unplug": _MOVED}
"""Operations of driver level that do something beside hypercalls."""
_NAMES: Final = {number: name for name, number in DEVICES.items() if name != "foreign"}
_DRIVERS: Final = "These are the hypercalls that the guest's driver made in a program of driver level"
_OTHERS: Final = "this is about a domain that the toolstack would have to make; later answers may differ"
_DEVICE_PARTS: Final = {"segment": " >> 16", "bus": " >> 8 & 0xff", "devfn": " & 0xff"}
_NOWHERE: Final = ("unmapped", "noncanonical")
_EACCES: Final = -13


class CProgram:
    """Writes one program down."""

    def __init__(self, program: Program) -> None:
        """``ProgramError`` if the program cannot be run, or runs on two machines or vCPUs."""
        self._program: Final = program
        self._session: Final = Session(program)
        runner = self._session.runner
        if type(runner) not in (Runner, DriverRunner):
            raise ProgramError("only a program that runs on one machine, on one vCPU, can be exported")
        if MACHINES[program.bench.machine].code_32:
            raise ProgramError("C is for 64-bit callers, the program's are of 32 bits")
        bed = runner.bed
        self._abi: Final = runner.abi
        self._heard: Final[list[Issued]] = []
        """The call of the operation that runs, at hypercall level."""
        if isinstance(runner, Runner):
            listen(runner.target, self._hear)
        self._tap: Final = Tap(bed)
        self._own: Final = {gfn: page for page, gfn in enumerate(bed.mfns if bed.dom0.pv else range(len(bed.mfns)))}
        """Guest frame number to the page ``ram:N`` that it is."""
        self._ram = 0
        self._contexts = 1
        self._devices: Final[set[str]] = set()
        self._guests: Final[set[int]] = set()
        self._of_driver: Final = isinstance(runner, DriverRunner)
        self._asks_regions = False

    def _hear(self, issued: Issued) -> None:
        self._heard[:] = [issued]

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
        if self._of_driver:
            yield f"{_DRIVERS}."
        if self._asks_regions:
            yield "Reserved regions are expected to be those of the emulated machine; others are no fault of Xen's."
        yield "Expected answers are those of the emulated hypervisor on"
        yield f"  {_comment(format_bench(self._program.bench))}"
        machine = self._program.bench.machine
        if machine != USUAL:
            yield f"which is no usual machine ({MACHINES[machine].prose}): others may answer otherwise,"
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
        if self._of_driver:
            yield f'puts("# {_DRIVERS}");'
        else:
            yield from self._bench()
        for _ in self._program.ops:
            self._heard.clear()
            self._tap.calls.clear()
            step = self._session.step()
            yield ""
            if step.broken is not None:
                yield f"/* broken here: {_comment(step.broken)} */"
            yield from self._driver_operation(step) if self._of_driver else self._operation(step)
            calls = (*self._heard, *self._tap.calls)
            if any((call.result if isinstance(call, RegionsAsked) else call.answer) is None for call in calls):
                return

    def _bench(self) -> Iterator[str]:
        bench = self._program.bench
        if bench.contexts is None or not self._abi.has("init"):
            return
        yield "/* the bench: done before the program; dom0's kernel may have done it already */"
        subop = self._abi.by_name["init"]
        assert subop.codec is not None
        raw = subop.codec.encode(bench.contexts, bench.arena)
        call = Call(subop.number, "init", "plain", raw, 0, raw, 0, None)
        init = Issued(subop.number, "init", raw, "plain", None, 0, call)
        yield from self._call(format_op(("init", bench.contexts, bench.arena, "plain", 0)), init, also=_EACCES)

    def _operation(self, step: Step) -> Iterator[str]:
        """Statements for an operation of hypercall level."""
        operation = step.operation
        text, verb = format_op(operation), str(operation[0])
        if verb == "create_domain":
            self._guests.add(operation[1])
        for call in self._heard:
            if call.domid or call.carrier in self._guests:
                yield f'skip("{text}", "{_OTHERS}");'
                continue
            device = str(operation[1]) if verb == "attach" and operation[1] != "foreign" else None
            yield from self._call(text, call, device=device, as_bytes=verb == "raw")
        for asked in self._tap.calls:
            assert isinstance(asked, RegionsAsked)  # what else the target issues does not come by there
            yield from self._regions(text, asked)
        if not self._heard and not self._tap.calls and verb not in _TOLD:
            yield f'skip("{text}", "{_WHY.get(verb, _INSIDE)}");'

    def _driver_operation(self, step: Step) -> Iterator[str]:
        """Statements for the calls that the driver made in an operation of driver level."""
        text, verb = format_op(step.operation), str(step.operation[0])
        yield f"/* {_comment(text)} */"
        for call in self._tap.calls:
            if isinstance(call, RegionsAsked):
                yield from self._regions(f"{text}: reserved_device_memory_map", call)
                continue
            codec = self._abi.by_name[call.name].codec if call.name else None
            values = codec.as_dict(call.raw) if codec is not None else {}
            device = None
            if call.name == "reattach_device":
                sbdf = values["segment"] << 16 | values["bus"] << 8 | values["devfn"]
                device = _NAMES.get(sbdf)
            also = _EACCES if call.name == "init" else None  # the kernel of a dom0 may have done it already
            yield from self._call(f"{text}: {_shown(call.name, values)}", call, device=device, also=also)
        if verb in _WHY_DRIVER:
            yield f'skip("{text}", "{_WHY_DRIVER[verb]}");'

    # -------------------------------------------------------------------------------------------------- one call

    def _call(
        self, text: str, issued: Issued, *, device: str | None = None, as_bytes: bool = False, also: int | None = None
    ) -> Iterator[str]:
        """Statements for a call: of ``device``, with all of its struct ``as_bytes`` came; ``also`` is a second answer
        that will do."""
        place = issued.argument.upper()
        yield f'begin("{text}", {issued.number:#x}, {len(issued.raw)}, {place});'
        codec = self._abi.by_name[issued.name].codec if issued.name else None
        if issued.carrier is not None:
            yield f"remote({issued.carrier}, {issued.progress:#x});"
        if as_bytes and issued.raw:
            octets = ", ".join(f"{byte:#04x}" for byte in issued.raw)
            yield f"{{ static const unsigned char bytes[] = {{ {octets} }}; raw(bytes); }}"
        if codec is not None and issued.raw:
            yield from self._fields(issued, codec, device, as_bytes)
        if issued.answer is None:
            yield "if (daring())"
            yield "\tissue(0, 0);"
            return
        result = issued.answer.result
        yield f"issue({result}, {result if also is None else also}); /* {errno_name(result)} */"
        if codec is not None and issued.raw and issued.argument not in _NOWHERE and also is None:
            yield from self._answers(issued.answer.inner if issued.carrier is not None else issued.answer, codec)

    def _regions(self, text: str, asked: RegionsAsked) -> Iterator[str]:
        """Statements for a question about reserved regions."""
        self._asks_regions = True
        name = _NAMES.get(asked.device)
        if name is not None:
            self._devices.add(name)
        device = name.upper() if name is not None else f"{asked.device:#x}"
        yield f'begin_regions("{text}", {asked.flags:#x}, {asked.slots}, {device});'
        if asked.result is None:
            yield "if (daring())"
            yield "\tissue_regions(0);"
            return
        yield f"issue_regions({asked.result}); /* {errno_name(asked.result)} */"
        for entry, (first, pages) in enumerate(asked.regions):
            yield f"expect_region({entry}, {first:#x}, {pages:#x});"
        yield f"rest_of_regions({asked.needed});"

    def _fields(self, issued: Issued, codec: Codec, device: str | None, as_bytes: bool) -> Iterator[str]:
        values = codec.as_dict(issued.raw)
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


def _shown(name: str, fields: dict[str, int]) -> str:
    """A call that a driver made, in words."""
    return " ".join((name, *(f"{field}={value:#x}" for field, value in fields.items())))


def _comment(text: Any) -> str:
    return str(text).replace("*/", "* /").replace("/*", "/ *")

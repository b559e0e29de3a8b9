# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu abi``: the posted ABI versions as data, for whoever designs or reviews them.

Exit status: 0 clean, 1 a difference or finding, 2 wrong usage.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from abi import memory_op, versions
from abi.declare import ARCHES
from abi.model import Abi, SubOp

if TYPE_CHECKING:
    from abi.compiler import Compiler
    from abi.lint import Subject

FOUND: Final = 1

app = typer.Typer(
    name="abi",
    help="Every posted version of the PV-IOMMU ABI: show, compare, lint, check against C headers.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class AbiUsageError(typer.BadParameter):
    """A wrong argument, in one line."""

    def format_message(self) -> str:
        return self.message


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    json = "json"


FormatOption = Annotated[Format, typer.Option("--format", "-f", help="For people, or for machines.")]
ArchOption = Annotated[str, typer.Option("--arch", help="x86-64, i386 or arm64.")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="A version of 'pviommu abi list'.")]


def abi_called(name: str) -> Abi:
    try:
        return versions.get(name)
    except versions.UnknownVersion as error:
        raise AbiUsageError(str(error)) from None


def arch_called(name: str) -> str:
    if name not in ARCHES:
        raise AbiUsageError(f"no architecture is called {name!r}; there are {', '.join(ARCHES)}")
    return name


def subop_called(abi: Abi, name: str) -> SubOp:
    """A sub-op by canonical name, C name or number."""
    for subop in abi.subops.values():
        if name in (subop.name, subop.c_name, str(subop.number)) or name == subop.c_name.partition("_")[2]:
            return subop
    if name in (memory_op.SUBOP.name, memory_op.SUBOP.c_name) and abi.has("reattach_device"):
        return memory_op.SUBOP
    known = ", ".join(f"{s.number} {s.name}" for s in abi.subops.values())
    raise AbiUsageError(f"{abi.name} has no sub-op {name!r}; it has {known}")


def show_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AbiUsageError(f"cannot write {path}: {error.strerror}") from None


@app.command("list")
def list_versions(format: FormatOption = Format.table) -> None:
    """The versions, oldest first."""
    from pviommu import abi_json, abi_view

    if format is Format.json:
        show_json([abi_json.summary(versions.get(name)) for name in (*versions.names(), *versions.experimental())])
    else:
        abi_view.print_list()


@app.command()
def show(
    version: Version,
    subop: Annotated[str | None, typer.Option(help="Only this sub-op: its name or number.")] = None,
    arch: ArchOption = "x86-64",
    svg: Annotated[Path | None, typer.Option(help="Write the byte diagrams as a picture to this file.")] = None,
    format: FormatOption = Format.table,
) -> None:
    """A version byte by byte: convention, sub-ops, constants, structs with their holes."""
    from pviommu import abi_json, abi_view

    abi = abi_called(version)
    arch_called(arch)
    only = subop_called(abi, subop) if subop is not None else None
    if svg is not None:
        from abi.diagram import svg as picture

        chosen = abi_view.pictures(abi, arch, only)
        write_text(svg, picture(chosen, f"iommu_op {abi.name} on {arch}"))
    if format is Format.json:
        show_json(abi_json.version(abi, arch, only))
    else:
        abi_view.print_version(abi, arch, only)


@app.command()
def header(
    version: Version,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it here instead of printing it.")] = None,
) -> None:
    """A self-contained C header of a version, with every size and offset asserted."""
    from abi.header import write_header

    text = write_header(abi_called(version))
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)


@app.command()
def check(
    version: Version,
    header: Annotated[Path, typer.Argument(metavar="HEADER.h", help="The C header to hold against the version.")],
    include: Annotated[
        list[Path] | None, typer.Option("-I", "--include", help="Where it finds what it includes; may be repeated.")
    ] = None,
    define: Annotated[list[str] | None, typer.Option("-D", "--define", help="NAME or NAME=VALUE.")] = None,
    arch: Annotated[str, typer.Option("--arch", help="x86-64, i386, arm64, or all that have a compiler here.")] = "all",
    every: Annotated[bool, typer.Option("--all", help="List what agrees as well.")] = False,
    format: FormatOption = Format.table,
) -> None:
    """Compile probes against a C header and report what agrees, differs, is missing or is extra."""
    from abi.check import check as compare
    from abi.check import defined_name
    from abi.compiler import CompileError
    from pviommu import abi_json, abi_view

    abi = abi_called(version)
    if not header.is_file():
        raise AbiUsageError(f"cannot read {header}: {'not a file' if header.exists() else 'no such file'}")
    for folder in include or []:
        if not folder.is_dir():
            raise AbiUsageError(f"-I {folder}: no such directory")
    for text in define or []:
        if not defined_name(text):
            raise AbiUsageError(f"-D {text!r} is not NAME or NAME=VALUE")
    compilers, absent = _compilers(arch)
    reports = []
    for compiler in compilers:
        try:
            reports.append(compare(abi, header, compiler, include or [], define or []))
        except CompileError as error:
            raise AbiUsageError(f"{header} does not compile with {compiler}:\n{error}") from None
    if format is Format.json:
        show_json([abi_json.report(report) for report in reports])
    else:
        abi_view.print_reports(reports, absent, every)
    if any(report.differences for report in reports):
        raise typer.Exit(FOUND)


def _compilers(arch: str) -> "tuple[list[Compiler], list[str]]":
    from abi.compiler import CompilerMissing, find

    found, absent = [], []
    for name in ARCHES if arch == "all" else [arch_called(arch)]:
        try:
            found.append(find(name))
        except CompilerMissing as error:
            absent.append(str(error))
    if not found:
        raise AbiUsageError("; ".join(absent))
    return found, absent


@app.command()
def decode(
    version: Version,
    subop: Annotated[str, typer.Argument(metavar="SUBOP", help="Name or number of the sub-op.")],
    data: Annotated[str, typer.Argument(metavar="HEX", help="The struct's bytes; blanks and 0x are ignored.")],
    arch: ArchOption = "x86-64",
    format: FormatOption = Format.table,
) -> None:
    """What the bytes of a sub-op's struct say."""
    from pviommu import abi_json, abi_view

    abi = abi_called(version)
    row = subop_called(abi, subop)
    codec = row.codec_on(arch_called(arch))
    if codec is None:
        raise AbiUsageError(f"{row.name} takes no argument in {abi.name}")
    try:
        raw = bytes.fromhex(data.replace("0x", "").replace(",", " ").replace("_", ""))
    except ValueError:
        raise AbiUsageError(f"{data[:40]!r} is not hexadecimal: an even number of digits 0-9, a-f") from None
    if len(raw) != codec.size:
        raise AbiUsageError(f"{row.name}'s struct is {codec.size} bytes on {arch}, {len(raw)} were given")
    if format is Format.json:
        show_json(abi_json.decoded(abi, row, codec, raw))
    else:
        abi_view.print_decoded(abi, row, codec, raw)


@app.command()
def encode(
    version: Version,
    subop: Annotated[str, typer.Argument(metavar="SUBOP", help="Name or number of the sub-op.")],
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="Numbers, or constants of the header joined by |."),
    ] = None,
    arch: ArchOption = "x86-64",
    format: FormatOption = Format.table,
) -> None:
    """The bytes of a sub-op's struct; fields not given take their default, or 0."""
    from pviommu import abi_json

    abi = abi_called(version)
    row = subop_called(abi, subop)
    codec = row.codec_on(arch_called(arch))
    if codec is None:
        raise AbiUsageError(f"{row.name} takes no argument in {abi.name}")
    values = dict(zip(codec.fields, codec.defaults))
    by_path = {member.plain: name for name, member in codec.present.items()}
    given_before: set[str] = set()
    for given in fields or []:
        said, equals, text = given.partition("=")
        name = by_path.get(said, said)
        if not equals or name not in codec.present:
            raise AbiUsageError(f"{given!r} is not FIELD=VALUE; fields of {row.name} are {', '.join(by_path)}")
        if name in given_before:
            raise AbiUsageError(f"{said} is given twice")
        given_before.add(name)
        values[name] = _value(abi, row, said, codec.present[name].plain, text)
        member = codec.present[name]
        if not fits(values[name], member.size, member.code.islower()):
            raise AbiUsageError(f"{said}={text}: the field is {8 * member.size} bits wide")
    raw = codec.encode(*values.values())
    if format is Format.json:
        show_json(abi_json.decoded(abi, row, codec, raw))
    else:
        typer.echo(raw.hex())


def fits(value: int, size: int, signed: bool) -> bool:
    """Whether ``size`` bytes hold ``value``."""
    low, high = (-(1 << 8 * size - 1), 1 << 8 * size - 1) if signed else (0, 1 << 8 * size)
    return low <= value < high


def _value(abi: Abi, row: SubOp, said: str, field: str, text: str) -> int:
    """The number that ``text`` is for a field: numbers, and constants that belong to that field, joined by |."""
    from abi.reading import constants_for

    known = constants_for(abi, row, field)
    total = 0
    for part in text.split("|"):
        word = part.strip()
        try:
            total |= int(word, 0)
            continue
        except ValueError:
            pass
        meant = {name: value for name, value in known.items() if word == name or (word and name.endswith(f"_{word}"))}
        if word in meant:
            meant = {word: meant[word]}
        if not meant:
            names = ", ".join(known)
            what = f"one of {names}" if names else "a constant that goes there; it takes numbers"
            raise AbiUsageError(f"{said}={text}: {word!r} is neither a number nor {what}")
        if len(set(meant.values())) > 1:
            raise AbiUsageError(f"{said}={text}: {word!r} is ambiguous: {', '.join(meant)}")
        total |= next(iter(meant.values()))
    return total


@app.command()
def errors(
    version: Version,
    subop: Annotated[str | None, typer.Option(help="Only this sub-op: its name or number.")] = None,
    format: FormatOption = Format.table,
) -> None:
    """What each sub-op answers under which condition, in the order of the tests."""
    from abi.contract import NoContract
    from abi.contract_fixed import EVERY, contract_called
    from pviommu import abi_json, abi_view

    if version not in EVERY:
        abi_called(version)
    try:
        contract = contract_called(version)
    except NoContract as error:
        raise AbiUsageError(str(error)) from None
    only = subop_called(contract.abi, subop) if subop is not None else None
    if format is Format.json:
        show_json(abi_json.contract(contract, only))
    else:
        abi_view.print_contract(contract, only)


@app.command()
def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The version to compare from.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The version to compare with.")],
    arch: ArchOption = "x86-64",
    format: FormatOption = Format.table,
) -> None:
    """What changed between two versions, and whom it breaks; v7-fixed and v3-fixed are known as well."""
    from abi.diff import diff as compare
    from abi.diff_mail import mail
    from pviommu import abi_findings, abi_json, abi_view

    one, other = _subject(old), _subject(new)
    arch_called(arch)
    changes = compare(one, other, arch)
    if format is Format.json:
        show_json(abi_json.changes(old, new, arch, changes))
    else:
        abi_findings.print_mail(mail(one, other, arch, abi_view.console().width))
    if changes:
        raise typer.Exit(FOUND)


@app.command()
def lint(
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="A version of 'pviommu abi list', v3-fixed or v7-fixed.")
    ] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="Only header, contract, hypervisor or driver; may be repeated.")
    ] = None,
    rule: Annotated[list[str] | None, typer.Option(help="Only this rule; may be repeated.")] = None,
    rules: Annotated[bool, typer.Option("--rules", help="List the rules instead.")] = False,
    format: FormatOption = Format.table,
) -> None:
    """What is wrong with a version: in its header, in its answers, and in what was posted with it."""
    from abi import lint as linter
    from pviommu import abi_findings, abi_json

    known = linter.rules()
    for name in scope or []:
        if name not in linter.SCOPES:
            raise AbiUsageError(f"no scope is called {name!r}; there are {', '.join(linter.SCOPES)}")
    for name in rule or []:
        if name not in known:
            raise AbiUsageError(f"no rule is called {name!r}; 'pviommu abi lint --rules' lists them")
    if rules:
        if format is Format.json:
            show_json([abi_json.rule(r) for r in known.values()])
        else:
            abi_findings.print_rules(list(known.values()))
        return
    if version is None:
        raise AbiUsageError("which version? 'pviommu abi list' lists them")
    found = linter.lint(_subject(version))
    found = [f for f in found if (not scope or f.scope in scope) and (not rule or f.rule in rule)]
    if format is Format.json:
        show_json(abi_json.findings(version, found))
    else:
        abi_findings.print_findings(version, found)
    if found:
        raise typer.Exit(FOUND)


def _subject(name: str) -> "Subject":
    from abi.lint import subject_called

    try:
        return subject_called(name)
    except versions.UnknownVersion as error:
        raise AbiUsageError(str(error)) from None

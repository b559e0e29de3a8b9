# SPDX-License-Identifier: GPL-2.0-or-later
"""The names that a preprocessed C header declares: struct members, enumerators, object-like macros.

Only names are read here, to find what a header has *besides* what a version says; every number comes from the
compiler.  So this reads declarations, not expressions: it follows braces and skips what it does not need.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

_TOKEN: Final = re.compile(r'[A-Za-z_]\w*|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|\d[\w.]*|[^\s\w]')
_LINE: Final = re.compile(r'^#\s*(?:line\s+)?(\d+)\s+"((?:\\.|[^"\\])*)"')
_DEFINE: Final = re.compile(r"^#define\s+([A-Za-z_]\w*)(\(?)(.*)$")
_NOISE: Final = frozenset({"__extension__", "const", "volatile", "signed", "unsigned", "__signed__"})
_CLOSING: Final = {"{": "}", "(": ")", "[": "]"}


@dataclass
class Aggregate:
    """A struct or union: its members in order, each a name and the aggregate that it is, if it is one."""

    kind: str
    tag: str
    members: list[tuple[str, "Aggregate | None", str]] = field(default_factory=list)
    """(name, "" if anonymous; its own body, if written in place; the tag or typedef that names its type)."""
    file: str = ""


@dataclass
class Declarations:
    """What one preprocessed unit declares."""

    structs: dict[str, Aggregate] = field(default_factory=dict)
    typedefs: dict[str, Aggregate] = field(default_factory=dict)
    enumerators: dict[str, str] = field(default_factory=dict)
    """Enumerator -> file."""
    enum_tags: dict[str, str] = field(default_factory=dict)
    """Enumerator -> tag of its enum, "" for an anonymous one."""
    macros: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Object-like macro -> (file, body)."""

    def leaves(self, tag: str) -> list[str]:
        """Paths of the integers of ``struct tag``, as C writes them; empty for an unknown tag."""
        found = self.structs.get(tag)
        return list(self._leaves(found, "", 0)) if found else []

    def _leaves(self, aggregate: Aggregate, prefix: str, depth: int) -> Iterator[str]:
        for name, body, named in aggregate.members:
            inner = body or self.structs.get(named) or self.typedefs.get(named)
            path = f"{prefix}{name}"
            if inner is not None and depth < 8:
                yield from self._leaves(inner, f"{path}." if name else prefix, depth + 1)
            elif name:
                yield path


def read(preprocessed: str) -> Declarations:
    """Read a unit as ``cc -E -dD`` prints it."""
    result = Declarations()
    tokens: list[tuple[str, str]] = []
    file = ""
    for line in preprocessed.splitlines():
        marker = _LINE.match(line)
        if marker:
            file = marker.group(2)
        elif line.startswith("#"):
            macro = _DEFINE.match(line)
            if macro and not macro.group(2):
                result.macros[macro.group(1)] = (file, macro.group(3).strip())
        else:
            tokens += [(token, file) for token in _TOKEN.findall(line)]
    _Reader(tokens, result).unit()
    return result


class _Reader:
    def __init__(self, tokens: list[tuple[str, str]], result: Declarations) -> None:
        self._tokens: Final = tokens
        self._result: Final = result
        self._at = 0

    def _peek(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _skip_group(self) -> None:
        """Skip a bracketed group whose opening bracket is next."""
        stack = [_CLOSING[self._next()]]
        while stack and self._at < len(self._tokens):
            token = self._next()
            if token in _CLOSING:
                stack.append(_CLOSING[token])
            elif token == stack[-1]:
                stack.pop()

    def _skip_attributes(self) -> None:
        while self._peek() in ("__attribute__", "__attribute", "_Alignas", "__declspec"):
            self._next()
            if self._peek() == "(":
                self._skip_group()

    def unit(self) -> None:
        while self._at < len(self._tokens):
            before = self._at
            self._declaration()
            self._at = max(self._at, before + 1)

    def _declaration(self) -> None:
        """One declaration at file scope, up to its ``;`` or the end of a function's body."""
        typedef = False
        aggregate: Aggregate | None = None
        last = ""
        while self._at < len(self._tokens):
            token = self._peek()
            if token == ";":
                self._next()
                if typedef and aggregate is not None and last:
                    self._result.typedefs[last] = aggregate
                return
            if token == "typedef":
                typedef = True
                self._next()
            elif token in ("struct", "union"):
                aggregate = self._aggregate()[0] or aggregate
            elif token == "enum":
                self._enum()
            elif token == "{":
                self._skip_group()
                if not typedef and last != "=":
                    return
            elif token in ("(", "["):
                self._skip_group()
            else:
                last = self._next()

    def _aggregate(self) -> tuple[Aggregate | None, str]:
        """``struct tag { ... }`` or ``struct tag``: (its body, if there is one; its tag)."""
        kind = self._next()
        self._skip_attributes()
        tag = ""
        file = self._tokens[self._at][1] if self._at < len(self._tokens) else ""
        if self._peek() != "{":
            tag = self._next()
            self._skip_attributes()
        if self._peek() != "{":
            return self._result.structs.get(tag), tag
        self._next()
        found = Aggregate(kind, tag, [], file)
        while self._peek() not in ("}", ""):
            self._members(found)
        self._next()
        self._skip_attributes()
        if tag:
            self._result.structs[tag] = found
        return found, tag

    def _members(self, into: Aggregate) -> None:
        """One member declaration with all its declarators."""
        body: Aggregate | None = None
        named = ""
        words: list[str] = []
        names: list[str] = []
        while self._peek() not in (";", ""):
            token = self._peek()
            if token in ("struct", "union"):
                body, tag = self._aggregate()
                named = tag
                words.append("")
            elif token == "enum":
                self._enum()
                words.append("")
            elif token in ("__attribute__", "__attribute", "_Alignas"):
                self._skip_attributes()
            elif token == "[" or token == "(":
                self._skip_group()
            elif token == ":":
                self._next()
                self._next()
            elif token == ",":
                self._next()
                names.append(words.pop() if words else "")
            elif token == "*":
                self._next()
                body, named = None, "*"
            elif token in _NOISE:
                self._next()
                words.append("") if not words else None
            else:
                words.append(self._next())
        self._next()
        if len(words) > 1:
            names.append(words.pop())
        elif not names:
            names.append("")
        if not named and words:
            named = words[-1]
        for name in names:
            into.members.append((name, body, named))

    def _enum(self) -> None:
        self._next()
        self._skip_attributes()
        tag = self._next() if self._peek() not in ("{", "") else ""
        if self._peek() != "{":
            return
        self._next()
        while self._peek() not in ("}", ""):
            name, file = self._tokens[self._at]
            self._next()
            self._result.enumerators[name] = file
            self._result.enum_tags[name] = tag
            while self._peek() not in (",", "}", ""):
                if self._peek() in _CLOSING:
                    self._skip_group()
                else:
                    self._next()
            if self._peek() == ",":
                self._next()
        self._next()

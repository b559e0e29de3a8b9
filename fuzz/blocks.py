# SPDX-License-Identifier: GPL-2.0-or-later
"""Which blocks of the hypervisor's code a program ran through, at the price of one byte stored per block.

Functions that are already there get their code exchanged for the same code with a store at the start of each block:
no trace function slows everything down, and nobody else's behaviour changes.  :meth:`Blocks.remove` puts the old code
back.
"""

import ast
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Final

_NAME: Final = "__blocks__"
_Where = tuple[str, str, int]
"""(file, qualified name, first line) of a function."""


class Blocks:
    """One byte for each block of the modules that are loaded now: 1 once it has run."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self.hits: Final = bytearray()
        self.places: Final[list[tuple[str, int]]] = []
        """By number of the block: (module, line)."""
        self._old: Final[list[tuple[FunctionType, CodeType]]] = []
        fresh: dict[_Where, CodeType | None] = {}
        for name, module in sorted(sys.modules.items()):
            if name.partition(".")[0] in packages and isinstance(module, ModuleType) and module.__file__:
                for code in _functions(self._compile(name, module)):
                    where = _where(code)
                    fresh[where] = None if where in fresh else code  # two lambdas of one line: neither
        self._exchange(fresh)
        self._clear: Final = bytes(len(self.hits))

    def _compile(self, name: str, module: ModuleType) -> CodeType:
        assert module.__file__ is not None
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                for body in _bodies(node):
                    self._mark(name, body)
        vars(module)[_NAME] = self.hits
        return compile(tree, module.__file__, "exec")

    def _mark(self, name: str, body: list[ast.stmt]) -> None:
        first = body[0]
        (store,) = ast.parse(f"{_NAME}[{len(self.hits)}] = 1").body
        for node in ast.walk(store):
            if isinstance(node, ast.expr | ast.stmt):
                ast.copy_location(node, first)
        body.insert(1 if _is_docstring(first) else 0, store)
        self.hits.append(0)
        self.places.append((name, first.lineno))

    def _exchange(self, fresh: dict[_Where, CodeType | None]) -> None:
        for function in gc.get_objects():
            if type(function) is FunctionType:
                old = function.__code__
                new = fresh.get(_where(old))
                if new is not None and new.co_freevars == old.co_freevars:
                    self._old.append((function, old))
                    function.__code__ = new

    def clear(self) -> None:
        """Nothing has run."""
        self.hits[:] = self._clear

    def taken(self) -> int:
        """What has run since :meth:`clear`, as a number with a one in the byte of each block."""
        return int.from_bytes(self.hits, "little")

    def remove(self) -> None:
        """Put the code back as it was."""
        for function, code in self._old:
            function.__code__ = code
        self._old.clear()


def _where(code: CodeType) -> _Where:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def _functions(code: CodeType) -> Iterator[CodeType]:
    """The code of every function in ``code``, however deep."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _functions(constant)


def _bodies(function: ast.FunctionDef) -> Iterator[list[ast.stmt]]:
    """The lists of statements that a function may run or not, without those of nested functions."""
    pending: list[ast.AST] = [function]
    while pending:
        node = pending.pop()
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list) and body:
                yield body
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case) and not isinstance(
                child, ast.FunctionDef | ast.ClassDef
            ):
                pending.append(child)


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )

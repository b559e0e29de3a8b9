# SPDX-License-Identifier: GPL-2.0-or-later
"""The linter: rules over an ABI version, its contract and what was posted around it.

A rule is a function over a :class:`Subject` that yields places and problems.  Rules look at declarations, tables and
facts, never at a version's name, so a version that mended something no longer has the finding, and a new version gets
whatever it deserves.  The rules are in :mod:`abi.lint_header` (what the header says), :mod:`abi.lint_contract` (what is
answered), :mod:`abi.lint_lifecycle` (what a call leaves behind), and :mod:`abi.lint_posting` (hypervisor and Linux
driver of the same posting).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from abi.contract import Contract, NoContract
from abi.contract_fixed import EVERY, contract_called
from abi.model import Abi
from abi.posting import DRIVERS, HYPERVISORS, Driver, Hypervisor
from abi.versions import get

SCOPES: Final = ("header", "contract", "hypervisor", "driver")
SEVERITIES: Final = ("error", "warning", "note")
"""error: wrong data or a wrong answer can result; warning: asks for trouble; note: a choice to be made knowingly."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What the rules look at.  Parts that are not known are ``None``, and rules about them have nothing to say."""

    abi: Abi
    contract: Contract | None = None
    hypervisor: Hypervisor | None = None
    driver: Driver | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    rule: str
    severity: str
    scope: str
    place: str
    problem: str
    mend: str
    asked: str
    """Who asked for it, or the defect that it led to."""


Check = Callable[[Subject], Iterator[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: ``check`` yields (place, problem)."""

    name: str
    scope: str
    severity: str
    asked: str
    mend: str
    check: Check

    @property
    def doc(self) -> str:
        return (self.check.__doc__ or "").strip().partition("\n")[0]

    def run(self, subject: Subject) -> Iterator[Finding]:
        for place, problem in self.check(subject):
            yield Finding(self.name, self.severity, self.scope, place, problem, self.mend, self.asked)


_RULES: Final[dict[str, Rule]] = {}


def rule(name: str, scope: str, severity: str, asked: str, mend: str) -> Callable[[Check], Check]:
    """Register a rule under ``name``."""

    def register(check: Check) -> Check:
        if name in _RULES or scope not in SCOPES or severity not in SEVERITIES:
            raise ValueError(f"lint rule {name}: bad or used twice")
        _RULES[name] = Rule(name, scope, severity, asked, mend, check)
        return check

    return register


def rules() -> Mapping[str, Rule]:
    """Every rule by name, in the order of the scopes."""
    from abi import lint_contract, lint_header, lint_lifecycle, lint_posting

    assert lint_contract and lint_header and lint_lifecycle and lint_posting
    return {r.name: r for scope in SCOPES for r in _RULES.values() if r.scope == scope}


def subject_called(name: str) -> Subject:
    """Everything that is known of a version, or of a ``-fixed`` profile (which no posting goes with)."""
    if name in EVERY and EVERY[name].fixed:
        return Subject(EVERY[name].abi, EVERY[name])
    abi = get(name)
    try:
        contract = contract_called(abi.name)
    except NoContract:
        contract = None
    return Subject(abi, contract, HYPERVISORS.get(abi.name), DRIVERS.get(abi.name))


def lint(subject: Subject) -> list[Finding]:
    """Every finding, scope by scope, the severe ones first within each."""
    found = [finding for r in rules().values() for finding in r.run(subject)]
    return sorted(found, key=lambda f: (SCOPES.index(f.scope), SEVERITIES.index(f.severity)))

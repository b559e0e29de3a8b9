# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu conformance``: hold a backend, or a model that somebody else wrote, against the suites.

Exit status 0: every clause that was asked holds; 1: one fails; 2: wrong usage, or the model is not installed.
"""

import json
from typing import Annotated

import typer

from hypervisor.defects.catalogue import DEFECTS
from oracle.conformance import MODELS
from oracle.process import ModelMissing
from pviommu.options import Defects, Json, UsageError, make_config, switch_on
from testbed import backends
from testbed.conformance import SUITES, check_backend
from testbed.conformance.faulty import with_defects
from testbed.conformance.iommufd import check_iommufd
from testbed.conformance.profile import check_profile, expected_failures
from testbed.iommufd_machine import MOCK

_IOMMUFD = "iommufd"
"""The suite that is about what a program gets, whatever is underneath."""
_PROFILE = "v7-fixed"
"""Whose hypervisor --defect is switched on in, unless another is named."""
_SUITES_OF_MODELS = ("hardware", "pair")


def conformance(
    name: Annotated[
        str, typer.Argument(help=f"A registered backend, a model (qemu-vtd, qemu-smmuv3), or {MOCK} for {_IOMMUFD}.")
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(SUITES)}, or {_IOMMUFD} over its tables; may be repeated."),
    ] = None,
    profile: Annotated[
        str, typer.Option(help="Ask a hypervisor of this profile over the backend instead: a clause for each defect.")
    ] = "",
    defect: Defects = "",
    as_json: Json = False,
) -> None:
    """Hold a backend against the conformance suites; models pass the same ones.

    With --profile: exit status 0 if exactly those clauses fail that the profile's own defects, and those of --defect,
    explain.  Without it the suites see of --defect what is in the driver.
    """
    if profile:
        _ask_profile(profile, name, defect, as_json)
    ids = switch_on(defect, _PROFILE, name)
    wrong = [one for one in suite or () if one not in (*SUITES, _IOMMUFD)]
    if wrong:
        raise UsageError(f"unknown suite {wrong[0]!r}; there are: {', '.join((*SUITES, _IOMMUFD))}")
    named = [one for one in suite or () if one != _IOMMUFD]
    over_iommufd = _IOMMUFD in (suite or ())
    if (over_iommufd and name in MODELS) or (name == MOCK and (named or not over_iommufd)):
        raise UsageError(f"{name} has no such suite")
    try:
        if name == MOCK:
            results = list(check_iommufd(MOCK))
        elif name in MODELS:
            backend, elsewhere = MODELS[name]()
            results = list(check_backend(backend, *(suite or _SUITES_OF_MODELS), elsewhere=elsewhere))
        elif name in backends.names():
            results = (
                list(
                    check_backend(
                        with_defects(backends.get(name), ids, _PROFILE) if ids else backends.get(name), *named
                    )
                )
                if named or not over_iommufd
                else []
            )
            results += check_iommufd(name) if over_iommufd else []
        else:
            raise UsageError(f"unknown backend {name!r}; there are: {', '.join((*backends.names(), *MODELS))}")
    except ModelMissing as missing:
        raise UsageError(str(missing)) from None
    if as_json:
        print(json.dumps([result._asdict() for result in results], indent=2))
    else:
        for result in results:
            print(result)
    raise typer.Exit(1 if any(result.failure is not None for result in results) else 0)


def _ask_profile(profile: str, backend: str, defect: str, as_json: bool) -> None:
    """Every clause of the profile's suite, and whether its defects explain the outcome."""
    ids = make_config(backend, profile, None, 0, defect).defects
    explained = expected_failures(profile, backend, ids)
    good, rows = True, []
    for result in check_profile(profile, backend, ids):
        failed = result.failure is not None
        good = good and failed == (result.clause in explained)
        said = "holds" if not failed else f"fails, explained: {DEFECTS[result.clause].title}"
        if failed != (result.clause in explained):
            said = f"{'FAILS' if failed else 'HOLDS'}, not as its defects say: {DEFECTS[result.clause].title}"
        rows.append({"clause": result.clause, "failed": failed, "explained": result.clause in explained})
        if not as_json:
            print(f"{result.clause:4} {said}")
    if as_json:
        print(json.dumps({"profile": profile, "backend": backend, "clauses": rows}, indent=2))
    raise typer.Exit(0 if good else 1)

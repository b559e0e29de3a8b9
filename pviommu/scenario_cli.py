# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu scenario``: mailing-list threads as runs, step by step.

Exit status: 0 the run ended as merged code does (or showed the flaw it is there to show), 1 it did not, 2 wrong usage.
"""

from dataclasses import replace
from typing import Annotated, Final

import typer

from guest_driver.defects.iommufd import named
from guest_driver.iommufd.release import LATEST, RELEASES, Release, as_released, release
from hypervisor.defects.catalogue import DEFECTS
from pviommu.options import UsageError, switch_on
from testbed.scenarios import catalogue
from testbed.scenarios.fail_nth import fail_nth
from testbed.scenarios.step import Scenario, Step

FOUND: Final = 1

app = typer.Typer(
    name="scenario", help="Mailing-list threads as runs, step by step.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def list_scenarios() -> None:
    """Every scenario, where it runs, and the thread it comes from."""
    for scenario in catalogue.SCENARIOS.values():
        print(f"{scenario.name:18} {scenario.title}  [{', '.join(scenario.places)}]")
        print(f"{'':18} {scenario.thread}")


@app.command("run")
def run_scenario(
    name: Annotated[str, typer.Argument(help="A name of 'pviommu scenario list', or 'all'.")],
    backend: Annotated[
        str, typer.Option("--backend", help=f"{', '.join(catalogue.PLACES)}, or all; the first where it runs.")
    ] = "",
    kernel: Annotated[str, typer.Option("--kernel", help=f"Whose iommufd: {', '.join(RELEASES)}.")] = LATEST,
    released: Annotated[
        bool, typer.Option("--as-released", help="With the faults that kernel was released with.")
    ] = False,
    defect: Annotated[
        str,
        typer.Option("--defect", help="With single faults, upstream's or the hypervisor's, as L8.2,T1."),
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="Verdicts only.")] = False,
) -> None:
    """Run one scenario and print each step, the state after it, and the verdict."""
    try:
        chosen = list(catalogue.SCENARIOS.values()) if name == "all" else [catalogue.get(name)]
        parts = [part.strip() for part in defect.split(",") if part.strip()]
        words = frozenset(named(part).word for part in parts if part not in DEFECTS)
        made = as_released(kernel) if released else release(kernel)
        made = replace(made, defects=made.defects | words)
    except ValueError as error:
        raise UsageError(str(error)) from None
    switch_on(",".join(part for part in parts if part in DEFECTS), "v7-fixed")
    _known(backend)
    good = True
    for scenario in chosen:
        places = _places(scenario, backend, alone=name != "all")
        if _too_old(scenario, made, alone=name != "all"):
            continue
        for place in places:
            faults = f" with {', '.join(sorted(made.defects))}" if made.defects else ""
            print(f"{scenario.name} on {place}, Linux {made.name}{faults}")
            steps = list(scenario.steps(place, made))
            if not quiet:
                print("\n".join(step_lines(steps)))
            good = _verdict(scenario, steps) and good
    if not good:
        raise typer.Exit(FOUND)


def _places(scenario: Scenario, backend: str, alone: bool) -> tuple[str, ...]:
    """Where to run it; a line for each place where its subject cannot exist.  ``alone``: it was asked for by name."""
    for place, reason in scenario.absent.items():
        if backend in (place, "all"):
            print(f"{scenario.name} on {place}: not there: {reason}\n")
    if backend == "all":
        return scenario.places
    if not backend or backend in scenario.places:
        return (backend or scenario.places[0],)
    if alone and backend not in scenario.absent:
        raise UsageError(f"{scenario.name} runs on {', '.join(scenario.places)} only")
    return ()


def _too_old(scenario: Scenario, made: Release, alone: bool) -> bool:
    if alone and made.version < scenario.since:
        raise UsageError(f"{scenario.name} needs Linux {'.'.join(map(str, scenario.since))} or later")
    return made.version < scenario.since


def _known(backend: str) -> None:
    if backend not in (*catalogue.PLACES, "all", ""):
        raise UsageError(f"unknown backend {backend!r}; there are: {', '.join(catalogue.PLACES)}, all")


def step_lines(steps: list[Step]) -> list[str]:
    """Each step with its answer and the state after it, marked where it is not as merged."""
    lines = []
    for number, step in enumerate(steps, 1):
        mark = "" if step.ok else "   <--"
        comment = f"   ({step.comment})" if step.comment else ""
        lines.append(f"{number:3}. {step.text}: {step.answer}{comment}{mark}")
        lines.extend(f"       {line}" for line in step.state)
    return lines


def _verdict(scenario: Scenario, steps: list[Step]) -> bool:
    wrong = [step.text for step in steps if not step.ok]
    good = bool(wrong) == scenario.shows_flaw
    if good:
        print(f"verdict: {'flaw shown: ' if scenario.shows_flaw else ''}{scenario.verdict}\n")
    elif wrong:
        print(f"verdict: NOT as merged: {'; '.join(wrong)}\n")
    else:
        print("verdict: NOT as expected: the flaw did not show\n")
    return good


@app.command("fail-nth")
def fail_each_allocation(
    name: Annotated[str, typer.Argument(help="A name of 'pviommu scenario list', or 'all'.")],
    backend: Annotated[
        str, typer.Option("--backend", help=f"{', '.join(catalogue.PLACES)}, or all; the first where it runs.")
    ] = "",
    kernel: Annotated[str, typer.Option("--kernel", help=f"Whose iommufd: {', '.join(RELEASES)}.")] = LATEST,
    stride: Annotated[int, typer.Option("--stride", min=1, help="Only every so-manieth allocation.")] = 1,
) -> None:
    """Let every allocation of a scenario fail once: nothing may be left, and trying again has to work."""
    try:
        chosen = list(catalogue.SCENARIOS.values()) if name == "all" else [catalogue.get(name)]
        made = release(kernel)
    except ValueError as error:
        raise UsageError(str(error)) from None
    _known(backend)
    bad = False
    for scenario in chosen:
        places = _places(scenario, backend, alone=name != "all")
        if _too_old(scenario, made, alone=name != "all"):
            continue
        for place in places:
            report = fail_nth(scenario, place, made, stride)
            print(f"{scenario.name} on {place}: {report.allocations} allocations, {len(report.found)} left something")
            for line in report.found:
                print(f"  {line}")
            bad = bad or bool(report.found)
    if bad:
        raise typer.Exit(FOUND)

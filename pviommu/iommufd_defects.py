# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu defects run`` for an upstream fault of iommufd: its scenario with the fault and without."""

import json

from guest_driver.defects.iommufd import IommufdDefect
from guest_driver.iommufd.release import release
from pviommu.scenario_cli import step_lines
from testbed.iommufd_machine import MOCK
from testbed.scenarios import catalogue


def run_iommufd_defect(defect: IommufdDefect, as_json: bool) -> int:
    """0 if a step goes wrong with the fault that goes well without it, 1 if not."""
    scenario = catalogue.get(defect.scenario)
    kernel = defect.kernels[-1]
    runs = {
        f"Linux {kernel} with {defect.word}": list(scenario.steps(MOCK, release(kernel, frozenset({defect.word})))),
        f"Linux {kernel}, mended": list(scenario.steps(MOCK, release(kernel))),
    }
    wrong, sound = ({step.text for step in steps if not step.ok} for steps in runs.values())
    differs = bool(wrong - sound)
    if as_json:
        lines = {title: step_lines(steps) for title, steps in runs.items()}
        print(json.dumps({"id": defect.id, "scenario": scenario.name, "differs": differs, **lines}, indent=2))
        return 0 if differs else 1
    print(f"{defect.id}: {defect.title}\nseen: {defect.seen}")
    for title, steps in runs.items():
        print(f"\n{title}, scenario {scenario.name}:")
        for line in step_lines(steps):
            print(f"  {line}")
    return 0 if differs else 1

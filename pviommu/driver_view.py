# SPDX-License-Identifier: GPL-2.0-or-later
"""Validation reports as text for a cover letter, as dictionaries, and as JUnit XML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from xml.etree import ElementTree

from abi.errno import errno_name
from guest_driver import drivers
from hypervisor.defects import catalogue
from testbed.validate.laboratory import Finding
from testbed.validate.partial import CAUSES, Outcome
from testbed.validate.program import text as program_text
from testbed.validate.specified import specified
from testbed.validate.validate import Report, property_text


def report_lines(report: Report) -> Iterator[str]:
    """The report, line by line."""
    guests = ", ".join(report.guests)
    yield f"xen-iommu driver {report.driver} on profile {report.profile} ({report.backend}; guests: {guests})"
    if report.declined:
        yield f"declined: the driver does not speak this ABI (-{errno_name(report.declined)})"
        return
    yield ""
    for area in report.areas:
        outcome = "holds" if not area.failed else f"{area.failed} of {area.programs} fail"
        yield f"  {area.title + ' ':.<58} {area.programs:4} programs  {outcome}"
    yield ""
    if not report.own:
        yield "nothing was found that is the driver's"
    for number, finding in enumerate(report.own, 1):
        yield from _finding_lines(number, finding)
    if report.others:
        yield ""
        yield "the reference driver shows these too, so they are the hypervisor's:"
        for number, finding in enumerate(report.others, 1):
            yield from _finding_lines(number, finding)
            said = specified(finding.defects, finding.key.invariant)
            yield (
                f"     as specified: {said}" if said else "     not specified: no known fault of a hypervisor does that"
            )
    if report.defects:
        yield ""
        yield "defects behind the findings:"
        for name in report.defects:
            defect = drivers.DEFECTS[name]
            also = f" ({', '.join(defect.also)})" if defect.also else ""
            yield f"  {name}{also}: {defect.title}"
            yield f"      {defect.source}"
    if report.not_seen:
        yield ""
        yield "known defects that this profile does not show:"
        for name in report.not_seen:
            yield f"  {name}: {drivers.DEFECTS[name].title}"
            yield f"      {drivers.DEFECTS[name].source}"


def _finding_lines(number: int, finding: Finding) -> Iterator[str]:
    behind = (" or " if finding.either else " with ").join(finding.defects) or "no known defect"
    if finding.hypervisor:
        behind = f"the hypervisor's {behind}"
    yield f"{number:3}. {property_text(finding)}"
    yield f"     {finding.what}"
    yield f"     behind it: {behind}; {finding.guest} guest, {len(finding.program)} calls:"
    for line in program_text(finding.program).splitlines():
        yield f"         {line}"


def report_as_dict(report: Report) -> dict[str, Any]:
    """Everything a report says."""
    return {
        "driver": report.driver,
        "profile": report.profile,
        "backend": report.backend,
        "guests": list(report.guests),
        "declined": errno_name(report.declined) if report.declined else None,
        "clean": report.clean,
        "areas": [
            {"name": a.name, "title": a.title, "programs": a.programs, "calls": a.calls, "failed": a.failed}
            for a in report.areas
        ],
        "findings": [
            {
                "property": finding.key.invariant,
                "text": property_text(finding),
                "call": finding.key.call,
                "area": finding.area,
                "guest": finding.guest,
                "what": finding.what,
                "program": program_text(finding.program).splitlines(),
                "defects": finding.defects,
                "either": finding.either,
                "hypervisor": finding.hypervisor,
                "specified": specified(finding.defects, finding.key.invariant) if finding.hypervisor else None,
            }
            for finding in report.findings
        ],
        "defects": {name: drivers.DEFECTS[name].title for name in report.defects},
        "hypervisor_defects": {name: catalogue.get(name).title for name in report.hypervisor_defects},
        "not_seen": report.not_seen,
    }


def report_as_junit(reports: Iterable[Report]) -> str:
    """One suite per profile; a case for each area that holds and one for each of the driver's findings."""
    root = ElementTree.Element("testsuites")
    for report in reports:
        own = [*report.own, *report.unspecified]
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=f"{report.driver}.{report.profile}.{report.backend}",
            tests=str(len(own) + len(report.areas) if not report.declined else 1),
            failures=str(len(own) + sum(bool(area.failed) for area in report.areas)),
            skipped=str(int(bool(report.declined))),
        )
        if report.declined:
            case = ElementTree.SubElement(suite, "testcase", classname=report.driver, name="start")
            ElementTree.SubElement(case, "skipped", message=f"declined (-{errno_name(report.declined)})")
            continue
        for area in report.areas:
            case = ElementTree.SubElement(suite, "testcase", classname=f"{report.driver}.{area.name}", name=area.title)
            if area.failed:
                ElementTree.SubElement(case, "failure", message=f"{area.failed} of {area.programs} programs fail")
        for finding in own:
            name = f"{finding.key.invariant} after {finding.key.call} ({finding.guest})"
            case = ElementTree.SubElement(suite, "testcase", classname=f"{report.driver}.{finding.area}", name=name)
            failure = ElementTree.SubElement(case, "failure", message=finding.what, type=" ".join(finding.defects))
            failure.text = f"{property_text(finding)}\n{program_text(finding.program)}\n"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


_WIDTHS = (8, 6, 10, 8, 9, 15, 11)
_HEADS = ("position", "told", "believes", "mapped", "reached", "hypercall", "who knows")


def outcome_lines(driver: str, profile: str, guest: str, outcomes: list[Outcome]) -> Iterator[str]:
    """The partial-unmap report: one table for each cause."""
    pages = outcomes[0].pages if outcomes else 0
    yield f"unmap of {pages} pages, driver {driver} on profile {profile}, {guest} guest"
    yield "  told: pages that iommu_unmap reported; believes: pages for which iova_to_phys has an answer;"
    yield "  mapped: pages in the hypervisor's table; reached: pages that the device's DMA gets to"
    for cause in dict.fromkeys(outcome.cause for outcome in outcomes):
        yield ""
        yield f"{cause}: {CAUSES[cause]}"
        yield "  " + "".join(f"{head:>{width}}" for head, width in zip(_HEADS, _WIDTHS))
        for outcome in outcomes:
            if outcome.cause != cause:
                continue
            cells = (
                f"k={outcome.k}",
                outcome.told,
                outcome.believed,
                outcome.mapped,
                outcome.reached,
                "-" if outcome.errno.startswith("died") else outcome.errno,
                outcome.noticed,
            )
            died = outcome.errno.startswith("died")
            note = outcome.errno if died else "" if outcome.honest else "what the guest believes is wrong"
            wrong = f"   <-- {note}" if note else ""
            yield "  " + "".join(f"{cell!s:>{width}}" for cell, width in zip(cells, _WIDTHS)) + wrong


def outcome_as_dict(outcome: Outcome) -> dict[str, Any]:
    """One position of the partial-unmap report."""
    names = ("cause", "k", "pages", "mapped_before", "told", "believed", "mapped", "reached", "errno", "logged")
    return {name: getattr(outcome, name) for name in names} | {"noticed": outcome.noticed, "honest": outcome.honest}

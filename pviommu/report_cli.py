# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu report``: a campaign as one HTML page, and as JUnit XML."""

from pathlib import Path
from typing import Annotated

import typer

from pviommu.options import UsageError, check_writable


def report(
    directory: Annotated[Path, typer.Argument(help="Directory of a campaign, as 'pviommu fuzz --corpus' made it.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The page.  [default: DIR/report.html]")] = None,
) -> None:
    """Write a campaign's report: one page that needs no network, and JUnit XML beside it.

    Throughput, operations by answer, time to each finding, and every finding with the tables before and after.
    """
    from fuzz.report.campaign_data import read_campaign

    try:
        from fuzz.report.junit import write_junit
        from fuzz.report.page import write_page
    except ModuleNotFoundError as error:
        raise UsageError(f"a report needs {error.name}: python -m pip install -e '.[report]'") from None
    page = output or directory / "report.html"
    try:
        data = read_campaign(directory)
    except ValueError as error:
        raise UsageError(str(error)) from None
    check_writable(page, page.with_suffix(".xml"))
    write_page(data, page)
    write_junit(data, page.with_suffix(".xml"))
    print(f"{page}: {len(data.findings)} findings; {page.with_suffix('.xml')}")

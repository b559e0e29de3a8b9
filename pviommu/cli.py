# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands; :mod:`pviommu.__main__` runs them and turns what goes wrong into a line and an exit status."""

import typer

from pviommu.abi_cli import app as abi_app
from pviommu.conformance_cli import conformance
from pviommu.defects_cli import app as defects_app
from pviommu.driver_cli import app as driver_app
from pviommu.explore_cli import explore
from pviommu.fuzz_cli import fuzz
from pviommu.golden_cli import golden
from pviommu.hunt_cli import hunt
from pviommu.invariants_cli import invariants
from pviommu.oracle_cli import app as oracle_app
from pviommu.program_cli import export, replay, shrink
from pviommu.report_cli import report
from pviommu.run_cli import run
from pviommu.scenario_cli import app as scenario_app
from pviommu.serve_cli import serve_iommufd
from pviommu.state_cli import dump, walk
from pviommu.sweep_cli import sweep

app = typer.Typer(
    name="pviommu",
    help="Hypervisor-side emulator and guest-driver test bed for Xen's paravirtual IOMMU (iommu_op).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run)
app.command()(walk)
app.command()(dump)
app.command()(golden)
app.command()(fuzz)
app.command()(hunt)
app.command()(replay)
app.command()(shrink)
app.command()(export)
app.command()(sweep)
app.command()(explore)
app.command()(report)
app.command("serve-iommufd")(serve_iommufd)
app.command()(invariants)
app.command()(conformance)
app.add_typer(abi_app, name="abi")
app.add_typer(defects_app, name="defects")
app.add_typer(driver_app, name="driver")
app.add_typer(oracle_app, name="oracle")
app.add_typer(scenario_app, name="scenario")

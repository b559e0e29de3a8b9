# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line.  Exit status: 0 clean, 1 a fault was found, 2 wrong usage, 3 a fault of this program."""

import os
import sys
from typing import Final

import typer
from typer.exceptions import TyperException

from pviommu.abi_cli import app as abi_app
from pviommu.driver_cli import app as driver_app
from pviommu.oracle_cli import app as oracle_app
from pviommu.run_cli import run
from pviommu.state_cli import dump, walk

CLEAN: Final = 0
FOUND: Final = 1
USAGE: Final = 2
INTERNAL: Final = 3
INTERRUPTED: Final = 130

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
app.add_typer(abi_app, name="abi")
app.add_typer(driver_app, name="driver")
app.add_typer(oracle_app, name="oracle")


def main() -> None:
    """Entry point of the ``pviommu`` command: errors end in one line, never in a traceback.

    ``PVIOMMU_TRACEBACK=1`` in the environment shows the traceback of an internal error after all.
    """
    try:
        status = app(standalone_mode=False)
    except typer.Exit as stop:
        status = stop.exit_code
    except typer.Abort:
        print("pviommu: interrupted", file=sys.stderr)
        status = INTERRUPTED
    except TyperException as error:
        print(f"pviommu: {error.format_message()}", file=sys.stderr)
        status = USAGE
    except KeyboardInterrupt:
        print("pviommu: interrupted", file=sys.stderr)
        status = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = CLEAN
    except Exception as error:
        if os.environ.get("PVIOMMU_TRACEBACK"):
            raise
        print(
            f"pviommu: internal error: {type(error).__name__}: {error} "
            "(PVIOMMU_TRACEBACK=1 shows where; please report it with the command line)",
            file=sys.stderr,
        )
        status = INTERNAL
    sys.exit(status if isinstance(status, int) else CLEAN)

# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands; :mod:`pviommu.__main__` runs them and turns what goes wrong into a line and an exit status.

A command's module is imported when that command is asked for, so that none pays for what the others need.  The help of
all commands, and the search for what a misspelt one meant, import them all.
"""

from importlib import import_module, metadata
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

HOMES: Final = {
    "run": "run_cli:run",
    "walk": "state_cli:walk",
    "dump": "state_cli:dump",
    "golden": "golden_cli:golden",
    "fuzz": "fuzz_cli:fuzz",
    "hunt": "hunt_cli:hunt",
    "replay": "program_cli:replay",
    "shrink": "program_cli:shrink",
    "export": "program_cli:export",
    "sweep": "sweep_cli:sweep",
    "explore": "explore_cli:explore",
    "report": "report_cli:report",
    "serve-iommufd": "serve_cli:serve_iommufd",
    "invariants": "invariants_cli:invariants",
    "conformance": "conformance_cli:conformance",
    "abi": "abi_cli:app",
    "defects": "defects_cli:app",
    "driver": "driver_cli:app",
    "oracle": "oracle_cli:app",
    "scenario": "scenario_cli:app",
}
"""Where each command is: module in this package, and the function or group of commands in it."""


class Commands(TyperGroup):
    """The commands of :data:`HOMES`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(HOMES)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | TyperGroup | None:
        for name in [cmd_name] if cmd_name in HOMES else HOMES:
            if name not in self.commands:
                self.add_command(_load(name), name)
        found = self.commands.get(cmd_name)
        assert found is None or isinstance(found, TyperCommand | TyperGroup)
        return found


def _plain(cls: type[TyperGroup] | None = None) -> typer.Typer:
    return typer.Typer(
        cls=cls,
        name="pviommu",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def _load(name: str) -> TyperCommand | TyperGroup:
    """Import a command and make it what a group has in its place."""
    module, _, attribute = HOMES[name].partition(":")
    found = getattr(import_module(f"pviommu.{module}"), attribute)
    group = _plain()
    if isinstance(found, typer.Typer):
        group.add_typer(found, name=name)
    else:
        group.command(name)(found)
    command = get_group(group).commands[name]
    assert isinstance(command, TyperCommand | TyperGroup)
    return command


app = _plain(Commands)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"pviommu {metadata.version('pviommu')}")
        raise typer.Exit


@app.callback()
def pviommu(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hypervisor-side emulator and guest-driver test bed for Xen's paravirtual IOMMU (iommu_op)."""

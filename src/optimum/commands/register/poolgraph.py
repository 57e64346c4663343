"""``optimum-cli export poolgraph``: optimum's command line loads every file of this folder.

The folder is a namespace package that optimum shares with its plugins: it must not have an ``__init__.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from poolgraph.cli import run_guarded
from poolgraph.cli_export import EXPORT_COMMAND, EXPORT_OPTIONS, run_export


class PoolgraphExportCommand(BaseOptimumCLICommand):
    """The export of poolgraph with optimum's names for where it reads and writes."""

    COMMAND = CommandInfo(name="poolgraph", help=f"poolgraph: {EXPORT_COMMAND.help}.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Add the options of ``poolgraph export`` to the command's parser."""
        parser.add_argument("-m", "--model", metavar="MODEL", required=True, help="a checkpoint folder or a hub id")
        parser.add_argument("output", metavar="OUTPUT", type=Path, help="the artifact to make")
        for option in EXPORT_OPTIONS:
            option.add_to(parser)

    def run(self) -> None:
        """Export, and exit with the code of ``poolgraph export`` where it is not 0."""
        args = self.args
        code = run_guarded(lambda: run_export(args))
        if code:
            raise SystemExit(code)


REGISTER_COMMANDS = [(PoolgraphExportCommand, ExportCommand)]
"""What optimum registers: each command and the one that it belongs to."""

"""What concerns one start of the trainer and not the job: never part of a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COMPLETIONS = {"bash": "shtab-bash", "zsh": "shtab-zsh", "tcsh": "shtab-tcsh", "jsonschema": "jsonschema"}
"""What is printed, by jsonargparse's name for it."""


@dataclass
class Launch:
    """How this start was asked for."""

    dry_run: bool = False
    """Look at everything, write nothing, train nothing."""
    world_size: int | None = None
    """Processes of the run that the dry run is of; None: those of one replica of the model."""
    elsewhere: bool = False
    """The run will start on another machine: what this one lacks does not count."""

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add the options to `parser`, which sets the fields of this object as it reads them."""
        group = parser.add_argument_group(
            "Dry run", "one process, without torchrun: whether the run would start, and what it would read"
        )
        group.add_argument(
            "--dry_run", nargs=0, action=_Set, launch=self, help="exit status 0 only if the run would start"
        )
        group.add_argument(
            "--world_size", type=int, metavar="N", action=_Set, launch=self,
            help="processes that the run will have (default: those of one replica of the model)",
        )  # fmt: skip
        group.add_argument(
            "--elsewhere", nargs=0, action=_Set, launch=self,
            help="the run will start on another machine: what this one lacks is told, and does not count",
        )  # fmt: skip

        parser.add_argument(
            "--print_completion", choices=COMPLETIONS, action=_PrintCompletion,
            help="print what completes the command in a shell, or the configuration in an editor, and exit",
        )  # fmt: skip

    def problems(self) -> list[str]:
        """Options that say nothing without --dry_run, and a number of processes that cannot be."""
        if self.dry_run and self.world_size is not None and self.world_size < 1:
            return [f"--world_size: {self.world_size} is not positive; give the number of processes"]
        if self.dry_run:
            return []
        given = {"--world_size": self.world_size is not None, "--elsewhere": self.elsewhere}
        return [f"{option}: only for --dry_run; add that, or drop it" for option, is_given in given.items() if is_given]


class _Set(argparse.Action):
    """Sets a field of a `Launch`: nothing appears in the parser's namespace, nor in what it prints of it."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, launch: Launch, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, **options)
        self._launch, self._field = launch, dest

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(self._launch, self._field, True if self.nargs == 0 else values)


class _PrintCompletion(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(parser.get_completion_script(COMPLETIONS[values]))
        argparse.ArgumentParser.exit(parser, 0)

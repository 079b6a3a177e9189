"""Read every byte of checkpoints, and compare it with what was written. Exit status 1 where one is damaged."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_synE.checkpoint.layout import checkpoint_directories, resolve, resume_notes
from megatron_synE.command_line import ToolParser, quiet_megatron, run_tool


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True,
                        help="a step_XXXXXXXX directory, or the folder of a run: then the one it would resume from")
    parser.add_argument("--all", action="store_true", help="all checkpoints of the folder, not only that one")
    parser.add_argument("--values", action="store_true", help="also unpack the tensors, and look for NaN and infinity")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """One line for each checkpoint; returns the exit status."""
    return run_tool("verify_checkpoint", lambda: run(parse_arguments(argv)))


def run(arguments: argparse.Namespace) -> int:
    """Verify what was asked for; 1 where a checkpoint is damaged."""
    quiet_megatron()
    if arguments.all:
        directories = checkpoint_directories(arguments.checkpoint)
        if not directories:
            raise ValueError(f"--checkpoint: {arguments.checkpoint} holds no step_XXXXXXXX directory")
    else:
        directories = [resolve(arguments.checkpoint)]
        for note in resume_notes(arguments.checkpoint):
            print(f"note     {note}")
    return max([verify_one(directory, arguments.values) for directory in directories])


def verify_one(directory: Path, values: bool) -> int:
    """Print what is found; 1 where it is damage."""
    from megatron_synE.runtime.transformer_engine import hide_unusable_transformer_engine

    hide_unusable_transformer_engine()
    from megatron_synE.checkpoint.files import FileList
    from megatron_synE.checkpoint.verify import verify

    start = time.perf_counter()
    try:
        num_bytes = verify(directory, values=values)
        seconds = time.perf_counter() - start
        how = "" if FileList(directory).has_checksums else "; has no checksums, only sizes and names were compared"
    except (ValueError, OSError) as error:
        print(f"DAMAGED  {directory}  {error}", flush=True)
        return 1
    rate = num_bytes / seconds / 1e9
    print(f"sound    {directory}  {num_bytes / 1e9:.2f} GB in {seconds:.1f} s ({rate:.2f} GB/s){how}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

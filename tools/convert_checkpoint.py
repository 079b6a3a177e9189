"""Hugging Face Llama ⇄ checkpoint of ours.

    python tools/convert_checkpoint.py import --hf-dir H --checkpoint C
    python tools/convert_checkpoint.py export --checkpoint C --hf-dir H

C is a directory of checkpoints; an export takes its latest, or the step directory that is given. No more than one file
of the model is in memory at a time. A command that was killed goes on from the files it had finished, when given again.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

TOKENIZER_DIRECTORY = "tokenizer"
DTYPES = ("bfloat16", "float16", "float32")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size_bytes(text: str) -> int:
    """`5GB` → 5000000000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)?", text.strip().upper())
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 5GB or 500MB")
    return int(float(match[1]) * UNITS[match[2] or ""])


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line → namespace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (("import", "Hugging Face → ours"), ("export", "ours → Hugging Face")):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("--hf-dir", type=Path, required=True, help="directory of the Hugging Face model")
        command.add_argument("--checkpoint", type=Path, required=True, help="directory of our checkpoints")
        command.add_argument("--dtype", choices=DTYPES, help="format of the weights written; as they are by default")
        command.add_argument("--tokenizer-dir", type=Path, help="where the tokenizer's files are")
    commands.choices["export"].add_argument("--max-shard-size", type=size_bytes, default=size_bytes("5GB"))
    return parser.parse_args(arguments)


def import_model(hf_dir: Path, checkpoint: Path, dtype: str | None, tokenizer_dir: Path | None) -> Path:
    """Write the model as step 0, weights only, and keep its tokenizer's files beside it."""
    import torch

    from megatron_synE.checkpoint import find_latest
    from megatron_synE.checkpoint.hf.config import CONFIG_FILE, architecture_from_hf
    from megatron_synE.checkpoint.hf.exporting import copy_tokenizer
    from megatron_synE.checkpoint.hf.importing import identity_of, whole_parameters
    from megatron_synE.checkpoint.whole_writer import write_whole

    architecture = architecture_from_hf(hf_dir)
    if checkpoint.is_dir() and find_latest(checkpoint) is not None:
        raise ValueError(f"--checkpoint: {checkpoint} holds checkpoints already; choose another directory")
    tensors = whole_parameters(hf_dir, architecture, getattr(torch, dtype) if dtype else None)
    source = tokenizer_dir or hf_dir
    copy_tokenizer(source, checkpoint / TOKENIZER_DIRECTORY)
    if (source / CONFIG_FILE).is_file():
        (checkpoint / TOKENIZER_DIRECTORY).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / CONFIG_FILE, checkpoint / TOKENIZER_DIRECTORY / CONFIG_FILE)  # special token ids
    return write_whole(
        checkpoint,
        step=0,
        tensors=tensors,
        architecture=architecture,
        state={"imported_from": str(hf_dir.resolve())},
        identity=identity_of(hf_dir),
    )


def find_tokenizer(checkpoint: Path) -> Path | None:
    """The tokenizer's directory: beside the checkpoint, beside the one its run started from, or the HF model itself."""
    from megatron_synE.checkpoint.layout import read_state, resolve

    directory = resolve(checkpoint)
    started_from: dict[str, Any] = (read_state(directory).get("config") or {}).get("checkpoint") or {}
    candidates = [directory.parent / TOKENIZER_DIRECTORY]
    if started_from.get("load"):
        candidates += [Path(started_from["load"]) / TOKENIZER_DIRECTORY]
        candidates += [Path(started_from["load"]).parent / TOKENIZER_DIRECTORY]
    if started_from.get("init_from_hf"):
        candidates.append(Path(started_from["init_from_hf"]))
    return next((candidate for candidate in candidates if candidate.is_dir()), None)


def export_model(
    checkpoint: Path, hf_dir: Path, dtype: str | None, tokenizer_dir: Path | None, max_shard_size_bytes: int
) -> list[Path]:
    """Write the Hugging Face directory."""
    import torch

    from megatron_synE.checkpoint.hf.exporting import export_to_hf

    tokenizer_dir = tokenizer_dir or find_tokenizer(checkpoint)
    if tokenizer_dir is None:
        print("no tokenizer files found: give --tokenizer-dir to have them copied", file=sys.stderr)
    return export_to_hf(
        checkpoint,
        hf_dir,
        tokenizer_dir=tokenizer_dir,
        dtype=getattr(torch, dtype) if dtype else None,
        max_shard_size_bytes=max_shard_size_bytes,
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 the input is wrong (one line says what)."""
    options = parse_arguments(arguments)
    try:
        if options.command == "import":
            path = import_model(options.hf_dir, options.checkpoint, options.dtype, options.tokenizer_dir)
            print(f"imported {options.hf_dir} as {path}")
        else:
            files = export_model(
                options.checkpoint, options.hf_dir, options.dtype, options.tokenizer_dir, options.max_shard_size
            )
            print(f"exported {options.checkpoint} as {options.hf_dir} ({len(files)} files)")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module=r"megatron\.")  # what it would do faster with Apex is not for this tool
    sys.exit(main())

"""Hugging Face Llama ⇄ checkpoint of ours.

    python tools/convert_checkpoint.py import --hf-dir H --checkpoint C
    python tools/convert_checkpoint.py export --checkpoint C --hf-dir H
    python tools/convert_checkpoint.py resize --checkpoint C --output D --resize-vocab E

C is a directory of checkpoints; an export takes its latest, or the step directory that is given. No more than one file
of the model is in memory at a time. A command that was killed goes on from the files it had finished, when given again.

E is what tools/extend_tokenizer.py wrote; new rows are the means of the rows of the old sub-words. What is resized has
weights only. --verify compares both sides: all weights bit for bit, or the logits of transformers and of our model.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from megatron_synE.command_line import ToolParser, run_tool

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
    parser = ToolParser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (("import", "Hugging Face → ours"), ("export", "ours → Hugging Face")):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("--hf-dir", type=Path, required=True, help="directory of the Hugging Face model")
        command.add_argument("--checkpoint", type=Path, required=True, help="directory of our checkpoints")
        command.add_argument("--dtype", choices=DTYPES, help="format of the weights written; as they are by default")
        command.add_argument("--tokenizer-dir", type=Path, help="where the tokenizer's files are")
        command.add_argument("--verify", choices=("logits", "tensors"), help="compare both sides afterwards")
        command.add_argument("--verify-prompts", nargs="+", metavar="PROMPT", help="texts, or token ids as 1,2,3")
    commands.choices["export"].add_argument("--max-shard-size", type=size_bytes, default="5GB",
                                            help="largest file")
    commands.choices["import"].add_argument("--resize-vocab", type=Path, help="directory of the extended tokenizer")
    resize = commands.add_parser("resize", help="ours → ours with a larger vocabulary")
    resize.add_argument("--checkpoint", type=Path, required=True, help="directory of our checkpoints")
    resize.add_argument("--output", type=Path, required=True, help="new directory of checkpoints")
    resize.add_argument("--resize-vocab", type=Path, required=True, help="directory of the extended tokenizer")
    return parser.parse_args(arguments)


def import_model(
    hf_dir: Path, checkpoint: Path, dtype: str | None, tokenizer_dir: Path | None, resize_vocab: Path | None
) -> Path:
    """Write the model as step 0, weights only, and keep its tokenizer's files beside it."""
    import torch

    from megatron_synE.checkpoint.hf.config import architecture_from_hf
    from megatron_synE.checkpoint.hf.importing import identity_of, whole_parameters

    architecture = architecture_from_hf(hf_dir)
    tensors = whole_parameters(hf_dir, architecture, getattr(torch, dtype) if dtype else None)
    state = {"imported_from": str(hf_dir.resolve())}
    source = tokenizer_dir or hf_dir
    return write(checkpoint, tensors, architecture, state, identity_of(hf_dir), source, resize_vocab)


def resize_model(checkpoint: Path, output: Path, resize_vocab: Path) -> Path:
    """Write the weights with a larger vocabulary as step 0 of another directory."""
    from megatron_synE.checkpoint.hf.exporting import identity_of
    from megatron_synE.checkpoint.layout import read_architecture, resolve
    from megatron_synE.checkpoint.tokenizer_files import find_tokenizer
    from megatron_synE.checkpoint.whole_writer import model_tensors

    directory = resolve(checkpoint)
    architecture = read_architecture(directory)
    tensors = model_tensors(directory, architecture)
    state = {"resized_from": str(directory.resolve())}
    source = find_tokenizer(directory) or resize_vocab
    return write(output, tensors, architecture, state, identity_of(directory), source, resize_vocab)


def write(
    checkpoint: Path, tensors: list[Any], architecture: Any, state: dict[str, Any], identity: dict[str, Any],
    tokenizer_dir: Path, resize_vocab: Path | None,
) -> Path:  # fmt: skip
    """The tensors as step 0 of an empty directory, with the tokenizer's files, after resizing if that is asked for."""
    from megatron_synE.checkpoint import find_latest
    from megatron_synE.checkpoint.hf.config import CONFIG_FILE
    from megatron_synE.checkpoint.hf.exporting import copy_tokenizer
    from megatron_synE.checkpoint.tokenizer_files import TOKENIZER_DIRECTORY
    from megatron_synE.checkpoint.vocabulary import EXTENSION_FILE, read_extension, resize
    from megatron_synE.checkpoint.whole_writer import write_whole

    if checkpoint.is_dir() and find_latest(checkpoint) is not None:
        raise ValueError(f"{checkpoint}: holds checkpoints already; choose another directory")
    own_tokenizer = checkpoint / TOKENIZER_DIRECTORY
    if resize_vocab is not None:
        tensors, architecture = resize(tensors, architecture, read_extension(resize_vocab))
        identity = {**identity, "extension": (resize_vocab / EXTENSION_FILE).read_text(encoding="utf-8")}
    copy_tokenizer(resize_vocab or tokenizer_dir, own_tokenizer)
    if (tokenizer_dir / CONFIG_FILE).is_file():
        own_tokenizer.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tokenizer_dir / CONFIG_FILE, own_tokenizer / CONFIG_FILE)  # special token ids
    return write_whole(checkpoint, step=0, tensors=tensors, architecture=architecture, state=state, identity=identity)


def verify(kind: str, hf_dir: Path, checkpoint: Path, dtype: str | None, prompts: list[str] | None,
           source_is_hf: bool) -> str:  # fmt: skip
    """Compare both sides; returns what to tell the user.

    Raises:
        ValueError: they differ, or cannot be compared.
    """
    if kind == "tensors":
        from megatron_synE.checkpoint.hf.comparing import differing_tensors

        found = differing_tensors(hf_dir, checkpoint, source_is_hf=source_is_hf)
        if found:
            raise ValueError(f"--verify tensors: {len(found)} differ: {'; '.join(found[:3])}; convert again")
        return "verified: all tensors are equal bit for bit"
    from megatron_synE.checkpoint.hf.config import architecture_from_hf
    from megatron_synE.training.logits import TOLERANCES, largest_difference

    vocab_size = architecture_from_hf(hf_dir).vocab_size
    difference = largest_difference(hf_dir, checkpoint, prompt_ids(prompts, hf_dir, vocab_size))
    said = f"largest difference {difference:.1e} of the largest logit, tolerance {TOLERANCES[dtype]:.0e}"
    if difference > TOLERANCES[dtype]:
        raise ValueError(f"--verify logits: {said}: the conversion is wrong; --verify tensors names the weights")
    return f"verified: {said}"


def prompt_ids(prompts: list[str] | None, hf_dir: Path, vocab_size: int) -> list[list[int]]:
    """Token ids of the prompts; three fixed rows of ids where none are given."""
    if not prompts:
        return [[(seed + 7919 * position) % vocab_size for position in range(32)] for seed in (1, 1000, 100_000)]
    from transformers import AutoTokenizer

    found = []
    for prompt in prompts:
        as_ids = re.fullmatch(r"[\d,\s]+", prompt)
        ids = [int(number) for number in re.findall(r"\d+", prompt)] if as_ids else []
        if not as_ids:
            ids = AutoTokenizer.from_pretrained(str(hf_dir)).encode(prompt)
        if not ids or max(ids) >= vocab_size:
            raise ValueError(f"--verify-prompts: {prompt!r} has no ids below {vocab_size}; give others")
        found.append(ids)
    return found


def export_model(
    checkpoint: Path, hf_dir: Path, dtype: str | None, tokenizer_dir: Path | None, max_shard_size_bytes: int
) -> list[Path]:
    """Write the Hugging Face directory."""
    import torch

    from megatron_synE.checkpoint.hf.exporting import export_to_hf
    from megatron_synE.checkpoint.tokenizer_files import find_tokenizer

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
    return run_tool("convert_checkpoint", lambda: run(parse_arguments(arguments)))


def run(options: argparse.Namespace) -> None:
    """Convert, and compare both sides where that is asked for."""
    warnings.filterwarnings("ignore", module=r"megatron\.")  # what it would do faster with Apex is not for this tool
    from megatron_synE.runtime.transformer_engine import hide_unusable_transformer_engine

    hide_unusable_transformer_engine()
    if options.command == "resize":
        print(f"resized as {resize_model(options.checkpoint, options.output, options.resize_vocab)}")
        return
    if options.command == "import":
        path = import_model(
            options.hf_dir, options.checkpoint, options.dtype, options.tokenizer_dir, options.resize_vocab
        )
        print(f"imported {options.hf_dir} as {path}")
    else:
        files = export_model(
            options.checkpoint, options.hf_dir, options.dtype, options.tokenizer_dir, options.max_shard_size
        )
        print(f"exported {options.checkpoint} as {options.hf_dir} ({len(files)} files)")
    if options.verify:
        sides = (options.hf_dir, options.checkpoint, options.dtype, options.verify_prompts)
        print(verify(options.verify, *sides, source_is_hf=options.command == "import"))


if __name__ == "__main__":
    sys.exit(main())

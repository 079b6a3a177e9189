"""Add tokens to a byte-level BPE tokenizer of Llama-3's kind: those of a list, or those that a corpus lacks most.

    python tools/extend_tokenizer.py --tokenizer T --add words.txt --output E
    python tools/extend_tokenizer.py --tokenizer T --train-on corpus.jsonl --num-new 20000 --output E
    python tools/convert_checkpoint.py import --hf-dir H --checkpoint C --resize-vocab E

New tokens are merges after the old ones: all old ids stay, and text without a new token has the ids it had. E gets the
extended tokenizer and vocabulary_extension.json (new id → old sub-words), from which the model's new rows are made.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_synE.command_line import ToolParser, described, run_tool
from megatron_synE.corpus.extension import BytePairTokenizer, fertility
from megatron_synE.corpus.texts import read_texts

TOKENIZER_FILE = "tokenizer.json"
# What says nothing of the vocabulary; vocab.json, merges.txt and tokenizer.model would be those of the old one.
COPIED_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json",
                "config.json")  # fmt: skip
NUM_MEASURED = 1000


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line → namespace."""
    parser = ToolParser(__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="directory with the old tokenizer.json")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--add", type=Path, nargs="+", help="text files, one new token a line")
    source.add_argument("--train-on", nargs="+", help="JSON-lines or parquet files, directories or globs")
    parser.add_argument("--json-key", default="text", help="key of the text, with --train-on")
    parser.add_argument("--num-new", type=int, help="number of new tokens to be found, with --train-on")
    parser.add_argument("--output", type=Path, required=True, help="new directory")
    options = parser.parse_args(arguments)
    if (options.num_new is None) != (options.train_on is None) or (options.num_new or 1) < 1:
        parser.error("--num-new: give a positive number with --train-on, and only there")
    return options


def read_lines(paths: Sequence[Path]) -> list[str]:
    """Lines that are not empty; spaces at both ends belong to the token."""
    lines: list[str] = []
    for path in paths:
        try:
            lines += [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            reason = described(error) if isinstance(error, OSError) else f"{path}: {error}"
            raise ValueError(f"--add: {reason}; give a UTF-8 text file") from None
    return lines


def extend(options: argparse.Namespace) -> str:
    """Write the new directory; returns what to tell the user."""
    from megatron_synE.checkpoint.vocabulary import VocabularyExtension

    file = options.tokenizer / TOKENIZER_FILE
    if not file.is_file():
        raise ValueError(f"--tokenizer: {file} is missing; give a directory with a Hugging Face tokenizer")
    if options.output.exists():
        raise ValueError(f"--output: {options.output} exists already; choose another directory")
    old_json = file.read_text(encoding="utf-8")
    tokenizer = BytePairTokenizer(str(file), old_json)
    texts = read_lines(options.add) if options.add else list(read_texts(options.train_on, options.json_key))
    merges = tokenizer.merges_for(texts) if options.add else tokenizer.learn_merges(texts, options.num_new)
    extension = tokenizer.extend(merges)
    if not extension.subwords:
        raise ValueError("--add: every line is a token already; nothing to add")
    temporary = options.output.with_name(f".{options.output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in COPIED_FILES:
        if (options.tokenizer / name).is_file():
            shutil.copyfile(options.tokenizer / name, temporary / name)
    (temporary / TOKENIZER_FILE).write_text(extension.tokenizer_json, encoding="utf-8")
    VocabularyExtension(extension.old_vocab_size, extension.subwords).write(temporary)
    temporary.rename(options.output)
    before, after = (fertility(text, texts[:NUM_MEASURED]) for text in (old_json, extension.tokenizer_json))
    return (
        f"{options.output}: {extension.old_vocab_size} + {len(extension.subwords)} tokens; tokens per character of the "
        f"{'list' if options.add else 'corpus'}: {before:.3f} before, {after:.3f} after"
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 the input is wrong (one line says what)."""
    return run_tool("extend_tokenizer", lambda: print(extend(parse_arguments(arguments))))


if __name__ == "__main__":
    sys.exit(main())

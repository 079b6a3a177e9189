"""Train a small byte-level BPE tokenizer of Llama-3's kind and save it as a Hugging Face tokenizer directory.

The split pattern is Llama-3's; the special tokens ``<|begin_of_text|>`` and ``<|end_of_text|>`` have the last two ids.
It is meant for trials and the quick start; continual pre-training uses the backbone's own tokenizer.
"""

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from megatron_synE.command_line import ToolParser, output_file, run_tool
from megatron_synE.corpus.llama3 import BEGIN_OF_TEXT, END_OF_TEXT, SPLIT_PATTERN
from megatron_synE.corpus.texts import read_texts
from megatron_synE.progress import ProgressBar


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with ``vocab_size`` entries, its two special tokens included."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = [BEGIN_OF_TEXT, END_OF_TEXT]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with contextlib.ExitStack() as until_trained:

        def then_say_what_comes(texts: Iterator[str]) -> Iterator[str]:
            yield from texts
            # The library merges in one call and tells nothing of it: the line only shows that it is at work.
            until_trained.enter_context(ProgressBar("merging the words that were read", None, "merges"))

        tokenizer.train_from_iterator(then_say_what_comes(texts), trainer)
    tokenizer.add_special_tokens(special_tokens)
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Write ``tokenizer.json`` and the ``tokenizer_config.json`` that transformers' AutoTokenizer reads."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    with output_file(directory / "tokenizer_config.json") as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())
    with output_file(directory / "tokenizer.json") as file:
        file.write(tokenizer.to_str(pretty=True).encode())


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ToolParser(__doc__)
    parser.add_argument("--input", nargs="+", required=True, help="JSON-lines or parquet files, directories or globs")
    parser.add_argument("--json-key", default="text", help="key of the text")
    parser.add_argument("--vocab-size", type=int, required=True, help="entries, special tokens included")
    parser.add_argument("--output-dir", type=Path, required=True, help="where the tokenizer goes")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_tool("train_tokenizer", lambda: run(parse_arguments(argv)))


def run(arguments: argparse.Namespace) -> None:
    """Train and save."""
    if arguments.vocab_size < 256 + 2:
        raise ValueError(f"--vocab-size {arguments.vocab_size}: must be at least 258 (256 bytes, 2 special tokens)")
    texts = read_texts(arguments.input, arguments.json_key)
    first = next(texts, None)
    if first is None:
        raise ValueError(f"--input: no document with a text under {arguments.json_key!r}; see --json-key")
    tokenizer = train_tokenizer(itertools.chain([first], texts), arguments.vocab_size)
    save(tokenizer, arguments.output_dir)
    print(f"{arguments.output_dir}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    sys.exit(main())

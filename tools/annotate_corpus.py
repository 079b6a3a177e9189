"""Annotate the documents of a corpus beside its .bin/.idx: ``topic`` (a classifier's label) or ``perplexity``.

Written in parts: a killed job goes on after the parts that are finished. Start it under ``torchrun --nproc-per-node N``
to share the parts between N processes. An annotation that is already there, by the same annotator and for the same
content, is left as it is; one by another annotator is replaced only with ``--overwrite``: runs that read it cannot be
resumed then.
"""

import argparse
import os
import sys
import warnings

from megatron_synE.command_line import ToolParser, run_tool
from megatron_synE.corpus.annotate import Scorer, corpus_tokenizer, label_topics, score_perplexity
from megatron_synE.corpus.topics import load_topic_classifier
from megatron_synE.runtime.device import choose_device
from megatron_synE.runtime.transformer_engine import hide_unusable_transformer_engine


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ToolParser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    topic = commands.add_parser("topic", help="label documents with a topic classifier")
    topic.add_argument("--classifier", required=True, help="directory of train_topic_classifier or of transformers")
    topic.add_argument("--tokenizer-model", help="where the corpus's tokenizer lies now, if it moved")
    perplexity = commands.add_parser("perplexity", help="score documents with a language model")
    model = perplexity.add_mutually_exclusive_group(required=True)
    model.add_argument("--hf-dir", help="a causal language model of transformers")
    model.add_argument("--checkpoint", help="a checkpoint of pretrain_llama3_synE.py")
    perplexity.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the weights")
    perplexity.add_argument("--max-window-tokens", type=int, help="longest input (default: what the model allows)")
    perplexity.add_argument("--tokens-per-batch", type=int, default=16_384, help="most, padding included")
    perplexity.add_argument("--bos-id", type=int, help="a token to put before every document")
    for command in (topic, perplexity):
        command.add_argument("--prefix", nargs="+", required=True, help="corpora, without .bin/.idx")
        command.add_argument("--part-size", type=int, default=10_000, help="documents per part")
        command.add_argument("--overwrite", action="store_true", help="replace an annotation by another annotator")
        command.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="where")
    return parser.parse_args(argv)


def build_scorer(arguments: argparse.Namespace, device: str) -> Scorer:
    """The scorer that the command line asks for."""
    from megatron_synE.corpus.perplexity import DocumentScorer, HuggingFaceModel, WindowModel

    model: WindowModel
    if arguments.checkpoint is not None:
        warnings.filterwarnings("ignore", module=r"megatron\.core")
        hide_unusable_transformer_engine()
        from megatron_synE.training.scoring import CheckpointModel

        model = CheckpointModel(arguments.checkpoint, arguments.device, arguments.dtype, arguments.max_window_tokens)
    else:
        model = HuggingFaceModel(arguments.hf_dir, device, arguments.dtype, arguments.max_window_tokens)
    return DocumentScorer(model, arguments.tokens_per_batch, arguments.bos_id)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_tool("annotate_corpus", lambda: run(parse_arguments(argv)))


def run(arguments: argparse.Namespace) -> None:
    """Annotate one corpus after the other."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = str(choose_device(arguments.device, int(os.environ.get("LOCAL_RANK", 0))))
    if arguments.command == "topic":
        classifier = load_topic_classifier(arguments.classifier, device)
    else:
        scorer = build_scorer(arguments, device)
    for prefix in arguments.prefix:
        options = {
            "part_size": arguments.part_size,
            "rank": rank,
            "world_size": world_size,
            "overwrite": arguments.overwrite,
        }
        if arguments.command == "topic":
            tokenizer = corpus_tokenizer(prefix, arguments.tokenizer_model)
            complete = label_topics(prefix, classifier, tokenizer, **options)
        else:
            complete = score_perplexity(prefix, scorer, **options)
        if complete:
            print(f"{prefix}.{arguments.command}.npy")


if __name__ == "__main__":
    sys.exit(main())

"""Log-likelihood requests a second: ours against lm-evaluation-harness's `hf` model, the same weights, side by side.

    python benchmarks/evaluate.py [--rounds 5] [--questions 16] [--batch-size 8] [--dtype fp32] [--threads 2]

The requests have the form of 5-shot MMLU: each round is one subject, whose examples stand before all its questions
(500 to 900 tokens), each with a question of 50 to 150 tokens and four choices of one token. Token ids are random: how
long it takes does not depend on them. Both get token ids, and at most --batch-size sequences in a batch; lm-eval's
model computes the four choices of a question from one sequence, as ours does.

    requests_ratio_vs_lm_eval_hf   requests a second of ours over those of lm-eval's `hf` model
    ratio_whole_sequences          the same of ours without sharing beginnings

Each contender lives in a process of its own, and all take each round in turn; a ratio is the median of those of the
rounds. The last line is one JSON object. Exit status 1 where the answers disagree: a value by more than 1e-4 (fp32), or
whether a choice is the likeliest token.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from contenders import save_weights_apart
from cpu_step import Ratio
from host import peak_memory_mb, processor_name

from megatron_synE.config.model import LlamaArchitecture

ARCHITECTURE = LlamaArchitecture(8, 1024, 3584, 16, 8, 128256, max_position_embeddings=2048)
TOKENIZER = Path(__file__).resolve().parents[1] / "examples/data/tokenizer"
SHOTS_TOKENS, QUESTION_TOKENS, NUM_CHOICES = (500, 900), (50, 150), 4
LARGEST_DIFFERENCE = {"fp32": 1e-4, "bf16": 0.2}
CONTENDERS = ("lm_eval_hf", "ours", "ours_whole_sequences")

Request = tuple[list[int], list[int]]
Answer = tuple[float, bool]
Score = Callable[[Sequence[Request]], list[Answer]]


def subject(number: int, num_questions: int) -> list[Request]:
    """All requests of a subject: a context and a choice each."""
    random = np.random.default_rng(number)

    def tokens(low: int, high: int) -> list[int]:
        return random.integers(0, ARCHITECTURE.vocab_size, random.integers(low, high + 1)).tolist()

    shots, choices = tokens(*SHOTS_TOKENS), tokens(NUM_CHOICES, NUM_CHOICES)
    questions = [tokens(*QUESTION_TOKENS) for _ in range(num_questions)]
    return [(shots + question, [choice]) for question in questions for choice in choices]


def lm_eval_hf(folder: Path, dtype: str, batch_size: int) -> Score:
    """lm-evaluation-harness's own model over transformers."""
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    name = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    harness = HFLM(
        pretrained=str(folder), tokenizer=PreTrainedTokenizerFast.from_pretrained(TOKENIZER), device="cpu", dtype=name,
        batch_size=batch_size, max_length=ARCHITECTURE.max_position_embeddings,
    )  # fmt: skip

    def score(requests: Sequence[Request]) -> list[Answer]:
        return harness._loglikelihood_tokens([(("", ""), *request) for request in requests], disable_tqdm=True)

    return score


def ours(folder: Path, dtype: str, batch_size: int, share_prefixes: bool) -> Score:
    """The engine of tools/evaluate.py."""
    from megatron_synE.evaluation.engine import ScoringRequest
    from megatron_synE.evaluation.llama.batching import BatchLimits
    from megatron_synE.evaluation.llama.llama_engine import EngineOptions, LlamaEngine

    limits = BatchLimits(tokens=batch_size * (SHOTS_TOKENS[1] + QUESTION_TOKENS[1]), sequences=batch_size)
    options = EngineOptions(dtype=dtype, limits=limits, share_prefixes=share_prefixes)  # type: ignore[arg-type]
    engine = LlamaEngine.from_hf(folder, options)

    def score(requests: Sequence[Request]) -> list[Answer]:
        asked = [ScoringRequest(tuple(context), tuple(continuation)) for context, continuation in requests]
        return [(answer.value, answer.is_greedy) for answer in engine.log_likelihoods(asked)]

    return score


def serve(connection: Connection, kind: str, folder: Path, args: argparse.Namespace) -> None:
    """A contender's process: answers the requests of each subject that it is told, and how long that took."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch

    torch.set_num_threads(args.threads)
    if kind == "lm_eval_hf":
        score = lm_eval_hf(folder, args.dtype, args.batch_size)
    else:
        score = ours(folder, args.dtype, args.batch_size, share_prefixes=kind == "ours")
    torch.set_num_threads(args.threads)
    connection.send("ready")
    while (number := connection.recv()) is not None:
        requests = subject(number, args.questions)
        start = time.perf_counter()
        answers = score(requests)
        seconds = time.perf_counter() - start
        connection.send({"seconds": seconds, "answers": answers, "peak_mb": peak_memory_mb()})


class Contender:
    """A process that answers on request."""

    def __init__(self, kind: str, folder: Path, args: argparse.Namespace) -> None:
        self.seconds: list[float] = []
        self.answers: list[Answer] = []
        self.peak_mb = 0.0
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, kind, folder, args), daemon=True)
        self.process.start()
        theirs.close()
        assert self.connection.recv() == "ready"

    def round(self, number: int, counts: bool) -> None:
        """Answer a subject; the first one warms up and does not count."""
        self.connection.send(number)
        result = self.connection.recv()
        if counts:
            self.seconds.append(result["seconds"])
            self.answers += result["answers"]
            self.peak_mb = result["peak_mb"]

    def close(self) -> None:
        """End the process."""
        self.connection.send(None)
        self.process.join()


def compare(answers: dict[str, Sequence[Answer]], dtype: str) -> bool:
    """Whether all say the same; prints by how much they do not."""
    agree = True
    for kind in ("ours", "ours_whole_sequences"):
        for other in ("lm_eval_hf", "ours"):
            if kind == other:
                continue
            pairs = list(zip(answers[kind], answers[other], strict=True))
            worst = max(abs(a[0] - b[0]) for a, b in pairs)
            flips = sum(a[1] != b[1] for a, b in pairs)
            print(f"  {kind} differs from {other} by at most {worst:.1e}, in {flips} of {len(pairs)} likeliest tokens")
            agree &= worst <= LARGEST_DIFFERENCE[dtype] and (flips == 0 or dtype != "fp32")
    return agree


def figures(seconds: dict[str, Sequence[float]], requests_per_round: int) -> dict[str, Any]:
    """What the contenders' times say."""
    ratios = {
        "requests_ratio_vs_lm_eval_hf": Ratio.of(seconds["lm_eval_hf"], seconds["ours"]),
        "ratio_whole_sequences": Ratio.of(seconds["lm_eval_hf"], seconds["ours_whole_sequences"]),
    }
    found: dict[str, Any] = {name: round(ratio.median, 3) for name, ratio in ratios.items()}
    for kind, times in seconds.items():
        found[f"requests_per_s_{kind}"] = round(requests_per_round * len(times) / sum(times), 2)
    found["quartiles"] = {name: [round(value, 3) for value in ratio.quartiles] for name, ratio in ratios.items()}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="subjects that count")
    parser.add_argument("--questions", type=int, default=16, help="of a subject; MMLU's have 100 to 1,534")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences of a batch")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds: quartiles need 2 or more")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    print(f"{processor_name()}, {args.threads} threads, load average {os.getloadavg()[0]:.1f}")
    print(f"{ARCHITECTURE}, {args.dtype}, batches of {args.batch_size}, {args.questions} questions a subject")
    with tempfile.TemporaryDirectory() as folder:
        save_weights_apart(ARCHITECTURE, Path(folder))
        contenders = {kind: Contender(kind, Path(folder), args) for kind in CONTENDERS}
        for number in range(args.rounds + 1):
            for contender in contenders.values():
                contender.round(number, counts=number > 0)
        for contender in contenders.values():
            contender.close()
    found = figures({kind: contender.seconds for kind, contender in contenders.items()}, args.questions * NUM_CHOICES)
    for kind, contender in contenders.items():
        print(
            f"  {kind:21s} {found[f'requests_per_s_{kind}']:8.2f} requests/s, peak memory {contender.peak_mb:6.0f} MB"
        )
    agree = compare({kind: contender.answers for kind, contender in contenders.items()}, args.dtype)
    machine = f"{processor_name()}, {args.threads} threads"
    print(json.dumps({**found, "machine": machine, "dtype": args.dtype, "answers_agree": agree}))
    return int(not agree)


if __name__ == "__main__":
    sys.exit(main())

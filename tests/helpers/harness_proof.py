"""An evaluation of ours beside lm-evaluation-harness's own `hf` model on the same tasks, data and weights.

    python -m tests.helpers.harness_proof FOLDER [MODEL …]     # all tasks and layouts with 50 items each; minutes
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers.benchmark_data import LOG_LIKELIHOOD_TASKS, write_benchmarks
from tests.helpers.commands import ROOT, SAMPLE, pretrain, run, run_tool, succeeded, tokenised_sample
from tests.helpers.hf_llama import SHAPES, make_hf_llama

VOCAB_SIZE = 4096
CONTEXT_TOKENS = 2048
TRAINED = "trained"
LAYOUTS = {"TP1": (1, 1), "TP2": (2, 1), "PP2": (1, 2), "TP2xPP2": (2, 2)}


@dataclass
class Proof:
    """How an evaluation differs from the `hf` model's."""

    num_requests: int = 0
    worst: float = 0.0
    """Largest difference of a log-likelihood."""
    differing: list[str] = field(default_factory=list)
    """Greedy flags, texts, items' scores and figures that are not the same."""


def make_model(folder: Path, shape: str) -> Path:
    """A small random Llama with the sample's tokenizer, in a Hugging Face folder."""
    make_hf_llama(folder, shape, vocab_size=VOCAB_SIZE, context_tokens=CONTEXT_TOKENS, token_ids=(4094, 4095))
    shutil.copytree(SAMPLE / "tokenizer", folder, dirs_exist_ok=True)
    return folder


def train_model(folder: Path) -> tuple[Path, Path]:
    """Six steps on the shipped sample: the training checkpoint, and its Hugging Face export."""
    prefixes = tokenised_sample(folder, "web_en", "web_zh")
    tokens = 6 * 4 * 128
    job = {
        "model": {
            "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 4,
            "num_query_groups": 2, "vocab_size": 4096, "max_position_embeddings": 2048,
        },
        "precision": {"dtype": "fp32"},
        "data": {
            "seq_length": 128, "heldout_samples": 2,
            "sources": {name: {"prefix": str(prefix)} for name, prefix in prefixes.items()},
            "stages": [{"name": "one", "tokens": tokens, "weights": dict.fromkeys(prefixes, 0.5)}],
        },
        "optimizer": {"lr": 1e-2},
        "schedule": {"warmup_steps": 1},
        "training": {"micro_batch_size": 2, "global_batch_size": 4},
        "evaluation": {"at_end": False},
        "checkpoint": {"save": str(folder / "run")},
        "logging": {"tensorboard": False},
    }  # fmt: skip
    (folder / "job.yaml").write_text(json.dumps(job), encoding="utf-8")
    succeeded(pretrain(1, "--config", folder / "job.yaml"))
    checkpoint, export = folder / "run", folder / "export"
    succeeded(run_tool("convert_checkpoint", "export", "--checkpoint", checkpoint, "--hf-dir", export,
                       "--tokenizer-dir", SAMPLE / "tokenizer"))  # fmt: skip
    return checkpoint, export


def evaluate(output: Path, *options: str | Path, layout: str = "TP1") -> str:
    """tools/evaluate.py in fp32, under torchrun where the layout has several processes; what it printed."""
    tensor, pipeline = LAYOUTS[layout]
    command: list[str | Path] = [sys.executable]
    if tensor * pipeline > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={tensor * pipeline}"]
    sizes = ["--tensor-model-parallel-size", str(tensor), "--pipeline-model-parallel-size", str(pipeline)]
    command += [ROOT / "tools" / "evaluate.py", "--dtype", "fp32", "--device", "cpu", "--output-dir", output, *sizes]
    return succeeded(run(*command, *options, timeout_s=600)).stdout


def results_of_hf_model(
    hf_dir: Path, tasks: tuple[str, ...], data: Path, limit: int | None = None, num_fewshot: int | None = None
) -> dict[str, Any]:
    """What the harness finds with its own model."""
    from lm_eval.evaluator import evaluate as harness_evaluate
    from lm_eval.models.huggingface import HFLM

    from megatron_synE.evaluation.tasks.task_files import load_tasks

    model = HFLM(pretrained=str(hf_dir), dtype="float32", add_bos_token=True, batch_size=16, device="cpu")
    loaded = load_tasks(tasks, data, num_fewshot=num_fewshot)
    return dict(harness_evaluate(lm=model, task_dict=loaded.task_dict, limit=limit, bootstrap_iters=0))


def compare(evaluation: Path, theirs: dict[str, Any]) -> Proof:
    """Request by request, item by item, figure by figure."""
    from megatron_synE.config.evaluation_results import read_evaluation

    ours, proof = read_evaluation(evaluation), Proof()
    for task, samples in theirs["samples"].items():
        own_samples = list(ours.samples(task))
        assert len(own_samples) == len(samples) > 0
        for own, other in zip(own_samples, samples, strict=True):
            where = f"{task} {own.doc_id}"
            assert own.doc_hash == other["doc_hash"]
            for (own_answer,), (answer,) in zip(own.content["resps"], other["resps"], strict=True):
                proof.num_requests += 1
                if isinstance(answer, str):
                    proof.differing += [] if own_answer == answer else [f"{where}: text"]
                    continue
                proof.worst = max(proof.worst, abs(float(own_answer[0]) - answer[0]))
                proof.differing += [] if own_answer[1] == str(answer[1]) else [f"{where}: is_greedy"]
            proof.differing += [f"{where}: {name}" for name in other["metrics"] if own.metrics[name] != other[name]]
    for task, row in theirs["results"].items():
        figures = {name for name in row if "," in name and "_stderr," not in name}
        own_row = ours.content["results"][task]
        proof.differing += [f"{task}: {name}" for name in figures if own_row[name] != row[name]]
    return proof


def main(folder: Path, shapes: Sequence[str]) -> None:
    """The whole proof, a line for each evaluation."""
    data = write_benchmarks(folder / "data", 50)
    tasks = ("--tasks", *LOG_LIKELIHOOD_TASKS, "--data-dir", data)
    for name in shapes or [*SHAPES, TRAINED]:
        model: tuple[str | Path, ...]
        if name == TRAINED:
            checkpoint, hf_dir = train_model(folder)
            model = ("--checkpoint", checkpoint, "--tokenizer-model", hf_dir)
        else:
            hf_dir = make_model(folder / name, name)
            model = ("--hf-dir", hf_dir)
        theirs = results_of_hf_model(hf_dir, LOG_LIKELIHOOD_TASKS, data)
        for layout in LAYOUTS:
            evaluate(folder / f"{name}_{layout}", *model, *tasks, layout=layout)
            proof = compare(folder / f"{name}_{layout}", theirs)
            print(f"{name} {layout}: {proof.num_requests} requests, worst {proof.worst:.1e}, "
                  f"{len(proof.differing)} differences {proof.differing[:3]}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

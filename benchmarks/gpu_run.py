"""A small model trained for real, on examples/data: killed, resumed, and compared with a run that was not.

    python benchmarks/gpu_run.py [--steps 200] [--device cuda] [--tiny]

Both runs start from the same seed with the project's own commands. One goes through; the other is killed (SIGKILL)
between two checkpoints and started again by the same command. On a GPU sums may take another order, so their losses
are compared within LARGEST_DIFFERENCE, and the figures say whether they were equal. The last line is one JSON object.
Exit status 77 without a GPU, 1 where the resumed run is another one or the loss does not fall.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gpu.runner import SKIPPED

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "examples" / "data"
SOURCES = ("web_en", "web_zh", "code_en")
LARGEST_DIFFERENCE = 0.05
LEAST_FALL = 1.0
"""By which the loss of random weights has to fall."""
_NAMES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups")
SIZES = dict(zip(_NAMES, (12, 1024, 3584, 8, 2), strict=True))
TINY_SIZES = dict(zip(_NAMES, (2, 64, 160, 4, 2), strict=True))


def tokenise(folder: Path) -> dict[str, dict[str, str]]:
    """The sample as corpora: the job's `data.sources`."""
    sources = {}
    for name in SOURCES:
        tool = [sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "--input", str(SAMPLE / f"{name}.jsonl")]
        tool += ["--output-prefix", str(folder / name), "--tokenizer-type", "HuggingFaceTokenizer", "--append-eod"]
        subprocess.run([*tool, "--tokenizer-model", str(SAMPLE / "tokenizer")], check=True)
        sources[name] = {"prefix": str(folder / f"{name}_text_document"), "language": name[-2:]}
    return sources


def write_job(path: Path, sources: dict[str, dict[str, str]], steps: int, device: str, tiny: bool) -> None:
    """The job as a file: JSON is YAML."""
    seq_length, batch = (64, 2) if tiny else (2048, 8)
    tokenizer = json.loads((SAMPLE / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    vocab_size = len(tokenizer["model"]["vocab"])
    weights = dict.fromkeys(sources, f"1/{len(sources)}")
    job: dict[str, Any] = {
        "model": {**(TINY_SIZES if tiny else SIZES), "vocab_size": -(-vocab_size // 512) * 512},
        "parallel": {"device": device},
        "data": {
            "seq_length": seq_length, "isolate_documents": True, "heldout_fraction": 0.1, "heldout_samples": 4,
            "sources": sources,
            "stages": [{"name": "one", "tokens": steps * batch * seq_length, "weights": weights}],
        },
        "optimizer": {"lr": 1e-3},
        "schedule": {"warmup_steps": max(1, steps // 20), "decay_steps": max(1, steps // 5)},
        "training": {"micro_batch_size": batch // 2, "global_batch_size": batch},
        "checkpoint": {"save_interval_steps": max(2, steps // 4), "keep": 2, "async_save": True},
        "logging": {"tensorboard": False},
    }  # fmt: skip
    path.write_text(json.dumps(job), encoding="utf-8")


class Run:
    """One run of the job in a folder of its own."""

    def __init__(self, job: Path, folder: Path) -> None:
        self.folder = folder
        script = str(ROOT / "pretrain_llama3_synE.py")
        self.command = [sys.executable, script, "--config", str(job), "--checkpoint.save", str(folder)]

    def to_the_end(self) -> None:
        subprocess.run(self.command, check=True)

    def until_killed(self, step: int) -> int:
        """Kill it when it has recorded this step; returns the last step that it had recorded then."""
        process = subprocess.Popen(self.command)
        try:
            while self.last_step() < step:
                if process.poll() is not None:
                    raise RuntimeError(f"the run ended by itself, with {process.returncode}, before step {step}")
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        return self.last_step()

    def records(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        return [record for record in map(json.loads, lines) if record["kind"] == kind]

    def last_step(self) -> int:
        return max((record["step"] for record in self.records("step")), default=0)


def compare(whole: Run, resumed: Run, killed_after: int, steps: int) -> dict[str, Any]:
    """Whether both runs are one, and what the uninterrupted one has done."""
    first, second = ({r["step"]: r for r in run.records("step")} for run in (whole, resumed))
    same_steps = sorted(first) == sorted(second) == list(range(1, steps + 1))
    differences = [abs(first[n]["loss"] - second[n]["loss"]) for n in first if n in second]
    same_samples = all(first[n]["consumed_samples"] == second[n]["consumed_samples"] for n in first if n in second)
    losses = [first[n]["loss"] for n in sorted(first)]
    edge = max(1, steps // 20)
    fall = statistics.mean(losses[:edge]) - statistics.mean(losses[-edge:])
    close = bool(differences) and max(differences) <= LARGEST_DIFFERENCE
    return {
        "steps": steps,
        "killed_after_step": killed_after,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "loss_falls_by": round(fall, 4),
        "tokens_per_second": round(statistics.median(r["tokens_per_second"] for r in first.values())),
        "largest_difference": max(differences, default=math.inf),
        "bit_equal": not any(differences),
        "resumed_as_uninterrupted": same_steps and same_samples and close,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes of no meaning, to rehearse on a CPU")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no GPU on this machine")
        return SKIPPED
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = folder / "job.yaml"
        write_job(job, tokenise(folder), args.steps, args.device, args.tiny)
        whole, resumed = Run(job, folder / "whole"), Run(job, folder / "resumed")
        whole.to_the_end()
        killed_after = resumed.until_killed(args.steps * 5 // 8)
        resumed.to_the_end()
        figures = compare(whole, resumed, killed_after, args.steps)
    least_fall = 0.0 if args.tiny else LEAST_FALL
    print(json.dumps(figures))
    return int(not figures["resumed_as_uninterrupted"] or figures["loss_falls_by"] < least_fall)


if __name__ == "__main__":
    sys.exit(main())

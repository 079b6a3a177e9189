"""Benchmarks of a training run's own model: the same at every layout, and no trace of them in the training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.distributed import run_distributed
from tests.helpers.runs import records, train, write_job

BENCHMARKS = {
    "tasks": ["letters", "texts"], "data_dir": ".", "tokenizer": "none is asked", "interval_steps": 2,
    "tokens_per_batch": 150,
}  # fmt: skip
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "dp2-cp2": (4, {"context_parallel_size": 2, "overlap_grad_reduce": True, "overlap_param_gather": True}),
    "tp2-sp-pp2-vpp2": (4, {
        "tensor_model_parallel_size": 2, "sequence_parallel": True, "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
    }),
}  # fmt: skip


def made_up() -> Any:
    """Two tasks of 12 items: letters after a long context, and texts of several tokens after a short one."""
    from megatron_synE.evaluation.engine import ScoringRequest
    from megatron_synE.evaluation.rendered import RenderedBuilder, RenderedItem

    random, builder = np.random.default_rng(3), RenderedBuilder()

    def tokens(least: int, most: int) -> tuple[int, ...]:
        return tuple(random.integers(0, 299, random.integers(least, most)).tolist())

    for name, context_tokens, choice_tokens in (("letters", (30, 50), (1, 2)), ("texts", (3, 9), (1, 7))):
        items = []
        for _ in range(12):
            context, choices = tokens(*context_tokens), [tokens(*choice_tokens) for _ in range(4)]
            lengths = random.integers(1, 30, 4).tolist()
            requests = [ScoringRequest(context, choice) for choice in choices]
            items.append(RenderedItem(requests, lengths, [3 * length for length in lengths], [int(random.integers(4))]))
        builder.add(name, items, metrics=["acc", "acc_norm", "acc_bytes"], num_fewshot=0)
    return builder.finish({})


def measured(folder: str, arguments: list[str]) -> None:
    """A start that measures, and leaves all log-likelihoods of its first measurement in a file."""
    from megatron_synE.evaluation import live_benchmarks

    file, score = Path(folder) / "log_likelihoods.json", live_benchmarks.score
    kept: list[float] = []

    def remembered(*args: Any, **options: Any) -> Any:
        answers = score(*args, **options)
        kept.extend(answer.value for answer in answers)
        return answers

    live_benchmarks.score = remembered  # type: ignore[attr-defined]

    train(arguments, benchmarks=lambda run: live_benchmarks.LiveBenchmarks(made_up(), run))
    file.write_text(json.dumps(kept[: made_up().num_requests]), encoding="utf-8")


def job(folder: Path, **sections: Any) -> list[str]:
    folder.mkdir(exist_ok=True)
    model = {"num_layers": 4, "num_attention_heads": 4, "num_query_groups": 2, "vocab_size": 304}
    sections = {"data": {"adjustment": {}}, **sections}
    return write_job(folder, model=model, training={"train_steps": 4, "micro_batch_size": 1}, **sections)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of a run that measures nothing yet."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    run_distributed(train, 1, [*job(folder), "--training.exit_after_steps", "2"])
    return folder


@pytest.fixture(scope="module")
def alone(trained: Path) -> Path:
    return going_on(trained, "alone", 1, {})


def going_on(trained: Path, name: str, num_processes: int, parallel: dict[str, Any]) -> Path:
    """The run with benchmarks from here on, at a layout."""
    folder = trained.with_name(name)
    shutil.copytree(trained, folder)
    arguments = job(folder, parallel=parallel, evaluation={"benchmarks": BENCHMARKS})
    run_distributed(measured, num_processes, str(folder), arguments)
    return folder


def read(folder: Path) -> list[float]:
    return list(json.loads((folder / "log_likelihoods.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module", params=LAYOUTS)
def at_layout(request: pytest.FixtureRequest, trained: Path) -> Path:
    return going_on(trained, request.param, *LAYOUTS[request.param])


def test_every_layout_gives_the_same(alone: Path, at_layout: Path) -> None:
    expected, found = records(alone, "benchmark"), records(at_layout, "benchmark")
    assert [record["step"] for record in found] == [2, 4]
    assert found[0]["benchmarks"] == expected[0]["benchmarks"]
    assert set(found[0]["benchmarks"]["texts"]) == {"acc", "acc_norm", "acc_bytes", "num_items"}
    assert np.abs(np.array(read(at_layout)) - np.array(read(alone))).max() < 1e-5


def test_training_does_not_notice_them(trained: Path, at_layout: Path) -> None:
    """From the same checkpoint, with and without, to the last bit."""

    def told(folder: Path) -> list[Any]:
        names = ("loss", "grad_norm", "loss_by_component", "step")
        return [[record[name] for name in names] for record in records(folder, "step")]

    num_processes, parallel = LAYOUTS[at_layout.name]
    without = trained.with_name(f"without-{at_layout.name}")
    shutil.copytree(trained, without)
    run_distributed(train, num_processes, job(without, parallel=parallel))
    assert told(at_layout) == told(without) and len(told(without)) == 4

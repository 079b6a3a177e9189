"""A backbone that knows one source is trained on another one only: each reaction of the guard, and what a resume keeps.

The runs are of 24 steps, evaluated every 4. `weights` are compared as sums of each tensor in float64: bit for bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from megatron_synE.training.benchmarks import BenchmarkScores
from tests.helpers.corpora import write_corpus
from tests.helpers.distributed import run_distributed
from tests.helpers.runs import records, train

SEQ_LENGTH, BATCH, STEPS, INTERVAL = 32, 8, 24, 4
BOUND = 0.8  # the losses are 1.6, 1.9, 3.3, 4.5: step 8 it is, whatever the last bits
KINDS = ("step", "evaluation", "forgetting", "decision")
SAME = ("what", "baseline", "baseline_step", "value", "bound", "reaction", "loss", "consumed_samples", "shares_after")
GUARD: dict[str, Any] = {"max_loss_increase": {"sources": {"old": BOUND}}}
RESTORE = {**GUARD, "reaction": "restore_share", "restore": {"step": 0.2, "max_restorations": 2, "cooldown_steps": 8}}


def write_corpora(folder: Path) -> None:
    """Words of each source walk up and down a part of the vocabulary of their own."""
    rng = np.random.default_rng(3)
    for number, name in enumerate(("old", "new")):
        documents = [(60 * number + np.cumsum(rng.integers(0, 3, 60)) % 60).tolist() for _ in range(80)]
        write_corpus(folder / name, documents)


def write_job(folder: Path, corpora: Path, weights: dict[str, float], **sections: Any) -> list[str]:
    job: dict[str, Any] = {
        "model": {
            "num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4, "num_query_groups": 2,
            "vocab_size": 120, "max_position_embeddings": 64, "make_vocab_size_divisible_by": 8,
        },
        "precision": {"dtype": "fp32"},
        "data": {
            "seq_length": SEQ_LENGTH, "heldout_fraction": 0.1, "heldout_samples": 4,
            "sources": {name: {"prefix": str(corpora / name)} for name in ("old", "new")},
            "stages": [{"name": "cpt", "tokens": STEPS * BATCH * SEQ_LENGTH, "weights": weights}],
        },
        "optimizer": {"lr": 3e-3},
        "schedule": {"warmup_steps": 0},
        "training": {"micro_batch_size": 4, "global_batch_size": BATCH},
        "evaluation": {"interval_steps": INTERVAL},
        "checkpoint": {"save": str(folder / "run"), "save_interval_steps": 3, "load": str(corpora / "run")},
        "logging": {"tensorboard": False},
    }  # fmt: skip
    for name, fields in sections.items():
        job[name] = {**job.get(name, {}), **fields}
    folder.mkdir(exist_ok=True)
    file = folder / "job.yaml"
    file.write_text(json.dumps(job), encoding="utf-8")  # JSON is YAML
    return ["--config", str(file)]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpora, and a backbone trained on the old one in `run`."""
    folder = tmp_path_factory.mktemp("guard")
    write_corpora(folder)
    arguments = write_job(
        folder, folder, {"old": 1.0, "new": 0.0}, checkpoint={"load": None}, evaluation={}, optimizer={"lr": 1e-2}
    )
    run_distributed(starts, 1, [arguments])
    return folder


def starts(several: list[list[str]], changes: dict[int, str] | None = None) -> list[dict[str, Any]]:
    """Starts one after the other; one that is refused tells why. `changes`: number of the start → a function here."""
    results = []
    for number, arguments in enumerate(several):
        name = (changes or {}).get(number)
        try:
            if name == "falling_scores":
                results.append(train(arguments, benchmarks=lambda run: FallingScores(run)))
            else:
                results.append(train(arguments, globals()[name] if name is not None else lambda run: None))
        except ValueError as error:
            results.append({"refused": str(error)})
    return results


class FallingScores:
    """A benchmark that loses a point in each step."""

    fingerprints: ClassVar = {"sciq": "asked"}

    def __init__(self, run: Any) -> None:
        self.all = run

    def run(self, between: Callable[[int, int], None]) -> BenchmarkScores:
        step = self.all.state.trajectory.step
        return BenchmarkScores({"sciq": {"acc": 0.8 - step / 100, "num_items": 7}}, self.fingerprints)


def spoil_step_14_once(run: Any) -> None:
    """Its embedding is NaN."""
    spoilt = []

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        if run.state.trajectory.step == 13 and module.training and len(spoilt) < 2:
            spoilt.append(1)
            return output * float("nan")
        return output

    for chunk in run.model_chunks:
        chunk.module.embedding.register_forward_hook(hook)


def cpt(folder: Path, corpora: Path, guard: dict[str, Any], **sections: Any) -> list[str]:
    """A run on the new source only."""
    evaluation = {"interval_steps": INTERVAL, "guard": guard}
    return write_job(folder, corpora, {"old": 0.0, "new": 1.0}, evaluation=evaluation, **sections)


def told(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        kind: [{"step": r["step"], **{name: r[name] for name in SAME if name in r}} for r in records(folder, kind)]
        for kind in KINDS
    }


def first_past(folder: Path) -> int:
    """The step of the first evaluation past the bound, by the evaluations themselves."""
    evaluations = records(folder, "evaluation")
    baseline = evaluations[0]["loss"]["old"]
    return next(e["step"] for e in evaluations if e["loss"]["old"] - baseline > BOUND)


def state_of(folder: Path, step: int) -> dict[str, Any]:
    return json.loads((folder / "run" / f"step_{step:08d}" / "state.json").read_text(encoding="utf-8"))


def test_warn_and_stop(tmp_path: Path, corpora: Path) -> None:
    warn, stop = tmp_path / "warn", tmp_path / "stop"
    warning = cpt(warn, corpora, GUARD)
    stopping = cpt(stop, corpora, {**GUARD, "reaction": "stop"}, checkpoint={"save_interval_steps": 100})
    higher = "--evaluation.guard.max_loss_increase.sources.old=9"
    warned, stopped, refused, on = run_distributed(starts, 1, [warning, stopping, stopping, [*stopping, higher]])[0]
    assert (warned["step"], warned["error"]) == (STEPS, "")
    step = first_past(warn)
    assert INTERVAL < step < STEPS - INTERVAL, "neither at the first evaluation nor at the last"
    first, *more = records(warn, "forgetting")
    expected = {"what": "loss of old", "step": step, "reaction": "warn", "bound": BOUND, "baseline_step": 0}
    assert {name: first[name] for name in expected} == expected
    losses = {record["step"]: record["loss"]["old"] for record in records(warn, "evaluation")}
    assert first["value"] == losses[step] and first["baseline"] == losses[0]
    assert first["consumed_samples"] == step * BATCH
    increases = [record["value"] - record["baseline"] for record in (first, *more)]
    assert all(later >= 2 * earlier for earlier, later in pairwise(increases)), "news only"

    said = f"after step {step} the run has forgotten more than it may: loss of old"
    assert stopped["step"] == step and said in stopped["error"]
    assert [record["reaction"] for record in records(stop, "forgetting")] == ["stop"]
    assert [r["step"] for r in records(stop, "checkpoint")] == [step, STEPS]
    assert [r["reason"] for r in records(stop, "stop")] == ["forgetting", "finished"]
    assert said in refused["refused"]
    assert (on["first_step"], on["step"], on["weights"]) == (step, STEPS, warned["weights"]), "as if it had not stopped"


def test_share_goes_back_and_a_resume_at_any_checkpoint_does_the_same(tmp_path: Path, corpora: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    arguments = cpt(whole, corpora, RESTORE)
    (first,) = run_distributed(starts, 1, [arguments])[0]
    step, expected = first_past(whole), told(whole)
    moved = [record for record in records(whole, "decision") if record["moves"] == "sources"]
    assert [record["shares_after"]["old"] for record in moved] == [0.2, 0.4][: len(moved)] and moved
    assert moved[0]["step"] == step and moved[0]["at_sample"] == step * BATCH
    assert moved[0]["inputs"]["value"] == {"loss of old": expected["forgetting"][0]["value"]}
    assert all(later["step"] - earlier["step"] >= 8 for earlier, later in pairwise(moved))
    assert [r["step"] for r in expected["forgetting"] if r["reaction"] == "restore_share"] == [r["step"] for r in moved]
    read = [record["loss_by_component"].keys() for record in records(whole, "step")]
    assert all("old" not in names for names in read[:step]) and all("old" in names for names in read[step:])
    losses = [record["loss"]["old"] for record in records(whole, "evaluation")]
    assert losses[-1] < max(losses), "it helps"
    state = state_of(whole, STEPS)
    assert state["forgetting"]["restored"] == {"old": [record["step"] for record in moved]}
    assert [decision["at_sample"] for decision in state["stream"]["decisions"]] == [r["at_sample"] for r in moved]

    places = [3, step - step % 3, step + 3 - step % 3, 18]
    runs = []
    for place in places:
        other = again.with_name(f"again-{place}")
        shutil.copytree(whole, other)
        for path in (other / "run").glob("step_*"):
            if int(path.name[5:]) > place:
                shutil.rmtree(path)
        (other / "run" / "latest").unlink()
        runs.append(cpt(other, corpora, RESTORE))
    stopped = cpt(tmp_path / "stopped", corpora, RESTORE)
    runs += [[*stopped, f"--training.exit_after_steps={step - 1}"], stopped]
    results = run_distributed(starts, 1, runs)[0]
    assert [result["first_step"] for result in results] == [*places, 0, step - 1]
    for result, folder in zip(results, [*(f"again-{place}" for place in places), "", "stopped"], strict=True):
        assert not folder or (result["weights"], told(tmp_path / folder)) == (first["weights"], expected), folder


def test_every_layout_decides_the_same(tmp_path: Path, corpora: Path) -> None:
    layouts: dict[str, dict[str, Any]] = {
        "one": {},
        "data": {},
        "pipeline": {"pipeline_model_parallel_size": 2},
        "tensor": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    }
    runs = {name: cpt(tmp_path / name, corpora, RESTORE, parallel=parallel) for name, parallel in layouts.items()}
    run_distributed(starts, 1, [runs.pop("one")])
    for results in run_distributed(starts, 2, list(runs.values())):
        assert [result["step"] for result in results] == [STEPS] * 3

    def decided(folder: Path) -> list[Any]:
        moved = [(r["step"], r["at_sample"], r["shares_after"]) for r in records(folder, "decision")]
        return [moved, [(r["step"], r["what"], r["reaction"]) for r in records(folder, "forgetting")]]

    expected = decided(tmp_path / "one")
    assert expected[0]
    segments = state_of(tmp_path / "one", STEPS)["stream"]["segments"]
    for name in runs:
        assert decided(tmp_path / name) == expected, name
        assert state_of(tmp_path / name, STEPS)["stream"]["segments"] == segments, name


def test_a_rollback_takes_the_memory_back(tmp_path: Path, corpora: Path) -> None:
    """Step 14 is spoilt; the run goes back to before the restoration at 8 or 12, and makes it again."""
    arguments = cpt(
        tmp_path / "healed", corpora, RESTORE, checkpoint={"save_interval_steps": 7},
        training={"fail_on_nan": False}, healing={"nonfinite": "rollback"},
    )  # fmt: skip
    (result,) = run_distributed(starts, 1, [arguments], {0: "spoil_step_14_once"})[0]
    assert (result["step"], result["error"]) == (STEPS - 1, "")
    (incident,) = records(tmp_path / "healed", "incident")
    moved = records(tmp_path / "healed", "decision")
    assert incident["resumed_from_step"] == 7 < moved[0]["step"] < 14
    state = state_of(tmp_path / "healed", STEPS - 1)
    assert state["forgetting"]["restored"] == {"old": [record["step"] for record in moved]}
    assert [decision["at_sample"] for decision in state["stream"]["decisions"]] == [r["at_sample"] for r in moved]


def test_what_a_guard_compares_with_that_came_later(tmp_path: Path, corpora: Path) -> None:
    """A run that evaluated from its start is compared with that; another one with its first evaluation."""
    five = ["--training.exit_after_steps=5"]
    evaluated, blind = cpt(tmp_path / "evaluated", corpora, {}), cpt(tmp_path / "blind", corpora, {})
    never = [f"--evaluation.{name}={value}" for name, value in (("at_start", False), ("interval_steps", "null"))]
    guard = ["--evaluation.guard.max_loss_increase.default=0.01"]
    run_distributed(
        starts, 1, [[*evaluated, *five], [*evaluated, *guard], [*blind, *never, *five], [*blind, *guard]]
    )  # fmt: skip
    assert {r["baseline_step"] for r in records(tmp_path / "evaluated", "forgetting")} == {0}
    assert records(tmp_path / "blind", "evaluation")[0]["step"] == 5
    forgotten = records(tmp_path / "blind", "forgetting")
    assert forgotten and {r["baseline_step"] for r in forgotten} == {5}


def test_a_benchmark_gives_share_back_to_its_sources(tmp_path: Path, corpora: Path) -> None:
    benchmarks = {"tasks": ["sciq"], "data_dir": ".", "tokenizer": "none is asked", "interval_steps": 5}
    guard = {
        "max_benchmark_drop": {"sciq": 8}, "benchmark_sources": {"sciq": ["old"]}, "reaction": "restore_share",
        "restore": {"max_restorations": 1},
    }  # fmt: skip
    arguments = write_job(
        tmp_path / "cpt", corpora, {"old": 0.0, "new": 1.0},
        evaluation={"interval_steps": None, "benchmarks": benchmarks, "guard": guard},
    )  # fmt: skip
    stopping = [*arguments, f"--checkpoint.save={tmp_path / 'stop' / 'run'}", "--evaluation.guard.reaction=stop"]
    changes = {0: "falling_scores", 1: "falling_scores"}
    restored, stopped = run_distributed(starts, 1, [arguments, stopping], changes)[0]
    assert restored.get("step") == STEPS, restored
    told = records(tmp_path / "cpt", "forgetting")
    found = [(r["step"], r["what"], r["reaction"], r.get("reason", "")) for r in told]
    once = "share was moved back to old 1 times already (max_restorations)"
    assert found == [(10, "acc of sciq", "restore_share", ""), (20, "acc of sciq", "warn", once)]
    (decision,) = records(tmp_path / "cpt", "decision")
    assert decision["shares_after"] == {"new": 0.95, "old": 0.05} and decision["at_sample"] == 10 * BATCH
    assert stopped["step"] == 10
    assert "acc of sciq 0.7000, 10.0000 points below 0.8000 at step 0 (bound 8)" in stopped["error"]

"""The trainer's part of state.json, damaged or crafted: one error that names the file, or what it says."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megatron_synE.checkpoint import DamagedCheckpoint
from megatron_synE.config.guard import RestoreConfig
from megatron_synE.config.job import JobConfig
from megatron_synE.config.parse import parse_job
from megatron_synE.data.strategies import RestoreShare
from megatron_synE.training.benchmarks import BenchmarkScores
from megatron_synE.training.config_changes import as_json
from megatron_synE.training.evaluate import EvaluationResult
from megatron_synE.training.forgetting import Baseline, Figure, Told
from megatron_synE.training.run_state import RunState, resume_run_state, start_run_state
from tests.helpers.runs import write_job

FIELDS = ["consumed_samples", "trajectory", "first_evaluation", "last_evaluation", "spike_windows", "incidents",
          "in_a_row", "config_changes", "config", "step", "first_benchmarks", "last_benchmarks",
          "forgetting"]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["stretches", "step", "a"]), inner),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobConfig, dict[str, Any]]:
    job = parse_job(write_job(tmp_path_factory.mktemp("job")))
    run = start_run_state(job, vocab_size=300, cache_builder=True)
    for _ in range(3):
        run.trajectory.advance()
    run.first_evaluation = (0, EvaluationResult({"book": 3.0}, {"book": 5}))
    run.last_evaluation = (3, EvaluationResult({"book": 2.0}, {"book": 5}))
    run.first_benchmarks = (0, BenchmarkScores({"sciq": {"acc": 0.25, "num_items": 4}}, {"sciq": "a1"}))
    run.last_benchmarks = (3, BenchmarkScores({"sciq": {"acc": 0.5, "num_items": 4}}, {"sciq": "a1"}))
    run.spikes.accept({"loss": 2.0})
    run.forgetting.begin(0, {"loss of book": Figure(3.0, "5 tokens")})
    run.forgetting.told["loss of book"] = Told(3, 2.0)
    run.stream.restore_share(24, ["book"], RestoreShare(RestoreConfig(step=0.1)))
    content = {"step": 3, "config": as_json(job), **run.to_json()}
    return job, json.loads(json.dumps(content))


def resume(job: JobConfig, state: dict[str, Any]) -> RunState:
    return resume_run_state(job, as_json(job), state, where="run/state.json", vocab_size=300, cache_builder=True)


def test_what_was_saved_comes_back(saved: tuple[JobConfig, dict[str, Any]]) -> None:
    job, state = saved
    run = resume(job, state)
    assert {"step": 3, "config": as_json(job), **run.to_json()} == state
    assert run.stands_for({"kind": "evaluation", "step": 3}) and not run.stands_for({"kind": "decision", "step": 3})
    assert run.stands_for({"kind": "benchmark", "step": 3}) and run.stands_for({"kind": "benchmark", "step": 2})
    told = {"kind": "forgetting", "step": 3, "what": "loss of book"}
    assert run.stands_for(told) and not run.stands_for({**told, "what": "loss of web"})
    moved = {"kind": "decision", "step": 3, "at_sample": 24, "moves": "sources"}
    assert run.stands_for(moved) and not run.stands_for({**moved, "moves": "topics"})
    assert run.stands_for({"kind": "step", "step": 3}) and not run.stands_for({"kind": "step", "step": 4})


def test_a_state_older_than_the_guard_knows_its_first_evaluation(saved: tuple[JobConfig, dict[str, Any]]) -> None:
    job, state = saved
    known = {name: value for name, value in state.items() if name != "forgetting"}
    loss, accuracy = Baseline(3.0, "5 tokens", 0), Baseline(0.25, "a1", 0)
    assert resume(job, known).forgetting.baselines == {"loss of book": loss, "acc of sciq": accuracy}
    del known["first_benchmarks"], known["last_benchmarks"]
    assert resume(job, known).forgetting.baselines == {"loss of book": loss}
    del known["first_evaluation"]
    assert resume(job, known).forgetting.baselines == {"loss of book": Baseline(2.0, "5 tokens", 3)}
    assert resume(job, {**known, "last_evaluation": None}).forgetting.baselines == {}


@example("consumed_samples", 161)  # of 160
@given(st.sampled_from(FIELDS), JSON)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
def test_a_field_that_cannot_be_is_one_error(
    saved: tuple[JobConfig, dict[str, Any]], field: str, value: object
) -> None:
    job, state = saved
    crafted = {**copy.deepcopy(state), field: value}
    try:
        resume(job, crafted)
    except DamagedCheckpoint as error:
        assert str(error).startswith("run/state.json: ")


def test_the_files_name_is_told(saved: tuple[JobConfig, dict[str, Any]], tmp_path: Path) -> None:
    job, state = saved
    with pytest.raises(DamagedCheckpoint, match=r"^run/state\.json: consumed_samples: 25 after 3 steps"):
        resume(job, {**state, "consumed_samples": 25})

"""Rank 0 asks, the others serve; what goes wrong on one of them ends all, and says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_synE.config.parallel import ParallelConfig
from tests.helpers.distributed import run_distributed
from tests.helpers.hf_llama import make_hf_llama

TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}


def open_engine(folder: str, layout: dict[str, Any], **fields: Any) -> Any:
    from megatron_synE.evaluation.llama.batching import BatchLimits
    from megatron_synE.evaluation.llama.llama_engine import EngineOptions, LlamaEngine

    options = EngineOptions(ParallelConfig(**layout), "fp32", limits=BatchLimits(100), **fields)
    if (Path(folder) / "config.json").exists():
        return LlamaEngine.from_hf(folder, options)
    return LlamaEngine.from_checkpoint(folder, options)


def make_checkpoint(hf: str, folder: str) -> None:
    """A checkpoint of ours with the weights of an HF folder, written at TP 2."""
    from megatron_synE.checkpoint import architecture_from_hf, init_from_hf, save_checkpoint
    from tests.helpers.checkpoint import build_model

    architecture = architecture_from_hf(hf)
    chunks = build_model(ParallelConfig(tensor_model_parallel_size=2), "fp32", architecture)
    init_from_hf(chunks, hf)
    save_checkpoint(
        folder, step=7, architecture=architecture, model_chunks=chunks, optimizer=None, rng_state=None, state={}
    )


def ask(engine: Any) -> dict[str, Any]:
    """All that a harness does with an engine, wrong requests among it."""
    from megatron_synE.evaluation.engine import GenerationRequest, ScoringRequest

    told: dict[int, float] = {}

    def on_done(numbers: Any, answers: Any) -> None:
        told.update(zip(numbers, [answer.value for answer in answers], strict=True))

    requests = [ScoringRequest(tuple(range(1, n)), (5, 6)) for n in range(2, 40)]
    answers = engine.log_likelihoods(requests, on_done)
    assert told == {number: answer.value for number, answer in enumerate(answers)}
    assert engine.log_likelihoods([]) == [] and engine.generate([]) == []
    # Nothing reaches the other processes, which go on serving.
    with pytest.raises(ValueError, match="request 0: a token id is not in the model's vocabulary of 131"):
        engine.log_likelihoods([ScoringRequest((131,), (1,))])
    with pytest.raises(ValueError, match="prompt 0: 600 new tokens are asked for; the model's context of 512"):
        engine.generate([GenerationRequest((1,), 600, lambda tokens: False)])
    finished: list[tuple[int, list[int]]] = []
    prompts = [GenerationRequest((9, 8, 7)[:n], 12, lambda tokens: False) for n in (1, 2, 3)]
    whole = engine.generate(prompts, lambda number, tokens: finished.append((number, list(tokens))))
    assert sorted(finished) == list(enumerate(whole))
    # Each ends behind a token of its own choice.
    ends = [tokens[4] for tokens in whole]
    stopped = engine.generate([
        GenerationRequest(prompt.prompt, 12, lambda new, end=end: new[-1] == end)
        for prompt, end in zip(prompts, ends, strict=True)
    ])  # fmt: skip
    assert stopped == [tokens[: tokens.index(end) + 1] for tokens, end in zip(whole, ends, strict=True)]
    return {"values": [answer.value for answer in answers], "tokens": whole, "info": engine.info()}


def lead_or_serve(cases: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    # Torch's processes are there already, and stay when an engine closes: one layout after the other.
    from megatron_synE.runtime import initialize

    initialize(ParallelConfig())
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    results = []
    for folder, layout in cases:
        engine = open_engine(folder, layout)
        results.append(engine.lead(ask))
        with pytest.raises(RuntimeError, match="the engine is closed"):
            engine._together().__enter__()
    if engine.is_main:
        results.append(end_of_text(open_engine(folder, layout, end_of_text_ids=(results[-1]["tokens"][0][3],))))
        with pytest.raises(KeyError, match="of the harness"):
            open_engine(folder, layout).lead(fail)
    else:
        open_engine(folder, layout).serve()
        open_engine(folder, layout).serve()  # in peace, whatever the harness does
    return results


def end_of_text(engine: Any) -> list[list[int]]:
    from megatron_synE.evaluation.engine import GenerationRequest

    return engine.lead(lambda engine: engine.generate([GenerationRequest((9,), 12, lambda new: False)]))


def fail(engine: Any) -> None:
    raise KeyError("of the harness")


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hf")
    make_hf_llama(folder, "gqa")
    return str(folder)


def test_checkpoint_and_hf_folder_at_any_layout(hf: str, tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "run")
    run_distributed(make_checkpoint, 2, hf, checkpoint)
    alone, stopped = run_distributed(lead_or_serve, 1, [(hf, {})])[0]
    expected = alone["tokens"][0]
    assert stopped == [expected[: expected.index(expected[3])]], "an end-of-text token is left out"
    cases: list[tuple[str, dict[str, Any]]] = [(hf, TP2), (checkpoint, PP2), (checkpoint, {})]
    (*leader, also_stopped), server = run_distributed(lead_or_serve, 2, cases)
    assert server == [None] * len(cases) and also_stopped == stopped
    for (folder, layout), found in zip(cases, leader, strict=True):
        assert max(abs(a - b) for a, b in zip(found["values"], alone["values"], strict=True)) <= 1e-4, layout
        assert found["tokens"] == alone["tokens"], layout
        assert found["info"]["path"].startswith(folder)
    assert leader[1]["info"]["step"] == 7
    assert leader[1]["info"]["layout"]["pipeline_model_parallel_size"] == 2
    assert leader[1]["info"]["fingerprint"] == leader[2]["info"]["fingerprint"] != alone["info"]["fingerprint"]


def break_on(rank: int, action: str) -> Callable[..., Any]:
    """A model that fails in the forward pass of one process."""
    from megatron_synE.evaluation.llama import scoring

    def fail(*arguments: Any) -> Any:
        if torch.distributed.get_rank() == rank:
            raise MemoryError(action)
        return run_asked(*arguments)

    run_asked = scoring.run_asked
    scoring.run_asked = fail  # type: ignore[assignment]
    return fail


def fail_in_one(hf: str, rank: int) -> str:
    from megatron_synE.evaluation.engine import ScoringRequest

    engine = open_engine(hf, TP2)
    break_on(rank, "no memory here")
    try:
        engine.lead(lambda engine: engine.log_likelihoods([ScoringRequest((1, 2), (3,))]))
    except (MemoryError, RuntimeError) as error:
        with pytest.raises(RuntimeError, match="is closed, or ended with an error"):
            engine._together().__enter__()
        engine.close()
        return type(error).__name__
    return "no error"


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_ends_all(hf: str, rank: int) -> None:
    names = run_distributed(fail_in_one, 2, hf, rank, timeout_s=120)
    assert names[rank] == "MemoryError" and names[1 - rank] == "RuntimeError"


def test_what_cannot_be_opened(hf: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint here"):
        open_engine(str(tmp_path), {})
    with pytest.raises(ValueError, match=r"parallel\.tensor_model_parallel_size: 3 does not divide"):
        open_engine(hf, {"tensor_model_parallel_size": 3})

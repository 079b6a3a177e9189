"""Parts of an evaluation that need no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.config.evaluation_results import read_evaluation
from megatron_synE.corpus.tokenizers import CorpusTokenizer, build_tokenizer
from megatron_synE.evaluation import run
from megatron_synE.evaluation.encoding import RequestEncoder, bos_policy
from megatron_synE.evaluation.engine import LogLikelihood, ScoringRequest
from megatron_synE.evaluation.engines.generators import EngineGenerator, Prompt
from megatron_synE.evaluation.options import EvaluationOptions
from tests.helpers.commands import SAMPLE
from tests.helpers.completion_server import server, text
from tests.helpers.evaluations import make_evaluation

OPTIONS = EvaluationOptions(("sciq",), Path("data"), Path("out"), checkpoint=Path("run"), dtype="fp32")


class Constant:
    """Gives every token the same likelihood."""

    max_length_tokens, vocab_size = 64, 4096

    def __init__(self, per_token: float) -> None:
        self._per_token = per_token

    def info(self) -> dict[str, Any]:
        return {}

    def log_likelihoods(self, requests: Sequence[ScoringRequest], on_done: Any = None) -> list[LogLikelihood]:
        return [LogLikelihood(self._per_token * len(request.continuation), False) for request in requests]

    def generate(self, requests: Any, on_done: Any = None) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer() -> CorpusTokenizer:
    return build_tokenizer("auto", SAMPLE / "tokenizer")


def test_another_model_does_not_continue_the_prompts() -> None:
    options = dataclasses.replace(OPTIONS, generate_with="hf", export_dir=Path("export"))
    run.check_same_model(Constant(-2.0), Constant(-2.0004), options)
    run.check_same_model(Constant(-2.0), Constant(-2.04), dataclasses.replace(options, dtype="bf16"))
    with pytest.raises(ValueError, match=r"export is another model than run: it gives 32 tokens .* -64.064, not -64.0"):
        run.check_same_model(Constant(-2.0), Constant(-2.002), options)


def test_who_continues_prompts_is_chosen(tokenizer: CorpusTokenizer) -> None:
    encoder, engine = RequestEncoder(tokenizer, bos_policy(tokenizer, "auto")), Constant(-1.0)
    own = run._open_generator(OPTIONS, engine, encoder)
    assert isinstance(own, EngineGenerator) and own.engine is engine
    with server(lambda body, count: (200, text("said"))) as running:
        beside = run._open_generator(dataclasses.replace(OPTIONS, generate_with=running.url), engine, encoder)
        found: dict[int, str] = {}
        beside.generate([Prompt((1, 2), (".",), 5)], lambda number, own: found.update({number: own}))
        assert (found, beside.info()["type"]) == ({0: "said"}, "endpoint")
        beside.close()


def test_a_vocabulary_must_hold_the_tokenizers(tokenizer: CorpusTokenizer) -> None:
    said: list[str] = []
    run.check_vocabulary(tokenizer, 4096, said.append)
    assert said == []
    run.check_vocabulary(tokenizer, 4224, said.append)
    assert said == ["tokenizer has 4,096 ids, the model 4,224: no text has the rest of them"]
    with pytest.raises(ValueError, match="has ids up to 4095, and the model a vocabulary of 4095"):
        run.check_vocabulary(tokenizer, 4095, said.append)


def test_what_ends_a_text_is_what_transformers_reads(tokenizer: CorpusTokenizer, tmp_path: Path) -> None:
    assert run.end_of_text_ids(None, tokenizer) == run.end_of_text_ids(tmp_path, tokenizer) == [4095]
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}', encoding="utf-8")
    assert run.end_of_text_ids(tmp_path, tokenizer) == [7]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 9]}', encoding="utf-8")
    assert run.end_of_text_ids(tmp_path, tokenizer) == [8, 9]


def test_the_table_has_benchmarks_and_not_their_subjects(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path, {"mmlu_a": [1.0, 0.0], "mmlu_b": [1.0, 1.0]}, group=("mmlu", True))
    head, row = run.results_table(read_evaluation(folder))
    assert head.split() == ["task", "metric", "shots", "items", "value", "stderr"]
    assert row.split() == ["mmlu", "acc", "5", "4", "0.7500"]


def test_a_model_that_was_moved_is_the_same() -> None:
    first = {"model": {"path": "/a", "fingerprint": "f"}, "tokenizer": {"name": "/a"}}
    second = {"model": {"path": "/b", "fingerprint": "f"}, "tokenizer": {"name": "/b"}}
    assert run.without_places(first) == run.without_places(second) == {"model": {"fingerprint": "f"}, "tokenizer": {}}

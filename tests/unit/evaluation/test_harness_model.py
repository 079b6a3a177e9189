"""The harness's model over an engine that counts what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from megatron_synE.corpus.tokenizers import CorpusTokenizer, build_tokenizer
from megatron_synE.evaluation import harness_model
from megatron_synE.evaluation.answers import AnswerJournal
from megatron_synE.evaluation.encoding import RequestEncoder, bos_policy
from megatron_synE.evaluation.engine import GenerationRequest, LogLikelihood, ScoringRequest
from megatron_synE.evaluation.engines.generators import EngineGenerator, cut
from megatron_synE.evaluation.harness_model import HarnessModel
from tests.helpers.commands import SAMPLE

TEXT = "one two three. STOP four five 六 seven eight nine ten"


class CountingEngine:
    """ln p is a function of the request; a prompt is continued by the tokens of `TEXT`. Batches of two."""

    max_length_tokens = 40
    vocab_size = 4096

    def __init__(self, tokenizer: CorpusTokenizer, fails_after: int = 1000) -> None:
        self.asked: list[ScoringRequest] = []
        self.prompts: list[tuple[int, ...]] = []
        self.num_new: list[int] = []
        self._new = tokenizer.encode_batch([TEXT])[0].tolist()
        self._fails_after = fails_after

    def info(self) -> dict[str, Any]:
        return {"model": "counts"}

    def log_likelihoods(
        self, requests: Sequence[ScoringRequest], on_done: Callable[..., None] = lambda numbers, answers: None
    ) -> list[LogLikelihood]:
        answers = [LogLikelihood(-float(sum(request.continuation)) / 7, len(request.context) % 2 == 0)
                   for request in requests]  # fmt: skip
        for first in range(0, len(requests), 2):
            if len(self.asked) >= self._fails_after:
                raise KeyboardInterrupt
            self.asked += requests[first : first + 2]
            on_done(range(first, min(first + 2, len(requests))), answers[first : first + 2])
        return answers

    def generate(
        self, requests: Sequence[GenerationRequest], on_done: Callable[..., None] = lambda number, tokens: None
    ) -> list[list[int]]:
        found = []
        for number, request in enumerate(requests):
            self.prompts.append(request.prompt)
            new: list[int] = []
            while len(new) < min(request.max_new_tokens, len(self._new)) and not (new and request.is_finished(new)):
                new.append(self._new[len(new)])
            self.num_new.append(len(new))
            on_done(number, new)
            found.append(new)
        return found

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer() -> CorpusTokenizer:
    return build_tokenizer("auto", SAMPLE / "tokenizer")


def model_of(tokenizer: CorpusTokenizer, folder: Path, engine: CountingEngine | None = None) -> HarnessModel:
    engine = engine or CountingEngine(tokenizer)
    encoder = RequestEncoder(tokenizer, bos_policy(tokenizer, "auto"))
    journal = AnswerJournal(folder, {"model": "counts"})
    return HarnessModel(engine, EngineGenerator(engine, encoder), encoder, journal, show=False)


def scoring(*pairs: tuple[str, str]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]


def generation(prompt: str, **options: Any) -> list[Instance]:
    return [Instance("generate_until", {}, (prompt, options), 0, ("some_task", 0, 1))]


def test_equal_requests_are_asked_once(tokenizer: CorpusTokenizer, tmp_path: Path) -> None:
    model = model_of(tokenizer, tmp_path)
    pairs = [("Answer:", " A"), ("Answer:", " B"), ("Answer:", " A"), ("Answer: ", "A")]
    answers = model.loglikelihood(scoring(*pairs))
    assert answers[0] == answers[2] == answers[3] != answers[1]
    assert len(model.engine.asked) == 2


def test_a_killed_evaluation_asks_whole_portions_of_the_rest(
    tokenizer: CorpusTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness_model, "PORTION_REQUESTS", 3)
    pairs = [("Answer:", f" {letter}") for letter in "ABCDEFG"]
    whole = model_of(tokenizer, tmp_path / "whole").loglikelihood(scoring(*pairs))
    with pytest.raises(KeyboardInterrupt):
        model_of(tokenizer, tmp_path / "cut", CountingEngine(tokenizer, fails_after=4)).loglikelihood(scoring(*pairs))
    model = model_of(tokenizer, tmp_path / "cut")
    assert model.loglikelihood(scoring(*pairs)) == whole
    assert len(model.engine.asked) == 4  # the second portion, of which the engine had answered one, and the third


def test_a_text_is_scored_in_windows_after_one_bos(tokenizer: CorpusTokenizer, tmp_path: Path) -> None:
    text = TEXT * 4
    (ids,) = model_of(tokenizer, tmp_path / "a").encoder.encode([text], with_bos=False)
    assert len(ids) > 2 * CountingEngine.max_length_tokens
    model = model_of(tokenizer, tmp_path / "b")
    (value,) = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    asked = model.engine.asked
    assert sum((request.continuation for request in asked), ()) == ids  # each token once
    assert asked[0].context == (4094,)
    assert all(len(request.context) + len(request.continuation) <= 41 for request in asked)
    assert value == pytest.approx(-sum(ids) / 7)


def test_generations_end_before_their_stop(tokenizer: CorpusTokenizer, tmp_path: Path) -> None:
    model = model_of(tokenizer, tmp_path)
    assert model.generate_until(generation("Q:", until=["STOP", "ten"], max_gen_toks=30)) == ["one two three. "]
    assert model.engine.prompts[0][0] == 4094
    (num_new,) = model.engine.num_new
    assert tokenizer.decode(tokenizer.encode_batch([TEXT])[0][:num_new]).endswith("STOP")  # and no token more
    assert model.generate_until(generation("Q:", until="六", max_gen_toks=30))[0].endswith("five ")
    assert model.generate_until(generation("Q:", until=[], max_gen_toks=3))[0] == tokenizer.decode(
        tokenizer.encode_batch([TEXT])[0][:3]
    )


def test_generations_are_kept(tokenizer: CorpusTokenizer, tmp_path: Path) -> None:
    first = model_of(tokenizer, tmp_path).generate_until(generation("Q:", until=["STOP"], max_gen_toks=30))
    model = model_of(tokenizer, tmp_path)
    assert model.generate_until(generation("Q:", until=["STOP"], max_gen_toks=30)) == first
    assert model.engine.prompts == []
    model.generate_until(generation("Q:", until=["five"], max_gen_toks=30))  # other stops are another request
    assert len(model.engine.prompts) == 1


def test_what_no_engine_can_do_is_refused(tokenizer: CorpusTokenizer, tmp_path: Path) -> None:
    model = model_of(tokenizer, tmp_path)
    for options in ({"do_sample": True}, {"temperature": 0.7}):
        with pytest.raises(ValueError, match="task some_task: asks for sampling"):
            model.generate_until(generation("Q:", until=["."], **options))
    with pytest.raises(ValueError, match=r"40 new tokens \(max_gen_toks\) leave no room for a prompt"):
        model.generate_until(generation("Q:", until=["."], max_gen_toks=40))


def test_what_is_too_long_is_counted(tokenizer: CorpusTokenizer, tmp_path: Path) -> None:
    model = model_of(tokenizer, tmp_path)
    model.loglikelihood(scoring((TEXT * 3, " A"), ("short", " A")))
    model.generate_until(generation(TEXT * 3, until=["."], max_gen_toks=30))
    assert len(model.engine.prompts[0]) == 10
    assert next(note for note in model.notes() if "lost their" in note).startswith("2 requests are longer")


def test_probabilities_that_are_no_numbers_are_told(tokenizer: CorpusTokenizer, tmp_path: Path) -> None:
    class Damaged(CountingEngine):
        def log_likelihoods(self, requests: Any, on_done: Any = None) -> list[LogLikelihood]:
            return [LogLikelihood(float("nan"), False)]

    with pytest.raises(ValueError, match="probabilities that are not numbers"):
        model_of(tokenizer, tmp_path, Damaged(tokenizer)).loglikelihood(scoring(("a", "b")))


def test_a_text_is_cut_at_the_first_of_its_stops() -> None:
    assert cut("a b c d", ["c", "b"]) == "a "
    assert cut("a b c d", []) == cut("a b c d", ["x"]) == "a b c d"
    assert cut("", ["x"]) == ""

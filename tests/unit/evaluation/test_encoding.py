"""Texts to token ids: begin-of-text tokens, and the boundary between context and continuation."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.model import TemplateLM

from megatron_synE.corpus.tokenizers import CorpusTokenizer, build_tokenizer
from megatron_synE.evaluation.encoding import RequestEncoder, bos_policy, split_pair
from tests.helpers.commands import SAMPLE

BOS, EOS = 4094, 4095
PAIRS = [
    ("Question: what is water?\nAnswer:", " a liquid"),
    ("Question: what is water?\nAnswer: ", "a liquid"),
    ("ends with lines\n\n", "then goes on"),
    ("问题：水是什么？\n答案：", "A"),
    ("问题：水是什么？\n答案：", "液体，无色"),
    ("全角空格\u3000", "后"),
    ("the mark", "et"),
    ("", "no context"),
    ("   ", "only white space"),
]


@pytest.fixture(scope="module")
def tokenizer() -> CorpusTokenizer:
    return build_tokenizer("auto", SAMPLE / "tokenizer")


def encoder_of(tokenizer: CorpusTokenizer, add_bos: str = "auto") -> RequestEncoder:
    return RequestEncoder(tokenizer, bos_policy(tokenizer, add_bos))


class Harness(TemplateLM):  # type: ignore[misc]
    """lm-eval's own settling of the boundary, over transformers' tokenizer and one BOS in front."""

    def __init__(self, folder: Path, bos: list[int]) -> None:
        from transformers import AutoTokenizer

        super().__init__()
        self._own, self._bos = AutoTokenizer.from_pretrained(str(folder)), bos

    eot_token_id = BOS

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        ids = list(self._own.encode(string, add_special_tokens=False))
        return ids if add_special_tokens is False else self._bos + ids

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> Any:
        return [(context, rest) for _, context, rest in requests]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError

    generate_until = loglikelihood_rolling


class Request:
    def __init__(self, *args: str) -> None:
        self.args = args


@pytest.mark.parametrize("add_bos", ["yes", "no"])
def test_pairs_are_cut_as_the_harness_cuts_them(tokenizer: CorpusTokenizer, add_bos: str) -> None:
    harness = Harness(SAMPLE / "tokenizer", [BOS] if add_bos == "yes" else [])
    words = ["水", "答案：", "A", " the", "mark", "et", "\n", "  ", "（", "1,2", "é"]
    made = [("".join(parts[:2]) + "x", "".join(parts[2:])) for parts in itertools.product(words, repeat=4)]
    pairs = [*(pair for pair in PAIRS if pair[0].strip()), *made[::7]]
    theirs = harness.loglikelihood([Request(*pair) for pair in pairs], disable_tqdm=True)
    ours = encoder_of(tokenizer, add_bos).encode_pairs(pairs)
    for pair, own, (context, rest) in zip(pairs, ours, theirs, strict=True):
        assert list(own.context) == context, pair
        if rest:  # else lm-eval's model fails: all of the answer went into the context's last token
            assert list(own.continuation) == rest, pair


def test_one_bos_and_never_two(tokenizer: CorpusTokenizer) -> None:
    encoder = encoder_of(tokenizer)
    plain, spelled, inside = encoder.encode(["text", "<|begin_of_text|>text", "text <|begin_of_text|>"])
    assert plain == spelled and plain.count(BOS) == 1 and plain[0] == BOS
    assert inside.count(BOS) == 1  # what stands within a text is text
    assert encoder.encode(["text"], with_bos=False)[0] == plain[1:]
    assert encoder_of(tokenizer, "no").encode(["text"])[0] == plain[1:]
    for request in encoder.encode_pairs(PAIRS):
        assert (*request.context, *request.continuation).count(BOS) == 1 and request.context[0] == BOS


def test_white_space_moves_to_the_continuation() -> None:
    assert split_pair("Answer: ", "A") == ("Answer:", " A")
    assert split_pair("a\n\n", "b") == ("a", "\n\nb")
    assert split_pair("答案：", "A") == ("答案：", "A")
    assert split_pair(" ", "b") == ("", " b")


def test_what_happens_at_boundaries_is_counted(tokenizer: CorpusTokenizer) -> None:
    encoder = encoder_of(tokenizer)
    pairs = [("th", "e"), ("Answer: ", "A"), ("Answer:", " A"), ("<|begin_of_text|>Answer:", " A")]
    encoder.encode_pairs(pairs)
    assert dict(encoder.counts) == {"merged": 1, "moved_white_space": 1, "written_bos": 1}
    assert [note.split()[0] for note in encoder.notes()] == ["1", "1", "1"]


def test_an_answer_that_went_into_the_contexts_last_token_is_scored_by_itself(tokenizer: CorpusTokenizer) -> None:
    encoder = encoder_of(tokenizer)
    whole, context = encoder.encode(["the market", "the mark"])
    assert len(whole) < len(context)
    (request,) = encoder.encode_pairs([("the mark", "et")])
    assert (request.context, [request.continuation]) == (context, encoder.encode(["et"], with_bos=False))


def test_equal_contexts_are_one_object(tokenizer: CorpusTokenizer) -> None:
    first, second = encoder_of(tokenizer).encode_pairs([("Answer:", " A"), ("Answer: ", "B")])
    assert first.context is second.context


def test_a_text_without_context_begins_with_bos_or_end_of_text(tokenizer: CorpusTokenizer) -> None:
    assert encoder_of(tokenizer, "no").encode_pairs([("", "text")])[0].context == (BOS,)
    without = dataclasses.replace(tokenizer, bos_id=None, bos_text="")
    assert encoder_of(without, "no").encode_pairs([("", "text")])[0].context == (EOS,)
    with pytest.raises(ValueError, match="needs a begin-of-text or end-of-text token"):
        encoder_of(dataclasses.replace(without, eod_id=None), "no").encode_pairs([("", "text")])
    with pytest.raises(ValueError, match="likelihood of an empty text"):
        encoder_of(tokenizer).encode_pairs([("context", "")])


def test_the_policy_is_told(tokenizer: CorpusTokenizer) -> None:
    told = bos_policy(tokenizer, "auto").describe()
    assert told == "one <|begin_of_text|> (id 4094) before every request: the tokenizer has it"
    assert bos_policy(tokenizer, "no").describe() == "no begin-of-text token: --add-bos no"
    declining = dataclasses.replace(tokenizer, declines_bos=True)
    assert bos_policy(declining, "auto").describe() == "no begin-of-text token: the tokenizer's files decline it"
    assert bos_policy(declining, "yes").token_id == BOS
    without = dataclasses.replace(tokenizer, bos_id=None, bos_text="")
    assert bos_policy(without, "no").token_id is None
    for add_bos in ("auto", "yes"):
        with pytest.raises(ValueError, match=rf"--add-bos {add_bos}: .* no begin-of-text token; name it as bos_token"):
            bos_policy(without, add_bos)


@pytest.mark.parametrize(
    "config, bos_id",
    [
        ({"bos_token": "<|begin_of_text|>"}, BOS),
        ({"bos_token": {"content": "<|begin_of_text|>"}, "add_bos_token": False}, None),
        ({"bos_token": None}, None),  # as Qwen's files say it
        ({}, BOS),  # by its customary name
    ],
)
def test_what_the_files_say_of_bos_is_believed(tmp_path: Path, config: dict[str, Any], bos_id: int | None) -> None:
    shutil.copy(SAMPLE / "tokenizer" / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"bos_token_id": 7}', encoding="utf-8")
    assert bos_policy(build_tokenizer("auto", tmp_path, fast=False), "auto").token_id == bos_id


def test_special_tokens_are_no_text(tokenizer: CorpusTokenizer) -> None:
    encoder = encoder_of(tokenizer)
    (ids,) = encoder.encode(["水 is wet"])
    assert encoder.decode([*ids, EOS]) == "水 is wet"
    assert encoder.decode([]) == ""

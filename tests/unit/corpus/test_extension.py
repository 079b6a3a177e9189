"""New tokens leave the old ones as they are, stand for sequences of them, and are found by every backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from megatron_synE.corpus import extension as extension_module
from megatron_synE.corpus.extension import BytePairTokenizer, Extension, fertility
from tests.helpers.progress import is_complete, recorded_bars

SAMPLE = Path(__file__).parents[3] / "examples" / "data"
OLD_JSON = (SAMPLE / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8")
OLD: Any = Tokenizer.from_str(OLD_JSON)
TEXTS = [json.loads(line)["text"] for line in (SAMPLE / "web_zh.jsonl").read_text(encoding="utf-8").splitlines()[:60]]


@pytest.fixture(scope="module")
def learned() -> Extension:
    tokenizer = BytePairTokenizer("sample", OLD_JSON)
    return tokenizer.extend(tokenizer.learn_merges(TEXTS, 150))


def test_old_ids_stay_and_new_ones_follow(learned: Extension) -> None:
    new: Any = Tokenizer.from_str(learned.tokenizer_json)
    assert learned.old_vocab_size == 4096
    assert list(learned.subwords) == list(range(4096, 4246))
    assert new.get_vocab_size() == 4246
    assert all(new.token_to_id(token) == index for token, index in OLD.get_vocab().items())
    assert new.token_to_id("<|begin_of_text|>") == 4094
    assert new.encode("a<|end_of_text|>").ids[-1] == 4095


def _expanded(extension: Extension, ids: list[int]) -> list[int]:
    return [part for index in ids for part in extension.subwords.get(index, [index])]


def test_new_tokens_stand_for_their_sub_words(learned: Extension) -> None:
    new: Any = Tokenizer.from_str(learned.tokenizer_json)
    for text in TEXTS:
        ids = new.encode(text).ids
        assert _expanded(learned, ids) == OLD.encode(text).ids
        assert new.decode(ids) == text
    assert fertility(learned.tokenizer_json, TEXTS) < 0.9 * fertility(OLD_JSON, TEXTS)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60) | st.sampled_from(TEXTS).map(lambda text: text[5:60]))
def test_text_without_new_tokens_is_as_before(learned: Extension, text: str) -> None:
    new: Any = Tokenizer.from_str(learned.tokenizer_json)
    before, after = OLD.encode(text).ids, new.encode(text).ids
    assert before == after or any(index in learned.subwords for index in after)
    assert _expanded(learned, after) == before


def test_the_merges_are_those_of_byte_pair_encoding() -> None:
    tokenizer = BytePairTokenizer("sample", OLD_JSON)
    texts = ["xqzj"] * 3 + ["xqz"] * 2 + ["zjv"] * 4
    merges = tokenizer.learn_merges(texts, 3)
    parts = tokenizer.subwords(["xqzj", "zjv"])
    assert parts == [["x", "q", "z", "j"], ["z", "j", "v"]], "the example needs letters that the sample keeps apart"
    # z j occurs 7 times; then x q 5 times; then zj v 4 times.
    assert merges == [("z", "j"), ("x", "q"), ("zj", "v")]
    with pytest.raises(ValueError, match="--num-new 99: the text has only"):
        tokenizer.learn_merges(texts, 99)


def test_tokens_of_a_list() -> None:
    tokenizer = BytePairTokenizer("sample", OLD_JSON)
    extension = tokenizer.extend(tokenizer.merges_for(["xqzj", "in", "xqzw", "量子纠缠"]))
    new: Any = Tokenizer.from_str(extension.tokenizer_json)
    for text in ("xqzj", "xqzw", "量子纠缠"):
        (index,) = new.encode(text).ids
        assert extension.subwords[index] == OLD.encode(text).ids
    assert new.encode("in").ids == OLD.encode("in").ids and len(OLD.encode("in").ids) == 1
    with pytest.raises(ValueError, match=r"'two words' is cut .* into 2 words; take these lines out"):
        tokenizer.merges_for(["two words"])


def test_the_trainers_tokenizer_reads_it(learned: Extension, tmp_path: Path) -> None:
    from megatron_synE.corpus.tokenizers import build_tokenizer

    (tmp_path / "tokenizer.json").write_text(learned.tokenizer_json, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_bytes((SAMPLE / "tokenizer" / "tokenizer_config.json").read_bytes())
    tokenizer = build_tokenizer("HuggingFaceTokenizer", str(tmp_path))
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (4246, 4095)
    new: Any = Tokenizer.from_str(learned.tokenizer_json)
    tokens, _ = tokenizer.encode_batch(TEXTS)
    assert tokens.tolist() == [index for text in TEXTS for index in new.encode(text).ids]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "WordPiece", "vocab": {}}}'])
def test_what_cannot_be_extended(content: str) -> None:
    with pytest.raises(ValueError, match="sample: "):
        BytePairTokenizer("sample", content)
    with pytest.raises(ValueError, match="has a normalizer"):
        BytePairTokenizer("sample", json.dumps({**json.loads(OLD_JSON), "normalizer": {"type": "NFC"}}))


def test_learning_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = recorded_bars(monkeypatch, extension_module)
    BytePairTokenizer("sample", OLD_JSON).learn_merges(TEXTS, 20)
    assert [(bar.unit, is_complete(bar)) for bar in bars] == [("documents", True), ("merges", True)]

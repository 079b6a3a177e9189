"""Every tokenizer format against its reference library, and what is refused."""

import base64
import json
import logging
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_synE.corpus import llama3, tokenizers
from megatron_synE.corpus.tokenizers import build_tokenizer
from tests.unit.corpus.conftest import SAMPLE, sample_texts

NASTY = [
    "a<|endoftext|>b <|start|>",
    "<|begin_of_text|><|end_of_text|><|eot_id|>",
    "</s><s> <unk>",
    "\x00\x01 \ufeff\u200b",
    " \n \n\t\r\n  ",
    "x" * 5000,
    " " * 5000,
    "👩‍🔬" * 50,
]


def as_lists(tokens: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [tokens[a:b].tolist() for a, b in pairwise(offsets)]


@lru_cache
def loaded(tokenizer_type: str, model: Path, fast: bool) -> tokenizers.CorpusTokenizer:
    return build_tokenizer(tokenizer_type, model, fast=fast)


def assert_like_reference(tokenizer_type: str, model: Path, texts: list[str]) -> None:
    fast, slow = (loaded(tokenizer_type, model, fast) for fast in (True, False))
    assert (fast.backend.name, slow.backend.name != "gigatoken") == ("gigatoken", True)
    assert fast.describe() == slow.describe()
    assert as_lists(*fast.encode_batch(texts)) == as_lists(*slow.encode_batch(texts))


def test_hugging_face_like_reference(hf_tokenizer: Path) -> None:
    texts = NASTY + sample_texts("code_en") + sample_texts("web_zh")
    assert_like_reference("HuggingFaceTokenizer", hf_tokenizer, texts)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_any_text_like_reference(texts: list[str]) -> None:
    assert_like_reference("auto", SAMPLE / "tokenizer", texts)


def test_sentencepiece_bpe_like_reference(sentencepiece_bpe: Path) -> None:
    texts = NASTY[:3] + sample_texts("web_zh")[:40] + sample_texts("web_en")[:40]
    assert_like_reference("SentencePieceTokenizer", sentencepiece_bpe, texts)


def test_what_gigatoken_cannot_do_falls_back_and_says_why(
    sentencepiece_unigram: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = build_tokenizer("auto", sentencepiece_unigram)
    assert tokenizer.backend.name == "sentencepiece"
    assert "unigram" in caplog.text
    assert tokenizer.eod_id == 2 and tokenizer.vocab_size == 1800
    tokens, offsets = tokenizer.encode_batch(["the number", ""])
    assert tokenizer.decode(tokens) == "the number" and offsets.tolist() == [0, len(tokens), len(tokens)]


def test_a_fast_path_that_differs_is_not_used(
    hf_tokenizer: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tokenizers.GigatokenBackend.encode_batch
    wrong = lambda self, texts: (real(self, texts)[0] + 1, real(self, texts)[1])  # noqa: E731
    monkeypatch.setattr(tokenizers.GigatokenBackend, "encode_batch", wrong)
    with caplog.at_level(logging.WARNING):
        assert build_tokenizer("auto", hf_tokenizer).backend.name == "tokenizers"
    assert "encodes a probe text differently" in caplog.text


@pytest.mark.parametrize("fast", [True, False])
def test_special_tokens_in_raw_text_are_text(hf_tokenizer: Path, sentencepiece_bpe: Path, fast: bool) -> None:
    for model, text in ((hf_tokenizer, "a<|endoftext|>b"), (sentencepiece_bpe, "a</s>b")):
        tokenizer = build_tokenizer("auto", model, fast=fast)
        tokens, _ = tokenizer.encode_batch([text])
        assert tokenizer.eod_id is not None and tokenizer.eod_id not in tokens.tolist()
        assert tokenizer.decode(tokens) == text


def test_end_of_document_and_vocabulary(hf_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = build_tokenizer("HuggingFaceTokenizer", hf_tokenizer)
    assert (tokenizer.eod_id, tokenizer.vocab_size) == (1, 900)
    alone = tmp_path / "tokenizer.json"
    content = json.loads((hf_tokenizer / "tokenizer.json").read_text())
    alone.write_text(json.dumps(content))
    assert build_tokenizer("auto", alone).eod_id == 1  # by its customary name
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert build_tokenizer("auto", alone).eod_id == 7
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|start|>"}')
    assert build_tokenizer("auto", tmp_path).eod_id == 0
    content["added_tokens"].append({**content["added_tokens"][0], "id": 1023, "content": "<|late|>"})
    alone.write_text(json.dumps(content))
    assert build_tokenizer("auto", tmp_path).vocab_size == 1024  # ids with a gap before them


def test_sample_tokenizer_loads_in_transformers() -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(SAMPLE / "tokenizer"), build_tokenizer("auto", SAMPLE / "tokenizer")
    assert (len(theirs), theirs.eos_token_id) == (ours.vocab_size, ours.eod_id) == (4096, 4095)
    text = sample_texts("web_zh")[0]
    tokens, _ = ours.encode_batch([text])
    assert theirs(text)["input_ids"] == tokens.tolist() and theirs.decode(tokens) == text == ours.decode(tokens)


def test_llama3_special_tokens() -> None:
    special = llama3.special_tokens()
    assert len(special) == len(set(special)) == 256
    ids = {token: 128_000 + i for i, token in enumerate(special)}
    assert (ids["<|begin_of_text|>"], ids["<|end_of_text|>"]) == (128_000, 128_001)
    assert (ids["<|start_header_id|>"], ids["<|end_header_id|>"], ids["<|eot_id|>"]) == (128_006, 128_007, 128_009)


def tiny_tiktoken_model(path: Path) -> Path:
    """Byte ranks and two merges, in tiktoken's file format."""
    tokens = [bytes([i]) for i in range(256)] + [b"th", b"the"]
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    return path


def test_tiktoken_like_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_tiktoken_model(tmp_path / "tokenizer.model")
    with pytest.raises(ValueError, match="258 entries, but Llama-3's model has 128000"):
        build_tokenizer("TikTokenizer", model)
    monkeypatch.setattr(llama3, "NUM_BASE_TOKENS", 258)
    assert_like_reference("auto", model, [*NASTY, "the other", "继续"])
    tokenizer = build_tokenizer("TikTokenizer", tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (258 + 256, 258 + 1)
    assert tokenizer.encode_batch(["the"])[0].tolist() == [257]


@pytest.mark.parametrize(
    ("tokenizer_type", "name", "content", "message"),
    [
        ("auto", "absent", None, "no such file"),
        ("auto", "tokenizer.model", b"\x00\x01garbage", "neither"),
        ("auto", "tokenizer.json", b"{}", "not a HuggingFaceTokenizer"),
        ("auto", "tokenizer.json", b"{broken", "not a HuggingFaceTokenizer"),
        ("TikTokenizer", "tokenizer.model", b"not base64 at all", "not a tiktoken model"),
        ("SentencePieceTokenizer", "tokenizer.model", b"no protobuf", "not a SentencePieceTokenizer"),
        ("HuggingFaceTokenizer", "vocab.txt", b"", "holds no tokenizer.json"),
        ("GPT2BPETokenizer", "tokenizer.json", b"{}", "expected one of"),
    ],
)
def test_unusable_models_are_refused(
    tmp_path: Path, tokenizer_type: str, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        build_tokenizer(tokenizer_type, tmp_path if name == "vocab.txt" else path)

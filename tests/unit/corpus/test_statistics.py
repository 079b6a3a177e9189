"""Every figure of inspect_corpus --statistics against a plain count."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_synE.corpus.document_table import DocumentRecord
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.corpus.indexed_writer import IndexedCorpusWriter
from megatron_synE.corpus.scripts import LANGUAGES
from megatron_synE.corpus.statistics import MAX_VALUES, LengthBin, Share, corpus_statistics, length_bins
from megatron_synE.corpus.tokenizers import CorpusTokenizer, build_tokenizer
from tests.helpers.commands import SAMPLE
from tests.helpers.corpora import random_documents, write_corpus, write_table
from tools import inspect_corpus as tool


@pytest.fixture(scope="module")
def tokenizer() -> CorpusTokenizer:
    return build_tokenizer("auto", SAMPLE / "tokenizer")


def write(prefix: Path, documents: list[list[int]], tokenizer: dict[str, Any]) -> str:
    with IndexedCorpusWriter(prefix, np.uint16) as writer:
        for document in documents:
            writer.add_documents(np.array(document, np.int64), np.array([len(document)]))
        writer.finalize({"tokenizer": tokenizer})
    return str(prefix)


def test_counts_are_those_of_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_synE.corpus.blocks.BLOCK_DOCUMENTS", 7)  # several blocks
    rng = np.random.default_rng(0)
    documents = random_documents(rng, 300, low=0, high=5, vocab_size=3)
    prefix = write(tmp_path / "c", documents, {"eod_id": 2})
    sources = [["wiki", "blog", None][int(n)] for n in rng.integers(0, 3, 300)]
    write_table(prefix, [DocumentRecord(None, "a.jsonl", n + 1, {"source": s}) for n, s in enumerate(sources)])
    found = corpus_statistics(IndexedCorpus(prefix), None)
    assert (found.num_documents, found.num_tokens) == (300, sum(map(len, documents)))
    seen: Counter[tuple[int, ...]] = Counter(map(tuple, documents))
    assert found.duplicate_documents == 300 - len(seen)
    assert found.duplicate_tokens == sum(len(document) * (count - 1) for document, count in seen.items())
    assert found.documents_without_eod == sum(not document or document[-1] != 2 for document in documents)
    expected = [
        Share(
            name or "(none)",
            sources.count(name),
            sum(len(d) for d, s in zip(documents, sources, strict=True) if s == name),
        )
        for name in ("wiki", "blog", None)
    ]
    assert found.by_key == {"source": sorted(expected, key=lambda share: -share.tokens)}
    assert found.by_language == [] and found.language_from.startswith("not known")
    for low, high in ((0, 0), (1, 1), (2, 3), (4, 7)):
        inside = [len(document) for document in documents if low <= len(document) <= high]
        assert LengthBin(low, high, len(inside), sum(inside)) in found.lengths


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 1023, 1024, 2**40])
def test_every_length_lies_in_its_bin(length: int) -> None:
    (found,) = length_bins(np.array([length]))
    assert found.low <= length <= found.high and (found.documents, found.tokens) == (1, length)


TEXTS = {
    "Chinese": "继续预训练提高了中文能力，以及科学推理。GPT 模型",
    "Japanese": "日本語の文章はひらがなと漢字でできています。",
    "Korean": "한국어 문장입니다",
    "Latin script": "Élan vital, and 3 more words",
    "Cyrillic script": "Русский текст",
    "Greek": "Ελληνικά",
    "Arabic script": "نص عربي",
    "Hebrew": "טקסט",
    "Thai": "ข้อความ",
    "Devanagari script": "हिन्दी पाठ",
    "no letters": "1234 + 5 = ?",
}


def test_languages_are_guessed_from_letters(tmp_path: Path, tokenizer: CorpusTokenizer) -> None:
    assert set(TEXTS) == set(LANGUAGES)
    documents = [tokenizer.encode_batch([text * 40])[0].tolist() for text in TEXTS.values()]
    prefix = write(tmp_path / "c", documents, tokenizer.describe())
    found = corpus_statistics(IndexedCorpus(prefix), tokenizer)
    assert {share.name: (share.documents, share.tokens) for share in found.by_language} == {
        name: (1, len(document)) for name, document in zip(TEXTS, documents, strict=True)
    }


def test_a_kept_language_is_better_than_a_guess(tmp_path: Path, tokenizer: CorpusTokenizer) -> None:
    prefix = write(tmp_path / "c", [[5, 6, 7], [8]], tokenizer.describe())
    rows = [DocumentRecord(None, "a", n + 1, {"language": name}) for n, name in enumerate(("nl", "de"))]
    write_table(prefix, rows)
    found = corpus_statistics(IndexedCorpus(prefix), tokenizer)
    assert found.by_language == [Share("nl", 1, 3), Share("de", 1, 1)]
    assert found.language_from == "the kept key 'language'"


def test_a_key_of_many_values_is_not_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = write_corpus(tmp_path / "c", [[1]] * (MAX_VALUES + 1))
    count = MAX_VALUES + 1
    write_table(prefix, [DocumentRecord(None, "a", n + 1, {"url": f"u{n}", "site": "s"}) for n in range(count)])
    assert corpus_statistics(IndexedCorpus(prefix), None).by_key == {
        "url": None,
        "site": [Share("s", count, count)],
    }
    assert tool.main([prefix, "--statistics"]) == 0
    assert "url          more than 10,000 values" in capsys.readouterr().out


def test_the_tool(tmp_path: Path, tokenizer: CorpusTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    tokens = tokenizer.encode_batch(["the area of the circle"])[0].tolist()
    prefix = write(tmp_path / "c", [tokens, tokens, [*tokens, 4095]], {**tokenizer.describe(), "eod_id": 4095})
    write_table(prefix, [DocumentRecord("i1", "a.jsonl", 3, {"url": "u"})] * 3)
    assert tool.main([prefix, "--document", "1", "--plot", str(tmp_path / "deep" / "c.png")]) == 0
    shown = capsys.readouterr().out
    assert "1 documents (33.33%) with" in shown and "without EOD  2 documents (66.67%)" in shown
    assert "--- document 1, i1, url u, a.jsonl:3\nthe area of the circle\n" in shown
    assert (tmp_path / "deep" / "c.png").read_bytes().startswith(b"\x89PNG")
    assert tool.main([prefix, prefix, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [entry["num_documents"] for entry in printed] == [3, 3] and "statistics" not in printed[0]
    assert tool.main([prefix, "--json", "--statistics"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["statistics"]["duplicate_documents"] == 1
    for arguments, message in (
        ([prefix, "--document", "3"], "--document 3: "),
        ([prefix, "--plot", "c.bmp"], "c.bmp: the name must end in .png, .pdf, .svg"),
        ([str(tmp_path / "none")], "none.idx: no such file"),
        ([prefix, "--plot", "/proc/nowhere/c.png"], "/proc/nowhere"),
    ):
        assert tool.main(arguments) == 1
        assert message in capsys.readouterr().err

"""Documents that hold pieces of benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megatron_synE.corpus.decontaminate import BenchmarkNgrams, Hit, decontaminate
from megatron_synE.corpus.ngrams import ngram_hashes, word_hashes, words
from megatron_synE.corpus.records import Record
from tests.helpers.commands import run_tool

QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did "
    "Natalia sell altogether in April and May?"
)
QUESTION_ZH = "甲乙两地相距一百二十公里，一辆汽车每小时行驶六十公里，几小时可以到达？"
SHORT = "Which gas do plants take in from air?"


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    rows = [{"question": QUESTION, "answer": {"text": ["72"]}}, {"question": QUESTION_ZH}, {"question": SHORT}]
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_words_know_no_case_width_or_punctuation() -> None:
    assert words("The Ｑuick-brown fox's  naïve 3.1_b") == ["the", "quick", "brown", "fox", "s", "naïve", "3", "1", "b"]
    assert words("继续PRE训练，2024年") == ["继", "续", "pre", "训", "练", "2024", "年"]


def test_ngrams_depend_on_words_and_their_order_only() -> None:
    a, b = (ngram_hashes(word_hashes(words(text)), 3) for text in ("x A, b c y", "a b  C a"))
    assert a.tolist()[1] == b.tolist()[0] and len(set(a.tolist() + b.tolist())) == 4
    assert len(ngram_hashes(word_hashes(words("a b")), 3)) == 0
    there, back = (ngram_hashes(word_hashes(words(text)), 3)[0] for text in ("a b c", "c b a"))
    assert there != back


@pytest.mark.parametrize(
    "text, line",
    [
        (f"A page. {QUESTION} And more.", 1),
        ("... " + QUESTION.upper().replace(",", " ;\n") + " ...", 1),
        ("Here: " + " ".join(QUESTION.split()[4:18]), 1),
        ("Here: " + " ".join(QUESTION.split()[4:16]), None),
        (QUESTION.replace("48", "49").replace("half", "twice").replace("clips did", "pins did"), None),
        (f"题目：{QUESTION_ZH.replace('，', ' ')}", 2),
        (QUESTION_ZH[:13].replace("，", "") + "。", None),
        (f"It asks: {SHORT} And so on.", 3),
        ("Which gas do plants take in from the air?", None),
        ("", None),
    ],
)
def test_runs_of_thirteen_words_are_found_in_any_dress(benchmark: Path, text: str, line: int | None) -> None:
    hit = BenchmarkNgrams([benchmark]).find(text)
    assert (hit is not None) == (line is not None)
    if hit is not None:
        assert hit.place == f"{benchmark}:{line}" and hit.text in " ".join(words(text))


def test_options_of_the_measure(benchmark: Path, tmp_path: Path) -> None:
    twelve = "Here: " + " ".join(QUESTION.split()[4:16])
    assert BenchmarkNgrams([benchmark], ngram_words=12).find(twelve) == Hit(
        f"{benchmark}:1", " ".join(words(twelve)[1:]), 1
    )
    assert BenchmarkNgrams([benchmark], min_words=9).find(SHORT) is None
    assert BenchmarkNgrams([benchmark]).num_skipped == 1  # the answer 72
    with pytest.raises(ValueError, match="no text of 8 words or more"):
        BenchmarkNgrams([benchmark], keys=["answer"])
    with pytest.raises(ValueError, match="1 ≤ min ≤ n-gram"):
        BenchmarkNgrams([benchmark], ngram_words=5)


def test_benchmarks_in_parquet_and_plain_text(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"q": [QUESTION], "n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.txt").write_text(QUESTION_ZH, encoding="utf-8")
    ngrams = BenchmarkNgrams([tmp_path / "a.parquet", tmp_path / "b.txt"])
    assert ngrams.find(QUESTION).place == f"{tmp_path / 'a.parquet'}:1"  # type: ignore[union-attr]
    assert ngrams.find(QUESTION_ZH).place == f"{tmp_path / 'b.txt'}:1"  # type: ignore[union-attr]


def test_lines_that_stay_are_as_they_were(benchmark: Path, tmp_path: Path) -> None:
    lines = [
        b'{"text": "clean",  "score": 1.50, "big": 123456789012345678901234567890}',
        json.dumps({"text": QUESTION, "id": 7}).encode(),
        b'{"text": "odd", "score": NaN}\r',
        b"no json",
        b'{"title": "no text"}',
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    kept: list[bytes] = []
    removed: list[tuple[Record, Hit]] = []
    found = decontaminate(
        [tmp_path / "in.jsonl"], BenchmarkNgrams([benchmark]), on_kept=kept.append,
        on_removed=lambda *pair: removed.append(pair),
    )  # fmt: skip
    assert kept == [lines[0], lines[2].rstrip()]
    assert (found.num_documents, found.num_removed, found.num_kept, found.num_bad_lines) == (3, 1, 2, 2)
    assert found.removed_by_file == {str(benchmark): 1}
    ((record, hit),) = removed
    assert record.place.endswith("in.jsonl:2") and hit.num_hits == len(words(QUESTION)) - 12
    few = decontaminate(
        [tmp_path / "in.jsonl"], BenchmarkNgrams([benchmark]), on_kept=kept.append, min_hits=hit.num_hits + 1
    )
    assert few.num_removed == 0


def test_the_tool_writes_what_stays_and_says_why_the_rest_does_not(benchmark: Path, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["clean", QUESTION], "id": ["a", "b"]}), tmp_path / "in.parquet")
    command = [
        "decontaminate", "--input", tmp_path / "in.parquet", "--benchmark", benchmark, "--output",
        tmp_path / "out.jsonl", "--removed", tmp_path / "removed.jsonl",
    ]  # fmt: skip
    done = run_tool(*map(str, command))
    assert done.returncode == 0, done.stderr
    assert "1 of 2 documents" in done.stdout and f"1 left out for {benchmark}" in done.stdout
    assert (tmp_path / "out.jsonl").read_text() == '{"text":"clean","id":"a"}\n'
    (removed,) = map(json.loads, (tmp_path / "removed.jsonl").read_text().splitlines())
    assert removed["benchmark"] == f"{benchmark}:1" and json.loads(removed["record"])["id"] == "b"
    again = run_tool(*map(str, command))
    assert again.returncode == 1 and "is there already" in again.stderr
    missing = run_tool(*map(str, [*command, "--json-key", "body", "--overwrite"]))
    assert missing.returncode == 1 and "no document with a text under 'body'" in missing.stderr
    assert (tmp_path / "out.jsonl").read_text() == '{"text":"clean","id":"a"}\n'

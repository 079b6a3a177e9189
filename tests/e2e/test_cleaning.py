"""examples/cleaning: what is planted among good pages is dropped by the block that is there for it."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.corpus.document_table import DocumentTable
from megatron_synE.corpus.indexed import IndexedCorpus
from tests.helpers.commands import ROOT, SAMPLE, run, run_tool, succeeded

pytest.importorskip("datatrove", reason="the extra `cleaning` is not installed")

QUESTION = {
    "en": {
        "query": "A train leaves the old station at nine and another one follows it an hour later at twice the speed.",
        "label": "They meet at eleven o'clock, when both of them have travelled the same distance from the station.",
    },
    "zh": {
        "query": "一列火车九点钟从旧车站出发，一个小时以后另一列火车以两倍的速度跟随其后。",
        "label": "它们在十一点钟相遇，那时两列火车从车站走过的路程是一样的。",
    },
}
SHORT = {
    "en": "Nothing here is long enough to be worth a place among real pages, although it says in plain words what it "
    "is: one lonely sentence that somebody wrote down on a rainy afternoon and then forgot.",
    "zh": "这里没有一句话值得和真正的网页放在一起，因为它太短了，只是某人在雨天写下后便忘记的笔记。",
}
REPEATED = {"en": "The same line comes again and again.\n", "zh": "同样的一行字又来了一次。\n"}
# Numbers of pages in the sample, most of which is of one mould.
FIRST_GOOD, END_GOOD = 40, 100
ALIKE, HOST = 43, 3


def pages(language: str) -> list[dict[str, Any]]:
    with open(SAMPLE / f"web_{language}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def planted(language: str) -> dict[str, tuple[str, set[str]]]:
    """Id → the text, and what may drop it."""
    other = "en" if language == "zh" else "zh"
    alike, host = (pages(language)[number]["text"] for number in (ALIKE, HOST))
    question = QUESTION[language]["query"] + QUESTION[language]["label"]
    return {
        "foreign": (pages(other)[0]["text"], {"language"}),
        "repeated": (REPEATED[language] * 60, {"repetition"}),
        "short": (SHORT[language], {"gopher", "repetition"}),
        "near": (alike + SHORT[language], {"duplicates"}),
        "leaked": (f"{host}\n\n{question}", {"contaminated"}),
    }


def written(folder: Path) -> dict[str, dict[str, Any]]:
    """Id → document of all files of a folder."""
    lines = [line for path in folder.glob("*.jsonl.gz") for line in gzip.decompress(path.read_bytes()).splitlines()]
    found = [json.loads(line) for line in lines]
    return {document["id"]: document for document in found}


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh"])
def test_planted_pages_are_dropped(tmp_path: Path, language: str) -> None:
    raw, output = tmp_path / "raw", tmp_path / "cleaned"
    raw.mkdir()
    good = {page["id"]: page["text"] for page in pages(language)[FIRST_GOOD:END_GOOD]}
    bad = planted(language)
    lines = [{"id": id_, "url": f"https://example.org/{id_}", "text": text} for id_, text in good.items()]
    lines += [{"id": id_, "url": f"https://example.org/{id_}", "text": text} for id_, (text, _) in bad.items()]
    for number, part in enumerate((lines[::2], lines[1::2])):
        (raw / f"{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    benchmarks = tmp_path / "benchmarks.jsonl"
    benchmarks.write_text(json.dumps({"task": "trains", **QUESTION[language]}))

    command = [
        sys.executable, ROOT / "examples" / "cleaning" / "clean.py", "--input", raw, "--output", output,
        "--language", language, "--benchmarks", benchmarks, "--tasks", "2",
    ]  # fmt: skip
    succeeded(run(*command))
    kept = written(output / "documents")
    removed = {path.name: written(path) for path in (output / "removed").iterdir()}
    for id_, (_, by) in bad.items():
        if id_ != "near":  # of two alike either may stay
            assert id_ not in kept and {name for name, found in removed.items() if id_ in found} & by, id_
    assert not {"near", pages(language)[ALIKE]["id"]} <= kept.keys() and removed["duplicates"]
    assert len(kept) > 10 and all(good.get(id_, bad["near"][0]) == page["text"] for id_, page in kept.items())

    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.jsonl.gz")}
    succeeded(run(*command))  # all of it is done
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.jsonl.gz")} == before

    succeeded(
        run_tool(
            "preprocess_data", "--input", output / "documents", "--output-prefix", tmp_path / "o", "--tokenizer-model",
            SAMPLE / "tokenizer", "--append-eod", "--id-key", "id", "--keep-keys", "url", "language",
        )
    )  # fmt: skip
    corpus = IndexedCorpus(tmp_path / "o_text_document")
    rows = DocumentTable(corpus.prefix, corpus).rows(range(corpus.num_documents))
    assert {row.id: row.keys["url"] for row in rows} == {id_: page["url"] for id_, page in kept.items()}
    assert {row.keys["language"] for row in rows} == {language}


def test_missing_inputs_are_one_message(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples" / "cleaning" / "clean.py", "--output", tmp_path / "o"]
    done = run(*command, "--input", tmp_path / "none", "--language", "zh")
    assert done.returncode == 1 and "none: no such folder" in done.stderr and "Traceback" not in done.stderr

"""Accepted rows → documents: what is left out, what is made wrong, and what goes with them."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.corpus.decontaminate import BenchmarkNgrams
from megatron_synE.sandbox.run_code import CodeLimits
from megatron_synE.synthesis.corrupt import METHODS, chosen, corrupt
from megatron_synE.synthesis.export import ExportOptions, ExportReport, export_documents, export_labels
from megatron_synE.synthesis.folder import JobFolder
from megatron_synE.synthesis.task import Snippet
from tests.helpers.commands import SAMPLE, run_tool
from tests.helpers.synthesis_jobs import answered_job

THINGS = [
    "crate", "wagon", "kettle", "ladder", "pulley", "spring", "mirror", "magnet", "candle", "bottle", "anchor",
    "barrel",
]  # fmt: skip
PAGES = [f"There is a {thing} in the old mill, and it has a number." for thing in THINGS]
VERBS = ["falls", "rolls", "slides", "turns", "swings", "floats", "cools", "bends", "rings", "melts", "drifts", "rests"]


def answer(snippet: Snippet) -> str:
    """A problem about the page's thing; numbers differ from thing to thing, and so do words."""
    (thing,) = re.findall(r"There is a (\w+)", snippet.text)
    number = THINGS.index(thing)
    speed, seconds = 3 + number, 7 + number
    verb = VERBS[number]
    problem = f"One {thing} {verb} at {speed} metres per second. How far is the {thing} after {seconds} seconds?"
    solution = (
        f"The {thing} {verb} evenly. Its way is speed times time. So the {thing} comes {speed} x {seconds} = "
        f"{speed * seconds} metres far. That is what was asked for."
    )
    return f"### Problem\n{problem}\n### Solution\n{solution}\n### Answer\n{speed * seconds} metres\n"


def exported(folder: JobFolder, **options: Any) -> tuple[list[dict[str, Any]], ExportReport]:
    lines: list[bytes] = []
    report = export_documents(folder, ExportOptions(**options), lines.append)
    assert sum(report.fates.values()) == report.num_accepted
    assert report.num_written == len(lines)
    return [json.loads(line) for line in lines], report


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    return answered_job(tmp_path_factory.mktemp("export") / "a", PAGES, answer)


def test_documents_carry_text_id_and_where_they_come_from(job: JobFolder) -> None:
    documents, _ = exported(job)
    assert len(documents) == len(PAGES) == len({document["id"] for document in documents})
    first = documents[0]
    assert set(first) == {"text", "id", "metadata"}
    assert first["text"].startswith("Problem: One crate falls at 3 metres per second. How far")
    assert "\n\nSolution: The crate falls evenly." in first["text"] and first["text"].endswith("\n\nAnswer: 21 metres")
    metadata = first["metadata"]
    pages = str(job.root.parent / "pages.jsonl")
    assert metadata["snippet"] == f"web:{pages}:1:0-{len(PAGES[0])}"
    assert first["id"] == f"physics.en/{metadata['snippet']}"
    assert metadata["source"] == {"corpus": pages, "document": 1, "begin": 0, "end": len(PAGES[0])}
    assert (metadata["kind"], metadata["language"], metadata["model"]) == ("physics", "en", "teacher")
    assert metadata["prompt_version"] == 1 and len(metadata["prompt_fingerprint"]) == 32


def test_rejected_and_failed_rows_are_no_documents_and_unfinished_shards_count(tmp_path: Path) -> None:
    def some(snippet: Snippet) -> str:
        if "crate" in snippet.text:
            return "no form"
        return answer(snippet).replace("One wagon", "In this passage, one wagon")

    folder = answered_job(tmp_path / "b", PAGES, some, finish=False, shard_rows=5)
    documents, report = exported(folder)
    assert report.num_accepted == len(documents) == len(PAGES) - 2
    assert [document["metadata"]["source"]["document"] for document in documents] == list(range(3, len(PAGES) + 1))


def test_a_job_without_documents_says_so(tmp_path: Path) -> None:
    folder = answered_job(tmp_path / "c", PAGES[:2], lambda snippet: "no form")
    with pytest.raises(ValueError, match="no accepted document yet"):
        exported(folder)
    with pytest.raises(ValueError, match="no label yet"):
        export_labels(folder, lambda line: None)
    for export in (exported, lambda folder: export_labels(folder, lambda line: None)):
        with pytest.raises(ValueError, match="no job here"):
            export(JobFolder(tmp_path / "none"))


def test_repeated_problems_and_near_duplicates_are_written_once(tmp_path: Path) -> None:
    def same(snippet: Snippet) -> str:
        text = answer(snippet)
        if "wagon" in snippet.text:
            return text.replace("wagon", "Crate").replace("rolls", "falls").replace("4 m", "3 m").replace("8 s", "7 s")
        if "kettle" in snippet.text:
            crate = answer(Snippet("x", PAGES[0]))
            return crate.replace("That is what was asked for.", "That is what we were asked for.").replace(
                "How far", "Now how far"
            )
        return text

    folder = answered_job(tmp_path / "d", PAGES, same)
    documents, report = exported(folder)
    assert len(documents) == len(PAGES) - 2
    assert report.fates == {
        "physics.en: written": 10, "physics.en: repeated": 1, "physics.en: near-duplicate": 1,
    }  # fmt: skip
    assert documents[0]["metadata"]["source"]["document"] == 1  # the first of its like stays
    assert len(exported(folder, near_duplicate_share=1.1)[0]) == len(PAGES) - 1


def test_pieces_of_benchmarks_are_left_out(job: JobFolder, tmp_path: Path) -> None:
    question = "How far? One mirror bends"  # too short
    example = "Question: One magnet floats at 10 metres per second; how far is the magnet after 14 seconds?"
    (tmp_path / "bench.jsonl").write_text(json.dumps({"a": question, "b": example}) + "\n")
    documents, report = exported(job, benchmarks=BenchmarkNgrams([tmp_path / "bench.jsonl"]))
    assert len(documents) == len(PAGES) - 1 and not any("magnet" in document["text"] for document in documents)
    assert report.fates["physics.en: holds a piece of a benchmark"] == 1


def code(snippet: Snippet) -> str:
    (thing,) = re.findall(r"There is a (\w+)", snippet.text)
    result = 4 if thing == "wagon" else 2
    return (
        f"### Problem\nWrite `{thing}(x)`, which returns one more than x, for a {thing}.\n### Solution\nAdd one to x.\n"
        f"```python\ndef {thing}(x):\n    return x + 1\n```\n### Examples\n"
        f"```python\nassert {thing}(1) == {result}\n```\n"
    )


def test_programs_run_only_when_asked_for(tmp_path: Path) -> None:
    folder = answered_job(tmp_path / "e", PAGES[:3], code, kind="code")
    assert len(exported(folder, near_duplicate_share=1.1)[0]) == 3
    try:
        documents, report = exported(folder, near_duplicate_share=1.1, run_code=CodeLimits())
    except ValueError as error:
        pytest.skip(str(error))
    assert len(documents) == 2 and report.fates["code.en: program fails its examples"] == 1
    assert "assert" not in documents[0]["text"]


@pytest.mark.parametrize("method", METHODS)
def test_a_share_of_the_answers_is_made_wrong(job: JobFolder, method: str) -> None:
    right, _ = exported(job)
    wrong, report = exported(job, corrupt_share=0.5, corrupt_methods=[method])
    assert report.corrupted == {method: 6} and report.num_not_corruptible == 0
    for before, after in zip(right, wrong, strict=True):
        assert before["id"] == after["id"]
        if "corrupted" not in after["metadata"]:
            assert before == after
            continue
        assert before["text"].split("\n\n")[0] == after["text"].split("\n\n")[0]  # the problem stays
        assert before["text"] != after["text"] and after["metadata"]["corrupted"] == method
        result = before["text"].rpartition("Answer: ")[2]
        if method != "steps":
            assert result not in after["text"]
        else:
            assert sorted(re.findall(r"\w+", before["text"])) == sorted(re.findall(r"\w+", after["text"]))
    assert exported(job, corrupt_share=0.5, corrupt_methods=[method])[0] == wrong
    assert exported(job, corrupt_share=0.5, corrupt_methods=[method], corrupt_seed=1)[0] != wrong


def test_a_larger_share_takes_the_same_documents_and_more() -> None:
    ids = [f"document {number}" for number in range(997)]
    shares = [chosen(ids, share, 0) for share in (0, 0.3, 0.5, 1)]
    assert [int(own.sum()) for own in shares] == [0, 299, 498, 997]
    assert all((less <= more).all() for less, more in pairwise(shares))
    assert (chosen(ids[::-1], 0.3, 0)[::-1] == shares[1]).all()  # whatever the order
    assert (chosen(ids, 0.3, 1) != shares[1]).any()
    with pytest.raises(ValueError, match="--corrupt-share 30"):
        chosen(ids, 30, 0)


def test_given_numbers_and_list_marks_stay() -> None:
    sections = {"problem": "What is 12 + 30?", "solution": "1. Take 12.\n2. Add 30: \\boxed{42}.", "answer": "42"}
    for seed in range(20):
        found = corrupt("id", sections, None, ["numbers"], seed)
        assert found is not None
        changed = found[1]
        assert changed["problem"] == sections["problem"] and changed["answer"] != "42"
        assert changed["solution"] == f"1. Take 12.\n2. Add 30: \\boxed{{{changed['answer']}}}."


def test_what_cannot_be_made_wrong_in_one_way_is_in_another() -> None:
    sections = {"problem": "Why?", "solution": "Because it is so."}
    assert corrupt("id", sections, None, METHODS, 0) is None
    other = {"problem": "Who?", "solution": "Nobody."}
    assert corrupt("id", sections, other, METHODS, 0) == ("other_answer", {"problem": "Why?", "solution": "Nobody."})
    program = {"problem": "Do.", "solution": "So.\n```python\nx = 'a'\ny = x\n```"}
    assert corrupt("id", program, None, ["steps"], 0) is None


def test_labels_of_two_passes_and_their_agreement(tmp_path: Path) -> None:
    def label(snippet: Snippet) -> str:
        if "kettle" in snippet.text and snippet.source["pass"] == 2:
            return "I do not know"
        physics = "wagon" not in snippet.text or snippet.source["pass"] == 1
        return f"Topic: {'mathematics_and_physics' if physics else 'others'}"

    folder = answered_job(tmp_path / "f", PAGES, label, kind="topic_label", passes=2, shard_rows=5)
    lines: list[bytes] = []
    report = export_labels(folder, lines.append)
    documents = [json.loads(line) for line in lines]
    assert [document["topic"] for document in documents] == ["mathematics_and_physics"] * 10
    assert documents[0]["text"] == PAGES[0] and documents[0]["page"].endswith("pages.jsonl:1")
    assert "#" not in documents[0]["id"] and documents[0]["metadata"]["model"] == "teacher"
    assert (report.num_pages, report.num_written, report.num_single) == (11, 10, 1)
    assert report.agreement == pytest.approx(10 / 11)
    assert report.kappa == pytest.approx(0.0)  # one label for all but one: no more than by chance
    assert "10 of 11 pages got the same label twice (90.9%, kappa 0.00); 1 got one label only" in report.lines()[0]
    assert report.to_json()["pairs"] == [
        ["mathematics_and_physics", "mathematics_and_physics", 10], ["mathematics_and_physics", "others", 1],
    ]  # fmt: skip


def test_labels_asked_for_once_have_no_agreement(tmp_path: Path) -> None:
    folder = answered_job(tmp_path / "g", PAGES[:3], lambda snippet: "Topic: others", kind="topic_label")
    lines: list[bytes] = []
    report = export_labels(folder, lines.append)
    assert len(lines) == 3 and report.lines() == ["3 pages labelled, asked once: no agreement to report"]


def test_the_classifier_is_trained_on_labels_as_they_are_written(tmp_path: Path) -> None:
    pages = [json.loads(line) for line in (SAMPLE / "web_en.jsonl").read_bytes().splitlines()[:48]]
    topics = [page["topic"] for page in pages]
    folder = answered_job(
        tmp_path / "h", [page["text"] for page in pages], lambda s: f"Topic: {topics[s.source['document'] - 1]}",
        kind="topic_label", passes=2,
    )  # fmt: skip
    with open(tmp_path / "labels.jsonl", "wb") as file:
        export_labels(folder, file.write)
    done = run_tool(
        "train_topic_classifier", "--input", tmp_path / "labels.jsonl", "--page-key", "page", "--output-dir",
        tmp_path / "classifier", "--num-bits", "10", "--heldout-fraction", "0.3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

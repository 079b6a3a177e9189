"""The report of one run: every figure is the run's own, and whatever is missing is said."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.data import DataStream, ledger
from megatron_synE.reporting.page import render
from megatron_synE.reporting.run_files import read_run
from megatron_synE.reporting.run_report import run_report
from tests.helpers.evaluations import write_evaluation
from tests.helpers.recorded_runs import PASSED_OVER, RESUMED_STEP, SAVED_STEP, STEPS, RecordedRun
from tests.helpers.report_page import ReportPage, points, wrong_figures

Json = dict[str, Any]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    return RecordedRun(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def run(recorded: RecordedRun, tmp_path: Path) -> RecordedRun:
    """One whose files a test may change."""
    shutil.copytree(recorded.folder, tmp_path / "run")
    copied = object.__new__(RecordedRun)
    copied.__dict__ = {
        **recorded.__dict__, "folder": tmp_path / "run", "metrics_file": tmp_path / "run" / "metrics.jsonl",
        "state": copy.deepcopy(recorded.state),
    }  # fmt: skip
    return copied


def page_of(run: RecordedRun, **options: Any) -> ReportPage:
    return ReportPage(render(run_report(read_run(run.folder, run.read_state), **options)))


def read_parts(run: RecordedRun) -> list[tuple[int, int]]:
    return [(0, PASSED_OVER.start), (PASSED_OVER.stop, run.consumed)]


def test_every_figure_is_that_of_its_source(run: RecordedRun) -> None:
    del run.state["trajectory"]["passed_over"][:]
    page = page_of(run)
    assert wrong_figures(page, run.records, run.state, ledger(run.stream, 0, run.consumed)) == []


def test_a_figure_that_is_not_its_sources_is_found(run: RecordedRun) -> None:
    page = page_of(run)
    changed = json.loads(json.dumps(run.records))
    changed[5]["loss"] += 1e-6
    next(record for record in changed if record["kind"] == "evaluation")["loss"]["book"] += 1e-6
    found = wrong_figures(page, changed, run.state, ledger(run.stream, 0, run.consumed))
    assert {"chart loss: training is not what was recorded", "held-out table: book"} <= set(found)
    assert any(line.startswith("read: ") for line in found), "samples were passed over"


def test_what_was_passed_over_was_not_read(run: RecordedRun) -> None:
    page = page_of(run)
    parts = [ledger(run.stream, first, end) for first, end in read_parts(run)]
    for row, entries in zip(page.report["read"]["rows"], zip(*parts, strict=True), strict=True):
        assert row["tokens"] == sum(entry.tokens for entry in entries)
        assert row["documents"] == sum(entry.documents for entry in entries)
        assert row["repeated_tokens"] == sum(entry.repeated_tokens for entry in entries)
        assert row["epochs"] == entries[-1].last_epoch
    assert sum(row["share"] for row in page.report["read"]["rows"]) == pytest.approx(1)
    assert page.report["read"]["passed_over_samples"] == 4 and "4 samples were passed over" in page.words
    saved = DataStream.build(run.job.data, state=run.state["stream"])
    whole = ledger(saved, 0, saved.num_samples)
    assert [row["planned_tokens"] for row in page.report["read"]["rows"]] == [entry.tokens for entry in whole]


def test_gained_and_forgotten_come_first(run: RecordedRun) -> None:
    report = page_of(run).report
    fell, rose = report["headline"][:2]
    assert (fell["label"], fell["value"], fell["tone"]) == ("Held-out loss fell", 2, "gained")
    assert (rose["label"], rose["value"], rose["tone"]) == ("Held-out loss rose", 1, "lost")
    assert "book +0.3000" in rose["detail"]
    assert [row["component"] for row in report["heldout"]["rows"]] == ["web/law", "web/maths", "book"]


def test_a_killed_run_tells_its_history(run: RecordedRun) -> None:
    page = page_of(run)
    told = [(row["kind"], row["step"]) for row in page.report["events"]]
    assert [event for event in told if event[0] not in ("decision", "incident")] == [
        ("start", 0), ("resume", RESUMED_STEP), ("killed", RESUMED_STEP), ("configuration", RESUMED_STEP),
    ]  # fmt: skip
    assert "optimizer.lr" in page.words and "0.0005" in page.words
    assert "back to step 6 (documents book 0, 1, 2" in page.words and "of 50 documents" in page.words
    assert page.report["status"]["word"] == "open" and "it goes on, or was killed" in page.words
    assert f"By the checkpoint of step {SAVED_STEP}" in page.words and f"come to step {STEPS} since" in page.words


@pytest.mark.parametrize(
    "reason, word, told",
    [("finished", "finished", "Finished: 15 of 20 steps"), ("told", "stopped", "stopped as told"),
     ("exit_after_steps", "stopped", "training.exit_after_steps"),
     ("error", "stopped", "ended with an error: no room")],
)  # fmt: skip
def test_how_a_run_ended(run: RecordedRun, reason: str, word: str, told: str) -> None:
    last = run.records[-1]
    stop = {name: last[name] for name in ("consumed_samples", "consumed_tokens")} | {"kind": "stop", "step": STEPS}
    run.write([*run.records, {**stop, "time": last["time"] + 9, "reason": reason, "error": "no room"}])
    page = page_of(run)
    assert page.report["status"]["word"] == word and told in page.words


def test_decisions_are_those_of_the_checkpoint_and_the_ones_since(run: RecordedRun) -> None:
    report = page_of(run).report["decisions"]
    assert [row["tokens"] for row in report["rows"]] == [decision.at_tokens for decision in run.stream.decisions]
    for row, decision in zip(report["rows"], run.stream.decisions, strict=True):
        assert row["changed"] == decision.changed
        assert {topic["component"]: topic["after"] for topic in row["topics"]} == decision.shares_after
        assert {topic["component"]: topic["before"] for topic in row["topics"]} == decision.shares_before
    assert len(run.state["stream"]["decisions"]) < len(run.stream.decisions)


def test_it_says_how_to_do_it_again(run: RecordedRun) -> None:
    page = page_of(run)
    again = page.report["reproduction"]
    assert again["command"] == "torchrun --nproc-per-node 2 pretrain_llama3_synE.py --config 'a job.yaml'"
    assert (again["commit"], again["versions"]["torch"]) == ("abc123", "2.7")
    assert again["earlier"] == [{"step": 0, "changed": {"versions": '{"python": "3.11", "torch": "2.6"}'}}]
    assert [row["identity"] for row in again["corpora"]] == [c.identity for c in run.stream.components]
    assert "seq_length: 16" in page.report["configuration"]["yaml"]


def test_without_its_corpora_the_documents_are_not_known(run: RecordedRun) -> None:
    before = page_of(run).report["read"]["rows"]
    run.state["config"]["data"]["sources"]["book"]["prefix"] += "_gone"
    page = page_of(run)
    assert page.report["read"]["rows"] == [{**row, "documents": None} for row in before]
    assert "book_gone" in page.report["read"]["documents_problem"] and "cannot be opened here" in page.words


def test_without_a_checkpoint_the_records_tell_the_mixture(run: RecordedRun) -> None:
    (run.folder / "latest").unlink()
    page = page_of(run)
    assert "are not known: no checkpoint was found" in page.words and "read" not in page.tables
    shares = run.records[2]["shares"]
    assert {name: curve[0][1] for name, curve in points(page.chart("mixture")).items()} == {
        name: share for name, share in shares.items() if share
    }


def test_a_damaged_checkpoint_is_told_and_the_rest_is_there(run: RecordedRun) -> None:
    def damaged(path: Path) -> Json:
        raise ValueError(f"{path}/state.json: damaged")

    page = ReportPage(render(run_report(read_run(run.folder, damaged))))
    assert "state.json: damaged" in page.words and points(page.chart("loss"))["training"]


def test_without_records_there_is_what_the_checkpoint_says(run: RecordedRun) -> None:
    run.metrics_file.unlink()
    page = page_of(run)
    assert "There are no records" in page.words and "No step is logged" in page.words and "read" in page.tables
    assert [chart["name"] for chart in page.report["charts"]] == ["mixture"]


def test_damaged_lines_and_one_that_is_being_written(run: RecordedRun) -> None:
    lines = [json.dumps(record) for record in run.records]
    lines[3:3] = ["{", "[]", '{"kind": "step"}', '{"kind": 3, "step": 1, "consumed_tokens": 2}', "\x00\x00"]
    run.metrics_file.write_text("\n".join(lines) + '\n{"kind": "st')
    page = page_of(run)
    assert page.report["sources"]["num_damaged"] == 5 and "5 damaged lines are left out" in page.words
    assert page.report["sources"]["num_records"] == len(run.records)


@pytest.mark.parametrize("kinds", [(), ("start",), ("step",), ("start", "step")])
def test_a_run_of_one_step_or_none(run: RecordedRun, kinds: tuple[str, ...]) -> None:
    run.write([next(record for record in run.records if record["kind"] == kind) for kind in kinds])
    page = page_of(run)
    assert "Nothing was measured beside the training loss" in page.words
    assert page.report["run"]["num_steps_logged"] == kinds.count("step")


def test_numbers_that_are_none(run: RecordedRun) -> None:
    """The trainer writes null for nan and infinity."""
    changed = json.loads(json.dumps(run.records))
    steps = [record for record in changed if record["kind"] == "step"]
    steps[4] |= {"loss": None, "grad_norm": None, "updated": False}
    evaluation = next(record for record in changed if record["kind"] == "evaluation")
    evaluation |= {"mean_loss": None, "loss": {**evaluation["loss"], "book": None}}
    run.write(changed)
    page = page_of(run)
    assert len(points(page.chart("loss"))["training"]) == STEPS - 1
    assert "1 values of loss are no finite number" in page.words
    (book,) = (row for row in page.report["heldout"]["rows"] if row["component"] == "book")
    assert (book["first"], book["difference"], book["perplexity_first"]) == (None, None, None)


def test_what_comes_from_data_is_text(run: RecordedRun) -> None:
    evil = "</script><script>alert('%{y}')</script><b>&amp;\u2028"
    changed = json.loads(json.dumps(run.records))
    for record in changed:
        for name in ("loss", "perplexity", "loss_by_component", "shares"):
            if isinstance(record.get(name), dict):
                record[name][evil] = record[name].pop("book", 0.1)
        record.get("config", {})["</pre><img src=x onerror=alert(1)>"] = "{{ 7 * 7 }}"
    run.write(changed)
    page = page_of(run)
    assert page.elements.count("script") == 3 and not {"img", "iframe", "link"} & set(page.elements)
    assert "<b>&amp;" in page.words
    assert all(address.startswith("#") for address in page.addresses)
    assert "{{ 7 * 7 }}" in page.words
    names = [trace["name"] for trace in page.chart("held-out loss")["data"]]
    assert any("&lt;script&gt;" in name for name in names) and not any("<" in name for name in names)


def test_benchmarks_and_forgetting_in_training(run: RecordedRun) -> None:
    place = {"consumed_samples": 0, "consumed_tokens": 0}
    more = [
        {"kind": "benchmark", "step": step, **place, "consumed_tokens": 128 * step, "time": 1.7e9, "seconds": 1.0,
         "benchmarks": {"arc_easy": {"acc": acc, "acc_norm": acc / 2, "num_items": 50},
                        "sciq": {"acc": 0.5, "num_items": 9}}}
        for step, acc in ((0, 0.2), (10, 0.3))
    ]  # fmt: skip
    forgot = {"kind": "forgetting", "step": 10, **place, "time": 1.7e9, "what": "loss of book", "baseline": 4.0,
              "value": 4.2, "bound": 4.1, "reaction": "warn", "reason": "no source may give"}  # fmt: skip
    run.write([*run.records, *more, forgot])
    page = page_of(run)
    shown = dict(zip(page.headings["benchmarks"], page.tables["benchmarks"][1:], strict=True))
    assert shown["sciq"] == [None, 0, 0.5, 0.5, 9]
    assert page.tables["benchmarks"][1] == [None, pytest.approx(0.1), 0.2, 0.3, 50]
    assert points(page.chart("benchmarks"))["arc_easy acc"] == [(0, 0.2), (1280, 0.3)]
    assert page.tables["forgetting"][1][:6] == [10, None, 4.0, 0, 4.2, 4.1]
    assert "told: no source may give" in page.words
    assert [tile["value"] for tile in page.report["headline"][:2]] == [2, 0]


def test_finished_evaluations_against_the_backbone(run: RecordedRun, tmp_path: Path) -> None:
    from megatron_synE.config.evaluation_results import read_evaluation

    row = {"task": "sciq", "metric": "acc", "ours": 0.7, "theirs": 0.6, "difference": 0.1, "low": 0.02, "high": 0.18,
           "num_items": 50, "verdict": "gained"}  # fmt: skip
    lost = {**row, "task": "mmlu", "ours": 0.3, "theirs": 0.4, "difference": -0.1, "low": -0.2, "high": -0.01,
            "verdict": "lost"}  # fmt: skip
    comparison = {"against": "the/backbone", "metrics": [row, lost], "not_compared": {"asdiv": "other items"}}
    write_evaluation(run.folder / "evaluations" / "last", {"sciq": 0.7, "mmlu": 0.3, "asdiv": 0.1}, comparison)
    page = page_of(run)
    (table,) = page.report["evaluations"]
    assert table["verdicts"] == {"gained": 1, "lost": 1, "unclear": 0} and table["against"] == "the/backbone"
    shown = dict(zip(page.headings["evaluation 0"], page.tables["evaluation 0"][1:], strict=True))
    assert shown["sciq"] == [None, None, 0.1, None, 0.6, 0.7, 0.01, 5, 50]
    assert shown["asdiv"] == [None, None, None, None, None, 0.1, 0.01, 5, 50]
    assert "▲ gained" in page.words and "▼ lost" in page.words and "asdiv is not compared: other items" in page.words
    assert [tile["label"] for tile in page.report["headline"][:2]] == ["Tasks gained", "Tasks lost"]

    (run.folder / "evaluations" / "last" / "comparison.json").unlink()
    backbone = read_evaluation(write_evaluation(tmp_path / "backbone", {"sciq": 0.6}))
    page = page_of(run, against=[backbone])
    (first, *_) = page.report["evaluations"][0]["rows"]
    assert (first["theirs"], first["difference"]) == (0.6, pytest.approx(0.1)) and "verdict" not in first
    assert "without intervals" in page.words


def test_against_another_run(run: RecordedRun, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "baseline")
    changed = json.loads(json.dumps(run.records))
    for record in changed:
        if record["kind"] == "evaluation":
            record["loss"]["book"] -= 1
        record.get("config", {}).get("optimizer", {})["lr"] = 0.5
    (tmp_path / "baseline" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in changed))
    (tmp_path / "baseline" / "latest").unlink()
    page = page_of(run, other=read_run(tmp_path / "baseline", run.read_state))
    (book,) = (row for row in page.report["heldout"]["rows"] if row["component"] == "book")
    assert book["difference_to_theirs"] == pytest.approx(1)
    (difference,) = page.report["configuration"]["against"]
    assert difference == {"field": "optimizer.lr", "values": ["0.001", "0.5"]}
    assert "training of baseline" in points(page.chart("loss"))


@pytest.mark.parametrize("found", [[], ["a/metrics.jsonl", "b/metrics.jsonl"]])
def test_a_folder_that_is_not_one_run_is_one_error(tmp_path: Path, found: list[str]) -> None:
    for name in found:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="holds several runs; give one of" if found else "no metrics.jsonl and no"):
        read_run(tmp_path, lambda path: {})
    with pytest.raises(ValueError, match="no such folder"):
        read_run(tmp_path / "gone", lambda path: {})

"""Tasks by name: subjects and groups, shots and their order, what is recorded, and a whole evaluation by lm-eval."""

from __future__ import annotations

import csv
import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from megatron_synE.evaluation.tasks import code_answers, task_files
from megatron_synE.evaluation.tasks.task_files import (
    benchmark_names,
    item_hash,
    load_tasks,
    read_task_file,
    resolve_tasks,
)
from tests.helpers.benchmark_data import GENERATION_TASKS, LOG_LIKELIHOOD_TASKS, write_benchmarks

SHOTS = {
    "gsm8k": 8, "asdiv": 8, "mawps": 8, "ceval": 5, "cmmlu": 5, "mmlu": 5, "math": 5, "gaokao": 5, "sciq": 5,
    "scieval": 5, "sat_math": 5, "aqua_rat": 5, "mbpp": 3, "humaneval": 0, "arc_easy": 0, "arc_challenge": 0,
}  # fmt: skip
"""The paper's."""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("data"))


def test_the_benchmarks_and_shots_are_the_papers() -> None:
    assert benchmark_names() == sorted(SHOTS)
    assert {name: read_task_file(name).config["num_fewshot"] for name in SHOTS} == SHOTS


def test_a_group_is_all_its_subjects() -> None:
    sizes = {name: len(tasks) for name, tasks in resolve_tasks(["all"]).items()}
    assert {name: size for name, size in sizes.items() if size > 1} == {
        "mmlu": 57, "ceval": 52, "cmmlu": 67, "math": 7, "scieval": 3, "gaokao": 3,
    }  # fmt: skip
    assert list(sizes) == benchmark_names()


def test_names_are_benchmarks_and_subjects_in_the_order_given() -> None:
    asked = ["cmmlu_logical", "arc_easy", "cmmlu_anatomy", "gaokao", "cmmlu_logical", "gaokao_biology"]
    assert list(resolve_tasks(asked).items()) == [
        ("cmmlu", ["cmmlu_logical", "cmmlu_anatomy"]),
        ("arc_easy", ["arc_easy"]),
        ("gaokao", ["gaokao_mathqa", "gaokao_chemistry", "gaokao_biology"]),
    ]


@pytest.mark.parametrize(
    "name, message",
    [
        ("mmul", "mmul: there is no such task; did you mean mmlu?"),
        ("mmlu_anatomi", "mmlu_anatomi: there is no such task; did you mean mmlu_anatomy?"),
        ("ARC_easy", "ARC_easy: there is no such task; did you mean arc_easy?"),
        ("hellaswag", "hellaswag: there is no such task; there are aqua_rat, arc_challenge, arc_easy, asdiv, ceval"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_name(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        load_tasks(["gsm8k", name], tmp_path)
    assert str(error.value).startswith(message)


def test_no_name_and_no_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no task is named; there are aqua_rat, arc_challenge"):
        resolve_tasks([])
    with pytest.raises(ValueError, match=f"--data-dir {tmp_path / 'x'}: is no folder; name the one"):
        load_tasks(["gsm8k"], tmp_path / "x")
    with pytest.raises(ValueError, match=f"mmlu_virology: data is missing: put it at {tmp_path}/mmlu/dev/virology_dev"):
        load_tasks(["mmlu_virology"], tmp_path)


def test_examples_are_the_first_of_their_file_and_recorded_in_their_order(data_dir: Path) -> None:
    loaded = load_tasks(["gsm8k", "mmlu_anatomy", "scieval_biology", "arc_easy"], data_dir)
    rows = [json.loads(line) for line in (data_dir / "gsm8k/train.jsonl").read_text().splitlines()]
    first = [{**row, "final": row["answer"].rpartition("#### ")[2]} for row in rows[:8]]
    assert loaded.examples["gsm8k"] == [item_hash(item) for item in first]
    assert {task: len(hashes) for task, hashes in loaded.examples.items()} == {
        "gsm8k": 8, "mmlu_anatomy": 5, "scieval_biology": 10, "arc_easy": 0,
    }  # fmt: skip


@pytest.mark.parametrize("task", [*LOG_LIKELIHOOD_TASKS, *GENERATION_TASKS])
def test_neither_limit_nor_seed_nor_company_changes_a_prompt(data_dir: Path, task: str) -> None:
    for name, alone in load_tasks([task], data_dir).task_dict["tasks"].items():
        alone.set_fewshot_seed(1)
        alone.build_all_requests(limit=1)
        other = load_tasks(["gsm8k", task], data_dir).task_dict["tasks"][name]
        other.set_fewshot_seed(2)
        other.build_all_requests(limit=3)
        assert [request.args for request in alone.instances] == [
            request.args for request in other.instances if request.doc_id == 0
        ]


def test_an_example_is_not_asked(tmp_path: Path) -> None:
    data_dir = write_benchmarks(tmp_path, num_items=5)
    dev, test = data_dir / "mmlu/dev/anatomy_dev.csv", data_dir / "mmlu/test/anatomy_test.csv"
    test.write_text(dev.read_text() + test.read_text())
    with dev.open("a", newline="") as file:  # a sixth, which no prompt shows
        csv.writer(file).writerow(["A question?", "a", "b", "c", "d", "A"])
    with test.open("a", newline="") as file:
        csv.writer(file).writerow(["A question?", "a", "b", "c", "d", "A"])
    loaded = load_tasks(["mmlu_anatomy"], data_dir)
    task = loaded.task_dict["tasks"]["mmlu_anatomy"]
    assert len(task.eval_docs) == 6 and not [item for item in task.eval_docs if item in task.examples]
    assert loaded.notices == ["mmlu_anatomy: 5 items are few-shot examples as well; not scored"]


def test_items_that_repeat_others_are_told(tmp_path: Path) -> None:
    data_dir = write_benchmarks(tmp_path, num_items=5)
    path = data_dir / "sciq/test.json"
    path.write_text(json.dumps(json.loads(path.read_text()) * 2))
    assert load_tasks(["sciq"], data_dir).notices == ["sciq: 5 of 10 items repeat another; all are scored"]


def test_too_few_examples_are_told(tmp_path: Path) -> None:
    data_dir = write_benchmarks(tmp_path, num_items=5)
    path = data_dir / "gsm8k/train.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(ValueError, match=r"gsm8k: a prompt of 8 examples is asked for, and gsm8k/train.jsonl has 3$"):
        load_tasks(["gsm8k"], data_dir)
    with pytest.raises(ValueError, match=r"arc_easy: a prompt of 1 examples is asked for, and its data has 0$"):
        load_tasks(["arc_easy"], data_dir, num_fewshot=1)
    with pytest.raises(ValueError, match=r"asdiv: a prompt of 9 examples is asked for, and its YAML file has 8$"):
        load_tasks(["asdiv"], data_dir, num_fewshot=9)


def test_fewer_examples_are_the_first_of_them(data_dir: Path) -> None:
    usual, fewer = (load_tasks(["gsm8k"], data_dir, num_fewshot=number) for number in (None, 2))
    assert fewer.examples["gsm8k"] == usual.examples["gsm8k"][:2]
    task = fewer.task_dict["tasks"]["gsm8k"]
    task.build_all_requests(limit=1)
    assert task.instances[0].args[0].count("Question:") == 3 and task.config.num_fewshot == 2


def test_a_test_file_of_examples_only_is_told(tmp_path: Path) -> None:
    data_dir = write_benchmarks(tmp_path, num_items=2)
    (data_dir / "gsm8k/test.jsonl").write_text((data_dir / "gsm8k/train.jsonl").read_text().splitlines()[0])
    with pytest.raises(ValueError, match=r"gsm8k: every item of gsm8k/test.jsonl is a few-shot example"):
        load_tasks(["gsm8k"], data_dir)


def test_templates_are_recorded_with_what_they_include(data_dir: Path) -> None:
    templates = load_tasks(["arc_challenge"], data_dir).templates
    folder = task_files.SHIPPED
    digests = {
        f"tasks/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("arc_*.yaml")
    }
    assert templates == digests and len(digests) == 2


def test_code_has_no_metric_until_it_may_be_run(data_dir: Path) -> None:
    loaded = load_tasks(["humaneval", "mbpp", "gsm8k"], data_dir)
    assert loaded.notices == [
        f"{task}: pass@1 needs --run-code; answers are logged, and no metric is computed"
        for task in ("humaneval", "mbpp")
    ]
    for name, task in loaded.task_dict["tasks"].items():
        assert task.config.unsafe_code is False
        assert name == "gsm8k" or task.process_results({}, ["import os"]) == {}
    allowed = load_tasks(["humaneval"], data_dir, run_code=True)
    assert allowed.notices == [] and allowed.task_dict["tasks"]["humaneval"].config.unsafe_code is True


def test_a_machine_without_a_sandbox_is_told_before_anything_is_computed(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_answers, "passes_examples", lambda program, examples: False)
    with pytest.raises(ValueError, match="--run-code: a program that is right does not pass in the sandbox"):
        load_tasks(["mbpp"], data_dir, run_code=True)
    assert load_tasks(["mbpp"], data_dir).notices


class FirstChoice(LM):
    """Prefers the continuation that comes first in a request's choices; solves with the last example's words."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return [(-1.0 - request.idx, False) for request in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return ["So it is. #### 7. The answer is \\boxed{7}." for _ in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise AssertionError("no task asks this")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*args: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield


def test_the_harness_evaluates_all_tasks_without_a_network(data_dir: Path, no_network: None) -> None:
    loaded = load_tasks([*LOG_LIKELIHOOD_TASKS, *GENERATION_TASKS], data_dir)
    results = lm_eval.evaluator.evaluate(FirstChoice(), loaded.task_dict, bootstrap_iters=10)
    assert set(results["n-shot"]) >= set(loaded.task_dict["tasks"])
    for name, task in loaded.task_dict["tasks"].items():
        if name in ("humaneval", "mbpp"):
            assert not [key for key in results["results"][name] if "," in key]
            continue
        metric = "acc" if task.OUTPUT_TYPE == "multiple_choice" else "exact_match"
        items = list(task.eval_docs)
        if metric == "acc":
            assert results["results"][name]["acc,none"] == sum(item["gold"] == 0 for item in items) / len(items)
            assert results["higher_is_better"][name]["acc"] is True
        assert results["n-samples"][name] == {"original": len(items), "effective": len(items)}
    scieval = results["results"]["scieval"]
    parts = [results["results"][f"scieval_{part}"]["acc,none"] for part in ("physics", "chemistry", "biology")]
    assert scieval["acc,none"] == pytest.approx(sum(parts) / 3)
    assert scieval["acc_macro,none"] == pytest.approx(sum(parts) / 3)
    assert results["group_subtasks"]["scieval"] == ["scieval_physics", "scieval_chemistry", "scieval_biology"]
    json.dumps(results["samples"])


def test_acc_norm_counts_characters_and_acc_bytes_bytes(data_dir: Path) -> None:
    task = load_tasks(["arc_easy"], data_dir).task_dict["tasks"]["arc_easy"]
    choices = ["a" * 20, "一二三四五", "b"]
    answers = [(-12.0, False), (-6.0, False), (-2.0, False)]  # by character -0.6, -1.2, -2; by byte -0.6, -0.4, -2
    right = [task.process_results({"choices": choices, "gold": gold}, answers) for gold in range(3)]
    assert [found["acc"] for found in right] == [0, 0, 1]
    assert [found["acc_norm"] for found in right] == [1, 0, 0]
    assert [found["acc_bytes"] for found in right] == [0, 1, 0]


def test_a_group_averages_over_items_and_over_subjects(data_dir: Path) -> None:
    group = load_tasks(["mmlu_anatomy", "mmlu_astronomy"], data_dir).task_dict["groups"]["mmlu"]
    found = group.aggregate(
        {
            "mmlu_anatomy": {"acc,none": 0.5, "acc_stderr,none": 0.03, "sample_len": 300},
            "mmlu_astronomy": {"acc,none": 0.9, "acc_stderr,none": 0.04, "sample_len": 100},
        }
    )
    assert found["acc,none"] == pytest.approx(0.6)
    assert found["acc_macro,none"] == pytest.approx(0.7)
    assert found["acc_macro_stderr,none"] == pytest.approx(0.05 / 2)


def test_the_table_of_files_names_every_benchmark() -> None:
    table = (task_files.SHIPPED / "README.md").read_text(encoding="utf-8")
    for name, shots in SHOTS.items():
        row = next(line for line in table.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.split("|")[4].strip() == str(shots)

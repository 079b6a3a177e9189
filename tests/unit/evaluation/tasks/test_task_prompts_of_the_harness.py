"""Our prompts beside lm-evaluation-harness's own for the same items, where it has the task.

Its YAML files are read without their data sets and functions, and given the items of the files that ours reads. Where
ours differs, the test says in what, and why.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lm_eval.tasks
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from megatron_synE.evaluation.tasks.data_files import Items
from megatron_synE.evaluation.tasks.task_files import load_tasks
from tests.helpers.benchmark_data import write_benchmarks

HARNESS = Path(lm_eval.tasks.__file__).parent
NEEDS_ITS_DATA = ("process_results", "process_docs", "filter_list", "metric_list", "dataset_path", "dataset_name")
NUMBERS = (0, 7, 49)
"""Items that are compared."""

Prompts = list[tuple[str, list[str]]]


class HarnessTask(ConfigurableTask):
    """The harness's task over documents that are at hand."""

    def __init__(self, config: dict[str, Any], documents: dict[str, Items]) -> None:
        self.documents = documents
        super().__init__(config=config)

    def download(self, *args: Any, **kwargs: Any) -> None:
        self.dataset = self.documents


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("data"))


def ours(data_dir: Path, task: str) -> Prompts:
    return prompts(load_tasks([task], data_dir, run_code=True).task_dict["tasks"][task])


def theirs(yaml: str, test: Sequence[Any], examples: Sequence[Any] = (), **changes: Any) -> Prompts:
    """The harness's prompts for documents in its form, with as many examples, the first ones, as are given."""
    config = load_yaml(HARNESS / yaml, resolve_func=False)
    config = {key: value for key, value in config.items() if key not in (*NEEDS_ITS_DATA, "tag")}
    config |= {"training_split": None, "validation_split": None, "test_split": "test", "metric_list": []}
    config |= {"num_fewshot": len(examples), "fewshot_split": "dev", "fewshot_config": {"sampler": "first_n"}}
    return prompts(HarnessTask(config | changes, {"test": Items(test, {}), "dev": Items(examples, {})}))


def prompts(task: ConfigurableTask) -> Prompts:
    task.build_all_requests()
    asked: dict[int, tuple[str, list[str]]] = {}
    for request in task.instances:
        context, continuations = asked.setdefault(request.doc_id, (request.args[0], []))
        assert context == request.args[0]
        continuations.append(request.args[1] if task.OUTPUT_TYPE == "multiple_choice" else "")
    return [asked[number] for number in NUMBERS]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(path: Path, *columns: str) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, columns or None))


def without_space(asked: Prompts, before: str) -> Prompts:
    """Prompts whose answers follow `before` directly, instead of a space."""
    return [
        (context.replace(f"{before} ", before), [text.removeprefix(" ") for text in continuations])
        for context, continuations in asked
    ]


def test_mmlu(data_dir: Path) -> None:
    columns = ("question", "A", "B", "C", "D", "answer")
    dev, test = (
        [
            {
                "question": row["question"],
                "choices": [row[letter] for letter in "ABCD"],
                "answer": "ABCD".index(row["answer"]),
            }
            for row in table(data_dir / f"mmlu/{split}/anatomy_{split}.csv", *columns)
        ]
        for split in ("dev", "test")
    )
    assert ours(data_dir, "mmlu_anatomy") == theirs("mmlu/default/mmlu_anatomy.yaml", test, dev)


@pytest.mark.parametrize(
    "task, yaml, dev, test",
    [
        ("ceval_logic", "ceval/ceval-valid_logic.yaml", "ceval/dev/logic_dev.csv", "ceval/val/logic_val.csv"),
        ("cmmlu_agronomy", "cmmlu/cmmlu_agronomy.yaml", "cmmlu/dev/agronomy.csv", "cmmlu/test/agronomy.csv"),
    ],
)
def test_ceval_and_cmmlu(data_dir: Path, task: str, yaml: str, dev: str, test: str) -> None:
    """No space stands before the letter: the colon is a full-width one, and Chinese text has none there."""
    harness = theirs(yaml, table(data_dir / test), table(data_dir / dev))
    assert ours(data_dir, task) == without_space(harness, "答案：") != harness


@pytest.mark.parametrize("task, folder", [("arc_easy", "ARC-Easy"), ("arc_challenge", "ARC-Challenge")])
def test_arc(data_dir: Path, task: str, folder: str) -> None:
    documents = []
    for row in lines(data_dir / f"arc/{folder}/{folder}-Test.jsonl"):
        choices = row["question"]["choices"]
        split = {key: [choice[key] for choice in choices] for key in ("text", "label")}
        documents.append({"question": row["question"]["stem"], "choices": split, "answerKey": row["answerKey"]})
    assert ours(data_dir, task) == theirs(f"arc/{task}.yaml", documents)


def test_sciq(data_dir: Path) -> None:
    train, test = (json.loads((data_dir / f"sciq/{split}.json").read_text()) for split in ("train", "test"))
    assert ours(data_dir, "sciq") == theirs("sciq/sciq.yaml", test, train[:5])


def test_gsm8k(data_dir: Path) -> None:
    """Eight examples, the first of the training split; the harness draws five of it."""
    train, test = (lines(data_dir / f"gsm8k/{split}.jsonl") for split in ("train", "test"))
    assert ours(data_dir, "gsm8k") == theirs("gsm8k/gsm8k.yaml", test, train[:8])


def test_asdiv_and_mawps(data_dir: Path) -> None:
    """The harness's ASDiv asks for the likelihood of the bare answer, and it has no MAWPS; ours ask for worked answers.

    In the prompt, and after the examples, of its GSM8K with a chain of thought (`gsm8k_cot`).
    """
    samples = load_yaml(HARNESS / "gsm8k/gsm8k-cot.yaml", resolve_func=False)["fewshot_config"]["samples"]
    body_and_question = [
        {"question": f"{row['body']} {row['question']}"} for row in lines(data_dir / "asdiv/test.jsonl")
    ]
    parts = [lines(data_dir / f"mawps/{part}.jsonl") for part in ("addsub", "multiarith", "singleeq", "singleop")]
    asked = {"asdiv": body_and_question, "mawps": [{"question": row["input"]} for part in parts for row in part]}
    for task, rows in asked.items():
        documents = [{**row, "target": ""} for row in rows]
        harness = theirs("gsm8k/gsm8k-cot.yaml", documents, samples, doc_to_target="{{target}}")
        assert ours(data_dir, task) == harness


def test_math(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minerva's prompt, with five training problems of the subject; the harness has Minerva's own four."""
    train, test = (
        [json.loads((data_dir / f"math/{split}/algebra/{number}.json").read_text()) for number in numbers]
        for split, numbers in (("train", range(1, 6)), ("test", range(1, 51)))
    )
    stub_imports(monkeypatch, "antlr4", math_verify={"parse": None, "verify": None})
    monkeypatch.setattr("importlib.metadata.version", lambda name: "4.11.0")
    doc_to_text = function("minerva_math/utils.py", "doc_to_text")
    yaml = "minerva_math/minerva_math_algebra.yaml"
    assert ours(data_dir, "math_algebra") == theirs(
        yaml, test, train, doc_to_text=doc_to_text, doc_to_target="solution"
    )


def test_humaneval(data_dir: Path) -> None:
    assert ours(data_dir, "humaneval") == theirs(
        "humaneval/humaneval.yaml", lines(data_dir / "humaneval/HumanEval.jsonl")
    )


def test_mbpp(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness holds tasks 2, 3 and 4 itself; ours reads them from the file."""
    stub_imports(monkeypatch, evaluate={"load": lambda name: SimpleNamespace(compute=lambda **options: None)})
    examples = function("mbpp/utils.py", "list_fewshot_samples")()
    rows = {row["task_id"]: row for row in lines(data_dir / "mbpp/mbpp.jsonl")} | {
        row["task_id"]: row for row in examples
    }
    (tmp_path / "mbpp").mkdir()
    (tmp_path / "mbpp/mbpp.jsonl").write_text("\n".join(json.dumps(row) for row in rows.values()))
    test = [row for number, row in rows.items() if number >= 11]
    harness = theirs("mbpp/mbpp.yaml", test, examples, doc_to_target="{{code}}\n[DONE]")
    assert ours(tmp_path, "mbpp") == harness


ENGLISH = "Q: {0} Answer Choices: {1}\nA: Among A through {2}, the answer is"
CHINESE = "问题：{0} 选项：{1}\n答案：从A到{2}, 我们应选择"


@pytest.mark.parametrize(
    "task, yaml, file, query, before",
    [
        ("sat_math", "sat-math", "agieval/sat-math.jsonl", ENGLISH, " "),
        ("aqua_rat", "aqua-rat", "aqua_rat/test.json", ENGLISH, " "),
        ("gaokao_mathqa", "gaokao-mathqa", "agieval/gaokao-mathqa.jsonl", CHINESE, ""),
        ("gaokao_chemistry", "gaokao-chemistry", "agieval/gaokao-chemistry.jsonl", CHINESE, ""),
        ("gaokao_biology", "gaokao-biology", "agieval/gaokao-biology.jsonl", CHINESE, ""),
    ],
)
def test_agieval(data_dir: Path, task: str, yaml: str, file: str, query: str, before: str) -> None:
    """The question is the harness's; it asks without examples for the likelihood of each option's text.

    Ours, after five examples, for that of its letter: a likelihood that no option's length decides, and one position
    for all of them. In Chinese no space stands before it.
    """
    documents = []
    for row in lines(data_dir / file):
        options = [option if option.startswith("(") else f"({option}" for option in row["options"]]
        asked = query.format(row["question"], " ".join(options), "ABCDE"[len(options) - 1])
        documents.append(
            {"query": asked, "choices": options, "gold": "ABCDE".index(row.get("label", row.get("correct")))}
        )
    harness = theirs(f"agieval/{yaml}.yaml", documents, doc_to_target="gold", doc_to_choice="choices")
    for (context, letters), (question, options) in zip(ours(data_dir, task), harness, strict=True):
        assert context.split("\n\n")[5:] == [question]
        assert letters == [f"{before}{option[2]}" for option in options]


def stub_imports(monkeypatch: pytest.MonkeyPatch, *names: str, **modules: dict[str, Any]) -> None:
    """Stand-ins for packages that the harness's files import for metrics, which no prompt needs."""
    for name, content in {**{name: {} for name in names}, **modules}.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)


def function(file: str, name: str) -> Callable[..., Any]:
    """A function of a file in the harness's folder of tasks."""
    spec = importlib.util.spec_from_file_location(f"harness_{name}", HARNESS / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., Any] = getattr(module, name)
    return found

"""tools/evaluate.py: the figures of lm-evaluation-harness's own model, whatever the layout, and whatever befalls it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.config.evaluation_results import read_evaluation
from megatron_synE.runtime import run_lock
from tests.helpers.benchmark_data import LOG_LIKELIHOOD_TASKS, write_benchmarks
from tests.helpers.commands import ROOT, SAMPLE, environment
from tests.helpers.harness_proof import compare, evaluate, make_model, results_of_hf_model, train_model
from tests.helpers.hf_llama import SHAPES
from tools import evaluate as tool

NUM_ITEMS = 8
"""Of each task; `python -m tests.helpers.harness_proof` takes 50, and all layouts of all models."""
QUICK_TASKS = ("arc_easy", "sciq")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("data"), NUM_ITEMS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {shape: make_model(root / shape, shape) for shape in SHAPES}


@pytest.fixture(scope="module")
def whole(models: dict[str, Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of quick tasks that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    evaluate(folder, *quick(models, data))
    return folder


def quick(models: dict[str, Path], data: Path) -> list[str | Path]:
    return ["--hf-dir", models["wide_heads"], "--tasks", *QUICK_TASKS, "--data-dir", data]


def command_of(output: Path, options: list[str | Path]) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "evaluate.py"), "--dtype", "fp32", "--device", "cpu", "--output-dir",
            str(output), *map(str, options)]  # fmt: skip


def contents(folder: Path) -> dict[str, str]:
    """All files of an evaluation, without its times, its command and its place."""
    found = {}
    for path in folder.iterdir():
        name, text = re.sub(r"_20[\dT.-]+(?=\.json)", "", path.name), path.read_text(encoding="utf-8")
        if name in ("results.json", "manifest.json"):
            content = json.loads(text)
            for changing in ("date", "seconds", "command"):
                content.pop(changing, None)
            text = json.dumps(content)
        found[name] = text
    return found


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_random_llamas_answer_as_in_the_harness(
    shape: str, models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    theirs = results_of_hf_model(models[shape], LOG_LIKELIHOOD_TASKS, data)
    layout = "TP2xPP2" if shape == "gqa" else "TP1"
    options = ("--hf-dir", models[shape], "--tasks", *LOG_LIKELIHOOD_TASKS, "--data-dir", data)
    printed = evaluate(tmp_path / "out", *options, layout=layout)
    proof = compare(tmp_path / "out", theirs)
    assert proof.differing == [] and proof.worst < TOLERANCE and proof.num_requests > 400
    assert "one <|begin_of_text|> (id 4094) before every request" in printed
    assert "--- prompt 3 of mmlu" in printed and "--- token ids: 4094 " in printed


@pytest.mark.slow
def test_a_training_checkpoint_is_evaluated_where_it_lies(data: Path, tmp_path: Path) -> None:
    checkpoint, export = train_model(tmp_path)
    tasks = ("--tasks", *LOG_LIKELIHOOD_TASKS, "--data-dir", data)
    evaluate(tmp_path / "ours", "--checkpoint", checkpoint, "--tokenizer-model", export, *tasks, layout="TP2")
    proof = compare(tmp_path / "ours", results_of_hf_model(export, LOG_LIKELIHOOD_TASKS, data))
    assert proof.differing == [] and proof.worst < TOLERANCE
    evaluation = read_evaluation(tmp_path / "ours")
    assert evaluation.manifest is not None and evaluation.manifest["model"]["step"] == 6
    # The export against the checkpoint, item by item: nothing was gained or lost on the way.
    printed = evaluate(tmp_path / "again", "--hf-dir", export, *tasks, "--against", tmp_path / "ours")
    found = read_evaluation(tmp_path / "again").comparison
    assert found is not None and found.not_compared == {} and "unclear" in printed
    assert {(row.difference, row.low, row.high, row.verdict) for row in found.metrics} == {(0.0, 0.0, 0.0, "unclear")}
    assert {"mmlu", "mmlu_anatomy", "sciq"} <= {row.task for row in found.metrics}


@pytest.mark.slow
def test_generations_are_transformers_own(models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    tasks = ("asdiv",)
    options = ("--tasks", *tasks, "--data-dir", data, "--limit", "2", "--num-fewshot", "1")
    evaluate(tmp_path / "ours", "--hf-dir", models["wide_heads"], *options)
    evaluate(tmp_path / "hf", "--hf-dir", models["wide_heads"], *options, "--generate-with", "hf")
    theirs = results_of_hf_model(models["wide_heads"], tasks, data, limit=2, num_fewshot=1)
    for name in ("ours", "hf"):
        proof = compare(tmp_path / name, theirs)
        assert (proof.differing, proof.num_requests) == ([], 2)
    manifest = read_evaluation(tmp_path / "hf").manifest
    assert manifest is not None and manifest["generator"]["type"] == "transformers"


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(models: dict[str, Path], data: Path, whole: Path, tmp_path: Path) -> None:
    output, journal = tmp_path / "out", tmp_path / "out" / "journal.jsonl"
    process = subprocess.Popen(
        command_of(output, quick(models, data)), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not journal.exists():
        time.sleep(0.002)
    process.kill()  # as soon as anything is written
    process.wait()
    evaluate(output, *quick(models, data))
    assert contents(output) == contents(whole)
    before = contents(output)
    assert "this evaluation is finished already" in evaluate(output, *quick(models, data))
    assert contents(output) == before


@pytest.mark.slow
def test_a_full_disk_costs_no_answer(models: dict[str, Path], data: Path, whole: Path, small_disk: Path) -> None:
    command = command_of(small_disk / "out", quick(models, data))
    first = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert first.returncode == 1 and "Traceback" not in first.stderr
    assert re.search(r"evaluate: .*/out/.*: no space left on device", first.stderr, re.IGNORECASE), first.stderr
    assert not [path for path in (small_disk / "out").iterdir() if path.name.startswith("results")]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    second = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert second.returncode == 0, second.stderr
    assert contents(small_disk / "out") == contents(whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for the journal, and not for the samples."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Mistakes:
    """The tool in this process: what it says before a model is loaded."""

    def __init__(self, options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
        self.options, self._capsys = options, capsys

    def told(self, **changes: Any) -> str:
        """The one message that the tool ends with. None drops an option, True is a flag."""
        arguments: list[str] = []
        for name, value in {**self.options, **changes}.items():
            if value is not None:
                values = [] if value is True else value if isinstance(value, list) else [value]
                arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
        assert tool.main(arguments) == 1
        captured = self._capsys.readouterr()
        assert captured.err.startswith("evaluate: ") and captured.err.count("\n") == 1
        return captured.err.removeprefix("evaluate: ").rstrip("\n")


@pytest.fixture
def mistakes(
    models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Mistakes:  # fmt: skip
    for name in (*tool.OFFLINE, "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # and back at the end
    options = {
        "hf_dir": models["wide_heads"], "tasks": ["sciq"], "data_dir": data, "output_dir": tmp_path / "out",
        "dtype": "fp32", "device": "cpu",
    }  # fmt: skip
    return Mistakes(options, capsys)


def test_a_task_that_is_not_there(mistakes: Mistakes) -> None:
    assert mistakes.told(tasks=["sciqq"]) == "sciqq: there is no such task; did you mean sciq?"


def test_data_that_is_missing_or_broken(mistakes: Mistakes, data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    [test_file] = [path for path in (copy / "sciq").iterdir() if path.stem.startswith("test")]
    content = test_file.read_text(encoding="utf-8")
    test_file.write_text(content.replace('"distractor1"', '"distractor9"', 1), encoding="utf-8")
    told = mistakes.told(data_dir=copy)
    assert str(test_file) in told and "distractor1" in told and "mend it" in told
    test_file.unlink()
    told = mistakes.told(data_dir=copy)
    assert f"put it at {copy}/sciq/" in told and "tasks/README.md has the table" in told
    assert mistakes.told(data_dir=tmp_path / "gone").startswith(f"--data-dir {tmp_path / 'gone'}: is no folder")


def test_a_tokenizer_without_bos(mistakes: Mistakes, tmp_path: Path) -> None:
    folder = shutil.copytree(SAMPLE / "tokenizer", tmp_path / "tokenizer")
    (folder / "tokenizer_config.json").write_text('{"bos_token": null}', encoding="utf-8")
    told = mistakes.told(tokenizer_model=folder, add_bos="yes")
    assert told.startswith(f"--add-bos yes: the tokenizer {folder} has no begin-of-text token")


def test_a_model_of_another_vocabulary(mistakes: Mistakes, models: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(models["wide_heads"], tmp_path / "smaller")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 1000}), encoding="utf-8")
    told = mistakes.told(hf_dir=folder)
    assert "has ids up to 4095, and the model a vocabulary of 1000: they do not belong together" in told


def test_models_that_are_not_there(mistakes: Mistakes, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert mistakes.told(hf_dir=gone) == f"{gone}: no such file or folder"
    assert str(gone) in mistakes.told(hf_dir=None, checkpoint=gone)
    assert mistakes.told(hf_dir=None) == "give either --checkpoint or --hf-dir"
    assert str(gone) in mistakes.told(tokenizer_model=gone)
    assert mistakes.told(against=gone).startswith(f"{gone}: no such folder")


def test_an_output_folder_of_another_evaluation(mistakes: Mistakes, tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    told = mistakes.told(tasks=list(QUICK_TASKS), limit=2)
    assert "holds a finished evaluation with another settings.limit (None, not 2); choose another --output-dir" in told
    assert "settings.tasks" in mistakes.told()
    assert contents(tmp_path / "out") == contents(whole)


def test_two_starts_at_once(mistakes: Mistakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 0.1)
    output = tmp_path / "out"
    first = run_lock.RunLock({"--output-dir": output}, is_ending=lambda: False, on_lost=pytest.fail)
    first.acquire()
    try:
        assert mistakes.told().startswith(f"--output-dir: {output} is in use by host ")
    finally:
        first.release()


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"limit": 0}, "--limit 0: give 1 or more"),
        ({"num_fewshot": -1}, "--num-fewshot -1: give 0 or more"),
        ({"generate_with": "vllm"}, "--generate-with vllm: give engine, hf, or the URL of a server up to /v1"),
        ({"export_dir": "x"}, "--export-dir: it is for --generate-with hf; add that, or leave it out"),
        ({"endpoint_model": "x"}, "--endpoint-model: it is for --generate-with URL; give that, or leave it out"),
        ({"tokens_per_batch": 0}, "--tokens-per-batch 0: give 1 or more"),
        ({"tensor_model_parallel_size": 0}, "--tensor-model-parallel-size: 0 is not positive; use 1 or more"),
    ],
)
def test_options_that_contradict(mistakes: Mistakes, changes: dict[str, Any], told: str) -> None:
    assert told in mistakes.told(**changes)

"""Requests of a training run's benchmarks: as the harness makes them, scored as it scores them; one error each."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.evaluation.engine import LogLikelihood, ScoringRequest
from megatron_synE.evaluation.rendered import RenderedBenchmarks, read_rendered
from tests.helpers.benchmark_data import LOG_LIKELIHOOD_TASKS, write_benchmarks

pytest.importorskip("lm_eval")
NUM_ITEMS = 15
TOKENIZER = Path(__file__).parents[3] / "examples" / "data" / "tokenizer"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("data"), NUM_ITEMS)


def asked(data_dir: Path, output: Path | None, **changes: Any) -> dict[str, Any]:
    return {
        "tasks": ["sciq", "arc_easy"], "data_dir": str(data_dir), "num_fewshot": None, "limit": None, "add_bos": "auto",
        "tokenizer": {"type": "auto", "name": str(TOKENIZER), "fingerprints": []}, "vocab_size": 100_000,
        "max_length_tokens": 8192, "output": None if output is None else str(output), **changes,
    }  # fmt: skip


def made(tmp_path: Path, data_dir: Path, **changes: Any) -> RenderedBenchmarks:
    from megatron_synE.evaluation.render import render

    render(asked(data_dir, tmp_path / "requests", **changes))
    return read_rendered(tmp_path / "requests")


def answer(request: ScoringRequest) -> LogLikelihood:
    """A number that depends on all of the request's tokens, and on its length as a likelihood does."""
    noise = zlib.crc32(json.dumps(request).encode()) / 2**32
    return LogLikelihood(-len(request.continuation) * (1 + noise), is_greedy=False)


class MadeUpEngine:
    max_length_tokens, vocab_size = 8192, 100_000

    def log_likelihoods(self, requests: Sequence[ScoringRequest], on_done: Callable[..., None]) -> list[LogLikelihood]:
        answers = [answer(ScoringRequest(*request)) for request in requests]
        on_done(range(len(requests)), answers)
        return answers


class Kept(dict[str, Any]):
    add = dict.update


def test_accuracies_are_the_harnesss_own(tmp_path: Path, data_dir: Path) -> None:
    """All tasks by log-likelihood, on the same numbers for the same requests; then of fewer items and examples."""
    from megatron_synE.corpus.tokenizers import build_tokenizer
    from megatron_synE.evaluation.encoding import RequestEncoder, bos_policy
    from megatron_synE.evaluation.harness import run_harness
    from megatron_synE.evaluation.harness_model import HarnessModel
    from megatron_synE.evaluation.live_benchmarks import task_scores
    from megatron_synE.evaluation.tasks.task_files import load_tasks

    tokenizer = build_tokenizer("auto", TOKENIZER)
    encoder = RequestEncoder(tokenizer, bos_policy(tokenizer, "auto"))
    model = HarnessModel(MadeUpEngine(), None, encoder, Kept(), show=False)  # type: ignore[arg-type]
    seen: set[float] = set()
    for names, limit in ((LOG_LIKELIHOOD_TASKS, None), (("scieval", "sciq"), 7)):
        rendered = made(tmp_path, data_dir, tasks=list(names), limit=limit)
        theirs = run_harness(model, load_tasks(names, data_dir), limit=limit, seed=1)
        results = {**theirs["results"], **theirs.get("groups", {})}
        for task in rendered.tasks:
            requests = rendered.requests(rendered.requests_of(rendered.items_of(task.name)))
            ours = task_scores(rendered, task, list(map(answer, requests)))
            for metric in task.metrics:
                assert ours[metric] == pytest.approx(results[task.name][f"{metric},none"], abs=1e-12), task.name
                seen.add(ours[metric])
            samples = [theirs["samples"][name] for name in theirs["samples"] if name.startswith(task.name)]
            assert ours["num_items"] == sum(map(len, samples)), task.name
    assert len(seen) > 5, "they are not the same for another reason"


def test_a_file_that_is_right_stays_and_another_is_made_anew(tmp_path: Path, data_dir: Path) -> None:
    before = made(tmp_path, data_dir)
    file = tmp_path / "requests"
    written = file.stat().st_mtime_ns
    made(tmp_path, data_dir)
    assert file.stat().st_mtime_ns == written
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    assert made(tmp_path, data_dir).tasks == before.tasks
    fewer = made(tmp_path, data_dir, num_fewshot=2, tasks=["sciq"])
    assert [task.num_fewshot for task in fewer.tasks] == [2]
    assert fewer.tasks[0].fingerprint != before.tasks[0].fingerprint
    other = tmp_path / "data"
    write_benchmarks(other, NUM_ITEMS)
    (path,) = other.glob("sciq/test.json")
    rows = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps([{**rows[0], "question": "Another one?"}, *rows[1:]]), encoding="utf-8")
    changed = made(tmp_path, other)
    assert [task.fingerprint == old.fingerprint for task, old in zip(changed.tasks, before.tasks, strict=True)] == [
        False, True,
    ]  # fmt: skip


def test_each_mistake_is_one_line(tmp_path: Path, data_dir: Path) -> None:
    from megatron_synE.evaluation.render import Problems, render

    broken = tmp_path / "broken"
    write_benchmarks(broken, NUM_ITEMS)
    (path,) = broken.glob("sciq/test.json")
    rows = json.loads(path.read_text(encoding="utf-8"))
    del rows[3]["correct_answer"]
    path.write_text(json.dumps(rows), encoding="utf-8")
    next(broken.glob("arc/ARC-Easy/*")).unlink()
    no_bos = tmp_path / "tokenizer"
    no_bos.mkdir()
    content = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    (no_bos / "tokenizer.json").write_text(json.dumps(content | {"added_tokens": []}), encoding="utf-8")
    other = {"type": "auto", "name": str(TOKENIZER), "fingerprints": ["another"]}
    for changes, words in (
        ({"tasks": ["sciqq", "gsm8k", "all"]}, ["did you mean sciq", "gsm8k has text generated", "all has text gen"]),
        ({"data_dir": str(broken)}, ["sciq/test.json row 4: correct_answer", "put it at .*ARC-Easy-Test"]),
        ({"vocab_size": 300}, ["the model's vocabulary is 300; name the tokenizer that made the corpora"]),
        ({"tokenizer": other}, [r"benchmarks\.tokenizer: .* is not the one that made the corpora"]),
        ({"tokenizer": {**other, "name": "nowhere"}}, [r"benchmarks\.tokenizer: nowhere: no such file"]),
        ({"tokenizer": {**other, "name": str(no_bos), "fingerprints": []}},
         [r"add_bos: .*no begin-of-text token"]),
        ({"num_fewshot": 3}, ["num_fewshot: arc_easy has no examples to show"]),
    ):  # fmt: skip
        output = tmp_path / "none"
        with pytest.raises(Problems) as caught:
            render({**asked(data_dir, output), **changes})
        lines = str(caught.value).splitlines()
        assert len(lines) == len(words), lines
        for line, word in zip(lines, words, strict=True):
            assert line.startswith("evaluation.benchmarks"), line
            assert re.search(word, line), (word, line)
        assert not output.exists()


def test_what_loses_its_beginning_is_told(tmp_path: Path, data_dir: Path) -> None:
    notes = made(tmp_path, data_dir, tasks=["sciq"], max_length_tokens=120).notes
    assert any("60 of 60 requests are longer than the model's context of 120 tokens" in note for note in notes), notes
    assert any("before every request" in note for note in notes), notes


def test_the_trainer_loads_nothing_that_starts_threads() -> None:
    modules = "live_benchmarks", "llama.scoring", "rendered"
    imports = "; ".join(f"import megatron_synE.evaluation.{name}" for name in modules)
    asked = '{"lm_eval", "datasets", "pyarrow", "transformers", "tokenizers"} & set(sys.modules)'
    code = f"import sys; import pretrain_llama3_synE; {imports}; sys.exit(str({asked} or 0))"
    done = subprocess.run([sys.executable, "-c", code], cwd=TOKENIZER.parents[2], capture_output=True, text=True)
    assert done.stderr.endswith("0\n"), done.stderr

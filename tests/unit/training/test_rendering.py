"""What is found out about benchmarks before anything is rendered: the tokenizer, the folder, the extra."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.config.job import JobConfig
from megatron_synE.config.parse import parse_job
from megatron_synE.training.rendering import benchmark_problems, tokenizer_of
from tests.helpers.runs import write_job


def job(folder: Path, tokenizers: dict[str, str], **fields: Any) -> JobConfig:
    """A job whose corpora say that they were made by these tokenizers."""
    benchmarks = {"tasks": ["sciq"], "data_dir": str(folder), **fields}
    arguments = write_job(folder, evaluation={"benchmarks": benchmarks})
    for source, name in tokenizers.items():
        sidecar = folder / f"{source}.json"
        entry = {"type": "HuggingFaceTokenizer", "name": name, "fingerprint": f"hash of {name}"}
        content = json.loads(sidecar.read_text(encoding="utf-8")) | {"tokenizer": entry}
        sidecar.write_text(json.dumps(content), encoding="utf-8")
    return parse_job(arguments)


def test_the_tokenizer_is_the_one_that_made_the_corpora(tmp_path: Path) -> None:
    made = job(tmp_path, {"web": "llama", "book": "llama"})
    assert tokenizer_of(made) == {
        "type": "HuggingFaceTokenizer", "name": "llama", "fingerprints": ["hash of llama"],
    }  # fmt: skip
    given = job(tmp_path, {"web": "llama", "book": "other"}, tokenizer="mine")
    assert tokenizer_of(given) == {"type": "auto", "name": "mine", "fingerprints": ["hash of llama", "hash of other"]}


@pytest.mark.parametrize(
    "tokenizers, words",
    [({}, "a tokenizer that their sidecars do not name"), ({"web": "one", "book": "two"}, "several tokenizers")],
)
def test_one_has_to_be_named_where_they_do_not_tell(tmp_path: Path, tokenizers: dict[str, str], words: str) -> None:
    (problem,) = benchmark_problems(job(tmp_path, tokenizers))
    assert problem == f"evaluation.benchmarks.tokenizer: the corpora were made by {words}; name one here"


def test_each_thing_that_is_lacking_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = job(tmp_path, {"web": "llama"}, data_dir="nowhere")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    lacking, folder = benchmark_problems(made)
    assert "pip install 'megatron_synE[eval]'" in lacking
    assert folder.startswith("evaluation.benchmarks.data_dir: nowhere is no folder")

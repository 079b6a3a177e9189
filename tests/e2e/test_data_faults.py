"""What goes wrong with data, through the real command lines: one message that names the file, never silence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_synE.corpus.annotations import write_annotation
from megatron_synE.corpus.indexed import IndexedCorpus
from tests.helpers.commands import ROOT, environment, run, run_tool, succeeded
from tests.helpers.runs import POISON, POISONED_DOCUMENT, write_job

TIMEOUT_S = 200


def train(arguments: list[str], *more: str) -> subprocess.CompletedProcess[str]:
    """The trainer as one process."""
    return run(sys.executable, ROOT / "pretrain_llama3_synE.py", *arguments, *more, timeout_s=TIMEOUT_S)


def message_of(result: subprocess.CompletedProcess[str]) -> str:
    """What it ended with."""
    assert result.returncode == 1, result.stdout + result.stderr
    message = result.stderr.split("pretrain_llama3_synE: ")[-1]
    assert "Traceback" not in message
    return message


@pytest.mark.slow
def test_a_token_without_a_row_of_the_vocabulary_ends_the_run(tmp_path: Path) -> None:
    """Without a sidecar that would tell. The embedding is padded, so that it has a row for this token."""
    arguments = write_job(tmp_path)
    (tmp_path / "web.json").unlink()
    message = message_of(train(arguments, "--model.vocab_size", str(POISON)))
    found = f"document {POISONED_DOCUMENT} holds token {POISON}"
    assert f"web: {found}, but the model's vocabulary has {POISON};" in message
    checked = run_tool("verify_corpus", tmp_path / "web", "--vocab-size", str(POISON))
    assert checked.returncode == 1 and found in checked.stderr


@pytest.mark.slow
@pytest.mark.parametrize("left", ["nothing", "half"])
def test_a_corpus_truncated_under_the_trainer_is_named(tmp_path: Path, left: str) -> None:
    arguments = write_job(tmp_path, num_samples=10**7)
    command = [sys.executable, str(ROOT / "pretrain_llama3_synE.py"), *arguments, "--evaluation.interval_steps", "null"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path
    )
    try:
        metrics, give_up = tmp_path / "run" / "metrics.jsonl", time.monotonic() + TIMEOUT_S
        while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < give_up:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        path = tmp_path / "web.bin"
        os.truncate(path, 0 if left == "nothing" else path.stat().st_size // 8192 * 4096)
        error = process.communicate(timeout=TIMEOUT_S)[1]
    finally:
        process.kill()
    if process.returncode == -signal.SIGBUS:
        assert f"{path}: was truncated" in error
    else:
        assert process.returncode == 1 and f"{path}: changed while it was being read" in error


@pytest.mark.slow
def test_caps_and_perplexities_changed_between_two_parts_of_a_run(tmp_path: Path) -> None:
    arguments = write_job(tmp_path)
    job = tmp_path / "job.yaml"
    content = json.loads(job.read_text())
    content["data"]["exhausted"] = "reweight"
    job.write_text(json.dumps(content))
    succeeded(train(arguments, "--training.exit_after_steps", "6"))
    content["data"]["sources"]["book"]["max_epochs"] = 0.05
    job.write_text(json.dumps(content))
    corpus = IndexedCorpus(tmp_path / "web")
    before = Path(f"{corpus.prefix}.perplexity.npy").read_bytes(), Path(f"{corpus.prefix}.perplexity.json").read_bytes()
    values = np.linspace(2, 90, corpus.num_documents, dtype=np.float32)
    write_annotation(corpus.prefix, "perplexity", values, corpus.fingerprint, {"name": "another"})
    assert "data.sources.web" in (message := message_of(train(arguments))) and "annotated anew" in message
    for kind, original in zip(("npy", "json"), before, strict=True):
        Path(f"{corpus.prefix}.perplexity.{kind}").write_bytes(original)
    succeeded(train(arguments))
    shown = succeeded(run_tool("inspect_stream", *arguments, "--checkpoint", tmp_path / "run", "--json"))
    (found,) = json.loads(shown.stdout)["ranges"]
    samples = {entry["component"]: entry["samples"] for entry in found["ledger"]}
    assert samples["book"] == 12 and sum(samples.values()) == 160

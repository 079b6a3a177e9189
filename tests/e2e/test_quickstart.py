"""The quick start's own script, shortened: tokens, backbone, two processes, stop, resume, export, a line of text."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.commands import ROOT, run, succeeded
from tests.helpers.report_page import read_page, records_of, wrong_figures

NUM_STEPS, STOP_AFTER = 6, 3
SHORTER = [
    "--training.train_steps", NUM_STEPS, "--training.exit_after_steps", STOP_AFTER,
    "--data.adjustment.interval_tokens", 8192, "--evaluation.at_end", "false",
]  # fmt: skip


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished quick start (beside a tree that is all links), and what it printed."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "examples" / "quickstart", tree / "examples" / "quickstart")
    for name in ("tools", "pretrain_llama3_synE.py", "examples/data"):
        (tree / name).symlink_to(ROOT / name)
    result = succeeded(run("bash", tree / "examples/quickstart/run.sh", *map(str, SHORTER), cwd=tree, timeout_s=540))
    return tree / "runs" / "quickstart", result.stdout


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_stops_half_way_and_resumes_where_it_stopped(quickstart: tuple[Path, str]) -> None:
    folder, output = quickstart
    assert f"stopped after step {STOP_AFTER} of {NUM_STEPS}" in output
    assert f"resuming after step {STOP_AFTER}" in output
    steps = records(folder, "step")
    assert [record["step"] for record in steps] == list(range(1, NUM_STEPS + 1))
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_logs_what_a_run_is_watched_by(quickstart: tuple[Path, str]) -> None:
    folder, _ = quickstart
    last = records(folder, "step")[-1]
    assert {"loss", "loss_by_component", "grad_norm", "learning_rate", "tokens_per_second"} <= set(last)
    assert last["consumed_tokens"] == NUM_STEPS * 8 * 256
    assert any(name.startswith("web_zh/") for name in last["shares"])
    assert list((folder / "logs" / "tensorboard").glob("events*"))


def test_topic_shares_are_adjusted_within_their_language(quickstart: tuple[Path, str]) -> None:
    folder, _ = quickstart
    (decision,) = records(folder, "decision")
    before, after = decision["shares_before"], decision["shares_after"]
    assert decision["step"] == 4 and before != after
    for source in ("web_en/", "web_zh/"):
        assert sum(v for n, v in after.items() if n.startswith(source)) == pytest.approx(
            sum(v for n, v in before.items() if n.startswith(source))
        )


def test_chinese_documents_are_scored_by_the_backbone(quickstart: tuple[Path, str]) -> None:
    from megatron_synE.corpus.annotations import Annotations

    folder, _ = quickstart
    perplexity = Annotations(folder / "corpus" / "web_zh_text_document").get("perplexity")
    assert len(perplexity) == 240 and (perplexity > 1).all()


def test_export_is_a_llama_of_transformers_and_speaks(quickstart: tuple[Path, str]) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder, output = quickstart
    model = LlamaForCausalLM.from_pretrained(str(folder / "hf"))
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "hf"))
    assert model.config.vocab_size == 4096 and model.lm_head.weight.shape == (4096, 128)
    tokens_BS = torch.tensor([tokenizer("The area of the").input_ids])
    assert torch.isfinite(model(tokens_BS).logits).all()
    line = output.split("and generating\n")[1].splitlines()[0]
    assert line.startswith("The area of the") and len(line) > len("The area of the")


def test_files_have_the_permissions_that_any_program_gives(quickstart: tuple[Path, str]) -> None:
    """Corpora, annotations, indices, checkpoints and exports: a colleague can read them where the umask lets him."""
    folder, _ = quickstart
    os.umask(umask := os.umask(0o022))
    files = [path for path in folder.rglob("*") if path.is_file()]
    modes = {str(path): oct(path.stat().st_mode & 0o777) for path in files}
    assert len(files) > 50 and {path: mode for path, mode in modes.items() if mode != oct(0o666 & ~umask)} == {}


def test_the_reports_figures_are_those_of_the_run(quickstart: tuple[Path, str]) -> None:
    from megatron_synE.checkpoint import read_state
    from megatron_synE.config.parse import parse_job
    from megatron_synE.data import DataStream, ledger

    folder, _ = quickstart
    state, page = read_state(folder / "checkpoints"), read_page(folder / "report.html")
    with contextlib.chdir(folder.parents[1]):
        job = parse_job(["--config", "examples/quickstart/quickstart.yaml"])
        stream = DataStream.build(job.data, state=state["stream"])
    entries = ledger(stream, 0, state["consumed_samples"])
    assert wrong_figures(page, records_of(folder / "logs" / "metrics.jsonl"), state, entries) == []
    told = [(row["kind"], row["step"]) for row in page.report["events"] if row["kind"] != "decision"]
    assert told == [("start", 0), ("stop", STOP_AFTER), ("resume", STOP_AFTER), ("finish", NUM_STEPS)]
    assert page.report["read"]["documents_problem"] == "" and page.report["heldout"]["first_step"] == 0


def test_says_where_everything_lies(quickstart: tuple[Path, str]) -> None:
    folder, output = quickstart
    end = output.split("== Done")[1]
    for name in ("report.html", "hf", "checkpoints", "logs/metrics.jsonl", "logs/tensorboard", "corpus"):
        assert f"runs/quickstart/{name}" in end and (folder / name).exists()

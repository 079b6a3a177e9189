"""The synthesis's own quick try: a real server, documents, tokens, a stage that trains on them, and the way back."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import ROOT, SAMPLE, run, run_tool, succeeded

pytestmark = pytest.mark.slow
NUM_STEPS = 10


@pytest.fixture(scope="module")
def quick_try(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The tree in which run.sh ran (beside links), and what it printed."""
    for package in ("accelerate", "fastapi", "openai", "uvicorn"):
        pytest.importorskip(package, reason="transformers' server needs it: the extra `serve`")
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "examples" / "synthesis", tree / "examples" / "synthesis")
    for name in ("tools", "pretrain_llama3_synE.py", "examples/data"):
        (tree / name).symlink_to(ROOT / name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    settings = [f"PORT={port}", "TEACHER_STEPS=90"]
    result = run("env", *settings, "bash", tree / "examples/synthesis/run.sh", cwd=tree, timeout_s=540)
    return tree, succeeded(result).stdout


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_snippet_has_its_end(quick_try: tuple[Path, str]) -> None:
    tree, output = quick_try
    (sums, *_) = [line for line in output.splitlines() if line.startswith("32 snippets = ")]
    assert sums.endswith(" + 0 to do")
    accepted = int(sums.split(" accepted")[0].rpartition(" ")[2])
    documents = json_lines(tree / "runs/synthesis/synthesis_en.jsonl")
    assert 8 <= len(documents) <= accepted
    for document in documents:
        assert document["text"].startswith("Problem: ") and "\n\nSolution: " in document["text"]
        assert document["text"].count("\\boxed{") >= 1


def test_what_was_trained_on_names_the_page_it_was_made_from(quick_try: tuple[Path, str]) -> None:
    tree, _ = quick_try
    (read,) = [
        record
        for record in json_lines(tree / "runs/synthesis/documents.jsonl")
        if record["component"] == "synthesis_en" and record["epoch"] == 0
    ]
    by_id = {document["id"]: document for document in json_lines(tree / "runs/synthesis/synthesis_en.jsonl")}
    pages = json_lines(SAMPLE / "web_en.jsonl")
    assert len(read["ids"]) == len(read["documents"]) >= 8
    for document_id, kept in zip(read["ids"], read["keys"]["metadata"], strict=True):
        metadata = json.loads(kept)
        assert metadata == by_id[document_id]["metadata"]
        source = metadata["source"]
        page = pages[source["document"] - 1]
        assert page["id"] == source["document_id"]
        assert 0 <= source["begin"] < source["end"] <= len(page["text"])
        place = f"{source['corpus']}:{source['document']}:{source['begin']}-{source['end']}"
        assert metadata["snippet"] == f"web_en:{place}"
        assert metadata["model"] == "runs/synthesis/teacher"


def test_the_stage_took_its_share_of_them(quick_try: tuple[Path, str]) -> None:
    tree, output = quick_try
    steps = [record for record in json_lines(tree / "runs/synthesis/logs/metrics.jsonl") if record["kind"] == "step"]
    assert len(steps) == NUM_STEPS and steps[-1]["loss"] < steps[0]["loss"]
    assert "synthesis_en  20.0000%" in output


def test_a_finished_job_needs_no_server(quick_try: tuple[Path, str]) -> None:
    tree, _ = quick_try  # the server is gone
    arguments = ["--config", "examples/synthesis/synthesis.yaml", "--endpoint.base_url", "http://127.0.0.1:9/v1"]
    again = succeeded(run_tool("synthesize", "run", *arguments, "--endpoint.start_seconds", "0", cwd=tree))
    assert "32 snippets = " in again.stdout and "4 of 4 shards finished" in again.stdout


def test_a_share_of_the_answers_is_made_wrong(quick_try: tuple[Path, str]) -> None:
    tree, _ = quick_try
    arguments = ["--output", "runs/wrong.jsonl", "--corrupt-share", "0.5", "--report", "runs/wrong.json"]
    succeeded(run_tool("synthesize", "export", "--config", "examples/synthesis/synthesis.yaml", *arguments, cwd=tree))
    documents = json_lines(tree / "runs/wrong.jsonl")
    wrong = [document["metadata"]["corrupted"] for document in documents if "corrupted" in document["metadata"]]
    report = json.loads((tree / "runs/wrong.json").read_text())
    assert report["written"] == len(documents)
    assert len(wrong) == round(len(documents) / 2) == sum(report["corrupted"].values())


def test_export_tells_what_is_wrong(quick_try: tuple[Path, str]) -> None:
    tree, _ = quick_try
    config = ["--config", str(tree / "examples/synthesis/synthesis.yaml")]
    for arguments, message in (
        (["--output", "out.txt"], "the name must end in .jsonl"),
        (["--output", "runs/synthesis/synthesis_en.jsonl"], "is there already"),
        (["--output", "new.jsonl", "--labels"], "no label yet"),
        (["--output", "new.jsonl", "--benchmark", "missing.jsonl"], "missing.jsonl: no such file"),
    ):
        done = run_tool("synthesize", "export", *config, *arguments, cwd=tree)
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert not (tree / "new.jsonl").exists()

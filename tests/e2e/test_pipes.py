"""A reader that has seen enough (`| head`) ends a tool in silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT, SAMPLE, environment, run_tool, succeeded


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipes")
    succeeded(
        run_tool(
            "preprocess_data", "--input", *[SAMPLE / "web_zh.jsonl"], "--output-prefix", folder / "o",
            "--tokenizer-model", SAMPLE / "tokenizer",
        )
    )  # fmt: skip
    return folder / "o_text_document"


def test_head(prefix: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "export_corpus.py"), str(prefix)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(10).startswith(b'{"text":')
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 141

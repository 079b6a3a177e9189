"""Input that is not there, empty or something else, and output that cannot be: one message from every tool."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.commands import ROOT, SAMPLE
from tests.helpers.corpora import random_documents, write_corpus

# Tool and arguments. {missing} is not there, {empty} an empty file, {noise} one of random bytes, {folder} empty, {text}
# a JSON line, {corpus} a corpus; nothing can be written in {file}/…, which a user without rights sees as well.
CASES = [
    "preprocess_data --input {missing} --output-prefix {folder}/o --tokenizer-model {tokenizer}",
    "preprocess_data --input {empty} --output-prefix {folder}/o --tokenizer-model {tokenizer}",
    "preprocess_data --input {folder} --output-prefix {folder}/o --tokenizer-model {tokenizer}",
    "preprocess_data --input {text} --output-prefix {folder}/o --tokenizer-model {missing}",
    "preprocess_data --input {text} --output-prefix {folder}/o --tokenizer-model {empty}",
    "preprocess_data --input {text} --output-prefix {file}/o --tokenizer-model {tokenizer}",
    "inspect_corpus {missing}",
    "inspect_corpus {noise}",
    "verify_corpus {missing}",
    "verify_corpus {noise}",
    "merge_corpora --input {missing} {corpus} --output-prefix {folder}/m",
    "merge_corpora --input {corpus} {corpus} --output-prefix {file}/m",
    "export_corpus {missing}",
    "export_corpus {corpus} --tokenizer-model {tokenizer} --output {file}/f.jsonl",
    "annotate_corpus topic --classifier {missing} --prefix {corpus}",
    "annotate_corpus topic --classifier {folder} --prefix {corpus}",
    "annotate_corpus perplexity --hf-dir {missing} --prefix {corpus}",
    "annotate_corpus perplexity --checkpoint {folder} --prefix {corpus}",
    "train_topic_classifier --input {missing} --output-dir {folder}/c",
    "train_topic_classifier --input {empty} --output-dir {folder}/c",
    "train_topic_classifier --input {text} --output-dir {folder}/c",
    "train_topic_classifier --input {text} --evaluate {missing}",
    "train_tokenizer --input {missing} --vocab-size 300 --output-dir {folder}/t",
    "train_tokenizer --input {empty} --vocab-size 300 --output-dir {folder}/t",
    "train_tokenizer --input {text} --vocab-size 300 --output-dir {file}/t",
    "extend_tokenizer --tokenizer {missing} --add {text} --output {folder}/e",
    "extend_tokenizer --tokenizer {tokenizer} --add {missing} --output {folder}/e",
    "extend_tokenizer --tokenizer {tokenizer} --add {words} --output {file}/e",
    "inspect_stream --config {missing}",
    "inspect_stream --config {noise}",
    "inspect_stream --config {folder}",
    "convert_checkpoint export --checkpoint {missing} --hf-dir {folder}/h",
    "convert_checkpoint export --checkpoint {folder} --hf-dir {folder}/h",
    "convert_checkpoint import --hf-dir {missing} --checkpoint {folder}/c",
    "convert_checkpoint import --hf-dir {folder} --checkpoint {folder}/c",
    "convert_checkpoint resize --checkpoint {folder} --output {folder}/r --resize-vocab {missing}",
    "verify_checkpoint --checkpoint {missing}",
    "verify_checkpoint --checkpoint {folder} --all",
    "generate --hf-dir {missing} --prompt a",
    "generate --hf-dir {folder} --prompt a",
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("mistakes")
    rng = np.random.default_rng(0)
    files = {"empty.jsonl": b"", "noise": rng.bytes(999), "file": b"", "words": "人工智能\n".encode()}
    for name, content in files.items():
        (root / name).write_bytes(content)
    for ending in ("bin", "idx"):
        (root / f"noise.{ending}").write_bytes(rng.bytes(999))
    (root / "text.jsonl").write_text('{"text": "one line of text"}\n')
    (root / "folder").mkdir()
    found = {name: str(root / name) for name in ("missing", "noise", "file", "folder", "words")}
    corpus = write_corpus(root / "corpus", random_documents(rng, 5))
    return {**found, "empty": str(root / "empty.jsonl"), "text": str(root / "text.jsonl"), "corpus": corpus,
            "tokenizer": str(SAMPLE / "tokenizer")}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_message_and_nothing_written(
    case: str, places: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, *arguments = (part.format(**places) for part in case.split())
    root = Path(places["folder"]).parent
    monkeypatch.syspath_prepend(str(ROOT))
    before = sorted(root.rglob("*"))
    assert importlib.import_module(f"tools.{tool}").main(arguments) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"{tool}: ")]
    assert told and "[Errno" not in told[0], told
    assert sorted(root.rglob("*")) == before

"""tools/preprocess_data.py as a user runs it: exit status, messages, and what lies on disk afterwards."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_synE.corpus.document_table import DocumentTable
from megatron_synE.corpus.indexed import IndexedCorpus, corpus_exists

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples" / "data"


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "preprocess_data.py"), *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment, timeout=120)


def test_sample_with_the_flags_of_megatron(tmp_path: Path) -> None:
    done = run(
        "--input", SAMPLE / "web_*.jsonl", "--output-prefix", tmp_path / "out" / "web", "--json-keys", "text",
        "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", SAMPLE / "tokenizer",
        "--append-eod", "--workers", 2, "--log-interval", 100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "480 documents" in done.stdout and all(words in done.stderr for words in ("tokens/s", "100%", "left"))
    corpus = IndexedCorpus(tmp_path / "out" / "web_text_document")
    assert corpus.num_documents == 480
    assert all(corpus.document(i)[-1] == 4095 for i in range(480))


def bad_input(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    bad = [b'{"text": ', b'{"body": "b"}', b'{"text": "\xff"}', b'{"text": ""}']
    path.write_bytes(b"\n".join([b'{"text": "good"}', *bad, b'{"text": "good too"}']))
    return path


def test_bad_lines_are_skipped_counted_and_shown(tmp_path: Path) -> None:
    path = bad_input(tmp_path)
    done = run("--input", path, "--output-prefix", tmp_path / "o", "--tokenizer-model", SAMPLE / "tokenizer")
    assert done.returncode == 0
    assert IndexedCorpus(tmp_path / "o_text_document").num_documents == 2
    assert "skipped 4 of 6 lines" in done.stderr
    for line, reason in ((2, "malformed JSON"), (3, "missing key 'text'"), (4, "not UTF-8"), (5, "empty document")):
        assert f"1 x {reason}" in done.stderr and f"{path}:{line}: {reason}" in done.stderr
    sidecar = json.loads((tmp_path / "o_text_document.json").read_text())
    assert sum(sidecar["source"]["skipped"].values()) == 4


ERRORS = {
    "strict": (["--strict"], "a.jsonl:2: malformed JSON"),
    "missing input": (["--input", "absent.jsonl"], "absent.jsonl: no such file"),
    "no match": (["--input", "absent*.jsonl"], "no file matches"),
    "no document": (["--json-keys", "nothing"], "no usable document"),
    "missing tokenizer": (["--tokenizer-model", "absent.json"], "no such file"),
    "unknown hub name": (["--tokenizer-model", "no-such/tokenizer"], "no-such/tokenizer"),
    "wrong tokenizer type": (["--tokenizer-type", "TikTokenizer"], "holds no tokenizer.model"),
    "unwritable output": (["--output-prefix", "/proc/nowhere/o"], "/proc/nowhere"),
    "zero workers": (["--workers", "0"], "--workers must be at least 1"),
    "a file where a folder is asked for": (["--output-prefix", f"{ROOT}/README.md/o"], "README.md"),
    "a key that every table has": (["--keep-keys", "url", "line"], "--keep-keys line"),
    "a separator of what is no text": (["--separator", "file"], "--separator is for plain text"),
    "special tokens of a model without": (
        ["--parse-special-tokens", "--tokenizer-model", f"{ROOT}/README.md"], "--tokenizer-model"
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_user_errors_give_one_message_and_leave_nothing(tmp_path: Path, case: str) -> None:
    arguments, message = ERRORS[case]
    out = tmp_path / "out"
    usual = ["--input", bad_input(tmp_path), "--output-prefix", out / "o", "--tokenizer-model", SAMPLE / "tokenizer"]
    done = run(*usual, *arguments)
    assert done.returncode != 0
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not out.exists() or list(out.iterdir()) == []


def test_standard_input_and_plain_text(tmp_path: Path) -> None:
    """JSON lines from a pipe; plain text from a pipe and from files, with what stands between the documents."""
    usual = ["--tokenizer-model", SAMPLE / "tokenizer", "--append-eod"]
    jsonl, text = '{"text": "one"}\n{"text": "two"}\n', "one\n\n\ntwo"
    (tmp_path / "a.txt").write_text(text)
    corpora = []
    for number, (given, arguments) in enumerate(
        [
            (jsonl, ["--input", "-"]),
            (text, ["--input", "-", "--separator", "blank-line"]),
            ("", ["--input", tmp_path / "a.txt", "--separator", r"\n\n\n"]),
        ]
    ):
        prefix = tmp_path / f"o{number}"
        words = command(*arguments, "--output-prefix", prefix, *usual)
        done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        corpora.append(IndexedCorpus(f"{prefix}_text_document"))
    first = corpora[0]
    assert first.num_documents == 2
    assert all(corpus.fingerprint == first.fingerprint for corpus in corpora)
    tables = [DocumentTable(corpus.prefix, corpus) for corpus in corpora]
    places = [[(row.file, row.line) for row in table.rows([0, 1])] for table in tables]
    file = str(tmp_path / "a.txt")
    assert places == [[("-", 1), ("-", 2)], [("-", 1), ("-", 4)], [(file, 1), (file, 4)]]
    whole = run("--input", tmp_path / "a.txt", "--output-prefix", tmp_path / "whole", *usual)
    assert "1 documents" in whole.stdout


def test_a_missing_end_of_text_is_said_once(tmp_path: Path) -> None:
    for flags, times in (([], 1), (["--append-eod"], 0)):
        done = run(
            "--input", SAMPLE / "web_*.jsonl", "--output-prefix", tmp_path / f"o{times}",
            "--tokenizer-model", SAMPLE / "tokenizer", *flags,
        )  # fmt: skip
        assert done.returncode == 0 and done.stderr.count("--append-eod") == times


def test_files_have_the_permissions_that_the_user_s_mask_gives(tmp_path: Path) -> None:
    for mask, mode in ((0o022, 0o644), (0o007, 0o660)):
        done = subprocess.run(
            command("--input", SAMPLE / "web_en.jsonl", "--output-prefix", tmp_path / f"{mask}" / "o",
                    "--tokenizer-model", SAMPLE / "tokenizer", "--topic-key", "topic"),
            capture_output=True, text=True, timeout=120, umask=mask,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / f"{mask}").iterdir()}
        assert len(modes) == 6 and set(modes.values()) == {mode}


def test_a_reader_that_closes_early_is_no_traceback(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = command("--input", SAMPLE / "web_en.jsonl", "--output-prefix", tmp_path / "o", "--append-eod",
                    "--tokenizer-model", SAMPLE / "tokenizer")  # fmt: skip
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert corpus_exists(tmp_path / "o_text_document")
    assert {path.suffix for path in tmp_path.iterdir()} == {".bin", ".idx", ".json", ".arrow"}


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_in_the_middle_leaves_the_old_corpus_and_no_process(tmp_path: Path, num_workers: int) -> None:
    """kill -9 in a long run: the old corpus of the prefix stays readable, and no worker process stays behind."""
    prefix, arguments = tmp_path / "o_text_document", ["--tokenizer-model", SAMPLE / "tokenizer"]
    usual = ["--input", bad_input(tmp_path), "--output-prefix", tmp_path / "o", *arguments]
    assert run(*usual).returncode == 0
    arguments.append("--overwrite")
    before = IndexedCorpus(prefix).fingerprint
    endless = tmp_path / "endless.jsonl"
    with open(endless, "w") as file:
        file.writelines(f'{{"text": "line {i} of very many that take a while"}}\n' for i in range(2_000_000))
    process = subprocess.Popen(
        command("--input", endless, "--output-prefix", tmp_path / "o", *arguments, "--workers", num_workers)
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if any(path.stat().st_size for path in tmp_path.glob("o.unfinished/*.bin")):
            break
        time.sleep(0.005)
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert psutil.wait_procs(children, timeout=30)[1] == [] and (num_workers == 1 or children)
    assert corpus_exists(prefix) and IndexedCorpus(prefix).fingerprint == before
    other = run(*usual, "--overwrite")
    assert other.returncode == 1 and "unfinished work of another command (inputs, number 1, was" in other.stderr
    assert "delete the folder" in other.stderr
    shutil.rmtree(tmp_path / "o.unfinished")
    assert run(*usual, "--overwrite").returncode == 0
    output = {f"o_text_document.{kind}" for kind in ("bin", "idx", "json", "documents.arrow")}
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "endless.jsonl", *output}

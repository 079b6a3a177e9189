"""Tokenising that is killed at any moment and started again: the same bytes, and nothing else beside them."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_synE.corpus.document_table import DocumentTable
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.corpus.staging import Staging
from tests.helpers.commands import ROOT, SAMPLE, environment

NUM_ROUNDS = 20


class KilledTokenising:
    """``tests.helpers.tokenising_kills``, started once."""

    def __init__(self) -> None:
        variables = {**environment(), "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.helpers.tokenising_kills"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables, cwd=ROOT
        )

    def run(
        self, argv: list[str], kill_at: int | None = None, largest_file_bytes: int | None = None
    ) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        request = {"argv": argv, "kill_at": kill_at, "largest_file_bytes": largest_file_bytes}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def tokenising() -> Iterator[KilledTokenising]:
    started = KilledTokenising()
    yield started
    started.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every format, with a bad line in each but Parquet, where a row has no text."""
    zstandard = pytest.importorskip("zstandard")
    folder = tmp_path_factory.mktemp("inputs")
    with open(SAMPLE / "web_zh.jsonl", encoding="utf-8") as file:
        records = [json.loads(line) for line in file][:160]
    rows = [{**record, "title": record["text"][:12], "n": i} for i, record in enumerate(records)]
    rows[150]["text"] = None
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    parts = [b"\n".join([*lines[i : i + 20], b"{bad", *lines[i + 20 : i + 40]]) for i in (0, 40, 80)]
    (folder / "a.jsonl").write_bytes(parts[0])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(parts[1]))
    (folder / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(parts[2]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[120:]), folder / "d.parquet", row_group_size=16)
    return folder


def arguments(inputs: Path, output: Path) -> list[str]:
    return [
        "--input", str(inputs), "--output-prefix", str(output / "o"), "--tokenizer-model", str(SAMPLE / "tokenizer"),
        "--append-eod", "--json-keys", "text", "title", "--id-key", "id", "--keep-keys", "source", "n",
        "--topic-key", "topic",
    ]  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    """Every file; of a sidecar all but the times of the files it belongs to."""
    found = {path.name: path.read_bytes() if path.is_file() else b"" for path in folder.iterdir()}
    for name, data in found.items():
        if name.endswith(".json"):
            fields = json.loads(data)
            for file in fields.get("files", {}).values():
                del file["mtime_ns"]
            found[name] = json.dumps(fields).encode()
    return found


@pytest.fixture(scope="module")
def uninterrupted(
    tokenising: KilledTokenising, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], int]:
    """What a run leaves that nobody disturbs, and how often it changes a file."""
    folder = tmp_path_factory.mktemp("whole")
    done = tokenising.run(arguments(inputs, folder))
    assert done["status"] == 0, done["output"]
    kinds = ("bin", "idx", "json", "documents.arrow", "topic.npy", "topic.json")
    found = content(folder)
    assert set(found) == {f"o_{key}_document.{kind}" for key in ("text", "title") for kind in kinds}
    corpus = IndexedCorpus(folder / "o_text_document")
    table = DocumentTable(corpus.prefix, corpus)
    assert corpus.num_documents == 159 and table.row(20).line == 22  # the bad line counts, and shifts nothing
    assert table.row(158).line == 40 and table.row(158).keys["n"] == "159"
    return found, done["num_events"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(NUM_ROUNDS))
def test_killed_and_started_again(
    tokenising: KilledTokenising, inputs: Path, uninterrupted: tuple[dict[str, bytes], int], seed: int, tmp_path: Path
) -> None:
    wanted, num_events = uninterrupted
    rng, kill_at, done = random.Random(seed), None, {"status": -9}
    for _ in range(rng.randint(1, 3)):
        kill_at = rng.randint(1, num_events)
        done = tokenising.run(arguments(inputs, tmp_path), kill_at)
        assert done["status"] in (0, -9), done["output"]
        if done["status"] == 0:  # there was less left to do
            break
    if done["status"] != 0:
        done = tokenising.run(arguments(inputs, tmp_path))
    if done["status"] == 0:
        assert "159 documents" in done["output"] and "skipped 4 of 163 lines" in done["output"]
    else:  # all was done but to remove an empty folder
        assert "there is a corpus already" in done["output"]
    assert content(tmp_path) == wanted


def files_of(folder: Path) -> list[str]:
    """The growing files and marks of unfinished work."""
    return sorted(path.name for path in (folder / "o.unfinished").iterdir())


def damage(path: Path, rng: random.Random, kind: str) -> None:
    """Flip a bit, cut the end off, or add to it."""
    data = bytearray(path.read_bytes())
    if kind == "flip" and data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(len(data) + 1) :]
    else:
        data += rng.randbytes(rng.randrange(1, 100))
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flip", "cut", "extend"])
def test_damaged_unfinished_work_costs_time_only(
    tokenising: KilledTokenising, inputs: Path, uninterrupted: tuple[dict[str, bytes], int], kind: str, tmp_path: Path
) -> None:
    """Whichever of its files is hit; only of what it is the work, nobody guesses."""
    wanted, num_events = uninterrupted
    rng, output = random.Random(kind), tmp_path / "out"
    assert tokenising.run(arguments(inputs, output), num_events // 2)["status"] == -9
    names = [name for name in files_of(output) if name not in ("job.json", "lock")]
    assert "marks.jsonl" in names and len(names) == 8
    output.rename(tmp_path / "unfinished")
    for name in names:
        shutil.copytree(tmp_path / "unfinished", output)
        damage(output / "o.unfinished" / name, rng, kind)
        done = tokenising.run(arguments(inputs, output))
        assert done["status"] == 0, (name, done["output"])
        assert content(output) == wanted, name
        shutil.rmtree(output)


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_work_goes_on_once_there_is_room(
    tokenising: KilledTokenising, inputs: Path, uninterrupted: tuple[dict[str, bytes], int], tmp_path: Path
) -> None:
    wanted, _ = uninterrupted
    for largest_file_bytes in (3000, 20_000, 30_000):
        done = tokenising.run(arguments(inputs, tmp_path), largest_file_bytes=largest_file_bytes)
        assert done["status"] == 1 and "o.unfinished" in done["output"] and "Traceback" not in done["output"]
        assert not [path for path in tmp_path.iterdir() if path.name != "o.unfinished"]
    assert "marks.jsonl" in files_of(tmp_path)
    done = tokenising.run(arguments(inputs, tmp_path))
    assert done["status"] == 0 and content(tmp_path) == wanted


@pytest.mark.slow
def test_only_the_same_command_goes_on(
    tokenising: KilledTokenising, inputs: Path, uninterrupted: tuple[dict[str, bytes], int], tmp_path: Path
) -> None:
    wanted, num_events = uninterrupted
    source, output = tmp_path / "in", tmp_path / "out"
    output.mkdir()
    shutil.copytree(inputs, source, copy_function=shutil.copy2)
    usual = arguments(source, output)
    assert tokenising.run(usual, num_events // 2)["status"] == -9
    before = content(output / "o.unfinished")
    without_eod = [word for word in usual if word != "--append-eod"]
    fewer_keys = usual[: usual.index("--id-key")] + usual[usual.index("--keep-keys") :]
    tokenizer = shutil.copytree(SAMPLE / "tokenizer", tmp_path / "tokenizer")
    (tokenizer / "tokenizer_config.json").write_text("{}")  # another end-of-text token: by its customary name, or none
    other_tokenizer = [str(tokenizer) if word == str(SAMPLE / "tokenizer") else word for word in usual]
    for command, difference in (
        (without_eod, "append_eod was true and is now false"),
        (fewer_keys, "id_key"),
        (other_tokenizer, "name was"),
    ):
        done = tokenising.run(command)
        assert done["status"] == 1 and difference in done["output"], done["output"]
        assert f"delete the folder {output / 'o.unfinished'}" in done["output"]
    (source / "e.jsonl").write_text('{"text": "new"}')
    assert "inputs, number 5, was null and is now" in tokenising.run(usual)["output"]
    (source / "e.jsonl").unlink()
    os.utime(source / "b.jsonl.gz", (1, 1))
    assert "b.jsonl.gz was" in tokenising.run(usual)["output"]
    assert content(output / "o.unfinished") == before
    shutil.copystat(inputs / "b.jsonl.gz", source / "b.jsonl.gz")
    done = tokenising.run(usual)
    assert done["status"] == 0, done["output"]
    same = {name: data for name, data in content(output).items() if name.endswith(("bin", "idx", "npy"))}
    assert same == {name: data for name, data in wanted.items() if name in same} and len(same) == 6


@pytest.mark.slow
def test_a_second_process_is_refused(tokenising: KilledTokenising, inputs: Path, tmp_path: Path) -> None:
    """While another holds the folder, and whatever it holds."""
    with Staging(tmp_path / "o.unfinished", {"job": 1}):
        done = tokenising.run(arguments(inputs, tmp_path))
    assert done["status"] == 1 and "another process is writing this output" in done["output"]
    assert list(tmp_path.iterdir()) == []

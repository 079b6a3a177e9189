"""All texts of some files, and how much of them is read."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megatron_synE.corpus import texts as texts_module
from megatron_synE.corpus.texts import read_batches, read_texts
from tests.helpers.progress import is_complete, recorded_bars

RECORDS = [{"text": f"text number {number}", "topic": "law"} for number in range(200)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The same records, plain, compressed and columnar."""
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / "a.jsonl").write_text(lines + "not json\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "c.parquet")
    return sorted(tmp_path.iterdir())


def test_texts_of_all_formats_in_order(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bars = recorded_bars(monkeypatch, texts_module)
    assert list(read_texts(files, "text")) == [record["text"] for record in RECORDS] * 3
    assert is_complete(bars[0]) and bars[0].total == sum(path.stat().st_size for path in files)


def test_labels_come_along_and_bad_lines_are_told(files: list[Path]) -> None:
    batches = list(read_batches(files[:1], ["text"], "topic"))
    assert [label for batch in batches for label in batch.labels or []] == ["law"] * len(RECORDS)
    assert [line.location for batch in batches for line in batch.bad_lines] == [f"{files[0]}:{len(RECORDS) + 1}"]


def test_standard_input_has_no_known_size(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = recorded_bars(monkeypatch, texts_module)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "one"}\n{"text": "two"}\n')))
    assert list(read_texts(["-"], "text")) == ["one", "two"]
    assert bars[0].total is None


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"--input absent\.jsonl"):
        list(read_texts(["absent.jsonl"], "text"))

"""Reading raw text: order of files, formats, chunk borders, and every kind of bad line."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synE.corpus.chunks import BadLine
from megatron_synE.corpus.readers import expand_inputs, iter_chunks, natural_key


def read(path: Path, keys: tuple[str, ...] = ("text",), label_key: str | None = None, chunk_bytes: int = 8 << 20):
    """All texts of the first key, all labels, all bad lines."""
    texts, labels, bad = [], [], []
    for chunk in iter_chunks(path, [*keys, *([label_key] if label_key else [])], chunk_bytes):
        batch = chunk.parse(keys, label_key)
        assert batch.num_lines == len(batch.texts[keys[0]]) + len(batch.bad_lines)
        texts += batch.texts[keys[0]]
        labels += batch.labels or []
        bad += batch.bad_lines
    return texts, labels, bad


def write_lines(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"\n".join(lines))
    return path


def test_part_files_are_read_in_numeric_order(tmp_path: Path) -> None:
    for number in (0, 1, 10, 2, 11, 100):
        (tmp_path / f"part-{number}.jsonl").write_text(json.dumps({"text": str(number)}))
    files = expand_inputs([tmp_path / "part-*.jsonl"])
    assert [read(file)[0] for file in files] == [["0"], ["1"], ["2"], ["10"], ["11"], ["100"]]
    assert expand_inputs([tmp_path]) == files


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_natural_key_sorts_numbers_as_numbers(numbers: list[int]) -> None:
    assert sorted((f"a{n}.jsonl" for n in numbers), key=natural_key) == [f"a{n}.jsonl" for n in sorted(numbers)]


def test_several_patterns_keep_their_order_and_read_a_file_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text("{}")
    files = expand_inputs([tmp_path / "b.jsonl", tmp_path / "*.jsonl"])
    assert [file.name for file in files] == ["b.jsonl", "a.jsonl"]


@pytest.mark.parametrize("name", ["missing.jsonl", "missing*.jsonl", "notes.md"])
def test_inputs_that_give_nothing_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match="--input"):
        expand_inputs([tmp_path / name])


def test_formats_give_the_same_documents(tmp_path: Path) -> None:
    zstandard, pyarrow = pytest.importorskip("zstandard"), pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"document {i} 文档" * (i + 1) for i in range(50)]
    data = "\n".join(json.dumps({"text": text, "n": i}) for i, text in enumerate(texts)).encode()
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data[:999]) + gzip.compress(data[999:]))  # two members
    frames = [zstandard.ZstdCompressor().compress(part) for part in (data[:999], data[999:])]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))  # two frames
    parquet.write_table(pyarrow.table({"n": range(50), "text": texts}), tmp_path / "a.parquet", row_group_size=7)
    for file in expand_inputs([tmp_path]):
        assert read(file, chunk_bytes=1000) == (texts, [], []), file


@given(st.lists(st.text(alphabet="ab\n中\"\\\U0001f600").filter(str.strip), max_size=30), st.integers(1, 64))
def test_chunk_borders_change_nothing(tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int) -> None:
    path = tmp_path_factory.mktemp("chunks") / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), encoding="utf-8")
    assert read(path, chunk_bytes=size) == (texts, [], [])


def test_bad_lines_are_counted_with_file_and_line(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": "unfinished',
        b"",
        b'{"other": "key"}',
        b'{"text": "\xff\xfe"}',
        b'{"text": ""}',
        b'{"text": " \\n\\t "}',
        b'{"text": 5}',
        b'["text"]',
        b'{"text": "\\ud800"}',
        b'{"text": "also good", "score": NaN, "other": "\\ud800"}',
        b"[" * 100_000,
    ]
    path = write_lines(tmp_path / "a.jsonl", lines)
    texts, _, bad = read(path, chunk_bytes=40)
    assert texts == ["good", "also good"]
    reasons = [
        (2, "malformed JSON"),
        (4, "missing key 'text'"),
        (5, "not UTF-8"),
        (6, "empty document in key 'text'"),
        (7, "empty document in key 'text'"),
        (8, "key 'text' is not a string"),
        (9, "not a JSON object"),
        (10, "text holds a lone surrogate, which UTF-8 cannot encode"),
        (12, "malformed JSON"),
    ]
    assert bad == [BadLine(f"{path}:{number}", reason) for number, reason in reasons]


def test_a_line_that_is_bad_in_one_key_is_left_out_for_all(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [b'{"text": "a", "title": ""}', b'{"text": "b", "title": "B"}'])
    assert read(path, ("text", "title"))[0] == ["b"]


def test_labels_come_along_and_may_not_be_missing(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [b'{"text": "a", "topic": "law"}', b'{"text": "b"}'])
    assert read(path, label_key="topic") == (["a"], ["law"], [BadLine(f"{path}:2", "missing label key 'topic'")])


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    assert read(write_lines(tmp_path / "a.jsonl", [b'\xef\xbb\xbf{"text": "a"}']))[0] == ["a"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    if name.endswith("zst"):
        pytest.importorskip("zstandard")
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(b"this is not what the name says")
    with pytest.raises(ValueError, match=name):
        read(path)


def test_a_truncated_gzip_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    with pytest.raises(ValueError, match="truncated or damaged"):
        read(path)


def test_parquet_rows_are_checked_like_lines(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", None, "", "b"]}), path)
    texts, _, bad = read(path)
    assert texts == ["a", "b"]
    assert [line.location.rsplit(":", 1)[1] for line in bad] == ["2", "3"]
    with pytest.raises(ValueError, match="no column 'body'"):
        read(path, ("body",))

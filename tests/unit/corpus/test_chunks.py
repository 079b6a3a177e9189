"""Documents of a chunk: the parser of whole chunks against the parser of lines, and what becomes of other keys."""

import json
import random
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synE.corpus import chunks
from megatron_synE.corpus.chunks import DocumentBatch, FilePosition, JsonLinesChunk
from megatron_synE.corpus.readers import BLANK_LINE, iter_chunks
from megatron_synE.corpus.text_columns import missing_and_blank

ODD_LINES = [
    b'{"text": "plain"}',
    b'{"text": "\\u4e2d\\ud83d\\ude00 \\/ \\u0000"}',
    b'{"text": "one", "text": "two"}',
    b'{"text": null, "text": "two"}',
    b'{"text": "a", "x": 1, "x": 2}',
    b'{"text": "\\ud800"}',
    b'{"text": "\\udc00\\ud800"}',
    b'{"text": "a", "x": "\\udc00"}',
    b'{"text": "a", "x": "\xff"}',
    b'{"text": "\xed\xa0\x80"}',
    b'{"text": "\xc0\x80"}',
    b'{"text": "a", "x": NaN, "y": -Infinity}',
    b'{"text": "a", "x": Inf}',
    b'{"text": "a", "x": 1e999}',
    b'{"text": "a", "x": 123456789012345678901234567890}',
    b'{"text": "a", "x": 01}',
    b'{"text": "a",}',
    b'{"text": "a"} {"text": "b"}',
    b'{"text": "a"}{"text": "b"}',
    b'{"text": "a"}}',
    b'{"text": "a\tb"}',
    b'{"text": "a\x00b"}',
    b'{"text": "a"}\x00',
    b'{"text": "a"}\r',
    b'\t{"text": "a"} ',
    b'\xef\xbb\xbf{"text": "a"}',
    b'{"te\\u0078t": "a"}',
    b'{"text": "a", "x": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    b'{"x": {"text": "inner"}}',
    b'{"text": {"text": "inner"}}',
    b'{"text": ["a"]}',
    b'{"text": 5}',
    b'{"text": true}',
    b'{"text": ""}',
    b'{"text": " \\n\\t\\u3000\\u00a0"}',
    b'{"text": "\\u001c\\u2028"}',
    b'{"text": " \xe3\x80\x80 \xe4\xb8\xad"}',
    b'{"text": "2024-01-01T00:00:00"}',
    b"{}",
    b"[]",
    b"null",
    b"{",
    b'{"text": ',
    b'"a"} {"text": "b"}',
    b"",
    b"   ",
    b'{"text": "a", "id": 7, "url": "u"}',
    b'{"text": "a", "id": -0, "url": null}',
    b'{"text": "a", "id": 7.0, "url": ["u"]}',
    b'{"text": "a", "id": true, "url": {"b": 1, "a": "\\ud800"}}',
    b'{"text": "a", "id": "7", "url": "\\ud800"}',
    b'{"text": "a", "id": 9223372036854775808}',
    b'{"text": "a", "id": 1e2}',
]


def parsed(lines: list[bytes], kept: tuple[str, ...] = ()) -> DocumentBatch:
    data = b"\n".join(lines)
    return JsonLinesChunk("f", 1, data, FilePosition()).parse(["text"], None, kept)


def rows(batch: DocumentBatch) -> list[tuple[Any, ...]]:
    kept = [column.to_pylist() for column in batch.kept.values()]
    return list(zip(batch.texts["text"], batch.lines.tolist(), *kept, strict=True))


def line_by_line(lines: list[bytes], kept: tuple[str, ...]) -> tuple[list[tuple[Any, ...]], list[str]]:
    """The same of each line alone."""
    found, bad = [], []
    for number, line in enumerate(lines, start=1):
        batch = JsonLinesChunk("f", number, line, FilePosition()).parse(["text"], None, kept)
        found += rows(batch)
        bad += [f"{fault.location}: {fault.reason}" for fault in batch.bad_lines]
    return found, bad


@pytest.mark.parametrize("kept", [(), ("id", "url")])
def test_what_stands_beside_a_line_changes_nothing(kept: tuple[str, ...]) -> None:
    """In random company, in which the whole chunk is parsed at once or not."""
    rng = random.Random(0)
    for _ in range(400):
        lines = rng.choices(ODD_LINES if rng.random() < 0.5 else ODD_LINES[:3] + ODD_LINES[11:13], k=rng.randint(1, 4))
        batch = parsed(lines, kept)
        bad = [f"{fault.location}: {fault.reason}" for fault in batch.bad_lines]
        assert (rows(batch), bad) == line_by_line(lines, kept), lines
        assert batch.num_lines == len(rows(batch)) + len(bad)


def test_both_parsers_accept_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is accepted at once has the value that orjson or Python's parser gives it."""
    for line in ODD_LINES:
        columns = chunks._parse_lines(line, ["text"], ["id"])
        if columns is None or columns["text"][0].as_py() is None:
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue  # Inf: nobody else reads it, and it is in a key that nobody reads
        assert columns["text"][0].as_py() == record["text"], line
        assert columns["id"][0].as_py() == (None if record.get("id") is None else str(record["id"])), line


def test_good_chunks_are_parsed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with ids that are numbers, missing values and line ends that are not the last."""
    monkeypatch.setattr(chunks, "_parse_line", None)
    lines = [b'{"text": "a", "id": 1, "url": "u"}', b'{"id": 2, "text": "b"}', b'{"text": " ", "id": 3}']
    for end in ([], [b""]):
        batch = parsed([*lines, *end], ("id", "url"))
        assert rows(batch) == [("a", 1, "1", "u"), ("b", 2, "2", None)]
        assert [fault.location for fault in batch.bad_lines] == ["f:3"]


@given(st.lists(st.text(alphabet=" \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u3000a中\x00é", max_size=80)))
def test_blank_is_what_python_calls_so(texts: list[str]) -> None:
    column = pyarrow.array([*texts, None], pyarrow.large_string())
    missing, blank = missing_and_blank(column)
    assert missing.tolist() == [False] * len(texts) + [True]
    assert blank.tolist() == [not text or text.isspace() for text in texts] + [False]
    sliced = missing_and_blank(column[1:])
    assert sliced[1].tolist() == blank.tolist()[1:]


def parquet(path: Path, **columns: Any) -> list[tuple[Any, ...]]:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    kept = [name for name in columns if name != "text"]
    batches = [chunk.parse(["text"], None, kept) for chunk in iter_chunks(path, list(columns))]
    return [row for batch in batches for row in rows(batch)]


def test_parquet_columns_of_any_type(tmp_path: Path) -> None:
    texts = ["a", None, "c", "d", "e"]
    kept = {
        "id": [1, 2, 3, None, 5],
        "score": [0.5, 1.0, 2.5, 3.0, None],
        "meta": [{"k": "中"}, None, {"k": None}, {"k": "x"}, {"k": "y"}],
        "when": pyarrow.array([0, 1, 2, 3, 4], pyarrow.timestamp("s")),
        "url": pyarrow.array(["u", "v", "u", None, "v"]).dictionary_encode(),
    }
    found = parquet(tmp_path / "a.parquet", text=texts, **kept)
    assert found[0] == ("a", 1, "1", "0.5", '{"k": "中"}', "1970-01-01 00:00:00", "u")
    assert found[1] == ("c", 3, "3", "2.5", '{"k": null}', "1970-01-01 00:00:02", "u")
    assert found[2][1:4] == (4, None, "3.0") and found[2][-1] is None and len(found) == 4
    for kind in (pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary(), pyarrow.large_binary()):
        array = pyarrow.array(["中", None, "c"]).cast(kind)
        assert parquet(tmp_path / "b.parquet", text=array) == [("中", 1), ("c", 3)], kind
    undecodable = pyarrow.array([b"\xff", b"good", b""], pyarrow.binary())
    assert parquet(tmp_path / "c.parquet", text=undecodable) == [("good", 2)]
    assert parquet(tmp_path / "d.parquet", text=[1, 2]) == []


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1000])
@pytest.mark.parametrize(
    ("separator", "expected"),
    [
        ("file", [("\none\n two\r\n\r\n \n三\n\n\n\nfour--\n--five", 1)]),
        (BLANK_LINE, [("\none\n two", 1), ("三", 6), ("four--\n--five", 10)]),
        (r"--\n--", [("\none\n two\r\n\r\n \n三\n\n\n\nfour", 1), ("five", 11)]),
        (r"\n\n", [("\none\n two\r\n\r\n \n三", 1), ("four--\n--five", 10)]),
    ],
)
def test_plain_text(tmp_path: Path, separator: str, expected: list[tuple[str, int]], chunk_bytes: int) -> None:
    """A document begins where the separator before it ends; chunk borders change nothing."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\none\n two\r\n\r\n \n三\n\n\n\nfour--\n--five".encode())
    batches = [chunk.parse(["text"]) for chunk in iter_chunks(path, [], chunk_bytes, separator=separator)]
    assert [row for batch in batches for row in rows(batch)] == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt"])
def test_reading_goes_on_from_every_chunk(tmp_path: Path, name: str) -> None:
    """From the end of each chunk the rest is read, and nothing else; at the end, the whole file was."""
    import gzip

    import zstandard

    path, texts = tmp_path / name, [f"文 {i} " * (i % 7 + 1) for i in range(60)]
    data = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=17)
    elif name.endswith("txt"):
        path.write_text("\n\n".join(texts), encoding="utf-8")
    else:
        compress = {"jsonl": bytes, "gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}
        path.write_bytes(compress[name.rsplit(".")[-1]](data))

    def read(start: FilePosition | None) -> list[tuple[list[tuple[Any, ...]], FilePosition]]:
        found = iter_chunks(path, ["text"], 200, start=start, separator=BLANK_LINE)
        return [(rows(chunk.parse(["text"])), chunk.end) for chunk in found]

    whole = read(None)
    assert len(whole) > 5 and whole[-1][1].bytes_on_disk == path.stat().st_size
    everything = [row for batch, _ in whole for row in batch]
    assert [text.rstrip() for text, _ in everything] == [text.rstrip() for text in texts]
    for number, (_, end) in enumerate(whole):
        rest = [row for batch, _ in read(end) for row in batch]
        assert rest == [row for batch, _ in whole[number + 1 :] for row in batch]

"""From a token that a run trained on to the page that it came from, by the corpora's document tables alone."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from megatron_synE.checkpoint import read_state
from megatron_synE.config.parse import parse_job
from megatron_synE.corpus.tokenizers import build_tokenizer
from megatron_synE.data import DataStream, sample_read
from megatron_synE.data.ledger import DocumentTables
from tests.helpers.commands import SAMPLE, pretrain, run_tool, succeeded
from tools import inspect_stream

SEQ_LENGTH, BATCH_SIZE, STEPS = 64, 8, 24
NUM_POSITIONS = 1000
NEIGHBOURS = 12
TOKENS_PER_STEP = SEQ_LENGTH * BATCH_SIZE


@dataclass(frozen=True)
class Run:
    config: str
    checkpoints: str
    pages: dict[str, list[dict[str, Any] | None]]
    """Input file → its lines or rows; None for one that is no document."""


def sample_lines(source: str) -> list[str]:
    return (SAMPLE / f"{source}.jsonl").read_text(encoding="utf-8").splitlines()


def write_inputs(folder: Path) -> dict[str, list[dict[str, Any] | None]]:
    """Three sources in four formats, with lines among them that are left out and must not shift what follows."""
    folder.mkdir()
    pages: dict[str, list[dict[str, Any] | None]] = {}

    def keep(name: str, lines: list[str]) -> bytes:
        pages[str(folder / name)] = [json.loads(line) if line.endswith("}") else None for line in lines]
        return "\n".join(lines).encode() + b"\n"

    english = sample_lines("web_en")
    for place in (90, 40, 40, 0):
        english.insert(place, ["", '{"text": "torn'][place == 40])
    (folder / "web_en_1.jsonl").write_bytes(keep("web_en_1.jsonl", english[:100]))
    (folder / "web_en_2.jsonl.gz").write_bytes(gzip.compress(keep("web_en_2.jsonl.gz", english[100:])))
    code = keep("code_en.jsonl.zst", sample_lines("code_en"))
    (folder / "code_en.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(code))
    rows = [json.loads(line) for line in sample_lines("web_zh")]
    rows[3]["text"] = ""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "web_zh.parquet", row_group_size=50)
    pages[str(folder / "web_zh.parquet")] = [row if row["text"] else None for row in rows]
    return pages


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small run over all of it, with topics, a shuffled and a stored order, and more than one epoch."""
    folder = tmp_path_factory.mktemp("page")
    pages, sources = write_inputs(folder / "raw"), {}
    for source, pattern in (("web_en", "web_en_*"), ("web_zh", "web_zh.parquet"), ("code_en", "code_en.jsonl.zst")):
        topic = ["--topic-key", "topic"] if source == "web_en" else []
        succeeded(
            run_tool(
                "preprocess_data", "--input", folder / "raw" / pattern, "--output-prefix", folder / source,
                "--tokenizer-model", SAMPLE / "tokenizer", "--append-eod", "--id-key", "id",
                "--keep-keys", "source", "lang", *topic,
            )
        )  # fmt: skip
        sources[source] = {"prefix": str(folder / f"{source}_text_document"), "topics": bool(topic)}
    sources["code_en"]["order"] = "stored"
    job = {
        "model": {
            "num_layers": 1, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 2,
            "num_query_groups": 1, "vocab_size": 4096, "max_position_embeddings": SEQ_LENGTH,
        },
        "precision": {"dtype": "fp32"},
        "data": {
            "seq_length": SEQ_LENGTH,
            "heldout_fraction": 0.02,
            "sources": sources,
            "stages": [
                {"name": "one", "tokens": 16 * TOKENS_PER_STEP, "weights": {"web_en": 0.5, "web_zh": 0.5}},
                {"name": "two", "tokens": 8 * TOKENS_PER_STEP, "weights": {"web_en": 0.25, "code_en": 0.75}},
            ],
        },
        "optimizer": {"lr": 1e-3},
        "schedule": {"warmup_steps": 2, "decay_steps": 4},
        "training": {"micro_batch_size": 4, "global_batch_size": BATCH_SIZE},
        "checkpoint": {"save": str(folder / "run")},
        "logging": {"tensorboard": False},
    }  # fmt: skip
    config = folder / "job.yaml"
    config.write_text(json.dumps(job), encoding="utf-8")  # JSON is YAML
    succeeded(pretrain(1, "--config", config))
    return Run(str(config), str(folder / "run"), pages)


@pytest.mark.slow
def test_every_token_leads_to_its_page(run: Run) -> None:
    """The token as the trainer's batches hold it; id and line as the table of its corpus has them."""
    job, state = parse_job(["--config", run.config]), read_state(run.checkpoints)
    stream, rng = DataStream.build(job.data, state=state["stream"]), random.Random(0)
    tables, tokenizer = DocumentTables(stream), build_tokenizer("auto", SAMPLE / "tokenizer")
    seen = set()
    for _ in range(NUM_POSITIONS):
        sample, place = rng.randrange(state["consumed_samples"]), rng.randrange(SEQ_LENGTH)
        tokens = stream.batch([sample]).tokens_BS[0]
        read = sample_read(stream, sample)
        (span,) = (span for span in read.spans if span.first <= place < span.end)
        (row,) = tables.rows(read.prefix, [span.document]) or ()
        page = run.pages[row.file][row.line - 1]
        assert page is not None and (row.id, row.keys["source"]) == (page["id"], page["source"])
        around = slice(max(span.first, place - NEIGHBOURS), min(span.end, place + NEIGHBOURS))
        text = tokenizer.decode(tokens[around]).strip("\ufffd")  # a character may lie across the borders
        assert text in page["text"], (sample, place, row)
        seen.add(row.file)
    assert seen == set(run.pages)


@pytest.mark.slow
def test_the_tool_names_pages(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = ["--config", run.config, "--checkpoint", run.checkpoints]
    assert inspect_stream.main([*usual, "--steps", "3:20", "--documents", str(tmp_path / "deep" / "d.jsonl")]) == 0
    for line in (tmp_path / "deep" / "d.jsonl").read_text(encoding="utf-8").splitlines():
        read = json.loads(line)
        for id_, source, place in zip(read["ids"], read["keys"]["source"], read["places"], strict=True):
            file, _, number = place.rpartition(":")
            page = run.pages[file][int(number) - 1]
            assert page is not None and page["id"] == id_ and page["source"] == source
        assert len(read["ids"]) == len(read["documents"])
    capsys.readouterr()
    assert inspect_stream.main([*usual, "--json", "--sample", "5", "--sample", "150"]) == 0
    for line in capsys.readouterr().out.splitlines():
        shown = json.loads(line)
        for document in shown["documents"]:
            page = run.pages[document["file"]][document["line"] - 1]
            assert page is not None and document["id"] == page["id"]
            assert document["text"].strip("\ufffd") in page["text"]
        ends = [0, *(document["tokens"][1] for document in shown["documents"])]
        assert [document["tokens"][0] for document in shown["documents"]] == ends[:-1] and ends[-1] == SEQ_LENGTH
    assert inspect_stream.main([*usual, "--sample", "5"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("sample 5: web_") and "--- document " in text and ", source web_" in text
    assert inspect_stream.main([*usual, "--sample", "99999"]) == 1
    assert "sample 99999 leaves the stream of 192" in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_table_there_are_numbers(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    stream = DataStream.build(parse_job(["--config", run.config]).data)
    prefix = next(c.source.config.prefix for c in stream.components if c.name == "code_en")
    hidden = Path(f"{prefix}.documents.arrow").rename(f"{prefix}.hidden")
    try:
        assert inspect_stream.main(["--config", run.config, "--samples", "128:192", "--documents", "-"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        assert {"ids" in line for line in lines if line["component"] == "code_en"} == {False}
        assert {"ids" in line for line in lines if line["component"] != "code_en"} == {True}
        assert all(np.array(line["documents"]).min() >= 0 for line in lines)
    finally:
        hidden.rename(f"{prefix}.documents.arrow")

"""Time and memory of the tools that read whole corpora, at one size and at ten times as much.

    python benchmarks/corpus_tools.py [--documents 200000]

Each measurement is a process of its own, on a made corpus with a document table: documents are pieces of 20 to 220
tokens of the shipped sample. MB are 10^6 bytes of resident memory, pages of mapped files included.

    merge_…            tools/merge_corpora.py of the corpus with itself, and megatron-core's builder doing the same
    statistics_…       tools/inspect_corpus.py --statistics
    verify_…, export_… tools/verify_corpus.py, tools/export_corpus.py
    …_mb_growth        memory at ten times the documents, over that at one time
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow

from megatron_synE.corpus.document_table import table_schema, write_document_table
from megatron_synE.corpus.indexed_writer import IndexedCorpusWriter
from megatron_synE.corpus.tokenizers import build_tokenizer

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "examples" / "data"
TOKENIZER = SAMPLE / "tokenizer"
BLOCK_DOCUMENTS = 50_000
MEGATRON = """
import sys, numpy
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
builder = IndexedDatasetBuilder(sys.argv[2] + ".bin", dtype=numpy.uint16)
for prefix in (sys.argv[1], sys.argv[1]):
    builder.add_index(prefix)
builder.finalize(sys.argv[2] + ".idx")
"""


def make_corpus(prefix: Path, num_documents: int) -> None:
    """Random pieces of real text: of random tokens, each word would be new to the tokenizer's cache."""
    tokenizer = build_tokenizer("auto", TOKENIZER)
    files = [(SAMPLE / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("web_en", "web_zh", "code_en")]
    texts = [json.loads(line)["text"] for file in files for line in file.splitlines()]
    pool = tokenizer.encode_batch(texts)[0].astype(np.uint16)
    rng, schema = np.random.default_rng(0), table_schema(["source", "url"])

    def rows() -> Iterator[pyarrow.RecordBatch]:
        for first in range(0, num_documents, BLOCK_DOCUMENTS):
            numbers = range(first, min(first + BLOCK_DOCUMENTS, num_documents))
            columns = [
                [f"page-{n}" for n in numbers], [0] * len(numbers), [n + 1 for n in numbers],
                [f"site-{n % 50}" for n in numbers], [f"https://example.org/{n}" for n in numbers],
            ]  # fmt: skip
            arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            yield pyarrow.RecordBatch.from_arrays(arrays, schema=schema)

    with IndexedCorpusWriter(prefix, np.uint16) as writer:
        for first in range(0, num_documents, BLOCK_DOCUMENTS):
            lengths = rng.integers(20, 220, min(BLOCK_DOCUMENTS, num_documents - first))
            starts = rng.integers(0, len(pool) - 220, len(lengths))
            inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            writer.add_documents(pool[np.repeat(starts, lengths) + inside], lengths)
        writer.finalize(
            {"tokenizer": tokenizer.describe()},
            lambda path, fingerprint: write_document_table(path, rows(), schema, ["pages.jsonl"], fingerprint),
        )


def measure(*command: str) -> tuple[float, float]:
    """Seconds and peak MB of a process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed")
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e6


def measure_all(folder: Path, num_documents: int) -> dict[str, tuple[float, float]]:
    """Name → seconds and peak MB."""
    prefix, out = folder / f"corpus-{num_documents}", str(folder / "out")
    make_corpus(prefix, num_documents)
    tools = ROOT / "tools"
    found = {
        "merge": measure(str(tools / "merge_corpora.py"), "--input", str(prefix), str(prefix), "--output-prefix", out),
        "merge_megatron": measure("-c", MEGATRON, str(prefix), f"{out}-megatron"),
        "statistics": measure(str(tools / "inspect_corpus.py"), str(prefix), "--statistics"),
        "verify": measure(str(tools / "verify_corpus.py"), str(prefix)),
        "export": measure(str(tools / "export_corpus.py"), str(prefix), "--output", f"{out}.jsonl"),
    }
    for kind in ("bin", "idx"):
        assert Path(f"{out}.{kind}").read_bytes() == Path(f"{out}-megatron.{kind}").read_bytes(), "not the same bytes"
    for path in folder.iterdir():
        path.unlink()
    return found


def main() -> None:
    """Print a table, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200_000, help="at one time (default: 200,000)")
    arguments = parser.parse_args()
    sizes = (arguments.documents, 10 * arguments.documents)
    with tempfile.TemporaryDirectory() as folder:
        small, large = (measure_all(Path(folder), size) for size in sizes)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    print(f"{'':16}  {sizes[0]:>12,} documents      {sizes[1]:>12,} documents")
    figures: dict[str, float] = {}
    for name, (seconds, peak_mb) in small.items():
        seconds_10, peak_mb_10 = large[name]
        print(f"{name:16}  {seconds:8.1f} s  {peak_mb:8.0f} MB      {seconds_10:8.1f} s  {peak_mb_10:8.0f} MB")
        figures |= {f"{name}_s": round(seconds_10, 2), f"{name}_mb": round(peak_mb_10)}
        figures[f"{name}_mb_growth"] = round(peak_mb_10 / peak_mb, 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

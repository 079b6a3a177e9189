"""Throughput and memory of the corpus pipeline, measured side by side in one run.

    python benchmarks/tokenize_corpus.py [--input ...] [--tokenizer-model ...] [--megabytes 160] [--rounds 3]

Each measurement is a fresh process (so caches are equally cold and peak memory is its own); the kinds take turns, and
the median of the rounds counts. Loading the tokenizer is not timed. MB are 10^6 bytes of UTF-8 text, the same for each.

    ratio_vs_gigatoken      our whole pipeline, from a JSON-lines file to a .bin/.idx safely on disk, relative to
                            gigatoken's bare encode_batch over the same texts, which it finds in memory
    cpu_ratio_vs_gigatoken  the same in processor time, which other work on the machine disturbs less
    speedup_vs_hf_pipeline  our throughput relative to the usual pipeline on Hugging Face tokenizers: two processes
                            parse and encode, the main one writes (timed on the first --hf-megabytes)
    peak_mb                 most resident memory of our process, in 10^6 bytes, start_mb before the input is opened
    zst_ratio, parquet_ratio  our throughput from these formats relative to plain JSON lines
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from host import peak_memory_mb, processor_name

from megatron_synE.corpus import llama3
from megatron_synE.corpus.preprocess import PreprocessOptions, preprocess
from megatron_synE.corpus.readers import expand_inputs, iter_chunks
from megatron_synE.corpus.tokenizers import GigatokenBackend, build_tokenizer, read_ranks

ROOT = Path(__file__).parents[1]
KINDS = ("gigatoken", "jsonl", "zst", "parquet", "hf")


def default_input() -> list[str]:
    """The trial corpora beside the checkout where they are, else the shipped sample."""
    shared = ROOT.parent / "shared" / "corpus"
    return [str(shared / "*.jsonl.gz") if shared.is_dir() else str(ROOT / "examples" / "data" / "*.jsonl")]


def default_tokenizer() -> str:
    """Llama-3's own where the package llama-models is installed, else the sample's."""
    try:
        import llama_models  # type: ignore[import-untyped]
    except ImportError:
        return str(ROOT / "examples" / "data" / "tokenizer")
    return str(Path(llama_models.__path__[0]) / "llama3" / "tokenizer.model")


def read_texts(path: Path) -> Iterator[list[str]]:
    """The texts of one file, chunk by chunk."""
    for chunk in iter_chunks(path, ["text"]):
        yield chunk.parse(["text"]).texts["text"]


def write_inputs(inputs: list[str], directory: Path, num_bytes: int) -> int:
    """Write the same documents as .jsonl, .jsonl.zst and .parquet; return their bytes of text."""
    import pyarrow
    import pyarrow.parquet
    import zstandard

    documents: list[str] = []
    size = 0
    while size < num_bytes:  # short inputs are read again, so that a run is long enough to time
        for path in expand_inputs(inputs):
            for texts in read_texts(path):
                documents += texts
                size += sum(len(text.encode()) for text in texts)
    data = b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in documents)
    (directory / "jsonl.jsonl").write_bytes(data)
    (directory / "zst.jsonl.zst").write_bytes(zstandard.ZstdCompressor(level=3).compress(data))
    table = pyarrow.table({"text": documents})
    pyarrow.parquet.write_table(table, directory / "parquet.parquet", row_group_size=10_000, compression="zstd")
    os.sync()  # or the first measurement would wait for these files to reach the disk
    return size


def measure_gigatoken(directory: Path, model: str) -> dict[str, float]:
    """gigatoken's encode_batch over all texts, in memory."""
    backend = build_tokenizer("auto", model).backend
    assert isinstance(backend, GigatokenBackend), "gigatoken cannot read this tokenizer"
    texts = [text for block in read_texts(directory / "jsonl.jsonl") for text in block]
    start, cpu_start = time.perf_counter(), time.process_time()
    backend.encode_batch(texts)
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}


def measure_ours(directory: Path, model: str, kind: str) -> dict[str, float]:
    """The whole pipeline in one process, as ``preprocess_data --append-eod`` runs it."""
    path = next(directory.glob(f"{kind}.*"))
    tokenizer = build_tokenizer("auto", model)
    start_mb, start, cpu_start = peak_memory_mb(), time.perf_counter(), time.process_time()
    preprocess([path], str(directory / "out"), tokenizer, PreprocessOptions(append_eod=True))
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "peak_mb": peak_memory_mb(),
        "start_mb": start_mb,
    }


_hf_tokenizer: Any = None


def start_hf_worker(tokenizer_json: str) -> None:
    """Load the tokenizer in a worker of the Hugging Face pipeline."""
    global _hf_tokenizer
    import tokenizers

    _hf_tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)


def hf_encode(line: bytes) -> list[int]:
    """One line to ids, as the usual scripts do it."""
    ids: list[int] = _hf_tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
    return ids


def measure_hf(directory: Path, model: str, num_bytes: int) -> dict[str, float]:
    """Two processes parse and encode, the main one writes; on the first ``num_bytes`` of text."""
    path = Path(model) / "tokenizer.json" if Path(model).is_dir() else Path(model)
    data = path.read_bytes()
    content = data.decode() if data[:1] == b"{" else llama3.tokenizer_json(read_ranks(data))
    lines, size = [], 0
    with open(directory / "jsonl.jsonl", "rb") as file:
        for line in file:
            lines.append(line)
            size += len(json.loads(line)["text"].encode())
            if size >= num_bytes:
                break
    with multiprocessing.get_context("spawn").Pool(2, start_hf_worker, (content,)) as pool:
        pool.map(hf_encode, lines[:8], chunksize=1)  # both workers are up
        start = time.perf_counter()
        with open(directory / "hf.bin", "wb") as out:
            for ids in pool.imap(hf_encode, lines, chunksize=25):
                out.write(np.array(ids, dtype=np.int32).tobytes())
        return {"seconds": time.perf_counter() - start, "bytes": size}


def measure(kind: str, directory: Path, model: str, hf_bytes: int) -> dict[str, float]:
    """One measurement, in this process."""
    if kind == "gigatoken":
        return measure_gigatoken(directory, model)
    if kind == "hf":
        return measure_hf(directory, model, hf_bytes)
    return measure_ours(directory, model, kind)


def main() -> None:
    """Measure all kinds in turn and print the figures; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", default=default_input())
    parser.add_argument("--tokenizer-model", default=default_tokenizer())
    parser.add_argument("--megabytes", type=float, default=160)
    parser.add_argument("--hf-megabytes", type=float, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "DIRECTORY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    hf_bytes = int(arguments.hf_megabytes * 1e6)
    if arguments.measure:
        kind, directory = arguments.measure
        print(json.dumps(measure(kind, Path(directory), arguments.tokenizer_model, hf_bytes)))
        return
    with tempfile.TemporaryDirectory() as name:
        num_bytes = write_inputs(arguments.input, Path(name), int(arguments.megabytes * 1e6))
        results: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for _ in range(arguments.rounds):
            for kind in KINDS:
                command = [sys.executable, __file__, "--measure", kind, name, "--hf-megabytes", arguments.hf_megabytes]
                command += ["--tokenizer-model", arguments.tokenizer_model]
                done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
                results[kind].append(json.loads(done.stdout.splitlines()[-1]))
    speed = {
        kind: statistics.median(run.get("bytes", num_bytes) / 1e6 / run["seconds"] for run in runs)
        for kind, runs in results.items()
    }
    peak = max(run["peak_mb"] for run in results["jsonl"])
    cpu = {kind: statistics.median(run["cpu_seconds"] for run in results[kind]) for kind in ("gigatoken", "jsonl")}
    print(f"{processor_name()}, {multiprocessing.cpu_count()} cores, {num_bytes / 1e6:.0f} MB of text")
    for kind in KINDS:
        print(f"{kind:10s} {speed[kind]:8.1f} MB/s")
    figures = {
        "ratio_vs_gigatoken": round(speed["jsonl"] / speed["gigatoken"], 3),
        "cpu_ratio_vs_gigatoken": round(cpu["gigatoken"] / cpu["jsonl"], 3),
        "speedup_vs_hf_pipeline": round(speed["jsonl"] / speed["hf"], 1),
        "peak_mb": round(peak),
        "start_mb": round(max(run["start_mb"] for run in results["jsonl"])),
        "zst_ratio": round(speed["zst"] / speed["jsonl"], 3),
        "parquet_ratio": round(speed["parquet"] / speed["jsonl"], 3),
        "mb_per_s": {kind: round(value, 1) for kind, value in speed.items()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

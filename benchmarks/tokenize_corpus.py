"""Throughput and memory of the corpus pipeline, measured side by side in one run.

    python benchmarks/tokenize_corpus.py [--input ...] [--tokenizer-model ...] [--megabytes 160] [--rounds 5]

Each measurement is a fresh process (so caches are equally cold and peak memory is its own); the kinds take turns, and
the median of the rounds counts. Loading the tokenizer is not timed. MB are 10^6 bytes of UTF-8 text, the same for each.
What begins with cpu_ is processor time, which other work on the machine disturbs less than the clock.

    ratio_vs_encode_files   our whole pipeline, from a JSON-lines file to a .bin/.idx and a document table safely on
                            disk, relative to gigatoken's own encode_files on the same file, which keeps the tokens in
                            memory
    ratio_vs_gigatoken      the same relative to gigatoken's bare encode_batch over the texts, which it finds in memory
    speedup_vs_hf_pipeline  our throughput relative to the usual pipeline on Hugging Face tokenizers: two processes
                            parse and encode, the main one writes (timed on the first --hf-megabytes)
    zst_ratio, parquet_ratio  our throughput from these formats relative to plain JSON lines
    short_parquet_ratio     from Parquet relative to JSON lines, where a document is a single line of the texts, each
                            with an id and a URL: Python's share is largest there; short_ratio_vs_encode_files likewise
    peak_mb, peak_mb_10x    most resident memory of our process, in 10^6 bytes, on the input and on ten times as much;
                            start_mb before the input is opened
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from megatron_synE.corpus import llama3
from megatron_synE.corpus.preprocess import PreprocessOptions, preprocess
from megatron_synE.corpus.readers import expand_inputs, iter_chunks
from megatron_synE.corpus.tokenizers import GigatokenBackend, build_tokenizer, read_ranks

ROOT = Path(__file__).parents[1]
FORMATS = {"jsonl": "jsonl.jsonl", "zst": "zst.jsonl.zst", "parquet": "parquet.parquet"}
SHORT_FORMATS = {"short_jsonl": "short.jsonl", "short_parquet": "short.parquet"}
KINDS = ("encode_files", "gigatoken", *FORMATS, "short_encode_files", *SHORT_FORMATS, "hf")


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


def write_inputs(inputs: list[str], directory: Path, num_bytes: int) -> dict[str, int]:
    """Write the same documents in every format, and their lines as documents; return the bytes of text of each kind."""
    import zstandard

    documents: list[str] = []
    size = 0
    while size < num_bytes:  # short inputs are read again, so that a run is long enough to time
        for path in expand_inputs(inputs):
            for texts in read_texts(path):
                documents += texts
                size += sum(len(text.encode()) for text in texts)
    lines = [line for document in documents for line in document.split("\n") if line.strip()]
    names = list(FORMATS.values())
    data = write_both([{"text": text} for text in documents], directory, names[0], names[2])
    (directory / names[1]).write_bytes(zstandard.ZstdCompressor(level=3).compress(data))
    short = ({"id": f"line-{i}", "url": f"https://example.org/{i}", "text": line} for i, line in enumerate(lines))
    write_both(list(short), directory, *SHORT_FORMATS.values())
    os.sync()  # or the first measurement would wait for these files to reach the disk
    short_size = sum(len(line.encode()) for line in lines)
    return {kind: short_size if kind.startswith("short") else size for kind in KINDS}


def write_both(records: list[dict[str, str]], directory: Path, jsonl: str, parquet: str) -> bytes:
    """Write records as JSON lines, which are returned, and as Parquet with zstd."""
    import pyarrow.parquet

    data = b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
    (directory / jsonl).write_bytes(data)
    table = pyarrow.Table.from_pylist(records)
    pyarrow.parquet.write_table(table, directory / parquet, row_group_size=10_000, compression="zstd")
    return data


def processor_name() -> str:
    """What /proc calls the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def peak_memory_mb() -> float:
    """Most resident memory of this process so far, 10^6 bytes (getrusage would count the parent's before exec)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))


def gigatoken(model: str) -> GigatokenBackend:
    """gigatoken with this model's vocabulary."""
    backend = build_tokenizer("auto", model).backend
    assert isinstance(backend, GigatokenBackend), "gigatoken cannot read this tokenizer"
    return backend


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the clock and of the processor that it takes."""
    start, cpu_start = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}


def measure_gigatoken(directory: Path, model: str) -> dict[str, float]:
    """gigatoken's encode_batch over all texts, in memory."""
    backend = gigatoken(model)
    texts = [text for block in read_texts(directory / FORMATS["jsonl"]) for text in block]
    return timed(lambda: backend.encode_batch(texts))


def measure_encode_files(path: Path, model: str) -> dict[str, float]:
    """gigatoken's encode_files: it reads and parses JSON lines itself, and keeps all tokens in memory."""
    from gigatoken import JsonlFileSource

    tokenizer = gigatoken(model).tokenizer
    return timed(lambda: tokenizer.encode_files(JsonlFileSource([path])))


def measure_ours(path: Path, model: str) -> dict[str, float]:
    """The whole pipeline in one process, as ``preprocess_data --append-eod`` runs it."""
    tokenizer = build_tokenizer("auto", model)
    start_mb, output = peak_memory_mb(), str(path.parent / "out")
    options = PreprocessOptions(append_eod=True)
    found = timed(lambda: preprocess([path], output, tokenizer, options, overwrite=True))
    return {**found, "peak_mb": peak_memory_mb(), "start_mb": start_mb}


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
    with open(directory / FORMATS["jsonl"], "rb") as file:
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
    if kind.endswith("encode_files"):
        names = SHORT_FORMATS if kind.startswith("short") else FORMATS
        return measure_encode_files(directory / next(iter(names.values())), model)
    return measure_ours(directory / {**FORMATS, **SHORT_FORMATS, "tenfold": "tenfold.jsonl"}[kind], model)


def measure_apart(kind: str, directory: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One measurement, in a process of its own."""
    command = [sys.executable, __file__, "--measure", kind, directory, "--hf-megabytes", arguments.hf_megabytes]
    command += ["--tokenizer-model", arguments.tokenizer_model]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_tenfold(directory: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Ten times the JSON lines."""
    source, path = Path(directory) / FORMATS["jsonl"], Path(directory) / "tenfold.jsonl"
    with open(path, "wb") as out:
        for _ in range(10):
            with open(source, "rb") as file:
                shutil.copyfileobj(file, out)
    return measure_apart("tenfold", directory, arguments)


def main() -> None:
    """Measure all kinds in turn and print the figures; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", default=default_input())
    parser.add_argument("--tokenizer-model", default=default_tokenizer())
    parser.add_argument("--megabytes", type=float, default=160)
    parser.add_argument("--hf-megabytes", type=float, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "DIRECTORY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, directory = arguments.measure
        hf_bytes = int(arguments.hf_megabytes * 1e6)
        print(json.dumps(measure(kind, Path(directory), arguments.tokenizer_model, hf_bytes)))
        return
    with tempfile.TemporaryDirectory() as name:
        num_bytes = write_inputs(arguments.input, Path(name), int(arguments.megabytes * 1e6))
        results: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
        for _ in range(arguments.rounds):
            for kind in KINDS:
                results[kind].append(measure_apart(kind, name, arguments))
        tenfold = measure_tenfold(name, arguments)
    print(f"{processor_name()}, {multiprocessing.cpu_count()} cores, {num_bytes['jsonl'] / 1e6:.0f} MB of text, "
          f"{arguments.rounds} rounds")  # fmt: skip
    print_figures(results, num_bytes, tenfold)


def print_figures(
    results: dict[str, list[dict[str, float]]], num_bytes: dict[str, int], tenfold: dict[str, float]
) -> None:
    """A table of the speeds, and the JSON object."""

    def speed(kind: str, clock: str) -> float:
        runs = [run.get("bytes", num_bytes[kind]) / 1e6 / run[clock] for run in results[kind] if clock in run]
        return statistics.median(runs) if runs else float("nan")

    wall, cpu = ({kind: speed(kind, clock) for kind in KINDS} for clock in ("seconds", "cpu_seconds"))
    print(f"{'':20s} {'MB/s':>8s} {'MB/cpu-s':>8s}")
    for kind in KINDS:
        print(f"{kind:20s} {wall[kind]:8.1f} {cpu[kind]:8.1f}")
    figures: dict[str, Any] = {}
    for name, ours, theirs in (
        ("ratio_vs_encode_files", "jsonl", "encode_files"),
        ("ratio_vs_gigatoken", "jsonl", "gigatoken"),
        ("zst_ratio", "zst", "jsonl"),
        ("parquet_ratio", "parquet", "jsonl"),
        ("short_parquet_ratio", "short_parquet", "short_jsonl"),
        ("short_ratio_vs_encode_files", "short_jsonl", "short_encode_files"),
    ):
        figures[name] = round(wall[ours] / wall[theirs], 3)
        figures[f"cpu_{name}"] = round(cpu[ours] / cpu[theirs], 3)
    figures["speedup_vs_hf_pipeline"] = round(wall["jsonl"] / wall["hf"], 1)
    for name in ("peak_mb", "start_mb"):
        figures[name] = round(max(run[name] for run in results["jsonl"]))
    figures["peak_mb_10x"] = round(tenfold["peak_mb"])
    figures["mb_per_s"] = {kind: round(value, 1) for kind, value in wall.items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

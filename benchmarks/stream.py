"""The data stream beside megatron-core's BlendedDataset over GPTDataset, on the same corpora, one core each.

    python benchmarks/stream.py                  all figures, a few minutes
    python benchmarks/stream.py --quick          small sizes, to see that it works

Every measurement runs in a process of its own. Start-up is the wall time from the first import of the data package to
the first batch in hand, indices built from nothing; its memory is the peak of the whole process, interpreter and numpy
included. megatron-core's start-up is its blending index alone, without imports, corpora or sample indices. Items are
single samples of 8,192 tokens from the page cache in random order, as torch tensors, per second of one core's time:
both use one thread and wait for nothing, and so a busy machine does not blur the ratio. Wall times are the best of five
runs, rates the median; on a busy machine the processor time says what an idle one would need. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NUM_COMPONENTS = 24
SEQ_LENGTH = 8192
LOOKUP_BATCH = 4096
TOKENS_PER_CORPUS = 2_000_000
REPEATS = 5


def weights() -> dict[str, str]:
    """24 weights of six decimals, of which a few dominate; they make a period of 10^6 samples."""
    parts = [1_000_003 * (number * number + 1) % 9973 + 13 for number in range(NUM_COMPONENTS)]
    scaled = [part * 1_000_000 // sum(parts) for part in parts]
    scaled[0] += 1_000_000 - sum(scaled)
    return {name: f"{value}/1000000" for name, value in zip(names(), scaled, strict=True)}


def names() -> list[str]:
    """Names of the components."""
    return [f"part{number:02}" for number in range(NUM_COMPONENTS)]


def write_corpora(folder: Path) -> None:
    """24 corpora of documents of about 800 tokens, uint16."""
    import numpy as np

    from megatron_synE.corpus.indexed_writer import IndexedCorpusWriter

    rng = np.random.default_rng(0)
    for name in names():
        lengths = rng.gamma(2.0, 400.0, TOKENS_PER_CORPUS // 800).astype(np.int32) + 1
        with IndexedCorpusWriter(folder / name, np.uint16) as writer:
            writer.add_documents(rng.integers(0, 50_000, lengths.sum(), dtype=np.uint16), lengths)
            writer.finalize()


def stream_config(folder: str, num_samples: int, cache: str) -> Any:
    """One stage of `num_samples` samples over the 24 corpora."""
    from megatron_synE.config.data import DataConfig, SourceConfig, StageConfig

    return DataConfig(
        sources={name: SourceConfig(str(Path(folder) / name)) for name in names()},
        stages=[StageConfig("all", num_samples * SEQ_LENGTH, dict(weights()))],
        seq_length=SEQ_LENGTH,
        cache_dir=cache,
    )


def startup(folder: str, num_samples: int) -> dict[str, float]:
    """Time to the first batch, and peak memory, from nothing."""
    with tempfile.TemporaryDirectory() as cache:
        start, processor = time.perf_counter(), time.process_time()
        from megatron_synE.data import DataStream

        DataStream.build(stream_config(folder, num_samples, cache)).batch([0])
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return {"seconds": seconds, "processor_s": processor, "peak_mb": peak_mb()}


def mcore_blending(folder: str, num_samples: int) -> dict[str, float]:
    """megatron-core's two arrays over all samples."""
    import numpy as np
    from megatron.core.datasets import helpers_cpp

    shares = np.array([float(n.split("/")[0]) / 1_000_000 for n in weights().values()])
    before, start = peak_mb(), time.perf_counter()
    dataset_index, sample_index = np.zeros(num_samples, np.int16), np.zeros(num_samples, np.int64)
    helpers_cpp.build_blending_indices(dataset_index, sample_index, shares, len(shares), num_samples, False)
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_mb() - before}


def lookups(folder: str, num_samples: int) -> dict[str, float]:
    """k → (component, sample), in batches of random sample numbers from Python."""
    import numpy as np

    from megatron_synE.data import DataStream

    with tempfile.TemporaryDirectory() as cache:
        stream = DataStream.build(stream_config(folder, num_samples, cache))
        rng = np.random.default_rng(0)
        batches = [rng.integers(0, num_samples, LOOKUP_BATCH) for _ in range(200)]
        stream.locate(batches[0])
        start = time.perf_counter()
        for batch in batches:
            stream.locate(batch)
        seconds = time.perf_counter() - start
        single = time.perf_counter()
        for number in batches[0][:1000]:
            stream.locate(np.array([number]))
        return {"per_s": len(batches) * LOOKUP_BATCH / seconds, "single_per_s": 1000 / (time.perf_counter() - single)}


def items(folder: str, num_samples: int, isolate: bool = False) -> dict[str, float]:
    """Samples per second of both, in turns of a third of a second, as torch tensors; the ratio is the turns' median."""
    import numpy as np

    numbers = np.random.default_rng(1).permutation(num_samples).tolist()
    with tempfile.TemporaryDirectory() as cache:
        readers = ours(folder, num_samples, cache, isolate), theirs(folder, num_samples, isolate)
        for read in readers:
            rate(read, numbers, seconds=2.0)
        turns = [tuple(rate(read, numbers[turn * 500 :]) for read in readers) for turn in range(15)]
    return {
        "ours_per_s": statistics.median(turn[0] for turn in turns),
        "mcore_per_s": statistics.median(turn[1] for turn in turns),
        "ratio": statistics.median(turn[0] / turn[1] for turn in turns),
    }


def ours(folder: str, num_samples: int, cache: str, isolate: bool) -> Callable[[int], object]:
    """A reader of single samples of ours, as torch tensors."""
    import dataclasses

    import torch

    from megatron_synE.data import DataStream

    config = dataclasses.replace(stream_config(folder, num_samples, cache), isolate_documents=isolate)
    stream = DataStream.build(config)

    def read(number: int) -> list[torch.Tensor]:
        batch = stream.batch([number])
        arrays = (batch.tokens_BS, batch.labels_BS, batch.loss_mask_BS, batch.position_ids_BS)
        return [torch.from_numpy(array) for array in arrays]

    return read


class Tokenizer:
    """What megatron-core's GPTDataset asks of one."""

    vocab_size, eod, pad, unique_identifiers = 50_000, 0, -1, {"class": "Tokenizer"}


def theirs(folder: str, num_samples: int, isolate: bool) -> Callable[[int], object]:
    """A reader of single samples of BlendedDataset over GPTDataset, with the same weights and corpora."""
    import numpy as np
    from megatron.core.datasets.blended_dataset import BlendedDataset
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    config = GPTDatasetConfig(
        random_seed=1, sequence_length=SEQ_LENGTH, tokenizer=Tokenizer(), reset_position_ids=isolate,
        reset_attention_mask=False, eod_mask_loss=isolate, create_attention_mask=False, mid_level_dataset_surplus=0.005,
    )  # fmt: skip
    shares = [float(n.split("/")[0]) / 1_000_000 for n in weights().values()]
    datasets = []
    for name, share in zip(names(), shares, strict=True):
        corpus = IndexedDataset(str(Path(folder) / name), multimodal=False, mmap=True)
        documents = np.arange(len(corpus.document_indices) - 1, dtype=np.int32)
        size = int(num_samples * share * 1.005) + 2
        datasets.append(GPTDataset(corpus, str(Path(folder) / name), documents, size, Split.train, config))
    return BlendedDataset(datasets, shares, num_samples, config).__getitem__


def rate(read: Callable[[int], object], numbers: Sequence[int], seconds: float = 0.33) -> float:
    """Items per second over these numbers, as far as the time allows. The time is this process's on its core."""
    start, done = time.process_time(), 0
    while time.process_time() - start < seconds and done + 20 < len(numbers):
        for number in numbers[done : done + 20]:
            read(number)
        done += 20
    return done / (time.process_time() - start)


def index(folder: str, num_documents: int) -> dict[str, float]:
    """A component of many documents, from the .bin in the page cache to a mapped index: hash, split, order, write."""
    import numpy as np

    from megatron_synE.config.data import SourceConfig
    from megatron_synE.corpus.annotations import write_annotation
    from megatron_synE.corpus.indexed import IndexedCorpus
    from megatron_synE.corpus.indexed_writer import IndexedCorpusWriter
    from megatron_synE.data.cache import IndexCache
    from megatron_synE.data.components import Component, Source

    prefix, rng, result = Path(folder) / f"many{num_documents}", np.random.default_rng(0), {}
    if not Path(f"{prefix}.idx").exists():
        with IndexedCorpusWriter(prefix, np.uint16) as writer:
            for _ in range(10):
                lengths = rng.gamma(2.0, 64.0, num_documents // 10).astype(np.int32) + 1
                writer.add_documents(rng.integers(0, 50_000, lengths.sum(), dtype=np.uint16), lengths)
            fingerprint = writer.finalize()
        perplexity = rng.lognormal(3.0, 1.0, num_documents).astype(np.float32) + 1
        write_annotation(prefix, "perplexity", perplexity, fingerprint, {"name": "benchmark"})
    result["tokens"] = float(IndexedCorpus(prefix).num_tokens)
    Path(f"{prefix}.bin").read_bytes()
    for order in ("perplexity_ascending", "shuffled"):
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            config = SourceConfig(str(prefix), order=order)  # type: ignore[arg-type]
            start, processor = time.perf_counter(), time.process_time()
            source = Source("many", config, 0.001, IndexCache(Path(cache)))
            component = Component(source, None, config.order, SEQ_LENGTH, 1)
            result[order] = time.perf_counter() - start
            result[f"{order}_processor_s"] = time.process_time() - processor
            start = time.perf_counter()
            Component(source, None, "stored", SEQ_LENGTH, 1)
            result[f"{order}_hashes_cached"] = time.perf_counter() - start
            assert component.num_documents > 0.99 * num_documents
    return result


def cpu_name() -> str:
    """The processor, as far as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_mb() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


MEASUREMENTS: dict[str, Callable[..., dict[str, float]]] = {
    "startup": startup,
    "mcore_blending": mcore_blending,
    "lookups": lookups,
    "items": items,
    "index": index,
}


def measure(what: str, folder: str, size: int, *flags: str) -> dict[str, float]:
    """One measurement in a process of its own, on one core."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "--measure", what, "--folder", folder, "--size", str(size), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def median(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median per figure."""
    return {key: statistics.median(result[key] for result in results) for key in results[0]}


def best(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """The smallest of each figure."""
    return {key: min(result[key] for result in results) for key in results[0]}


def compare(quick: bool) -> dict[str, float]:
    """All measurements, alternating ours and megatron-core's; prints as it goes."""
    small, large, documents = (10**6, 10**9, 10**5) if quick else (10**8, 10**11, 5 * 10**6)
    repeats = 1 if quick else REPEATS
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_corpora(Path(folder))
        starts, far, blends = [], [], []
        for _ in range(repeats):
            starts.append(measure("startup", folder, small))
            far.append(measure("startup", folder, large))
            blends.append(measure("mcore_blending", folder, small))
        start, start_far, blend = best(starts), best(far), best(blends)
        figures["startup_s_1e8"], figures["startup_s_1e11"] = start["seconds"], start_far["seconds"]
        figures["startup_processor_s_1e8"] = start["processor_s"]
        figures["startup_mb"] = max(start["peak_mb"], start_far["peak_mb"])
        figures["mcore_blending_s_1e8"], figures["mcore_blending_mb_1e8"] = blend["seconds"], blend["peak_mb"]
        print(f"first batch of {small:,} samples: ours {start['seconds']:.3f} s, {start['peak_mb']:.0f} MB (process); "
              f"megatron-core's blending index {blend['seconds']:.2f} s, {blend['peak_mb']:.0f} MB more")  # fmt: skip
        print(f"first batch of {large:,} samples: ours {start_far['seconds']:.3f} s, {start_far['peak_mb']:.0f} MB")
        found = median([measure("lookups", folder, small) for _ in range(repeats)])
        figures["lookups_per_s"], figures["single_lookups_per_s"] = found["per_s"], found["single_per_s"]
        print(f"look-ups: {found['per_s'] / 1e6:.1f} M/s in batches of {LOOKUP_BATCH}, "
              f"{found['single_per_s']:,.0f}/s one by one")  # fmt: skip
        for label, flags in (("items", ()), ("isolated_items", ("--isolate",))):
            pair = median([measure("items", folder, 20_000, *flags) for _ in range(min(3, repeats))])
            figures[f"{label}_per_s"], figures[f"mcore_{label}_per_s"] = pair["ours_per_s"], pair["mcore_per_s"]
            figures[f"{label}_ratio_vs_mcore"] = pair["ratio"]
            print(f"{label}: ours {pair['ours_per_s']:,.0f}/s, megatron-core {pair['mcore_per_s']:,.0f}/s, "
                  f"ratio {pair['ratio']:.2f}")  # fmt: skip
        built = best([measure("index", folder, documents) for _ in range(repeats)])
        orders = ("perplexity_ascending", "shuffled")
        figures["index_5m_docs_s"] = max(built[order] for order in orders)
        figures["index_5m_docs_processor_s"] = max(built[f"{order}_processor_s"] for order in orders)
        print(f"index of {documents:,} documents, {built['tokens']:,.0f} tokens: by perplexity "
              f"{built['perplexity_ascending']:.2f} s, shuffled {built['shuffled']:.2f} s; "
              f"stored order with content hashes at hand {built['shuffled_hashes_cached']:.2f} s")  # fmt: skip
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes; the figures mean nothing")
    parser.add_argument("--measure", choices=sorted(MEASUREMENTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--isolate", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is None:
        load = os.getloadavg()[0]
        print(f"{cpu_name()}, {os.cpu_count()} cores (load {load:.1f}), Python {platform.python_version()}")
        print(json.dumps({name: round(value, 4) for name, value in compare(arguments.quick).items()}))
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    extra = {"isolate": True} if arguments.isolate else {}
    print(json.dumps(MEASUREMENTS[arguments.measure](arguments.folder, arguments.size, **extra)))


if __name__ == "__main__":
    main()

"""How close saving and loading come to the disk, and how long training stands still for a save in the background.

    python benchmarks/checkpoint.py [--num-layers 12] [--folder /somewhere]

One process, bf16 weights with the distributed optimizer's fp32 state (14 bytes per parameter). The disk's own rate is
measured in turn with the saves and loads, on one file of the same size: written in 8 MiB pieces and fsynced, read in
8 MiB pieces after its pages were dropped from the cache, as are the checkpoint's before each load. Medians of the
rounds. The last line is one JSON object.

    save_share_of_disk   rate of save_checkpoint ÷ rate of the plain file
    load_share_of_disk   rate of load_checkpoint ÷ rate of the plain file
    async_stall_share    time in which AsyncCheckpointer.save and its last poll hold the training loop up ÷ time of
                         save_checkpoint
    checksum_share_of_save, checksum_share_of_load
                         processor time of all threads inside the checksums, added up ÷ time of the save or load
    checksum_gb_per_s    bytes that went through checksums in saves ÷ that processor time, so per core; a save takes two
                         of each byte, of its chunk and of its file
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

PIECE_BYTES = 8 * 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-layers", type=int, default=12, help="of width 512: 12 layers are 71 M parameters, 1 GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; a temporary one by default")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-benchmark-", dir=options.folder))
    try:
        figures = measure(folder, options.num_layers, options.rounds)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(figures))


def measure(folder: Path, num_layers: int, rounds: int) -> dict[str, Any]:
    """All figures, as a dict for JSON."""
    import torch

    from megatron_synE.checkpoint import AsyncCheckpointer, load_checkpoint, save_checkpoint
    from megatron_synE.runtime import device_name

    architecture, chunks, optimizer = build(num_layers)
    common = {"architecture": architecture, "model_chunks": chunks, "optimizer": optimizer}
    saving = {**common, "rng_state": None, "state": {}, "keep": 1}
    save_checkpoint(folder / "checkpoints", step=0, **saving)  # the first one also imports and allocates
    size_bytes = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
    times: dict[str, list[float]] = {}

    def record(name: str, action: Callable[[], object]) -> None:
        start = time.perf_counter()
        action()
        times.setdefault(name, []).append(time.perf_counter() - start)

    checkpointer = AsyncCheckpointer()
    checksums = ChecksumClock()
    for number in range(1, rounds + 1):
        record("write", lambda: write_file(folder / "plain", size_bytes))
        with checksums.timed("save"):
            record("save", lambda n=number: save_checkpoint(folder / "checkpoints", step=2 * n, **saving))
        drop_from_cache(folder)
        record("read", lambda: read_file(folder / "plain"))
        drop_from_cache(folder)
        with checksums.timed("load"):
            record("load", lambda: load_checkpoint(folder / "checkpoints", **common))
        record("begin", lambda n=number: checkpointer.save(folder / "checkpoints", step=2 * n + 1, **saving))
        record("background", lambda: wait_for_child(checkpointer))
        record("publish", checkpointer.poll)
        checkpointer.wait()  # for the deletion of the old one, beside which training goes on
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in median.items():
        print(f"{name:>10}: {seconds:6.2f} s" + (f"  {size_bytes / seconds / 1e6:6.0f} MB/s" if seconds > 0.05 else ""))
    return {
        "async_stall_share": round((median["begin"] + median["publish"]) / median["save"], 3),
        "save_share_of_disk": round(median["write"] / median["save"], 3),
        "load_share_of_disk": round(median["read"] / median["load"], 3),
        "checksum_share_of_save": round(checksums.seconds["save"] / sum(times["save"]), 4),
        "checksum_share_of_load": round(checksums.seconds["load"] / sum(times["load"]), 4),
        "checksum_gb_per_s": round(checksums.num_bytes["save"] / checksums.seconds["save"] / 1e9, 1),
        "checkpoint_mb": round(size_bytes / 1e6),
        "disk_write_mb_per_s": round(size_bytes / median["write"] / 1e6),
        "disk_read_mb_per_s": round(size_bytes / median["read"] / 1e6),
        "machine": device_name(torch.device("cpu")),
        "load_average": round(os.getloadavg()[0], 1),
    }


class ChecksumClock:
    """Processor time and bytes of the checksums, by the name under which they were `timed`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.num_bytes: dict[str, int] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Put a clock around every call of xxh3_128 in the package's checkpoints."""
        from megatron_synE.checkpoint import files, torch_dist

        lock = threading.Lock()

        def clocked(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def call(content: Any) -> Any:
                start = time.thread_time()
                result = function(content)
                with lock:
                    self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - start
                    self.num_bytes[name] = self.num_bytes.get(name, 0) + memoryview(content).nbytes
                return result

            return call

        class Clocked:
            def __init__(self) -> None:
                self._digest = xxhash.xxh3_128()
                self.update = clocked(self._digest.update)
                self.hexdigest, self.reset = self._digest.hexdigest, self._digest.reset

        replacement = types.SimpleNamespace(
            xxh3_128=Clocked, xxh3_128_hexdigest=clocked(xxhash.xxh3_128_hexdigest)
        )
        files.xxhash = torch_dist.xxhash = replacement
        try:
            yield
        finally:
            files.xxhash = torch_dist.xxhash = xxhash


def build(num_layers: int) -> tuple[Any, list[Any], Any]:
    """A model of width 512 in bf16 with its distributed optimizer."""
    from megatron_synE.config.model import LlamaArchitecture, ModelConfig
    from megatron_synE.config.optimizer import OptimizerConfig
    from megatron_synE.config.parallel import ParallelConfig
    from megatron_synE.config.precision import PrecisionConfig
    from megatron_synE.model import build_model_chunks
    from megatron_synE.runtime import initialize
    from megatron_synE.training.optimizer import build_optimizer, wrap_data_parallel

    architecture = LlamaArchitecture(num_layers, 512, 1536, 8, 4, 32000)
    parallel, precision = ParallelConfig(), PrecisionConfig()
    runtime = initialize(parallel)
    bare = build_model_chunks(architecture, ModelConfig(), parallel, precision, device=runtime.device)
    chunks = wrap_data_parallel(list(bare), parallel, precision)
    return architecture, chunks, build_optimizer(chunks, OptimizerConfig(), parallel, precision)


def wait_for_child(checkpointer: Any) -> None:
    """Until the writing process has ended, as training would go on meanwhile."""
    process = checkpointer._queue.async_calls[0].async_caller.process
    process.join()


def write_file(path: Path, size_bytes: int) -> None:
    """The plain file: sequential, fsynced."""
    piece = os.urandom(PIECE_BYTES)
    with open(path, "wb", buffering=0) as file:
        for start in range(0, size_bytes, PIECE_BYTES):
            file.write(piece[: size_bytes - start])
        os.fsync(file.fileno())


def read_file(path: Path) -> None:
    """The plain file, read into one buffer again and again."""
    buffer = bytearray(PIECE_BYTES)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def drop_from_cache(folder: Path) -> None:
    """Make the next read come from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()

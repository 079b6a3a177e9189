"""Corpora, annotations and indices that change under a run: always said, with the file's name."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_synE.config.data import DataConfig, SourceConfig, StageConfig
from megatron_synE.corpus import watched_file
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.data import DataStream
from tests.helpers.commands import ROOT, environment
from tests.helpers.corpora import random_documents, write_corpus

SEQ_LENGTH = 16


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    return write_corpus(tmp_path / "web", random_documents(rng, 3000), perplexity=rng.uniform(1, 9, 3000))


@pytest.fixture
def little_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of which most of these small files lies between."""
    monkeypatch.setattr(watched_file, "SAMPLED_BLOCK_BYTES", 64)


def config_of(prefix: str, order: str = "shuffled") -> DataConfig:
    stages = [StageConfig("one", 20_000 * SEQ_LENGTH, {"web": 1})]
    return DataConfig({"web": SourceConfig(prefix, order=order)}, stages, seq_length=SEQ_LENGTH, heldout_fraction=0.1)


def rewrite(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change a file in place; size, inode and modification time stay."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    change(content)
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns


def flip(content: bytearray) -> None:
    content[0] ^= 1


@pytest.mark.parametrize("kind", ["bin", "idx"])
@pytest.mark.parametrize("heldout", [False, True])
def test_a_change_that_keeps_size_and_time_is_noticed_by_the_next_batch(prefix: str, kind: str, heldout: bool) -> None:
    stream = DataStream.build(config_of(prefix))
    (held,) = stream.heldout().values()
    read = held.batch if heldout else stream.batch
    read([0])
    rewrite(Path(f"{prefix}.{kind}"), flip)
    with pytest.raises(ValueError, match=rf"web\.{kind}: changed while it was being read"):
        read([1])


def replaced_by_another(path: Path) -> None:
    """As `mv` does: the mapping keeps the old content, but the run could never be resumed."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    Path(f"{path}.new").write_bytes(content)
    os.replace(f"{path}.new", path)


@pytest.mark.parametrize("change", [replaced_by_another, os.unlink, lambda path: os.truncate(path, 7)])
def test_a_corpus_that_is_replaced_removed_or_cut_is_named(prefix: str, change: Callable[[Path], None]) -> None:
    stream = DataStream.build(config_of(prefix))
    samples = range(5)
    change(Path(f"{prefix}.bin"))
    with pytest.raises(ValueError, match=r"web\.bin: changed while it was being read"):
        # What remains of the first page can be touched without a fault.
        stream.components[0].source.corpus.check_unchanged()
        stream.batch(samples)


@pytest.mark.usefixtures("little_sampled")
def test_what_only_looks_like_a_change_is_no_error(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    stream, path = DataStream.build(config_of(prefix)), Path(f"{prefix}.bin")
    os.link(path, f"{prefix}.link")
    stream.batch([0])
    assert caplog.messages == []
    os.utime(path)
    shutil.copy(path, f"{prefix}.copy")
    stream.batch([0])
    os.replace(f"{prefix}.copy", path)
    stream.batch([0])
    stream.batch([1])
    assert len(caplog.messages) == 2 and all("web.bin: was written" in message for message in caplog.messages)


def test_at_the_start_a_change_that_keeps_size_and_time_is_noticed(prefix: str) -> None:
    state = json.loads(json.dumps(DataStream.build(config_of(prefix)).state_dict(5)))
    DataStream.build(config_of(prefix), state=state)
    rewrite(Path(f"{prefix}.bin"), flip)
    with pytest.raises(ValueError, match=r"web\.json: describes other content"):
        DataStream.build(config_of(prefix), state=state)
    Path(f"{prefix}.json").unlink()
    with pytest.raises(ValueError, match=r"data\.sources\.web: the corpus .*web.* changed since the checkpoint"):
        DataStream.build(config_of(prefix), state=state)


@pytest.mark.usefixtures("little_sampled")
def test_every_sampled_block_counts(prefix: str) -> None:
    path = Path(f"{prefix}.bin")
    with open(path, "rb") as file:
        before = watched_file.sampled_hash(file)
    size, blocks = path.stat().st_size, watched_file.SAMPLED_BLOCKS
    for number in range(blocks):
        start = number * (size - 64) // (blocks - 1)
        for place in (start, start + 63):
            rewrite(path, lambda content, place=place: content.__setitem__(place, content[place] ^ 4))
            with open(path, "rb") as file:
                assert watched_file.sampled_hash(file) != before
            rewrite(path, lambda content, place=place: content.__setitem__(place, content[place] ^ 4))
    with open(path, "rb") as file:
        assert watched_file.sampled_hash(file) == before


def test_a_sidecar_without_samples_stays_valid_and_gets_them(prefix: str) -> None:
    path = Path(f"{prefix}.json")
    sidecar = json.loads(path.read_text())
    old = json.loads(path.read_text())
    for recorded in old["files"].values():
        del recorded["sample"]
    path.write_text(json.dumps(old))
    assert IndexedCorpus(prefix).metadata == sidecar == json.loads(path.read_text())


def test_an_annotation_changed_in_place_makes_no_order(prefix: str, tmp_path: Path) -> None:
    stream = DataStream.build(config_of(prefix, "perplexity_ascending"))
    component = stream.components[0]
    rewrite(Path(f"{prefix}.perplexity.npy"), lambda content: content.__setitem__(slice(-4, None), b"\0\0\x80?"))
    component.chain = (("perplexity_descending", 0),)
    with pytest.raises(ValueError, match=r"web\.perplexity\.npy: changed while it was being read"):
        component.epoch(0)


def test_an_index_that_points_outside_is_named(prefix: str) -> None:
    """No sidecar vouches for it, and no fingerprint is known."""
    for kind in ("json", "perplexity.json"):
        Path(f"{prefix}.{kind}").unlink()
    num_sequences = IndexedCorpus(prefix).num_sequences
    far = (10**12).to_bytes(8, "little")

    def point_far(content: bytearray) -> None:
        for sequence in range(num_sequences - 1):
            start = 34 + 4 * num_sequences + 8 * sequence
            content[start : start + 8] = far

    rewrite(Path(f"{prefix}.idx"), point_far)
    with pytest.raises(ValueError, match=r"web\.idx: damaged.*verify_corpus"):
        DataStream.build(config_of(prefix)).batch(range(100))


READER = """
import sys
from pathlib import Path
if sys.argv[3] == "numpy":
    sys.modules["megatron_synE._index"] = None
from tests.unit.data.test_changed_files import config_of
from megatron_synE.data import DataStream
stream = DataStream.build(config_of(sys.argv[1], "perplexity_ascending"))
print("reading", flush=True)
if sys.argv[2] == "annotation":
    for _ in range(10**9):
        stream.components[0].source.check_annotations()
try:
    for sample in range(10**9):
        stream.batch([sample * 7919 % stream.num_samples])
except ValueError as error:
    sys.exit(f"one message: {error}")
"""


def reading(prefix: str, what: str = "corpus", implementation: str = "compiled") -> subprocess.Popen[str]:
    """A process that reads until it ends badly."""
    return subprocess.Popen(
        [sys.executable, "-c", READER, prefix, what, implementation], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**environment(), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def end_of(process: subprocess.Popen[str]) -> list[str]:
    """What it said on stderr, after its end."""
    return process.communicate(timeout=120)[1].splitlines()


compiled = pytest.mark.skipif(
    importlib.util.find_spec("megatron_synE._index") is None, reason="megatron_synE._index is not built"
)


@compiled
@pytest.mark.parametrize("name", ["web.bin", "web.idx", ".index_cache/order", "web.perplexity.npy"])
def test_a_file_truncated_in_the_middle_of_a_run_is_named(prefix: str, name: str) -> None:
    """By an error, or by one line before the process dies of SIGBUS: never in silence."""
    pages = 4096
    process = reading(prefix, "annotation" if name.endswith("npy") else "corpus")
    try:
        assert process.stdout is not None and process.stdout.readline() == "reading\n"
        (path,) = Path(prefix).parent.glob(f"{name}*.index" if "cache" in name else name)
        os.truncate(path, path.stat().st_size // 2 // pages * pages)
        lines = end_of(process)
    finally:
        process.kill()
    if process.returncode == 1:
        (line,) = [line for line in lines if line.startswith("one message: ")]
        assert f"{path}: changed while it was being read" in line
    else:
        assert process.returncode == -signal.SIGBUS, lines
        # An epoch that opens a cut index says so, builds it again, and an older epoch's mapping still dies of it.
        (line,) = [line for line in lines if str(path) in line and "it is built again" not in line]
        assert line == f"{path}: was truncated, or its disk failed, while it was being read (SIGBUS); " + (
            "restore it and start again"
        )


@compiled
@pytest.mark.parametrize("order", ["before", "after"])
def test_the_file_is_named_beside_faulthandler(prefix: str, order: str) -> None:
    enable = "import faulthandler; faulthandler.enable()"
    script = f"""
import os
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.data import native
{enable if order == "before" else ""}
corpus = IndexedCorpus({prefix!r})
for path, mapped in corpus.mapped_files.items():
    native.watch(mapped, path)
{enable if order == "after" else ""}
os.truncate(corpus.bin_path, 0)
print(corpus.tokens[-1])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment())
    assert done.returncode == -signal.SIGBUS and done.stdout == ""
    assert f"{prefix}.bin: was truncated" in done.stderr and "Fatal Python error: Bus error" in done.stderr


@compiled
def test_a_signal_that_somebody_sends_still_ends_the_process(prefix: str) -> None:
    process = reading(prefix)
    try:
        assert process.stdout is not None and process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGBUS)
        assert end_of(process) == [] and process.returncode == -signal.SIGBUS
    finally:
        process.kill()


def test_without_the_extension_faulthandler_tells(prefix: str) -> None:
    process = reading(prefix, implementation="numpy")
    try:
        assert process.stdout is not None and process.stdout.readline() == "reading\n"
        os.truncate(f"{prefix}.bin", 0)
        lines = end_of(process)
        assert any("changed while it was being read" in line or "Bus error" in line for line in lines)
    finally:
        process.kill()


@compiled
def test_mappings_that_are_gone_leave_the_table(prefix: str) -> None:
    """More than the table holds, one after another; the last one is still named."""
    script = f"""
import os
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.data import native
for _ in range(6000):
    corpus = IndexedCorpus({prefix!r})
    for path, mapped in corpus.mapped_files.items():
        native.watch(mapped, path)
    del mapped
os.truncate(corpus.bin_path, 0)
print(corpus.tokens[-1])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment())
    assert done.returncode == -signal.SIGBUS and f"{prefix}.bin: was truncated" in done.stderr

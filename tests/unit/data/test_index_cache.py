"""The index cache: keys, torn files, crashes, several processes; and the compiled operations against numpy."""

from __future__ import annotations

import importlib.util
import itertools
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_synE.data import fallback, native
from megatron_synE.data.cache import IndexCache

KEY = {"kind": "order", "corpus": "abc"}


def arrays() -> dict[str, np.ndarray]:
    order, ends = np.arange(5, dtype=np.int32), np.arange(6, dtype=np.int64) ** 2
    return {"order": order, "ends": ends, "none": np.empty(0, np.int64)}


def refuse() -> dict[str, np.ndarray]:
    raise AssertionError("built again")


def test_built_once_and_read_only(tmp_path: Path) -> None:
    first = IndexCache(tmp_path).get(KEY, arrays)
    again = IndexCache(tmp_path).get(KEY, refuse)
    for name, array in arrays().items():
        assert (first[name] == array).all() and (again[name] == array).all() and again[name].dtype == array.dtype
        assert not again[name].flags.writeable
    other = IndexCache(tmp_path).get({**KEY, "corpus": "abd"}, lambda: {"order": np.arange(3)})
    assert len(other["order"]) == 3


@pytest.mark.parametrize("damage", ["truncate", "empty", "magic", "foreign", "header", "longer"])
def test_damaged_files_are_said_and_built_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    IndexCache(tmp_path).get(KEY, arrays)
    (path,) = tmp_path.glob("*.index")
    content = path.read_bytes()
    if damage == "foreign":
        IndexCache(tmp_path).get({**KEY, "corpus": "abd"}, lambda: {"order": np.arange(3)})
        (other,) = set(tmp_path.glob("*.index")) - {path}
        content = other.read_bytes()
    damaged = {"truncate": content[:-1], "empty": b"", "magic": b"X" + content[1:], "foreign": content}
    damaged |= {"header": content[:32] + b"}" + content[33:], "longer": content + b"\0"}
    path.write_bytes(damaged[damage])
    assert (IndexCache(tmp_path).get(KEY, arrays)["ends"] == arrays()["ends"]).all()
    (said,) = caplog.messages
    assert str(path) in said and "built again" in said
    assert (IndexCache(tmp_path).get(KEY, refuse)["ends"] == arrays()["ends"]).all() and len(caplog.messages) == 1


def test_every_flipped_bit_is_detected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    cache = IndexCache(tmp_path)
    expected = {"order": rng.permutation(5000).astype(np.int32), "ends": np.arange(5001) * 7}
    cache.get(KEY, lambda: expected)
    (path,) = tmp_path.glob("*.index")
    content = path.read_bytes()
    places = [*rng.integers(0, 8 * len(content), 32).tolist(), *range(0, 8 * 40, 5)]  # anywhere; first bytes
    for number, place in enumerate(places):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        found = cache.get(KEY, lambda: expected)
        assert all((found[name] == expected[name]).all() for name in expected)
        assert len(caplog.messages) == number + 1 and path.read_bytes() == content


def test_a_file_of_the_format_without_checksum_is_built_again(tmp_path: Path) -> None:
    IndexCache(tmp_path).get(KEY, arrays)
    (path,) = tmp_path.glob("*.index")
    path.write_bytes(b"SYNEIDX1" + path.read_bytes()[24:])
    assert (IndexCache(tmp_path).get(KEY, arrays)["ends"] == arrays()["ends"]).all()
    assert path.read_bytes().startswith(b"SYNEIDX2")


def test_a_crash_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    def crash() -> dict[str, np.ndarray]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        IndexCache(tmp_path).get(KEY, crash)
    assert not list(tmp_path.glob("*.index"))
    IndexCache(tmp_path).get(KEY, arrays)


def build_slowly(folder: Path, builder: bool) -> None:
    def build() -> dict[str, np.ndarray]:
        (folder / f"built-{os.getpid()}").touch()
        time.sleep(0.2)
        return arrays()

    found = IndexCache(folder, builder).get(KEY, build)
    assert (found["order"] == arrays()["order"]).all()


def test_one_process_builds_while_the_others_wait(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=build_slowly, args=(tmp_path, rank == 0)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("built-*"))) == 1


def test_a_waiting_process_builds_when_no_builder_comes(tmp_path: Path) -> None:
    found = IndexCache(tmp_path, builder=False, patience_seconds=0.1).get(KEY, arrays)
    assert (found["order"] == arrays()["order"]).all()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data\.cache_dir: cannot write .*file/cache"):
        IndexCache(tmp_path / "file" / "cache").get(KEY, arrays)


compiled = pytest.mark.skipif(
    importlib.util.find_spec("megatron_synE._index") is None, reason="megatron_synE._index is not built"
)


@compiled
def test_compiled_hash_equals_numpy_for_either_dtype() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 65_500, 60_000)
    starts = np.concatenate([[0], np.sort(rng.integers(0, 60_000, 40)), [60_000]])
    expected = fallback.hash_documents(tokens, starts)
    for dtype in (np.uint16, np.int32, np.int64):
        assert (native.hash_documents(tokens.astype(dtype), starts) == expected).all()
    assert len(set(expected.tolist())) == len(set(itertools.pairwise(starts.tolist())))


def test_hash_sees_every_token_and_the_length() -> None:
    document = np.arange(1030, dtype=np.int32)
    variants = [document, document[:-1], np.append(document, 0).astype(np.int32)]
    for place in (0, 1, 511, 512, 513, 1028, 1029):
        changed = document.copy()
        changed[place] += 1
        variants.append(changed)
    hashes = [int(native.hash_documents(variant, np.array([0, len(variant)]))[0]) for variant in variants]
    assert len(set(hashes)) == len(hashes)


def test_hashes_are_uniform() -> None:
    """Documents that differ in one token: 64 buckets by the top bits, chi-square far below its 1e-6 quantile (131)."""
    tokens = np.array([[7, 8, 9, value] for value in range(20_000)], np.int32).ravel()
    hashes = native.hash_documents(tokens, np.arange(0, len(tokens) + 1, 4))
    counts = np.bincount((hashes >> np.uint64(58)).astype(int), minlength=64)
    assert ((counts - 312.5) ** 2 / 312.5).sum() < 131


@compiled
def test_compiled_sort_equals_numpy() -> None:
    rng = np.random.default_rng(1)
    for keys in (rng.integers(0, 2**63, 5000).astype(np.uint64) * np.uint64(2), rng.integers(0, 9, 500), np.empty(0)):
        keys = keys.astype(np.uint64)
        assert (native.sort_documents(keys) == fallback.sort_documents(keys)).all()


@compiled
def test_compiled_gather_equals_numpy_and_refuses_to_leave() -> None:
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 30, 50)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    order = rng.permutation(50).astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(lengths[order])])
    for dtype in (np.uint16, np.int32):
        tokens = rng.integers(0, 60_000, starts[-1]).astype(dtype)
        arguments = (tokens, starts[:-1] * tokens.itemsize, np.arange(51), order, ends)
        for _ in range(100):
            offset = int(rng.integers(0, ends[-1]))
            count = int(rng.integers(0, ends[-1] - offset + 1))
            mine, other = np.empty(count, np.int64), np.empty(count, np.int64)
            places = native.gather(*arguments, offset, mine)
            assert (places == fallback.gather(*arguments, offset, other)).all() and (mine == other).all()
        for offset, count in ((-1, 3), (0, int(ends[-1]) + 1), (int(ends[-1]), 1)):
            with pytest.raises(IndexError, match="leave an order"):
                native.gather(*arguments, offset, np.empty(count, np.int64))
        with pytest.raises(IndexError, match=r"leaves the \.bin"):
            native.gather(tokens[:-100], *arguments[1:], 0, np.empty(int(ends[-1]), np.int64))

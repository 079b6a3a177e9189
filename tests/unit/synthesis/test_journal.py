"""The journal under attack: cut lines, flipped bits, kills between any two steps."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.config.synthesis import SamplingConfig
from megatron_synE.synthesis.finished import FinishedShard, finished_rows, reopen, settled_rows
from megatron_synE.synthesis.folder import JobFolder, SnippetShards
from megatron_synE.synthesis.request import Paid, Settings, request_seed
from megatron_synE.synthesis.shard import Shard
from tests.helpers.fault_server import MODEL, answer_text, fault_server
from tests.helpers.synthesis import PRICES, ToyTasks, check_ledger, config, job_status, prepare, result_files, run_toy

SETTINGS = Settings(MODEL, SamplingConfig())


def open_shard(folder: JobFolder, number: int = 0) -> Shard:
    return Shard(folder, SnippetShards.open(folder), number, SETTINGS, ToyTasks())


def settle(shard: Shard, count: int) -> list[str]:
    """Rows for so many of the snippets that have none; their ids."""
    settled = []
    for row in shard.pending():
        if len(settled) < count:
            row.attempts, row.paid = 1, Paid(10, 20)
            shard.settle(row, row.paid, "accepted", "", {"text": f"about {row.snippet.id}"})
            settled.append(row.snippet.id)
    return settled


def pending(folder: JobFolder) -> Iterator[str]:
    shard = open_shard(folder)
    yield from (row.snippet.id for row in shard.pending())
    shard.close()


def test_rows_come_out_in_the_order_of_the_snippets(tmp_path: Path) -> None:
    folder = prepare(tmp_path, 5)
    shard = open_shard(folder)
    for row in reversed(list(shard.pending())):
        shard.settle(row, None, "failed", "permanent: x")
    assert shard.is_complete and shard.commit(lambda: True)
    shard.close()
    rows = list(finished_rows(folder, SnippetShards.open(folder)))
    assert [row["id"] for row in rows] == [f"web:{number}:0-10" for number in range(5)]
    finished = FinishedShard.read(folder, 0)
    assert finished is not None and finished.tallies.total().counts["failed"] == 5
    assert not folder.journal(0).exists()


def test_a_shard_that_is_another_processs_is_not_put_in_place(tmp_path: Path) -> None:
    folder = prepare(tmp_path, 5)
    shard = open_shard(folder)
    settle(shard, 5)
    assert not shard.commit(lambda: False)
    shard.close()
    assert not folder.rows(0).exists() and folder.journal(0).exists()


@pytest.mark.parametrize("num_cut", [1, 30, 200])
def test_a_line_that_was_cut_is_no_line_and_the_next_one_is_whole(
    num_cut: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = prepare(tmp_path, 5)
    shard = open_shard(folder)
    settled = settle(shard, 3)
    shard.close()
    os.truncate(folder.journal(0), folder.journal(0).stat().st_size - num_cut)
    again = open_shard(folder)
    assert settled[2] in settle(again, 1)
    again.close()
    assert list(pending(folder)) == ["web:3:0-10", "web:4:0-10"]
    assert [row["id"] for row in settled_rows(folder, SnippetShards.open(folder))] == settled


def test_a_flipped_bit_costs_one_answer_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = prepare(tmp_path, 5)
    shard = open_shard(folder)
    settle(shard, 5)
    shard.close()
    content = bytearray(folder.journal(0).read_bytes())
    content[content.index(b"about web:2") + 3] ^= 1
    folder.journal(0).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert list(pending(folder)) == ["web:2:0-10"]
    assert "00000.jsonl: 1 lines are cut or damaged" in caplog.text


def test_a_bit_that_flips_while_the_shard_is_made_never_gets_into_it(tmp_path: Path) -> None:
    folder = prepare(tmp_path, 5)
    shard = open_shard(folder)
    settle(shard, 5)
    content = bytearray(folder.journal(0).read_bytes())
    content[content.index(b"about web:2") + 3] ^= 1
    folder.journal(0).write_bytes(content)
    with pytest.raises(ValueError, match="changed while it was in use"):
        shard.commit(lambda: True)
    assert not folder.rows(0).exists()


def test_a_damaged_finished_shard_is_refused(tmp_path: Path) -> None:
    folder = prepare(tmp_path, 30, shard_rows=10)
    with fault_server() as server:
        run_toy(config(folder.root, server.url))
        before = result_files(folder)
        content = bytearray(folder.rows(1).read_bytes())
        content[100] ^= 1
        folder.rows(1).write_bytes(content)
        with pytest.raises(ValueError, match=r"00001\.jsonl: damaged"):
            list(finished_rows(folder, SnippetShards.open(folder)))
        folder.rows(1).unlink()
        folder.sums(1).unlink()  # as the message says
        folder.sums(2).write_text("{")
        with pytest.raises(ValueError, match=r"00002\.json: cannot be read .*to have the shard's rows counted"):
            run_toy(config(folder.root, server.url))
        folder.sums(2).unlink()
        num_paid = sum(server.paid.values())
        assert run_toy(config(folder.root, server.url)).is_complete
    assert result_files(folder) == before
    assert sum(server.paid.values()) - num_paid == 10  # of the damaged shard only


STEPS = ("fsync", "replace", "link", "unlink")


@pytest.mark.parametrize("is_redone", [False, True])
def test_a_commit_may_be_killed_before_any_of_its_steps(
    is_redone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(tmp_path, 10)
    with fault_server() as server:
        run_toy(config(folder.root, server.url))
        wanted = result_files(folder)
        for step in range(1, 100):
            if is_redone:
                reopen(folder, 0)
            else:
                for path in (folder.root / "results").iterdir():
                    path.unlink()
            if not die_before(step, folder, server.url, monkeypatch):
                break
            run_toy(config(folder.root, server.url))
            assert result_files(folder) == wanted
            assert job_status(folder, PRICES).to_do == 0
            check_ledger(folder, 10)
            assert [path for name in ("journal", "claims") for path in (folder.root / name).iterdir()] == []
        else:
            raise AssertionError("a commit without end")
    assert step > 5
    # With results deleted each round asks anew; with those superseded nothing is ever asked again.
    assert not is_redone or set(server.paid.values()) == {1}


class Dead(BaseException):
    """As after SIGKILL: nothing that follows is done."""


def die_before(step: int, folder: JobFolder, url: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Make the rows and die before the so many-th step of the commit; False where it has fewer."""
    shard = open_shard(folder)
    for row in shard.pending():
        text = answer_text(row.task.messages(row.snippet), request_seed(row.identity, 0))
        row.attempts, row.paid = 1, Paid(10, 20)
        if row.snippet.text.endswith("7"):
            shard.settle(row, row.paid, "rejected", "ends in 7")
        else:
            shard.settle(row, row.paid, "accepted", "", {"text": text})
    left = [step]
    with monkeypatch.context() as patches:
        for name in STEPS:
            patches.setattr(os, name, _deadly(getattr(os, name), left))
        try:
            shard.commit(lambda: True)
        except Dead:
            return True
        finally:
            left[0] = 10**9
            shard.close()
    return False


def _deadly(function: Any, left: list[int]) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] <= 0:
            raise Dead
        return function(*arguments, **options)

    return call

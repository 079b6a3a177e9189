"""A process of a job against a server that misbehaves: the ledger closes, nothing is lost, nothing is paid twice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from megatron_synE.synthesis.client import EndpointError
from megatron_synE.synthesis.engine import Engine
from megatron_synE.synthesis.finished import settled_rows
from megatron_synE.synthesis.folder import JobFolder, SnippetShards
from megatron_synE.synthesis.status import job_status
from tests.helpers.fault_server import ANSWER_FAULTS, FAULTS, LASTING_FAULTS, Behaviour, fault_server
from tests.helpers.synthesis import (
    PRICES,
    ToyTask,
    ToyTasks,
    check_ledger,
    config,
    prepare,
    result_files,
    rows_of,
    run_toy,
)  # fmt: skip


def test_a_healthy_server_answers_each_snippet_once(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", 250)
    with fault_server() as server:
        assert run_toy(config(folder.root, server.url)).is_complete
    assert check_ledger(folder, 250) == {("accepted", ""): 225, ("rejected", "ends in 7"): 25}
    assert set(server.paid.values()) == {1} and len(server.paid) == 250
    assert sorted(path.name for path in (folder.root / "journal").iterdir()) == []
    assert sorted(path.name for path in (folder.root / "claims").iterdir()) == []


def test_every_kind_of_fault_is_survived(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", 400)
    faults = dict.fromkeys((*FAULTS, *ANSWER_FAULTS, *LASTING_FAULTS), 0.05)
    with fault_server(Behaviour(faults)) as server:
        run_toy(config(folder.root, server.url, endpoint={"timeout_seconds": 0.5}, pace={"window": 128}))
    found = check_ledger(folder, 400)
    assert set(server.num_requests) == {"sound", *faults}
    assert found["failed", "permanent: refused"] and found["failed", "permanent: status 400 context_length_exceeded"]
    assert sum(found.values()) == 400 and found["accepted", ""] > 250
    assert sum(server.paid.values()) == sum(row["attempts"] for row in rows_of(folder))


def test_results_do_not_depend_on_faults_nor_on_the_window(tmp_path: Path) -> None:
    answer_faults = dict.fromkeys((*ANSWER_FAULTS, *LASTING_FAULTS), 0.1)
    files = []
    for name, faults, window in (("calm", {}, 8), ("stormy", dict.fromkeys(set(FAULTS) - {"stall"}, 0.06), 64)):
        folder = prepare(tmp_path / name, 200)
        with fault_server(Behaviour({**answer_faults, **faults})) as server:
            run_toy(config(folder.root, server.url, pace={"window": window}))
        files.append(result_files(folder))
    assert files[0] == files[1]


def test_a_snippet_that_fails_again_and_again_is_given_up(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", 60)
    with fault_server(Behaviour({"unparsable": 0.5, "malformed": 0.5})) as server:
        run_toy(config(folder.root, server.url, pace={"tries": 3, "attempts": 2}))
    reasons = Counter(row["reason"] for row in rows_of(folder) if row["outcome"] == "failed")
    assert set(reasons) == {"transient: malformed answer", "content: unparsable"}
    assert all(row["attempts"] == 2 for row in rows_of(folder) if row["reason"].startswith("content"))


def test_a_job_that_was_stopped_goes_on_and_pays_nothing_twice(tmp_path: Path) -> None:
    folder, engines, judged = prepare(tmp_path / "job", 300), list[Engine](), [0]

    class StopsSoon(ToyTask):
        def judge(self, *arguments: Any) -> Any:
            judged[0] += 1
            if judged[0] == 80:
                engines[0].stop("stopped by SIGTERM")
            return super().judge(*arguments)

    with fault_server(Behaviour({"unparsable": 0.3})) as server:
        tasks = ToyTasks((StopsSoon("toy"), StopsSoon("other")))
        ending = run_toy(config(folder.root, server.url), tasks, on_start=engines.append)
        assert (ending.reason, ending.is_complete) == ("stopped by SIGTERM", False)
        num_settled = len(list(settled_rows(folder, SnippetShards.open(folder))))
        assert job_status(folder, PRICES).to_do == 300 - num_settled
        assert sum(server.paid.values()) == job_status(folder, PRICES).rows.total().counts["answers"]
        assert run_toy(config(folder.root, server.url)).is_complete
    check_ledger(folder, 300)
    assert set(server.paid.values()) == {1}


def test_the_budget_ends_a_job_and_a_larger_one_lets_it_go_on(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", 300)
    with fault_server() as server:
        ending = run_toy(config(folder.root, server.url, budget={"accepted": 50}))
        assert ending.reason == "stopped at the budget of 50 accepted snippets" and not ending.is_complete
        assert job_status(folder, PRICES).rows.total().counts["accepted"] == 50
        prices = {"prompt_per_million": 1.0, "completion_per_million": 2.0}
        cost = 100 * 50e-6  # an answer costs 10 × 1 + 20 × 2 millionths
        job = config(folder.root, server.url, budget={"cost": cost}, prices=prices)
        assert "USD" in run_toy(job).reason
        assert 0.95 * cost <= job_status(folder, job.prices).rows.total().cost(job.prices) <= 1.05 * cost
        assert run_toy(config(folder.root, server.url)).is_complete
    check_ledger(folder, 300)
    assert set(server.paid.values()) == {1}


def test_an_edited_prompt_redoes_its_rows_only_and_going_back_is_free(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", 150, shard_rows=50)
    with fault_server() as server:
        run_toy(config(folder.root, server.url))
        before, num_paid = result_files(folder), sum(server.paid.values())
        edited = ToyTasks((ToyTask("toy"), ToyTask("other", fingerprint="2")))
        assert run_toy(config(folder.root, server.url), edited).is_complete
        assert sum(server.paid.values()) - num_paid == 50  # every third snippet is of the kind `other`
        changed = result_files(folder)
        kept = [row for row in rows_of(folder) if row["kind"] == "toy"]
        assert all(orjson.dumps(row) in b"".join(before.values()) for row in kept) and changed != before
        assert job_status(folder, PRICES).former.total().counts["answers"] == 50
        run_toy(config(folder.root, server.url))
        assert result_files(folder) == before and sum(server.paid.values()) - num_paid == 50


def test_answers_to_a_former_prompt_survive_in_a_shard_that_was_not_finished(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", 90)
    with fault_server() as server:
        run_toy(config(folder.root, server.url, budget={"accepted": 40}))
        edited = ToyTasks((ToyTask("toy"), ToyTask("other", fingerprint="2")))
        run_toy(config(folder.root, server.url), edited)
        num_paid = sum(server.paid.values())
        run_toy(config(folder.root, server.url))
        assert run_toy(config(folder.root, server.url), edited).is_complete
    again = {count for count in server.paid.values()}
    assert again == {1} and sum(server.paid.values()) > num_paid  # those that the first start had not reached


def test_another_configuration_is_refused_unless_redone(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", 30)
    with fault_server() as server:
        run_toy(config(folder.root, server.url))
        before = result_files(folder)
        hotter = config(folder.root, server.url, sampling={"temperature": 1.0})
        with pytest.raises(ValueError, match=r'another configuration \(sampling was .*"temperature":0\.7.*--redo'):
            run_toy(hotter)
        assert result_files(folder) == before
        assert run_toy(hotter, redo=True).is_complete
        assert result_files(folder) != before and sum(server.paid.values()) == 60
        folder.manifest.write_text(json.dumps({"num_snippets": 31, "shard_rows": 100}))
        with pytest.raises(ValueError, match="of other snippets"):
            run_toy(hotter)


@pytest.mark.parametrize("words", ["sk-secret-1"])
def test_a_refused_key_is_told_without_the_key(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare(tmp_path / "job", 5)
    monkeypatch.setenv("TOY_KEY", words)
    with fault_server(Behaviour(key="another")) as server:
        job = config(folder.root, server.url, endpoint={"api_key_variable": "TOY_KEY"})
        with pytest.raises(EndpointError, match=r"TOY_KEY is refused .*status 401.*\[key\]") as told:
            run_toy(job)
        server.behaviour.key = words
        run_toy(job)
    assert words not in str(told.value)
    written = b"".join(path.read_bytes() for path in folder.root.rglob("*") if path.is_file())
    assert words.encode() not in written and len(rows_of(folder)) == 5


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"endpoint": {"api_key_variable": "NO_SUCH_KEY"}}, "NO_SUCH_KEY is not set; export it"),
        ({"endpoint": {"base_url": "http://127.0.0.1:9/v1", "start_seconds": 0.0}}, "start the server, or correct"),
        ({"endpoint": {"base_url": "http://no.such.host.invalid/v1"}}, "no.such.host.invalid.*correct it"),
        ({"endpoint": {"model": "toy-2"}}, "endpoint.model: toy-2 is not at .*which has toy-1"),
        ({"pace": {"window": 4}, "endpoint": {"base_url": "{url}/wrong"}}, "status 404.*is /v1 missing"),
    ],
)
def test_a_wrong_endpoint_is_one_clear_error(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", 30)
    with fault_server() as server:
        base = {"endpoint": {"base_url": server.url}}
        for section, fields in changes.items():
            values = {name: value.format(url=server.url) if name == "base_url" else value
                      for name, value in fields.items()}  # fmt: skip
            base[section] = {**base.get(section, {}), **values}
        with pytest.raises(EndpointError, match=message):
            run_toy(config(folder.root, server.url, **base))
    assert rows_of_journals(folder) == [] and job_status(folder, PRICES).to_do == 30


@pytest.mark.parametrize(
    "status, error, message",
    [
        (400, {"message": "no such parameter", "code": "bad_request"}, "status 400 bad_request: no such parameter"),
        (404, {"message": "no such model"}, "status 404.*no such model.*endpoint.model"),
        (402, {"message": "pay first"}, "no credit left"),
        (429, {"message": "pay first", "code": "insufficient_quota"}, "no credit left"),
    ],
)
def test_what_every_request_meets_is_no_snippets_fault(
    status: int, error: dict[str, str], message: str, tmp_path: Path
) -> None:
    folder = prepare(tmp_path / "job", 30)
    with fault_server() as server:
        run_toy(config(folder.root, server.url, budget={"accepted": 5}))
        server.behaviour.error = (status, error)
        with pytest.raises(EndpointError, match=message):
            run_toy(config(folder.root, server.url))
        assert [row["outcome"] for row in rows_of_journals(folder)].count("failed") == 0
        server.behaviour.error = None
        assert run_toy(config(folder.root, server.url)).is_complete
    assert set(server.paid.values()) == {1}


def test_a_server_that_starts_slowly_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_synE.synthesis.client.POLL_SECONDS", 0.01)
    folder = prepare(tmp_path / "job", 20)
    with fault_server(Behaviour(start_requests=5)) as server, caplog.at_level(logging.WARNING):
        assert run_toy(config(folder.root, server.url)).is_complete
    assert "status 503; waiting up to 600 s for the server" in caplog.text


def test_a_server_that_is_gone_ends_the_run_after_the_patience(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", 20)
    with fault_server() as server:
        run_toy(config(folder.root, server.url, budget={"accepted": 5}))
        server.behaviour.faults = {"reset": 1.0}
        with pytest.raises(EndpointError, match=r"no answer for .*patience_seconds.*closed before the end"):
            run_toy(config(folder.root, server.url, pace={"patience_seconds": 0.5}))
        server.behaviour.faults = {}
        assert run_toy(config(folder.root, server.url)).is_complete
    check_ledger(folder, 20)


def test_a_damaged_snippet_file_is_named_and_answers_are_kept(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", 150)
    content = folder.snippets(1).read_bytes()
    folder.snippets(1).write_bytes(content.replace(b'{"id": "web:120', b'{"id" "web:120'))
    with fault_server() as server:
        with pytest.raises(ValueError, match=r"snippets/00001\.jsonl:21: no snippet"):
            run_toy(config(folder.root, server.url))
        folder.snippets(1).unlink()
        with pytest.raises(ValueError, match=r"00001\.jsonl: cannot be read"):
            run_toy(config(folder.root, server.url))
        folder.snippets(1).write_bytes(b"\n".join(content.splitlines()[:-3]) + b"\n")
        with pytest.raises(ValueError, match="47 snippets, of 50 prepared"):
            run_toy(config(folder.root, server.url))
        folder.snippets(1).write_bytes(content)
        assert run_toy(config(folder.root, server.url)).is_complete
    check_ledger(folder, 150)
    assert set(server.paid.values()) == {1}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_full_disk_loses_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 40 answers the journal takes none, until the reserve is given up."""
    folder, written, reserve_is_there = prepare(tmp_path / "job", 200), [0], [True]
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if data.startswith(b"\n") or b'"outcome"' in data:
            written[0] += 1
            if written[0] > 40 and reserve_is_there[0]:
                reserve_is_there[0] = (folder.root / "claims").glob("reserve.*").__next__().exists()
                return write(descriptor, data[:10])  # what the disk still takes
        return write(descriptor, data)

    from megatron_synE.synthesis import reserve

    release = reserve.Reserve.release

    def give_up(self: reserve.Reserve) -> None:
        reserve_is_there[0] = False
        release(self)

    monkeypatch.setattr(reserve.Reserve, "release", give_up)
    with fault_server(Behaviour(latency_seconds=0.01)) as server:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match=r"journal.*No space left on device; what was answered is kept"):
            run_toy(config(folder.root, server.url, pace={"window": 16}))
        monkeypatch.setattr(os, "write", write)
        assert sum(server.paid.values()) == len(rows_of_journals(folder)) + len(rows_of(folder))
        assert run_toy(config(folder.root, server.url)).is_complete
    check_ledger(folder, 200)
    assert set(server.paid.values()) == {1}


def test_a_fault_in_a_task_ends_the_run_and_what_was_answered_is_kept(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", 60)

    class Broken(ToyTask):
        def judge(self, snippet: Any, answer: str, finish_reason: str) -> Any:
            if snippet.text == "text 31":
                raise ZeroDivisionError("of the task")
            return super().judge(snippet, answer, finish_reason)

    with fault_server() as server:
        with pytest.raises(ZeroDivisionError):
            run_toy(config(folder.root, server.url), ToyTasks((Broken("toy"), Broken("other"))))
        assert run_toy(config(folder.root, server.url)).is_complete
    body_of_31 = [count for count in server.paid.values() if count > 1]
    assert body_of_31 == [2] and len(rows_of(folder)) == 60


def rows_of_journals(folder: JobFolder) -> list[dict[str, Any]]:
    """Rows that are in no finished shard yet."""
    files = sorted((folder.root / "journal").glob("*.jsonl"))
    lines = [json.loads(line[17:]) for file in files for line in file.read_bytes().splitlines() if line[16:17] == b" "]
    return [line for line in lines if "outcome" in line]


def test_the_identity_of_a_request_depends_on_what_it_should(tmp_path: Path) -> None:
    from megatron_synE.config.synthesis import SamplingConfig
    from megatron_synE.synthesis.request import Settings, request_identity
    from megatron_synE.synthesis.task import Snippet

    snippet, task, settings = Snippet("a", "text"), ToyTask("toy"), Settings("m", SamplingConfig())
    base = request_identity(snippet, settings.fingerprint(task))
    others = [
        request_identity(replace(snippet, id="b"), settings.fingerprint(task)),
        request_identity(replace(snippet, text="other"), settings.fingerprint(task)),
        request_identity(snippet, settings.fingerprint(ToyTask("other"))),
        request_identity(snippet, settings.fingerprint(ToyTask("toy", "2"))),
        request_identity(snippet, Settings("n", SamplingConfig()).fingerprint(task)),
        request_identity(snippet, Settings("m", SamplingConfig(seed=1)).fingerprint(task)),
        request_identity(snippet, Settings("m", SamplingConfig(extra={"k": 1})).fingerprint(task)),
    ]
    assert len({base, *others}) == 8
    same = Snippet("a", "text", {"corpus": "web"}, "physics", "en")
    assert request_identity(same, Settings("m", SamplingConfig()).fingerprint(ToyTask("toy"))) == base
    assert len(base) == 2 * hashlib.blake2b(digest_size=16).digest_size


def test_a_finished_job_needs_no_server(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "job", 40)
    with fault_server() as server:
        job = config(folder.root, server.url, endpoint={"start_seconds": 0.0})
        assert run_toy(job).is_complete
    assert run_toy(job).is_complete  # the server is gone

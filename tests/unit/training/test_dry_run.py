"""A dry run says what a start would do or why it would fail, and changes nothing on disk."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_synE.config.launch import Launch
from megatron_synE.config.parse import parse_job
from megatron_synE.runtime.run_lock import FolderLock
from megatron_synE.training.dry_run import dry_run
from tests.helpers.distributed import run_distributed
from tests.helpers.hf_llama import make_hf_llama
from tests.helpers.runs import train, write_job


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run that was stopped after six of its steps."""
    arguments = write_job(tmp_path_factory.mktemp("stopped"))
    run_distributed(train, 1, [*arguments, "--training.exit_after_steps", "6"])
    return arguments


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    return write_job(tmp_path)


def told(arguments: list[str], **launch: Any) -> list[str]:
    lines: list[str] = []
    dry_run(parse_job(arguments), Launch(dry_run=True, **launch), lines.append)
    return lines


def refused(arguments: list[str], **launch: Any) -> str:
    with pytest.raises(ValueError) as raised:
        told(arguments, **launch)
    assert str(raised.value).startswith("the run would not start:\n")
    return str(raised.value).partition("\n")[2]


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    def look() -> dict[str, tuple[int, int]]:
        paths = [folder, *folder.rglob("*")]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}

    before = look()
    yield
    assert look() == before


def edited(arguments: list[str], section: str, **values: Any) -> list[str]:
    file = Path(arguments[1])
    job = yaml.safe_load(file.read_text())
    job.setdefault(section, {}).update(values)
    file.write_text(yaml.safe_dump(job))
    return arguments


def test_the_plan_of_a_run_that_begins(arguments: list[str], tmp_path: Path) -> None:
    with unchanged(tmp_path):
        lines = told(arguments, world_size=2)
    text = "\n".join(lines)
    assert "layout  2 processes: TP 1 PP 1 CP 1 DP 2" in lines
    assert "start   from random weights" in lines and "web/maths" in text
    assert "steps   0 of 20 are done; 128 tokens each" in lines
    assert "saves   7 checkpoints" in text and lines[-1] == "the run would start"


def test_a_corpus_that_was_copied_is_hashed_and_its_sidecar_left_as_it_is(arguments: list[str], tmp_path: Path) -> None:
    os.utime(tmp_path / "web.bin", (1, 1))
    with unchanged(tmp_path):
        assert told(arguments)[-1] == "the run would start"


def test_a_run_that_goes_on_and_what_is_changed_in_it(stopped: list[str]) -> None:
    folder = Path(stopped[1]).parent
    with unchanged(folder):
        lines = told([*stopped, "--optimizer.lr", "1e-4"])
    assert f"start   resumes after step 6, from {folder / 'run' / 'step_00000006'}" in lines
    assert "changed since the checkpoint: optimizer.lr  0.001 → 0.0001" in lines
    assert "steps   6 of 20 are done; 128 tokens each" in lines


def test_everything_is_told_in_one_message(arguments: list[str], tmp_path: Path) -> None:
    """Two files that are missing, a batch that does not divide, a folder that cannot be one, a length too long."""
    (tmp_path / "book.bin").unlink()
    (tmp_path / "web.topic.npy").unlink()
    edited(arguments, "checkpoint", save=str(tmp_path / "job.yaml" / "run"))
    with unchanged(tmp_path):
        message = refused(arguments, world_size=3)
    for place in ("book.bin", "topic", "training.global_batch_size", "checkpoint.save"):
        assert place in message, message


def test_what_was_only_found_after_the_processes_had_met(arguments: list[str], stopped: list[str]) -> None:
    assert "training.train_steps: 99 is more than the 20 steps" in refused([*arguments, "--training.train_steps", "99"])
    message = refused([*arguments, "--training.global_batch_size", "200"])
    assert "data.stages: 160 samples are less than one global batch of 200" in message
    message = refused([*stopped, "--model.num_layers", "2"])
    assert "num_layers is 1, this run has 2" in message


def test_a_run_that_is_under_way_is_named(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_synE.runtime.run_lock.PATIENCE_SECONDS", 0.0)
    lock = FolderLock("checkpoint.save", tmp_path / "run")
    lock.acquire()
    with unchanged(tmp_path):
        assert f"checkpoint.save: {tmp_path / 'run'} is in use by host" in refused(arguments)
    lock.release()
    assert told(arguments)[-1] == "the run would start"


def test_a_corpus_of_another_vocabulary(arguments: list[str], tmp_path: Path) -> None:
    sidecar = tmp_path / "book.json"
    content = json.loads(sidecar.read_text())
    content["tokenizer"] = {"type": "hf", "name": "other", "vocab_size": 9000, "fingerprint": "a"}
    sidecar.write_text(json.dumps(content))
    assert "tokenised with a vocabulary of 9000 (other), the model has 300" in refused(arguments)


def test_what_the_machine_lacks_counts_only_where_the_run_starts(arguments: list[str]) -> None:
    arguments = [*arguments, "--model.transformer_impl", "transformer_engine"]
    assert "model.transformer_impl" in refused(arguments)
    lines = told(arguments, elsewhere=True)
    assert lines[-1] == "the run would start" and any(line.startswith("note    model.transf") for line in lines)


def test_a_damaged_checkpoint_is_passed_over_as_a_run_would(stopped: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(Path(stopped[1]).parent, folder)
    arguments = [*stopped, "--checkpoint.save", str(folder / "run")]
    (folder / "run" / "step_00000006" / "state.json").write_text("{}")
    lines = told(arguments)
    assert any("resumes after step 3" in line for line in lines)
    (folder / "run" / "step_00000003" / "state.json").write_text("{}")
    assert "no complete checkpoint is left" in refused(arguments)


def test_under_torchrun_it_is_refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start it without torchrun"):
        told(arguments)


def test_a_hugging_face_model_that_cannot_be_started_from(arguments: list[str], tmp_path: Path) -> None:
    hf_dir, sizes = tmp_path / "hf", edited(arguments, "checkpoint", init_from_hf=str(tmp_path / "hf"))
    job = yaml.safe_load(Path(arguments[1]).read_text())
    message = refused([*arguments, "--training.global_batch_size", "7"])
    assert f"checkpoint.init_from_hf: {hf_dir}" in message and "training.global_batch_size: 7 is not div" in message
    make_hf_llama(hf_dir, "gqa")
    assert "num_layers is 4, this run has 1" in refused(sizes)
    Path(arguments[1]).write_text(yaml.safe_dump({**job, "model": {}}))
    assert f"start   from the weights of {hf_dir}" in told(arguments)
    weights = hf_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"checkpoint.init_from_hf: {weights}: not a whole safetensors file" in refused(arguments)


def test_indices_that_the_run_could_not_keep(arguments: list[str], tmp_path: Path) -> None:
    """Corpora in a folder that is only read, and no cache_dir elsewhere: the dry run itself does without."""
    message = refused([*arguments, "--data.cache_dir", str(tmp_path / "job.yaml" / "cache")])
    assert "data.cache_dir: cannot write" in message and "name a folder that is writable" in message
    elsewhere = str(tmp_path / "new" / "cache")
    assert told([*arguments, "--data.cache_dir", elsewhere])[-1] == "the run would start"
    assert not Path(elsewhere).exists()

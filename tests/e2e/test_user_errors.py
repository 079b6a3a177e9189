"""What a user gets wrong: one message that names the field and the fix, exit status 1, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.commands import ROOT, pretrain, run, run_tool, tokenised_sample


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tokenised_sample(tmp_path_factory.mktemp("corpus"), "book_en")["book_en"])


@pytest.fixture
def config(tmp_path: Path, corpus: str) -> Path:
    """A job that would run, were it not for what the test changes."""
    job = {
        "model": {"preset": "llama3_tiny"},
        "precision": {"dtype": "fp32"},
        "data": {
            "seq_length": 128,
            "sources": {"book": {"prefix": corpus}},
            "stages": [{"name": "only", "tokens": 4096, "weights": {"book": 1}}],
        },
        "checkpoint": {"save": str(tmp_path / "run")},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def entry(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The trainer as one process, without torchrun."""
    return run(sys.executable, ROOT / "pretrain_llama3_synE.py", "--config", config, *arguments, cwd=config.parent)


def refused(result: subprocess.CompletedProcess[str], config: Path) -> str:
    """What was said, after checking that it was an error without a traceback of ours and without a trace on disk."""
    assert result.returncode == 1
    assert [path.name for path in config.parent.iterdir()] == [config.name]
    assert "pretrain_llama3_synE: " in result.stderr
    message = result.stderr.split("pretrain_llama3_synE: ")[1]
    assert "Traceback" not in message
    return message


def edited(config: Path, section: str, **values: object) -> Path:
    job = yaml.safe_load(config.read_text())
    job.setdefault(section, {}).update(values)
    config.write_text(yaml.safe_dump(job))
    return config


def test_an_unknown_key_in_the_file(config: Path) -> None:
    edited(config, "optimizer", learning_rate=1e-3)
    assert "learning_rate" in refused(entry(config), config)


def test_an_unknown_key_on_the_command_line(config: Path) -> None:
    message = refused(entry(config, "--optimizer.learing_rate", "1"), config)
    assert "learing_rate" in message


def test_a_config_file_that_is_not_there(config: Path) -> None:
    message = refused(entry(config.with_name("no.yaml")), config)
    assert "no.yaml" in message


def test_everything_wrong_is_told_in_one_message(config: Path) -> None:
    """Sizes that do not divide, a budget of zero, a batch that does not divide, a missing folder: all at once."""
    edited(config, "model", num_attention_heads=6, hidden_size=128)
    edited(config, "training", micro_batch_size=3, global_batch_size=8)
    edited(config, "checkpoint", load=str(config.with_name("nowhere")))
    job = yaml.safe_load(config.read_text())
    job["data"]["stages"][0]["tokens"] = 0
    config.write_text(yaml.safe_dump(job))
    message = refused(entry(config), config)
    for field in ("model.hidden_size", "training.global_batch_size", "checkpoint.load", "data.stages"):
        assert field in message


def test_a_corpus_that_is_missing_and_a_model_with_another_vocabulary(config: Path, corpus: str) -> None:
    sources = {"book": {"prefix": corpus}, "lost": {"prefix": str(config.with_name("lost"))}}
    edited(config, "data", sources=sources)
    job = yaml.safe_load(config.read_text())
    job["data"]["stages"][0]["weights"] = {"book": 0.5, "lost": 0.5}
    config.write_text(yaml.safe_dump(job))
    message = refused(entry(config, "--model.vocab_size", "32000"), config)
    assert str(config.with_name("lost")) in message
    assert "vocabulary of 4096" in message and "32000" in message


def test_a_place_for_checkpoints_that_cannot_be_one_is_told_before_the_start(config: Path) -> None:
    """Defect 6: this was found at the first save."""
    message = refused(entry(config, "--checkpoint.save", str(config / "run")), config)
    assert f"checkpoint.save: {config} is no directory" in message
    message = refused(entry(config, "--model.hidden_size", str(2**20), "--model.num_layers", "1000"), config)
    assert "checkpoint.save:" in message and "bytes free, one checkpoint needs" in message


def test_not_enough_processes_is_told_once_under_torchrun(config: Path) -> None:
    arguments = ["--config", config, "--parallel.tensor_model_parallel_size", "4"]
    result = pretrain(2, *arguments, cwd=config.parent)
    refused_by_torchrun = result.stderr.count("pretrain_llama3_synE: ")
    assert result.returncode == 1 and refused_by_torchrun == 1
    assert "needs a multiple of 4 processes, but 2 were started" in result.stderr
    assert [path.name for path in config.parent.iterdir()] == [config.name]


def test_the_same_is_found_by_a_dry_run_the_doctor_and_the_plan(config: Path, corpus: str) -> None:
    """The doctor said `everything is there` without looking for the data; the plan took a corpus of any vocabulary."""
    dry = entry(config, "--dry_run")
    assert dry.returncode == 0 and dry.stdout.endswith("the run would start\n"), dry.stderr
    sources = {"book": {"prefix": corpus}, "lost": {"prefix": str(config.with_name("lost")), "topics": True}}
    edited(config, "data", sources=sources)
    job = yaml.safe_load(config.read_text())
    job["data"]["stages"][0]["weights"] = {"book": 0.5, "lost": 0.5}
    config.write_text(yaml.safe_dump(job))
    options = ["--config", config, "--model.vocab_size", "32000"]
    doctor, plan = run_tool("doctor", *options), run_tool("inspect_stream", *options)
    dry = entry(config, "--dry_run", "--model.vocab_size", "32000")
    assert "everything is there" not in doctor.stdout
    for result, said in ((doctor, doctor.stdout), (plan, plan.stderr), (dry, refused(dry, config))):
        assert result.returncode == 1
        assert f"data.sources.lost: {config.with_name('lost')}.idx: no such file" in said, said
        assert "vocabulary of 4096" in said and "32000" in said

"""Mistakes in a configuration are told by the user's own name for the place, with the nearest right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_synE.config.launch import Launch
from megatron_synE.config.parse import parse_job


def refused(tmp_path: Path, text: str, *arguments: str) -> str:
    file = tmp_path / "job.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as raised:
        parse_job(["--config", str(file), *arguments])
    message = str(raised.value)
    assert "class_path" not in message and "<class" not in message and "typing." not in message
    return message


@pytest.mark.parametrize(
    "text, told",
    [
        ("data: {heldout_sampels: 3}", "data.heldout_sampels: unknown; did you mean data.heldout_samples?"),
        ("dta: {seed: 1}", "dta: unknown; did you mean data?"),
        (
            "data: {sources: {web_zh: {prefix: x, heldout_fractoin: 0.1}}}",
            "data.sources.web_zh.heldout_fractoin: unknown; did you mean data.sources.web_zh.heldout_fraction?",
        ),
        ("data: {sources: {web_zh: {prefix: x, heldout_fraction: much}}}",
         "data.sources.web_zh.heldout_fraction: 'much' is not a number"),
        ("data: {sources: {web_zh: {prefix: x, order: suffled}}}",
         "data.sources.web_zh.order: 'suffled' is not one of stored, shuffled,"),
        ("data: {stages: [{name: a, tokens: 1}, {name: b, tokenz: 3}]}",
         "data.stages.b.tokenz: unknown; did you mean data.stages.b.tokens?"),
        ("data: {adjustment: {schedule: [{at_tokens: x}]}}",
         "data.adjustment.schedule[0].at_tokens: 'x' is not a whole number"),
        ("data: {stages: [{name: a, tokens: 1.5e9}]}",
         "data.stages.a.tokens: '1.5e9' is not a whole number as it is written here; write 1500000000"),
        ("model: {rope_scaling: {factr: 3}}", "model.rope_scaling.factr: unknown; did you mean"),
        ("training: {lr: 1}", "training.lr: unknown; did you mean optimizer.lr?"),
        ("optimizer: {learning_rate: 1}", "optimizer.learning_rate: unknown; optimizer has lr, weight_decay"),
        ("training: {rampup_batch_size: [1, 2]}", "training.rampup_batch_size: [1, 2] is not a list of 3 values"),
        ("training: 3", "training: 3 is not a mapping"),
        ("model: {}\nevaluation:\n  # all by default\n", "evaluation: null is not a mapping of names to values; leave"),
        ("training: {seed: null}", "training.seed: null is not a whole number; leave the line out"),
        ("data: {sources: {web: {language: zh}}}", "data.sources.web.prefix: missing"),
        ("data: {stages: [{tokens: 3}]}", "data.stages[0].name: missing"),
        ("data: {sources: {2024: {prefix: x}}}", "data.sources.2024: a name is text; write '2024'"),
        ("data: {sources: {web: x.bin}}", "data.sources.web: 'x.bin' is not a mapping"),
        ("training: {seed: 1, seed: 2}", "line 1: seed is given twice"),
        ("data: {sources: {web: {prefix: a}, web: {prefix: b}}}", "web is given twice"),
        ("- 3", "holds no sections"),
        ("a: [", "job.yaml: not YAML"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file(tmp_path: Path, text: str, told: str) -> None:
    assert told in refused(tmp_path, text)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--training.sed", "3"], "--training.sed: unknown; did you mean --training.seed?"),
        (["--lr", "3"], "--lr: unknown; did you mean --optimizer.lr?"),
        (["--data.sources.web.prefx=x"], "--data.sources.web.prefx: unknown; did you mean --data.sources.web.prefix?"),
        (["--training.seed.x", "3"], "--training.seed.x: training.seed has no fields"),
        (["--training.seed", "many"], "training.seed: 'many' is not a whole number"),
        (["--data.sources", '{"web": {"prefx": "a"}}'], "data.sources.web.prefx: unknown"),
        (["--confg", "x"], "--confg: unknown; did you mean --config?"),
        (["--dry_run"], "--dry_run: unknown"),
    ],
)
def test_a_mistake_on_the_command_line(tmp_path: Path, arguments: list[str], told: str) -> None:
    assert told in refused(tmp_path, "data: {seed: 1}", *arguments)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, "data: {sed: 1, heldout_sampels: 2}\nmodle: {}", "--optimizer.lrr", "1")
    assert [line.split(":")[0] for line in message.splitlines()[:4]] == [
        "modle", "data.sed", "data.heldout_sampels", "--optimizer.lrr",
    ]  # fmt: skip
    message = refused(tmp_path, "data: {seed: x, heldout_samples: y}")
    assert [line.split(":")[0] for line in message.splitlines()[:2]] == ["data.seed", "data.heldout_samples"]


def test_what_is_right_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "data:\n  sources: {web: {prefix: a, topic_shares: {law: 1/3, maths: 2/3}, topics: true}}\n"
        "  stages: [{name: one, tokens: 1_000_000, weights: {web: 1}}]\noptimizer: {lr: 1e-5, adam_eps: 1.0e-8}\n"
        "training: {train_steps: null, rampup_batch_size: [1, 1, 10]}\nmodel: {rope_scaling: {factor: 2}}\n",
        encoding="utf-8",
    )
    job = parse_job(["--config", str(file), "--data.sources.web.order", "stored", "--training.seed=3"])
    assert job.data.stages[0].tokens == 10**6 and job.data.sources["web"].order == "stored"
    assert job.optimizer.lr == 1e-5 and job.training.seed == 3 and job.model.rope_scaling is not None


@pytest.mark.parametrize("field", ["data.sources", "data.stages", "data.adjustment.schedule", "model.rope_scaling"])
def test_the_fields_of_one_entry_have_a_help(field: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_job([f"--{field}.help"])
    assert stopped.value.code == 0 and "default" in capsys.readouterr().out


def test_no_arguments_are_the_defaults() -> None:
    assert parse_job([]).training.seed == 1234


def test_options_of_a_start_are_no_part_of_the_job(tmp_path: Path) -> None:
    launch = Launch()
    job = parse_job(["--dry_run", "--world_size", "4", "--training.seed", "5"], launch)
    assert (launch.dry_run, launch.world_size, job.training.seed) == (True, 4, 5)
    with pytest.raises(ValueError, match="--world_size: only for --dry_run"):
        parse_job(["--world_size", "4"], Launch())
    with pytest.raises(ValueError, match="--world_size: 0 is not positive"):
        parse_job(["--dry_run", "--world_size", "0"], Launch())
    file = tmp_path / "job.yaml"
    file.write_text("dry_run: true", encoding="utf-8")
    with pytest.raises(ValueError, match="dry_run: unknown"):
        parse_job(["--config", str(file)], Launch())

"""Command line and YAML, and contradictions: all told at once, each with its field and a fix."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron_synE.config.job import JobConfig
from megatron_synE.config.model import PRESETS, LlamaArchitecture, ModelConfig
from megatron_synE.config.parse import parse_job
from megatron_synE.config.precision import PrecisionConfig

DATA = ["--data.sources", '{"web": {"prefix": "web"}}', "--data.seq_length", "128",
        "--data.stages", '[{"name": "one", "tokens": 99999, "weights": {"web": 1}}]']  # fmt: skip


TENSORWISE = ["--precision.fp8", "hybrid", "--precision.fp8_recipe", "tensorwise"]
PRECISION_AWARE = ["--optimizer.use_precision_aware_optimizer", "true"]


def job(*arguments: str) -> JobConfig:
    return parse_job([*DATA, "--model.preset", "llama3_tiny", *arguments])


def test_a_good_job_has_no_problems() -> None:
    assert job().problems(world_size=1) == []


def test_bf16_moments_are_fine_with_a_beta_that_they_can_follow() -> None:
    moments = ["--optimizer.exp_avg_dtype", "bf16", "--optimizer.exp_avg_sq_dtype", "bf16"]
    assert job(*PRECISION_AWARE, *moments, "--optimizer.adam_beta2", "0.99").problems(world_size=1) == []


def test_command_line_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("model: {preset: tinyllama_1_1b}\noptimizer: {lr: 3.0e-4, weight_decay: 0.0}\n", encoding="utf-8")
    parsed = parse_job(["--config", str(file), "--optimizer.lr", "1e-3"])
    assert parsed.model.preset == "tinyllama_1_1b"
    assert parsed.optimizer.lr == 1e-3
    assert parsed.optimizer.weight_decay == 0.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.colour", "red"], "model.colour"),
        (["--training.micro_batch_size", "many"], "training.micro_batch_size"),
        (["--precision.dtype", "fp16"], "precision.dtype"),
        (["--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_what_cannot_be_parsed_is_named(arguments: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        job(*arguments)


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_job(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Samples of one optimizer step over all processes." in text
    assert "Processes that share each layer." in text


def test_print_config_is_a_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        parse_job([*DATA, "--model.preset", "llama3_tiny", "--optimizer.lr", "0.5", "--print_config"])
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    assert parse_job(["--config", str(file)]) == job("--optimizer.lr", "0.5")


def test_an_unknown_key_in_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("training: {global_batch: 3}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="global_batch"):
        parse_job(["--config", str(file)])


@pytest.mark.parametrize(
    ("arguments", "world_size", "field"),
    [
        (["--parallel.tensor_model_parallel_size", "3"], 3, "model.num_attention_heads 8"),
        (["--parallel.pipeline_model_parallel_size", "3"], 3, "model.num_layers 4"),
        (["--parallel.tensor_model_parallel_size", "2"], 3, "multiple of 2 processes, but 3 were started"),
        (["--parallel.sequence_parallel", "true"], 1, "parallel.sequence_parallel"),
        (["--parallel.virtual_pipeline_model_parallel_size", "2"], 1, "parallel.pipeline_model_parallel_size of 2"),
        (["--parallel.overlap_param_gather", "true", "--parallel.overlap_grad_reduce", "false"], 1, "parallel.overlap"),
        (["--training.global_batch_size", "7"], 2, "training.global_batch_size: 7 is not divisible"),
        (["--training.micro_batch_size", "0"], 1, "training.micro_batch_size: 0"),
        (["--training.train_steps", "0"], 1, "training.train_steps: 0"),
        (["--optimizer.lr", "-1"], 1, "optimizer.lr: -1"),
        (["--optimizer.adam_beta2", "1"], 1, "optimizer.adam_beta2"),
        (["--optimizer.exp_avg_dtype", "bf16"], 1, "optimizer.exp_avg_dtype: only the precision-aware"),
        ([*PRECISION_AWARE, "--optimizer.exp_avg_sq_dtype", "bf16", "--optimizer.adam_beta2", "0.999"], 1,
         "optimizer.exp_avg_sq_dtype: bf16 rounds off changes below 1/256, and optimizer.adam_beta2 0.999"),
        ([*PRECISION_AWARE, "--optimizer.exp_avg_dtype", "bf16", "--optimizer.adam_beta1", "0.995"], 1,
         "optimizer.exp_avg_dtype: bf16 rounds off changes below 1/256, and optimizer.adam_beta1 0.995"),
        ([*PRECISION_AWARE, "--parallel.use_distributed_optimizer", "false"], 1, "parallel.use_distributed_optimizer"),
        ([*PRECISION_AWARE, "--precision.dtype", "fp32"], 1, "optimizer.use_precision_aware_optimizer: needs prec"),
        (["--schedule.warmup_tokens", "5", "--schedule.warmup_steps", "5"], 1, "schedule.warmup_tokens"),
        (["--schedule.style", "cosine", "--schedule.decay_steps", "5"], 1, "schedule.decay"),
        (["--data.seq_length", "4096"], 1, "data.seq_length: 4096 is longer"),
        (["--precision.fp8", "hybrid"], 1, "precision.fp8_recipe: model.transformer_impl fused scales by the current"),
        (["--precision.fp8", "e4m3", "--model.transformer_impl", "local"], 1,
         "precision.fp8: needs model.transformer_impl fused or transformer_engine"),
        ([*TENSORWISE, "--precision.dtype", "fp32"], 1, "precision.fp8: needs precision.dtype bf16"),
        ([*TENSORWISE, "--parallel.tensor_model_parallel_size", "2", "--model.ffn_hidden_size", "176"], 2,
         "precision.fp8: model.ffn_hidden_size is 88 on each process, and 8-bit products need multiples of 16"),
        ([*TENSORWISE, "--data.seq_length", "8", "--training.micro_batch_size", "1"], 1,
         "precision.fp8: training.micro_batch_size x data.seq_length is 8 on each process"),
        (["--parallel.align_grad_reduce", "true"], 1,
         "parallel.align_grad_reduce: needs parallel.virtual_pipeline_model_parallel_size"),
        (["--parallel.align_param_gather", "true"], 1, "parallel.align_param_gather: needs parallel.overlap_param_gat"),
        (["--parallel.ddp_bucket_size", "0"], 1, "parallel.ddp_bucket_size: 0 is not positive"),
        (["--parallel.ddp_bucket_size", "5", "--parallel.overlap_grad_reduce", "false"], 1,
         "parallel.ddp_bucket_size: needs parallel.overlap_grad_reduce"),
        (["--parallel.ddp_pad_buckets_for_high_nccl_busbw", "true", "--parallel.use_distributed_optimizer", "false"], 1,
         "parallel.ddp_pad_buckets_for_high_nccl_busbw: needs parallel.use_distributed_optimizer"),
        (["--parallel.overlap_p2p_comm_warmup_flush", "true"], 1, "parallel.overlap_p2p_comm_warmup_flush: needs par"),
        (["--parallel.tp_comm_overlap", "true"], 1, "parallel.tp_comm_overlap: needs parallel.sequence_parallel"),
        (["--parallel.tp_comm_overlap", "true", "--parallel.sequence_parallel", "true",
          "--parallel.tensor_model_parallel_size", "2"], 2,
         "parallel.tp_comm_overlap: needs model.transformer_impl transformer_engine"),
        (["--precision.first_last_layers_bf16", "true"], 1, "precision.first_last_layers_bf16: needs precision.fp8"),
        ([*TENSORWISE, "--precision.num_layers_at_end_in_bf16", "-1"], 1, "precision.num_layers_at_end_in_bf16: -1"),
        (["--model.num_query_groups", "3"], 1, "model.num_query_groups 3"),
        (["--checkpoint.save_interval_steps", "5"], 1, "checkpoint.save_interval_steps"),
        (["--logging.peak_tflops", "0"], 1, "logging.peak_tflops"),
        (["--evaluation.interval_steps", "0"], 1, "evaluation.interval_steps"),
    ],
)
def test_contradictions_name_field_and_fix(arguments: list[str], world_size: int, field: str) -> None:
    problems = job(*arguments).problems(world_size)
    assert any(field in problem for problem in problems), problems


def test_the_interleaved_schedule_needs_a_multiple_of_the_stages() -> None:
    arguments = ["--parallel.pipeline_model_parallel_size", "2", "--parallel.virtual_pipeline_model_parallel_size", "2",
                 "--training.global_batch_size", "3"]  # fmt: skip
    assert any("interleaved schedule" in problem for problem in job(*arguments).problems(2))


def test_all_problems_come_together() -> None:
    wrong = job("--optimizer.lr", "0", "--training.global_batch_size", "3", "--logging.interval_steps", "0")
    problems = wrong.problems(2)
    assert len(problems) == 3


def test_presets_are_the_published_sizes() -> None:
    assert PRESETS["llama3_8b"].num_parameters() == 8_030_261_248
    assert PRESETS["llama3_70b"].num_parameters() == 70_553_706_496
    assert PRESETS["tinyllama_1_1b"].num_parameters() == 1_100_048_384


def test_fields_override_preset_and_hf_model() -> None:
    assert ModelConfig(preset="llama3_8b", num_layers=2).architecture().num_layers == 2
    base = LlamaArchitecture(3, 64, 128, 4, 2, 100)
    assert ModelConfig(rotary_base=1e4).architecture(base) == dataclasses.replace(base, rotary_base=1e4)


def test_sizes_must_come_from_somewhere() -> None:
    with pytest.raises(ValueError, match=r"num_layers, hidden_size.*model\.preset"):
        ModelConfig(vocab_size=10).architecture()


def test_first_and_last_layers_are_left_out_of_fp8() -> None:
    tensorwise = PrecisionConfig(fp8="hybrid", fp8_recipe="tensorwise")
    some = dataclasses.replace(tensorwise, first_last_layers_bf16=True, num_layers_at_end_in_bf16=2)
    assert not any(tensorwise.is_bf16_layer(number, 6) for number in range(6))
    assert [some.is_bf16_layer(number, 6) for number in range(6)] == [True, False, False, False, True, True]

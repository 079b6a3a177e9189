"""The cases of benchmarks/gpu_step.py on a CPU: equal work for all, and a case that fails does not end the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gpu_step
import pytest
import torch
from contenders import Work, save_weights
from gpu_step import SUITES, TINY, case_name, run_suite

BASE = Work(replace(TINY, num_layers=2), seq_length=64, num_microbatches=2, recompute="none")


@pytest.mark.slow
def test_contenders_start_from_the_same_weights_and_a_failing_case_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_step, "RUNS", 1)
    save_weights(BASE.architecture, tmp_path, torch.device("cpu"), torch.bfloat16)
    broken = replace(BASE, architecture=replace(BASE.architecture, num_query_groups=3))
    cases = [("hf_eager", BASE), ("fused", broken), ("fused", BASE)]
    figures = run_suite(cases, "cpu", 1e12, tmp_path)
    hf, fused = (figures[case_name(contender, BASE)] for contender in ("hf_eager", "fused"))
    assert "error" not in fused, "the case before it, of the same name, has failed"
    assert fused["first_loss"] == pytest.approx(hf["first_loss"], rel=1e-4)
    assert fused["tokens_per_s"] == pytest.approx(128 / fused["step_seconds"], rel=1e-3)
    assert '"error": ' in capsys.readouterr().out


def test_the_cases_of_a_suite_have_names_of_their_own() -> None:
    for suite in SUITES.values():
        names = [case_name(contender, work) for contender, work in suite(BASE)]
        assert len(set(names)) == len(names)


def test_the_published_setting_is_the_first_case_of_the_whole_model() -> None:
    contender, work = SUITES["whole"](Work(BASE.architecture, 8192, recompute="none"))[0]
    assert (contender, work.seq_length, work.micro_batch_size, work.num_microbatches) == ("fused", 4096, 4, 2)
    assert work.recompute == "full" and work.lean_optimizer and work.precision == "bf16"


def test_flops_and_batches_do_not_depend_on_recomputation_or_contender() -> None:
    full = replace(BASE, recompute="full", precision="fp8")
    assert full.flops_per_step == BASE.flops_per_step == 128 * BASE.architecture.train_flops_per_token(64)
    for one, other in zip(BASE.tokens_BS(3), full.tokens_BS(3 + 4), strict=True):
        assert (one == other).all() and one.shape == (1, 64)

"""What benchmarks/cpu_step.py makes of its readings: settled ratios, shares and agreeing losses."""

from __future__ import annotations

import itertools
from typing import Any

import cpu_step
import pytest
from cpu_step import GEMM_SIZE, WORK, Ratio


class Scripted:
    """A contender whose steps take what the script says."""

    def __init__(self, *seconds: float) -> None:
        self.script, self.seconds, self.losses = itertools.cycle(seconds), [], [10.0, 9.0, 8.0, 7.0]

    def step(self) -> float:
        return next(self.script)


def contenders(**scripts: tuple[float, ...]) -> dict[str, Any]:
    return {kind: Scripted(*seconds) for kind, seconds in scripts.items()}


def test_quartiles_of_the_rounds_ratios() -> None:
    ratio = Ratio.of([2, 4, 6, 8, 10], [1, 1, 1, 1, 1])
    assert ratio.quartiles == (4, 6, 8) and ratio.median == 6 and not ratio.settled
    assert Ratio.of([1, 1, 1], [0.95, 1, 1.05]).settled


def test_rounds_are_added_until_every_ratio_has_settled() -> None:
    steady = contenders(gemm=(1.0,), hf_eager=(3.0,), ours=(2.0,))
    found = cpu_step.take_rounds(steady, "fp32", deadline=float("inf"))
    assert len(steady["ours"].seconds) == cpu_step.FEWEST_ROUNDS
    assert found["speedup_vs_hf_eager_fp32"].quartiles == (1.5, 1.5, 1.5)
    # A machine that is slow in every third step: all contenders but one are, so the ratio takes many rounds.
    swinging = contenders(gemm=(1.0,), hf_eager=(3.0, 3.0, 9.0), ours=(2.0,))
    found = cpu_step.take_rounds(swinging, "fp32", deadline=-1.0)
    assert len(swinging["ours"].seconds) == 2 and set(found) == {"gemm_share_fp32", "speedup_vs_hf_eager_fp32"}


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(cpu_step.time, "monotonic", lambda: next(clock))
    busy = contenders(gemm=(1.0,), hf_eager=(3.0, 6.0), ours=(2.0,))
    found = cpu_step.take_rounds(busy, "bf16", deadline=20)
    assert not found["speedup_vs_hf_eager_bf16"].settled and found["gemm_share_bf16"].settled
    assert 10 < len(busy["ours"].seconds) < 40


def test_share_of_the_product_rate_is_of_the_same_round() -> None:
    product = 2 * GEMM_SIZE**3
    # A step that takes twice the time of its own FLOPs reaches half; a machine that is half as fast changes nothing.
    ideal = WORK.flops_per_step / product
    found = cpu_step.ratios({"gemm": [1.0, 2.0], "ours": [2 * ideal, 4 * ideal]}, "bf16")
    assert found["gemm_share_bf16"].quartiles == pytest.approx((0.5, 0.5, 0.5))


def test_the_flops_are_those_of_the_shape() -> None:
    layer = 512 * 64 * 2 * (8 + 4) + 3 * 512 * 1536
    weights = 8 * layer + 512 * 32000
    assert WORK.flops_per_step == 4 * 512 * (6 * weights + 6 * 8 * 512 * 512)


def test_losses_agree_within_the_bound(capsys: pytest.CaptureFixture[str]) -> None:
    ours = [10.0, 9.0, 8.0, 7.0, 1.0]
    assert cpu_step.losses_agree({"ours": ours, "hf_eager": [10.0, 9.0, 8.0, 7.0001, 6.0]}, 1e-4)
    assert not cpu_step.losses_agree({"ours": ours, "hf_eager": [10.0, 9.0, 8.1, 7.0, 6.0]}, 1e-4)
    assert "MORE THAN 0.0001" in capsys.readouterr().out

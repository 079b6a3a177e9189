"""Learning-rate schedules against hand-computed values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synE.config.optimizer import ScheduleConfig
from megatron_synE.training.schedule import make_schedule


def schedule(total: int = 1000, lr: float = 1.0, **fields: object):
    return make_schedule(ScheduleConfig(**fields), lr, total_tokens=total, tokens_per_step=10)  # type: ignore[arg-type]


def test_wsd_warms_up_stays_and_decays() -> None:
    wsd = schedule(style="wsd", init_lr=0.1, min_lr=0.2, warmup_tokens=100, decay_tokens=400, decay_style="linear")
    assert wsd(0) == 0.1
    assert wsd(50) == pytest.approx(0.55)
    assert wsd(100) == wsd(599) == 1.0
    assert wsd(800) == pytest.approx(0.6)
    assert wsd(1000) == pytest.approx(0.2)


def test_the_recipes_warm_up() -> None:
    """RECIPE: from 1e-7 to 1e-5 over 10 B tokens, then constant."""
    config = ScheduleConfig(init_lr=1e-7, warmup_tokens=10_000_000_000)
    wsd = make_schedule(config, 1e-5, total_tokens=92_500_000_000, tokens_per_step=4_000_000)
    assert wsd(0) == 1e-7
    assert wsd(5_000_000_000) == pytest.approx(5.05e-6)
    assert wsd(10_000_000_000) == wsd(92_499_999_999) == 1e-5


@pytest.mark.parametrize(("shape", "middle"), [("cosine", 0.5), ("minus_sqrt", 1 - 0.5**0.5), ("linear", 0.5)])
def test_decay_shapes_at_the_middle(shape: str, middle: float) -> None:
    assert schedule(decay_tokens=100, decay_style=shape)(950) == pytest.approx(middle)


def test_exponential_decay() -> None:
    assert schedule(decay_tokens=100, decay_style="exponential", min_lr=0.01)(950) == pytest.approx(0.1)


def test_cosine_and_constant() -> None:
    cosine = schedule(style="cosine", warmup_steps=10, min_lr=0.5)
    assert cosine(0) == 0.0
    assert cosine(550) == pytest.approx(0.75)
    assert cosine(1000) == pytest.approx(0.5)
    assert schedule(style="constant", warmup_steps=10)(999) == 1.0


def test_steps_are_tokens() -> None:
    by_steps = schedule(warmup_steps=7, decay_steps=20)
    by_tokens = schedule(warmup_tokens=70, decay_tokens=200)
    assert [by_steps(t) for t in range(0, 1000, 10)] == [by_tokens(t) for t in range(0, 1000, 10)]


def test_too_long_phases_are_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule\.warmup_tokens, schedule\.decay_tokens: 600 \+ 500"):
        schedule(warmup_tokens=600, decay_tokens=500)


def test_a_minimum_above_the_maximum_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule\.min_lr"):
        schedule(min_lr=2.0)


@given(
    st.sampled_from(["wsd", "cosine", "constant"]),
    st.integers(0, 400),
    st.integers(0, 400),
    st.sampled_from(["linear", "cosine", "minus_sqrt"]),
    st.integers(0, 1000),
)
def test_rates_stay_between_their_bounds(style: str, warmup: int, decay: int, shape: str, position: int) -> None:
    rate = schedule(
        style=style, warmup_tokens=warmup, decay_tokens=decay if style == "wsd" else None, decay_style=shape, min_lr=0.1
    )(position)
    assert 0.0 <= rate <= 1.0

"""The guard's memory: what is compared with what, what is news, and what comes back from a checkpoint."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_synE.config.data import DataConfig, SourceConfig
from megatron_synE.config.guard import GuardConfig, LossBounds
from megatron_synE.training.forgetting import (
    Bound,
    Figure,
    ForgettingMemory,
    Told,
    accuracy_figures,
    bounds_of,
    loss_figures,
    stop_text,
)

LOSS, ACC = Bound(0.5, ("web",), True), Bound(2.0, ("web",), False)
BOUNDS = {"loss of web": LOSS, "acc of sciq": ACC}


def figures(loss: float, acc: float = 0.5, text: str = "80 tokens") -> dict[str, Figure]:
    book = {"loss of book": Figure(9, "7 tokens")}
    return {"loss of web": Figure(loss, text), "acc of sciq": Figure(acc, "asked"), **book}


def begun(step: int = 0) -> ForgettingMemory:
    memory = ForgettingMemory()
    assert memory.begin(step, figures(2.0)) == ["loss of web", "acc of sciq", "loss of book"]
    return memory


def test_a_source_is_the_mean_over_the_tokens_of_its_topics() -> None:
    found = loss_figures({"web/a": 1.0, "web/b": 4.0, "book": 2.0}, {"web/a": 200, "web/b": 100, "book": 50})
    assert found["loss of web"] == Figure(2.0, "300 tokens") and found["loss of web/b"] == Figure(4.0, "100 tokens")
    assert found["loss of book"] == Figure(2.0, "50 tokens") and len(found) == 4
    assert accuracy_figures({"sciq": {"acc": 0.7, "acc_norm": 0.8}}, {"sciq": "f0"}) == {
        "acc of sciq": Figure(0.7, "f0")
    }


def test_bounds_know_the_sources_that_share_goes_back_to() -> None:
    data = DataConfig({"web": SourceConfig("w", "en", topics=True), "book": SourceConfig("b", "en")})
    guard = GuardConfig(LossBounds(0.1, sources={"web/law": 0.3}), {"sciq": 2}, {"sciq": ["web", "book"]})
    assert bounds_of(guard, data) == {
        "loss of web": Bound(0.1, ("web",), True),
        "loss of book": Bound(0.1, ("book",), True),
        "loss of web/law": Bound(0.3, ("web",), True),
        "acc of sciq": Bound(2, ("web", "book"), False),
    }


@pytest.mark.parametrize(
    "loss, acc, past",
    [(2.5, 0.48, []), (2.51, 0.5, ["loss of web"]), (1.0, 0.479, ["acc of sciq"]), (1.0, 0.9, [])],
)
def test_only_what_is_worse_than_its_bound_is_past_it(loss: float, acc: float, past: list[str]) -> None:
    assert [excess.what for excess in begun().excesses(figures(loss, acc), BOUNDS)] == past


def test_news_are_told_once_and_again_where_it_is_twice_as_bad() -> None:
    memory, news = begun(), []
    for step, loss in enumerate([2.4, 2.6, 2.7, 3.19, 3.2, 4.3, 4.4, 2.5, 2.55], 1):
        found = memory.excesses(figures(loss), BOUNDS)
        recovered = memory.recovered(figures(loss), found)
        assert recovered == (["loss of web"] if step == 8 else [])
        for excess in found:
            if memory.is_news(excess):
                news.append(loss)
                memory.told[excess.what] = Told(step, loss)
    assert news == [2.6, 3.2, 4.4, 2.55]


def test_other_text_begins_anew() -> None:
    memory = begun()
    memory.told["loss of web"] = Told(3, 3.0)
    assert memory.begin(4, figures(3.0)) == []
    assert memory.begin(5, figures(3.0, text="90 tokens")) == ["loss of web"]
    assert memory.baselines["loss of web"].step == 5 and memory.told == {}
    assert memory.excesses(figures(3.1, text="90 tokens"), BOUNDS) == []


def test_what_a_stopped_run_says() -> None:
    memory = begun()
    memory.told |= {"loss of web": Told(8, 3.0), "acc of sciq": Told(8, 0.4)}
    past = memory.told_excesses(BOUNDS)
    text = stop_text(8, past)
    assert text.startswith("evaluation.guard: after step 8 the run has forgotten more than it may: loss of web 3")
    assert "3.0000, 1.0000 above 2.0000 at step 0 (bound 0.5); acc of sciq 0.4000, " in text
    assert "10.0000 points below 0.5000 at step 0 (bound 2)" in text
    assert [e.what for e in memory.told_excesses({"loss of web": Bound(1.0, (), True)})] == []


MEMORY = begun()
MEMORY.told["loss of web"] = Told(8, 3.0)
MEMORY.restored["web"] = [8, 20]
CONTENT = json.loads(json.dumps(MEMORY.to_json()))


def test_it_comes_back() -> None:
    assert ForgettingMemory.from_json(CONTENT, "f") == MEMORY


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("baselines",), [], "forgetting.baselines: not a JSON object"),
        (("baselines", "loss of web", "value"), None, "forgetting.baselines.loss of web.value"),
        (("baselines", "loss of web", "step"), -1, "forgetting.baselines.loss of web.step"),
        (("baselines", "loss of web", "measured_on"), 80, "forgetting.baselines.loss of web.measured_on"),
        (("told", "loss of web", "step"), 1.5, "forgetting.told.loss of web.step"),
        (("told", "loss of x"), {"step": 1, "value": 2}, "forgetting.told.loss of x has no baseline"),
        (("restored", "web"), [20, 8], "forgetting.restored.web does not ascend"),
        (("restored", "web"), ["8"], "forgetting.restored.web[0]"),
    ],
)
def test_the_damaged_field_is_named(path: tuple[str, ...], value: Any, message: str) -> None:
    content = copy.deepcopy(CONTENT)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(ValueError) as error:
        ForgettingMemory.from_json(content, "run/state.json")
    assert str(error.value).startswith(f"run/state.json: {message}")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 8 * len(json.dumps(CONTENT)) - 1))
def test_any_flipped_bit_is_read_as_it_stands_or_refused(place: int) -> None:
    raw = bytearray(json.dumps(CONTENT).encode())
    raw[place // 8] ^= 1 << place % 8
    try:
        content = json.loads(raw.decode())
    except ValueError:
        return
    try:
        found = ForgettingMemory.from_json(content, "f").to_json()
    except ValueError as error:
        assert str(error).startswith("f: forgetting")
        return
    assert found == {name: content[name] for name in CONTENT}, "what is not known is left out, all else is kept"

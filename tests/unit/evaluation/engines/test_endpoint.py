"""Prompts continued by a server."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_synE.evaluation.engines import endpoint
from megatron_synE.evaluation.engines.endpoint import EndpointGenerator
from megatron_synE.evaluation.engines.generators import Prompt
from tests.helpers.completion_server import server, text


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE_SECONDS", 0.0)


def generated(generator: EndpointGenerator, prompts: list[Prompt]) -> dict[int, str]:
    found: dict[int, str] = {}
    generator.generate(prompts, lambda number, own: found.update({number: own}))
    return found


def test_prompts_go_as_ids_and_texts_end_before_their_stop() -> None:
    prompts = [Prompt((1, number), tuple("abcde"), 7) for number in range(40)]
    with server(lambda body, count: (200, text(f"{body['prompt'][1]} then e more"))) as running:
        generator = EndpointGenerator(running.url)
        found = generated(generator, prompts)
        generator.close()
    assert found == {number: f"{number} th" for number in range(40)}
    body = next(body for body in running.bodies if body["prompt"] == [1, 3])
    assert body == {
        "model": "ours", "prompt": [1, 3], "max_tokens": 7, "temperature": 0.0, "stop": ["a", "b", "c", "d"],
    }  # fmt: skip


def test_what_may_pass_is_tried_again() -> None:
    statuses = {1: (503, "starting"), 2: (429, "slow down"), 3: (200, text("done"))}
    with server(lambda body, count: statuses[count]) as running:
        assert generated(EndpointGenerator(running.url), [Prompt((1,), (), 5)]) == {0: "done"}
    assert len(running.bodies) == 3


@pytest.mark.parametrize(
    "answer, message, num_requests",
    [
        ((400, {"error": "prompt too long"}), r"refuses: status 400: .*prompt too long", 1),
        ((500, "broken"), r"status 500: \"broken\", 8 times; when the server is up, start the evaluation again", 8),
        ((200, {"choices": []}), "gives an answer without a text", 1),
    ],
)
def test_what_does_not_pass_is_told(answer: tuple[int, Any], message: str, num_requests: int) -> None:
    with server(lambda body, count: answer) as running, pytest.raises(ValueError, match=message):
        generated(EndpointGenerator(running.url), [Prompt((1,), (), 5)])
    assert len(running.bodies) == num_requests


def test_the_model_is_chosen_before_anything_is_asked() -> None:
    with server(lambda body, count: (200, text("")), ("one", "two")) as running:
        with pytest.raises(ValueError, match="has the models one, two; name one with --endpoint-model"):
            EndpointGenerator(running.url)
        with pytest.raises(ValueError, match="--endpoint-model three is none of them"):
            EndpointGenerator(running.url, "three")
        assert EndpointGenerator(running.url, "two").info() == {
            "type": "endpoint", "url": running.url, "model": "two",
        }  # fmt: skip
    with pytest.raises(ValueError, match="8 times"):
        EndpointGenerator(running.url)  # nobody is there any more


def test_the_key_is_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OWN_KEY", raising=False)
    with server(lambda body, count: (200, text("x"))) as running:
        with pytest.raises(ValueError, match="--endpoint-key-variable OWN_KEY: it is not set"):
            EndpointGenerator(running.url, key_variable="OWN_KEY")
        monkeypatch.setenv("OWN_KEY", "secret")
        generated(EndpointGenerator(running.url, key_variable="OWN_KEY"), [Prompt((1,), (), 5)])
    assert running.keys == {"Bearer secret"}

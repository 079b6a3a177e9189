"""States that were damaged or crafted: read as they stand, or refused with the field's name; never anything else."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_synE.data.segments import MovedWeights, Segment
from megatron_synE.data.state import Decision, StreamState

Path = tuple[str | int, ...]

MOVED = MovedWeights({"web": Fraction(2, 3), "book": Fraction(1, 3)}, {"web": Fraction(1, 2), "book": Fraction(1, 2)})
ALL_A = {"web": {"a": Fraction(1), "b": Fraction(0)}}
SEGMENTS = [
    Segment(0, "one", (1, 2, 1), (0, 0, 0), {"web": {"a": Fraction(1, 3), "b": Fraction(2, 3)}}, {"web": "stored"}, ""),
    Segment(80, "one", (1, 1, 2), (20, 40, 20), ALL_A, {"web": "stored"}, "restoration", MOVED),
    Segment(90, "two", (0, 0, 5), (22, 43, 25), ALL_A, {"web": "shuffled"}, "stage"),
]
SHARES = {"web/a": 0.5}
GOOD = StreamState(
    seq_length=16,
    seed=7,
    num_samples=1000,
    components=[{"name": n, "identity": "f00", "num_tokens": 99, "order": "ba5"} for n in ("web/a", "web/b", "book")],
    plan={"stages": []},
    segments=SEGMENTS,
    decisions=[
        Decision(0, 0, {"web/a": 3.5}, SHARES, SHARES, {"delta": {"web/a": 1.0}}, True),
        Decision(80, 1280, {}, {"web": 0.5}, {"web": 0.5}, {"value": {"loss of web": 1.0}}, True, "sources"),
    ],
    sample=85,
)
STATE = json.loads(json.dumps(GOOD.to_json()))


def paths(content: Any, path: Path = ()) -> Iterator[Path]:
    """The places of everything in a JSON value."""
    yield path
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield from paths(value, (*path, key))


def changed(path: Path, change: Any) -> Any:
    """The state with the value at a place replaced; removed where `change` says so."""
    if not path:
        return change
    content = copy.deepcopy(STATE)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    if change is REMOVED:
        del holder[path[-1]]
    else:
        holder[path[-1]] = change
    return content


REMOVED = object()
STRANGE = ["1e999999999", "1/0", "-1/3", "0x7", "\ud800", "9" * 5000, "1/1", "²", 10**400, -(2**63), 2**63, "nan"]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(STRANGE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


def test_a_good_state_is_read_as_it_was_written() -> None:
    assert through(STATE) == STATE


def through(content: Any) -> dict[str, Any]:
    return json.loads(json.dumps(StreamState.from_json(content).to_json(), allow_nan=False))


@settings(max_examples=500, deadline=None)
@example(("format_version",), "9" * 5000)
@given(st.sampled_from(list(paths(STATE))), JSON_VALUES | st.just(REMOVED))
def test_any_change_is_read_as_it_stands_or_refused(path: Path, change: Any) -> None:
    content = changed(path, change)
    if content is REMOVED:
        return
    try:
        found = through(content)
    except ValueError as error:
        message = str(error)
        assert message.startswith("stream state") and "use another checkpoint" in message and len(message) < 500
        message.encode()
        return
    assert found == as_read(content)


def as_read(content: dict[str, Any]) -> dict[str, Any]:
    """What is taken from a state: `1/1` is 1, and an absent sample is None."""
    content = {"sample": None, **copy.deepcopy(content)}
    for decision in content["decisions"]:
        decision["moves"] = decision.get("moves") or "topics"
    for segment in content["segments"]:
        for shares in segment["topic_shares"].values():
            shares.update({topic: str(Fraction(share)) for topic, share in shares.items()})
        if segment.get("moved_weights") is None:
            segment.pop("moved_weights", None)
        for shares in segment.get("moved_weights", {}).values():
            shares.update({name: str(Fraction(share)) for name, share in shares.items()})
    return content


WRONG: dict[str, tuple[Path, Any]] = {
    "seq_length": (("seq_length",), 0),
    "seed": (("seed",), -1),
    "num_samples": (("num_samples",), 2**61),
    "sample": (("sample",), 1001),
    r"components\[1\].num_tokens": (("components", 1, "num_tokens"), 0),
    "components names one twice": (("components", 1, "name"), "book"),
    r"segments\[1\].start": (("segments", 1, "start"), 0),
    r"segments\[2\].start": (("segments", 2, "start"), 1000),
    r"segments\[1\].numerators": (("segments", 1, "numerators"), [0, 0, 0]),
    r"segments\[1\].numerators has 2 entries": (("segments", 1, "numerators"), [1, 2]),
    r"segments\[2\].numerators sums": (("segments", 2, "numerators"), [2**20, 0, 1]),
    r"segments\[2\].cursors": (("segments", 2, "cursors"), [22, 45, 23]),
    "segments does not begin": (("segments", 0, "cursors"), [1, 0, 0]),
    r"segments\[0\].topic_shares.web.a": (("segments", 0, "topic_shares", "web", "a"), "1e999999999"),
    r"segments\[0\].topic_shares.web does not sum": (("segments", 0, "topic_shares", "web", "a"), "1/2"),
    r"segments\[0\].orders.web": (("segments", 0, "orders", "web"), "backwards"),
    r"decisions\[0\].perplexity.web/a": (("decisions", 0, "perplexity", "web/a"), float("nan")),
    r"decisions\[1\].changed": (("decisions", 1, "changed"), 1),
    r"decisions\[1\].moves": (("decisions", 1, "moves"), "both"),
    r"segments\[1\].moved_weights.weights.web": (("segments", 1, "moved_weights", "weights", "web"), "1/0"),
    r"segments\[1\].moved_weights.weights does not sum": (("segments", 1, "moved_weights", "weights", "web"), "1/3"),
    r"segments\[1\].moved_weights.planned names": (
        ("segments", 1, "moved_weights", "planned"), {"web": "2/3", "paper": "1/3"},
    ),
    r"segments\[1\].moved_weights.weights names": (
        ("segments", 1, "moved_weights", "weights"), {"web": "1", "book": "0"},
    ),
    "decisions do not ascend": (("decisions", 0, "at_sample"), 81),
}


@pytest.mark.parametrize("message", WRONG)
def test_the_field_is_named(message: str) -> None:
    path, change = WRONG[message]
    with pytest.raises(ValueError, match=rf"stream state: {message}"):
        StreamState.from_json(changed(path, change))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 8 * len(json.dumps(STATE)) - 1))
def test_any_flipped_bit_is_read_as_it_stands_or_refused(place: int) -> None:
    raw = bytearray(json.dumps(STATE).encode())
    raw[place // 8] ^= 1 << place % 8
    try:
        content = json.loads(raw.decode())
    except ValueError:
        return
    try:
        StreamState.from_json(content)
    except ValueError as error:
        assert str(error).startswith("stream state")

"""The file of rendered requests: what goes in comes out, and damage is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_synE.evaluation.engine import ScoringRequest
from megatron_synE.evaluation.rendered import RenderedBenchmarks, RenderedBuilder, RenderedItem, read_rendered

SHARED = (1, 5, 6)
SCIQ = [
    RenderedItem([ScoringRequest(SHARED, (7,)), ScoringRequest(SHARED, (8, 9))], [3, 4], [3, 8], [1]),
    RenderedItem([ScoringRequest((1, 4), (7,)), ScoringRequest(SHARED, (2,))], [1, 1], [1, 3], [0]),
]
ARC = [RenderedItem([ScoringRequest((1,), (3,)) for _ in range(3)], [1, 2, 3], [1, 2, 3], [0, 2])]


def rendered(sciq: list[RenderedItem] = SCIQ) -> RenderedBenchmarks:
    builder = RenderedBuilder()
    builder.add("sciq", sciq, metrics=["acc"], num_fewshot=5)
    builder.add("arc", ARC, metrics=["acc", "acc_norm"], num_fewshot=0)
    return builder.finish({"tokenizer": "t1"})


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    rendered().write(tmp_path / "requests.npz")
    found = read_rendered(tmp_path / "requests.npz")
    assert [found.item(number) for number in range(3)] == [*SCIQ, *ARC]
    assert (found.items_of("sciq"), found.items_of("arc")) == (range(2), range(2, 3))
    assert found.requests_of(found.items_of("arc")) == range(4, 7) and found.num_requests == 7
    assert found.requests(range(1, 5)) == [*SCIQ[0].requests[1:], *SCIQ[1].requests, ARC[0].requests[0]]
    first, second = found.requests(range(2))
    assert first.context is second.context
    assert found.tasks == rendered().tasks and found.identity == {"tokenizer": "t1"}
    assert [task.metrics for task in found.tasks] == [("acc",), ("acc", "acc_norm")]
    assert (found.longest_request_tokens(), found.largest_token()) == (5, 9)


@pytest.mark.parametrize(
    "other",
    [
        SCIQ[0]._replace(gold=[0]),
        SCIQ[0]._replace(num_characters=[3, 5]),
        SCIQ[0]._replace(requests=[SCIQ[0].requests[0], ScoringRequest(SHARED, (8, 8))]),
    ],
)
def test_a_fingerprint_changes_with_all_that_decides(other: RenderedItem) -> None:
    before, after = rendered().tasks, rendered([other, SCIQ[1]]).tasks
    assert before[0].fingerprint != after[0].fingerprint and before[1].fingerprint == after[1].fingerprint


def test_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "requests.npz"
    rendered().write(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            read_rendered(path)
    for size in (0, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged"):
            read_rendered(path)

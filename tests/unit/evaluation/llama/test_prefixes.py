"""Sequences as a tree: every token with the keys of its own sequence, shared runs once, no slot taken while needed."""

from __future__ import annotations

import random

import numpy as np
import pytest

from megatron_synE.evaluation.llama.batching import BatchLimits, Target, TokenSequence
from megatron_synE.evaluation.llama.prefixes import Segment, segment_batches, segments_of, share_of_rank, stems_of


def few_shot(seed: int, num_prompts: int = 4) -> list[TokenSequence]:
    """Questions behind shared examples, each with choices, beginnings of other sequences among them; all different."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(50) for _ in range(draw.randint(low, high)))

    found: set[tuple[int, ...]] = set()
    for _ in range(num_prompts):
        shots = (0, *tokens(0, 60))
        for _ in range(draw.randint(1, 5)):
            question = shots + tokens(1, 30)
            found |= {question + tokens(0, 6) for _ in range(draw.randint(1, 4))} | {question[: draw.randint(1, 40)]}
    sequences = [TokenSequence(tokens) for tokens in sorted(found, key=lambda one: draw.random())]
    for number, sequence in enumerate(sequences):
        first = draw.randrange(len(sequence.tokens))
        sequence.targets = [Target(n, draw.randrange(50), number) for n in range(first, len(sequence.tokens))]
    return sequences


def replay(sequences: list[TokenSequence], limits: BatchLimits) -> tuple[int, int]:
    """Write tokens for keys into slots as batches do, and look what each run sees; tokens computed, slots."""
    batches, num_slots = segment_batches(segments_of(sequences, limits.tokens), limits)
    kept = np.full(num_slots, -1)
    answers: dict[int, list[tuple[int, int, tuple[int, ...]]]] = {}
    for batch in batches:
        runs = [segment.run() for segment in batch]
        slots = np.concatenate([run.slots for run in runs])
        assert len(set(slots.tolist())) == len(slots) and 0 not in slots
        kept[slots] = [token for run in runs for token in run.tokens]
        stems, own_slots = stems_of(runs)
        for number, run in enumerate(runs):
            key_slots = np.concatenate([*(segment.slots for segment in run.ancestors), run.own_slots])
            seen = tuple(kept[key_slots].tolist())
            parts = [part for first, last, part in stems if first <= number < last] + [own_slots[number]]
            assert np.concatenate(parts).tolist() == key_slots.tolist(), "stems and own keys are all keys"
            assert len(seen) == run.start + len(run.tokens) and seen[run.start :] == run.tokens
            for position, token, request in run.targets:
                answers.setdefault(request, []).append((position, token, seen[: position + 1]))
    for number, sequence in enumerate(sequences):
        expected = [(at, token, sequence.tokens[: at + 1]) for at, token, _ in sequence.targets]
        assert sorted(answers.pop(number)) == expected
    assert not answers
    return sum(len(segment.tokens) for batch in batches for segment in batch), num_slots


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("limits", [BatchLimits(7), BatchLimits(60), BatchLimits(10_000), BatchLimits(500, 2)], ids=str)
def test_each_token_sees_its_own_sequence(seed: int, limits: BatchLimits) -> None:
    sequences = few_shot(seed)
    num_tokens, num_slots = replay(sequences, limits)
    whole = sum(len(sequence.tokens) for sequence in sequences)
    assert num_tokens <= whole
    deepest = max(len(sequence.tokens) for sequence in sequences)
    # Kept are the way to the present branch, what is computed now, and slot 0; no more.
    assert num_slots <= 2 * deepest + limits.tokens + 1


def test_batches_keep_the_limits() -> None:
    limits = BatchLimits(tokens=40, sequences=3)
    segments = segments_of(few_shot(1, num_prompts=12), limits.tokens)
    leaves = {segment for segment in segments if segment.num_children == 0}
    batches, _ = segment_batches(segments, limits)
    assert [segment for batch in batches for segment in batch] == segments
    for batch in batches:
        assert sum(len(segment.tokens) for segment in batch) <= 40
        assert len(leaves.intersection(batch)) <= 3
    assert max(len(leaves.intersection(batch)) for batch in batches) == 3


def test_keys_that_a_batch_sees_are_limited() -> None:
    stem = tuple(range(100))
    sequences = [TokenSequence((*stem, 7 + n), [Target(100, 1, n)]) for n in range(200)]
    batches, _ = segment_batches(segments_of(sequences, 100), BatchLimits(100))
    assert max(sum(segment.end for segment in batch) for batch in batches) <= 16 * 100
    assert sum(len(segment.tokens) for batch in batches for segment in batch) == 100 + 200


def test_a_shared_beginning_is_computed_once() -> None:
    shots, questions = tuple(range(100)), [(200 + n,) * 10 for n in range(8)]
    sequences = [TokenSequence(shots + question) for question in questions]
    segments = segments_of(sequences, 10_000)
    assert [(segment.start, len(segment.tokens)) for segment in segments] == [(0, 100)] + [(100, 10)] * 8
    assert all(segment.parent is segments[0] for segment in segments[1:])


def test_runs_behind_one_stem_see_it_together() -> None:
    examples, question = tuple(range(100)), tuple(range(200, 230))
    sequences = [TokenSequence((*examples, *question, choice) + (9,) * 3) for choice in (1, 2, 3)]
    sequences += [TokenSequence(examples + (300 + n,) * 40) for n in range(2)]
    (batch,), _ = segment_batches(segments_of(sequences, 10_000), BatchLimits())
    stems, own_slots = stems_of([segment.run() for segment in batch])
    # The examples themselves, two questions, the question with choices, its three answers.
    assert [(first, last, len(slots)) for first, last, slots in stems] == [(1, 7, 100), (4, 7, 30)]
    assert [len(slots) for slots in own_slots] == [100, 40, 40, 30, 4, 4, 4]


def test_few_tokens_in_common_are_not_worth_a_run() -> None:
    sequences = [TokenSequence((1, 2, 3) + (n,) * 30) for n in (4, 5)]
    assert [len(segment.tokens) for segment in segments_of(sequences, 10_000)] == [33, 33]


def test_long_runs_are_cut_and_the_longest_branch_comes_first() -> None:
    sequences = [TokenSequence((9,) * 40 + (n,) * (10 * n)) for n in (1, 3, 2)]
    segments = segments_of(sequences, 25)
    assert [(segment.start, segment.tokens[0], len(segment.tokens)) for segment in segments] == [
        (0, 9, 25), (25, 9, 15), (40, 3, 25), (65, 3, 5), (40, 2, 20), (40, 1, 10),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_workers_share_the_sequences_evenly(size: int) -> None:
    sequences = few_shot(5, num_prompts=40)
    shares = [share_of_rank(sequences, rank, size) for rank in range(size)]
    assert sorted(sequence.tokens for share in shares for sequence in share) == sorted(s.tokens for s in sequences)
    loads = [sum(len(segment.tokens) for segment in segments_of(share, 10_000)) for share in shares]
    assert max(loads) <= 1.5 * sum(loads) / size


def test_nothing_to_do() -> None:
    assert share_of_rank([], 1, 2) == [] and segments_of([], 10) == []
    assert segment_batches([], BatchLimits()) == ([], 1)


def test_a_chain_of_beginnings_is_no_deep_recursion() -> None:
    tokens = tuple(range(1, 3000))
    sequences = [TokenSequence(tokens[:n], [Target(n - 1, 0, n - 1)]) for n in range(1, len(tokens))]
    segments = segments_of(sequences, 100_000)
    assert sum(len(segment.tokens) for segment in segments) <= 17 * len(tokens)
    batches, _ = segment_batches(segments, BatchLimits(1000))
    assert all(isinstance(segment, Segment) for batch in batches for segment in batch)

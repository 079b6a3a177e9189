"""Log-likelihoods of continuations under a model that is spread over processes in any way. M answers of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from megatron.core import parallel_state

from megatron_synE.checkpoint.model_state import bare
from megatron_synE.evaluation.engine import LogLikelihood, ScoringRequest
from megatron_synE.evaluation.llama.batching import (
    BatchLimits,
    Target,
    TokenSequence,
    check_requests,
    row_batches,
    token_sequences,
)
from megatron_synE.evaluation.llama.forward import (
    Found,
    ModelBatch,
    evaluation_mode,
    from_all_processes,
    padded_length,
    run_asked,
)
from megatron_synE.evaluation.llama.packed import packed_runs
from megatron_synE.evaluation.llama.prefixes import Segment, segment_batches, segments_of, share_of_rank
from megatron_synE.evaluation.llama.rows import padded_rows
from megatron_synE.model.key_value_cache import KeyValueCache

T = TypeVar("T")
OnDone = Callable[[Sequence[int], Sequence[LogLikelihood]], None]
BATCHES_PER_STAGE = 4
"""Batches that go through a pipeline one after the other, for each of its stages: it fills and empties once for all."""


@torch.no_grad()
def score(
    model_chunks: Sequence[torch.nn.Module],
    requests: Sequence[ScoringRequest],
    *,
    device: torch.device,
    max_length_tokens: int | None = None,
    limits: BatchLimits = BatchLimits(),  # noqa: B008 - frozen
    share_prefixes: bool = True,
    host_group: torch.distributed.ProcessGroup | None = None,
    on_done: OnDone = lambda numbers, answers: None,
    before_round: Callable[[int, int], None] = lambda number, num_rounds: None,
) -> list[LogLikelihood]:
    """ln p of each continuation after its context, in the order of `requests`.

    Called by all processes with the same requests; data-parallel ones share the work. All get the same answers, to the
    last bit. The model may be one that trains: its mode is put back.

    Args:
        model_chunks: this process's `LlamaModel`s, bare or in DistributedDataParallel.
        max_length_tokens: tokens that the model reads at most; by default its context.
        share_prefixes: compute a beginning that requests have in common once. Models that cannot (context parallelism,
            Transformer Engine) read whole sequences, as all do without it; the answers are the same, up to rounding.
        host_group: all processes, over which answers travel; by default torch.distributed's own group.
        on_done: told after each round, on every process, which requests are answered, and how.
        before_round: told the number of each round, from 0, and how many there are.

    Raises:
        ValueError: a request that the model cannot answer.
        FloatingPointError: the model's weights give no number.
    """
    model = bare(model_chunks[0])
    max_length_tokens = max_length_tokens or model.max_sequence_length
    check_requests(requests, model.unpadded_vocab_size, max_length_tokens)
    answers = _Answers(requests)
    sequences = token_sequences(requests, max_length_tokens)
    if share_prefixes and model.takes_cached_tokens():
        batches = _prefix_batches(model_chunks, sequences, max_length_tokens, limits, device)
    else:
        batches = _row_batches(model_chunks, sequences, limits, device)
    per_round = _batches_per_round()
    num_rounds = _largest(-(-len(batches) // per_round), device)
    with evaluation_mode(model_chunks):
        for number in range(num_rounds):
            before_round(number, num_rounds)
            made = [make() for make in batches[number * per_round : (number + 1) * per_round]]
            done = answers.add(from_all_processes(run_asked(model_chunks, made), host_group))
            if done:
                on_done(done, [answers.of(request) for request in done])
    return [answers.of(request) for request in range(len(requests))]


MakeBatch = Callable[[], tuple[ModelBatch, list[Target]]]


def _prefix_batches(
    model_chunks: Sequence[torch.nn.Module], sequences: Sequence[TokenSequence], max_length_tokens: int,
    limits: BatchLimits, device: torch.device,
) -> list[MakeBatch]:  # fmt: skip
    """This process's batches of sequences whose common beginnings are computed once."""
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    own = share_of_rank(sequences, rank, size)
    batches, num_slots = segment_batches(segments_of(own, limits.tokens), limits)
    cache = KeyValueCache(num_slots)
    made: list[MakeBatch] = []
    for together in _rounds(batches):
        num_tokens = max(sum(len(segment.tokens) for segment in batch) for batch in together)
        num_tokens = padded_length(model_chunks, num_tokens)
        made += [partial(_packed, batch, num_tokens, cache, max_length_tokens, device) for batch in together]
    return made


def _packed(segments: Sequence[Segment], *arguments: Any) -> tuple[ModelBatch, list[Target]]:
    return packed_runs([segment.run() for segment in segments], *arguments)


def _row_batches(
    model_chunks: Sequence[torch.nn.Module], sequences: Sequence[TokenSequence], limits: BatchLimits,
    device: torch.device,
) -> list[MakeBatch]:  # fmt: skip
    """This process's batches of whole sequences."""
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    made: list[MakeBatch] = []
    for together in _rounds(row_batches(sequences, limits)[rank::size]):
        num_rows = max(map(len, together))
        num_tokens = max(len(sequence.tokens) for batch in together for sequence in batch)
        num_tokens = padded_length(model_chunks, num_tokens)
        made += [partial(padded_rows, batch, num_rows, num_tokens, device) for batch in together]
    return made


def _rounds(batches: Sequence[list[T]]) -> Iterator[list[list[T]]]:
    """The batches that go through the pipeline together; empty ones fill them up to a multiple of its stages, by which
    virtual stages work."""
    stages, per_round = parallel_state.get_pipeline_model_parallel_world_size(), _batches_per_round()
    for first in range(0, len(batches), per_round):
        together = list(batches[first : first + per_round])
        yield together + [[] for _ in range(-len(together) % stages)]


def _batches_per_round() -> int:
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    return BATCHES_PER_STAGE * stages if stages > 1 else 1


def _largest(number: int, device: torch.device) -> int:
    """Over all processes: replicas of the model that have less to do wait for the others' answers."""
    largest = torch.tensor(number, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


class _Answers:
    """Answers that are put together from what is found for each of their tokens."""

    def __init__(self, requests: Sequence[ScoringRequest]) -> None:
        self._missing: npt.NDArray[np.int64] = np.array([len(request.continuation) for request in requests])
        self._value = np.zeros(len(requests))
        self._is_greedy = np.ones(len(requests), dtype=bool)

    def add(self, found: Found) -> list[int]:
        """Numbers of the requests that are answered now."""
        done = []
        for target, value, most_probable in found:
            request = target.request
            self._value[request] += value
            self._is_greedy[request] &= target.token == int(most_probable)
            self._missing[request] -= 1
            if self._missing[request] == 0:
                done.append(request)
        return done

    def of(self, request: int) -> LogLikelihood:
        """The answer to a request."""
        assert self._missing[request] == 0, request
        value = float(self._value[request])
        if not math.isfinite(value):
            raise FloatingPointError(f"the log-likelihood of request {request} is {value}")
        return LogLikelihood(value, bool(self._is_greedy[request]))

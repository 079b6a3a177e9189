"""Log-likelihoods of continuations under a model that is spread over processes in any way. M answers of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from megatron.core import parallel_state

from megatron_synE.checkpoint.model_state import bare, finish_param_gather
from megatron_synE.evaluation.batching import BatchLimits, Target, check_requests, row_batches, token_sequences
from megatron_synE.evaluation.engine import LogLikelihood, ScoringRequest
from megatron_synE.evaluation.forward import ModelBatch, run_batches
from megatron_synE.evaluation.rows import padded_rows

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
    host_group: torch.distributed.ProcessGroup | None = None,
    on_done: OnDone = lambda numbers, answers: None,
    before_round: Callable[[int, int], None] = lambda number, num_rounds: None,
) -> list[LogLikelihood]:
    """ln p of each continuation after its context, in the order of `requests`.

    Called by all processes with the same requests; data-parallel ones share the work. All get the same answers, to the
    last bit. The model may be one that trains: its mode is put back, and it takes its usual way through the layers.

    Args:
        model_chunks: this process's `LlamaModel`s, bare or in DistributedDataParallel.
        max_length_tokens: tokens that the model reads at most; by default its context.
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
    batches = _row_batches(model_chunks, requests, max_length_tokens, limits, device)
    per_round = _batches_per_round()
    num_rounds = largest(-(-len(batches) // per_round), device)
    with evaluation_mode(model_chunks):
        for number in range(num_rounds):
            before_round(number, num_rounds)
            made = [make() for make in batches[number * per_round : (number + 1) * per_round]]
            outputs = run_batches(model_chunks, [batch for batch, _ in made]) if made else []
            found = [
                (target, *output) for (_, targets), values_M2 in zip(made, outputs, strict=False)
                for target, output in zip(targets, values_M2.tolist(), strict=True)
            ]  # fmt: skip
            done = answers.add(from_all_processes(found, host_group))
            if done:
                on_done(done, [answers.of(request) for request in done])
    return [answers.of(request) for request in range(len(requests))]


MakeBatch = Callable[[], tuple[ModelBatch, list[Target]]]


def _row_batches(
    model_chunks: Sequence[torch.nn.Module], requests: Sequence[ScoringRequest], max_length_tokens: int,
    limits: BatchLimits, device: torch.device,
) -> list[MakeBatch]:  # fmt: skip
    """This process's batches of whole sequences; those of a round have one shape, and fill the pipeline."""
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    multiple = bare(model_chunks[0]).token_multiple()
    own = row_batches(token_sequences(requests, max_length_tokens), limits)[rank::size]
    stages, per_round = parallel_state.get_pipeline_model_parallel_world_size(), _batches_per_round()
    made: list[MakeBatch] = []
    for first in range(0, len(own), per_round):
        together = own[first : first + per_round]
        num_rows = max(map(len, together))
        num_tokens = -(-max(len(sequence.tokens) for batch in together for sequence in batch) // multiple) * multiple
        while len(together) % stages:
            together.append([])  # virtual stages work through batches by as many as there are stages
        made += [partial(padded_rows, batch, num_rows, num_tokens, device) for batch in together]
    return made


def _batches_per_round() -> int:
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    return BATCHES_PER_STAGE * stages if stages > 1 else 1


def largest(number: int, device: torch.device) -> int:
    """Over all processes: replicas of the model that have less to do wait for the others' answers."""
    largest = torch.tensor(number, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


@contextmanager
def evaluation_mode(model_chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Inside, the model is whole and in evaluation mode; afterwards it is in the mode that it was in."""
    finish_param_gather(model_chunks)
    were_training = [chunk.training for chunk in model_chunks]
    for chunk in model_chunks:
        chunk.eval()
    try:
        yield
    finally:
        for chunk, was_training in zip(model_chunks, were_training, strict=True):
            chunk.train(was_training)


Found = list[tuple[Target, float, float]]
"""What was asked, ln p of the token, and the most probable token there."""


def from_all_processes(found: Found, group: torch.distributed.ProcessGroup | None) -> Found:
    """The findings of all processes, in the order of their ranks. Of a tensor-parallel group, all know the same."""
    own = found if parallel_state.get_tensor_model_parallel_rank() == 0 else []
    if torch.distributed.get_world_size() == 1:
        return own
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, [(*target, *output) for target, *output in own], group=group)
    return [(Target(*row[:3]), *row[3:]) for rows in everyone for row in rows]


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

"""Greedy continuation of prompts by a model that is spread over processes in any way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_synE.checkpoint.model_state import bare
from megatron_synE.evaluation.batching import BatchLimits, Target, TokenSequence
from megatron_synE.evaluation.forward import ModelBatch, run_batches
from megatron_synE.evaluation.rows import padded_rows
from megatron_synE.evaluation.scoring import evaluation_mode, from_all_processes


@dataclass
class Continuation:
    """A prompt and what was made of it so far."""

    number: int
    """Of its request."""
    prompt: tuple[int, ...]
    max_new_tokens: int
    new_tokens: list[int] = field(default_factory=list)
    is_finished: bool = False

    @property
    def num_tokens(self) -> int:
        """Read and written."""
        return len(self.prompt) + len(self.new_tokens)


@torch.no_grad()
def generate(
    model_chunks: Sequence[torch.nn.Module],
    prompts: Sequence[tuple[tuple[int, ...], int]],
    *,
    device: torch.device,
    is_finished: Callable[[int, Sequence[int]], bool],
    end_of_text_ids: Collection[int] = (),
    max_length_tokens: int | None = None,
    limits: BatchLimits = BatchLimits(),  # noqa: B008 - frozen
    host_group: torch.distributed.ProcessGroup | None = None,
    on_done: Callable[[int, Sequence[int]], None] = lambda number, tokens: None,
) -> list[list[int]]:
    """The most probable next token of each prompt, again and again; new tokens in the order of `prompts`.

    Called by all processes with the same prompts; data-parallel ones share the work. All get the same tokens.

    Args:
        model_chunks: this process's `LlamaModel`s, bare or in DistributedDataParallel.
        prompts: ids, and how many new ones at most. Prompt and new ones together are at most `max_length_tokens`: a
            longer prompt loses its beginning, as in lm-evaluation-harness's `hf` model.
        is_finished: asked on rank 0 after each token that ends no text, with the number of the prompt and all its new
            tokens.
        end_of_text_ids: end a continuation, and are left out of it.
        max_length_tokens: by default the model's context.
        limits: of the tokens and sequences that are worked on at once.
        host_group: all processes, over which tokens travel; by default torch.distributed's own group.
        on_done: told on every process when a continuation is complete.

    Raises:
        ValueError: a prompt that the model cannot continue.
    """
    model = bare(model_chunks[0])
    max_length_tokens = max_length_tokens or model.max_sequence_length
    check_prompts(prompts, model.unpadded_vocab_size, max_length_tokens)
    continuations = [
        Continuation(number, tuple(prompt[-(max_length_tokens - max_new_tokens) :]), max_new_tokens)
        for number, (prompt, max_new_tokens) in enumerate(prompts)
    ]
    waiting = deque(sorted(continuations, key=lambda one: (-len(one.prompt), one.prompt)))
    active: list[list[Continuation]] = [[] for _ in range(parallel_state.get_data_parallel_world_size())]
    with evaluation_mode(model_chunks):
        while waiting or any(active):
            for running in sorted(active, key=len):
                while waiting and _has_room(running, waiting[0], limits):
                    running.append(waiting.popleft())
            own = active[parallel_state.get_data_parallel_rank()]
            found = from_all_processes(_next_tokens(model_chunks, own, limits, device), host_group)
            for target, _, most_probable in found:
                continuations[target.request].new_tokens.append(int(most_probable))
            for one in _finish(active, is_finished, end_of_text_ids, host_group):
                on_done(one.number, one.new_tokens)
            active = [[one for one in running if not one.is_finished] for running in active]
    return [one.new_tokens for one in continuations]


def check_prompts(prompts: Sequence[tuple[tuple[int, ...], int]], vocab_size: int, max_length_tokens: int) -> None:
    """Whether a model of these sizes can continue them.

    Raises:
        ValueError: an id outside the vocabulary, an empty prompt, or no room for one beside the new tokens.
    """
    for number, (prompt, max_new_tokens) in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {number}: it needs a token, at least")
        if not 0 < max_new_tokens < max_length_tokens:
            raise ValueError(
                f"prompt {number}: {max_new_tokens} new tokens are asked for; the model's context of "
                f"{max_length_tokens} takes 1 to {max_length_tokens - 1} and a prompt"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ValueError(
                f"prompt {number}: a token id is not in the model's vocabulary of {vocab_size}: the text was encoded "
                "with another tokenizer"
            )


def _has_room(running: Sequence[Continuation], another: Continuation, limits: BatchLimits) -> bool:
    if not running:
        return True
    if limits.sequences is not None and len(running) >= limits.sequences:
        return False
    longest = max(len(one.prompt) + one.max_new_tokens for one in (*running, another))
    return longest * (len(running) + 1) <= limits.tokens


def _next_tokens(
    model_chunks: Sequence[torch.nn.Module], running: Sequence[Continuation], limits: BatchLimits, device: torch.device
) -> list[tuple[Target, float, float]]:
    """The next token of each, by reading all before it again."""
    if not running:
        return []
    multiple = bare(model_chunks[0]).token_multiple()
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    sequences = []
    for one in running:
        tokens = (*one.prompt, *one.new_tokens)
        sequences.append(TokenSequence(tokens, [Target(len(tokens) - 1, 0, one.number)]))
    num_rows = -(-len(sequences) // stages)
    num_tokens = -(-max(len(sequence.tokens) for sequence in sequences) // multiple) * multiple
    made: list[tuple[ModelBatch, list[Target]]] = [
        padded_rows(sequences[first * num_rows : (first + 1) * num_rows], num_rows, num_tokens, device)
        for first in range(stages)
    ]
    outputs = run_batches(model_chunks, [batch for batch, _ in made])
    return [
        (target, *output) for (_, targets), values_M2 in zip(made, outputs, strict=False)
        for target, output in zip(targets, values_M2.tolist(), strict=True)
    ]  # fmt: skip


def _finish(
    active: Sequence[Sequence[Continuation]], is_finished: Callable[[int, Sequence[int]], bool],
    end_of_text_ids: Collection[int], group: torch.distributed.ProcessGroup | None,
) -> list[Continuation]:  # fmt: skip
    """Mark what has ended, as rank 0 sees it, and take the end-of-text token away."""
    running = [one for replica in active for one in replica]
    ended: list[Any] = [[]]
    if torch.distributed.get_rank() == 0:
        ended[0] = [
            n for n, one in enumerate(running)
            if one.new_tokens[-1] in end_of_text_ids
            or is_finished(one.number, one.new_tokens)
            or len(one.new_tokens) == one.max_new_tokens
        ]  # fmt: skip
    if torch.distributed.get_world_size() > 1:
        torch.distributed.broadcast_object_list(ended, src=0, group=group)
    finished = [running[n] for n in ended[0]]
    for one in finished:
        one.is_finished = True
        if one.new_tokens[-1] in end_of_text_ids:
            one.new_tokens.pop()
    return finished

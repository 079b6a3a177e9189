"""Greedy continuation of prompts by a model that is spread over processes in any way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_synE.checkpoint.model_state import bare
from megatron_synE.evaluation.llama.batching import BatchLimits
from megatron_synE.evaluation.llama.continuations import CachedSequences, Continuation, WholeSequences, Writer
from megatron_synE.evaluation.llama.forward import evaluation_mode, from_all_processes


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
    share_prefixes: bool = True,
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
        share_prefixes: keep the keys and values of what was read, and read a beginning that prompts have in common
            once. Models that cannot (context parallelism, Transformer Engine) read everything again for each token, as
            all do without it; the tokens are the same.
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
    own = continuations[parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()]
    writer: Writer
    if share_prefixes and model.takes_cached_tokens():
        writer = CachedSequences(model_chunks, own, limits, max_length_tokens, device)
    else:
        writer = WholeSequences(model_chunks, own, limits, device)
    num_done = 0
    with evaluation_mode(model_chunks):
        while num_done < len(continuations):
            found = from_all_processes(writer.next_tokens(), host_group)
            for target, _, most_probable in found:
                continuations[target.request].new_tokens.append(int(most_probable))
            running = [continuations[target.request] for target, *_ in found]
            for one in _finished(running, is_finished, end_of_text_ids, host_group):
                writer.end(one)
                on_done(one.number, one.new_tokens)
                num_done += 1
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


def _finished(
    running: Sequence[Continuation], is_finished: Callable[[int, Sequence[int]], bool],
    end_of_text_ids: Collection[int], group: torch.distributed.ProcessGroup | None,
) -> list[Continuation]:  # fmt: skip
    """Those that have ended, as rank 0 sees it, without their end-of-text token."""
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
        if one.new_tokens[-1] in end_of_text_ids:
            one.new_tokens.pop()
    return finished

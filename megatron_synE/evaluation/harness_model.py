"""lm-evaluation-harness's model over an engine: its texts become token ids, its answers are journalled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from megatron_synE.evaluation.answers import AnswerJournal, key_of
from megatron_synE.evaluation.encoding import RequestEncoder
from megatron_synE.evaluation.engine import Engine, LogLikelihood, ScoringRequest
from megatron_synE.evaluation.engines.generators import Generator, Prompt
from megatron_synE.progress import ProgressBar

DEFAULT_MAX_NEW_TOKENS = 256
"""The harness's, for tasks that name no max_gen_toks."""
PORTION_REQUESTS = 1024
"""Likelihoods that the engine is asked for at a time; a killed evaluation loses so many."""


class HarnessModel(TemplateLM):
    """Answers the harness's requests.

    Args:
        engine: scores.
        generator: continues prompts.
        encoder: texts to ids and back.
        journal: has the answers of earlier starts, and keeps those of this one.
        show: whether progress is shown.

    Attributes:
        num_truncated: requests that were longer than the model's context and lost their beginning.
    """

    def __init__(
        self, engine: Engine, generator: Generator, encoder: RequestEncoder, journal: AnswerJournal, *,
        show: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.engine, self.generator, self.encoder = engine, generator, encoder
        self.num_truncated = 0
        self._journal, self._show = journal, show

    @property
    def eot_token_id(self) -> int:
        """What stands before a text without a context."""
        return self.encoder.prefix_id

    @property
    def max_length(self) -> int:
        """Longest request, in tokens."""
        return self.engine.max_length_tokens

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; with BOS by the policy unless `add_special_tokens` is False."""
        return list(self.encoder.encode([string], with_bos=add_special_tokens is not False)[0])

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """ln p of each continuation after its context, and whether it is the greedy one."""
        pairs = [(str(request.args[0]), str(request.args[1])) for request in requests]
        return [(answer.value, answer.is_greedy) for answer in self._scored(self.encoder.encode_pairs(pairs))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """ln p of each text after one BOS, in windows of the model's context."""
        texts = self.encoder.encode([str(request.args[0]) for request in requests], with_bos=False)
        prefix, size = self.eot_token_id, self.engine.max_length_tokens
        windows = [
            [make_disjoint_window(pair) for pair in get_rolling_token_windows(list(ids), prefix, size, 1)]
            for ids in texts
        ]
        flat = [ScoringRequest(tuple(context), tuple(rest)) for own in windows for context, rest in own]
        answers = iter(self._scored(flat))
        return [sum(next(answers).value for _ in own) for own in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The greedy continuation of each prompt, cut before its stop.

        Raises:
            ValueError: a task asks for sampling, or for more tokens than the model's context.
        """
        contexts = self.encoder.encode_prompts([str(request.args[0]) for request in requests])
        prompts = [
            self._prompt(ids, request.args[1], request.task_name)
            for ids, request in zip(contexts, requests, strict=True)
        ]
        keys = [key_of("generate", [prompt.ids], prompt.stops, prompt.max_new_tokens) for prompt in prompts]
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if self._journal.get(key) is None}
        new_keys = list(new)
        with self._progress("generations", len(set(keys)), len(new_keys)) as bar:

            def keep(number: int, text: str) -> None:
                self._journal.add({new_keys[number]: text})
                bar.advance(1)

            if new:
                self.generator.generate(list(new.values()), keep)
        return [str(self._journal.get(key)) for key in keys]

    def notes(self) -> Iterator[str]:
        """What is to be told of the requests that were made."""
        yield from self.encoder.notes()
        if self.num_truncated:
            yield (
                f"{self.num_truncated:,} requests are longer than the model's context of "
                f"{self.engine.max_length_tokens:,} tokens and lost their beginning, its begin-of-text token too"
            )

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        scored = self._scored([ScoringRequest(tuple(context), tuple(rest)) for _, context, rest in requests])
        return [(answer.value, answer.is_greedy) for answer in scored]

    def _scored(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        """Answers in the order of `requests`.

        The engine gets them in portions, each answered whole or asked again whole: how it makes batches of one moves
        the last digits, and a later start must find the same ones.
        """
        keys = [key_of("log_likelihood", request) for request in requests]
        unique = dict(zip(keys, requests, strict=True))
        self.num_truncated += sum(map(self._is_too_long, requests))
        unasked = []
        for portion in batched(unique, PORTION_REQUESTS):
            if any(self._journal.get(key) is None for key in portion):
                unasked.append(portion)
        with self._progress("log-likelihoods", len(unique), sum(map(len, unasked))) as bar:
            for portion in unasked:
                answers = self.engine.log_likelihoods(
                    [unique[key] for key in portion], lambda numbers, answers: bar.advance(len(numbers))
                )
                if not all(math.isfinite(answer.value) for answer in answers):
                    raise ValueError("the model gives probabilities that are not numbers; its weights are damaged")
                found = zip(portion, answers, strict=True)
                self._journal.add({key: [answer.value, answer.is_greedy] for key, answer in found})
        return [LogLikelihood(*self._journal.get(key)) for key in keys]

    def _progress(self, what: str, total: int, num_left: int) -> ProgressBar:
        return ProgressBar(what, total, "requests", done=total - num_left, show=self._show)

    def _is_too_long(self, request: ScoringRequest) -> bool:
        return len(request.context) + len(request.continuation) > self.engine.max_length_tokens + 1

    def _prompt(self, ids: tuple[int, ...], options: Any, task: str | None) -> Prompt:
        options = normalize_gen_kwargs(dict(options), DEFAULT_MAX_NEW_TOKENS)
        if options["do_sample"] or options.get("temperature"):
            raise ValueError(f"task {task}: asks for sampling; set do_sample: false in its generation_kwargs")
        max_new_tokens = int(options["max_gen_toks"])
        room = self.engine.max_length_tokens - max_new_tokens
        if room < 1:
            raise ValueError(
                f"task {task}: {max_new_tokens} new tokens (max_gen_toks) leave no room for a prompt in the model's "
                f"context of {self.engine.max_length_tokens} tokens; lower max_gen_toks in its generation_kwargs"
            )
        self.num_truncated += len(ids) > room
        return Prompt(ids[-room:], tuple(stop for stop in options["until"] if stop), max_new_tokens)


def batched(values: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    """Neighbours by so many; Python 3.12 has it in itertools."""
    rest = iter(values)
    while portion := tuple(islice(rest, size)):
        yield portion

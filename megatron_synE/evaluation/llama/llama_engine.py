"""A Llama on megatron-core as the harness's engine: rank 0 leads, the other processes serve it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from megatron.core import parallel_state

from megatron_synE.checkpoint import architecture_from_hf, init_from_hf, load_checkpoint, read_state
from megatron_synE.checkpoint.collective import together
from megatron_synE.checkpoint.layout import read_architecture, resolve
from megatron_synE.checkpoint.model_state import bare, layout_of_run
from megatron_synE.config.model import LlamaArchitecture, ModelConfig
from megatron_synE.config.parallel import ParallelConfig
from megatron_synE.config.precision import PrecisionConfig
from megatron_synE.evaluation.engine import GenerationRequest, LogLikelihood, ScoringRequest
from megatron_synE.evaluation.engines.model_identity import checkpoint_fingerprint, hf_fingerprint
from megatron_synE.evaluation.llama.batching import BatchLimits, check_requests
from megatron_synE.evaluation.llama.generation import check_prompts, generate
from megatron_synE.evaluation.llama.scoring import score
from megatron_synE.model import build_model_chunks
from megatron_synE.runtime import Runtime, initialize, shut_down

T = TypeVar("T")

IDLE_TIMEOUT = timedelta(days=7)
"""How long processes wait for the next word of rank 0, which may judge answers for hours; its death they notice."""


@dataclass(frozen=True)
class EngineOptions:
    """How a model is loaded and asked."""

    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Layout over the processes that torchrun started; it need not be that of the training run."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Of weights and activations."""
    transformer_impl: Literal["fused", "local", "transformer_engine"] = "fused"
    """See `ModelConfig.transformer_impl`."""
    limits: BatchLimits = field(default_factory=BatchLimits)
    """How much goes through the model at once."""
    max_length_tokens: int | None = None
    """Longest context and continuation together; none for the model's context."""
    share_prefixes: bool = True
    """Compute what requests begin with in common once; the answers are the same without."""
    end_of_text_ids: Collection[int] = ()
    """Tokens that end a generated text."""


class LlamaEngine:
    """Implements `evaluation.engine.Engine`. All processes build it; then rank 0 asks, and the others `serve`.

        engine = LlamaEngine.from_checkpoint(path, EngineOptions(parallel))
        result = engine.lead(evaluate)      # evaluate(engine) on rank 0; None on the others

    Args:
        model_chunks: this process's `LlamaModel`s, bare or in DistributedDataParallel; those of a run may train on.
        runtime: where this process stands.
        info: what determines the answers, beside the layout.
        leave: called at the end: gives back the process groups that were made for this model.
    """

    def __init__(
        self, model_chunks: Sequence[torch.nn.Module], runtime: Runtime, options: EngineOptions, info: dict[str, Any],
        *, leave: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        model = bare(model_chunks[0])
        self.max_length_tokens: int = options.max_length_tokens or model.max_sequence_length
        self.vocab_size: int = model.unpadded_vocab_size
        self._chunks, self._runtime, self._options = model_chunks, runtime, options
        self._info = {
            **info, "dtype": options.dtype, "transformer_impl": options.transformer_impl, "layout": layout_of_run(),
            "max_length_tokens": self.max_length_tokens, "batch_limits": dataclasses.asdict(options.limits),
        }  # fmt: skip
        self._leave_runtime = leave
        self._is_open, self._is_broken = True, False
        # A group of its own: what the model computes has the run's time limit, and waiting for rank 0 has not.
        alone = runtime.world_size == 1
        self._commands = None if alone else torch.distributed.new_group(backend="gloo", timeout=IDLE_TIMEOUT)

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path, options: EngineOptions) -> LlamaEngine:
        """The model of a training checkpoint, where it lies; called by all processes.

        Args:
            checkpoint: a step's folder, or a run's (then its latest step).

        Raises:
            ValueError: there is no complete checkpoint, or the layout does not fit the model or the processes.
        """
        directory = resolve(checkpoint)
        architecture = read_architecture(directory)
        info = {
            "type": "checkpoint", "path": str(directory), "step": read_state(directory)["step"],
            "fingerprint": checkpoint_fingerprint(directory),
        }  # fmt: skip

        def load(chunks: Sequence[torch.nn.Module]) -> None:
            load_checkpoint(directory, architecture=architecture, model_chunks=chunks, weights_only=True)

        return cls._load(architecture, options, info, load)

    @classmethod
    def from_hf(cls, hf_dir: str | Path, options: EngineOptions) -> LlamaEngine:
        """The model of a Hugging Face Llama's folder; called by all processes.

        Raises:
            ValueError: not a Llama, a file is missing or broken, or the layout does not fit.
        """
        architecture = architecture_from_hf(hf_dir)
        info = {"type": "huggingface", "path": str(hf_dir), "fingerprint": hf_fingerprint(hf_dir)}

        def load(chunks: Sequence[torch.nn.Module]) -> None:
            together(lambda: init_from_hf(chunks, hf_dir))

        return cls._load(architecture, options, info, load)

    @classmethod
    def _load(
        cls, architecture: LlamaArchitecture, options: EngineOptions, info: dict[str, Any],
        load: Callable[[Sequence[torch.nn.Module]], None],
    ) -> LlamaEngine:  # fmt: skip
        shared_by = options.parallel.tensor_model_parallel_size * options.parallel.context_parallel_size
        if problems := options.parallel.problems_with(architecture, 2 * shared_by):
            raise ValueError("\n".join(problems))
        # Torch's own processes belong to whoever brought them up.
        leave = parallel_state.destroy_model_parallel if torch.distributed.is_initialized() else shut_down
        runtime = initialize(options.parallel)
        chunks = build_model_chunks(
            architecture, ModelConfig(transformer_impl=options.transformer_impl), options.parallel,
            PrecisionConfig(dtype=options.dtype), device=runtime.device,
        )  # fmt: skip
        load(chunks)
        info = {**info, "architecture": dataclasses.asdict(architecture)}
        return cls(chunks, runtime, options, info, leave=leave)

    @property
    def is_main(self) -> bool:
        """Whether this process asks; the others serve."""
        return self._runtime.is_main

    def info(self) -> dict[str, Any]:
        """What determines the answers; the layout and the batch limits only determine rounding."""
        return self._info

    def lead(self, work: Callable[[LlamaEngine], T]) -> T | None:
        """Do `work` on rank 0 while the others serve it, then close; its result there, and None on the others."""
        if not self.is_main:
            self.serve()
            return None
        try:
            return work(self)
        finally:
            self.close()

    def log_likelihoods(
        self,
        requests: Sequence[ScoringRequest],
        on_done: Callable[[Sequence[int], Sequence[LogLikelihood]], None] = lambda numbers, answers: None,
    ) -> list[LogLikelihood]:
        """See `Engine`; on rank 0 only.

        Raises:
            ValueError: a request that the model cannot answer.
        """
        check_requests(requests, self.vocab_size, self.max_length_tokens)
        if not requests:
            return []
        # Contexts recur, and one object travels once.
        once: dict[tuple[int, ...], tuple[int, ...]] = {}
        plain = [(once.setdefault(tuple(context), tuple(context)), tuple(rest)) for context, rest in requests]
        with self._together():
            self._tell("score", plain)
            return self._score(plain, on_done)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        on_done: Callable[[int, Sequence[int]], None] = lambda number, tokens: None,
    ) -> list[list[int]]:
        """See `Engine`; on rank 0 only.

        Raises:
            ValueError: a prompt that the model cannot continue.
        """
        prompts = [(tuple(request.prompt), request.max_new_tokens) for request in requests]
        check_prompts(prompts, self.vocab_size, self.max_length_tokens)
        if not requests:
            return []
        with self._together():
            self._tell("generate", prompts)
            return self._generate(prompts, lambda number, tokens: requests[number].is_finished(tokens), on_done)

    def serve(self) -> None:
        """Compute along until rank 0 closes; on all other ranks."""
        assert not self.is_main, "rank 0 asks"
        while self._is_open:
            with self._together():
                command, content = self._listen()
                if command == "score":
                    self._score(content)
                elif command == "generate":
                    self._generate(content)
                else:
                    self._leave()

    def close(self) -> None:
        """End the others' `serve` and give the model back; on rank 0. After an error the others end by themselves."""
        if self._is_open:
            if not self._is_broken:
                self._tell("close", None)
            self._leave()

    def _score(
        self, requests: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
        on_done: Callable[[Sequence[int], Sequence[LogLikelihood]], None] = lambda numbers, answers: None,
    ) -> list[LogLikelihood]:  # fmt: skip
        return score(
            self._chunks, [ScoringRequest(*request) for request in requests], device=self._runtime.device,
            max_length_tokens=self.max_length_tokens, limits=self._options.limits,
            share_prefixes=self._options.share_prefixes, host_group=self._runtime.host_group, on_done=on_done,
        )  # fmt: skip

    def _generate(
        self, prompts: Sequence[tuple[tuple[int, ...], int]],
        is_finished: Callable[[int, Sequence[int]], bool] = lambda number, tokens: False,
        on_done: Callable[[int, Sequence[int]], None] = lambda number, tokens: None,
    ) -> list[list[int]]:  # fmt: skip
        return generate(
            self._chunks, prompts, device=self._runtime.device, is_finished=is_finished,
            end_of_text_ids=frozenset(self._options.end_of_text_ids), max_length_tokens=self.max_length_tokens,
            limits=self._options.limits, share_prefixes=self._options.share_prefixes,
            host_group=self._runtime.host_group, on_done=on_done,
        )  # fmt: skip

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What all processes do at once. After an error in it, this one is out of step with the others."""
        if not self._is_open or self._is_broken:
            raise RuntimeError("the engine is closed, or ended with an error; build another one")
        try:
            yield
        except BaseException:
            self._is_broken = True
            if not self.is_main:
                self._leave()  # its connections close, by which the others notice
            raise

    def _tell(self, command: str, content: Any) -> None:
        if self._commands is not None:
            torch.distributed.broadcast_object_list([(command, content)], src=0, group=self._commands)

    def _listen(self) -> tuple[str, Any]:
        heard: list[Any] = [None]
        torch.distributed.broadcast_object_list(heard, src=0, group=self._commands)
        return heard[0]

    def _leave(self) -> None:
        self._is_open, self._chunks = False, ()
        if self._commands is not None:
            torch.distributed.destroy_process_group(self._commands)
        self._leave_runtime()

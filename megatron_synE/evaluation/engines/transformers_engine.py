"""Any causal model of a Hugging Face folder, by transformers. B rows, S tokens, V vocabulary, M answers, N positions.

Only from files that are there, only from safetensors, and no code that lies in the folder is run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from megatron_synE.evaluation.engine import GenerationRequest, LogLikelihood, ScoringRequest
from megatron_synE.evaluation.engines.model_identity import hf_fingerprint

CONFIG_FILE = "config.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TransformersEngine:
    """Implements `Engine`.

    Args:
        folder: of the model.
        dtype: of weights and compute, fp32 or bf16.
        device: where it runs.
        tokens_per_batch: most tokens of a batch, padding included; one request may have more.
        max_length_tokens: that the model reads at most; None for its context.

    Raises:
        ValueError: the folder has no model that transformers can read.
    """

    def __init__(
        self, folder: Path, *, dtype: str, device: torch.device, tokens_per_batch: int,
        max_length_tokens: int | None = None,
    ) -> None:  # fmt: skip
        self._folder, self._dtype, self._device, self._tokens_per_batch = folder, dtype, device, tokens_per_batch
        self._model = _load(folder, dtype).to(device).eval()
        config = self._model.config.get_text_config()
        self.max_length_tokens = max_length_tokens or int(config.max_position_embeddings)
        self.vocab_size = int(config.vocab_size)
        self._keeps_logits = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        eos = self._model.generation_config.eos_token_id
        eos = config.eos_token_id if eos is None else eos
        self._eos_ids: list[int] = [] if eos is None else list(eos) if isinstance(eos, list | tuple) else [eos]

    def info(self) -> dict[str, Any]:
        """See Engine."""
        import transformers

        return {
            "type": "transformers",
            "path": str(self._folder),
            "fingerprint": hf_fingerprint(self._folder),
            "model_type": self._model.config.model_type,
            "dtype": self._dtype,
            "device": str(self._device),
            "max_length_tokens": self.max_length_tokens,
            "batch_limits": {"tokens": self._tokens_per_batch},
            "transformers": transformers.__version__,
        }

    def log_likelihoods(
        self,
        requests: Sequence[ScoringRequest],
        on_done: Callable[[Sequence[int], Sequence[LogLikelihood]], None] = lambda numbers, answers: None,
    ) -> list[LogLikelihood]:
        """See Engine."""
        texts = [(*request.context, *request.continuation)[-(self.max_length_tokens + 1) :] for request in requests]
        found: dict[int, LogLikelihood] = {}
        for numbers in self._batches([len(text) for text in texts], new_tokens=0):
            rows = [texts[number] for number in numbers]
            lengths = [len(requests[number].continuation) for number in numbers]
            answers = self._score(rows, lengths)
            found.update(zip(numbers, answers, strict=True))
            on_done(numbers, answers)
        return [found[number] for number in range(len(requests))]

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        on_done: Callable[[int, Sequence[int]], None] = lambda number, tokens: None,
    ) -> list[list[int]]:
        """See Engine."""
        found: dict[int, list[int]] = {}
        by_room: dict[int, list[int]] = {}
        for number, request in enumerate(requests):
            by_room.setdefault(request.max_new_tokens, []).append(number)
        for max_new_tokens, own in by_room.items():
            lengths = [len(requests[number].prompt) for number in own]
            for batch in self._batches(lengths, new_tokens=max_new_tokens):
                numbers = [own[place] for place in batch]
                continuations = self._continue([requests[number] for number in numbers], max_new_tokens)
                for number, tokens in zip(numbers, continuations, strict=True):
                    found[number] = tokens
                    on_done(number, tokens)
        return [found[number] for number in range(len(requests))]

    def close(self) -> None:
        """See Engine."""
        del self._model

    def _batches(self, lengths_tokens: Sequence[int], *, new_tokens: int) -> list[list[int]]:
        """Numbers of rows, longest first, as many as fit when padded to the longest."""
        order = sorted(range(len(lengths_tokens)), key=lambda number: (-lengths_tokens[number], number))
        batches, start = [], 0
        while start < len(order):
            size = max(1, self._tokens_per_batch // (lengths_tokens[order[start]] + new_tokens))
            batches.append(order[start : start + size])
            start += size
        return batches

    @torch.inference_mode()
    def _score(self, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[LogLikelihood]:
        """Likelihood of the last `lengths` tokens of each row."""
        num_read = max(len(row) for row in rows) - 1
        tokens_BS = torch.zeros((len(rows), num_read), dtype=torch.long)
        mask_BS = torch.zeros_like(tokens_BS)
        for place, row in enumerate(rows):  # padding after the text: no position before it sees it
            tokens_BS[place, : len(row) - 1] = torch.tensor(row[:-1])
            mask_BS[place, : len(row) - 1] = 1
        asked = [range(len(row) - 1 - length, len(row) - 1) for row, length in zip(rows, lengths, strict=True)]
        kept = sorted({position for own in asked for position in own})
        options: dict[str, Any] = {}
        if self._keeps_logits:
            options["logits_to_keep"] = torch.tensor(kept, device=self._device)
        else:
            kept = list(range(num_read))
        logits_BNV = self._model(
            input_ids=tokens_BS.to(self._device), attention_mask=mask_BS.to(self._device), use_cache=False, **options
        ).logits
        place_of = {position: place for place, position in enumerate(kept)}
        answers = []
        for place, (row, own, length) in enumerate(zip(rows, asked, lengths, strict=True)):
            columns = torch.tensor([place_of[position] for position in own], device=self._device)
            log_probs_MV = torch.log_softmax(logits_BNV[place, columns].float(), dim=-1)
            targets_M = torch.tensor(row[-length:], device=self._device)
            value = log_probs_MV.gather(1, targets_M[:, None]).double().sum().item()
            answers.append(LogLikelihood(value, bool((log_probs_MV.argmax(-1) == targets_M).all())))
        return answers

    @torch.inference_mode()
    def _continue(self, requests: Sequence[GenerationRequest], max_new_tokens: int) -> list[list[int]]:
        num_tokens = max(len(request.prompt) for request in requests)
        tokens_BS = torch.zeros((len(requests), num_tokens), dtype=torch.long)
        mask_BS = torch.zeros_like(tokens_BS)
        for place, request in enumerate(requests):  # padding before the text: its end is where the new tokens begin
            tokens_BS[place, num_tokens - len(request.prompt) :] = torch.tensor(request.prompt)
            mask_BS[place, num_tokens - len(request.prompt) :] = 1
        stop = _Stop(requests, num_tokens)
        from transformers import StoppingCriteriaList

        output_BS = self._model.generate(
            input_ids=tokens_BS.to(self._device), attention_mask=mask_BS.to(self._device), do_sample=False,
            max_new_tokens=max_new_tokens, stopping_criteria=StoppingCriteriaList([stop]),
            eos_token_id=self._eos_ids or None, pad_token_id=self._eos_ids[0] if self._eos_ids else 0,
            temperature=None, top_p=None, top_k=None, num_beams=1,
        )  # fmt: skip
        found = []
        for row, num_new in zip(output_BS[:, num_tokens:].tolist(), stop.num_new, strict=True):
            new = row[:num_new]
            ends = [place for place, token in enumerate(new) if token in self._eos_ids]
            found.append(new[: ends[0]] if ends else new)
        return found


class _Stop:
    """Tells transformers which rows of a batch are finished; remembers at how many new tokens.

    Args:
        num_prompt_tokens: where the new tokens begin.
    """

    def __init__(self, requests: Sequence[GenerationRequest], num_prompt_tokens: int) -> None:
        self._requests, self._first = requests, num_prompt_tokens
        self.num_new: list[int | None] = [None] * len(requests)

    def __call__(self, tokens_BS: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for place, new in enumerate(tokens_BS[:, self._first :].tolist()):
            if self.num_new[place] is None and self._requests[place].is_finished(new):
                self.num_new[place] = len(new)
        return torch.tensor([count is not None for count in self.num_new], device=tokens_BS.device)


def _load(folder: Path, dtype: str) -> Any:
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder}: no {CONFIG_FILE}; give the folder of a Hugging Face model")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder}: no .safetensors file; only weights in that format are read")
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=DTYPES[dtype], local_files_only=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{folder}: transformers cannot read this model ({reason})") from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers makes them up
        raise ValueError(f"{folder}: {len(missing)} weights are missing, {missing[0]} among them; get the files again")
    return model

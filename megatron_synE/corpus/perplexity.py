"""Perplexity of documents under a causal language model: exp(mean negative log likelihood of its tokens).

``DocumentScorer`` cuts documents into windows, batches windows of like length and puts the sums together again; all it
asks of a model is ``WindowModel``. Tensors: B windows, T tokens, V vocabulary, H hidden.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from megatron_synE.corpus.annotations import NO_SCORE

MAX_MEAN_NLL = 80.0
"""exp of more would come near the end of float32; no text is that surprising."""


class WindowModel(Protocol):
    """The model's half of scoring."""

    max_window_tokens: int
    """Longest input."""

    def info(self) -> dict[str, Any]:
        """What determines the scores, JSON-able."""
        ...

    def sum_nll(self, tokens_BT: npt.NDArray[np.int64], lengths_B: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return [B] sums of -ln p(token t | tokens before t) over 1 <= t < length; the rest of a row is padding."""
        ...


class DocumentScorer:
    """Scores documents with a ``WindowModel``; implements ``annotate.Scorer``.

    A document longer than the model's window is read in windows that overlap by one token, so that every token but the
    first is predicted once, from at most ``max_window_tokens - 1`` tokens before it.

    Args:
        model: gives the likelihoods.
        tokens_per_batch: most tokens, padding included, in one call of the model.
        bos_id: a token to put before each document, which then has its first token predicted too.
    """

    def __init__(self, model: WindowModel, tokens_per_batch: int = 16_384, bos_id: int | None = None) -> None:
        if model.max_window_tokens < 2 or tokens_per_batch < 2:
            raise ValueError("perplexity: a window and a batch need at least 2 tokens")
        self.model, self.tokens_per_batch, self.bos_id = model, tokens_per_batch, bos_id

    def info(self) -> dict[str, Any]:
        return {**self.model.info(), "max_window_tokens": self.model.max_window_tokens, "bos_id": self.bos_id}

    def score(
        self, documents: list[npt.NDArray[Any]], on_share: Callable[[float], None] = lambda share: None
    ) -> npt.NDArray[np.float32]:
        """Return [documents] perplexities, ``NO_SCORE`` where a document has no token to predict.

        ``on_share`` is told after each batch which share of all tokens is done.
        """
        prefix = np.array([] if self.bos_id is None else [self.bos_id], dtype=np.int64)
        texts = [np.concatenate([prefix, document.astype(np.int64)]) for document in documents]
        step = self.model.max_window_tokens - 1
        starts = [(i, at) for i, text in enumerate(texts) for at in range(0, len(text) - 1, step)]
        windows = [(i, texts[i][at : at + step + 1]) for i, at in starts]
        windows.sort(key=lambda window: -len(window[1]))
        total = np.zeros(len(documents))
        num_tokens, num_done = sum(len(window) for _, window in windows), 0
        for batch in self._batches(windows):
            lengths_B = np.array([len(window) for _, window in batch])
            tokens_BT = np.zeros((len(batch), int(lengths_B.max())), dtype=np.int64)
            for row, (_, window) in enumerate(batch):
                tokens_BT[row, : len(window)] = window
            np.add.at(total, [document for document, _ in batch], self.model.sum_nll(tokens_BT, lengths_B))
            num_done += int(lengths_B.sum())
            on_share(num_done / num_tokens)
        num_predicted = np.array([len(text) - 1 for text in texts])
        mean = np.minimum(total / np.maximum(num_predicted, 1), MAX_MEAN_NLL)
        # a mean of a hair below 0, from rounding, must not give a perplexity below 1
        return np.where(num_predicted < 1, NO_SCORE, np.exp(np.maximum(mean, 0))).astype(np.float32)

    def _batches(
        self, windows: list[tuple[int, npt.NDArray[np.int64]]]
    ) -> Iterator[list[tuple[int, npt.NDArray[np.int64]]]]:
        """Runs of windows, longest first, whose padded size stays below ``tokens_per_batch``."""
        start = 0
        while start < len(windows):
            size = max(1, self.tokens_per_batch // len(windows[start][1]))
            yield windows[start : start + size]
            start += size


class HuggingFaceModel:
    """A causal language model of transformers in a local directory, without its code and without pickles.

    Args:
        directory: ``config.json`` and safetensors.
        device: a torch device.
        dtype: of the weights; likelihoods are summed in float32.
        max_window_tokens: longest input; None takes the model's ``max_position_embeddings``, at most 8,192.
        logits_rows: rows of logits that exist at a time; V may be 128,256.
    """

    def __init__(
        self,
        directory: str | Path,
        device: str = "cpu",
        dtype: str = "bfloat16",
        max_window_tokens: int | None = None,
        logits_rows: int = 1024,
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        directory = Path(directory)
        if not (directory / "config.json").is_file():
            raise ValueError(f"--hf-dir {directory}: no config.json; expected a model directory of transformers")
        try:
            model = AutoModelForCausalLM.from_pretrained(
                directory, local_files_only=True, use_safetensors=True, dtype=getattr(torch, dtype)
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"--hf-dir {directory}: cannot be loaded ({error})") from error
        self._torch, self._device, self._rows = torch, torch.device(device), logits_rows
        self._model = model.to(self._device).eval()
        limit = min(int(getattr(model.config, "max_position_embeddings", 8192)), 8192)
        self.max_window_tokens = max_window_tokens or limit
        self.vocab_size = int(model.config.vocab_size)
        self._info = {"type": "huggingface", "fingerprint": directory_fingerprint(directory), "dtype": dtype}

    def info(self) -> dict[str, Any]:
        return self._info

    def sum_nll(self, tokens_BT: npt.NDArray[np.int64], lengths_B: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        torch = self._torch
        if tokens_BT.max(initial=0) >= self.vocab_size:
            raise ValueError(
                f"token {tokens_BT.max()} is not in the model's vocabulary of {self.vocab_size}: "
                "the corpus was made with another tokenizer"
            )
        with torch.inference_mode():
            tokens = torch.from_numpy(tokens_BT).to(self._device)
            hidden_BTH = self._model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            t_T = np.arange(1, tokens_BT.shape[1])
            row, column = np.nonzero(t_T[None, :] < lengths_B[:, None])
            hidden_NH, target_N = hidden_BTH[row, column], tokens[row, column + 1]
            head, nll = self._model.get_output_embeddings(), []
            for start in range(0, len(row), self._rows):
                logits_NV = head(hidden_NH[start : start + self._rows]).float()
                target = target_N[start : start + self._rows]
                nll.append(torch.nn.functional.cross_entropy(logits_NV, target, reduction="none").double().cpu())
        values_N = torch.cat(nll).numpy() if nll else np.empty(0)
        sum_B = np.zeros(len(tokens_BT))
        np.add.at(sum_B, row, values_N)
        return sum_B


def directory_fingerprint(directory: Path) -> str:
    """Hash of the names, sizes and first and last megabytes of a model's files; cheap for models of any size."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")) + sorted(directory.glob("config.json")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return digest.hexdigest()[:32]

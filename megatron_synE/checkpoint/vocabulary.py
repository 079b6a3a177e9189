"""Gives a model's vocabulary new rows: each the mean of the rows of its old sub-words, in embedding and output layer.

A new token then begins where the old ones together pointed (as in "Efficient and Effective Text Encoding for Chinese
LLaMA", arXiv 2304.08177, where rows start from such means or at random). The mapping from new ids to old sub-words is
`vocabulary_extension.json` beside the extended tokenizer, which `tools/extend_tokenizer.py` writes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_synE.checkpoint.files import write_text
from megatron_synE.checkpoint.hf.config import read_hf_json
from megatron_synE.checkpoint.hf.mapping import VOCABULARY_NAMES
from megatron_synE.checkpoint.lazy_tensor import LazyTensor
from megatron_synE.config.model import LlamaArchitecture

EXTENSION_FILE = "vocabulary_extension.json"


@dataclass(frozen=True)
class VocabularyExtension:
    """Which rows are new, and what they are made of."""

    old_vocab_size: int
    """Highest id of the old tokenizer plus one: the first new id."""
    subwords: Mapping[int, list[int]]
    """New id → ids of its old sub-words; the ids are old_vocab_size, old_vocab_size + 1, …"""

    @property
    def new_vocab_size(self) -> int:
        """Number of ids of the extended tokenizer."""
        return self.old_vocab_size + len(self.subwords)

    def write(self, directory: Path) -> None:
        """Write the file into the tokenizer's directory."""
        subwords = {str(index): parts for index, parts in self.subwords.items()}
        content = {"old_vocab_size": self.old_vocab_size, "new_vocab_size": self.new_vocab_size, "subwords": subwords}
        write_text(directory / EXTENSION_FILE, json.dumps(content) + "\n")


def read_extension(directory: str | Path) -> VocabularyExtension:
    """What `tools/extend_tokenizer.py` wrote.

    Raises:
        ValueError: no such file, or one that it cannot have written; names the field.
    """
    path = Path(directory) / EXTENSION_FILE
    if not path.is_file():
        raise ValueError(f"{path}: missing; give the directory that tools/extend_tokenizer.py wrote")
    content = read_hf_json(path)
    old_vocab_size, subwords = content.get("old_vocab_size"), content.get("subwords")
    if type(old_vocab_size) is not int or old_vocab_size < 1 or not isinstance(subwords, dict):
        raise ValueError(f"{path}: old_vocab_size or subwords is missing or wrong; extend the tokenizer again")
    if list(subwords) != [str(old_vocab_size + number) for number in range(len(subwords))]:
        raise ValueError(f"{path}: subwords: its ids do not follow each other from {old_vocab_size}; extend again")
    for index, parts in subwords.items():
        if not _are_ids(parts, old_vocab_size):
            raise ValueError(f"{path}: subwords: {index} is not made of ids below {old_vocab_size}; extend again")
    return VocabularyExtension(old_vocab_size, {int(index): parts for index, parts in subwords.items()})


def resize(
    tensors: Iterable[LazyTensor], architecture: LlamaArchitecture, extension: VocabularyExtension
) -> tuple[list[LazyTensor], LlamaArchitecture]:
    """The model with the extended vocabulary. Padding rows are left out; a run adds its own, which are zero.

    Rows that the model has beyond the old tokenizer's ids stay what they are, unless a new id takes them.

    Raises:
        ValueError: the model has fewer rows than the old tokenizer ids.
    """
    num_rows = architecture.vocab_size
    if num_rows < extension.old_vocab_size:
        raise ValueError(
            f"--resize-vocab: the old tokenizer has {extension.old_vocab_size} ids, the model {num_rows}; "
            "extend the model's own tokenizer"
        )
    resized = dataclasses.replace(architecture, vocab_size=max(num_rows, extension.new_vocab_size))

    def with_new_rows(tensor: LazyTensor) -> LazyTensor:
        if tensor.name not in VOCABULARY_NAMES:
            return tensor
        shape = (resized.vocab_size, *tensor.shape[1:])
        return dataclasses.replace(tensor, shape=shape, read=lambda: _add_rows(tensor.read(), shape[0], extension))

    return [with_new_rows(tensor) for tensor in tensors], resized


def _add_rows(old_VH: torch.Tensor, num_rows: int, extension: VocabularyExtension) -> torch.Tensor:
    new_VH = old_VH.new_zeros(num_rows, old_VH.shape[1])
    num_kept = min(len(old_VH), num_rows)
    new_VH[:num_kept] = old_VH[:num_kept]
    for index, parts in extension.subwords.items():
        new_VH[index] = old_VH[parts].float().mean(dim=0).to(old_VH.dtype)
    return new_VH


def _are_ids(parts: Any, limit: int) -> bool:
    return isinstance(parts, list) and bool(parts) and all(type(part) is int and 0 <= part < limit for part in parts)

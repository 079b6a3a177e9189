"""All that a checkpoint says of itself, checked before anything is built from it. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_synE.checkpoint.files import METADATA_FILE, STATE_FILE, DamagedCheckpoint, FileList
from megatron_synE.checkpoint.index import StoredTensor, read_index
from megatron_synE.checkpoint.layout import resolve
from megatron_synE.checkpoint.state import architecture_of, check_state
from megatron_synE.config.model import LlamaArchitecture

FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch",
          "common_backend_version": 1}  # fmt: skip
"""metadata.json, by which megatron-core knows its formats."""
# A tensor of another size cannot be loaded at all; the others change what the weights mean.
SIZE_FIELDS = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "head_dim",
               "vocab_size", "tie_word_embeddings")  # fmt: skip
MEANING_FIELDS = ("rotary_base", "rope_scaling", "layernorm_epsilon")


@dataclass(frozen=True)
class Contents:
    """A checkpoint's description of itself. Its tensors are checked as they are read."""

    directory: Path
    files: FileList
    state: dict[str, Any]
    """state.json: the trainer's own keys and those of `layout.read_state`."""
    architecture: LlamaArchitecture
    tensors: dict[str, StoredTensor]


def quick_check(path: str | Path) -> Contents:
    """Check the checkpoint at `path` (its directory, or the root: then the latest), apart from its tensors' bytes.

    All files are there and have their sizes; state.json, index.json, metadata.json and files.json are unchanged, and
    say nothing that cannot be. Takes milliseconds, and no torch.

    Raises:
        ValueError: no checkpoint, or a format this version does not know.
        DamagedCheckpoint: names the file, and the field or tensor.
    """
    directory = resolve(path)
    files = FileList(directory)
    files.check_sizes()
    if files.read_json(METADATA_FILE) != FORMAT:
        raise DamagedCheckpoint(f"{directory / METADATA_FILE}: not of megatron-core's torch_dist format, version 1")
    state_path = directory / STATE_FILE
    state = check_state(state_path, files.read_json(STATE_FILE))
    return Contents(directory, files, state, architecture_of(state_path, state), read_index(files))


def check_architecture(contents: Contents, own: LlamaArchitecture, sizes_only: bool) -> None:
    """Compare the model of a checkpoint with a run's.

    Raises:
        ValueError: they differ; names the fields.
    """
    names = SIZE_FIELDS if sizes_only else SIZE_FIELDS + MEANING_FIELDS
    saved = contents.architecture
    differing = [f"{name} is {getattr(saved, name)}, this run has {getattr(own, name)}" for name in names
                 if getattr(saved, name) != getattr(own, name)]  # fmt: skip
    if differing:
        raise ValueError(
            f"{contents.directory / STATE_FILE}: a checkpoint of another model: {'; '.join(differing)}; "
            "set the fields of `model` to those of the checkpoint, or choose another checkpoint"
        )

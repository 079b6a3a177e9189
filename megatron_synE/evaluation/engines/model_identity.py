"""Hashes that tell one model's files from another's, cheap for models of any size."""

from __future__ import annotations

import hashlib
from pathlib import Path

from megatron_synE.checkpoint.files import FILES_FILE

_ENDS_BYTES = 2**20


def checkpoint_fingerprint(directory: str | Path) -> str:
    """Of a checkpoint of ours: sha256 of its list of files, which has the checksum of each."""
    return hashlib.sha256((Path(directory) / FILES_FILE).read_bytes()).hexdigest()[:32]


def hf_fingerprint(hf_dir: str | Path) -> str:
    """Of a Hugging Face folder: sha256 of config.json, of each weight file name, size, first and last megabyte."""
    digest = hashlib.sha256()
    for path in (Path(hf_dir) / "config.json", *sorted(Path(hf_dir).glob("*.safetensors"))):
        size_bytes = path.stat().st_size
        digest.update(f"{path.name} {size_bytes}".encode())
        with open(path, "rb") as file:
            digest.update(file.read(_ENDS_BYTES))
            file.seek(max(0, size_bytes - _ENDS_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:32]

"""A checkpoint made by an attacker: loading it runs none of its pickles."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path

import torch

from tests.helpers.distributed import run_distributed


class Payload:
    """Unpickled, it makes a directory."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.mark,)


def _attack(folder: str) -> list[str]:
    from megatron_synE.checkpoint import load_checkpoint, save_checkpoint
    from megatron_synE.checkpoint.whole_tensors import WholeTensors
    from megatron_synE.config.parallel import ParallelConfig
    from tests.helpers.checkpoint import TINY, build_training

    chunks, optimizer = build_training(ParallelConfig(), "fp32")
    path = save_checkpoint(Path(folder) / "root", step=1, architecture=TINY, model_chunks=chunks, optimizer=optimizer,
                           rng_state=None, state={})  # fmt: skip
    for name in (".metadata", "common.pt"):
        assert (path / name).is_file()
        (path / name).write_bytes(pickle.dumps(Payload(f"{folder}/mark_{name}")))
    _fix_file_list(path)
    load_checkpoint(path, architecture=TINY, model_chunks=chunks, optimizer=optimizer)

    index = json.loads((path / "index.json").read_text())
    chunk = index["tensors"]["decoder.final_layernorm.weight"]["chunks"][0]
    record = io.BytesIO()
    torch.save(Payload(f"{folder}/mark_tensor"), record)
    (path / "evil.distcp").write_bytes(record.getvalue())
    chunk.update(file="../../evil.distcp", start_bytes=0, length_bytes=len(record.getvalue()))
    (path / "index.json").write_text(json.dumps(index))
    _fix_file_list(path)
    errors = []
    for load in (
        lambda: load_checkpoint(path, architecture=TINY, model_chunks=chunks, optimizer=optimizer),
        lambda: WholeTensors(path).read("decoder.final_layernorm.weight"),
    ):
        try:
            load()
            errors.append("loaded")
        except ValueError as error:
            errors.append(str(error))
    return errors


def _fix_file_list(path: Path) -> None:
    from megatron_synE.checkpoint.files import write_file_list

    write_file_list(path, {})


def test_no_pickle_of_a_checkpoint_runs(tmp_path: Path) -> None:
    errors = run_distributed(_attack, 1, str(tmp_path))[0]
    assert all("damaged" in error for error in errors)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["root"]
    pickle.loads(pickle.dumps(Payload(str(tmp_path / "mark"))))  # the payload does work
    assert (tmp_path / "mark").is_dir()

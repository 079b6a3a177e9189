"""tools/convert_checkpoint.py: Hugging Face → ours → Hugging Face, and what it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_synE.config.parallel import ParallelConfig
from tests.helpers.commands import ROOT, run, succeeded
from tests.helpers.distributed import run_distributed
from tests.helpers.hf_llama import make_hf_llama
from tools.convert_checkpoint import main, size_bytes, verify

PP2_VPP2 = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
TP2_PP2 = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)


def _convert(command: str, *options: Any) -> int:
    return main([command, *map(str, options)])


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found.update(load_file(path))
    return found


def _assert_equal(first: Path, second: Path) -> None:
    one, two = _tensors(first), _tensors(second)
    assert set(one) == set(two)
    for name in one:
        assert one[name].dtype == two[name].dtype
        assert torch.equal(one[name], two[name]), name


def _through_tp2_pp2(jobs: list[tuple[str, str, str, str]]) -> None:
    """HF directory → model at TP2×PP2 → checkpoint; and an imported checkpoint → the same model → checkpoint."""
    from megatron_synE.checkpoint import architecture_from_hf, init_from_hf, load_checkpoint, save_checkpoint
    from tests.helpers.checkpoint import build_model

    for hf_dir, imported, target, dtype in jobs:
        architecture = architecture_from_hf(hf_dir)
        common: dict[str, Any] = {"step": 1, "architecture": architecture, "optimizer": None, "rng_state": None}
        chunks = build_model(TP2_PP2, dtype, architecture)
        init_from_hf(chunks, hf_dir)
        save_checkpoint(f"{target}_direct", model_chunks=chunks, state={}, **common)
        if imported:
            chunks = build_model(PP2_VPP2, dtype, architecture)
            init_from_hf(chunks, hf_dir)
            save_checkpoint(f"{target}_interleaved", model_chunks=chunks, state={}, **common)
            chunks = build_model(TP2_PP2, dtype, architecture)
            load_checkpoint(imported, architecture=architecture, model_chunks=chunks)
            save_checkpoint(f"{target}_imported", model_chunks=chunks, state={}, **common)


def test_hf_to_ours_at_tp2_pp2_to_hf_is_bit_exact(tmp_path: Path) -> None:
    make_hf_llama(tmp_path / "fp32", "gqa", torch.float32, max_shard_size="100KB")
    make_hf_llama(tmp_path / "bf16", "gqa", torch.bfloat16)
    make_hf_llama(tmp_path / "tied", "gqa", torch.bfloat16, tied=True)
    assert len(list((tmp_path / "fp32").glob("*.safetensors"))) > 1
    assert _convert("import", "--hf-dir", tmp_path / "fp32", "--checkpoint", tmp_path / "imported") == 0
    jobs = [(str(tmp_path / name), str(tmp_path / "imported") if name == "fp32" else "", str(tmp_path / f"ours_{name}"),
             "fp32" if name == "fp32" else "bf16") for name in ("fp32", "bf16", "tied")]  # fmt: skip
    run_distributed(_through_tp2_pp2, 4, jobs)
    for name in ("fp32", "bf16", "tied"):
        options = ["--tokenizer-dir", str(tmp_path / name), "--max-shard-size", "150KB"]
        back = tmp_path / f"back_{name}"
        ours = str(tmp_path / f"ours_{name}_direct")
        assert main(["export", "--checkpoint", ours, "--hf-dir", str(back), *options]) == 0
        _assert_equal(tmp_path / name, back)
    for way in ("imported", "interleaved"):
        back = tmp_path / f"back_{way}"
        assert main(["export", "--checkpoint", str(tmp_path / f"ours_fp32_{way}"), "--hf-dir", str(back)]) == 0
        _assert_equal(tmp_path / "fp32", back)


def test_import_and_export_in_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import LlamaForCausalLM

    original = make_hf_llama(tmp_path / "hf", "llama31_rope")
    assert _convert("import", "--hf-dir", tmp_path / "hf", "--checkpoint", tmp_path / "ours") == 0
    assert main(["export", "--checkpoint", str(tmp_path / "ours"), "--hf-dir", str(tmp_path / "back")]) == 0
    _assert_equal(tmp_path / "hf", tmp_path / "back")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager")
    assert loaded.config.rope_parameters == original.config.rope_parameters
    assert loaded.generation_config.eos_token_id == 2
    tokens = torch.arange(2 * 100).reshape(2, 100) % 200
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, original(tokens).logits)
    assert (tmp_path / "back" / "tokenizer.json").read_text() == '{"version": "1.0"}'

    assert main(["export", "--checkpoint", str(tmp_path / "ours"), "--hf-dir", str(tmp_path / "back")]) == 1
    assert "exists and is not empty" in capsys.readouterr().err

    halves = tmp_path / "halves"
    assert main(["export", "--checkpoint", str(tmp_path / "ours"), "--hf-dir", str(halves), "--dtype", "bfloat16"]) == 0
    assert {tensor.dtype for tensor in _tensors(halves).values()} == {torch.bfloat16}
    assert json.loads((halves / "config.json").read_text())["dtype"] == "bfloat16"


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("convert_checkpoint: ")
        return line

    hf, ours = tmp_path / "hf", tmp_path / "ours"
    assert "config.json" in refused("import", "--hf-dir", tmp_path, "--checkpoint", ours)
    assert "no checkpoint" in refused("export", "--checkpoint", ours, "--hf-dir", tmp_path / "back")
    assert not (tmp_path / "back").exists()

    make_hf_llama(hf, "gqa", max_shard_size="100KB")
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    assert "model_type is 'mistral'" in refused("import", "--hf-dir", hf, "--checkpoint", ours)
    (hf / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))
    assert "config.json says (100, 64)" in refused("import", "--hf-dir", hf, "--checkpoint", ours)
    (hf / "config.json").write_text(json.dumps(config))
    shard = sorted(hf.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    assert shard.name in refused("import", "--hf-dir", hf, "--checkpoint", ours)
    shard.unlink()
    assert shard.name in refused("import", "--hf-dir", hf, "--checkpoint", ours)
    assert not ours.exists()


KILLED = """
import os, sys
from megatron_synE.checkpoint.lazy_tensor import LazyTensor
from tools.convert_checkpoint import main
from megatron_synE.checkpoint import whole_writer
whole_writer.FILE_BYTES = 100_000
stop, make, num_reads = int(sys.argv[1]), LazyTensor.__init__, 0
def make_killing(self, name, shape, dtype, read):
    def counted():
        global num_reads
        num_reads += 1
        if num_reads == stop: os.kill(os.getpid(), 9)
        return read()
    make(self, name, shape, dtype, counted)
LazyTensor.__init__ = make_killing
status = main(sys.argv[2:])
print(num_reads, "tensors read")
sys.exit(status)
"""


def _convert_until_killed(stop: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-W", "ignore", "-c", KILLED, str(stop), *arguments, cwd=ROOT)


def test_a_killed_conversion_goes_on(tmp_path: Path) -> None:
    make_hf_llama(tmp_path / "hf", "gqa", max_shard_size="100KB")
    back = tmp_path / "back"
    commands: list[list[str | Path]] = [
        ["import", "--hf-dir", tmp_path / "hf", "--checkpoint", tmp_path / "ours"],
        ["export", "--checkpoint", tmp_path / "ours", "--hf-dir", back, "--max-shard-size", "100KB"],
    ]
    for command in commands:
        assert _convert_until_killed(12, *command).returncode == -signal.SIGKILL
        assert not (back if command[0] == "export" else tmp_path / "ours" / "latest").exists()
        resumed = succeeded(_convert_until_killed(0, *command)).stdout
        num_read = int(resumed.splitlines()[-1].split()[0])
        assert 0 < num_read < (26 if command[0] == "import" else 38), "finished files were not kept"
    _assert_equal(tmp_path / "hf", back)
    assert not list(tmp_path.glob(".*")) and not list((tmp_path / "ours").glob(".*"))

    halves = ["--dtype", "bfloat16"]
    assert _convert_until_killed(12, *commands[1][:4], tmp_path / "other", *commands[1][5:]).returncode < 0
    assert (tmp_path / ".other.unfinished" / "journal").is_file()
    succeeded(_convert_until_killed(0, *commands[1][:4], tmp_path / "other", *commands[1][5:], *halves))
    assert {tensor.dtype for tensor in _tensors(tmp_path / "other").values()} == {torch.bfloat16}


def test_verify_finds_a_changed_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf, ours = tmp_path / "hf", tmp_path / "ours"
    make_hf_llama(hf, "gqa")
    places = ["--hf-dir", str(hf), "--checkpoint", str(ours)]
    assert main(["import", *places, "--verify", "tensors"]) == 0
    assert "all tensors are equal bit for bit" in capsys.readouterr().out
    assert verify("tensors", hf, ours, None, None, True).startswith("verified")
    weights = load_file(hf / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] *= 1.5
    save_file(weights, hf / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 differ: model\.layers\.1\.mlp\.up_proj\.weight: 1 of 7168 numbers differ"):
        verify("tensors", hf, ours, None, None, True)
    message = run_distributed(_verify_logits, 1, str(hf), str(ours))[0]
    assert "tolerance 1e-04: the conversion is wrong" in message


def _verify_logits(hf: str, ours: str) -> str:
    try:
        return verify("logits", Path(hf), Path(ours), None, ["1,2,3"], True)
    except ValueError as error:
        return str(error)


def test_a_model_too_large_for_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    make_hf_llama(tmp_path / "hf", "gqa")
    assert _convert("import", "--hf-dir", tmp_path / "hf", "--checkpoint", tmp_path / "ours") == 0
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(ValueError, match="1,000 are available; use --verify tensors"):
        verify("logits", tmp_path / "hf", tmp_path / "ours", None, None, True)


def test_sizes_on_the_command_line() -> None:
    assert (size_bytes("5GB"), size_bytes("1.5 MiB"), size_bytes("10")) == (5 * 10**9, 3 * 2**19, 10)

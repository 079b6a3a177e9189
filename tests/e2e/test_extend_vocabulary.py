"""Adding a language: extend the tokenizer → import with new rows → train tensor parallel → export → transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.commands import SAMPLE, pretrain, run_tool, succeeded
from tools.convert_checkpoint import main as convert_main

NUM_NEW = 61  # 4157 ids: padded to 4224, and to 4352 at TP 2
NUM_OLD = 4096


def _make_backbone(folder: Path, *, tied: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=NUM_OLD, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, tie_word_embeddings=tied,
        bos_token_id=4094, eos_token_id=4095,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's tokenizer with Chinese tokens."""
    folder = tmp_path_factory.mktemp("tokenizer") / "extended"
    done = run_tool(
        "extend_tokenizer", "--tokenizer", SAMPLE / "tokenizer", "--train-on", SAMPLE / "web_zh.jsonl",
        "--num-new", str(NUM_NEW), "--output", folder,
    )  # fmt: skip
    assert f"{NUM_OLD} + {NUM_NEW} tokens" in succeeded(done).stdout
    return folder


def test_extend_import_train_export(tmp_path: Path, extended: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    hf, imported, back = tmp_path / "hf", tmp_path / "imported", tmp_path / "back"
    _make_backbone(hf, tied=False)
    said = succeeded(run_tool("convert_checkpoint", "import", "--hf-dir", hf, "--checkpoint", imported,
                              "--resize-vocab", extended, "--verify", "logits")).stdout  # fmt: skip
    assert "verified: largest difference" in said

    prefix = tmp_path / "zh"
    succeeded(run_tool("preprocess_data", "--input", SAMPLE / "web_zh.jsonl", "--output-prefix", prefix,
                       "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", extended,
                       "--append-eod"))  # fmt: skip
    job = {
        "model": {
            "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 4, "num_query_groups": 2,
            "vocab_size": NUM_OLD + NUM_NEW, "max_position_embeddings": 256, "rotary_base": 10000.0,
        },
        "parallel": {"tensor_model_parallel_size": 2},
        "precision": {"dtype": "fp32"},
        "data": {
            "seq_length": 64,
            "sources": {"zh": {"prefix": f"{prefix}_text_document", "language": "zh"}},
            "stages": [{"name": "one", "tokens": 64 * 4 * 3, "weights": {"zh": 1.0}}],
        },
        "optimizer": {"lr": 1e-3},
        "training": {"micro_batch_size": 2, "global_batch_size": 4},
        "checkpoint": {"load": str(imported), "save": str(tmp_path / "run")},
        "evaluation": {"at_start": False, "at_end": False},
        "logging": {"directory": str(tmp_path / "logs"), "tensorboard": False},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(json.dumps(job), encoding="utf-8")
    succeeded(pretrain(2, "--config", tmp_path / "job.yaml"))
    said = succeeded(run_tool("convert_checkpoint", "export", "--checkpoint", tmp_path / "run", "--hf-dir", back,
                              "--verify", "logits", "--verify-prompts", "中文", "1,2,4150")).stdout  # fmt: skip
    assert "verified: largest difference" in said

    model, tokenizer = LlamaForCausalLM.from_pretrained(back), AutoTokenizer.from_pretrained(back)
    assert json.loads((back / "config.json").read_text())["vocab_size"] == NUM_OLD + NUM_NEW == len(tokenizer)
    assert model.model.embed_tokens.weight.shape == model.lm_head.weight.shape == (NUM_OLD + NUM_NEW, 64)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (4094, 4095)


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_are_means_of_old_ones(tmp_path: Path, extended: Path, tied: bool) -> None:
    from megatron_synE.checkpoint import read_state
    from megatron_synE.checkpoint.whole_tensors import WholeTensors

    hf, direct, plain, resized = (tmp_path / name for name in ("hf", "direct", "plain", "resized"))
    _make_backbone(hf, tied=tied)
    places = ["import", "--hf-dir", hf, "--checkpoint"]
    assert _convert(*places, direct, "--resize-vocab", extended, "--verify", "tensors") == 0
    assert _convert(*places, plain, "--verify", "tensors", "--dtype", "bfloat16") == 0
    assert _convert("resize", "--checkpoint", plain, "--output", resized, "--resize-vocab", extended) == 0
    subwords = json.loads((extended / "vocabulary_extension.json").read_text())["subwords"]
    for path, dtype in ((direct, torch.float32), (resized, torch.bfloat16)):
        assert read_state(path)["architecture"]["vocab_size"] == NUM_OLD + NUM_NEW
        assert (path / "tokenizer" / "tokenizer.json").read_bytes() == (extended / "tokenizer.json").read_bytes()
        assert json.loads((path / "tokenizer" / "config.json").read_text())["eos_token_id"] == 4095
        old, new = WholeTensors(plain), WholeTensors(path)
        assert ("output_layer.weight" in new) is not tied
        for name in ("embedding.word_embeddings.weight", *(() if tied else ("output_layer.weight",))):
            rows = new.read(name)
            assert rows.shape == (NUM_OLD + NUM_NEW, 64) and rows.dtype == dtype
            before = old.read(name) if dtype == torch.bfloat16 else rows[:NUM_OLD]
            assert torch.equal(rows[:NUM_OLD], before)
            for index, parts in subwords.items():
                assert torch.equal(rows[int(index)], before[parts].float().mean(dim=0).to(dtype))


def _convert(*arguments: object) -> int:
    return convert_main([str(argument) for argument in arguments])


def test_bad_input_is_one_line(tmp_path: Path, extended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _make_backbone(tmp_path / "hf", tied=True)
    broken = tmp_path / "broken"
    broken.mkdir()
    content = json.loads((extended / "vocabulary_extension.json").read_text())
    cases = [
        (None, "vocabulary_extension.json: missing"),
        ({**content, "old_vocab_size": "x"}, "old_vocab_size"),
        ({**content, "subwords": {"5": [1]}}, "do not follow each other"),
        ({"old_vocab_size": NUM_OLD, "subwords": {"4096": [4097]}}, "4096 is not made of ids below 4096"),
        ({"old_vocab_size": 9999, "subwords": {"9999": [1]}}, "has 9999 ids, the model 4096"),
    ]
    for wrong, message in cases:
        if wrong is not None:
            (broken / "vocabulary_extension.json").write_text(json.dumps(wrong))
        capsys.readouterr()
        assert _convert("import", "--hf-dir", tmp_path / "hf", "--checkpoint", tmp_path / "ours", "--resize-vocab",
                        broken) == 1  # fmt: skip
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
        assert not (tmp_path / "ours").exists()
    words = tmp_path / "words.txt"
    words.write_text("two words\n", encoding="utf-8")
    done = run_tool("extend_tokenizer", "--tokenizer", SAMPLE / "tokenizer", "--add", words, "--output",
                    tmp_path / "new")  # fmt: skip
    assert done.returncode == 1 and "'two words' is cut" in done.stderr and not (tmp_path / "new").exists()

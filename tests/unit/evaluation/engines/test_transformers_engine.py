"""The engine over transformers: any causal model, only from its own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_synE.evaluation.engine import GenerationRequest, ScoringRequest
from megatron_synE.evaluation.engines.transformers_engine import TransformersEngine

VOCAB_SIZE = 97


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is no Llama: learned positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_positions=48, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2,
        initializer_range=0.5,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def engine_of(folder: Path, **options: Any) -> TransformersEngine:
    options = {"dtype": "fp32", "device": torch.device("cpu"), "tokens_per_batch": 128, **options}
    return TransformersEngine(folder, **options)


def some_requests() -> list[ScoringRequest]:
    random = np.random.default_rng(0)
    lengths = [(1, 1), (5, 3), (20, 1), (3, 9), (40, 9), (44, 30), (7, 2), (20, 4)]
    return [
        ScoringRequest(*(tuple(random.integers(0, VOCAB_SIZE, length).tolist()) for length in own)) for own in lengths
    ]


def test_likelihoods_are_the_models_whatever_the_batch(gpt2: Path) -> None:
    requests = some_requests()
    engine = engine_of(gpt2)
    assert (engine.max_length_tokens, engine.vocab_size) == (48, VOCAB_SIZE)
    told: dict[int, Any] = {}
    answers = engine.log_likelihoods(requests, lambda numbers, own: told.update(zip(numbers, own, strict=True)))
    assert [told[number] for number in range(len(requests))] == answers
    for request, answer in zip(requests, answers, strict=True):
        text = (*request.context, *request.continuation)[-49:]
        with torch.inference_mode():
            log_probs_SV = engine._model(torch.tensor([text[:-1]])).logits[0].log_softmax(-1)
        rest = range(len(text) - 1 - len(request.continuation), len(text) - 1)
        assert answer.value == pytest.approx(sum(log_probs_SV[at, text[at + 1]].item() for at in rest), abs=1e-4)
        assert answer.is_greedy == all(log_probs_SV[at].argmax() == text[at + 1] for at in rest)
    for tokens in (1, 10_000):
        others = engine_of(gpt2, tokens_per_batch=tokens).log_likelihoods(requests)
        for alone, answer in zip(others, answers, strict=True):
            assert alone.value == pytest.approx(answer.value, abs=1e-5)


def test_greedy_text_is_transformers_own(gpt2: Path) -> None:
    engine = engine_of(gpt2)
    prompts = [request.context for request in some_requests() if len(request.context) < 30]
    requests = [GenerationRequest(prompt, 15, lambda new: new[-1] % 13 == 0) for prompt in prompts]
    told: dict[int, Any] = {}
    found = engine.generate(requests, lambda number, tokens: told.update({number: tokens}))
    assert [told[number] for number in range(len(found))] == found
    for prompt, own in zip(prompts, found, strict=True):
        prompt_BS = torch.tensor([prompt])
        whole = engine._model.generate(
            prompt_BS, attention_mask=torch.ones_like(prompt_BS), do_sample=False, max_new_tokens=15, pad_token_id=0
        )
        theirs = whole[0, len(prompt) :].tolist()
        theirs = theirs[: theirs.index(2)] if 2 in theirs else theirs
        stop = next((at + 1 for at, token in enumerate(theirs) if token % 13 == 0), len(theirs))
        assert own == theirs[:stop]


def test_equal_files_have_one_fingerprint(gpt2: Path) -> None:
    info = engine_of(gpt2).info()
    assert info["fingerprint"] == engine_of(gpt2, dtype="bf16").info()["fingerprint"]
    assert (info["type"], info["model_type"], info["dtype"]) == ("transformers", "gpt2", "fp32")


def test_a_folder_without_a_sound_model_is_told(tmp_path: Path, gpt2: Path) -> None:
    with pytest.raises(ValueError, match=r"no config.json; give the folder of a Hugging Face model"):
        engine_of(tmp_path)
    config = (gpt2 / "config.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    torch.save({}, tmp_path / "pytorch_model.bin")  # pickled: never opened
    with pytest.raises(ValueError, match=r"no .safetensors file; only weights in that format are read"):
        engine_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="transformers cannot read this model"):
        engine_of(tmp_path)


def test_missing_weights_are_not_made_up(tmp_path: Path, gpt2: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(gpt2 / "model.safetensors")
    del weights["transformer.h.1.attn.c_attn.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((gpt2 / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"1 weights are missing, transformer.h.1.attn.c_attn.weight among them"):
        engine_of(tmp_path)


def test_no_code_of_the_folder_is_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Own"}}',
        encoding="utf-8",
    )
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="transformers cannot read this model"):
        engine_of(tmp_path)
    assert not (tmp_path / "ran").exists()

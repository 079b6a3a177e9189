"""Log-likelihoods and greedy continuations at each layout are those of lm-evaluation-harness's `hf` model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_synE.config.model import LlamaArchitecture, ModelConfig
from megatron_synE.config.parallel import ParallelConfig
from tests.helpers.distributed import run_distributed
from tests.helpers.hf_llama import SHAPES, make_hf_llama

MAX_LENGTH_TOKENS = 96
NEW_TOKENS = 6
TRAINED = "trained"
TOKENIZER = Path(__file__).parents[2] / "examples/data/tokenizer"

Pair = tuple[tuple[int, ...], tuple[int, ...]]
Prompt = tuple[tuple[int, ...], int]


def make_requests(vocab_size: int) -> list[Pair]:
    """Few-shot multiple choice with answers of a token and of several, and all that is awkward."""
    draw = random.Random(3)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocab_size) for _ in range(draw.randint(low, high)))

    requests: list[Pair] = []
    for _ in range(2):
        shots = tokens(30, 40)
        for _ in range(5):
            question = shots + tokens(3, 20)
            requests += [(question, (answer,)) for answer in (3, 4, 5, 6)]
        question = shots + tokens(3, 20)
        requests += [(question, tokens(1, 6)) for _ in range(3)]
    stem = tokens(20, 20)
    requests += [(stem[:n], stem[n : n + 2]) for n in (1, 5, 17)]  # each is the beginning of the next
    requests += [(stem, (7,)), (stem, (7, 8)), (stem, (7,))]
    requests += [(tokens(200, 200), tokens(3, 3)), (tokens(90, 90), tokens(7, 7)), (tokens(95, 95), tokens(1, 1))]
    return requests


def make_prompts(vocab_size: int) -> list[Prompt]:
    draw = random.Random(4)
    shots = tuple(draw.randrange(vocab_size) for _ in range(25))
    lengths = (1, 8, 30, MAX_LENGTH_TOKENS + 9)
    questions = [tuple(draw.randrange(vocab_size) for _ in range(length)) for length in lengths]
    prompts = [shots + question for question in questions[:3]] + questions
    return [(prompt, NEW_TOKENS) for prompt in (*prompts, prompts[0])]


def harness_answers(model: Any, requests: Sequence[Pair]) -> list[tuple[float, bool]]:
    """What lm-evaluation-harness makes of the same token ids with transformers."""
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=MAX_LENGTH_TOKENS)
    rows = [(("", ""), list(context), list(continuation)) for context, continuation in requests]
    return harness._loglikelihood_tokens(rows, disable_tqdm=True)


def transformers_tokens(model: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """transformers' greedy continuations, without an end."""
    found = []
    for prompt, new_tokens in prompts:
        kept = torch.tensor([prompt[-(MAX_LENGTH_TOKENS - new_tokens) :]])
        output = model.generate(
            kept, attention_mask=torch.ones_like(kept), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
            do_sample=False, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        found.append(output[0, kept.shape[1] :].tolist())
    return found


class Model:
    """A model's folder, what is asked of it, and what transformers says."""

    def __init__(self, folder: Path, model: Any) -> None:
        self.folder = str(folder)
        model.generation_config.eos_token_id = None
        self.prompts = make_prompts(model.config.vocab_size)
        self.tokens = transformers_tokens(model, self.prompts)
        # Likely continuations, too.
        likely = [(p[-(MAX_LENGTH_TOKENS - NEW_TOKENS) :], tuple(t)) for (p, _), t in zip(self.prompts, self.tokens)]  # noqa: B905
        self.requests = make_requests(model.config.vocab_size) + likely
        self.answers = harness_answers(model, self.requests)
        assert {is_greedy for _, is_greedy in self.answers} == {True, False}


ARCHITECTURE = LlamaArchitecture(
    num_layers=4, hidden_size=32, ffn_hidden_size=64, num_attention_heads=4, num_query_groups=2, vocab_size=61,
    max_position_embeddings=128,
)  # fmt: skip


def train(folder: str) -> list[float]:
    """A few steps on made-up text (each token tells the next one), scored in the middle; saves a checkpoint."""
    import numpy as np

    from megatron_synE.checkpoint import save_checkpoint
    from megatron_synE.config.optimizer import OptimizerConfig
    from megatron_synE.data.batches import assemble
    from megatron_synE.evaluation.engine import ScoringRequest
    from megatron_synE.evaluation.llama.scoring import score
    from megatron_synE.training.microbatches import to_microbatch
    from megatron_synE.training.step import train_step
    from tests.helpers.checkpoint import build_training

    device, losses = torch.device("cpu"), []
    for scored in (False, True):
        torch.manual_seed(0)
        model = ModelConfig(make_vocab_size_divisible_by=8)
        parallel = ParallelConfig(overlap_grad_reduce=True, overlap_param_gather=True)
        chunks, optimizer = build_training(parallel, "fp32", ARCHITECTURE, OptimizerConfig(lr=3e-3), model)
        for step in range(30):
            starts = np.random.default_rng(step).integers(0, 61, (8, 1))
            tokens_BS = (starts + 7 * np.arange(33)) % 61
            batch = assemble(
                tokens_BS, [[0]] * 8, np.zeros(8, np.int32), isolate_documents=False, eod_mask_loss=False,
                valid_tokens=[32] * 8,
            )  # fmt: skip
            microbatches = [to_microbatch(batch, device)]
            losses.append(train_step(chunks, optimizer, microbatches, learning_rate=3e-3, num_components=1).loss)
            if scored and step == 10:
                score(chunks, [ScoringRequest((1, 2, 3), (4, 5))] * 3, device=device)
    assert losses[:30] == losses[30:], "training goes on as if nothing had been asked"
    save_checkpoint(
        folder, step=30, architecture=ARCHITECTURE, model_chunks=chunks, optimizer=None, rng_state=None, state={}
    )
    return losses[30:]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    from transformers import LlamaForCausalLM

    from megatron_synE.checkpoint.hf.exporting import export_to_hf

    root = tmp_path_factory.mktemp("models")
    made = {shape: Model(root / shape, make_hf_llama(root / shape, shape)) for shape in SHAPES}
    losses = run_distributed(train, 1, str(root / "run"))[0]
    assert losses[-1] < 0.6 * losses[0]
    export_to_hf(root / "run", root / TRAINED)
    model = LlamaForCausalLM.from_pretrained(root / TRAINED, dtype=torch.float32, attn_implementation="eager").eval()
    made[TRAINED] = Model(root / TRAINED, model)
    return made


Case = tuple[str, dict[str, Any], dict[str, Any]]
"""Model, layout, and how it is asked."""


def answer_all(asked: dict[str, tuple[str, list[Pair], list[Prompt]]], cases: list[Case]) -> list[dict[str, Any]]:
    """This process's answers in each case."""
    from megatron_synE.checkpoint import architecture_from_hf, init_from_hf
    from megatron_synE.evaluation.engine import ScoringRequest
    from megatron_synE.evaluation.llama.batching import BatchLimits
    from megatron_synE.evaluation.llama.generation import generate
    from megatron_synE.evaluation.llama.scoring import score
    from tests.helpers.checkpoint import build_model

    results = []
    for name, layout, how in cases:
        folder, requests, prompts = asked[name]
        model = ModelConfig(transformer_impl=how.get("impl", "fused"), make_vocab_size_divisible_by=8)
        chunks = build_model(ParallelConfig(**layout), "fp32", architecture_from_hf(folder), model)
        init_from_hf(chunks, folder)
        options: dict[str, Any] = {
            "device": torch.device("cpu"), "max_length_tokens": MAX_LENGTH_TOKENS,
            "limits": BatchLimits(how.get("tokens", 400), how.get("sequences")),
            "share_prefixes": how.get("share", True),
        }  # fmt: skip
        told: list[int] = []
        answers = score(
            chunks, [ScoringRequest(*request) for request in requests],
            on_done=lambda numbers, _, told=told: told.extend(numbers), **options,
        )  # fmt: skip
        prompts = prompts if how.get("write", True) else []
        tokens = generate(chunks, prompts, is_finished=lambda number, new: False, **options)
        results.append({
            "values": [answer.value for answer in answers], "is_greedy": [answer.is_greedy for answer in answers],
            "told": sorted(told), "tokens": tokens,
        })  # fmt: skip
        assert all(chunk.training for chunk in chunks), "the mode is put back"
    return results


def check(models: dict[str, Model], world_size: int, cases: list[Case]) -> list[list[float]]:
    """All processes say the same, to the last bit, and what the harness says; the values of each case."""
    asked = {name: (model.folder, model.requests, model.prompts) for name, model in models.items()}
    by_rank = run_distributed(answer_all, world_size, asked, cases)
    assert all(results == by_rank[0] for results in by_rank)
    for (name, layout, how), found in zip(cases, by_rank[0], strict=True):
        model, what = models[name], f"{name} {layout} {how}"
        worst = max(abs(own - their) for own, (their, _) in zip(found["values"], model.answers, strict=True))
        print(f"{what}: largest difference {worst:.1e}")
        assert worst <= 1e-4, what
        assert found["is_greedy"] == [is_greedy for _, is_greedy in model.answers], what
        assert found["told"] == list(range(len(model.requests))), what
        assert found["tokens"] == (model.tokens if how.get("write", True) else []), what
    return [found["values"] for found in by_rank[0]]


TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}


def test_one_process_whatever_the_batch(models: dict[str, Model]) -> None:
    variants: list[dict[str, Any]] = [
        {}, {"tokens": 20}, {"tokens": 10_000}, {"sequences": 1}, {"share": False}, {"share": False, "tokens": 10_000},
    ]  # fmt: skip
    cases: list[Case] = [("gqa", {}, how) for how in variants]
    cases += [(name, {}, {"impl": impl}) for name in models for impl in ("fused", "local")]
    values = check(models, 1, cases)
    for how, other in zip(variants, values[: len(variants)], strict=True):
        assert max(abs(a - b) for a, b in zip(values[0], other, strict=True)) <= 1e-5, how


def test_two_processes(models: dict[str, Model]) -> None:
    # One random model writes for all of them: they differ in their layers, not in how they are asked.
    cases: list[Case] = [
        (name, layout, {"write": name in ("gqa", TRAINED)}) for name in models for layout in (TP2, PP2)
    ]
    cases += [
        ("gqa", {**TP2, "sequence_parallel": True}, {}),
        ("gqa", {**TP2, "sequence_parallel": True}, {"impl": "local"}),
        ("gqa", {**TP2, "sequence_parallel": True}, {"share": False, "write": False}),
        ("gqa", {**PP2, "virtual_pipeline_model_parallel_size": 2}, {"tokens": 100}),
        ("gqa", {**PP2, "virtual_pipeline_model_parallel_size": 2}, {"share": False, "write": False}),
        ("gqa", {"context_parallel_size": 2}, {}),
        ("gqa", {}, {"sequences": 3}),  # two replicas
    ]
    check(models, 2, cases)


def test_four_processes(models: dict[str, Model]) -> None:
    cases: list[Case] = [(name, {**TP2, **PP2}, {"write": name in ("gqa", TRAINED)}) for name in models]
    check(models, 4, [*cases, ("gqa", {**TP2, "sequence_parallel": True}, {"write": False})])

"""Perplexity of documents: windows and batches, and a transformers model against its own loss."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synE.corpus.annotations import NO_SCORE
from megatron_synE.corpus.perplexity import DocumentScorer, HuggingFaceModel


class BigramModel:
    """A model whose -ln p(b | a) is a table, so that windows and batches can be checked by hand."""

    def __init__(self, max_window_tokens: int) -> None:
        self.max_window_tokens = max_window_tokens
        self.table = np.random.default_rng(0).uniform(0.1, 5.0, (10, 10))
        self.largest_batch = 0

    def info(self) -> dict[str, object]:
        return {"type": "bigram"}

    def sum_nll(self, tokens_BT: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        assert tokens_BT.shape[1] == lengths_B.max() <= self.max_window_tokens
        self.largest_batch = max(self.largest_batch, tokens_BT.size)
        rows = [row[:length] for row, length in zip(tokens_BT, lengths_B, strict=True)]
        return np.array([self.table[row[:-1], row[1:]].sum() for row in rows])


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=40), max_size=12),
    st.integers(2, 50),
    st.integers(2, 100),
    st.sampled_from([None, 3]),
)
def test_every_token_is_predicted_once_whatever_the_windows(
    documents: list[list[int]], window: int, batch: int, bos_id: int | None
) -> None:
    model = BigramModel(window)
    scores = DocumentScorer(model, batch, bos_id).score([np.array(d, dtype=np.uint16) for d in documents])
    for document, score in zip(documents, scores, strict=True):
        tokens = np.array(document if bos_id is None else [bos_id, *document], dtype=np.int64)
        expected = np.exp(model.table[tokens[:-1], tokens[1:]].mean()) if len(tokens) > 1 else NO_SCORE
        assert score == pytest.approx(expected, rel=1e-5)
    assert model.largest_batch <= max(batch, window)


def test_a_hopeless_model_gives_a_finite_score() -> None:
    model = BigramModel(8)
    model.table += 1e6
    assert np.isfinite(DocumentScorer(model).score([np.array([1, 2, 3])])).all()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def test_transformers_model_like_its_own_loss(llama: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    rng = np.random.default_rng(1)
    documents = [rng.integers(0, 97, size=length).astype(np.uint16) for length in (2, 60, 17, 64, 3, 1, 33)]
    scorer = DocumentScorer(HuggingFaceModel(llama, dtype="float32", logits_rows=7), tokens_per_batch=150)
    scores = scorer.score(documents)
    model = LlamaForCausalLM.from_pretrained(llama).eval()
    for document, score in zip(documents, scores, strict=True):
        tokens = torch.from_numpy(document.astype(np.int64))[None]
        if tokens.shape[1] < 2:
            assert score == NO_SCORE
        else:
            with torch.inference_mode():
                assert score == pytest.approx(float(model(tokens, labels=tokens).loss.exp()), rel=1e-4)


def test_a_corpus_of_another_vocabulary_is_refused(llama: Path) -> None:
    scorer = DocumentScorer(HuggingFaceModel(llama, dtype="float32"))
    with pytest.raises(ValueError, match="another tokenizer"):
        scorer.score([np.array([5, 97])])


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        HuggingFaceModel(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded"):
        HuggingFaceModel(tmp_path)


def test_info_follows_the_weights(llama: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(llama)
    model.lm_head.weight.data += 1
    model.save_pretrained(tmp_path)
    assert DocumentScorer(HuggingFaceModel(tmp_path)).info() != DocumentScorer(HuggingFaceModel(llama)).info()

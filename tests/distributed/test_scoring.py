"""Perplexity by a checkpoint of ours is that of the same model in Hugging Face format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_synE.corpus.annotations import NO_SCORE
from tests.helpers.commands import run_tool
from tests.helpers.distributed import run_distributed
from tests.helpers.hf_llama import make_hf_llama


def scores(checkpoint: str, documents: list[list[int]]) -> list[float]:
    from megatron_synE.corpus.perplexity import DocumentScorer
    from megatron_synE.training.scoring import CheckpointModel

    model = CheckpointModel(checkpoint, "auto", "float32", max_window_tokens=32)
    found = DocumentScorer(model, tokens_per_batch=128).score([np.array(document) for document in documents])
    with pytest.raises(ValueError, match="token 5000 is not in the checkpoint's vocabulary of 131"):
        model.sum_nll(np.array([[1, 5000]]), np.array([2]))
    model.close()
    return found.tolist()


def test_scores_equal_those_of_the_same_hugging_face_model(tmp_path: Path) -> None:
    from megatron_synE.corpus.perplexity import DocumentScorer, HuggingFaceModel

    hf, checkpoint = tmp_path / "hf", tmp_path / "ours"
    make_hf_llama(hf, "gqa")
    done = run_tool("convert_checkpoint", "import", "--hf-dir", hf, "--checkpoint", checkpoint)
    assert done.returncode == 0, done.stderr
    random = np.random.default_rng(0)
    documents = [random.integers(0, 131, size).tolist() for size in (2, 100, 33, 1, 5)]
    ours = np.array(run_distributed(scores, 1, str(checkpoint), documents)[0])
    theirs = DocumentScorer(HuggingFaceModel(hf, dtype="float32", max_window_tokens=32), tokens_per_batch=128).score(
        [np.array(document) for document in documents]
    )
    assert (ours == NO_SCORE).tolist() == [False, False, False, True, False], "one token alone is not predicted"
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)

"""Batches and held-out sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_synE.config.data import DataConfig, SourceConfig, StageConfig
from megatron_synE.data import DataStream, native
from megatron_synE.data.batches import assemble
from megatron_synE.data.cache import IndexCache
from megatron_synE.data.components import Component, Source
from megatron_synE.data.heldout import HeldoutSet
from tests.helpers.corpora import random_documents, write_corpus

COMPONENT = np.array([4, 2], np.int32)
ROWS = np.array([[10, 11, 12, 20, 21, 30], [31, 32, 33, 34, 40, 41]])
STARTS = [[0, 3, 5], [4]]


def test_one_continuous_sequence() -> None:
    batch = assemble(ROWS, STARTS, COMPONENT, isolate_documents=False, eod_mask_loss=False)
    assert (batch.tokens_BS == ROWS[:, :-1]).all() and (batch.labels_BS == ROWS[:, 1:]).all()
    assert batch.loss_mask_BS.tolist() == [[1] * 5] * 2
    assert batch.position_ids_BS.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert batch.cu_seqlens is None and batch.component_B.tolist() == [4, 2]
    dtypes = (batch.tokens_BS, batch.labels_BS, batch.position_ids_BS, batch.loss_mask_BS, batch.component_B)
    assert [array.dtype for array in dtypes] == [np.int64, np.int64, np.int64, np.float32, np.int32]
    assert all(array.flags.c_contiguous and array.flags.writeable for array in dtypes)


def test_masked_borders_keep_positions() -> None:
    batch = assemble(ROWS, STARTS, COMPONENT, isolate_documents=False, eod_mask_loss=True)
    assert batch.loss_mask_BS.tolist() == [[1, 1, 0, 1, 0], [1, 1, 1, 0, 1]]
    assert batch.position_ids_BS.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_isolated_documents() -> None:
    batch = assemble(ROWS, STARTS, COMPONENT, isolate_documents=True, eod_mask_loss=False)
    assert batch.tokens_BS.shape == batch.loss_mask_BS.shape == (1, 10)
    assert batch.cu_seqlens is not None and batch.cu_seqlens.dtype == np.int32
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 9, 10]
    assert batch.position_ids_BS.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3, 0]]
    assert batch.loss_mask_BS.tolist() == [[1, 1, 0, 1, 0, 1, 1, 1, 0, 1]]


def test_no_loss_across_a_boundary() -> None:
    """Tokens carry their document's number: wherever the loss counts, token and label are of one document."""
    rng = np.random.default_rng(0)
    rows = np.sort(rng.integers(0, 40, (6, 65)), axis=1)
    starts = [np.flatnonzero(np.diff(row, prepend=row[0] - int(rng.integers(2)))).tolist() for row in rows]
    batch = assemble(rows, starts, np.zeros(6, np.int32), isolate_documents=True, eod_mask_loss=False)
    same = batch.tokens_BS == batch.labels_BS
    assert (same == (batch.loss_mask_BS == 1)).all()
    assert batch.cu_seqlens is not None
    for first, last in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        assert len(set(batch.tokens_BS[0, first:last].tolist())) == 1
        assert (batch.position_ids_BS[0, first:last] == np.arange(last - first)).all()


def heldout_set(folder: Path, documents: list[list[int]], **fields) -> HeldoutSet:
    prefix = write_corpus(folder / "web", documents)
    source = Source("web", SourceConfig(prefix, order="stored"), 0.999999, IndexCache(folder / "cache"))
    run = Component(source, None, "stored", 8, 0).heldout()
    return HeldoutSet(run, 3, 8, **{"max_samples": 99, "isolate_documents": False, "eod_mask_loss": False, **fields})


@pytest.mark.parametrize("isolate_documents", [False, True])
def test_heldout_samples_predict_every_token_once(tmp_path: Path, isolate_documents: bool) -> None:
    documents = [[7] * 5, [8] * 9, [9] * 6]
    heldout = heldout_set(tmp_path, documents, isolate_documents=isolate_documents)
    assert len(heldout) == 3
    batch = heldout.batch(range(3))
    predictions = 20 - 1 if not isolate_documents else 20 - 3
    assert batch.loss_mask_BS.sum() == predictions
    assert batch.component_B.tolist() == [3, 3, 3]
    if isolate_documents:
        assert batch.cu_seqlens is not None and batch.cu_seqlens[-1] == 24 and (np.diff(batch.cu_seqlens) > 0).all()
        assert ((batch.tokens_BS == batch.labels_BS) | (batch.loss_mask_BS == 0)).all()


def test_heldout_set_is_capped_and_may_be_empty(tmp_path: Path) -> None:
    assert len(heldout_set(tmp_path, [[1] * 100], max_samples=5)) == 5
    with pytest.raises(IndexError, match="held-out sample 5 of 5"):
        heldout_set(tmp_path, [[1] * 100], max_samples=5).batch([5])
    prefix = write_corpus(tmp_path / "other", [[1] * 100])
    source = Source("web", SourceConfig(prefix, order="stored"), 0.0, IndexCache(tmp_path))
    run = Component(source, None, "stored", 8, 0).heldout()
    assert len(HeldoutSet(run, 0, 8, 9, False, False)) == 0


HELDOUT = 0.3
VOCAB_SIZE, PADDED_SIZE = 249, 256
"""Token ids between the two have rows in the model's embedding, which are padding."""


@pytest.mark.parametrize("heldout", [False, True])
@pytest.mark.parametrize("token", [-1, VOCAB_SIZE - 1, VOCAB_SIZE, PADDED_SIZE - 1, PADDED_SIZE, 2**31 - 1])
def test_a_token_that_the_vocabulary_lacks_is_refused(tmp_path: Path, token: int, heldout: bool) -> None:
    """Also where the embedding is padded: such a row would train in silence."""
    rng = np.random.default_rng(0)
    documents = random_documents(rng, 200, vocab_size=VOCAB_SIZE)
    plain = write_corpus(tmp_path / "plain", documents, dtype=np.int32)
    # Whether a document is held out follows from its content.
    changed = [np.array([*document[:-1], token], np.int32) for document in documents]
    hashes = np.array([native.hash_documents(document, np.array([0, len(document)]))[0] for document in changed])
    number = int(np.flatnonzero((hashes < np.uint64(int(HELDOUT * 2**64))) == heldout)[0])
    prefix = write_corpus(
        tmp_path / "web", [*documents[:number], changed[number].tolist(), *documents[number + 1 :]], dtype=np.int32
    )
    stream = DataStream.build(config_of(prefix), vocab_size=VOCAB_SIZE)
    (held,) = stream.heldout().values()
    read = held.batch if heldout else stream.batch
    samples = range(len(held)) if heldout else range(stream.num_samples)
    if 0 <= token < VOCAB_SIZE:
        read(samples)
        return
    message = rf"web: document {number} holds token {token}, .* vocabulary has {VOCAB_SIZE};"
    with pytest.raises(ValueError, match=message):
        read(samples)
    DataStream.build(config_of(plain), vocab_size=VOCAB_SIZE).batch(samples)


def config_of(prefix: str) -> DataConfig:
    """One source, read about twice."""
    stages = [StageConfig("one", 600 * 16, {"web": 1})]
    source = SourceConfig(prefix, heldout_fraction=HELDOUT)
    return DataConfig({"web": source}, stages, seq_length=16, heldout_samples=999)

"""Components: epochs, orders, changes of order, held-out documents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_synE.config.data import SourceConfig
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.data import components
from megatron_synE.data.cache import IndexCache
from megatron_synE.data.components import Component, Source, exclude_foreign_heldout
from tests.helpers.corpora import random_documents, write_corpus
from tests.helpers.progress import is_complete, recorded_bars

SEQ_LENGTH = 16
NAMES = ("law", "history", "others")


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """120 documents of which the tokens are unique; three topics; perplexities with two missing."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 50, 120)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    documents = [list(range(start, start + length)) for start, length in zip(starts[:-1], lengths, strict=True)]
    perplexity = rng.uniform(1, 100, 120)
    perplexity[[3, 77]] = -1
    return write_corpus(
        tmp_path / "web", documents, topics=rng.integers(0, 3, 120), names=NAMES, perplexity=perplexity, dtype=np.int32
    )


def component(prefix: str, topic: str | None = None, heldout: float = 0.1, seed: int = 1, **fields) -> Component:
    config = SourceConfig(prefix, **{"order": "stored", "unscored": "last", **fields})
    source = Source("web", config, heldout, IndexCache(Path(prefix).parent / "cache"))
    return Component(source, topic, config.order, SEQ_LENGTH, seed)


def read(component: Component, samples: range) -> np.ndarray:
    """The tokens of consecutive samples, each read on its own, end to end."""
    rows = np.empty((len(samples), SEQ_LENGTH + 1), np.int64)
    for row, sample in enumerate(samples):
        component.read(sample, rows[row])
    assert (rows[:-1, -1] == rows[1:, 0]).all(), "the last label of a sample is the first token of the next"
    return rows[:, :-1].ravel()


@pytest.mark.parametrize("order", ["stored", "shuffled", "perplexity_ascending", "perplexity_descending"])
def test_each_epoch_reads_every_token_once(corpus: str, order: str) -> None:
    web = component(corpus, order=order)
    training = np.concatenate([IndexedCorpus(corpus).document(d) for d in web.epoch(0).order])
    tokens = read(web, range(3 * web.num_tokens // SEQ_LENGTH + 1))
    for epoch in range(3):
        own = tokens[epoch * web.num_tokens : (epoch + 1) * web.num_tokens]
        assert (np.sort(own) == np.sort(training)).all()
    first, second = tokens[: web.num_tokens], tokens[web.num_tokens : 2 * web.num_tokens]
    assert (first == second).all() == (order != "shuffled")


def test_curriculum_orders(corpus: str) -> None:
    perplexity = Source("web", SourceConfig(corpus), 0.1, IndexCache(Path(corpus).parent)).perplexity
    for unscored, place in (("first", slice(0, 2)), ("last", slice(-2, None))):
        up = component(corpus, order="perplexity_ascending", unscored=unscored, heldout=0).epoch(0).order
        down = component(corpus, order="perplexity_descending", unscored=unscored, heldout=0).epoch(0).order
        for order, sign in ((up, 1), (down, -1)):
            assert set(order[place].tolist()) == {3, 77}
            scored = perplexity[order[~np.isin(order, [3, 77])]]
            assert (np.diff(sign * scored) >= 0).all()
    dropped = component(corpus, order="shuffled", unscored="drop", heldout=0)
    assert dropped.num_documents == 118 and not np.isin([3, 77], dropped.epoch(0).order).any()


def test_equal_perplexities_keep_the_stored_order(tmp_path: Path) -> None:
    prefix = write_corpus(tmp_path / "same", [[i] * 20 for i in range(30)], perplexity=[5.0] * 30)
    for order in ("perplexity_ascending", "perplexity_descending"):
        assert component(prefix, order=order, heldout=0).epoch(0).order.tolist() == list(range(30))


def test_shuffles_depend_on_seed_epoch_and_component(corpus: str) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return component(corpus, order="shuffled", seed=seed).epoch(epoch).order.tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_topics_divide_the_source(corpus: str) -> None:
    whole, parts = component(corpus), [component(corpus, topic) for topic in NAMES]
    together = np.concatenate([part.epoch(0).order for part in parts])
    assert sorted(together) == sorted(whole.epoch(0).order)
    assert [part.name for part in parts] == ["web/law", "web/history", "web/others"]


def test_a_change_of_order_keeps_what_was_read_and_rearranges_the_rest(corpus: str) -> None:
    plain, changed = component(corpus, order="perplexity_ascending"), component(corpus, order="perplexity_ascending")
    per_epoch = plain.num_tokens // SEQ_LENGTH
    cut = per_epoch // 3
    changed.chain = (("perplexity_ascending", 0), ("stored", cut * SEQ_LENGTH))
    before, after = read(plain, range(cut)), read(changed, range(2 * per_epoch))
    assert (after[: len(before)] == before).all()
    assert (np.sort(after[: plain.num_tokens]) == np.sort(read(plain, range(per_epoch + 1))[: plain.num_tokens])).all()
    order = changed.epoch(0).order
    kept = int(np.searchsorted(changed.epoch(0).ends[:-1], cut * SEQ_LENGTH, side="right"))
    assert (np.diff(order[kept:]) > 0).all() and (np.diff(order[:kept]) < 0).any()
    assert (np.diff(changed.epoch(1).order) > 0).all()


def test_the_label_read_at_a_change_of_order_stays(tmp_path: Path) -> None:
    """Documents as long as samples: the change falls on a document's first token, which was already a label."""
    documents = [list(range(100 * d, 100 * d + SEQ_LENGTH)) for d in range(8)]
    prefix = write_corpus(tmp_path / "even", documents, perplexity=[8 - d for d in range(8)])
    for cut in (3, 8, 11):
        plain = component(prefix, order="perplexity_ascending", heldout=0)
        changed = component(prefix, order="perplexity_ascending", heldout=0)
        changed.chain = (("perplexity_ascending", 0), ("shuffled", cut * SEQ_LENGTH))
        for sample in range(cut):
            rows = np.empty((2, SEQ_LENGTH + 1), np.int64)
            plain.read(sample, rows[0])
            changed.read(sample, rows[1])
            assert (rows[0] == rows[1]).all()
        epochs = read(changed, range(16)).reshape(2, -1)
        assert all(len(set(epoch.tolist())) == 8 * SEQ_LENGTH for epoch in epochs)


def test_capacity_counts_the_label_after_the_last_sample(corpus: str) -> None:
    web = component(corpus, max_epochs=1)
    capacity = web.capacity()
    assert capacity == (web.num_tokens - 1) // SEQ_LENGTH
    assert component(corpus, max_epochs=0.5).capacity() < capacity
    assert component(corpus).capacity() is None


def test_heldout_documents_stay_out_when_the_corpus_grows(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    old, new = random_documents(rng, 300), random_documents(rng, 200)
    heldout: list[set[tuple[int, ...]]] = []
    trained: list[set[tuple[int, ...]]] = []
    for name, documents, dtype in (("a", old, np.uint16), ("b", [*new, *old], np.uint16), ("c", old, np.int32)):
        prefix = write_corpus(tmp_path / name, documents, dtype=dtype)
        corpus, web = IndexedCorpus(prefix), component(prefix, order="shuffled")
        heldout.append({tuple(corpus.document(d).tolist()) for d in web.heldout().order})
        trained.append({tuple(corpus.document(d).tolist()) for d in web.epoch(0).order})
        assert len(heldout[-1]) + len(trained[-1]) == len(documents)
    assert heldout[0] < heldout[1] and heldout[0] == heldout[2]
    for kept in heldout:
        assert all(kept.isdisjoint(seen) for seen in trained)
    assert 10 < len(heldout[0]) < 60


def test_a_document_held_out_anywhere_trains_nowhere(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    shared = random_documents(rng, 200)
    sources = []
    for name, fraction in (("much", 0.5), ("little", 0.05), ("none", 0.0)):
        prefix = write_corpus(tmp_path / name, [*random_documents(rng, 50), *shared])
        sources.append(Source(name, SourceConfig(prefix, order="stored"), fraction, IndexCache(tmp_path / "cache")))
    exclude_foreign_heldout(sources)
    heldout, trained = set(), set()
    for source in sources:
        part = Component(source, None, "stored", SEQ_LENGTH, 1)
        heldout |= {tuple(source.corpus.document(d).tolist()) for d in part.heldout().order}
        trained |= {tuple(source.corpus.document(d).tolist()) for d in part.epoch(0).order}
    assert len(heldout) > 80 and heldout.isdisjoint(trained)
    assert any(tuple(document) in heldout for document in shared) and len(trained) > 100


def test_tokens_of_another_type_are_refused(tmp_path: Path) -> None:
    prefix = write_corpus(tmp_path / "wide", [[1, 2, 3]], dtype=np.int64)
    with pytest.raises(ValueError, match=r"wide\.idx: tokens are int64"):
        component(prefix)


def test_rewriting_a_corpus_under_its_prefix_does_not_reuse_its_indices(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    documents = random_documents(rng, 50)
    first = component(write_corpus(tmp_path / "web", documents), heldout=0, order="shuffled")
    lengths = [len(document) for document in documents]
    other = [rng.integers(0, 5000, length).tolist() for length in lengths]
    second = component(write_corpus(tmp_path / "web", other), heldout=0, order="shuffled")
    assert first.identity != second.identity
    assert np.concatenate(other).sum() == read(second, range(second.num_tokens))[: second.num_tokens].sum()


def test_empty_documents_are_passed_over(tmp_path: Path) -> None:
    prefix = write_corpus(tmp_path / "holes", [[1] * 20, [], [2] * 20, []])
    web = component(prefix, heldout=0)
    assert web.epoch(0).order.tolist() == [0, 2]


def test_documents_of_several_sequences_are_read_whole(tmp_path: Path) -> None:
    from megatron_synE.corpus.indexed_writer import IndexedCorpusWriter

    with IndexedCorpusWriter(tmp_path / "parts", np.uint16) as writer:
        writer.add_documents(np.arange(60), np.array([10, 20, 5, 25]), np.array([2, 1, 1]))
        writer.finalize()
    web = component(str(tmp_path / "parts"), heldout=0)
    assert web.num_documents == 3
    assert (read(web, range(3)) == np.arange(48)).all()


def test_building_an_index_shows_how_much_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = recorded_bars(monkeypatch, components)
    monkeypatch.setattr(components, "HASH_PIECE_TOKENS", 100)
    documents = random_documents(np.random.default_rng(0), 60)
    num_tokens = sum(map(len, documents))
    prefix = write_corpus(tmp_path / "web", documents)
    component(prefix)
    (bar,) = bars
    assert is_complete(bar) and (bar.what, bar.total, bar.unit) == (f"{prefix}: index", num_tokens, "tokens")
    component(prefix)
    assert len(bars) == 1, "it is in the cache"

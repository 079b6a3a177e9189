"""The topic classifiers: learning, storage without pickle, and evaluation."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from megatron_synE.corpus import topics as topics_module
from megatron_synE.corpus.topics import (
    RECIPE_TOPICS,
    FeatureSettings,
    LinearClassifier,
    features,
    load_topic_classifier,
)
from tests.helpers.progress import is_complete, recorded_bars
from tests.unit.corpus.conftest import SAMPLE

SMALL = FeatureSettings(num_bits=14)


def labelled(name: str) -> tuple[list[str], np.ndarray]:
    with open(SAMPLE / f"{name}.jsonl", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [r["text"] for r in records], np.array([RECIPE_TOPICS.index(r["topic"]) for r in records])


@pytest.fixture(scope="module")
def classifier() -> LinearClassifier:
    (english, english_labels), (chinese, chinese_labels) = labelled("web_en"), labelled("web_zh")
    labels = np.concatenate([english_labels[:160], chinese_labels[:160]])
    return LinearClassifier.train(english[:160] + chinese[:160], labels, RECIPE_TOPICS, SMALL)


def test_there_are_eleven_topics_in_the_recipe() -> None:
    assert len(set(RECIPE_TOPICS)) == 11


@pytest.mark.parametrize("name", ["web_en", "web_zh"])
def test_it_learns_both_languages(classifier: LinearClassifier, name: str) -> None:
    texts, labels = labelled(name)
    predicted = classifier.predict(texts[160:])
    assert predicted.dtype == np.int16 and (predicted == labels[160:]).mean() >= 0.95


def test_probabilities_sum_to_one_and_agree_with_the_prediction(classifier: LinearClassifier) -> None:
    texts = labelled("web_en")[0][160:]
    found = classifier.probabilities(texts)
    assert found.shape == (80, 11) and found.dtype == np.float32 and np.allclose(found.sum(axis=1), 1, atol=1e-5)
    assert (found.argmax(axis=1) == classifier.predict(texts)).all()
    assert set(np.flatnonzero(found.sum(axis=0))) == set(classifier.classes.tolist())


def test_it_is_the_minimum_of_the_penalised_loss() -> None:
    """At the minimum, the gradient of the penalty balances that of the loss; classes weigh the same however rare."""
    rng = np.random.default_rng(0)
    texts = [f"word{n} {'cat' if n % 4 else 'dog'}" for n in range(40)]
    labels = np.array([n % 4 > 0 for n in range(40)])
    labels = labels ^ (rng.random(40) < 0.2)
    trained = LinearClassifier.train(texts, labels.astype(int), "xy", SMALL, strength=1.0)
    rows = features(texts, SMALL)
    slope = trained.probabilities(texts).astype(float)
    slope[np.arange(40), labels.astype(int)] -= 1
    slope /= (2 * np.bincount(labels))[labels.astype(int)][:, None]
    gradient = (rows.T @ slope).T + trained.weights / 40
    assert np.abs(gradient).max() < 2e-4 and np.abs(slope.sum(axis=0)).max() < 2e-4
    assert np.abs(trained.weights).max() > 0.1


def test_training_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = recorded_bars(monkeypatch, topics_module)
    texts, labels = labelled("web_en")
    monkeypatch.setattr(topics_module, "FEATURE_BLOCK", 50)
    LinearClassifier.train(texts, labels, RECIPE_TOPICS, SMALL, max_iterations=7)
    rows, fit = bars
    assert is_complete(rows) and rows.total == len(texts)
    assert is_complete(fit) and (fit.total, fit.unit) == (7, "iterations")


def test_shuffled_labels_are_not_learned() -> None:
    """The features carry no trace of a document's place: the test above can fail."""
    texts, labels = labelled("web_en")
    wrong = np.array(random.Random(0).sample(labels.tolist(), len(labels)))
    trained = LinearClassifier.train(texts[:160], wrong[:160], RECIPE_TOPICS, SMALL, max_iterations=10)
    assert (trained.predict(texts[160:]) == labels[160:]).mean() < 0.6


def test_stored_and_loaded_it_predicts_the_same(classifier: LinearClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "c", {"accuracy": 1.0})
    loaded = load_topic_classifier(tmp_path / "c")
    texts = [*labelled("web_zh")[0], "", " ", "\ud800 lone surrogate"]
    assert loaded.predict(texts).tolist() == classifier.predict(texts).tolist()
    assert loaded.info() == classifier.info() and tuple(loaded.names) == RECIPE_TOPICS
    assert loaded.predict([]).shape == (0,)


def test_two_topics_and_few_documents() -> None:
    trained = LinearClassifier.train(["cat cat", "dog dog", "a cat", "a dog"], np.array([1, 2, 1, 2]), "xyz", SMALL)
    assert trained.predict(["cat", "dog"]).tolist() == [1, 2]


def test_features_are_normalised_and_see_only_the_beginning() -> None:
    matrix = features(["some text 文本", ""], SMALL)
    assert matrix.shape == (2, 1 << 14)
    assert np.allclose(np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1))).ravel(), [1, 0])
    short = FeatureSettings(num_bits=14, max_chars=5)
    assert (features(["abcde"], short) != features(["abcde and more"], short)).nnz == 0
    assert (features(["abcde"], short) != features(["abcdf"], short)).nnz > 0


def test_a_save_that_was_killed_leaves_no_classifier(
    classifier: LinearClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old names must not vouch for new weights."""
    classifier.save(tmp_path)
    monkeypatch.setattr(topics_module, "write_json_atomically", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        classifier.save(tmp_path)
    with pytest.raises(ValueError, match="no topic classifier"):
        load_topic_classifier(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: (d / "weights.npz").unlink(),
        lambda d: (d / "weights.npz").write_bytes(b"damaged"),
        lambda d: (d / "classifier.json").write_text("{}"),
        lambda d: np.savez(d / "weights.npz", weights=np.zeros((2, 8)), bias=np.zeros(2), classes=np.zeros(2)),
        lambda d: np.savez(d / "weights.npz", weights=np.array([object()]), bias=np.zeros(1), classes=np.zeros(1)),
    ],
)
def test_damaged_classifiers_are_refused(classifier: LinearClassifier, tmp_path: Path, change: object) -> None:
    classifier.save(tmp_path)
    change(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_topic_classifier(tmp_path)


def test_one_topic_cannot_be_learned() -> None:
    with pytest.raises(ValueError, match="fewer than two topics"):
        LinearClassifier.train(["a", "b"], np.array([0, 0]), ["x"], SMALL)


def test_a_directory_without_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no topic classifier"):
        load_topic_classifier(tmp_path)


def test_a_transformers_classifier_is_used(tmp_path: Path) -> None:
    """A tiny random BERT: same numbers as the model gives one text at a time, names from its config."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(SAMPLE / "tokenizer", pad_token="<|end_of_text|>")
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4096, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        num_labels=3, id2label={0: "law", 1: "art", 2: "music"}, initializer_range=1.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    texts = [*labelled("web_en")[0][:5], "short", *labelled("web_zh")[0][:5]]
    with torch.inference_mode():
        expected = [
            int(model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=512)).logits.argmax())
            for text in texts
        ]
    assert len(set(expected)) > 1
    loaded = load_topic_classifier(tmp_path)
    assert list(loaded.names) == ["law", "art", "music"]
    assert loaded.predict(texts).tolist() == expected
    assert np.allclose(loaded.probabilities(texts).sum(axis=1), 1, atol=1e-5)

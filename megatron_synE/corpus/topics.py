"""Topics of web pages: the recipe's label set and two kinds of classifier.

``LinearClassifier`` is a multinomial logistic regression on hashed n-grams of characters and words; it
is stored as ``classifier.json`` and ``weights.npz``, never as a pickle. ``TransformersClassifier`` wraps any local
sequence classifier of transformers; the paper (arXiv 2407.18743) used TinyBERT trained on labels of GPT-4.
"""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from megatron_synE.corpus.indexed import write_json_atomically
from megatron_synE.progress import ProgressBar

logger = logging.getLogger(__name__)

RECIPE_TOPICS = (
    "mathematics_and_physics",
    "computer_science_and_engineering",
    "biology_and_chemistry",
    "history_and_geography",
    "law_and_policy",
    "philosophy_and_logic",
    "economics_and_business",
    "psychology_and_sociology",
    "security_and_international_relations",
    "medicine_and_health",
    "others",
)
"""The eleven topics, after the subjects of MMLU and CMMLU, the same for each language."""

FORMAT_VERSION = 1
ROW_BLOCK, FEATURE_BLOCK = 4096, 256


class TopicClassifier(Protocol):
    """Gives texts their topics."""

    names: Sequence[str]
    """What the numbers of ``predict`` stand for."""

    def info(self) -> dict[str, Any]:
        """What determines the predictions, JSON-able."""
        ...

    def predict(self, texts: list[str]) -> npt.NDArray[np.int16]:
        """Return [texts] numbers of topics."""
        ...

    def probabilities(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """Return [texts, names] probabilities of all topics; rows sum to 1, and ``predict`` takes their largest."""
        ...


@dataclass(frozen=True)
class FeatureSettings:
    """How a text becomes a sparse vector."""

    num_bits: int = 18
    """The vector has 2^num_bits entries."""
    char_ngrams: tuple[int, int] = (1, 4)
    """Shortest and longest n-gram of characters."""
    word_ngrams: tuple[int, int] = (1, 2)
    """Shortest and longest n-gram of words (runs without white space)."""
    max_chars: int = 4000
    """Only the beginning of a text is looked at."""

    def problems(self) -> list[str]:
        """What is wrong with the settings."""
        found = [] if 8 <= self.num_bits <= 26 else ["num_bits must be between 8 and 26"]
        for low, high in (self.char_ngrams, self.word_ngrams):
            if not 1 <= low <= high:
                found.append(f"n-grams from {low} to {high}: the shortest must be at least 1 and not above the longest")
        return found if self.max_chars > 0 else [*found, "max_chars must be positive"]


def features(texts: Sequence[str], settings: FeatureSettings) -> Any:
    """Hashed n-gram counts as a ``scipy.sparse.csr_matrix``, float32 [texts, 2^num_bits], rows of length 1.

    A count c weighs 1 + ln c. Hashes are multiplicative (Dietzfelbinger et al., 1997), for all positions at once.
    """
    from scipy import sparse

    columns, values, starts = [], [], [0]
    for text in texts:
        column, count = np.unique(_hashes(text[: settings.max_chars].lower(), settings), return_counts=True)
        value = 1 + np.log(count)
        columns.append(column)
        values.append(value / np.linalg.norm(value) if len(value) else value)
        starts.append(starts[-1] + len(column))
    data = np.concatenate([*values, np.empty(0)]).astype(np.float32)
    indices = np.concatenate([*columns, np.empty(0, np.int32)]).astype(np.int32)
    return sparse.csr_matrix((data, indices, np.array(starts)), shape=(len(texts), 1 << settings.num_bits))


def _hashes(text: str, settings: FeatureSettings) -> npt.NDArray[np.int32]:
    chars = np.frombuffer(text.encode("utf-32-le", errors="replace"), dtype=np.uint32).astype(np.uint64)
    words = np.array([zlib.crc32(word.encode("utf-8", errors="replace")) for word in text.split()], dtype=np.uint64)
    found = []
    for seed, (units, (low, high)) in enumerate(((chars, settings.char_ngrams), (words, settings.word_ngrams)), 1):
        for n in range(low, high + 1):
            mixed = np.full(max(len(units) - n + 1, 0), 31 * seed + n, dtype=np.uint64)
            for i in range(n):
                mixed = (mixed ^ units[i : i + len(mixed)]) * np.uint64(0x9E3779B97F4A7C15)
                mixed ^= mixed >> np.uint64(29)
            found.append((mixed * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(64 - settings.num_bits))
    return np.concatenate(found).astype(np.int32)


def _features_of_all(texts: Sequence[str], settings: FeatureSettings) -> Any:
    from scipy import sparse

    blocks = []
    with ProgressBar("features", len(texts), "documents") as bar:
        for start in range(0, len(texts), FEATURE_BLOCK):
            blocks.append(features(texts[start : start + FEATURE_BLOCK], settings))
            bar.advance(blocks[-1].shape[0])
    return sparse.vstack(blocks, format="csr")


def _fit(
    rows: Any, labels: npt.NDArray[np.integer], strength: float, max_iterations: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weights [classes, F] and bias [classes] of a multinomial logistic regression of labels [N] on sparse rows [N, F].

    Minimises, by L-BFGS, the mean of -ln p(label) over classes of equal weight, plus |weights|² / (2 · strength · N).
    """
    from scipy.optimize import minimize

    counts = np.bincount(labels)
    num_classes, num_rows, num_features = len(counts), rows.shape[0], rows.shape[1]
    penalty = 1 / (strength * num_rows)
    weight_of_row = (1 / (num_classes * counts))[labels][:, None]
    own = np.arange(num_rows), labels

    def loss_and_gradient(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        parameters = flat.reshape(num_classes, num_features + 1)
        weights, bias = parameters[:, :-1], parameters[:, -1]
        log_p = _log_softmax(rows @ weights.T.astype(np.float32) + bias)
        loss = -(weight_of_row[:, 0] * log_p[own]).sum() + penalty / 2 * np.square(weights).sum()
        slope = np.exp(log_p)
        slope[own] -= 1
        slope *= weight_of_row
        gradient = np.empty_like(parameters)
        gradient[:, :-1] = (rows.T @ slope.astype(np.float32)).T + penalty * weights
        gradient[:, -1] = slope.sum(axis=0)
        return float(loss), gradient.ravel()

    with ProgressBar("classifier (at most)", max_iterations, "iterations") as bar:
        found = minimize(
            loss_and_gradient,
            np.zeros(num_classes * (num_features + 1)),
            jac=True,
            method="L-BFGS-B",
            callback=lambda _: bar.advance(1),
            options={"maxiter": max_iterations, "gtol": 1e-4, "ftol": 64 * np.finfo(np.float64).eps, "maxls": 50},
        )
    if found.nit >= max_iterations:
        logger.warning("topic classifier: still improving after %d iterations", max_iterations)
    parameters = found.x.reshape(num_classes, num_features + 1).astype(np.float32)
    return parameters[:, :-1].copy(), parameters[:, -1].copy()


def _log_softmax(scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@dataclass
class LinearClassifier:
    """Multinomial logistic regression on hashed n-grams."""

    names: Sequence[str]
    settings: FeatureSettings
    classes: npt.NDArray[np.int16]
    """[classes] the names' numbers that occurred in training; only these are ever predicted."""
    weights: npt.NDArray[np.float32]
    """[classes, 2^num_bits]"""
    bias: npt.NDArray[np.float32]
    """[classes]"""

    @classmethod
    def train(
        cls,
        texts: Sequence[str],
        labels: npt.NDArray[np.integer],
        names: Sequence[str],
        settings: FeatureSettings = FeatureSettings(),
        *,
        strength: float = 10.0,
        max_iterations: int = 200,
    ) -> "LinearClassifier":
        """Fit to ``texts`` with ``labels`` [texts], numbers of ``names``; classes weigh the same however rare.

        Args:
            strength: inverse of the L2 penalty.

        Raises:
            ValueError: fewer than two topics occur, or the settings cannot be.
        """
        if problems := settings.problems():
            raise ValueError("topic classifier: " + "; ".join(problems))
        classes, own = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError("topic classifier: the training documents have fewer than two topics")
        weights, bias = _fit(_features_of_all(texts, settings), own, strength, max_iterations)
        return cls(tuple(names), settings, classes.astype(np.int16), weights, bias)

    def predict(self, texts: list[str]) -> npt.NDArray[np.int16]:
        return self.classes[self._scores(texts).argmax(axis=1)]

    def probabilities(self, texts: list[str]) -> npt.NDArray[np.float32]:
        found = np.zeros((len(texts), len(self.names)), dtype=np.float32)
        found[:, self.classes] = np.exp(_log_softmax(self._scores(texts)))
        return found

    def _scores(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """[texts, classes]"""
        blocks = [texts[start : start + ROW_BLOCK] for start in range(0, len(texts), ROW_BLOCK)]
        scores = [features(block, self.settings) @ self.weights.T + self.bias for block in blocks]
        return np.concatenate([*scores, np.empty((0, len(self.classes)), dtype=np.float32)])

    def info(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.weights.tobytes() + self.bias.tobytes() + self.classes.tobytes())
        digest.update(json.dumps([list(self.names), asdict(self.settings)]).encode())
        return {"type": "linear", "fingerprint": digest.hexdigest()[:32]}

    def save(self, directory: Path, report: dict[str, Any] | None = None) -> None:
        """Write ``weights.npz`` and ``classifier.json``, which comes last and may carry a report of the training."""
        directory.mkdir(parents=True, exist_ok=True)
        weights_path, info_path = directory / "weights.npz", directory / "classifier.json"
        info_path.unlink(missing_ok=True)  # no moment at which old names vouch for new weights
        aside = Path(f"{weights_path}.tmp-{os.getpid()}")
        with open(aside, "wb") as file:
            np.savez(file, weights=self.weights, bias=self.bias, classes=self.classes)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, weights_path)
        content = {
            "format_version": FORMAT_VERSION,
            "backend": "linear",
            "names": list(self.names),
            "features": asdict(self.settings),
            "report": report or {},
        }
        write_json_atomically(info_path, content)

    @classmethod
    def load(cls, directory: Path) -> "LinearClassifier":
        """Read what ``save`` wrote. Raises ValueError where files are missing, damaged or do not fit together."""
        path = directory / "classifier.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format_version"] != FORMAT_VERSION or content["backend"] != "linear":
                raise ValueError(f"format {content['format_version']}, backend {content['backend']!r} is not supported")
            settings = content["features"]
            settings = FeatureSettings(
                **{**settings, **{key: tuple(settings[key]) for key in ("char_ngrams", "word_ngrams")}}
            )
            with np.load(directory / "weights.npz", allow_pickle=False) as arrays:
                weights, bias, classes = arrays["weights"], arrays["bias"], arrays["classes"]
            num_names = len(content["names"])
            if weights.shape != (len(classes), 1 << settings.num_bits) or bias.shape != classes.shape:
                raise ValueError("weights.npz does not have the shapes that classifier.json implies")
            if not ((classes >= 0) & (classes < num_names)).all():
                raise ValueError("weights.npz holds a topic without a name")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a topic classifier ({error})") from error
        return cls(tuple(content["names"]), settings, classes, weights, bias)


class TransformersClassifier:
    """A sequence classifier of transformers from a local directory; its labels are those of the model's config."""

    def __init__(self, directory: Path, device: str = "cpu", batch_size: int = 32, max_tokens: int = 512) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            model = AutoModelForSequenceClassification.from_pretrained(
                directory, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{directory}: not a local sequence classifier of transformers ({error})") from error
        self._torch, self._device = torch, torch.device(device)
        self._model = model.to(self._device).eval()
        self._batch_size, self._max_tokens = batch_size, max_tokens
        self.names: Sequence[str] = tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels))
        self._directory = directory

    def info(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for path in sorted(self._directory.glob("*")):
            if path.suffix in (".safetensors", ".json", ".txt"):
                digest.update(path.name.encode() + path.read_bytes())
        return {"type": "transformers", "fingerprint": digest.hexdigest()[:32], "max_tokens": self._max_tokens}

    def predict(self, texts: list[str]) -> npt.NDArray[np.int16]:
        return self.probabilities(texts).argmax(axis=1).astype(np.int16)

    def probabilities(self, texts: list[str]) -> npt.NDArray[np.float32]:
        order = np.argsort([len(text) for text in texts], kind="stable")  # little padding inside a batch
        found = np.empty((len(texts), len(self.names)), dtype=np.float32)
        for start in range(0, len(texts), self._batch_size):
            rows = order[start : start + self._batch_size]
            inputs = self._tokenizer(
                [texts[row] for row in rows],
                truncation=True,
                max_length=self._max_tokens,
                padding=True,
                return_tensors="pt",
            ).to(self._device)
            with self._torch.inference_mode():
                found[rows] = self._model(**inputs).logits.float().softmax(dim=-1).cpu().numpy()
        return found


def load_topic_classifier(directory: str | Path, device: str = "cpu") -> TopicClassifier:
    """Load a classifier: a directory with ``classifier.json`` is linear, one with ``config.json`` is of transformers.

    Raises:
        ValueError: it is neither.
    """
    directory = Path(directory)
    if (directory / "classifier.json").is_file():
        return LinearClassifier.load(directory)
    if (directory / "config.json").is_file():
        return TransformersClassifier(directory, device)
    raise ValueError(f"{directory}: no topic classifier; expected classifier.json or a model directory of transformers")

"""How well a topic classifier does on labelled documents: accuracy, F1, confusion, calibration."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_BINS = 10


@dataclass(frozen=True)
class CalibrationBin:
    """The documents whose prediction has a probability in (low, high]."""

    low: float
    high: float
    documents: int
    confidence: float
    """Mean probability of the predicted topics."""
    accuracy: float
    """Part of the predictions that are right; of a calibrated classifier, as much as the confidence."""


@dataclass(frozen=True)
class TopicReport:
    """One evaluation."""

    names: list[str]
    confusion: list[list[int]]
    """[true topic][predicted topic] documents."""
    bins: list[CalibrationBin]
    """Those with documents."""

    @property
    def documents(self) -> int:
        """Documents that were classified."""
        return int(np.sum(self.confusion))

    @property
    def accuracy(self) -> float:
        """Part of the predictions that are right."""
        return float(np.trace(self.confusion) / self.documents)

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the topics that occur or were predicted."""
        confusion = np.array(self.confusion)
        both = confusion.sum(axis=1) + confusion.sum(axis=0)
        return float((2 * np.diag(confusion)[both > 0] / both[both > 0]).mean())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean |accuracy - confidence| over the documents' bins (Guo et al., 2017)."""
        return sum(b.documents * abs(b.accuracy - b.confidence) for b in self.bins) / self.documents

    def figures(self) -> dict[str, float]:
        """The numbers that one line holds."""
        return {
            "documents": self.documents,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "expected_calibration_error": self.calibration_error,
        }

    def to_json(self) -> dict[str, Any]:
        """Figures and tables."""
        return {**self.figures(), **asdict(self)}

    def lines(self) -> list[str]:
        """For people: the figures, the confusion without topics that never occur, the calibration."""
        return [
            f"{self.documents} documents: accuracy {self.accuracy:.4f}, macro-F1 {self.macro_f1:.4f}, "
            f"expected calibration error {self.calibration_error:.4f}",
            *self._confusion_lines(),
            "calibration (documents by the probability of the predicted topic)",
            "    probability   documents   mean probability   accuracy",
            *(
                f"    {b.low:.1f} to {b.high:.1f}   {b.documents:9d}   {b.confidence:16.4f}   {b.accuracy:8.4f}"
                for b in self.bins
            ),
        ]

    def _confusion_lines(self) -> list[str]:
        table = np.array(self.confusion)
        kept = np.flatnonzero(table.sum(axis=0) + table.sum(axis=1)).tolist()
        width = max(len(self.names[topic]) for topic in kept)
        cell = max(len(str(table.max())), 3) + 2
        header = "".join(f"{number:{cell}d}" for number in range(len(kept)))
        rows = (
            f"{number:4d} {self.names[topic]:<{width}}" + "".join(f"{table[topic, column]:{cell}d}" for column in kept)
            for number, topic in enumerate(kept)
        )
        return ["confusion (rows: true, columns: predicted)", " " * (5 + width) + header, *rows]


def report(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32], names: Sequence[str]
) -> TopicReport:
    """Evaluate predictions.

    Args:
        labels: [documents] true topics, places in `names`.
        probabilities: [documents, topics] of the topics in `names`, in their order; rows sum to 1.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    edges = np.linspace(0, 1, NUM_BINS + 1)
    # (low, high], as usual; a probability that rounding brought above 1 is in the last
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, NUM_BINS - 1)
    bins = [
        CalibrationBin(
            low=float(edges[number]),
            high=float(edges[number + 1]),
            documents=int(chosen.sum()),
            confidence=float(confidence[chosen].mean()),
            accuracy=float((predicted == labels)[chosen].mean()),
        )
        for number in range(NUM_BINS)
        if (chosen := place == number).any()
    ]
    return TopicReport(list(names), confusion.tolist(), bins)

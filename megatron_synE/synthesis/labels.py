"""Labels that a model gave to pages, asked twice: what both passes agree on, and how often they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from megatron_synE.synthesis.task import Snippet


@dataclass
class LabelReport:
    """What two passes over the same pages gave."""

    num_single: int = 0
    """Pages with a label of one pass only; they are not written where there were two."""
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(label of the first pass, label of the second) → pages."""
    num_written: int = 0

    @property
    def num_pages(self) -> int:
        """Pages that both passes labelled."""
        return sum(self.pairs.values())

    @property
    def agreement(self) -> float:
        """Share of those that got the same label twice."""
        same = sum(count for (first, second), count in self.pairs.items() if first == second)
        return same / self.num_pages if self.num_pages else 0.0

    @property
    def kappa(self) -> float:
        """Cohen's (1960): agreement beyond what labels of these frequencies would have by chance; 1 is full."""
        if not self.num_pages:
            return 0.0
        firsts, seconds = self._frequencies(0), self._frequencies(1)
        by_chance = sum(firsts[label] * seconds[label] for label in firsts) / self.num_pages**2
        return 1.0 if by_chance == 1 else (self.agreement - by_chance) / (1 - by_chance)

    def lines(self) -> list[str]:
        """For people: both figures, and each label with its own agreement."""
        if not self.num_pages:
            return [f"{self.num_written:,} pages labelled, asked once: no agreement to report"]
        found = [
            f"{self.num_written:,} of {self.num_pages:,} pages got the same label twice "
            f"({self.agreement:.1%}, kappa {self.kappa:.2f}); {self.num_single:,} got one label only"
        ]
        firsts, seconds = self._frequencies(0), self._frequencies(1)
        for label in sorted({*firsts, *seconds}):
            both, either = self.pairs[label, label], firsts[label] + seconds[label] - self.pairs[label, label]
            found.append(f"  {label}: {both:,} twice, of {either:,} once or twice")
        return found

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "pages": self.num_pages,
            "agreement": self.agreement,
            "kappa": self.kappa,
            "single": self.num_single,
            "written": self.num_written,
            "pairs": [[first, second, count] for (first, second), count in sorted(self.pairs.items())],
        }

    def _frequencies(self, place: int) -> Counter[str]:
        found: Counter[str] = Counter()
        for pair, count in self.pairs.items():
            found[pair[place]] += count
        return found


def agreed_labels(
    labelled: Iterable[tuple[Snippet, dict[str, Any]]], num_passes: int, report: LabelReport
) -> Iterator[dict[str, Any]]:
    """Lines for ``tools/train_topic_classifier.py``: the pages with the label that every pass gave them.

    Args:
        labelled: accepted rows with their snippets, in input order: the passes over a page follow each other.
        num_passes: how often each page was asked about.
        report: is filled.
    """
    page: list[tuple[Snippet, dict[str, Any]]] = []
    for snippet, row in labelled:
        if page and _page(page[0][0]) != _page(snippet):
            yield from _line(page, num_passes, report)
            page = []
        page.append((snippet, row))
    if page:
        yield from _line(page, num_passes, report)


def _page(snippet: Snippet) -> str:
    return snippet.id.rpartition("#")[0] if "pass" in snippet.source else snippet.id


def _line(
    page: list[tuple[Snippet, dict[str, Any]]], num_passes: int, report: LabelReport
) -> Iterator[dict[str, Any]]:
    labels = [row["document"]["sections"]["topic"] for _, row in page]
    if len(labels) < num_passes:
        report.num_single += 1
        return
    if num_passes > 1:
        report.pairs[labels[0], labels[1]] += 1
    if len(set(labels)) > 1:
        return
    report.num_written += 1
    snippet, row = page[0]
    source = {name: value for name, value in snippet.source.items() if name != "pass"}
    yield {
        "text": snippet.text,
        "id": _page(snippet),
        "topic": labels[0],
        "page": str(source.get("document_id", f"{source.get('corpus')}:{source.get('document')}")),
        "metadata": {"source": source, "model": row["model"], "language": snippet.language},
    }

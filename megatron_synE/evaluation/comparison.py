"""One evaluation against another on the same items: what was gained, what was lost, what nobody can tell.

Both models answered the same items, so their scores are compared item by item: the difference of the means is the mean
of the items' differences, and its interval is that mean over items drawn with replacement (Efron's percentile
bootstrap; Koehn 2004 for paired systems). That is much narrower than the two evaluations' own standard errors say. A
group's figure is the mean over the items of all its tasks (or over its tasks, where it weighs them equally), and its
items are drawn task by task.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_synE.config.evaluation_results import (
    NO_FILTER,
    ComparedMetric,
    Comparison,
    EvaluationResults,
    Metric,
    TaskResult,
)

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 1234
ROUNDING = 1e-6
MACRO = "_macro"
"""Ends the name of a group's metric that is the mean of its tasks' figures."""
RESAMPLES_AT_ONCE = 100
"""Bounds the memory of a task of many items."""

Scores = npt.NDArray[np.float64]


def compare(ours: EvaluationResults, theirs: EvaluationResults, against: str | Path) -> Comparison:
    """Every metric that both have on exactly the same items.

    Args:
        against: what the user calls `theirs`.
    """
    rows: list[ComparedMetric] = []
    not_compared: dict[str, str] = {}
    items: dict[str, dict[str, Scores]] = {}
    for name in ours.tasks:
        if not ours.tasks[name].subtasks:
            found = _item_differences(ours, theirs, name)
            if isinstance(found, str):
                not_compared[name] = found
            else:
                items[name] = found
    for name, task in ours.tasks.items():
        leaves = list(_leaves(ours, name))
        missing = [leaf for leaf in leaves if leaf not in items]
        if name not in theirs.tasks:
            not_compared[name] = "only here"
        elif missing and name not in not_compared:
            not_compared[name] = f"{', '.join(missing[:3])} cannot be compared"
        elif not missing:
            for metric in task.metrics:
                label = metric.label.replace(MACRO, "") if task.subtasks else metric.label
                parts = [items[leaf][label] for leaf in leaves if label in items[leaf]]
                row = _row(task, metric, theirs, parts) if len(parts) == len(leaves) else None
                if row is not None:
                    rows.append(row)
                else:
                    not_compared[f"{name} {metric.label}"] = "no mean over items that both have"
    not_compared.update({name: "only there" for name in theirs.tasks if name not in ours.tasks})
    return Comparison(str(against), tuple(rows), not_compared)


def as_json(comparison: Comparison) -> bytes:
    """The content of comparison.json."""
    content = {**asdict(comparison), "num_resamples": NUM_RESAMPLES, "confidence": CONFIDENCE, "seed": SEED}
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def interval(parts: Sequence[Scores], weights: Sequence[float]) -> tuple[float, float]:
    """The bootstrap interval of a weighted mean of means.

    Args:
        parts: differences per item, `[items]` of each task; items are drawn within their task.
        weights: of each task's mean; they add up to 1.
    """
    random = np.random.default_rng(SEED)
    means = np.zeros(NUM_RESAMPLES)
    for part, weight in zip(parts, weights, strict=True):
        means += weight * _resampled_means(part, random)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _resampled_means(part: Scores, random: np.random.Generator) -> Scores:
    """Means of `NUM_RESAMPLES` draws of as many items as there are, with replacement.

    Few distinct values (a right answer or a wrong one): how often each is drawn is multinomial, and costs nothing.
    """
    values, counts = np.unique(part, return_counts=True)
    if len(values) <= 16:
        return random.multinomial(len(part), counts / len(part), size=NUM_RESAMPLES) @ values / len(part)
    pieces = [
        part[random.integers(0, len(part), (min(RESAMPLES_AT_ONCE, NUM_RESAMPLES - start), len(part)))].mean(axis=1)
        for start in range(0, NUM_RESAMPLES, RESAMPLES_AT_ONCE)
    ]
    return np.concatenate(pieces)


def verdict(low: float, high: float, *, higher_is_better: bool) -> str:
    """gained or lost where the interval has no 0 in it, else unclear."""
    if low <= 0 <= high:
        return "unclear"
    return "gained" if (low > 0) == higher_is_better else "lost"


def table(comparison: Comparison) -> Iterator[str]:
    """Lines for the terminal."""
    yield f"against {comparison.against}: difference with its {CONFIDENCE:.0%} interval, on the same items"
    head = ("task", "metric", "ours", "theirs", "difference", "interval", "items", "")
    lines = [
        (
            row.task, row.metric, f"{row.ours:.4f}", f"{row.theirs:.4f}", f"{row.difference:+.4f}",
            f"{row.low:+.4f} … {row.high:+.4f}", f"{row.num_items:,}", row.verdict,
        )
        for row in comparison.metrics
    ]  # fmt: skip
    yield from aligned([head, *lines])
    for task, reason in comparison.not_compared.items():
        yield f"{task}: not compared: {reason}"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of equal width, figures to the right; the first row is the head."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    is_text = [place < 2 or place == len(widths) - 1 for place in range(len(widths))]
    for row in rows:
        cells = [
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(row, widths, is_text, strict=True)
        ]
        yield "  ".join(cells).rstrip()


def _item_differences(ours: EvaluationResults, theirs: EvaluationResults, task: str) -> dict[str, Scores] | str:
    """Per metric ours − theirs of each item, or why there is none."""
    for results in (ours, theirs):
        if task not in results.sample_files:
            return f"{results.folder} has no samples of it" if task in results.tasks else "only here"
    own, other = _scores(ours, task), _scores(theirs, task)
    own_items, other_items = ({key[1:] for key in scores} for scores in (own, other))
    if own_items != other_items:
        shared = len(own_items & other_items)
        return f"the items differ: {len(own_items):,} here, {len(other_items):,} there, {shared:,} the same"
    found: dict[str, list[float]] = {}
    for key, metrics in own.items():
        label_filter = key[0]
        for name in metrics:
            if key in other and name in other[key]:
                label = name if label_filter == NO_FILTER else f"{name},{label_filter}"
                found.setdefault(label, []).append(metrics[name] - other[key][name])
    return {label: np.asarray(values) for label, values in found.items()}


def _scores(results: EvaluationResults, task: str) -> dict[tuple[str, str, int], Mapping[str, float]]:
    """Per filter, item's hash and how many equal ones came before it: what the item scored."""
    seen: Counter[tuple[str, str]] = Counter()
    found: dict[tuple[str, str, int], Mapping[str, float]] = {}
    for sample in results.samples(task):
        key = (sample.filter, sample.doc_hash)
        found[*key, seen[key]] = sample.metrics
        seen[key] += 1
    return found


def _leaves(results: EvaluationResults, task: str) -> Iterator[str]:
    """The tasks of a group and of its groups; of a task, itself."""
    own = results.tasks.get(task)
    if own is None or not own.subtasks:
        yield task
        return
    for name in own.subtasks:
        yield from _leaves(results, name)


def _row(task: TaskResult, metric: Metric, theirs: EvaluationResults, parts: Sequence[Scores]) -> ComparedMetric | None:
    """One row; of a group, with the weights by which its figure was made. None where it is no mean over the items."""
    other = next((own for own in theirs.task(task.task).metrics if own.label == metric.label), None)
    num_items = sum(map(len, parts))
    if other is None or not num_items:
        return None
    by_items = [len(part) / num_items for part in parts]
    equal = [1 / len(parts)] * len(parts)
    difference = metric.value - other.value
    weights = min(by_items, equal, key=lambda own: abs(_mean(parts, own) - difference))
    if abs(_mean(parts, weights) - difference) > ROUNDING:
        return None
    low, high = interval(parts, weights)
    return ComparedMetric(
        task=task.task, metric=metric.label, ours=metric.value, theirs=other.value, difference=difference,
        low=low, high=high, num_items=num_items, verdict=verdict(low, high, higher_is_better=metric.higher_is_better),
    )  # fmt: skip


def _mean(parts: Sequence[Scores], weights: Sequence[float]) -> float:
    return float(sum(weight * part.mean() for part, weight in zip(parts, weights, strict=True)))

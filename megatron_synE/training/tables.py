"""What the console says of many components: a line where there are few, a table where a line would be a paragraph."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_synE.data.state import Decision
from megatron_synE.training.benchmarks import METRICS, BenchmarkScores
from megatron_synE.training.evaluate import EvaluationResult

MOST_IN_A_LINE = 4
INDENT = "  "


def evaluation_text(result: EvaluationResult, before: EvaluationResult | None) -> str:
    """Held-out losses.

    Args:
        before: the measurement before this one, which a table compares with.
    """
    losses, tokens = result.loss_by_component, result.tokens_by_component
    if len(losses) <= MOST_IN_A_LINE:
        return "held-out loss  " + "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    old = before.loss_by_component if before is not None else {}
    rows = [
        [name, f"{loss:.4f}", f"{loss - old[name]:+.4f}" if name in old else "",
         f"{result.perplexity_by_component[name]:.4g}", f"{tokens[name]:,}"]
        for name, loss in losses.items()
    ]  # fmt: skip
    rows.append(["mean over tokens", f"{result.mean_loss():.4f}", "", "", f"{sum(tokens.values()):,}"])
    return "held-out loss\n" + table(["", "loss", "change", "perplexity", "tokens"], rows)


def benchmarks_text(measured: BenchmarkScores, first: tuple[int, BenchmarkScores] | None) -> str:
    """Benchmarks.

    Args:
        first: the run's first measurement and its step, which they are compared with.
    """
    changes = measured.changes_since(first[1]) if first is not None else {}
    metrics = [name for name in METRICS if any(name in values for values in measured.scores.values())]
    rows = []
    for task, values in measured.scores.items():
        cells = []
        for name in metrics:
            cells.append(f"{values[name]:.4f}" if name in values else "")
            if first is not None:
                cells.append(f"{changes[task][name]:+.4f}" if name in changes.get(task, {}) else "")
        rows.append([task, *cells, f"{values['num_items']:,.0f}"])
    since = [f"since step {first[0]}"] if first is not None else []
    head = ["", *(cell for name in metrics for cell in (name, *since)), "items"]
    return "benchmarks\n" + table(head, rows)


def decision_text(decision: Decision) -> str:
    """Shares that moved: of topics in their source, or of sources."""
    after, title = decision.shares_after, f"{decision.moves.removesuffix('s')} shares"
    moved = {name: share for name, share in decision.shares_before.items() if share != after[name]}
    if len(moved) <= MOST_IN_A_LINE:
        return f"{title}  " + "  ".join(f"{name} {share:.3f}→{after[name]:.3f}" for name, share in moved.items())
    measured = decision.perplexity
    rows = [
        [name, f"{share:.3f}", f"{after[name]:.3f}", f"{measured[name]:.4g}" if name in measured else ""]
        for name, share in moved.items()
    ]
    return f"{title}\n" + table(["", "before", "now", "perplexity"], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned lines: the first column to the left, the others to the right. Chinese characters take two places."""
    from rich.cells import cell_len

    lines = [head, *rows]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(head))]

    def aligned(line: Sequence[str]) -> str:
        padding = [" " * (width - cell_len(cell)) for width, cell in zip(widths, line, strict=True)]
        rest = (space + cell for space, cell in zip(padding[1:], line[1:], strict=True))
        return (INDENT + INDENT.join([line[0] + padding[0], *rest])).rstrip()

    return "\n".join(aligned(line) for line in lines)

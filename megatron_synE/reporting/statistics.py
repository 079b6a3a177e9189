"""The statistics of a corpus as text and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from megatron_synE.corpus.statistics import MAX_VALUES, LengthBin, Share, Statistics
from megatron_synE.reporting.figures import import_figures

VALUES_SHOWN = 20
BAR_WIDTH = 30


def statistics_text(found: Statistics) -> Iterator[str]:
    """Lines in the manner of inspect_corpus."""
    yield "lengths      documents and tokens by length in tokens"
    longest = max((entry.documents for entry in found.lengths), default=1)
    for entry in found.lengths:
        bar = "█" * round(BAR_WIDTH * entry.documents / longest)
        yield f"  {_range(entry):>23}  {entry.documents:12,}  {entry.tokens:16,}  {bar}".rstrip()
    yield f"language     {found.language_from}"
    yield from _share_lines(found.by_language, found.num_tokens)
    for key, values in found.by_key.items():
        if values is None:
            yield f"{key:<12} more than {MAX_VALUES:,} values"
        elif values != found.by_language:
            yield f"{key:<12} {len(values):,} values"
            yield from _share_lines(values, found.num_tokens)
    copies = f"{found.duplicate_documents:,} documents ({_part(found.duplicate_documents, found.num_documents)})"
    yield f"duplicates   {copies} with {found.duplicate_tokens:,} tokens are copies of an earlier one"
    if found.documents_without_eod is None:
        yield "without EOD  not known: the corpus's sidecar names no end-of-document token"
    else:
        without = found.documents_without_eod
        yield f"without EOD  {without:,} documents ({_part(without, found.num_documents)})"


def statistics_figure(found: Statistics, title: str) -> Any:
    """Lengths, languages and each key that was counted, as a matplotlib Figure.

    Raises:
        ValueError: matplotlib is not installed.
    """
    counted = {"language": found.by_language} if found.by_language else {}
    counted |= {key: values for key, values in found.by_key.items() if values and values != found.by_language}
    figure = import_figures().Figure(figsize=(10, 3.5 + 3 * len(counted)), layout="constrained")
    panels = figure.subplots(1 + len(counted), 1, squeeze=False)[:, 0]
    figure.suptitle(f"{title}: {found.num_documents:,} documents, {found.num_tokens:,} tokens")
    names = [_range(entry) for entry in found.lengths]
    for shift, kind in ((-0.2, "documents"), (0.2, "tokens")):
        total = max(1, found.num_documents if kind == "documents" else found.num_tokens)
        heights = [getattr(entry, kind) / total for entry in found.lengths]
        panels[0].bar([place + shift for place in range(len(names))], heights, width=0.4, label=kind)
    panels[0].set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize="small")
    panels[0].set(title="Length of documents in tokens", ylabel="share")
    panels[0].legend(frameon=False)
    for axes, (key, values) in zip(panels[1:], counted.items(), strict=True):
        shown = values[:VALUES_SHOWN]
        axes.barh([share.name for share in shown], [share.tokens for share in shown])
        axes.invert_yaxis()
        cut = f"; {len(values) - len(shown):,} smaller values are not shown" if len(values) > len(shown) else ""
        source = f" ({found.language_from})" if values is found.by_language else ""
        axes.set(title=f"Tokens by {key}{source}{cut}", xlabel="tokens")
    return figure


def _share_lines(found: Sequence[Share], num_tokens: int) -> Iterator[str]:
    for share in found[:VALUES_SHOWN]:
        part = _part(share.tokens, num_tokens)
        yield f"  {share.name:>23}  {share.documents:12,}  {share.tokens:16,}  {part:>7}"
    if len(found) > VALUES_SHOWN:
        rest = found[VALUES_SHOWN:]
        yield f"  {f'{len(rest):,} more':>23}  {sum(s.documents for s in rest):12,}  {sum(s.tokens for s in rest):16,}"


def _range(entry: LengthBin) -> str:
    return f"{entry.low:,}" if entry.low == entry.high else f"{entry.low:,} to {entry.high:,}"


def _part(count: int, total: int) -> str:
    return f"{count / max(1, total):.2%}"

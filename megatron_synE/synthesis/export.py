"""From the rows of a job to JSON lines that ``tools/preprocess_data.py`` reads: ``text``, ``id``, ``metadata``.

Here are the checks that need all documents, the user's benchmarks, or a program to be run. They cost no request, so
they can be made with other options as often as one likes; the job's folder is only read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from megatron_synE.corpus.decontaminate import BenchmarkNgrams
from megatron_synE.corpus.minhash import near_duplicates, signatures
from megatron_synE.progress import ProgressBar
from megatron_synE.sandbox.run_code import CodeLimits, passes_examples
from megatron_synE.synthesis.corrupt import METHODS, chosen, corrupt
from megatron_synE.synthesis.duplicates import SeenTexts
from megatron_synE.synthesis.finished import settled_rows
from megatron_synE.synthesis.folder import JobFolder, SnippetShards
from megatron_synE.synthesis.labels import LabelReport, agreed_labels
from megatron_synE.synthesis.parse import code_blocks
from megatron_synE.synthesis.prompts import fill
from megatron_synE.synthesis.snippets import read_manifest
from megatron_synE.synthesis.task import Snippet

BATCH_ROWS = 256
KEPT, REPEATED, NEAR_DUPLICATE, CONTAMINATED, CODE_FAILS = range(5)
FATES = ("written", "repeated", "near-duplicate", "holds a piece of a benchmark", "program fails its examples")


@dataclass(frozen=True)
class ExportOptions:
    """What is left out, and what is made wrong."""

    benchmarks: BenchmarkNgrams | None = None
    """Documents that share runs of words with these are left out."""
    near_duplicate_share: float = 0.8
    """Share of equal MinHash values from which on a document is left out beside an earlier one; above 1 none is."""
    run_code: CodeLimits | None = None
    """Run programs, within these limits, and leave out those that fail their own examples; None runs nothing."""
    corrupt_share: float = 0.0
    """Share of the written documents whose answer is made wrong."""
    corrupt_methods: Sequence[str] = METHODS
    """In which ways."""
    corrupt_seed: int = 0
    """Of the choice of documents and changes."""


@dataclass
class ExportReport:
    """What became of the accepted documents of a job; the counts add up to ``num_accepted``."""

    num_accepted: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    """Of each kind: ``physics.en: written`` → documents."""
    corrupted: Counter[str] = field(default_factory=Counter)
    """Documents made wrong, by method."""
    num_not_corruptible: int = 0
    """Chosen, but no method could change them: they are written as they are."""

    @property
    def num_written(self) -> int:
        """Documents in the output."""
        return self.total(KEPT)

    def total(self, fate: int) -> int:
        """Documents of all kinds with this fate."""
        return sum(count for name, count in self.fates.items() if name.endswith(f": {FATES[fate]}"))

    def lines(self) -> list[str]:
        """For people."""
        found = [f"{self.num_written:,} of {self.num_accepted:,} accepted documents written"]
        found += [f"  {self.total(fate):,} left out: {name}" for fate, name in enumerate(FATES) if fate != KEPT]
        found += [f"  {count:,} made wrong: {method}" for method, count in sorted(self.corrupted.items())]
        if self.num_not_corruptible:
            found.append(f"  {self.num_not_corruptible:,} to be made wrong, but nothing in them could be changed")
        return found

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "accepted": self.num_accepted,
            "written": self.num_written,
            "fates": dict(sorted(self.fates.items())),
            "corrupted": dict(sorted(self.corrupted.items())),
            "not_corruptible": self.num_not_corruptible,
        }


class _Candidate(NamedTuple):
    """An accepted document."""

    row: dict[str, Any]
    snippet: Snippet

    @property
    def document(self) -> dict[str, Any]:
        return self.row["document"]

    @property
    def kind(self) -> str:
        return str(self.row["kind"])

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.snippet.id}"

    @property
    def text(self) -> str:
        return fill(self.document["text"], self.document["sections"])


def export_documents(
    folder: JobFolder, options: ExportOptions, write: Callable[[bytes], object]
) -> ExportReport:
    """Write the accepted documents of a job, a line each, in the order of its snippets.

    Args:
        write: is given each line, with its end.

    Raises:
        ValueError: the job is damaged, has no such documents, or programs cannot be run safely here.
    """
    report = ExportReport()
    fates, ids, kinds = _first_fates(folder, options)
    if not len(fates):
        raise ValueError(f"{folder.root}: no accepted document yet, so there is nothing to export")
    if options.near_duplicate_share <= 1:
        _mark_near_duplicates(folder, fates, options.near_duplicate_share)
    is_wrong = np.zeros(len(fates), bool)
    kept = np.flatnonzero(fates == KEPT)
    is_wrong[kept] = chosen([ids[place] for place in kept], options.corrupt_share, options.corrupt_seed)
    report.num_accepted = len(fates)
    report.fates.update(f"{kind}: {FATES[fate]}" for kind, fate in zip(kinds, fates.tolist(), strict=True))
    _write_kept(folder, options, fates, is_wrong, kinds, report, write)
    return report


def export_labels(folder: JobFolder, write: Callable[[bytes], object]) -> LabelReport:
    """Write the pages whose labels agree, a line each, for ``tools/train_topic_classifier.py --page-key page``.

    Raises:
        ValueError: the job is damaged or has no labels.
    """
    _shards(folder)  # says it where there is no job
    num_passes = int(read_manifest(folder).options["passes"])
    report = LabelReport()
    labelled = ((found.snippet, found.row) for found in _accepted(folder, is_label=True))
    for line in agreed_labels(labelled, num_passes, report):
        write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    if not report.num_written + report.num_pages + report.num_single:
        raise ValueError(f"{folder.root}: no label yet, so there is nothing to export")
    return report


def _accepted(folder: JobFolder, *, is_label: bool = False) -> Iterator[_Candidate]:
    """Accepted documents with their snippets, in the order of the snippets."""
    shards = _shards(folder)
    snippets = (snippet for number in range(shards.num_shards) for snippet in shards.read(number))
    for row in settled_rows(folder, shards):
        snippet = next(snippet for snippet in snippets if snippet.id == row["id"])
        if row["outcome"] == "accepted" and (row["document"]["task"] == "label") == is_label:
            yield _Candidate(row, snippet)


def _shards(folder: JobFolder) -> SnippetShards:
    try:
        return SnippetShards.open(folder)
    except FileNotFoundError:
        raise ValueError(f"{folder.root}: no job here, or one that has not been started yet; is `job` right?") from None


def _first_fates(folder: JobFolder, options: ExportOptions) -> tuple[npt.NDArray[np.int8], list[str], list[str]]:
    """[documents] what becomes of each, as far as it can be said of one after the other; their ids and kinds."""
    seen = SeenTexts()
    fates: list[int] = []
    ids: list[str] = []
    kinds: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as threads, ProgressBar("documents", None, "documents") as bar:
        candidates = _accepted(folder)
        while batch := list(islice(candidates, BATCH_ROWS)):
            is_new = seen.add([candidate.document["sections"]["problem"] for candidate in batch])
            code_passes = threads.map(lambda candidate: _code_passes(candidate, options.run_code), batch)
            for candidate, new, passes in zip(batch, is_new, code_passes, strict=True):
                ids.append(candidate.id)
                kinds.append(candidate.kind)
                if not new:
                    fates.append(REPEATED)
                elif options.benchmarks is not None and options.benchmarks.find(candidate.text) is not None:
                    fates.append(CONTAMINATED)
                else:
                    fates.append(KEPT if passes else CODE_FAILS)
            bar.advance(len(batch))
    return np.array(fates, np.int8), ids, kinds


def _code_passes(candidate: _Candidate, limits: CodeLimits | None) -> bool:
    if limits is None or candidate.document["task"] != "code":
        return True
    sections = candidate.document["sections"]
    (_, programs), (_, examples) = code_blocks(sections["solution"]), code_blocks(sections["examples"])
    return passes_examples("\n".join(programs), "\n".join(examples), limits)


def _mark_near_duplicates(folder: JobFolder, fates: npt.NDArray[np.int8], share: float) -> None:
    """Of the documents that are still kept, those that are near an earlier one."""
    kept = np.flatnonzero(fates == KEPT)
    with ProgressBar("comparing documents", len(kept), "documents") as bar:
        texts = (found.text for found, fate in zip(_accepted(folder), fates.tolist(), strict=True) if fate == KEPT)
        values = signatures(texts, len(kept), on_text=lambda: bar.advance(1))
    fates[kept[near_duplicates(values, share)[:, 1]]] = NEAR_DUPLICATE


def _write_kept(
    folder: JobFolder,
    options: ExportOptions,
    fates: npt.NDArray[np.int8],
    is_wrong: npt.NDArray[np.bool_],
    kinds: list[str],
    report: ExportReport,
    write: Callable[[bytes], object],
) -> None:
    # Another problem's answer is that of the document before it, of the same kind; the first one takes the last one's.
    before = _last_sections(folder, fates, kinds) if is_wrong.any() else {}
    decided = zip(_accepted(folder), fates.tolist(), is_wrong.tolist(), strict=True)
    with ProgressBar("writing", report.num_written, "documents") as bar:
        for candidate, fate, wrong in decided:
            if fate != KEPT:
                continue
            sections, method = candidate.document["sections"], None
            if wrong:
                other = before.get(candidate.kind)
                changed = corrupt(candidate.id, sections, other, options.corrupt_methods, options.corrupt_seed)
                if changed is None:
                    report.num_not_corruptible += 1
                else:
                    method, sections = changed
                    report.corrupted[method] += 1
            before[candidate.kind] = candidate.document["sections"]
            write(orjson.dumps(_line(candidate, sections, method), option=orjson.OPT_APPEND_NEWLINE))
            bar.advance(1)


def _last_sections(
    folder: JobFolder, fates: npt.NDArray[np.int8], kinds: list[str]
) -> dict[str, dict[str, str]]:
    """Kind → the sections of the last document of that kind that is written."""
    last = {kinds[place]: place for place in np.flatnonzero(fates == KEPT).tolist()}
    wanted = set(last.values())
    return {
        candidate.kind: candidate.document["sections"]
        for place, candidate in enumerate(_accepted(folder))
        if place in wanted
    }


def _line(candidate: _Candidate, sections: dict[str, str], method: str | None) -> dict[str, Any]:
    document = candidate.document
    metadata = {
        "kind": document["kind"],
        "language": document["language"],
        "snippet": candidate.snippet.id,
        "source": candidate.snippet.source,
        "model": candidate.row["model"],
        "prompt_version": document["prompt_version"],
        "prompt_fingerprint": document["prompt_fingerprint"],
    }
    if method is not None:
        metadata["corrupted"] = method
    return {"text": fill(document["text"], sections), "id": candidate.id, "metadata": metadata}

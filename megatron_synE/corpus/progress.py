"""How far tokenising is, and what was left out."""

import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from types import TracebackType
from typing import Any, Self

from megatron_synE.corpus.chunks import BadLine
from megatron_synE.corpus.encoding import EncodedChunk
from megatron_synE.progress import ProgressBar

NUM_BAD_LINES_SHOWN = 5


@dataclass
class Progress:
    """Running totals, and in the end the report."""

    total_bytes_on_disk: int | None = None
    """Of all inputs, compressed as they are; None where standard input is one of them."""
    bytes_on_disk: int = 0
    """Of these, how many were read."""
    num_bytes: int = 0
    """Uncompressed input read."""
    num_lines: int = 0
    num_documents: int = 0
    num_tokens: int = 0
    """Over all keys."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Bad lines by reason."""
    first_bad_lines: list[BadLine] = field(default_factory=list)

    def add(self, chunk: EncodedChunk, bytes_on_disk: int) -> None:
        """Count a chunk, after which so much of the inputs was read."""
        self.bytes_on_disk = bytes_on_disk
        self.num_bytes += chunk.num_bytes
        self.num_lines += chunk.num_lines
        self.num_documents += chunk.num_lines - len(chunk.bad_lines)
        self.num_tokens += sum(len(documents.tokens) for documents in chunk.documents.values())
        self.skipped.update(line.reason for line in chunk.bad_lines)
        self.first_bad_lines += chunk.bad_lines[: NUM_BAD_LINES_SHOWN - len(self.first_bad_lines)]

    def to_json(self) -> dict[str, Any]:
        """For ``from_json``, in another process."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**content, "first_bad_lines": [asdict(line) for line in self.first_bad_lines]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Progress":
        lines = [BadLine(**line) for line in content["first_bad_lines"]]
        return cls(**{**content, "skipped": Counter(content["skipped"]), "first_bad_lines": lines})


class TokenisingBar:
    """Shows how much of the inputs is read, how fast, and how long the rest will take.

    Args:
        interval_documents: print a line whenever so many more documents are done; None leaves it to the bar.
    """

    def __init__(self, interval_documents: int | None = None) -> None:
        self._interval_documents, self._num_printed = interval_documents, 0
        self._bar: ProgressBar | None = None
        self._first_tokens, self._began_seconds = 0, time.monotonic()

    def show(self, progress: Progress) -> None:
        """To be called at the start, and whenever there is more."""
        if self._bar is None:  # what an earlier process has done is no part of this one's speed
            total, done = progress.total_bytes_on_disk, progress.bytes_on_disk
            show = self._interval_documents is None
            self._bar = ProgressBar("tokenising", total, "bytes", done=done, show=show)
            self._first_tokens, self._began_seconds = progress.num_tokens, time.monotonic()
        seconds = max(time.monotonic() - self._began_seconds, 1e-9)
        tokens_per_second = (progress.num_tokens - self._first_tokens) / seconds
        self._bar.what = (
            f"{progress.num_documents:,} documents, {progress.num_tokens:,} tokens, {tokens_per_second:,.0f} tokens/s"
        )
        self._bar.at(progress.bytes_on_disk if progress.total_bytes_on_disk is not None else progress.num_bytes)
        if self._interval_documents and progress.num_documents // self._interval_documents > self._num_printed:
            self._num_printed = progress.num_documents // self._interval_documents
            print(self._bar.text(), file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def describe_skipped(progress: Progress) -> str:
    """One line per reason, then the first bad lines with file and line number."""
    if not progress.skipped:
        return "no line was skipped"
    lines = [f"skipped {progress.skipped.total()} of {progress.num_lines} lines:"]
    lines += [f"  {count} x {reason}" for reason, count in progress.skipped.most_common()]
    lines += [f"  {line.location}: {line.reason}" for line in progress.first_bad_lines]
    if progress.skipped.total() > len(progress.first_bad_lines):
        lines.append("  ...")
    return "\n".join(lines)

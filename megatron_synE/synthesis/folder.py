"""What lies where in a job's folder, and its snippets as they were prepared.

    snippets/manifest.json, 00000.jsonl …   what the job is about; written once, before the first request
    job.json                                model, sampling and prompts by which the results were made
    claims/00000.lock                       which process has a shard, while it has it
    journal/00000.jsonl                     of a shard in progress: one line per answer, as answers come
    results/00000.jsonl, 00000.json         of a finished shard: one row per snippet in input order, and its sums
    superseded/                             rows of former prompts or settings: paid for, hence kept
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson
import xxhash

from megatron_synE.command_line import output_file
from megatron_synE.config.json_fields import JsonFields
from megatron_synE.synthesis.task import Snippet

MANIFEST_REMEDY = "delete the folder `snippets` of a job without results to have it prepared again"


class JobFolder:
    """Names in the folder of one job."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.settings = self.root / "job.json"
        self.manifest = self.root / "snippets" / "manifest.json"
        self.superseded = self.root / "superseded"

    def snippets(self, shard: int) -> Path:
        """Its snippets."""
        return self.root / "snippets" / f"{shard:05d}.jsonl"

    def claim(self, shard: int) -> Path:
        """Says who has it."""
        return self.root / "claims" / f"{shard:05d}.lock"

    def journal(self, shard: int) -> Path:
        """Its answers, in the order in which they came."""
        return self.root / "journal" / f"{shard:05d}.jsonl"

    def rows(self, shard: int) -> Path:
        """Its rows, once it is finished."""
        return self.root / "results" / f"{shard:05d}.jsonl"

    def sums(self, shard: int) -> Path:
        """Its sums; a shard is finished when this file is there."""
        return self.root / "results" / f"{shard:05d}.json"


@dataclass(frozen=True)
class SnippetShards:
    """The prepared snippets of a job.

    Attributes:
        fingerprint: of the manifest, which names inputs and options: another one is another job.
    """

    folder: JobFolder
    num_snippets: int
    shard_rows: int
    fingerprint: str

    @classmethod
    def open(cls, folder: JobFolder) -> SnippetShards:
        """Read ``manifest.json``: ``num_snippets`` and ``shard_rows`` among others.

        Raises:
            FileNotFoundError: they are not prepared yet.
            ValueError: it is damaged.
        """
        fields = JsonFields.of_file(folder.manifest, MANIFEST_REMEDY)
        return cls(
            folder,
            num_snippets=fields.integer("num_snippets"),
            shard_rows=fields.integer("shard_rows", low=1),
            fingerprint=xxhash.xxh3_128_hexdigest(orjson.dumps(fields.content, option=orjson.OPT_SORT_KEYS)),
        )

    @property
    def num_shards(self) -> int:
        """All are full but perhaps the last."""
        return -(-self.num_snippets // self.shard_rows)

    def num_rows(self, shard: int) -> int:
        """Snippets in a shard."""
        return min(self.shard_rows, self.num_snippets - shard * self.shard_rows)

    def read(self, shard: int) -> Iterator[Snippet]:
        """Its snippets in order, one in memory at a time.

        Raises:
            ValueError: the file is missing, damaged, or has another number of rows than the manifest says.
        """
        path, count = self.folder.snippets(shard), 0
        try:
            with open(path, "rb") as file:
                for count, line in enumerate(file, start=1):
                    yield _snippet(line, path, count)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}); {MANIFEST_REMEDY}") from error
        if count != self.num_rows(shard):
            raise ValueError(f"{path}: {count} snippets, of {self.num_rows(shard)} prepared; {MANIFEST_REMEDY}")


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write: aside, then renamed when the block ends well, and both on disk. Its folder is made."""
    with output_file(path) as file:
        yield file
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _snippet(line: bytes, path: Path, number: int) -> Snippet:
    try:
        row = orjson.loads(line)
        snippet = Snippet(row["id"], row["text"], row["source"], row["discipline"], row["language"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}:{number}: no snippet ({error!r}); {MANIFEST_REMEDY}") from None
    if not isinstance(snippet.id, str) or not isinstance(snippet.text, str):
        raise ValueError(f"{path}:{number}: id and text are no strings; {MANIFEST_REMEDY}")
    return snippet

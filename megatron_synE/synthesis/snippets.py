"""Snippets: pieces of documents that end where sentences end, in files of equal numbers of rows.

``{job}/snippets/00000.jsonl`` … hold a snippet a line; ``{job}/snippets/manifest.json`` comes last, and says that they
are complete, what they were made of and how. The same inputs and options always give the same files.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from megatron_synE.config.json_fields import JsonFields
from megatron_synE.config.snippets import SnippetsConfig, SnippetSource
from megatron_synE.corpus.indexed import write_json_atomically
from megatron_synE.corpus.sentences import SentenceSplitter
from megatron_synE.corpus.tokenizers import CorpusTokenizer
from megatron_synE.synthesis.disciplines import DisciplineFilter
from megatron_synE.synthesis.duplicates import SeenTexts
from megatron_synE.synthesis.folder import MANIFEST_REMEDY, JobFolder
from megatron_synE.synthesis.prompts import Prompts
from megatron_synE.synthesis.sources import CorpusSource, FileSource, SourceDocument, open_source
from megatron_synE.synthesis.task import Snippet

FORMAT_VERSION = 1
BATCH_DOCUMENTS = 256


@dataclass(frozen=True)
class SnippetManifest:
    """What lies in a folder of snippets."""

    num_snippets: int
    shard_rows: int
    """Snippets per file; the last may have fewer."""
    counts: dict[str, int]
    """What became of the documents and their pieces, by name."""
    inputs: dict[str, Any]
    """Source → what its documents come from."""
    options: dict[str, Any]
    """The configuration that they were made with."""


class SnippetCutter:
    """Cuts texts at the ends of sentences into pieces of a range of tokens."""

    def __init__(self, tokenizer: CorpusTokenizer, min_tokens: int, max_tokens: int) -> None:
        self.tokenizer, self.min_tokens, self.max_tokens = tokenizer, min_tokens, max_tokens
        self._split = SentenceSplitter()

    def cut(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """For each text its pieces as [begin, end) in characters, in order and without overlap.

        A piece is as many whole sentences as fit; a sentence that is too long by itself is in none.
        """
        borders = [self._borders(text) for text in texts]
        sentences = [text[begin:end] for text, own in zip(texts, borders, strict=True) for begin, end in own]
        lengths = self._num_tokens(sentences)
        found, start = [], 0
        for own in borders:
            found.append(list(self._join(own, lengths[start : start + len(own)])))
            start += len(own)
        return self._fitting(texts, found)

    def _borders(self, text: str) -> list[tuple[int, int]]:
        """[begin, end) of each sentence, with the white space before it: so the tokens add up."""
        found, end = [], 0
        for sentence in self._split(text):
            place = text.find(sentence, end)
            assert place >= 0, sentence
            found.append((end, place + len(sentence)))
            end = place + len(sentence)
        return found

    def _join(self, sentences: list[tuple[int, int]], lengths: list[int]) -> Iterator[tuple[int, int]]:
        begin, tokens = 0, 0
        end: int | None = None
        for (first, last), length in zip(sentences, lengths, strict=True):
            if end is not None and tokens + length > self.max_tokens:
                if tokens >= self.min_tokens:
                    yield begin, end
                end = None
            if end is None:
                begin, tokens = first, 0
            if length <= self.max_tokens:
                end, tokens = last, tokens + length
        if end is not None and tokens >= self.min_tokens:
            yield begin, end

    def _fitting(self, texts: list[str], found: list[list[tuple[int, int]]]) -> list[list[tuple[int, int]]]:
        """The pieces without white space around them, and without those whose tokens, counted together, do not fit."""
        stripped = [
            [_stripped(text, begin, end) for begin, end in own] for text, own in zip(texts, found, strict=True)
        ]
        pieces = [text[begin:end] for text, own in zip(texts, stripped, strict=True) for begin, end in own]
        lengths = iter(self._num_tokens(pieces))
        return [[span for span in own if self.min_tokens <= next(lengths) <= self.max_tokens] for own in stripped]

    def _num_tokens(self, texts: list[str]) -> list[int]:
        if not texts:
            return []
        _, offsets = self.tokenizer.encode_batch(texts)
        return [int(length) for length in np.diff(offsets)]


def prepare_snippets(config: SnippetsConfig, prompts: Prompts, folder: JobFolder) -> SnippetManifest:
    """Make the snippets of a job, unless they are there; a second process waits for the first.

    Raises:
        ValueError: an input cannot be read, no snippet was found, or the folder holds snippets of other inputs or
            options.
    """
    if problems := config.problems():
        raise ValueError("\n".join(problems))
    folder.manifest.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.manifest.with_name("lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = {
            name: open_source(source, batch_documents=BATCH_DOCUMENTS) for name, source in config.sources.items()
        }
        inputs = {name: source.describe() for name, source in sources.items()}
        # as JSON has it, so that it can be compared with what is read back
        options = orjson.loads(orjson.dumps({**asdict(config), "prompts": _discipline_data(prompts)}))
        if folder.manifest.exists():
            manifest = read_manifest(folder)
            _check_same(folder.manifest, manifest, inputs, options)
            return manifest
        for left in folder.manifest.parent.glob("*.tmp-*"):  # by a process that was killed
            left.unlink()
        manifest = _write_shards(config, prompts, sources, folder, inputs, options)
        write_json_atomically(folder.manifest, {"format_version": FORMAT_VERSION, **asdict(manifest)})
        return manifest


def read_manifest(folder: JobFolder) -> SnippetManifest:
    """What the job's manifest says.

    Raises:
        FileNotFoundError: the snippets are not prepared yet.
        ValueError: it is damaged.
    """
    fields = JsonFields.of_file(folder.manifest, MANIFEST_REMEDY)
    fields.integer("format_version", FORMAT_VERSION, FORMAT_VERSION)
    num_snippets, shard_rows = fields.integer("num_snippets"), fields.integer("shard_rows", low=1)
    counts, inputs, options = (fields.inner(name).content for name in ("counts", "inputs", "options"))
    return SnippetManifest(num_snippets, shard_rows, counts, inputs, options)


def _write_shards(
    config: SnippetsConfig,
    prompts: Prompts,
    sources: dict[str, FileSource | CorpusSource],
    folder: JobFolder,
    inputs: dict[str, Any],
    options: dict[str, Any],
) -> SnippetManifest:
    counts: Counter[str] = Counter()
    rows: list[bytes] = []
    num_snippets = 0
    for snippet in _all_snippets(config, prompts, sources, counts):
        rows.append(orjson.dumps(asdict(snippet), option=orjson.OPT_APPEND_NEWLINE))
        num_snippets += 1
        if len(rows) == config.shard_rows:
            _write_shard(folder.snippets(num_snippets // config.shard_rows - 1), rows)
            rows = []
    if rows:
        _write_shard(folder.snippets(num_snippets // config.shard_rows), rows)
    if not num_snippets:
        told = [f"{count} {name}" for name, count in counts.items()]
        told += [source.first_bad_line for source in sources.values() if source.first_bad_line]
        raise ValueError(f"snippets: no snippet in {', '.join(sources)}: {', '.join(told)}")
    return SnippetManifest(num_snippets, config.shard_rows, dict(counts), inputs, options)


def _all_snippets(
    config: SnippetsConfig, prompts: Prompts, sources: dict[str, FileSource | CorpusSource], counts: Counter[str]
) -> Iterator[Snippet]:
    seen, num_pieces = SeenTexts(), 0
    for name, source in sources.items():
        own = config.sources[name]
        cutter = SnippetCutter(source.tokenizer, config.min_tokens, config.max_tokens)
        disciplines = DisciplineFilter(own, prompts)
        for documents in source.batches():
            counts["documents"] += len(documents)
            pieces = list(_chosen_pieces(config, cutter, documents, counts))
            pieces = [piece for piece, is_new in zip(pieces, seen.add([p.text for p in pieces]), strict=True) if is_new]
            topics = [piece.document.topic for piece in pieces]
            kinds = disciplines([piece.text for piece in pieces], topics)
            counts["pieces"] += len(pieces)
            for piece, kind in zip(pieces, kinds, strict=True):
                if kind is None:
                    counts["pieces without a discipline"] += 1
                    continue
                if num_pieces == config.max_snippets:
                    return
                num_pieces += 1
                counts[f"snippets {kind} {own.language}"] += config.passes
                yield from _snippets(name, own, piece, kind, config.passes)
        counts["bad lines"] += source.num_bad_lines


@dataclass(frozen=True)
class _Piece:
    document: SourceDocument
    begin: int
    end: int

    @property
    def text(self) -> str:
        return self.document.text[self.begin : self.end]


def _chosen_pieces(
    config: SnippetsConfig, cutter: SnippetCutter, documents: list[SourceDocument], counts: Counter[str]
) -> Iterator[_Piece]:
    """The pieces that are kept of each document: as many as the configuration says, chosen by a hash."""

    def place(document: SourceDocument, span: tuple[int, int]) -> bytes:
        key = f"{config.seed} {document.corpus} {document.document} {span[0]}"
        return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

    for document, spans in zip(documents, cutter.cut([document.text for document in documents]), strict=True):
        if not spans:
            counts["documents without a piece of this length"] += 1
        chosen = sorted(spans, key=lambda span, own=document: place(own, span))[: config.max_per_document]  # type: ignore[misc]
        for begin, end in sorted(chosen):
            yield _Piece(document, begin, end)


def _snippets(name: str, source: SnippetSource, piece: _Piece, kind: str, passes: int) -> Iterator[Snippet]:
    document = piece.document
    place: dict[str, Any] = {
        "corpus": document.corpus, "document": document.document, "begin": piece.begin, "end": piece.end,
    }  # fmt: skip
    if document.document_id is not None:
        place["document_id"] = document.document_id
    where = f":{document.corpus}" if source.inputs else ""
    snippet_id = f"{name}{where}:{document.document}:{piece.begin}-{piece.end}"
    for number in range(1, passes + 1):
        if passes == 1:
            yield Snippet(snippet_id, piece.text, place, kind, source.language)
        else:
            yield Snippet(f"{snippet_id}#{number}", piece.text, {**place, "pass": number}, kind, source.language)


def _write_shard(path: Path, rows: list[bytes]) -> None:
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            file.writelines(rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _discipline_data(prompts: Prompts) -> dict[str, Any]:
    """What of the prompt files decides on snippets; their wording does not."""
    return {
        f"{kind}.{language}": [sorted(prompt.fields.topics), sorted(prompt.fields.keywords)]
        for (kind, language), prompt in sorted(prompts.items())
    }


def _check_same(path: Path, manifest: SnippetManifest, inputs: dict[str, Any], options: dict[str, Any]) -> None:
    for name, recorded, wanted in (("inputs", manifest.inputs, inputs), ("options", manifest.options, options)):
        changed = [key for key in {**recorded, **wanted} if recorded.get(key) != wanted.get(key)]
        if changed:
            raise ValueError(
                f"{path}: the snippets were made with other {name} ({', '.join(changed)}); start a job in "
                "another folder, or go back to what they were made with"
            )


def _stripped(text: str, begin: int, end: int) -> tuple[int, int]:
    piece = text[begin:end]
    return end - len(piece.lstrip()), begin + len(piece.rstrip())

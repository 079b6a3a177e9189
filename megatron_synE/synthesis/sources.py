"""Documents to cut snippets from, with the place where each is found again: files, or a tokenised corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_synE.config.snippets import SnippetSource
from megatron_synE.corpus.annotate import corpus_tokenizer
from megatron_synE.corpus.annotations import NO_LABEL, Annotations
from megatron_synE.corpus.blocks import iter_blocks, without_eod
from megatron_synE.corpus.document_table import DocumentTable, document_table_path
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.corpus.readers import expand_inputs, iter_chunks
from megatron_synE.corpus.tokenizers import CorpusTokenizer, build_tokenizer
from megatron_synE.corpus.watched_file import sampled_hash
from megatron_synE.progress import ProgressBar


@dataclass(frozen=True)
class SourceDocument:
    """One text."""

    text: str
    corpus: str
    """The file, as it was named, or the corpus's prefix."""
    document: int
    """In a file its line, counted from 1 (Parquet: the row); in a tokenised corpus its number, counted from 0."""
    document_id: str | None
    """Its own id, where it has one."""
    topic: str | None
    """Its annotated topic, in a tokenised corpus."""


class FileSource:
    """Documents of JSON lines or Parquet, in input order.

    Attributes:
        num_bad_lines: how many lines gave no document, so far.
        first_bad_line: the first of them.
    """

    def __init__(self, source: SnippetSource, *, batch_documents: int) -> None:
        assert source.tokenizer is not None
        self.source, self._batch_documents = source, batch_documents
        self.files = expand_inputs(source.inputs)
        self.tokenizer = build_tokenizer("auto", source.tokenizer)
        self.num_bad_lines, self.first_bad_line = 0, ""

    def describe(self) -> list[dict[str, Any]]:
        """What the documents come from, known by size and blocks spread over each file: a copy is the same input."""
        found = []
        for path in self.files:
            with open(path, "rb") as file:
                found.append({"file": str(path), "num_bytes": path.stat().st_size, "sample": sampled_hash(file)})
        return found

    def batches(self) -> Iterator[list[SourceDocument]]:
        """All documents, some at a time."""
        key, id_key = self.source.text_key, self.source.id_key
        kept = [id_key] if id_key is not None else []
        done_bytes = 0
        with ProgressBar("snippets", sum(path.stat().st_size for path in self.files), "bytes") as bar:
            for path in self.files:
                for chunk in iter_chunks(path, [key, *kept]):
                    batch = chunk.parse([key], kept=kept)
                    self.num_bad_lines += len(batch.bad_lines)
                    if batch.bad_lines and not self.first_bad_line:
                        self.first_bad_line = f"{batch.bad_lines[0].location}: {batch.bad_lines[0].reason}"
                    ids = batch.kept[id_key].to_pylist() if id_key is not None else [None] * len(batch.lines)
                    rows = zip(batch.texts[key], batch.lines.tolist(), ids, strict=True)
                    documents = [SourceDocument(text, str(path), line, own_id, None) for text, line, own_id in rows]
                    for start in range(0, len(documents), self._batch_documents):
                        yield documents[start : start + self._batch_documents]
                    bar.at(done_bytes + chunk.end.bytes_on_disk)
                done_bytes += path.stat().st_size


class CorpusSource:
    """Documents of a tokenised corpus, decoded, with their annotated topics and own ids."""

    def __init__(self, source: SnippetSource, *, batch_documents: int) -> None:
        assert source.prefix is not None
        self.corpus, self._batch_documents = IndexedCorpus(source.prefix), batch_documents
        self.tokenizer: CorpusTokenizer = corpus_tokenizer(source.prefix, source.tokenizer)
        self.num_bad_lines, self.first_bad_line = 0, ""
        self._topics, self._topic_names = None, list[str]()
        if source.discipline is None and source.classifier is None:
            annotations = Annotations(source.prefix, self.corpus)
            self._topics, self._topic_names = annotations.get("topic"), annotations.topic_names
        self._table: DocumentTable | None = None
        if document_table_path(source.prefix).exists():
            self._table = DocumentTable(source.prefix, self.corpus)

    def describe(self) -> list[dict[str, Any]]:
        """What the documents come from."""
        return [{"prefix": self.corpus.prefix, "fingerprint": self.corpus.fingerprint}]

    def batches(self) -> Iterator[list[SourceDocument]]:
        """All documents, some at a time."""
        with ProgressBar("snippets", self.corpus.num_documents, "documents") as bar:
            for block in iter_blocks(self.corpus):
                documents = list(block.documents())
                for start in range(0, len(documents), self._batch_documents):
                    part = documents[start : start + self._batch_documents]
                    first = block.first + start
                    texts = [self.tokenizer.decode(without_eod(tokens, self.tokenizer.eod_id)) for tokens in part]
                    numbers = range(first, first + len(part))
                    rows = zip(numbers, texts, self._ids(numbers), strict=True)
                    yield [
                        SourceDocument(text, self.corpus.prefix, number, own_id, self._topic(number))
                        for number, text, own_id in rows
                    ]
                    bar.at(first + len(part))

    def _ids(self, numbers: range) -> list[str | None]:
        if self._table is None:
            return [None] * len(numbers)
        return [record.id for record in self._table.rows(numbers)]

    def _topic(self, number: int) -> str | None:
        if self._topics is None or self._topics[number] == NO_LABEL:
            return None
        return self._topic_names[int(self._topics[number])]


def open_source(source: SnippetSource, *, batch_documents: int) -> FileSource | CorpusSource:
    """The documents that a source names.

    Raises:
        ValueError: files, corpus, tokenizer or annotation are missing or damaged.
    """
    kind = CorpusSource if source.prefix is not None else FileSource
    return kind(source, batch_documents=batch_documents)

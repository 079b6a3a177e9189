"""A corpus back to JSON lines: its text decoded, and what is known of each document beside it.

Tokenised again with the same tokenizer and the same options, the lines give the same corpus. Whether they do is looked
at for each document: text that another program tokenised, special tokens in the middle of a document, or a tokenizer
that normalises may not come back.
"""

import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from megatron_synE.corpus.annotations import NO_LABEL, NO_SCORE, Annotations
from megatron_synE.corpus.blocks import DocumentBlock, iter_blocks, without_eod
from megatron_synE.corpus.document_table import DocumentTable, document_table_path
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.corpus.tokenizers import CorpusTokenizer
from megatron_synE.corpus.verify import check_index

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass
class Exported:
    """What was written."""

    num_documents: int = 0
    num_changed: int = 0
    """Documents whose text, tokenised again, gives other tokens."""
    first_changed: int | None = None


class DocumentExporter:
    """Turns documents of one corpus into JSON objects.

    Each has ``text`` (or the key that the corpus was made of) and, from the document table where there is one, ``id``,
    the kept keys, ``file`` and ``line``.

    Args:
        tokenizer: the corpus's.
        annotations: whether to add the ``topic`` and ``perplexity`` of the corpus, where it has them.

    Raises:
        ValueError: the corpus's index is damaged, or the document table or an annotation is not the corpus's.
    """

    def __init__(self, corpus: IndexedCorpus, tokenizer: CorpusTokenizer, *, annotations: bool = False) -> None:
        check_index(corpus)
        self.corpus, self.tokenizer = corpus, tokenizer
        self.table: DocumentTable | None = None
        if document_table_path(corpus.prefix).exists():
            self.table = DocumentTable(corpus.prefix, corpus)
        self.text_key = str((corpus.metadata.get("source") or {}).get("json_key") or "text")
        found = Annotations(corpus.prefix, corpus)
        has_topics, has_scores = (annotations and found.has(name) for name in ("topic", "perplexity"))
        self.topic_names = found.topic_names if has_topics else []
        self.topics = found.get("topic") if has_topics else None
        self.perplexity = found.get("perplexity") if has_scores else None

    def write(
        self,
        file: IO[bytes],
        documents: range | None = None,
        on_progress: Callable[[int], None] = lambda num_documents: None,
    ) -> Exported:
        """Write one line for each document of a range (None: all of them), in bounded memory."""
        exported = Exported()
        documents = range(self.corpus.num_documents) if documents is None else documents
        for block in iter_blocks(self.corpus, documents.start, documents.stop):
            tokens = [without_eod(document, self.tokenizer.eod_id) for document in block.documents()]
            texts = [self.tokenizer.decode(document) for document in tokens]
            for known, text in zip(self._known(block), texts, strict=True):
                file.write(orjson.dumps({self.text_key: text, **known}, option=orjson.OPT_APPEND_NEWLINE))
            changed = [block.first + number for number in self._changed(tokens, texts)]
            exported.num_documents += block.num_documents
            exported.num_changed += len(changed)
            if changed and exported.first_changed is None:
                exported.first_changed = changed[0]
            on_progress(block.num_documents)
        return exported

    def _known(self, block: DocumentBlock) -> Iterator[dict[str, Any]]:
        """What is known of each document beside its text. The text's own key is the text's."""
        numbers = range(block.first, block.first + block.num_documents)
        records = self.table.rows(numbers) if self.table is not None else [None] * len(numbers)
        for number, record in zip(numbers, records, strict=True):
            known: dict[str, Any] = {}
            if record is not None:
                known = {"id": record.id, **record.keys, "file": record.file, "line": record.line}
            if self.topics is not None and self.topics[number] != NO_LABEL:
                known["topic"] = self.topic_names[self.topics[number]]
            if self.perplexity is not None and self.perplexity[number] != NO_SCORE:
                known["perplexity"] = float(self.perplexity[number])
            yield {name: value for name, value in known.items() if value is not None and name != self.text_key}

    def _changed(self, tokens: list[npt.NDArray[Any]], texts: list[str]) -> Iterator[int]:
        """Places of the documents whose text does not encode to their tokens."""
        again, offsets = self.tokenizer.encode_batch(texts)
        for number, document in enumerate(tokens):
            if not np.array_equal(document, again[offsets[number] : offsets[number + 1]]):
                yield number


def check_suffix(name: str | Path) -> None:
    """ValueError for a name that does not say how to write JSON lines."""
    if not str(name).endswith(SUFFIXES):
        raise ValueError(f"{name}: the name must end in {', '.join(SUFFIXES)}")


@contextmanager
def compressed(file: BinaryIO, name: str | Path) -> Iterator[IO[bytes]]:
    """``file`` with gzip or zstandard before it, as ``name`` says."""
    if str(name).endswith(".gz"):
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as writer:
            yield writer  # type: ignore[misc]  # as IO[bytes] in all that is used
    elif str(name).endswith(".zst"):
        try:
            import zstandard
        except ImportError as error:
            raise ValueError(f"{name}: writing .zst needs the package zstandard; install it") from error
        with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as writer:
            yield writer
    else:
        yield file

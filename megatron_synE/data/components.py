"""Components: the documents of a source (or of one of its topics) in curriculum order, packed end to end.

A component is an endless run of tokens: epoch 0 of its documents, then epoch 1 in its own order, and so on. With T
tokens an epoch and L tokens a sample, sample j is tokens [j·L, (j+1)·L + 1): the last one is only a label and is the
first of the next sample, so that every token of an epoch is read once. No array has an entry per sample: an epoch is
the order of its documents and their cumulative lengths, and a sample is a binary search in them.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_synE.config.data import Order, SourceConfig
from megatron_synE.corpus.annotations import Annotations, values_checksum
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.data import native
from megatron_synE.data.cache import Arrays, IndexCache, digest
from megatron_synE.data.curriculum import arrange, has_score, sort_keys
from megatron_synE.data.topics import Topics, read_topics
from megatron_synE.progress import ProgressBar

EPOCHS_KEPT = 64
HASH_PIECE_TOKENS = 1 << 21

Chain = tuple[tuple[Order, int], ...]
"""Orders of a component: each with the component's token from which on it holds. The first holds from token 0."""


@dataclass(frozen=True)
class DocumentRun:
    """Documents of one corpus packed end to end."""

    corpus: IndexedCorpus
    order: np.ndarray
    """int32[P] document at each place."""
    ends: np.ndarray
    """int64[P+1] place i is tokens [ends[i], ends[i+1])."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all places."""
        return int(self.ends[-1])

    def read(self, offset: int, out: np.ndarray) -> np.ndarray:
        """Copy len(out) tokens from `offset` on into out int64[N]; returns where documents start in it, int32[·].

        Raises: ValueError for an .idx that points outside of its .bin. After the last read, `corpus.check_unchanged()`
            tells whether it was all read from what was opened.
        """
        corpus = self.corpus
        try:
            return native.gather(
                corpus.tokens, corpus.sequence_offsets, corpus.document_boundaries, self.order, self.ends, offset, out
            )
        except IndexError as error:
            corpus.check_unchanged()
            raise ValueError(
                f"{corpus.idx_path}: damaged, or its index in data.cache_dir was cut ({error}); run "
                "tools/verify_corpus.py, and start again"
            ) from error

    def document_at(self, token: int) -> int:
        """The number, in the corpus, of the document that holds a token."""
        return int(self.order[self.places(token, token + 1).start])

    def places(self, first_token: int, end_token: int) -> slice:
        """The places that hold tokens [first_token, end_token)."""
        if end_token <= first_token:
            return slice(0, 0)
        first = int(np.searchsorted(self.ends, first_token, side="right")) - 1
        return slice(first, int(np.searchsorted(self.ends, end_token, side="left")))


class Source:
    """A corpus with its annotations, and the split of its documents into training and held-out."""

    def __init__(self, name: str, config: SourceConfig, heldout_fraction: float, cache: IndexCache) -> None:
        self.name, self.config, self.cache = name, config, cache
        self.heldout_fraction = heldout_fraction
        self.corpus = IndexedCorpus(config.prefix, updates_sidecar=cache.keep)
        if self.corpus.dtype not in (np.uint16, np.int32):
            raise ValueError(f"{self.corpus.idx_path}: tokens are {self.corpus.dtype}; write them as uint16 or int32")
        for path, mapped in self.corpus.mapped_files.items():
            native.watch(mapped, path)
        self.foreign_heldout = np.empty(0, np.uint64)
        self._annotations_read: dict[str, tuple[np.ndarray, str]] = {}

    @functools.cached_property
    def annotations(self) -> Annotations:
        """Annotations beside the corpus; reading one raises ValueError when it is missing or of other content."""
        return Annotations(self.config.prefix, self.corpus)

    @functools.cached_property
    def _topics(self) -> Topics:
        labels, names = self._read_annotation("topic"), self.annotations.topic_names
        return read_topics(labels, names, self._is_readable(), self.config)

    @property
    def topic_names(self) -> tuple[str, ...]:
        """Labels of the topic annotation, and the topic that rare ones are merged into."""
        return self._topics.names

    @property
    def topics(self) -> np.ndarray:
        """int16[D] topic of each document, unlabelled and rare ones put where the config says."""
        return self._topics.numbers

    @property
    def merged_topics(self) -> Mapping[str, int]:
        """Topics that are read as part of `config.others` → their documents."""
        return self._topics.merged

    def _number_of(self, topic: str) -> int:
        if topic not in self.topic_names:
            raise ValueError(f"{self.config.prefix}: no topic {topic!r}; topics are {', '.join(self.topic_names)}")
        return self.topic_names.index(topic)

    @functools.cached_property
    def perplexity(self) -> np.ndarray:
        """float32[D] perplexity of each document."""
        return self._read_annotation("perplexity")

    @functools.cached_property
    def topics_digest(self) -> str:
        """Identifies which documents are read as which topic."""
        num_names = max(len(self.annotations.topic_names), int(self.topics.max(initial=0)) + 1)
        return digest([list(self.topic_names[:num_names]), digest_array(self.topics)])

    @functools.cached_property
    def perplexity_digest(self) -> str:
        """Identifies the content of the perplexity annotation."""
        return digest_array(self.perplexity)

    @functools.cached_property
    def perplexity_order_digest(self) -> str:
        """Identifies an order by perplexity: the scores, and where documents without one go."""
        missing = not has_score(self.perplexity).all()
        unscored = ("first" if self.config.unscored == "first" else "last") if missing else None
        return digest([self.perplexity_digest, unscored])

    def hashes(self) -> np.ndarray:
        """uint64[D] content hash of each document."""
        key = {"kind": "hashes", "version": 1, "corpus": self.corpus.fingerprint}
        return self.cache.get(key, self._hash_documents)["hashes"]

    def is_heldout(self) -> np.ndarray:
        """bool[D]: whose hash is below the fraction of 2^64."""
        return self.hashes() < np.uint64(threshold_of(self.heldout_fraction))

    def _is_readable(self) -> np.ndarray:
        """bool[D]: whether a document is trained on or held out, as far as this source alone says it."""
        chosen = np.asarray(self.corpus.document_lengths() > 0)
        return chosen & has_score(self.perplexity) if self.config.unscored == "drop" else chosen

    def documents(self, topic: str | None, heldout: bool | None) -> np.ndarray:
        """int32[N] numbers of the documents that are not empty, of one topic, in one part of the split, or both."""
        chosen = self._is_readable()
        if heldout is not None:
            chosen &= self.is_heldout() == heldout
        if heldout is False and len(self.foreign_heldout):
            chosen &= ~np.isin(self.hashes(), self.foreign_heldout)
        if topic is not None:
            chosen &= self.topics == self._number_of(topic)
        return np.flatnonzero(chosen).astype(np.int32)

    def identity(self, topic: str | None) -> dict[str, Any]:
        """What determines the documents of a component, as JSON."""
        return {
            "corpus": self.corpus.fingerprint,
            "heldout_fraction": self.heldout_fraction,
            "topic": None if topic is None else [topic, self.topics_digest],
            "dropped": self.perplexity_digest if self.config.unscored == "drop" else None,
            "foreign_heldout": digest_array(self.foreign_heldout) if len(self.foreign_heldout) else None,
        }

    def _hash_documents(self) -> Arrays:
        """Read the .bin once, in pieces: mapped pages would count as this process's memory."""
        starts = np.concatenate([[0], np.cumsum(self.corpus.document_lengths())])
        hashes = np.empty(self.corpus.num_documents, np.uint64)
        first = 0
        with (
            open(self.corpus.bin_path, "rb") as file,
            ProgressBar(f"{self.config.prefix}: index", int(starts[-1]), "tokens") as bar,
        ):
            while first < len(hashes):
                end = int(np.searchsorted(starts, starts[first] + HASH_PIECE_TOKENS, side="right")) - 1
                end = max(first + 1, end)
                tokens = np.fromfile(file, self.corpus.dtype, starts[end] - starts[first])
                if len(tokens) < starts[end] - starts[first]:
                    break  # it was truncated
                hashes[first:end] = native.hash_documents(tokens, starts[first : end + 1] - starts[first])
                first = end
                bar.at(int(starts[first]))
        self.corpus.check_unchanged()
        return {"hashes": hashes}

    def _read_annotation(self, name: str) -> np.ndarray:
        values = self.annotations.get(name)
        native.watch(values, Path(f"{self.config.prefix}.{name}.npy"))
        self._annotations_read[name] = values, values_checksum(values)
        return np.asarray(values)

    def check_annotations(self) -> None:
        """ValueError when an annotation that was read is not what it was."""
        for name, (values, checksum) in self._annotations_read.items():
            if values_checksum(values) != checksum:
                raise ValueError(
                    f"{self.config.prefix}.{name}.npy: changed while it was being read; restore what was opened, or "
                    "name a copy of the corpus under another prefix, with the new annotation, as a further source"
                )


def threshold_of(fraction: float) -> int:
    """Content hashes below this are held out. A float times 2^64 is exact."""
    return int(fraction * 2**64)


def exclude_foreign_heldout(sources: Sequence[Source]) -> None:
    """Keep what one source holds out from training in another one that holds out less.

    With equal fractions the rule by hash does that alone.
    """
    for source in sources:
        larger = [other for other in sources if other.heldout_fraction > source.heldout_fraction]
        if larger:
            heldout = np.concatenate([other.hashes()[other.is_heldout()] for other in larger])
            own = source.hashes()[~source.is_heldout()]
            source.foreign_heldout = np.intersect1d(heldout, own)


class Component:
    """One source, or one topic of it, read in one order after another.

    Args: order: the order from its first sample on; `chain` may be replaced once the plan is known.
    """

    def __init__(self, source: Source, topic: str | None, order: Order, seq_length: int, seed: int) -> None:
        self.source, self.topic = source, topic
        self.name = source.name if topic is None else f"{source.name}/{topic}"
        self.seq_length, self.seed = seq_length, seed
        self.identity = digest(source.identity(topic))
        self.chain: Chain = ((order, 0),)
        self._epochs: OrderedDict[tuple[int, Chain], DocumentRun] = OrderedDict()
        self._epochs_lock = threading.Lock()
        first = self.epoch(0)
        self.num_tokens, self.num_documents = first.num_tokens, len(first.order)

    def capacity(self) -> int | None:
        """Samples that `max_epochs` allows; None without a cap."""
        cap = self.source.config.max_epochs
        return None if cap is None else max(0, (int(cap * self.num_tokens) - 1) // self.seq_length)

    def read_by_perplexity(self, num_samples: int) -> bool:
        """Whether the first `num_samples` samples hold documents that were ordered by perplexity."""
        read = num_samples * self.seq_length
        return any(order.startswith("perplexity") and token < read for order, token in self.chain)

    def epoch(self, number: int, at_token: int | None = None) -> DocumentRun:
        """Epoch `number`, under the orders that hold when token `at_token` is read (None: all of the chain)."""
        chain = self.chain if len(self.chain) == 1 else self._chain_of_epoch(number, at_token)
        with self._epochs_lock:
            found = self._epochs.pop((number, chain), None) or self._open_epoch(number, chain)
            self._epochs[number, chain] = found
            if len(self._epochs) > EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        return found

    def read(self, sample: int, out: np.ndarray) -> list[int]:
        """Copy the tokens of a sample into out int64[L+1]; returns where documents start in it, ascending."""
        at, filled, starts = sample * self.seq_length, 0, []
        while filled < len(out):
            number, offset = divmod(at + filled, self.num_tokens)
            length = min(len(out) - filled, self.num_tokens - offset)
            run = self.epoch(number, at)
            found = run.read(offset, out[filled : filled + length])
            starts += (found + filled).tolist()
            filled += length
        return starts

    def document_at(self, sample: int, place: int) -> int:
        """The number, in the corpus, of the document that holds token `place` of a sample."""
        at = sample * self.seq_length
        number, offset = divmod(at + place, self.num_tokens)
        return self.epoch(number, at).document_at(offset)

    def heldout(self) -> DocumentRun:
        """The held-out documents by ascending content hash: a corpus that grows only inserts into this order."""
        key = {"kind": "heldout", "version": 1, **self.source.identity(self.topic)}

        def build() -> Arrays:
            documents = self.source.documents(self.topic, heldout=True)
            order = arrange(documents, self.source.hashes()[documents])
            self.source.check_annotations()
            return packed(self.source, order)

        return DocumentRun(self.source.corpus, **self.source.cache.get(key, build))

    def _chain_of_epoch(self, number: int, at_token: int | None) -> Chain:
        """The order at the epoch's start, and the changes inside it with their token counted from there.

        A change at the epoch's very first token counts as inside: that token was read already, as a label.
        """
        start, (base, _) = number * self.num_tokens, self.chain[0]
        changes: list[tuple[Order, int]] = []
        for order, token in self.chain[1:]:
            if at_token is not None and token > at_token:
                break
            if token < start:
                base = order
            elif token < start + self.num_tokens:
                changes.append((order, token - start))
        return ((base, 0), *changes)

    def _open_epoch(self, number: int, chain: Chain) -> DocumentRun:
        orders = {order for order, _ in chain}
        key: dict[str, Any] = {"kind": "order", "version": 1, **self.source.identity(self.topic)}
        key["chain"] = [list(change) for change in chain]
        if "shuffled" in orders:
            key["shuffle"] = [self.seed, self.name, number]
        if orders & {"perplexity_ascending", "perplexity_descending"}:
            key["perplexity"] = [self.source.perplexity_digest, self.source.config.unscored]

        def build() -> Arrays:
            order = self.source.documents(self.topic, heldout=False)
            order = arrange(order, self._keys(chain[0][0], order, number))
            for kind, token in chain[1:]:
                # What starts up to the change stays: at least its first token was read, as a label.
                kept = int(np.searchsorted(cumulative(self.source, order)[:-1], token, side="right"))
                rest = np.sort(order[kept:])
                order = np.concatenate([order[:kept], arrange(rest, self._keys(kind, rest, number))])
            self.source.check_annotations()
            return packed(self.source, order)

        return DocumentRun(self.source.corpus, **self.source.cache.get(key, build))

    def _keys(self, order: Order, documents: np.ndarray, epoch: int) -> np.ndarray:
        perplexity = self.source.perplexity if order.startswith("perplexity") else None
        return sort_keys(order, documents, perplexity, self.source.config.unscored, self.seed, self.name, epoch)


def cumulative(source: Source, order: np.ndarray) -> np.ndarray:
    """int64[P+1] cumulative lengths in tokens of documents int32[P]."""
    ends = np.zeros(len(order) + 1, np.int64)
    np.cumsum(source.corpus.document_lengths()[order], out=ends[1:])
    return ends


def packed(source: Source, order: np.ndarray) -> Arrays:
    """The arrays of a DocumentRun."""
    return {"order": order.astype(np.int32), "ends": cumulative(source, order)}


def digest_array(array: np.ndarray) -> str:
    """Identifies the content of an array."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()

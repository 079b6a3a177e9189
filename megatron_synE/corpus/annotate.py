"""Annotating a corpus: the loop over its parts, shared by topic labels and perplexity scores.

Several processes (ranks of torchrun) share one job without talking to each other: each takes every ``world_size``-th
part that is still missing, and whoever finds all parts there puts the annotation in place.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from megatron_synE.corpus.annotations import DTYPES, AnnotationWriter
from megatron_synE.corpus.blocks import without_eod
from megatron_synE.corpus.indexed import IndexedCorpus
from megatron_synE.corpus.tokenizers import CorpusTokenizer, build_tokenizer
from megatron_synE.corpus.topics import TopicClassifier
from megatron_synE.progress import ProgressBar

logger = logging.getLogger(__name__)

TEXTS_BETWEEN_SHARES = 256

OnShare = Callable[[float], None]
"""Is told which share of the documents, 0 to 1, is done."""


class Scorer(Protocol):
    """Gives documents their perplexity. The trainer's own model and transformers' each have one."""

    def info(self) -> dict[str, Any]:
        """What determines the scores, JSON-able; parts of a job with another info are not taken over."""
        ...

    def score(self, documents: list[npt.NDArray[Any]], on_share: OnShare) -> npt.NDArray[np.float32]:
        """Return [documents] perplexities, ``NO_SCORE`` for a document of fewer than two tokens.

        It calls ``on_share`` now and then.
        """
        ...


def annotate(
    prefix: str | Path,
    name: str,
    info: dict[str, Any],
    compute: Callable[[list[npt.NDArray[Any]], OnShare], npt.NDArray[Any]],
    *,
    part_size: int,
    rank: int = 0,
    world_size: int = 1,
    overwrite: bool = False,
    extra: dict[str, Any] | None = None,
) -> bool:
    """Annotate the corpus under ``prefix``, going on where an earlier job stopped. Rank 0 shows how far all ranks are.

    Args:
        prefix: of the corpus.
        name: ``topic`` or ``perplexity``.
        info: what determines the values.
        compute: documents (views of the ``.bin``) to values [documents].
        part_size: documents per part; a killed job loses at most one part per process.
        rank: which share of the parts to take, below ``world_size``.
        world_size: number of processes that share the job.
        overwrite: whether to replace the annotation of another annotator, which is then said.
        extra: further entries of the annotation's JSON.

    Returns:
        whether the annotation is complete; False where other ranks still work on their parts.

    Raises:
        ValueError: another annotator's annotation is in place and ``overwrite`` is not set, or a value cannot be.
    """
    writer = AnnotationWriter(prefix, name, DTYPES[name], info, part_size, overwrite)
    if writer.replaces and rank == 0:
        logger.warning("%s: replacing the annotation %s by %s", prefix, name, writer.replaces)
    own_parts = [part for part in writer.pending_parts() if part % world_size == rank]
    if not own_parts:
        return writer.finalize(extra)
    progress = writer.shared_progress()
    total, done = writer.corpus.num_documents, progress.documents_done()
    with ProgressBar(f"{prefix}: {name}", total, "documents", done=done, show=rank == 0) as bar:
        for part in own_parts:

            def on_share(share: float, part: int = part) -> None:
                progress.note(part, share)
                if rank == 0:
                    bar.at(progress.documents_done())

            documents = [writer.corpus.document(index) for index in writer.part_range(part)]
            writer.write_part(part, compute(documents, on_share))
    return writer.finalize(extra)


def label_topics(
    prefix: str | Path, classifier: TopicClassifier, tokenizer: CorpusTokenizer, *, part_size: int, **options: Any
) -> bool:
    """Write the annotation ``topic``: documents are detokenised and classified. Options: those of ``annotate``."""

    def classify(documents: list[npt.NDArray[Any]], on_share: OnShare) -> npt.NDArray[Any]:
        numbers = []
        for start in range(0, len(documents), TEXTS_BETWEEN_SHARES):
            block = documents[start : start + TEXTS_BETWEEN_SHARES]
            texts = [tokenizer.decode(without_eod(tokens, tokenizer.eod_id)) for tokens in block]
            numbers.append(classifier.predict(texts))
            on_share((start + len(block)) / len(documents))
        return np.concatenate(numbers)

    extra = {"names": list(classifier.names)}
    return annotate(prefix, "topic", classifier.info(), classify, part_size=part_size, extra=extra, **options)


def score_perplexity(prefix: str | Path, scorer: Scorer, *, part_size: int, **options: Any) -> bool:
    """Write the annotation ``perplexity`` of a corpus. Options: those of ``annotate``."""
    return annotate(prefix, "perplexity", scorer.info(), scorer.score, part_size=part_size, **options)


def corpus_tokenizer(prefix: str | Path, tokenizer_model: str | None = None) -> CorpusTokenizer:
    """The tokenizer that a corpus was made with, as its sidecar names it or as ``tokenizer_model`` gives it.

    Raises:
        ValueError: the sidecar names none, it is not there any more, or the one given is another.
    """
    recorded = IndexedCorpus(prefix).tokenizer
    if recorded is None or not recorded.keys() >= {"type", "name", "fingerprint"}:
        if tokenizer_model is None:
            raise ValueError(f"{prefix}.json: does not say which tokenizer made the corpus; give --tokenizer-model")
        return build_tokenizer("auto", tokenizer_model)
    try:
        tokenizer = build_tokenizer(str(recorded["type"]), tokenizer_model or str(recorded["name"]))
    except ValueError as error:
        raise ValueError(f"{prefix}: its tokenizer is not there any more ({error}); give --tokenizer-model") from error
    if tokenizer.fingerprint != recorded["fingerprint"]:
        raise ValueError(f"{prefix}: was made with another tokenizer than {tokenizer.name}; give --tokenizer-model")
    return tokenizer

"""Several corpora into one, byte-identical to megatron-core's ``IndexedDatasetBuilder.add_index``, in bounded memory.

What lies beside them comes along where it means the same in all of them: the document tables, topics (whose names are
joined), perplexities and other annotations by one annotator.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.compute

from megatron_synE.corpus.annotations import NO_LABEL, Annotations, annotation_names, write_annotation
from megatron_synE.corpus.blocks import iter_blocks
from megatron_synE.corpus.document_table import (
    DocumentTable,
    document_table_path,
    table_schema,
    write_document_table,
)
from megatron_synE.corpus.indexed import HASH_BLOCK_BYTES, IndexedCorpus, combined_fingerprint
from megatron_synE.corpus.indexed_writer import CorpusParts
from megatron_synE.corpus.sidecar import read_sidecar
from megatron_synE.corpus.staging import Staging
from megatron_synE.corpus.verify import check_index

STAGED = "corpus"
"""Beginning of the names in the staging folder."""


@dataclass
class Merged:
    """What a merge made."""

    num_documents: int = 0
    num_tokens: int = 0
    carried: list[str] = field(default_factory=list)
    """What lies beside the new corpus."""
    left_behind: list[str] = field(default_factory=list)
    """What some of the inputs have and the new corpus has not, each with the reason."""


def merge_corpora(
    prefixes: Sequence[str],
    output_prefix: str,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda num_documents: None,
) -> Merged:
    """Write the documents of all corpora, in the order given, under ``output_prefix``.

    Args:
        overwrite: whether a corpus that is there may be replaced.
        on_progress: called with the number of documents of each piece.

    Raises:
        ValueError: dtypes or tokenizers differ, an input is damaged, or the output is there already; the message names
            the file. Nothing then stands under the output's name that was not there before.
    """
    check_output(output_prefix, prefixes, overwrite)
    corpora = [IndexedCorpus(prefix) for prefix in prefixes]
    sidecars = [read_sidecar(prefix) for prefix in prefixes]
    check_alike(corpora, sidecars)
    merged = Merged()
    names = sorted({name for prefix in prefixes for name in annotation_names(prefix)})
    annotations = {name: joined(corpora, name, merged) for name in names}
    tables = open_tables(corpora, merged)
    with Staging(Path(f"{output_prefix}.unfinished")) as staging:
        staging.open_files(CorpusParts.file_names(STAGED))
        parts = CorpusParts(staging, STAGED, corpora[0].dtype)
        for corpus, sidecar in zip(corpora, sidecars, strict=True):
            copy(corpus, sidecar, parts, on_progress)
        merged.num_documents, merged.num_tokens = parts.num_documents, parts.num_tokens
        metadata, write_table = merged_sidecar(corpora, sidecars), partial(write_joined_table, tables)
        fingerprint, moves, removed = parts.complete(output_prefix, metadata, write_table if tables else None)
        for name, annotation in annotations.items():
            if annotation is not None:
                write_annotation(staging.folder / STAGED, name, annotation.values, fingerprint, *annotation.origin)
                for kind in ("npy", "json"):  # before the .idx, which comes last
                    moves.insert(-1, (f"{STAGED}.{name}.{kind}", Path(f"{output_prefix}.{name}.{kind}")))
                merged.carried.append(name)
        staging.publish(moves, removed, {})
    merged.carried += ["document table"] if tables else []
    return merged


def check_output(output_prefix: str, prefixes: Sequence[str], overwrite: bool) -> None:
    """ValueError where the output would replace a corpus that nobody allowed to replace, or one of the inputs."""
    found = [path for kind in ("idx", "bin") if (path := Path(f"{output_prefix}.{kind}")).exists()]
    if found and any(path.samefile(f"{prefix}{path.suffix}") for path in found for prefix in prefixes
                     if Path(f"{prefix}{path.suffix}").exists()):  # fmt: skip
        raise ValueError(f"{output_prefix}: is one of the inputs; choose another output")
    if found and not overwrite:
        raise ValueError(f"{found[0]}: is there already; choose another output, or replace it with --overwrite")


def check_alike(corpora: Sequence[IndexedCorpus], sidecars: Sequence[dict[str, Any] | None]) -> None:
    """ValueError where corpora are damaged, or their tokens do not mean the same."""
    for corpus in corpora:
        check_index(corpus)
    first = corpora[0]
    for corpus in corpora:
        if corpus.dtype != first.dtype:
            raise ValueError(
                f"{corpus.prefix}: tokens are {corpus.dtype}, those of {first.prefix} {first.dtype}; they were made "
                "for vocabularies of different size: tokenise one of them again"
            )
    known = [(c, s["tokenizer"]) for c, s in zip(corpora, sidecars, strict=True) if s and s.get("tokenizer")]
    for corpus, tokenizer in known:
        if tokenizer.get("fingerprint") != known[0][1].get("fingerprint"):
            raise ValueError(
                f"{corpus.prefix}: was made with the tokenizer {tokenizer.get('name')}, {known[0][0].prefix} with "
                f"{known[0][1].get('name')}; tokenise one of them again"
            )


def copy(
    corpus: IndexedCorpus,
    sidecar: dict[str, Any] | None,
    parts: CorpusParts,
    on_progress: Callable[[int], None],
) -> None:
    """Append a corpus, and compare what was read with the fingerprint that its sidecar records.

    Raises:
        ValueError: the content is another; a new fingerprint must not vouch for damaged bytes.
    """
    content = hashlib.sha256()
    for block in iter_blocks(corpus):
        content.update(block.tokens.data)
        parts.add_documents(block.tokens, block.sequence_lengths, block.sequences_per_document)
        on_progress(block.num_documents)
    if sidecar is not None:
        index = hashlib.sha256()
        with open(corpus.idx_path, "rb") as file:
            while piece := file.read(HASH_BLOCK_BYTES):
                index.update(piece)
        if combined_fingerprint(content.hexdigest(), index.hexdigest()) != sidecar["fingerprint"]:
            raise ValueError(
                f"{corpus.prefix}.json: describes other content than {corpus.prefix}.bin and .idx hold: they were "
                "damaged, or written anew by another program; restore them, or delete the .json to merge them so"
            )


def merged_sidecar(corpora: Sequence[IndexedCorpus], sidecars: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """What the new sidecar says beside counts: the tokenizer where all name it, and what was merged."""
    tokenizers = [sidecar.get("tokenizer") if sidecar else None for sidecar in sidecars]
    sources = [(sidecar or {}).get("source") or {} for sidecar in sidecars]
    shared = {
        name: sources[0][name]
        for name in ("json_key", "append_eod", "split_sentences")
        if name in sources[0] and all(source.get(name) == sources[0][name] for source in sources)
    }
    parts = [{"prefix": corpus.prefix, "num_documents": corpus.num_documents} for corpus in corpora]
    content: dict[str, Any] = {"source": {**shared, "merged": parts}}
    if all(tokenizers):
        content["tokenizer"] = tokenizers[0]
    return content


@dataclass(frozen=True)
class JoinedAnnotation:
    """One annotation of all corpora end to end."""

    values: npt.NDArray[Any]
    """[D] of the new corpus."""
    annotator: dict[str, Any]
    extra: dict[str, Any]

    @property
    def origin(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `write_annotation` wants to know after the fingerprint."""
        return self.annotator, self.extra


def joined(corpora: Sequence[IndexedCorpus], name: str, merged: Merged) -> JoinedAnnotation | None:
    """An annotation of all corpora; None, and the reason in ``merged``, where it cannot be joined."""
    found = [Annotations(corpus.prefix, corpus) for corpus in corpora]
    missing = [annotations.prefix for annotations in found if not annotations.has(name)]
    try:
        if missing:
            raise ValueError(f"{missing[0]} has none")
        infos = [annotations.info(name) for annotations in found]
        for annotations, info in zip(found, infos, strict=True):
            if info.get("annotator") != infos[0].get("annotator"):
                raise ValueError(f"{annotations.prefix} has it from another annotator than {found[0].prefix}")
            if info["dtype"] != infos[0]["dtype"]:
                raise ValueError(f"{annotations.prefix} has it as {info['dtype']}, others as {infos[0]['dtype']}")
        values: list[npt.NDArray[Any]] = [annotations.get(name) for annotations in found]
    except ValueError as error:
        merged.left_behind.append(f"{name}: {error}")
        return None
    extra: dict[str, Any] = {}
    if all("names" in info for info in infos):
        extra["names"] = sorted({label for info in infos for label in info["names"]})
        values = [renumbered(part, info["names"], extra["names"]) for part, info in zip(values, infos, strict=True)]
    return JoinedAnnotation(np.concatenate(values), infos[0]["annotator"], extra)


def renumbered(numbers: npt.NDArray[Any], names: Sequence[str], joined_names: Sequence[str]) -> npt.NDArray[Any]:
    """Labels [D] that count in ``names``, counted in ``joined_names``; `NO_LABEL` stays."""
    place = {name: number for number, name in enumerate(joined_names)}
    new = np.array([*(place[name] for name in names), NO_LABEL], dtype=numbers.dtype)  # the last is what -1 finds
    return new[numbers]


def open_tables(corpora: Sequence[IndexedCorpus], merged: Merged) -> list[DocumentTable]:
    """The document tables of all corpora; none, and the reason in ``merged``, where not all have a good one."""
    missing = [corpus.prefix for corpus in corpora if not document_table_path(corpus.prefix).is_file()]
    if len(missing) == len(corpora):
        return []
    try:
        if missing:
            raise ValueError(f"{missing[0]} has none")
        tables = [DocumentTable(corpus.prefix, corpus) for corpus in corpora]
    except ValueError as error:
        merged.left_behind.append(f"document table: {error}")
        return []
    keys = {key: sum(key in table.key_names for table in tables) for table in tables for key in table.key_names}
    merged.left_behind += [
        f"document table: {key} stays empty for {len(tables) - count} of {len(tables)} corpora, which did not keep it"
        for key, count in keys.items()
        if count < len(tables)
    ]
    return tables


def write_joined_table(tables: Sequence[DocumentTable], path: Path, fingerprint: str) -> None:
    """The rows of all tables; a key that one of them did not keep is null there."""
    inputs = list(dict.fromkeys(name for table in tables for name in table.inputs))
    schema = table_schema(list(dict.fromkeys(key for table in tables for key in table.key_names)))

    def batches() -> Iterator[pyarrow.RecordBatch]:
        for table in tables:
            place = pyarrow.array([inputs.index(name) for name in table.inputs], pyarrow.int32())
            for batch in table.batches():
                columns = {name: batch.column(name) for name in batch.schema.names}
                columns["file"] = pyarrow.compute.take(place, columns["file"])
                nothing = pyarrow.nulls(batch.num_rows, pyarrow.string())
                arrays = [columns.get(name, nothing) for name in schema.names]
                yield pyarrow.RecordBatch.from_arrays(arrays, schema=schema)

    write_document_table(path, batches(), schema, inputs, fingerprint)

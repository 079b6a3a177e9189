"""Per-document annotations beside a corpus: ``{prefix}.{name}.npy`` and ``{prefix}.{name}.json``. numpy only.

``topic`` is int16[D], an index into the names in its JSON, or ``NO_LABEL``. ``perplexity`` is float32[D], at least 1,
or ``NO_SCORE`` for a document that cannot be scored (one of fewer than two tokens). The JSON holds the schema, the
annotator and the fingerprint of the corpus: an annotation of other content is refused.

A long job writes in parts (``AnnotationWriter``): each is complete or absent, and a job that starts again goes on after
the parts that are there. The JSON comes last; without it, there is no annotation.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from megatron_synE.config.json_fields import JsonFields
from megatron_synE.corpus.indexed import IndexedCorpus, write_json_atomically
from megatron_synE.corpus.shared_progress import SharedProgress

SCHEMA_VERSION = 1
NO_LABEL = -1
NO_SCORE = -1.0
DTYPES: dict[str, np.dtype[Any]] = {"topic": np.dtype(np.int16), "perplexity": np.dtype(np.float32)}
NPY_START, NPY_MAGIC = struct.Struct("<8sH"), b"\x93NUMPY\x01\x00"
NPY_HEADER = re.compile(rb"{'descr': '([<>|][iuf][1248])', 'fortran_order': False, 'shape': \(([0-9]{1,15}),\), } *\n")
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]*")


class Annotations:
    """The annotations of the corpus under ``prefix``, memory-mapped.

    Args:
        prefix: of the corpus.
        corpus: the opened corpus, where the caller has it.
    """

    def __init__(self, prefix: str | Path, corpus: IndexedCorpus | None = None) -> None:
        self.prefix = str(prefix)
        self.corpus = corpus if corpus is not None else IndexedCorpus(prefix)

    def has(self, name: str) -> bool:
        """Whether there is an annotation ``name``; it may still be refused by ``get``."""
        return _paths(self.prefix, name)[1].is_file()

    def info(self, name: str) -> dict[str, Any]:
        """The JSON of the annotation ``name``.

        Raises:
            ValueError: it is missing, damaged, or belongs to other content; the message names the file and the fix.
        """
        path = _paths(self.prefix, name)[1]
        remedy = f"run tools/annotate_corpus.py {name} on {self.prefix}"
        try:
            fields = JsonFields.of_file(path, f"{remedy} again")
        except FileNotFoundError:
            raise ValueError(f"{path}: the corpus has no annotation {name!r}; {remedy}") from None
        fields.integer("schema_version", SCHEMA_VERSION, SCHEMA_VERSION)
        if fields.text("name") != name:
            raise fields.wrong("name", f"is {fields.text('name')!r}, not {name!r}")
        expected, found = self.corpus.fingerprint, fields.text("fingerprint")
        if found != expected:
            raise fields.wrong("fingerprint", f"is {found}, but the corpus has {expected}: it belongs to other content")
        fields.text("dtype")
        if name == "topic" or fields.has("names"):
            fields.texts("names")
        if fields.has("checksum"):
            fields.text("checksum")
        return fields.content

    def get(self, name: str) -> np.memmap[Any, Any]:
        """The values of annotation ``name``, [D], read-only: ``topic`` int16, ``perplexity`` float32.

        Raises:
            ValueError: it is missing or stale, has another shape or dtype than its JSON says, or holds a value that
                cannot be (a NaN perplexity, a topic without a name); the message names the file and the document.
        """
        info, path = self.info(name), _paths(self.prefix, name)[0]
        values = open_values(path)
        dtype = DTYPES[name].name if name in DTYPES else info["dtype"]
        if values.shape != (self.corpus.num_documents,) or values.dtype.name != dtype or not values.dtype.isnative:
            raise ValueError(
                f"{path}: holds {values.dtype.name}{list(values.shape)}, expected "
                f"{dtype}[{self.corpus.num_documents}]; annotate the corpus again"
            )
        check_values(name, values, path, num_names=len(info.get("names") or []))
        if info.get("checksum") not in (None, values_checksum(values)):
            raise ValueError(f"{path}: damaged: not the values that were written; restore it, or annotate again")
        return values

    @property
    def topic_names(self) -> list[str]:
        """The names that the numbers of ``topic`` stand for."""
        return list(self.info("topic")["names"])


class AnnotationWriter:
    """Writes one annotation in parts of ``part_size`` documents; several processes may share the parts.

    Parts of an earlier, killed job are taken over if corpus, annotator, dtype and part size are the same, else removed.
    An annotation that such a job has already finished is left as it is: no part is pending then. One by another
    annotator is only replaced where the caller says so: runs may have read documents in its order.

    Args:
        prefix: of the corpus.
        name: lower-case letters, digits and underscores.
        dtype: of the values.
        annotator_info: what determines the values (a model's fingerprint, a version), JSON-able.
        part_size: documents per part.
        overwrite: whether an annotation of this content by another annotator may be replaced; ``replaces`` names it.

    Raises:
        ValueError: there is such an annotation, and ``overwrite`` is not set.
    """

    def __init__(
        self,
        prefix: str | Path,
        name: str,
        dtype: npt.DTypeLike,
        annotator_info: dict[str, Any],
        part_size: int = 10_000,
        overwrite: bool = False,
    ) -> None:
        if part_size < 1:
            raise ValueError(f"part size {part_size}: must be at least 1 document")
        _paths(str(prefix), name)  # refuses an impossible name
        self.prefix, self.name, self.dtype = str(prefix), name, np.dtype(dtype)
        self.part_size, self.annotator_info = part_size, json.loads(json.dumps(annotator_info))
        self.corpus = IndexedCorpus(prefix)
        self.directory = Path(f"{prefix}.{name}.parts")
        self.overwrite, self.replaces = overwrite, ""
        self.num_parts = -(-self.corpus.num_documents // part_size)
        job = {
            "fingerprint": self.corpus.fingerprint,
            "annotator": self.annotator_info,
            "dtype": self.dtype.name,
            "part_size": part_size,
        }
        if self.finished:
            return
        self.replaces = self._other_annotator(overwrite)
        with self._lock():
            if _read_json(self.directory / "job.json") != job:
                self._remove_parts()
                write_json_atomically(self.directory / "job.json", job)

    @property
    def finished(self) -> bool:
        """Whether this annotation, of this content by this annotator, is in place."""
        info = _read_json(_paths(self.prefix, self.name)[1]) or {}
        recorded = (info.get("fingerprint"), info.get("annotator"), info.get("dtype"))
        return recorded == (self.corpus.fingerprint, self.annotator_info, self.dtype.name)

    def _other_annotator(self, overwrite: bool) -> str:
        """Who made the annotation that is in place and belongs to this content; empty where there is none."""
        path = _paths(self.prefix, self.name)[1]
        info = _read_json(path) or {}
        if info.get("fingerprint") != self.corpus.fingerprint:
            return ""
        annotator = json.dumps(info.get("annotator"), ensure_ascii=False)
        if not overwrite:
            raise ValueError(
                f"{path}: the corpus is annotated already, by {annotator}; runs that read this cannot be resumed with "
                "another annotation. Annotate a copy of the corpus under another prefix, or replace it with --overwrite"
            )
        return annotator

    def part_range(self, part: int) -> range:
        """The documents of part ``part``."""
        return range(part * self.part_size, min((part + 1) * self.part_size, self.corpus.num_documents))

    def pending_parts(self) -> list[int]:
        """The parts that are not written yet."""
        if self.finished:
            return []
        return [part for part in range(self.num_parts) if not self._part_path(part).is_file()]

    def shared_progress(self) -> SharedProgress:
        """How far all processes of the job are; while parts are pending."""
        sizes = [len(self.part_range(part)) for part in range(self.num_parts)]
        return SharedProgress(self.directory, self._part_path, sizes)

    def write_part(self, part: int, values: npt.ArrayLike) -> None:
        """Store the values of part ``part``, [documents of the part]; complete or absent, whenever it is interrupted.

        Raises:
            ValueError: a value is NaN.
        """
        array = np.asarray(values, dtype=self.dtype)
        documents = self.part_range(part)
        assert array.shape == (len(documents),), (array.shape, documents)
        path = self._part_path(part)
        check_values(self.name, array, path, first_document=documents.start)
        _save_atomically(path, array)

    def finalize(self, extra: dict[str, Any] | None = None) -> bool:
        """Join the parts and put the annotation in place, if all are there; the last of several processes does it.

        Args:
            extra: further entries of the JSON, for example ``names``.

        Returns:
            whether the annotation is in place.
        """
        if self.finished:
            return True
        with self._lock():
            if self.finished:  # another process was faster
                shutil.rmtree(self.directory, ignore_errors=True)
                return True
            if self.pending_parts():
                return False
            self._other_annotator(self.overwrite)
            parts = [np.load(self._part_path(part), allow_pickle=False) for part in range(self.num_parts)]
            values = np.concatenate(parts)
            write_annotation(self.prefix, self.name, values, self.corpus.fingerprint, self.annotator_info, extra)
            shutil.rmtree(self.directory, ignore_errors=True)
        return True

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _part_path(self, part: int) -> Path:
        return self.directory / f"part-{part:06d}.npy"

    def _remove_parts(self) -> None:
        for path in self.directory.glob("part-*"):
            path.unlink(missing_ok=True)


def write_annotation(
    prefix: str | Path,
    name: str,
    values: npt.NDArray[Any],
    fingerprint: str,
    annotator: dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a whole annotation: values [D] of the corpus whose content has ``fingerprint``."""
    values_path, info_path = _paths(str(prefix), name)
    check_values(name, values, values_path, num_names=len((extra or {}).get("names", [])) or None)
    info_path.unlink(missing_ok=True)  # no moment at which the old JSON vouches for the new values
    _save_atomically(values_path, values)
    info = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "dtype": values.dtype.name,
        "num_documents": len(values),
        "checksum": values_checksum(values),
        "fingerprint": fingerprint,
        "annotator": annotator,
        **(extra or {}),
    }
    write_json_atomically(info_path, info)


def write_labels(
    prefix: str | Path,
    numbers: npt.NDArray[np.int16],
    names: Sequence[str],
    fingerprint: str,
    annotator: dict[str, Any],
) -> None:
    """Write the annotation ``topic``: numbers [D] are indices into ``names``."""
    write_annotation(prefix, "topic", numbers, fingerprint, annotator, {"names": list(names)})


def annotation_names(prefix: str | Path) -> list[str]:
    """The annotations that lie beside a corpus, good or not."""
    stem = Path(prefix)
    names = [path.name.removeprefix(f"{stem.name}.").removesuffix(".json") for path in stem.parent.glob("*.json")]
    return sorted(n for n in names if NAME_PATTERN.fullmatch(n) and (stem.parent / f"{stem.name}.{n}.json").is_file())


def open_values(path: Path) -> np.memmap[Any, Any]:
    """Map the array of a ``.npy``, read-only. numpy's own reader lets any Python literal be a header.

    Raises:
        ValueError: it is not one array of numbers in one dimension; the message names the file.
    """
    remedy = "annotate the corpus again"
    try:
        with open(path, "rb") as file:
            start = file.read(NPY_START.size)
            magic, num_bytes = NPY_START.unpack(start) if len(start) == NPY_START.size else (b"", 0)
            header = NPY_HEADER.fullmatch(file.read(num_bytes)) if magic == NPY_MAGIC else None
            if header is None:
                raise ValueError(f"{path}: cannot be read (not a .npy file of numbers in one dimension); {remedy}")
            dtype, length, offset = np.dtype(header[1].decode()), int(header[2]), NPY_START.size + num_bytes
            if not 0 < length * dtype.itemsize == os.fstat(file.fileno()).st_size - offset:
                raise ValueError(f"{path}: cannot be read (truncated, or too long for its {length} values); {remedy}")
            return np.memmap(file, dtype, mode="r", offset=offset, shape=(length,))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}); {remedy}") from error


def values_checksum(values: npt.NDArray[Any]) -> str:
    """xxh3_128 of an annotation's values, in hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(values).data)


def check_values(
    name: str,
    values: npt.NDArray[Any],
    path: Path,
    *,
    first_document: int = 0,
    num_names: int | None = None,
) -> None:
    """Refuse values that cannot be: a NaN, a perplexity below 1, a topic number without a name.

    Raises:
        ValueError: with the file, the document and the value.
    """
    if values.dtype.kind == "f":
        bad = np.isnan(values)
        if name == "perplexity":
            bad |= (values < 1) & (values != NO_SCORE)
    elif name == "topic" and num_names is not None:
        bad = (values < NO_LABEL) | (values >= num_names)
    else:
        return
    if bad.any():
        index = int(np.argmax(bad))
        raise ValueError(
            f"{path}: {name} of document {first_document + index} is {values[index]} ({int(bad.sum())} such values); "
            "annotate the corpus again"
        )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _paths(prefix: str, name: str) -> tuple[Path, Path]:
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(f"annotation {name!r}: a name is made of lower-case letters, digits and underscores")
    return Path(f"{prefix}.{name}.npy"), Path(f"{prefix}.{name}.json")


def _save_atomically(path: Path, values: npt.NDArray[Any]) -> None:
    temporary = Path(f"{path}.tmp-{os.getpid()}")
    with open(temporary, "wb") as file:
        np.save(file, values, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)

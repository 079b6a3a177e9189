"""All texts of some files, one after the other, for what reads a corpus once without making tokens of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_synE.corpus.chunks import DocumentBatch
from megatron_synE.corpus.readers import STANDARD_INPUT, expand_inputs, iter_chunks
from megatron_synE.progress import ProgressBar


def read_texts(inputs: Sequence[str | Path], key: str) -> Iterator[str]:
    """The texts under a JSON key, in order; lines that hold none are passed over. Shows how much is read.

    Raises:
        ValueError: no such file, or one that cannot be read.
    """
    for batch in read_batches(inputs, [key], None):
        yield from batch.texts[key]


def read_batches(inputs: Sequence[str | Path], keys: Sequence[str], label_key: str | None) -> Iterator[DocumentBatch]:
    """The checked documents of the files, chunk by chunk. Shows how much is read; raises as `read_texts`."""
    files = expand_inputs(inputs)
    columns = [*keys, *([label_key] if label_key else [])]
    is_known = STANDARD_INPUT not in files
    done_bytes = 0
    with ProgressBar("reading", sum(path.stat().st_size for path in files) if is_known else None, "bytes") as bar:
        for path in files:
            end_bytes = 0
            for chunk in iter_chunks(path, columns):
                yield chunk.parse(keys, label_key)
                end_bytes = chunk.end.bytes_on_disk
                bar.at(done_bytes + end_bytes)
            done_bytes += end_bytes

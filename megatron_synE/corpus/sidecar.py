"""``{prefix}.json``, the sidecar of a corpus: what its ``.bin`` and ``.idx`` cannot say of themselves.

``format_version``, ``fingerprint`` of the content of both, ``files`` (size, time and sampled hash, by which a file is
known without being read), counts, ``dtype``, and ``tokenizer``: ``type``, ``name``, ``vocab_size``, ``eod_id`` and
``fingerprint``.
"""

import logging
from pathlib import Path
from typing import Any

from megatron_synE.config.json_fields import JsonFields

logger = logging.getLogger(__name__)

SIDECAR_FORMAT_VERSION = 1
MAX_SIDECAR_BYTES = 1 << 20
"""A larger file of that name is not ours: some keep a corpus's text there."""


def read_sidecar(prefix: str) -> dict[str, Any] | None:
    """What ``{prefix}.json`` says; whether it belongs to the files beside it is another question. None without one.

    Raises:
        ValueError: it is damaged, or something else; the message names file and field.
    """
    path = Path(f"{prefix}.json")
    remedy = "restore it, or move it away: the corpus is hashed at each opening then"
    try:
        if path.stat().st_size > MAX_SIDECAR_BYTES:
            logger.warning("%s: too large for the sidecar of a corpus; ignored", path)
            return None
        fields = JsonFields.of_file(path, remedy)
    except FileNotFoundError:
        return None
    fields.integer("format_version", SIDECAR_FORMAT_VERSION, SIDECAR_FORMAT_VERSION)
    fields.text("fingerprint")
    for kind in ("bin", "idx"):
        fields.inner("files").inner(kind)
    for name in filter(fields.has, ("num_documents", "num_sequences", "num_tokens")):
        fields.integer(name)
    if fields.has("tokenizer"):
        tokenizer = fields.inner("tokenizer")
        for name in filter(tokenizer.has, ("type", "name", "fingerprint")):
            tokenizer.text(name)
        for name in filter(tokenizer.has, ("vocab_size", "eod_id")):
            tokenizer.integer(name)
    return fields.content

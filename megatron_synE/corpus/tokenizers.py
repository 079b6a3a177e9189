"""Tokenisers for corpora: gigatoken where it can, the reference library of each format where it cannot.

Whatever the format, raw text is only text: a document that contains the characters ``<|end_of_text|>`` or ``</s>`` gets
the ordinary tokens of those characters, never the special id. So nobody can end a document, or forge a turn of a
dialogue, by writing it on a web page. ``special_tokens_in_text`` is for text that was made with special tokens in it.
No begin-of-text token is added; the end of a document is marked by the caller.
"""

import base64
import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow

from megatron_synE.corpus import llama3
from megatron_synE.corpus.text_columns import string_buffers

logger = logging.getLogger(__name__)

TOKENIZER_TYPES = ("HuggingFaceTokenizer", "TikTokenizer", "SentencePieceTokenizer", "auto")

PROBE_TEXTS = (
    "The quick brown fox's 1,234.5 jumps — don't they'LL see?\n\n\tdef f(x):\r\n        return x ** 2   \n ",
    "继续预训练提高了中文能力，以及科学推理。２０２４年，它的困惑度是 3.14！\n",
    "naïve café Ünïcödé ﬁ Ω≈ç√ 👩‍🔬🇨🇳 \u00a0\u3000 e\u0301 \U0001f600",
    "   leading and trailing   ",
)
"""What a fast path must encode like its reference before it is used."""


TextBatch: TypeAlias = Sequence[str] | pyarrow.LargeStringArray
"""Texts as Python or Arrow holds them; no null among them."""


class Backend(Protocol):
    """One library's encoder and decoder."""

    name: str

    def encode_batch(self, texts: TextBatch) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Return (tokens [N], offsets [documents + 1]): the ids of all texts end to end and where each begins."""
        ...

    def decode(self, tokens: npt.NDArray[np.integer]) -> str: ...


@dataclass(frozen=True)
class CorpusTokenizer:
    """A tokenizer as the corpus tools use it."""

    type: str
    """HuggingFaceTokenizer, TikTokenizer or SentencePieceTokenizer."""
    name: str
    """What was given as ``--tokenizer-model``."""
    vocab_size: int
    """One more than the largest id, special tokens included."""
    eod_id: int | None
    """The token that ends a document; None where the files name none."""
    fingerprint: str
    """Hash of what determines the ids."""
    backend: Backend
    special_tokens_in_text: bool = False
    """Whether characters that spell a special token become it."""
    bos_id: int | None = None
    """The token that begins a text; None where the files name none."""
    bos_text: str = ""
    """Its characters."""
    declines_bos: bool = False
    """Whether the files say that no text is to begin with one (`"add_bos_token": false`, `"bos_token": null`)."""
    special_ids: frozenset[int] = frozenset()
    """Tokens that stand for no text."""

    def encode_batch(self, texts: TextBatch) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Return (tokens [N], offsets [documents + 1]) of the texts end to end, without an end-of-document token."""
        return self.backend.encode_batch(texts)

    def decode(self, tokens: npt.NDArray[np.integer]) -> str:
        """The text of ``tokens`` [length] for reading; bytes that are not UTF-8 become U+FFFD."""
        return self.backend.decode(tokens)

    def describe(self) -> dict[str, Any]:
        """The entry ``tokenizer`` of a corpus's sidecar."""
        return {
            "type": self.type,
            "name": self.name,
            "vocab_size": self.vocab_size,
            "eod_id": self.eod_id,
            "fingerprint": self.fingerprint,
        }


class GigatokenBackend:
    """gigatoken (Rust), the fast path for byte-pair encodings."""

    name = "gigatoken"

    def __init__(self, tokenizer_json: str) -> None:
        import gigatoken

        self.tokenizer = gigatoken.Tokenizer.from_json(tokenizer_json)

    def encode_batch(self, texts: TextBatch) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        if not len(texts):
            return np.empty(0, np.uint32), np.zeros(1, np.int64)
        batch = list(texts) if not isinstance(texts, pyarrow.Array) else _borrowed(texts)
        layout: Any = self.tokenizer.encode_batch(batch).layout
        return layout.content.data, layout.offsets.data

    def decode(self, tokens: npt.NDArray[np.integer]) -> str:
        ids = np.asarray(tokens, dtype=np.uint32)
        ids = ids[ids < self.tokenizer.vocab_size]  # the special tokens that it was made blind for
        return self.tokenizer.decode(ids).decode("utf-8", errors="replace")


class HuggingFaceBackend:
    """Hugging Face ``tokenizers``, the reference for ``tokenizer.json``."""

    name = "tokenizers"

    def __init__(self, tokenizer_json: str, special_tokens_in_text: bool = False) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = not special_tokens_in_text

    def encode_batch(self, texts: TextBatch) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        encodings = self._tokenizer.encode_batch_fast(_strings(texts), add_special_tokens=False)
        return _concatenate([encoding.ids for encoding in encodings])

    def decode(self, tokens: npt.NDArray[np.integer]) -> str:
        return str(self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False))


class TikTokenBackend:
    """tiktoken, the reference for Llama-3's ``tokenizer.model``."""

    name = "tiktoken"

    def __init__(self, ranks: dict[bytes, int], special_tokens_in_text: bool = False) -> None:
        import tiktoken

        special = {token: len(ranks) + i for i, token in enumerate(llama3.special_tokens())}
        self._encoding = tiktoken.Encoding(
            "llama3", pat_str=llama3.SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=special
        )
        self._allowed = set(special) if special_tokens_in_text else set()

    def encode_batch(self, texts: TextBatch) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        encode = partial(self._encoding.encode, allowed_special=self._allowed, disallowed_special=())
        return _concatenate([encode(text) for text in _strings(texts)])

    def decode(self, tokens: npt.NDArray[np.integer]) -> str:
        return str(self._encoding.decode(tokens.tolist()))


class SentencePieceBackend:
    """sentencepiece, the reference for its own models."""

    name = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor()
        self.processor.LoadFromSerializedProto(model)

    def encode_batch(self, texts: TextBatch) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        return _concatenate(self.processor.encode(_strings(texts)))

    def decode(self, tokens: npt.NDArray[np.integer]) -> str:
        return str(self.processor.decode(tokens.tolist()))


def build_tokenizer(
    tokenizer_type: str, tokenizer_model: str | Path, *, fast: bool = True, special_tokens_in_text: bool = False
) -> CorpusTokenizer:
    """Load a tokenizer.

    Args:
        tokenizer_type: one of ``TOKENIZER_TYPES``; ``auto`` looks at the files.
        tokenizer_model: a directory, a ``tokenizer.json``, a ``tokenizer.model``, or for HuggingFaceTokenizer the name
            of a repository on the Hugging Face hub.
        fast: use gigatoken where it encodes like the reference library.
        special_tokens_in_text: let characters that spell a special token become it.

    Raises:
        ValueError: no such file, a file of another format, a type that is not known, or one without special tokens
            that text can spell.
    """
    name, path = str(tokenizer_model), Path(tokenizer_model)
    if tokenizer_type not in TOKENIZER_TYPES:
        raise ValueError(f"--tokenizer-type {tokenizer_type}: expected one of {', '.join(TOKENIZER_TYPES)}")
    if not path.exists():
        if tokenizer_type in ("HuggingFaceTokenizer", "auto") and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            path = _download(name)
        else:
            raise ValueError(f"--tokenizer-model {name}: no such file or directory")
    file = _tokenizer_file(path, tokenizer_type)
    data = file.read_bytes()
    kind = _sniff(file, data) if tokenizer_type == "auto" else tokenizer_type
    build = {"HuggingFaceTokenizer": _huggingface, "TikTokenizer": _tiktoken, "SentencePieceTokenizer": _sentencepiece}
    try:
        return build[kind](name, file, data, fast, special_tokens_in_text)
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"--tokenizer-model {file}: not a {kind} ({error})") from error


def _tokenizer_file(path: Path, tokenizer_type: str) -> Path:
    if path.is_file():
        return path
    names = ["tokenizer.json", "tokenizer.model"] if tokenizer_type in ("HuggingFaceTokenizer", "auto") else []
    if tokenizer_type != "HuggingFaceTokenizer":
        names += ["tokenizer.model", "original/tokenizer.model"]
    for name in names:
        if (path / name).is_file() and (tokenizer_type != "HuggingFaceTokenizer" or name.endswith(".json")):
            return path / name
    raise ValueError(f"--tokenizer-model {path}: the directory holds no {' or '.join(dict.fromkeys(names))}")


def _sniff(file: Path, data: bytes) -> str:
    if data[:64].lstrip().startswith(b"{"):
        return "HuggingFaceTokenizer"
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", data):
        return "TikTokenizer"
    if data[:1] == b"\x0a":  # protobuf: field 1, a length-delimited piece
        return "SentencePieceTokenizer"
    raise ValueError(f"--tokenizer-model {file}: neither a tokenizer.json nor a tiktoken or sentencepiece model")


def _download(name: str) -> Path:
    """Fetch a tokenizer's files from the Hugging Face hub (or its local cache); never any code."""
    import huggingface_hub

    wanted = ["tokenizer.json", "tokenizer.model", "*_config.json", "config.json", "special_tokens_map.json"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the hub, its cache and the network each raise errors of their own
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"--tokenizer-model {name}: no such directory here, and the hub does not give it ({reason})"
        ) from error


def _huggingface(name: str, file: Path, data: bytes, fast: bool, special: bool) -> CorpusTokenizer:
    content = json.loads(data)
    vocab, added = content["model"]["vocab"], content.get("added_tokens") or []
    ids = {token["content"]: int(token["id"]) for token in added}
    base_ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))  # a unigram's vocabulary is a list
    reference = HuggingFaceBackend(data.decode("utf-8"), special)
    all_ids = {**vocab, **ids} if isinstance(vocab, dict) else ids
    bos_text = _huggingface_bos(file.parent, all_ids)
    return CorpusTokenizer(
        type="HuggingFaceTokenizer",
        name=name,
        vocab_size=max([*base_ids, *ids.values()]) + 1,
        eod_id=_huggingface_eod(file.parent, all_ids),
        fingerprint=_fingerprint(content),
        backend=_fastest(lambda: data.decode("utf-8"), reference, list(ids), fast, special),
        special_tokens_in_text=special,
        bos_id=all_ids.get(bos_text),
        bos_text=bos_text,
        declines_bos=_huggingface_declines_bos(file.parent),
        special_ids=frozenset(int(token["id"]) for token in added if token.get("special")),
    )


def _huggingface_bos(directory: Path, ids: dict[str, int]) -> str:
    """The begin-of-text token that the files beside ``tokenizer.json`` name, or one that goes by a customary name.

    Files that say there is none are believed: config.json's ``bos_token_id`` may name a token that never begins a text.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = _read_json(directory / name)
        if "bos_token" in content:
            token = content["bos_token"]
            token = token.get("content") if isinstance(token, dict) else token
            return token if token in ids else ""
    return next((token for token in (llama3.BEGIN_OF_TEXT, "<s>", "<bos>") if token in ids), "")


def _huggingface_declines_bos(directory: Path) -> bool:
    content = _read_json(directory / "tokenizer_config.json")
    return content.get("add_bos_token") is False or content.get("bos_token", "") is None


def _huggingface_eod(directory: Path, ids: dict[str, int]) -> int | None:
    """The end-of-text id that the files beside ``tokenizer.json`` name, or one that goes by a customary name."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _read_json(directory / name).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token in ids:
            return ids[token]
    for name in ("generation_config.json", "config.json"):
        eos = _read_json(directory / name).get("eos_token_id")
        eos = eos[0] if isinstance(eos, list) and eos else eos
        if isinstance(eos, int):
            return eos
    return next((ids[token] for token in (llama3.END_OF_TEXT, "<|endoftext|>", "</s>") if token in ids), None)


def _tiktoken(name: str, file: Path, data: bytes, fast: bool, special: bool) -> CorpusTokenizer:
    try:
        ranks = read_ranks(data)
    except ValueError as error:
        raise ValueError(f"--tokenizer-model {file}: not a tiktoken model ({error})") from error
    if len(ranks) != llama3.NUM_BASE_TOKENS:
        raise ValueError(
            f"--tokenizer-model {file}: {len(ranks)} entries, but Llama-3's model has {llama3.NUM_BASE_TOKENS}; "
            "the split pattern of another tiktoken model is not in its file: use its tokenizer.json instead"
        )
    special_tokens = llama3.special_tokens()
    reference = TikTokenBackend(ranks, special)
    return CorpusTokenizer(
        type="TikTokenizer",
        name=name,
        vocab_size=len(ranks) + len(special_tokens),
        eod_id=len(ranks) + special_tokens.index(llama3.END_OF_TEXT),
        fingerprint=hashlib.sha256(data).hexdigest()[:32],
        backend=_fastest(lambda: llama3.tokenizer_json(ranks), reference, special_tokens, fast, special),
        special_tokens_in_text=special,
        bos_id=len(ranks) + special_tokens.index(llama3.BEGIN_OF_TEXT),
        bos_text=llama3.BEGIN_OF_TEXT,
        special_ids=frozenset(range(len(ranks), len(ranks) + len(special_tokens))),
    )


def read_ranks(data: bytes) -> dict[bytes, int]:
    """The tokens of a tiktoken model and their ranks: a line is the token in base64 and its rank."""
    pairs = (line.split() for line in data.splitlines() if line)
    return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}


def _sentencepiece(name: str, file: Path, data: bytes, fast: bool, special: bool) -> CorpusTokenizer:
    if special:
        raise ValueError(f"--tokenizer-model {file}: a sentencepiece model reads no special tokens in text")

    def as_tokenizer_json() -> str:
        from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

        return str(sentencepiece_to_tokenizer_json(data))

    reference = SentencePieceBackend(data)
    eos, bos = reference.processor.eos_id(), reference.processor.bos_id()
    control = (number for number in range(reference.processor.vocab_size()) if reference.processor.is_control(number))
    return CorpusTokenizer(
        type="SentencePieceTokenizer",
        name=name,
        vocab_size=reference.processor.vocab_size(),
        eod_id=eos if eos >= 0 else None,
        fingerprint=hashlib.sha256(data).hexdigest()[:32],
        backend=_fastest(as_tokenizer_json, reference, [], fast, special),
        bos_id=bos if bos >= 0 else None,
        bos_text=reference.processor.id_to_piece(bos) if bos >= 0 else "",
        special_ids=frozenset(control),
    )


def _fastest(
    tokenizer_json: Callable[[], str], reference: Backend, special_tokens: list[str], fast: bool, special: bool
) -> Backend:
    """gigatoken if it loads the tokenizer and encodes the probe texts like ``reference``, else ``reference``."""
    if not fast:
        return reference
    probes = [*PROBE_TEXTS, " ".join(special_tokens[:8]), "".join(special_tokens[:8])]
    try:
        backend = GigatokenBackend(_for_raw_text(tokenizer_json(), special))
        same = all(map(np.array_equal, backend.encode_batch(probes), reference.encode_batch(probes)))
        reason = "" if same else "it encodes a probe text differently"
    except Exception as error:  # the Rust side reports what it does not support in many ways
        reason = str(error) or type(error).__name__
    if reason:
        logger.warning("%s is used, not gigatoken, which is faster: %s", reference.name, reason)
        return reference
    return backend


def _for_raw_text(tokenizer_json: str, special_tokens_in_text: bool) -> str:
    """The same tokenizer without a template around a text, and, unless asked for, blind for special tokens in it."""
    content = json.loads(tokenizer_json)
    if not special_tokens_in_text:
        content["added_tokens"] = [token for token in content.get("added_tokens") or [] if not token.get("special")]
    content["post_processor"] = None
    return json.dumps(content, ensure_ascii=False)


def _strings(texts: TextBatch) -> list[str]:
    return list(texts) if not isinstance(texts, pyarrow.Array) else texts.to_pylist()


def _borrowed(column: pyarrow.LargeStringArray) -> Any:
    """The same texts as an awkward array, without a copy: what gigatoken reads in place."""
    import awkward

    offsets, data = string_buffers(column)
    characters = awkward.contents.NumpyArray(data, parameters={"__array__": "char"})
    starts = awkward.index.Index64(offsets)
    return awkward.Array(awkward.contents.ListOffsetArray(starts, characters, parameters={"__array__": "string"}))


def _concatenate(ids: list[list[int]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in ids], dtype=np.int64)])
    tokens = np.fromiter((token for document in ids for token in document), dtype=np.int32, count=int(offsets[-1]))
    return tokens, offsets.astype(np.int64)


def _fingerprint(content: dict[str, Any]) -> str:
    relevant = {key: content.get(key) for key in ("model", "added_tokens", "normalizer", "pre_tokenizer")}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:32]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

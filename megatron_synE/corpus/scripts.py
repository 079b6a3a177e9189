"""The writing system of a document: a cheap guess at its language.

The middle of each document is decoded, and its letters are counted by script, each as heavy as in UTF-8: a Han letter
says about as much as three Latin letters. Languages that share a script cannot be told apart.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from megatron_synE.corpus.blocks import DocumentBlock

LANGUAGES = (
    "no letters", "Latin script", "Greek", "Cyrillic script", "Hebrew", "Arabic script", "Devanagari script", "Thai",
    "Korean", "Japanese", "Chinese",
)  # fmt: skip
"""What a document can be; the first where it has no letter of a known script."""
NO_LETTERS, JAPANESE, CHINESE = 0, LANGUAGES.index("Japanese"), LANGUAGES.index("Chinese")
# First and last code point of each block, and what its letters are.
RANGES = (
    (0x41, 0x5A, "Latin script"), (0x61, 0x7A, "Latin script"), (0xC0, 0x24F, "Latin script"), (0x370, 0x3FF, "Greek"),
    (0x400, 0x52F, "Cyrillic script"), (0x590, 0x5FF, "Hebrew"), (0x600, 0x6FF, "Arabic script"),
    (0x750, 0x77F, "Arabic script"), (0x900, 0x97F, "Devanagari script"), (0xE00, 0xE7F, "Thai"),
    (0x1100, 0x11FF, "Korean"), (0x1E00, 0x1EFF, "Latin script"), (0x3041, 0x30FF, "Japanese"),
    (0x3400, 0x4DBF, "Chinese"), (0x4E00, 0x9FFF, "Chinese"), (0xAC00, 0xD7AF, "Korean"), (0x20000, 0x2FFFF, "Chinese"),
)  # fmt: skip
JAPANESE_SHARE = 0.1
"""So large a part of kana among kana and Han makes a text Japanese."""
TOKENS_LOOKED_AT = 512

_BORDERS = np.array([border for first, last, _ in RANGES for border in (first, last + 1)])
_LANGUAGE_BETWEEN = np.array(
    [NO_LETTERS, *(number for _, _, name in RANGES for number in (LANGUAGES.index(name), NO_LETTERS))]
)


def guess_languages(block: DocumentBlock, decode: Callable[[npt.NDArray[np.integer]], str]) -> npt.NDArray[np.int8]:
    """[D] for each document of a block an index into `LANGUAGES`.

    Args:
        decode: tokens [length] to text.
    """
    texts = [decode(middle(document)).encode("utf-32-le", "replace") for document in block.documents()]
    code_points = np.frombuffer(b"".join(texts), np.uint32)
    language = _LANGUAGE_BETWEEN[np.searchsorted(_BORDERS, code_points, side="right")]
    weight = 1 + (code_points >= 0x80) + (code_points >= 0x800) + (code_points >= 0x10000)
    document = np.repeat(np.arange(len(texts)), [len(text) // 4 for text in texts])
    size = len(texts) * len(LANGUAGES)
    counts = np.bincount(document * len(LANGUAGES) + language, weights=weight, minlength=size)
    counts = counts.reshape(-1, len(LANGUAGES))
    counts[:, NO_LETTERS] = 0
    both = counts[:, CHINESE] + counts[:, JAPANESE]
    is_japanese = counts[:, JAPANESE] > JAPANESE_SHARE * both
    counts[:, JAPANESE] = np.where(is_japanese, both, 0)
    counts[:, CHINESE] = np.where(is_japanese, 0, both)
    return counts.argmax(axis=1).astype(np.int8)


def middle(tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """At most `TOKENS_LOOKED_AT` tokens; what pages begin and end with is often of another language."""
    start = max(0, (len(tokens) - TOKENS_LOOKED_AT) // 2)
    return tokens[start : start + TOKENS_LOOKED_AT]

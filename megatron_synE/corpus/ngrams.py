"""Word n-grams of a text as 64-bit hashes, for comparing texts whatever their case, width, punctuation and spaces.

A word is a run of letters and digits; each Chinese, Japanese or Korean character is a word of its own.
"""

import re
import unicodedata

import numpy as np
import numpy.typing as npt
import xxhash

WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af\U00020000-\U0003ffff]|[^\W_\u3040-\uffff]+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """The words of a text, in order, in compatibility form and without case."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def word_hashes(text_words: list[str]) -> npt.NDArray[np.uint64]:
    """[words] a hash for every word."""
    return np.array([xxhash.xxh3_64_intdigest(word.encode("utf-8", "replace")) for word in text_words], np.uint64)


def ngram_hashes(hashes: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.uint64]:
    """[max(words - n + 1, 0)] a hash for every run of ``n`` words, in order, from those of the words."""
    mixed = np.full(max(len(hashes) - n + 1, 0), n, np.uint64)
    for place in range(n):
        mixed = (mixed ^ hashes[place : place + len(mixed)]) * MULTIPLIER
        mixed ^= mixed >> np.uint64(29)
    return mixed

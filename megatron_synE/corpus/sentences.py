"""Sentences of Chinese and Latin script, also mixed in one text."""

import re
from collections.abc import Iterator

EAST_ASIAN = "\u3001-\u30ff\u3400-\u9fff\uf900-\ufaff\uff01-\uff9f\U00020000-\U0003ffff“”‘’…"
CHINESE_END = re.compile(rf"[。｡！？][。｡！？!?…]*|(?<=[{EAST_ASIAN}])(?:[!?]+|…+[。！？!?]*|\s*\n\s*\n)")
"""What may end a Chinese sentence: its own marks; ASCII ones, an ellipsis or a blank line behind Chinese text."""
CLOSERS = "”’」』）】》〉〕］｝)]}"
"""What closes a quotation or bracket belongs to the sentence before it."""
UNDECIDED_QUOTES = "\"'"
"""These close where the sentence has opened one."""
CONTINUATIONS = "，、；：,;:"
"""A sentence goes on where these follow: 他说“好。”，就走了。"""


class SentenceSplitter:
    """Splits a text at the ends of its Chinese sentences, and what is between them by nltk's punkt.

    Attributes:
        model: which model of punkt is used, for the record: it determines where sentences end.
    """

    def __init__(self) -> None:
        from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTokenizer  # a second to import

        try:
            self._punkt: PunktSentenceTokenizer = PunktTokenizer("english")
            self.model = "punkt_tab/english"
        except LookupError:  # it is not on this machine; it is never downloaded
            self._punkt = PunktSentenceTokenizer()
            self.model = "untrained"

    def __call__(self, text: str) -> list[str]:
        """The sentences of a text, without the white space between them; at least one where it is not blank."""
        pieces = (piece.strip() for piece in _chinese_sentences(text))
        return [sentence for piece in pieces for sentence in self._punkt.tokenize(piece) if sentence]


def _chinese_sentences(text: str) -> Iterator[str]:
    """The pieces between the ends of Chinese sentences; a text without any is one piece."""
    start = 0
    for match in CHINESE_END.finditer(text):
        end = match.end()
        if end <= start:
            continue
        while end < len(text) and (text[end] in CLOSERS or _closes_quotation(text, start, end)):
            end += 1
        if end == len(text) or text[end] not in CONTINUATIONS:
            yield text[start:end]
            start = end
    if start < len(text):
        yield text[start:]


def _closes_quotation(text: str, start: int, place: int) -> bool:
    return text[place] in UNDECIDED_QUOTES and text.count(text[place], start, place) % 2 == 1

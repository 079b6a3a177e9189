"""Adds tokens to a byte-level BPE tokenizer (Llama-3's kind) without changing what the old ones mean.

New tokens are real merges, appended after all old ones. A merge has priority over those after it, so the old merges
first do all that they did before, and new ones then join what is left: text in which no new token occurs has the ids it
had, every new token stands for a sequence of old ones (its sub-words), and all old ids, special tokens among them,
stay. New ids follow the highest old one.
"""

from __future__ import annotations

import copy
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer

from megatron_synE.progress import ProgressBar


@dataclass(frozen=True)
class Extension:
    """A tokenizer with new tokens."""

    tokenizer_json: str
    """What the new tokenizer.json holds."""
    old_vocab_size: int
    """Highest old id plus one: the first new id."""
    subwords: dict[int, list[int]]
    """New id → the old ids of its text, in order."""


class BytePairTokenizer:
    """The vocabulary and merges of a tokenizer.json, to be extended.

    Raises:
        ValueError: not a byte-level BPE tokenizer.
    """

    def __init__(self, name: str, tokenizer_json: str) -> None:
        try:
            content = json.loads(tokenizer_json)
            self._tokenizer: Any = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{name}: not a tokenizer.json ({error}); give a Hugging Face tokenizer") from None
        model = content["model"]
        if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(content.get("pre_tokenizer")):
            raise ValueError(
                f"{name}: {model.get('type')} is no byte-level BPE; only tokenizers of Llama-3's kind can be extended"
            )
        if content.get("normalizer") is not None:
            raise ValueError(f"{name}: has a normalizer, so tokens are not the text's own bytes; it cannot be extended")
        self._content = content
        self._vocab: dict[str, int] = model["vocab"]
        self._tokenizer.encode_special_tokens = True  # special tokens in raw text are text
        self._spelling = {index: token for token, index in self._vocab.items()}
        added_ids = [token["id"] for token in content.get("added_tokens") or []]
        self.vocab_size = max([*self._vocab.values(), *added_ids]) + 1
        """Highest id plus one."""

    def words(self, text: str) -> list[str]:
        """The pieces that merges never cross."""
        pieces = self._tokenizer.pre_tokenizer.pre_tokenize_str(text)
        return [text[start:end] for _, (start, end) in pieces]

    def subwords(self, words: Sequence[str]) -> list[list[str]]:
        """The old tokens of each, as the vocabulary spells them."""
        encodings = self._tokenizer.encode_batch(list(words), add_special_tokens=False)
        return [[self._spelling[index] for index in encoding.ids] for encoding in encodings]

    def merges_for(self, texts: Iterable[str]) -> list[tuple[str, str]]:
        """Merges, in order, that join the sub-words of each text from the left; what lies between becomes a token too.

        Texts that are one token already are passed over.

        Raises:
            ValueError: names texts that no merge can make one token.
        """
        merges: dict[tuple[str, str], None] = {}
        problems = []
        for text in texts:
            if len(self.words(text)) != 1:
                problems.append(f"{text!r} is cut by the tokenizer's pattern into {len(self.words(text))} words")
                continue
            first, *rest = self.subwords([text])[0]
            for part in rest:
                if first + part in self._vocab:
                    problems.append(f"{text!r} contains an old token, {first + part!r}, that is not made of its parts")
                    break
                merges[first, part] = None
                first += part
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise ValueError(f"--add: {'; '.join(problems[:3])}{more}; take these lines out")
        return list(merges)

    def learn_merges(self, texts: Sequence[str], num_new: int) -> list[tuple[str, str]]:
        """The `num_new` merges that byte pair encoding finds on top of the old sub-words of `texts`.

        Raises:
            ValueError: the texts have not so many.
        """
        counts: Counter[str] = Counter()
        with ProgressBar("counting words", len(texts), "documents") as bar:
            for text in texts:
                counts.update(self.words(text))
                bar.advance(1)
        with ProgressBar("new tokens", num_new, "merges") as bar:
            merges = _byte_pair_encoding(self.subwords(list(counts)), list(counts.values()), num_new, self._vocab, bar)
        if len(merges) < num_new:
            raise ValueError(f"--num-new {num_new}: the text has only {len(merges)} pairs that recur; give more text")
        return merges

    def extend(self, merges: Sequence[tuple[str, str]]) -> Extension:
        """The tokenizer with these merges after its own."""
        content = copy.deepcopy(self._content)
        vocab = content["model"]["vocab"]
        # Special tokens get their ids from the vocabulary; without an entry they would move behind the new tokens.
        vocab.update({token["content"]: token["id"] for token in content.get("added_tokens") or []})
        parts: dict[str, list[int]] = {}
        subwords: dict[int, list[int]] = {}
        as_text = bool(content["model"]["merges"]) and isinstance(content["model"]["merges"][0], str)
        for left, right in merges:
            token = left + right
            if token not in parts:
                vocab[token] = self.vocab_size + len(parts)
                parts[token] = [i for part in (left, right) for i in parts.get(part, [self._vocab.get(part, -1)])]
                subwords[vocab[token]] = parts[token]
            content["model"]["merges"].append(f"{left} {right}" if as_text else [left, right])
        assert all(index >= 0 for indices in subwords.values() for index in indices)
        return Extension(json.dumps(content, ensure_ascii=False, indent=2) + "\n", self.vocab_size, subwords)


def fertility(tokenizer_json: str, texts: Sequence[str]) -> float:
    """Tokens per character."""
    tokenizer: Any = Tokenizer.from_str(tokenizer_json)
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return sum(len(encoding.ids) for encoding in encodings) / max(1, sum(map(len, texts)))


def _byte_pair_encoding(
    words: list[list[str]], counts: Sequence[int], num_merges: int, taken: dict[str, int], bar: ProgressBar
) -> list[tuple[str, str]]:
    """The most frequent pairs, each joined before the next is looked for; equal counts in alphabetical order.

    A pair that spells an old token is left alone: joining it would change text without a new token. So are pairs that
    occur once. Each round touches only the words that hold its pair.
    """
    frequency: Counter[tuple[str, str]] = Counter()
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for number, word in enumerate(words):
        for pair in pairwise(word):
            frequency[pair] += counts[number]
            places[pair].add(number)
    heap = [(-count, pair) for pair, count in frequency.items()]
    heapq.heapify(heap)
    merges: list[tuple[str, str]] = []
    while heap and len(merges) < num_merges:
        negative, pair = heapq.heappop(heap)
        count = frequency[pair]
        if -negative != count or count < 2 or "".join(pair) in taken:
            if 2 <= count < -negative and "".join(pair) not in taken:
                heapq.heappush(heap, (-count, pair))  # an old entry of a pair that has become rarer
            continue
        merges.append(pair)
        bar.advance(1)
        changed = set()
        for number in places.pop(pair):
            old, new = words[number], _join(words[number], pair)
            for before in pairwise(old):
                frequency[before] -= counts[number]
            for after in pairwise(new):
                frequency[after] += counts[number]
                places[after].add(number)
                changed.add(after)
            words[number] = new
        del frequency[pair]
        for other in changed:
            heapq.heappush(heap, (-frequency[other], other))
    return merges


def _join(word: list[str], pair: tuple[str, str]) -> list[str]:
    left, right = pair
    joined: list[str] = []
    can_join = False
    for token in word:
        if can_join and token == right:
            joined[-1] = left + right
            can_join = False
        else:
            joined.append(token)
            can_join = token == left
    return joined

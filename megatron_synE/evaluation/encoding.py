"""From the harness's texts to token ids: one begin-of-text token, and where a context ends and its answer begins.

The boundary is settled as lm-evaluation-harness settles it (`TemplateLM._encode_pair`): white space at a context's end
moves to the continuation, context and continuation are encoded together, and what is beyond the tokens of the context
alone is the continuation. Where the context ends without white space ("答案：A"), a token may span the boundary; then
the model reads the context's own tokens and scores the rest. Such requests are counted.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_synE.corpus.tokenizers import CorpusTokenizer
from megatron_synE.evaluation.engine import ScoringRequest

ADD_BOS = ("auto", "yes", "no")
BATCH_TEXTS = 1024
"""Texts that are encoded at a time."""


@dataclass(frozen=True)
class BosPolicy:
    """Whether requests begin with a begin-of-text token."""

    token_id: int | None
    """None: they do not."""
    text: str
    """What the tokenizer calls it; empty where it has none."""
    reason: str

    def describe(self) -> str:
        """For the log: `one <s> (id 1) before every request: the tokenizer has it`."""
        if self.token_id is None:
            return f"no begin-of-text token: {self.reason}"
        return f"one {self.text} (id {self.token_id}) before every request: {self.reason}"


def bos_policy(tokenizer: CorpusTokenizer, add_bos: str) -> BosPolicy:
    """What `--add-bos` means for a tokenizer.

    Args:
        add_bos: one of `ADD_BOS`; `auto` adds one but where the tokenizer's files decline it (`add_bos_token: false`,
            `bos_token: null`).

    Raises:
        ValueError: the tokenizer has none, and nobody says that there is to be none. Scores without one that the model
            was trained with would be wrong silently.
    """
    assert add_bos in ADD_BOS
    if add_bos == "no":
        return BosPolicy(None, tokenizer.bos_text, "--add-bos no")
    if add_bos == "auto" and tokenizer.declines_bos:
        return BosPolicy(None, tokenizer.bos_text, "the tokenizer's files decline it")
    if tokenizer.bos_id is None:
        raise ValueError(
            f"--add-bos {add_bos}: the tokenizer {tokenizer.name} has no begin-of-text token; name it as bos_token in "
            "its tokenizer_config.json, or say no where the model was trained without one"
        )
    reason = "--add-bos yes" if add_bos == "yes" else "the tokenizer has it"
    return BosPolicy(tokenizer.bos_id, tokenizer.bos_text, reason)


class RequestEncoder:
    """A tokenizer and a BOS policy.

    Attributes:
        counts: requests by what happened at their boundary or beginning: `merged`, `moved_white_space`, `written_bos`.
    """

    def __init__(self, tokenizer: CorpusTokenizer, bos: BosPolicy) -> None:
        self.tokenizer, self.bos = tokenizer, bos
        self.counts: Counter[str] = Counter()
        self._ids = list(range(tokenizer.vocab_size))  # one int object per id: tuples of them cost 8 bytes a token

    @property
    def prefix_id(self) -> int:
        """What stands before a text that has no context: BOS, or else the end-of-text token.

        Raises:
            ValueError: the tokenizer has neither.
        """
        found = self.tokenizer.bos_id if self.tokenizer.bos_id is not None else self.tokenizer.eod_id
        if found is None:
            raise ValueError(
                f"tokenizer {self.tokenizer.name}: a task scores a text without a context, which needs a begin-of-text "
                "or end-of-text token before it; name one in its tokenizer_config.json"
            )
        return found

    def encode(self, texts: Sequence[str], *, with_bos: bool = True) -> list[tuple[int, ...]]:
        """Ids of each text, after one BOS where the policy says so.

        A BOS that a text itself begins with, spelled out, is that one BOS.
        """
        spelled = [with_bos and self._begins_with_bos(text) for text in texts]
        bare = [text.removeprefix(self.bos.text) if own else text for text, own in zip(texts, spelled, strict=True)]
        bos = () if self.bos.token_id is None or not with_bos else (self.bos.token_id,)
        written = () if self.tokenizer.bos_id is None else (self.tokenizer.bos_id,)
        ids = self._encode_bare(bare)
        return [(written if own else bos) + own_ids for own_ids, own in zip(ids, spelled, strict=True)]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[ScoringRequest]:
        """Context and continuation of each pair as token ids. Equal contexts are encoded once and are one object.

        Raises:
            ValueError: a continuation is empty.
        """
        found: list[ScoringRequest] = []
        contexts: dict[str, tuple[int, ...]] = {}
        for start in range(0, len(pairs), BATCH_TEXTS):
            split = [split_pair(context, continuation) for context, continuation in pairs[start : start + BATCH_TEXTS]]
            new = list(dict.fromkeys(context for context, _ in split if context and context not in contexts))
            contexts.update(zip(new, self.encode(new), strict=True))
            with_context = [context + continuation for context, continuation in split if context]
            wholes = iter(self.encode(with_context))
            for (given, _), (context, continuation) in zip(pairs[start : start + BATCH_TEXTS], split, strict=True):
                self.counts["moved_white_space"] += given != context
                self.counts["written_bos"] += self._begins_with_bos(given)
                if not continuation:
                    raise ValueError("a task asks for the likelihood of an empty text; correct its doc_to_choice")
                if context:
                    found.append(self._cut(contexts[context], next(wholes), continuation))
                else:
                    found.append(self._without_context(continuation))
        return found

    def encode_prompts(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """Ids of texts that are to be continued.

        Raises:
            ValueError: one has no token, and the tokenizer none to begin it with.
        """
        self.counts["written_bos"] += sum(map(self._begins_with_bos, prompts))
        return [ids or (self.prefix_id,) for ids in self.encode(prompts)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        kept = [number for number in ids if number not in self.tokenizer.special_ids]
        return self.tokenizer.decode(np.asarray(kept, dtype=np.int64))

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {"tokenizer": self.tokenizer.describe(), "bos": self.bos.describe(), "bos_id": self.bos.token_id}

    def notes(self) -> Iterator[str]:
        """What is to be told of the requests that were encoded."""
        texts = {
            "merged": "have a token that spans the end of the context and the answer's beginning",
            "moved_white_space": "have a context that ends with white space, which counts to the answer",
            "written_bos": "have a begin-of-text token written out in their text; it stands, and no other is added",
        }
        for name, text in texts.items():
            if self.counts[name]:
                yield f"{self.counts[name]:,} requests {text}"

    def _begins_with_bos(self, text: str) -> bool:
        return bool(self.bos.text) and text.startswith(self.bos.text)

    def _cut(self, context: tuple[int, ...], whole: tuple[int, ...], continuation: str) -> ScoringRequest:
        if whole[: len(context)] != context:
            self.counts["merged"] += 1
        rest = whole[len(context) :]
        if not rest:  # all of the continuation went into the context's last tokens
            (rest,) = self.encode([continuation], with_bos=False)
        return ScoringRequest(context, rest)

    def _without_context(self, continuation: str) -> ScoringRequest:
        (ids,) = self.encode([continuation], with_bos=False)
        return ScoringRequest((self.prefix_id,), ids)

    def _encode_bare(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for start in range(0, len(texts), BATCH_TEXTS):
            tokens, offsets = self.tokenizer.encode_batch(texts[start : start + BATCH_TEXTS])
            ids = [self._ids[number] for number in tokens.tolist()]
            found += [tuple(ids[first:end]) for first, end in itertools.pairwise(offsets)]
        return found


def split_pair(context: str, continuation: str) -> tuple[str, str]:
    """Context and continuation with the context's white space at its end moved."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation

"""Which kind of question a snippet is to become.

A discipline is a prompt file. It names the topics of web pages that it takes; where several disciplines take one topic,
the keywords of their files decide, and a snippet with none of these words is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_synE.config.snippets import SnippetSource
from megatron_synE.corpus.ngrams import words
from megatron_synE.corpus.topics import load_topic_classifier
from megatron_synE.synthesis.prompts import Prompt, Prompts


class DisciplineFilter:
    """Gives snippets of one source their disciplines, or None to those that have none.

    Args:
        source: says where topics come from.
        prompts: all that there are.

    Raises:
        ValueError: a discipline has no prompt in the source's language, the classifier cannot be loaded, or a topic
            that it knows leads to no discipline at all.
    """

    def __init__(self, source: SnippetSource, prompts: Prompts) -> None:
        self.source, self.prompts = source, prompts
        self._own = [prompt for (_, language), prompt in sorted(prompts.items()) if language == source.language]
        self._kinds = {prompt.kind for prompt in self._own}
        if source.discipline is not None:
            prompts.find(source.discipline, source.language)
        self._classifier = load_topic_classifier(Path(source.classifier)) if source.classifier is not None else None
        if self._classifier is not None and not any(map(self._candidates, self._classifier.names)):
            raise ValueError(
                f"{source.classifier}: none of its labels ({', '.join(self._classifier.names)}) is a discipline, or a "
                f"topic of a prompt file, in language {source.language}"
            )

    def __call__(self, texts: Sequence[str], topics: Sequence[str | None]) -> list[str | None]:
        """The discipline of each text.

        Args:
            topics: of the documents that the texts are cut from; None where there is none.
        """
        if self.source.discipline is not None:
            return [self.source.discipline] * len(texts)
        found = self._classified(texts) if self._classifier is not None else topics
        return [self._decide(text, topic) for text, topic in zip(texts, found, strict=True)]

    def _classified(self, texts: Sequence[str]) -> list[str | None]:
        assert self._classifier is not None
        probabilities = self._classifier.probabilities(list(texts))
        best = probabilities.argmax(axis=1)
        sure = probabilities[np.arange(len(best)), best] >= self.source.min_probability
        names = self._classifier.names
        return [names[number] if is_sure else None for number, is_sure in zip(best, sure, strict=True)]

    def _candidates(self, topic: str) -> list[Prompt]:
        if topic in self._kinds:
            return [self.prompts[topic, self.source.language]]
        return [prompt for prompt in self._own if topic in prompt.fields.topics]

    def _decide(self, text: str, topic: str | None) -> str | None:
        candidates = self._candidates(topic) if topic is not None else []
        if len(candidates) <= 1:
            return candidates[0].kind if candidates else None
        text_words, lowered = set(words(text)), text.casefold()
        hits = [sum(_occurs(word, text_words, lowered) for word in prompt.fields.keywords) for prompt in candidates]
        return candidates[int(np.argmax(hits))].kind if any(hits) else None


def _occurs(keyword: str, text_words: set[str], lowered: str) -> bool:
    """A Latin keyword is a whole word, or its plural; a Chinese one stands anywhere, as words have no spaces there."""
    keyword = keyword.casefold()
    if keyword.isascii():
        return keyword in text_words or f"{keyword}s" in text_words
    return keyword in lowered

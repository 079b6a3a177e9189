"""The tasks that prompt files describe: what to send about a snippet, and what becomes of the answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_synE.config.answers import AnswersConfig
from megatron_synE.synthesis import checks
from megatron_synE.synthesis.parse import THOUGHT, parse_sections
from megatron_synE.synthesis.prompts import Prompt, Prompts
from megatron_synE.synthesis.task import Accepted, ContentError, Rejected, Snippet, Task

CHECKS_VERSION = 1
"""Counted up when checks decide otherwise: answers are then judged, and asked for, anew."""
REFUSAL_CHARS = 200
"""An answer without the form that was asked for, with such words so near to its beginning, is a refusal."""


@dataclass(frozen=True)
class PromptTask:
    """A prompt file and the checks of its answers."""

    prompt: Prompt
    answers: AnswersConfig

    @property
    def kind(self) -> str:
        """``physics.en``: the prompt's kind and language."""
        return f"{self.prompt.kind}.{self.prompt.language}"

    @property
    def fingerprint(self) -> str:
        """Of the prompt file and of all that decides about an answer."""
        relevant = {} if self.prompt.fields.task == "label" else asdict(self.answers)
        content = [self.prompt.fingerprint, CHECKS_VERSION, relevant]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def messages(self, snippet: Snippet) -> list[dict[str, str]]:
        """The chat; the second pass over a snippet lists labels in the opposite order."""
        second_pass = snippet.source.get("pass", 1) % 2 == 0
        return self.prompt.messages(snippet.text, snippet.id, reverse_labels=second_pass)

    def judge(self, snippet: Snippet, answer: str, finish_reason: str) -> Accepted | Rejected:
        """Parse and check; see `Task.judge`."""
        if finish_reason == "content_filter":
            return Rejected("filtered by the server")
        if finish_reason == "length":
            raise ContentError("cut by length")
        try:
            sections = parse_sections(answer, self.prompt.fields.sections)
        except ContentError:
            if checks.is_refusal(THOUGHT.sub("", answer, count=1).strip(), within_chars=REFUSAL_CHARS):
                return Rejected("refused")
            raise
        reason = self._fault(sections, snippet)
        return Rejected(reason) if reason is not None else Accepted(self._document(sections))

    def _fault(self, sections: dict[str, str], snippet: Snippet) -> str | None:
        fields = self.prompt.fields
        if fields.task == "label":
            if sections["topic"] not in fields.labels:
                raise ContentError("no such label")
            return None
        if any(checks.is_refusal(sections[name], within_chars=1) for name in ("problem", "solution")):
            return "refused"
        return (
            checks.check_lengths(sections, self.answers)
            or (checks.check_code(sections) if fields.task == "code" else None)
            or checks.check_final_answer(sections, fields.final_answer)
            or checks.check_text(sections, self.prompt.language, snippet.text, self.answers)
        )

    def _document(self, sections: dict[str, str]) -> dict[str, Any]:
        """What the journal keeps: the sections and how they become a text, for what is done with them later."""
        fields = self.prompt.fields
        return {
            "kind": fields.kind,
            "language": fields.language,
            "task": fields.task,
            "prompt_version": fields.version,
            "prompt_fingerprint": self.prompt.fingerprint,
            "text": fields.text,
            "sections": sections,
        }


class PromptTasks:
    """The tasks of a job: the prompts, by the discipline and language of a snippet."""

    def __init__(self, prompts: Prompts, answers: AnswersConfig) -> None:
        self._tasks = {key: PromptTask(prompt, answers) for key, prompt in sorted(prompts.items())}

    def kinds(self) -> Sequence[Task]:
        """All of them."""
        return list(self._tasks.values())

    def of(self, snippet: Snippet) -> Task:
        """That of the snippet's discipline and language.

        Raises:
            ValueError: there is none.
        """
        task = self._tasks.get((snippet.discipline or "", snippet.language or ""))
        if task is None:
            raise ValueError(
                f"snippet {snippet.id}: no prompt of kind {snippet.discipline!r} in language {snippet.language!r}; was "
                "its file removed from the folders of `prompts`?"
            )
        return task

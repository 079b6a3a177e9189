"""Where the engine and the tasks meet: the engine sends, pays and journals; a task knows prompts and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Snippet:
    """One row of ``{job}/snippets/*.jsonl``."""

    id: str
    """Names corpus, document and span; unique in the job."""
    text: str
    source: dict[str, Any] = field(default_factory=dict)
    """``corpus``, ``document``, ``begin``, ``end`` and perhaps ``document_id``."""
    discipline: str | None = None
    """Which kind of question it is to become; None where the job has no disciplines."""
    language: str | None = None
    """``en`` or ``zh``."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """An answer to keep."""

    document: dict[str, Any]
    """JSON-able; the journal keeps it as it is."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A sound answer that is not wanted: another try would not be asked for."""

    reason: str
    """A short name; equal faults have equal reasons, so that they can be counted."""


class ContentError(ValueError):
    """An answer that is no use: unparsable, too short, cut by length. Another seed may do better.

    The engine asks again, up to ``pace.attempts`` answers in all; then the snippet has failed. The message is the
    reason in the journal: a short name, equal for equal faults.
    """


class Task(Protocol):
    """One kind of prompt, and what counts as an answer to it. Without state: equal arguments give equal results."""

    @property
    def kind(self) -> str:
        """Name of the prompt, as in prices and in the ledger."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of all that ``messages`` and ``judge`` depend on beside their arguments: prompt file and checks."""
        ...

    def messages(self, snippet: Snippet) -> list[dict[str, str]]:
        """The chat to send: ``[{"role": …, "content": …}, …]``."""
        ...

    def judge(self, snippet: Snippet, answer: str, finish_reason: str) -> Accepted | Rejected:
        """What becomes of an answer. Nothing else goes on meanwhile, so it waits for nothing.

        Args:
            answer: text of the assistant's message, possibly empty.
            finish_reason: as the server gives it: ``stop``, ``length``, ``content_filter`` …

        Raises:
            ContentError: it is no use.
        """
        ...


class Tasks(Protocol):
    """The tasks of a job."""

    def kinds(self) -> Sequence[Task]:
        """All of them, each with a kind of its own."""
        ...

    def of(self, snippet: Snippet) -> Task:
        """The one that a snippet is given to, for instance by its discipline; equal for equal snippets."""
        ...

"""Prompt files: what is asked of a model, in which form it has to answer, and how the answer becomes a document.

A file is one kind of question in one language. Those shipped are in ``prompts/``; they were written for this project,
as those of the paper (arXiv 2407.18743) were never published. A file in a folder of the user's adds a kind, or takes
the place of the shipped one of the same kind and language.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from megatron_synE.config.fields import misplaced, missing, read_yaml, wrong_values

SHIPPED = Path(__file__).parent / "prompts"
SUFFIXES = (".yaml", ".yml")
NAME = re.compile(r"[a-z][a-z0-9_]*")
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class PromptFields:
    """What a prompt file holds."""

    kind: str
    """Name of the kind: a discipline, ``code``, ``topic_label``. Lower-case letters, digits and underscores."""
    language: str
    """Language of the snippets it takes and of the answers it wants: ``en``, ``zh``."""
    version: int
    """Counted up at each change that matters; goes into every document's metadata."""
    task: Literal["question_answer", "code", "label"]
    """What is made of an answer: a problem with its solution, the same as a program, or a label of the snippet."""
    title: str
    """For people."""
    user: str
    """The user's message. ``{{snippet}}`` is replaced by the snippet, ``{{examples}}`` and ``{{labels}}`` by those."""
    sections: dict[str, str]
    """Section → its heading in the answer, in the order in which they come. The user's message states each heading."""
    system: str = ""
    """The system's message; empty for none."""
    text: str = ""
    """The document, as plain text: ``{{section}}`` is replaced by a section. Labels have none."""
    final_answer: Literal["none", "section", "boxed"] = "none"
    """Where the answer's result stands: nowhere, in a section ``answer``, or as ``\\boxed{…}`` in the solution."""
    topics: list[str] = field(default_factory=list)
    """Topics of web pages whose snippets may become this kind."""
    keywords: list[str] = field(default_factory=list)
    """Words that tell this kind from others that take the same topics."""
    labels: dict[str, str] = field(default_factory=dict)
    """Label → what it means."""
    examples: list[str] = field(default_factory=list)
    """Worked answers, each in the form of an answer."""
    num_examples: int = 0
    """How many of them a prompt shows; which ones, the snippet decides."""


WANTED_SECTIONS: dict[str, set[str]] = {
    "question_answer": {"problem", "solution"},
    "code": {"problem", "solution", "examples"},
    "label": {"topic"},
}


@dataclass(frozen=True)
class Prompt:
    """A prompt file that was found good."""

    fields: PromptFields
    fingerprint: str
    """Hash of the file's bytes."""
    path: Path

    @property
    def kind(self) -> str:
        return self.fields.kind

    @property
    def language(self) -> str:
        return self.fields.language

    def messages(self, snippet_text: str, snippet_id: str, *, reverse_labels: bool = False) -> list[dict[str, str]]:
        """The chat to send about a snippet.

        Args:
            reverse_labels: list the labels in the opposite order, for a second opinion that the order did not give.
        """
        labels = [f"{name}: {meaning}" for name, meaning in self.fields.labels.items()]
        values = {
            "snippet": snippet_text,
            "labels": "\n".join(reversed(labels) if reverse_labels else labels),
            "examples": "\n\n".join(example.strip() for example in self._examples(snippet_id)),
        }
        chat = [{"role": "user", "content": fill(self.fields.user, values).strip()}]
        if self.fields.system:
            chat.insert(0, {"role": "system", "content": self.fields.system.strip()})
        return chat

    def _examples(self, snippet_id: str) -> Iterator[str]:
        """As many as the file says, others for other snippets, in an order of their own."""

        def place(number: int) -> bytes:
            return hashlib.sha256(f"{number} {snippet_id}".encode()).digest()

        for number in sorted(range(len(self.fields.examples)), key=place)[: self.fields.num_examples]:
            yield self.fields.examples[number]


class Prompts(Mapping[tuple[str, str], Prompt]):
    """The prompts of a job: (kind, language) → prompt."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = {(prompt.kind, prompt.language): prompt for prompt in prompts}

    def __getitem__(self, key: tuple[str, str]) -> Prompt:
        return self._prompts[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._prompts)

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def kinds(self) -> list[str]:
        """All kinds, sorted."""
        return sorted({kind for kind, _ in self})

    def find(self, kind: str, language: str) -> Prompt:
        """The prompt of a kind in a language.

        Raises:
            ValueError: there is none; names what there is.
        """
        if (kind, language) in self:
            return self[kind, language]
        if kind not in self.kinds:
            known = ", ".join(self.kinds)
            raise ValueError(f"no prompt of kind {kind!r}, only {known}; add a file to a folder of `prompts`")
        languages = sorted(own_language for own_kind, own_language in self if own_kind == kind)
        raise ValueError(f"no prompt of kind {kind!r} in language {language!r}, only in {', '.join(languages)}")


def load_prompts(folders: Sequence[str | Path] = ()) -> Prompts:
    """The shipped prompts and those of the user's folders; a later one takes an earlier one's place.

    Raises:
        ValueError: a folder without prompts, a file that is none, or two in one folder of one kind and language.
    """
    found: list[Prompt] = []
    for folder in [SHIPPED, *map(Path, folders)]:
        paths = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
        if not paths:
            raise ValueError(f"{folder}: no prompt files; their names end in .yaml")
        seen: dict[tuple[str, str], Path] = {}
        for path in paths:
            prompt = read_prompt(path)
            if other := seen.get((prompt.kind, prompt.language)):
                raise ValueError(f"{path}: kind {prompt.kind} in language {prompt.language} is in {other} already")
            seen[prompt.kind, prompt.language] = path
            found.append(prompt)
    return Prompts(found)


def read_prompt(path: Path) -> Prompt:
    """Read and check one file.

    Raises:
        ValueError: it cannot be read, lacks a field, has an unknown one, or contradicts itself; names file and field.
    """
    try:
        data = path.read_bytes()
        content = read_yaml(data.decode("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a prompt file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a prompt file; it holds no fields")
    problems = misplaced(content, PromptFields) + wrong_values(content, PromptFields)
    problems += missing(content, PromptFields)
    if not problems:
        known = {name.name: content[name.name] for name in fields(PromptFields) if name.name in content}
        parsed = PromptFields(**known)
        problems = _problems(parsed)
    if problems:
        raise ValueError("\n".join(f"{path}: {problem}" for problem in problems))
    return Prompt(parsed, hashlib.sha256(data).hexdigest()[:32], path)


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with each ``{{name}}`` replaced; what is put in is not looked at again."""
    return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)


def _problems(prompt: PromptFields) -> list[str]:
    found = [
        f"{name}: {value!r} is not made of lower-case letters, digits and underscores"
        for name, value in (("kind", prompt.kind), ("language", prompt.language))
        if not NAME.fullmatch(value)
    ]
    if prompt.version < 1:
        found.append(f"version: {prompt.version}; count from 1")
    missing = WANTED_SECTIONS[prompt.task] - set(prompt.sections)
    found += [f"sections: {name} is missing, which task {prompt.task} needs" for name in sorted(missing)]
    found += _heading_problems(prompt)
    found += _placeholder_problems(prompt)
    if prompt.final_answer == "section" and "answer" not in prompt.sections:
        found.append("final_answer: is section, but sections has no answer")
    if (prompt.task == "label") != bool(prompt.labels):
        found.append("labels: are for task label, which needs them")
    if not 0 <= prompt.num_examples <= len(prompt.examples):
        found.append(f"num_examples: {prompt.num_examples}, but there are {len(prompt.examples)} examples")
    return found


def _heading_problems(prompt: PromptFields) -> Iterator[str]:
    headings = list(prompt.sections.values())
    if len(set(headings)) < len(headings):
        yield "sections: two have the same heading"
    for name, heading in prompt.sections.items():
        if not heading.strip() or heading != heading.strip() or "\n" in heading:
            yield f"sections.{name}: the heading {heading!r} is not one line without spaces around it"
        elif not any(line.startswith(heading) for line in prompt.user.splitlines()):
            yield f"user: has no line with the heading {heading!r} of section {name}, so a model cannot know it"


def _placeholder_problems(prompt: PromptFields) -> Iterator[str]:
    in_user, in_text = (set(PLACEHOLDER.findall(template)) for template in (prompt.user, prompt.text))
    wanted = {"snippet"} | ({"labels"} if prompt.labels else set()) | ({"examples"} if prompt.num_examples else set())
    for name in sorted(wanted - in_user):
        yield f"user: {{{{{name}}}}} is missing, where the {name} would stand"
    for name in sorted(in_user - wanted):
        yield f"user: {{{{{name}}}}} stands for nothing; it may hold {', '.join(sorted(wanted))}"
    if prompt.task == "label":
        return
    for name in sorted(in_text - set(prompt.sections)):
        yield f"text: {{{{{name}}}}} is no section; they are {', '.join(prompt.sections)}"
    for name in sorted({"problem", "solution"} - in_text):
        yield f"text: {{{{{name}}}}} is missing"

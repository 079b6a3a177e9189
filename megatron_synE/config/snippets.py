"""Which pieces of which texts questions are made from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SnippetSource:
    """Texts of one origin: files, or a tokenised corpus."""

    inputs: list[str] = field(default_factory=list)
    """JSON lines (plain, .gz, .zst) or Parquet: files, directories or globs. Give these, or `prefix`."""
    prefix: str | None = None
    """A tokenised corpus, without .bin/.idx."""
    tokenizer: str | None = None
    """Counts the tokens of a snippet: directory or file of a tokenizer. None: the corpus's own."""
    text_key: str = "text"
    """JSON key of a document's text."""
    id_key: str | None = None
    """JSON key of a document's own id, which is kept as `document_id`."""
    language: str = "en"
    """Language of the texts: that of the prompts they are given to."""
    discipline: str | None = None
    """The kind of question that all snippets become. None: as the topic, of annotation or classifier, says."""
    classifier: str | None = None
    """Directory of a topic classifier that looks at each snippet. Its labels are disciplines, or topics that prompt
    files name. None: the corpus's annotation `topic`."""
    min_probability: float = 0.5
    """A snippet about which the classifier is less sure is left out."""

    def problems(self, where: str) -> list[str]:
        """Contradictions among these fields."""
        found: list[str] = []
        if bool(self.inputs) == (self.prefix is not None):
            found.append(f"{where}: give inputs (files) or prefix (a tokenised corpus), and not both")
        if "-" in self.inputs:
            found.append(f"{where}.inputs: standard input cannot be read by every start of a job; name files")
        if self.inputs and self.tokenizer is None:
            found.append(f"{where}.tokenizer: is missing; it counts the tokens of a snippet")
        if self.discipline is not None and self.classifier is not None:
            found.append(f"{where}: give discipline (one for all) or classifier, and not both")
        if self.inputs and self.discipline is None and self.classifier is None:
            found.append(f"{where}: files have no topics; give discipline (one for all) or classifier")
        if not 0 <= self.min_probability <= 1:
            found.append(f"{where}.min_probability: {self.min_probability} is not between 0 and 1")
        return found


@dataclass(frozen=True)
class SnippetsConfig:
    """How documents are cut."""

    sources: dict[str, SnippetSource] = field(default_factory=dict)
    """Name → texts; the name stands in every snippet's id."""
    min_tokens: int = 64
    """Shortest snippet."""
    max_tokens: int = 512
    """Longest snippet."""
    max_per_document: int = 1
    """Most snippets of one document; which ones, the seed decides."""
    max_snippets: int | None = None
    """Stop after so many; None takes all."""
    passes: int = 1
    """How often each snippet is asked about; 2 for topic labels whose agreement is to be known."""
    seed: int = 0
    """Of the choice within a document."""
    shard_rows: int = 4096
    """Snippets per file, the unit in which work is shared and finished."""

    def problems(self) -> list[str]:
        """Contradictions among these fields."""
        where = "snippets"
        found = [] if self.sources else [f"{where}.sources: is empty; name texts to make questions from"]
        for name, source in self.sources.items():
            if not name or any(character in name for character in ":/ "):
                found.append(f"{where}.sources: {name!r} is no name; use letters, digits, - and _")
            found += source.problems(f"{where}.sources.{name}")
        if not 1 <= self.min_tokens <= self.max_tokens:
            found.append(f"{where}: min_tokens {self.min_tokens} to max_tokens {self.max_tokens} holds no length")
        for field_name in ("max_per_document", "passes", "shard_rows"):
            if getattr(self, field_name) < 1:
                found.append(f"{where}.{field_name}: {getattr(self, field_name)}; must be at least 1")
        if self.max_snippets is not None and self.max_snippets < 1:
            found.append(f"{where}.max_snippets: {self.max_snippets}; must be at least 1, or null for all")
        return found

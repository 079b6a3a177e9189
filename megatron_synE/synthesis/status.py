"""The ledger of a job: what has become of every snippet, which tokens were paid for, and who is at it."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from megatron_synE.config.synthesis import PricesConfig
from megatron_synE.synthesis.claims import read_owner
from megatron_synE.synthesis.folder import JobFolder, SnippetShards
from megatron_synE.synthesis.results import Results
from megatron_synE.synthesis.tally import OUTCOMES, Tallies

COLUMNS = ("kind", *OUTCOMES, "answers", "prompt tokens", "completion tokens", "cost")


@dataclass(frozen=True)
class JobStatus:
    """A job at a moment."""

    num_snippets: int
    num_shards: int
    num_finished: int
    rows: Tallies
    """Snippets that have ended, and all answers to them; answers to snippets that have not ended are in it too."""
    former: Tallies
    """Answers to former prompts or settings."""
    owners: dict[int, str]
    """Shard → the process that has it, or had it when it was killed."""
    prices: PricesConfig

    @property
    def to_do(self) -> int:
        """Snippets that have not ended."""
        return self.num_snippets - self.rows.total().settled

    def text(self) -> str:
        """For people."""
        total = self.rows.total()
        table = [COLUMNS, *(self._line(kind) for kind in sorted(self.rows)), self._line(None)]
        widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
        lines = []
        for name, *counts in table:
            cells = [text.rjust(width) for text, width in zip(counts, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *cells]))
        for reason, count in total.reasons.most_common():
            lines.append(f"{count:,} {reason}")
        former = self.former.total()
        if former.counts["answers"]:
            cost = f"{former.tokens:,} tokens, {former.cost(self.prices):.2f} {self.prices.currency}"
            lines.append(f"{former.counts['answers']:,} answers to former prompts, {cost}")
        ended = " + ".join(f"{total.counts[outcome]:,} {outcome}" for outcome in OUTCOMES)
        lines.append(f"{self.num_snippets:,} snippets = {ended} + {self.to_do:,} to do")
        lines.append(f"{self.num_finished:,} of {self.num_shards:,} shards finished")
        lines += [f"shard {number}: {owner}" for number, owner in sorted(self.owners.items())]
        return "\n".join(lines)

    def json(self) -> str:
        """For programs."""
        content = {
            "snippets": self.num_snippets, "to_do": self.to_do, "shards": self.num_shards,
            "finished_shards": self.num_finished, "kinds": self.rows.to_json(), "former": self.former.to_json(),
            "cost": self.rows.total().cost(self.prices) + self.former.total().cost(self.prices),
            "currency": self.prices.currency, "owners": {str(number): owner for number, owner in self.owners.items()},
        }  # fmt: skip
        return orjson.dumps(content).decode()

    def _line(self, kind: str | None) -> tuple[str, ...]:
        tally = self.rows[kind] if kind is not None else self.rows.total()
        counts = [*OUTCOMES, "answers", "prompt_tokens", "completion_tokens"]
        cost = f"{tally.cost(self.prices):.2f} {self.prices.currency}"
        return (kind or "all", *(f"{tally.counts[name]:,}" for name in counts), cost)


def job_status(folder: JobFolder, prices: PricesConfig) -> JobStatus:
    """Look at a job, which may be under way; nothing is written.

    Raises:
        ValueError: the job is not prepared yet, or damaged.
    """
    try:
        shards = SnippetShards.open(folder)
    except FileNotFoundError:
        raise ValueError(f"{folder.root}: holds no snippets yet; start the job with `synthesize.py run`") from None
    results = Results(folder, shards)
    results.refresh(exact=True)
    rows = Tallies()
    rows.add(results.tallies)
    rows.add(results.in_progress_but(()))
    owners = {int(path.stem): read_owner(path) for path in folder.claim(0).parent.glob("*.lock")}
    return JobStatus(
        shards.num_snippets, shards.num_shards, len(results.finished), rows, results.former,
        {number: str(owner) for number, owner in owners.items() if owner is not None}, prices,
    )  # fmt: skip

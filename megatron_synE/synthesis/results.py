"""What a job has come to, over all of its processes: finished shards, shards in progress, former rows."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from megatron_synE.config.json_fields import JsonFields
from megatron_synE.config.synthesis import BudgetConfig, PricesConfig
from megatron_synE.synthesis.claims import read_owner
from megatron_synE.synthesis.finished import FinishedShard, former_tallies, journal_tallies
from megatron_synE.synthesis.folder import JobFolder, SnippetShards
from megatron_synE.synthesis.tally import Tallies


@dataclass
class Results:
    """A look at a job's folder; ``refresh`` looks again and reads only what is new."""

    folder: JobFolder
    shards: SnippetShards
    finished: dict[int, FinishedShard] = field(default_factory=dict)
    tallies: Tallies = field(default_factory=Tallies)
    """Of the rows of finished shards."""
    in_progress: dict[int, Tallies] = field(default_factory=dict)
    """Of the answers in the journal of each shard that is not finished."""
    former: Tallies = field(default_factory=Tallies)
    """Of answers to former prompts or settings, which serve no more."""
    _former_names: frozenset[str] = frozenset()
    _journals: dict[int, tuple[int, Tallies]] = field(default_factory=dict)

    def refresh(self, *, exact: bool = False) -> None:
        """Look again.

        Args:
            exact: read the journals of living processes too, instead of what they said a few seconds ago.

        Raises:
            ValueError: sums of a shard are damaged.
        """
        for path in sorted((self.folder.root / "results").glob("*.json")):
            self.look_at(int(path.stem))
        numbers = [int(path.stem) for path in sorted((self.folder.root / "journal").glob("*.jsonl"))]
        self.in_progress = {number: self._read(number, exact) for number in numbers if number not in self.finished}
        names = frozenset(path.name for path in self.folder.superseded.glob("*"))
        if names != self._former_names:
            self.former, self._former_names = Tallies(), names
            for number in sorted({int(name.partition(".")[0]) for name in names}):
                self.former.add(former_tallies(self.folder, number))

    def look_at(self, number: int) -> None:
        """Whether a shard is finished by now."""
        if number not in self.finished and (found := FinishedShard.read(self.folder, number)) is not None:
            self.finished[number] = found
            self.tallies.add(found.tallies)
            self.in_progress.pop(number, None)

    def in_progress_but(self, own: Container[int]) -> Tallies:
        """Sums over the shards in progress, but those that the caller counts itself."""
        sums = Tallies()
        for number, tallies in self.in_progress.items():
            if number not in own:
                sums.add(tallies)
        return sums

    def forget(self, number: int) -> None:
        """A shard that was finished is in progress again."""
        found = self.finished.pop(number, None)
        if found is not None:
            self.tallies.subtract(found.tallies)

    def _read(self, number: int, exact: bool) -> Tallies:
        owner = None if exact else read_owner(self.folder.claim(number))
        if owner is not None and owner.paid:
            return Tallies.from_json(JsonFields(owner.paid, f"{self.folder.claim(number)}: ", "start again"))
        try:
            num_bytes = self.folder.journal(number).stat().st_size
            known = self._journals.get(number)
            if known is None or known[0] != num_bytes:
                known = self._journals[number] = (num_bytes, journal_tallies(self.folder.journal(number)))
        except FileNotFoundError:  # finished a moment ago
            return Tallies()
        return known[1]


class Budget:
    """Whether a job goes on."""

    def __init__(self, budget: BudgetConfig, prices: PricesConfig) -> None:
        self._budget, self._prices = budget, prices
        self.is_limited = budget != BudgetConfig()
        """Whether there is any limit."""

    def used(self, rows: Tallies, paid: Tallies, num_in_flight: int = 0) -> tuple[float, str]:
        """The largest share that is used of any limit, those in flight taken to cost the mean; and that limit's name.

        Args:
            rows: snippets that have ended.
            paid: all answers.
        """
        sums, costs = rows.total(), paid.total()
        budget, answers = self._budget, max(costs.counts["answers"], 1)
        ahead = 1 + num_in_flight / answers
        shares = [(0.0, "")]
        if budget.cost is not None:
            shares.append((costs.cost(self._prices) * ahead / budget.cost, f"{budget.cost:g} {self._prices.currency}"))
        if budget.tokens is not None:
            shares.append((costs.tokens * ahead / budget.tokens, f"{budget.tokens:,} tokens"))
        if budget.accepted is not None:  # each of those in flight may be accepted
            share = (sums.counts["accepted"] + num_in_flight) / budget.accepted
            shares.append((share, f"{budget.accepted:,} accepted snippets"))
        if budget.accepted_tokens is not None:
            share = sums.counts["accepted_tokens"] * ahead / budget.accepted_tokens
            shares.append((share, f"{budget.accepted_tokens:,} accepted tokens"))
        return max(shares)

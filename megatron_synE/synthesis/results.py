"""What a job has come to, over all of its processes: finished shards, shards in progress, former rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from megatron_synE.config.json_fields import JsonFields
from megatron_synE.config.synthesis import BudgetConfig, PricesConfig
from megatron_synE.synthesis.claims import read_owner
from megatron_synE.synthesis.folder import JobFolder, SnippetShards
from megatron_synE.synthesis.journal import FinishedShard, former_tallies, journal_tallies
from megatron_synE.synthesis.tally import Tallies


@dataclass
class Results:
    """A look at a job's folder; ``refresh`` looks again and reads only what is new."""

    folder: JobFolder
    shards: SnippetShards
    finished: dict[int, FinishedShard] = field(default_factory=dict)
    tallies: Tallies = field(default_factory=Tallies)
    """Of the rows of finished shards."""
    in_progress: Tallies = field(default_factory=Tallies)
    """Of the answers in journals, but those of `own`."""
    former: Tallies = field(default_factory=Tallies)
    """Of answers to former prompts or settings, which serve no more."""
    _former_names: frozenset[str] = frozenset()
    _journals: dict[int, tuple[int, Tallies]] = field(default_factory=dict)

    def refresh(self, own: Iterable[int] = (), *, exact: bool = False) -> None:
        """Look again.

        Args:
            own: shards that the caller counts itself.
            exact: read the journals of other processes too, instead of what they said a few seconds ago.

        Raises:
            ValueError: sums of a shard are damaged.
        """
        for path in sorted((self.folder.root / "results").glob("*.json")):
            number = int(path.stem)
            if number not in self.finished and (found := FinishedShard.read(self.folder, number)) is not None:
                self.finished[number] = found
                self.tallies.add(found.tallies)
        in_progress, skipped = Tallies(), {*own, *self.finished}
        for path in sorted((self.folder.root / "journal").glob("*.jsonl")):
            number = int(path.stem)
            if number not in skipped:
                in_progress.add(self._others(number, exact))
        self.in_progress = in_progress
        names = frozenset(path.name for path in self.folder.superseded.glob("*"))
        if names != self._former_names:
            self.former, self._former_names = Tallies(), names
            for number in sorted({int(name.partition(".")[0]) for name in names}):
                self.former.add(former_tallies(self.folder, number))

    def forget(self, number: int) -> None:
        """A finished shard is in progress again."""
        found = self.finished.pop(number)
        self.tallies.subtract(found.tallies)

    def _others(self, number: int, exact: bool) -> Tallies:
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
        if budget.accepted is not None:
            shares.append((sums.counts["accepted"] * ahead / budget.accepted, f"{budget.accepted:,} accepted"))
        if budget.accepted_tokens is not None:
            share = sums.counts["accepted_tokens"] * ahead / budget.accepted_tokens
            shares.append((share, f"{budget.accepted_tokens:,} accepted tokens"))
        return max(shares)

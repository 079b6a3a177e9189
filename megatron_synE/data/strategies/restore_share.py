"""Share of the mixture goes back to sources that are forgotten, by the rule of `RestoreConfig`.

With the weights w in force and the stage's own p, for the sources F that share goes back to and the givers G:

    w'_i = max(w_i, min(cap, factor·w_i + step))  for i in F
    w'_j = max(s·w_j, min(w_j, floor·p_j))        for j in G, with the one scale s that makes Σ w' = 1

and where G cannot give as much above its floors, each of F gets the same part of what it was to get. All is exact;
the result is rounded once, to a ten-thousandth of the mixture.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fractions import Fraction

from megatron_synE.config.data import exact
from megatron_synE.config.guard import RestoreConfig
from megatron_synE.data.mixture import rounded
from megatron_synE.data.strategies.bounds import scaled_within
from megatron_synE.data.strategies.interface import Proposal

DENOMINATOR = 10_000
"""Of the weights; it leaves a hundred and more samples of each ten-thousandth to topics in a period."""


class RestoreShare:
    """Raises the weights of some sources, at the cost of the others."""

    def __init__(self, config: RestoreConfig) -> None:
        self.config = config

    def decide(
        self, weights: Mapping[str, Fraction], planned: Mapping[str, Fraction], forgotten: Collection[str],
        spared: Collection[str] = (),
    ) -> Proposal:  # fmt: skip
        """New weights of all sources.

        Args:
            weights: in force; sum to 1.
            planned: of the stage; sum to 1.
            forgotten: those that share goes back to.
            spared: others that do not give.

        Raises:
            ValueError: nothing can be moved; says why.
        """
        step, factor, cap = (exact(value) for value in (self.config.step, self.config.factor, self.config.cap))
        wanted = {name: min(cap, factor * weights[name] + step) for name in forgotten}
        asked = {name: max(Fraction(0), wanted[name] - weights[name]) for name in forgotten}
        if sum(asked.values()) == 0:
            raise ValueError(f"the cap of {self.config.cap} on a source's weight is reached")
        kept = {name: weights[name] for name in spared if name not in forgotten}
        givers = {name: w for name, w in weights.items() if w > 0 and name not in kept and name not in forgotten}
        lowest = {name: min(weight, exact(self.config.floor) * planned[name]) for name, weight in givers.items()}
        available = sum(givers.values(), Fraction(0)) - sum(lowest.values(), Fraction(0))
        part = min(Fraction(1), available / sum(asked.values(), Fraction(0)))
        raised = {name: weights[name] + part * asked[name] for name in forgotten}
        rest = scaled_within(givers, lowest, givers, 1 - sum([*raised.values(), *kept.values()], Fraction(0)))
        exactly = [{**raised, **kept, **rest}.get(name, Fraction(0)) for name in weights]
        new = dict(zip(weights, rounded(exactly, DENOMINATOR), strict=True))
        if not any(new[name] > weights[name] for name in forgotten):
            raise ValueError(f"no other source has more than its floor of {self.config.floor} of its planned weight")
        return Proposal(new, {"planned_weight": {name: float(weight) for name, weight in planned.items()}})

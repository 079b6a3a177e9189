"""Shares that are scaled together and kept within bounds."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction


def scaled_within(
    shares: Mapping[str, Fraction], low: Mapping[str, Fraction], high: Mapping[str, Fraction], total: Fraction
) -> dict[str, Fraction]:
    """The values s·r_i cut to [low_i, high_i] with the one scale s that makes their sum `total`; a share of 0 stays 0.

    Args: low, high: of each share that is not 0; Σ low ≤ total ≤ Σ high over these.
    """
    fixed = {name: share for name, share in shares.items() if share == 0}
    free = {name: share for name, share in shares.items() if share > 0}
    assert sum(low[name] for name in free) <= total <= sum(high[name] for name in free), (low, total, high)
    while free:
        scale = (total - sum(fixed.values(), Fraction(0))) / sum(free.values(), Fraction(0))
        over = {name: share * scale - high[name] for name, share in free.items() if share * scale > high[name]}
        under = {name: low[name] - share * scale for name, share in free.items() if share * scale < low[name]}
        if not over and not under:
            fixed.update({name: share * scale for name, share in free.items()})
            break
        # Where the cuts from above outweigh, the final scale is larger: what is over now stays over; and vice versa.
        bounds, cut = (high, over) if sum(over.values()) >= sum(under.values()) else (low, under)
        for name in cut:
            fixed[name] = bounds[name]
            del free[name]
    return {name: fixed[name] for name in shares}

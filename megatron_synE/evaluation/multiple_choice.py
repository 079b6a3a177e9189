"""Which choice a model prefers, by the log-likelihoods of all: as lm-evaluation-harness counts it.

`ConfigurableTask.process_results` of lm_eval/api/task.py, output type multiple_choice: the first of the largest
log-likelihoods (`acc`), divided by the choice's length in characters (`acc_norm`) or UTF-8 bytes (`acc_bytes`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def is_right(
    metric: str, log_likelihoods: Sequence[float], num_characters: Sequence[int], num_bytes: Sequence[int],
    gold: Sequence[int],
) -> bool:  # fmt: skip
    """Whether the preferred choice is one of `gold`.

    Args:
        metric: acc, acc_norm or acc_bytes.
        log_likelihoods: of the choices, in their order, as the lengths.
    """
    divisors = {"acc": [1] * len(log_likelihoods), "acc_norm": num_characters, "acc_bytes": num_bytes}[metric]
    with np.errstate(divide="ignore"):  # an empty choice counts as infinitely unlikely there
        chosen = int(np.argmax(np.asarray(log_likelihoods, np.float64) / np.asarray(divisors, np.float64)))
    return chosen in gold

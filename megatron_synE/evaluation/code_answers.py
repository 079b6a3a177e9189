"""Programs as answers: pass@1, found by running them with the benchmark's tests.

Tasks of code come here only where the user said `--run-code`; what is run is bounded by `megatron_synE.sandbox`.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_synE.evaluation.data_files import Item
from megatron_synE.sandbox.run_code import CodeLimits, passes_examples

LIMITS = CodeLimits(seconds=10)
"""HumanEval's own harness gives three seconds; a busy machine is no reason to fail."""


def humaneval(item: Item, results: Sequence[str]) -> dict[str, float]:
    """Whether the continued function passes its tests."""
    return _passed(item["prompt"] + results[0], f"{item['test']}\ncheck({item['entry_point']})")


def mbpp(item: Item, results: Sequence[str]) -> dict[str, float]:
    """Whether the program passes its tests."""
    return _passed(results[0], "\n".join([item["test_setup_code"], *item["test_list"]]))


def _passed(program: str, tests: str) -> dict[str, float]:
    return {"pass@1": float(passes_examples(program, tests, LIMITS))}

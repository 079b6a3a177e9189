"""Programs as answers: pass@1, found by running them with the benchmark's tests.

Tasks of code come here only where the user said `--run-code`; what is run is bounded by `megatron_synE.sandbox`.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_synE.evaluation.tasks.data_files import Item
from megatron_synE.sandbox.run_code import passes_examples


def check_sandbox() -> None:
    """Find out before anything is computed whether programs can be run here.

    Raises:
        ValueError: this machine cannot keep a program in bounds, or cannot run one within them.
    """
    if not passes_examples("answer = 6 * 7", "assert answer == 42"):
        raise ValueError("--run-code: a program that is right does not pass in the sandbox; leave the option out")


def humaneval(item: Item, results: Sequence[str]) -> dict[str, float]:
    """Whether the continued function passes its tests."""
    return _passed(item["prompt"] + results[0], f"{item['test']}\ncheck({item['entry_point']})")


def mbpp(item: Item, results: Sequence[str]) -> dict[str, float]:
    """Whether the program passes its tests."""
    return _passed(results[0], "\n".join([item["test_setup_code"], *item["test_list"]]))


def _passed(program: str, tests: str) -> dict[str, float]:
    return {"pass@1": float(passes_examples(program, tests))}

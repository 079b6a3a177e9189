"""The number at the end of a worked solution, and whether it is the right one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from megatron_synE.evaluation.tasks.data_files import Item

NUMBER = re.compile(r"-?\s?\$?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?")
ANSWER_IS = re.compile(r"answer\s+is\s*:?", re.IGNORECASE)
MAX_DIGITS = 1000
"""A model can write longer numbers; no benchmark does."""


def after_hashes(item: Item, results: Sequence[str]) -> dict[str, float]:
    """GSM8K's metrics.

    Returns:
        exact_match: the number behind the first ``####`` is the answer's; without one it is not.
        flexible_match: the last number of all is.
    """
    _, marked, behind = results[0].partition("####")
    first = NUMBER.match(behind.strip())
    numbers = NUMBER.findall(results[0])
    return {
        "exact_match": float(bool(marked and first) and same_number(first[0] if first else "", item["final"])),
        "flexible_match": float(bool(numbers) and same_number(numbers[-1], item["final"])),
    }


def after_answer_is(item: Item, results: Sequence[str]) -> dict[str, float]:
    """ASDiv's and MAWPS' metric: what stands behind the last "answer is"; without it, the last number of all."""
    return {"exact_match": float(_is_answer(results[0], item["final"]))}


def _is_answer(solution: str, final: str) -> bool:
    places = list(ANSWER_IS.finditer(solution))
    told = solution[places[-1].end() :].strip().partition("\n")[0].rpartition("=")[2] if places else ""
    numbers = NUMBER.findall(told) or NUMBER.findall(solution)
    if number(final) is not None:
        return bool(numbers) and same_number(numbers[0] if NUMBER.search(told) else numbers[-1], final)
    return _folded(told) == _folded(final)


def same_number(one: str, other: str) -> bool:
    """Whether two texts are the same number, whatever its commas, currency, per cent sign or last full stop."""
    value = number(one)
    return value is not None and value == number(other)


def number(text: str) -> Fraction | None:
    """The value of a number as people write it: ``$1,234.50``, ``-3/4``, ``72.``; None of anything else."""
    written = re.sub(r"[\s,$%]", "", text.replace("−", "-")).rstrip(".")
    if len(written) > MAX_DIGITS or not re.fullmatch(r"-?(\d+(\.\d+)?|\.\d+)(/\d+)?", written):
        return None
    numerator, _, denominator = written.partition("/")
    if denominator and int(denominator) == 0:
        return None
    return Fraction(numerator) / Fraction(denominator or "1")


def _folded(text: str) -> str:
    return re.sub(r"[\s.]+", "", text).casefold()

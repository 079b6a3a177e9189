"""MATH's answers: found in a solution, and compared as mathematics.

Two answers are the same where they are the same text once notation is set aside (`normalised`), or the same value
(`expression.value`), part by part for tuples, intervals and lists. Nothing that a model wrote is evaluated by Python or
by sympy, whose parsers are `eval`: a small parser of our own knows numbers, fractions, roots, powers and letters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from megatron_synE.evaluation.tasks.data_files import Item
from megatron_synE.evaluation.tasks.expression import same_value

MAX_CHARACTERS = 300
"""Longer answers are compared as text only."""
MARKED = re.compile(r"(?:final answer|answer) is:?\s*(.+)", re.IGNORECASE)
OPENING, CLOSING = "([{", ")]}"
WORD = r"\\(?:text|mbox|mathrm|textrm|textbf|mathbf|textit)\s*"
WORDS = re.compile(WORD + r"\{([^{}]*)\}")
UNITS = re.compile(r"(?<=[\w})])\s*" + WORD + r"\{(?!\s*[ap]\.?m)[^{}\d]*\}(?:\^\{?\d\}?)?$")
NEW_ROW = "¶"
"""Stands for TeX's two backslashes, which are not a command's."""
MATRIX = re.compile(r"\\begin\{[pb]?matrix\}(.*)\\end\{[pb]?matrix\}")
SPACING = re.compile(r"\\[!,;: ]|\\q?quad|~|\\left|\\right|\\displaystyle|\\limits")


def boxed(item: Item, results: Sequence[str]) -> dict[str, float]:
    """MATH's metric: whether a solution's answer is that of the published solution."""
    wanted, found = final_answer(item["solution"]), final_answer(results[0])
    return {"exact_match": float(wanted is not None and found is not None and same_answer(found, wanted))}


def final_answer(solution: str) -> str | None:
    r"""What stands in the last ``\boxed{…}``; else behind the last "answer is"; else in the last ``$…$``."""
    for place in sorted((found.end() for found in re.finditer(r"\\(?:boxed|fbox)", solution)), reverse=True):
        content = _argument(solution[place:])
        if content is not None:
            return content
    lines = MARKED.findall(solution)
    if lines:
        inline = re.search(r"\$([^$]+)\$", lines[-1])
        return inline[1] if inline else lines[-1].split(". ")[0].strip().rstrip(".")
    formulas = re.findall(r"\$([^$]+)\$", solution)
    return formulas[-1] if formulas else None


def _argument(text: str) -> str | None:
    r"""What a command is given: ``{…}`` with its braces in balance, or the word behind ``\boxed ``."""
    text = text.lstrip()
    if not text.startswith("{"):
        return re.split(r"[\s$.,]", text, maxsplit=1)[0] or None
    depth = 0
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[1:place]
    return None


def same_answer(one: str, other: str) -> bool:
    """Whether two answers in LaTeX say the same."""
    return _same(normalised(one), normalised(other))


def _same(one: str, other: str) -> bool:
    if one == other or ('"' in one + other and _plain(one) == _plain(other)):
        return True
    if max(len(one), len(other)) > MAX_CHARACTERS:
        return False
    matrix, other_matrix = MATRIX.fullmatch(one), MATRIX.fullmatch(other)
    if matrix and other_matrix:
        rows, others = matrix[1].split(NEW_ROW), other_matrix[1].split(NEW_ROW)
        return _same_parts(rows, others, in_any_order=False)
    if matrix or other_matrix:
        return False
    parts, others = one.split("&"), other.split("&")
    if len(parts) > 1 or len(others) > 1:
        return _same_parts(parts, others, in_any_order=False)
    parts, others = _split(one, r"\cup"), _split(other, r"\cup")
    if len(parts) > 1 or len(others) > 1:
        return _same_parts(parts, others, in_any_order=False)
    parts, others = _listed(one), _listed(other)
    if len(parts) > 1 or len(others) > 1:
        return _same_parts(parts, others, in_any_order=True)
    if _enclosed(one) and _enclosed(other):
        if one[0] != other[0] or one[-1] != other[-1]:
            return False
        parts, others = _listed(one[1:-1]), _listed(other[1:-1])
        if len(parts) > 1 or len(others) > 1 or one[0] == "{":
            return _same_parts(parts, others, in_any_order=one[0] == "{")
    return same_value(one, other)


def _same_parts(parts: Sequence[str], others: Sequence[str], *, in_any_order: bool) -> bool:
    if len(parts) != len(others) or not in_any_order:
        return len(parts) == len(others) and all(map(_same, parts, others))
    left = list(others)
    for part in parts:
        match = next((other for other in left if _same(part, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _listed(text: str) -> list[str]:
    r"""Parts between commas; one with \pm is two."""
    listed = []
    for part in _split(text, ","):
        two = part.count(r"\pm") == 1 and not _enclosed(part)
        listed += [part.replace(r"\pm", "+"), part.replace(r"\pm", "-")] if two else [part]
    return listed


def _split(text: str, separator: str) -> list[str]:
    """Parts between separators that no bracket encloses."""
    parts, depth, start, place = [], 0, 0, 0
    while place < len(text):
        depth += (text[place] in OPENING) - (text[place] in CLOSING)
        if depth == 0 and text.startswith(separator, place):
            parts.append(text[start:place])
            place += len(separator)
            start = place
        else:
            place += 1
    return [*parts, text[start:]]


def _enclosed(text: str) -> bool:
    """Whether the text begins with a bracket that its last character closes; `(1,2]` counts."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in OPENING) - (character in CLOSING)
        if depth == 0:
            return 0 < place == len(text) - 1
    return False


def normalised(answer: str) -> str:
    """An answer without what is notation only: spacing, delimiters, units, currency, `x =`, thousands' commas.

    Words stand in quotes, which no expression has: `cat` is not the product of c, a and t.
    """
    text = answer.strip().strip("$").strip().rstrip(".").replace("−", "-").replace("\\\\", NEW_ROW)
    text = re.sub(r"(?<=\d)(?:,\\!|\{,\})\s*(?=\d{3})", "", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", SPACING.sub("", text))
    text = re.sub(r"\\\{|\\lbrace", "{", re.sub(r"\\\}|\\rbrace", "}", text))
    text = UNITS.sub("", re.sub(r"\^\{?\\circ\}?|\\degree|\\?%|\\?\$", "", text).strip())
    text = WORDS.sub(lambda found: f'"{found[1].strip().casefold()}"', text).replace('"and"', ",")
    text = re.sub(r"^[a-zA-Z]\s*(?:=|\\in)\s*", "", text)
    text = re.sub(r"_\{(\w+)\}", r"_\1", text)
    return re.sub(r"\s+", "", text.replace(",", "") if _has_thousands(text) else text)


def _has_thousands(text: str) -> bool:
    """Whether commas between digits are thousands' separators: `12,345`, not `1,2` or `12, 345`."""
    return re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text.strip()) is not None


def _plain(text: str) -> str:
    """Words without their quotes and capitals, a letter without its brackets: `(A)` is the choice A."""
    return re.sub(r"^\((\w)\)$", r"\1", text.replace('"', "").casefold())

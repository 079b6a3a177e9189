"""Answers made wrong on purpose, for surrogate experiments: how much error does a mixture bear? (The paper, section 4,
finds that 30 % hardly hurt, and that more than 50 % do.)

Which documents are made wrong, a seed and their ids decide: exactly the share that is asked for, and a larger share of
the same seed takes the same documents and more. The problem stays as it is; only the solution, and the answer, are
changed, in one of three ways.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

METHODS = ("numbers", "steps", "other_answer")
NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*(?!\w)")
LIST_MARK = re.compile(r"^\s*(?:\(?\d+[.)、]|Step \d+|步骤\s*\d+|第\d+步)", re.MULTILINE | re.IGNORECASE)
STEP_END = re.compile(r"(?<=[.!?])\s+(?=\S)|(?<=[。！？])|\n+")

Sections = Mapping[str, str]


def chosen(ids: Sequence[str], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """[ids] which documents are made wrong: the nearest whole number to the share of them."""
    if not 0 <= share <= 1:
        raise ValueError(f"--corrupt-share {share}: is not between 0 and 1")
    places = sorted(range(len(ids)), key=lambda number: _digest(seed, "choice", ids[number]))
    found = np.zeros(len(ids), bool)
    found[places[: round(share * len(ids))]] = True
    return found


def corrupt(
    document_id: str, sections: Sections, other: Sections | None, methods: Sequence[str], seed: int
) -> tuple[str, dict[str, str]] | None:
    """A document's sections with a wrong answer, and the way in which it is wrong.

    Args:
        document_id: decides, with the seed, on the way and on what exactly is changed.
        sections: with ``problem`` and ``solution``, perhaps ``answer``.
        other: those of another problem of the same kind, None where there is none.
        methods: of ``METHODS``; where the first choice cannot change anything, the next is taken.

    Returns:
        None where none of them can.
    """
    rng = random.Random(_digest(seed, "change", document_id))
    ways: dict[str, Callable[[], dict[str, str] | None]] = {
        "numbers": lambda: _numbers_altered(sections, rng),
        "steps": lambda: _steps_swapped(sections, rng),
        "other_answer": lambda: _answer_of(sections, other),
    }
    order = list(methods)
    rng.shuffle(order)
    for method in order:
        changed = ways[method]()
        if changed is not None and changed != dict(sections):
            return method, changed
    return None


def _numbers_altered(sections: Sections, rng: random.Random) -> dict[str, str] | None:
    """Every number that the solution found, and did not take from the problem, becomes another; equal ones stay equal.

    Where the solution found none of its own, the last number is changed.
    """
    names = [name for name in ("solution", "answer") if name in sections]
    given = set(NUMBER.findall(sections["problem"]))
    marks = {name: [match.span() for match in LIST_MARK.finditer(sections[name])] for name in names}

    def is_free(name: str, match: re.Match[str]) -> bool:
        return not any(begin <= match.start() < end for begin, end in marks[name])

    own = [match[0] for name in names for match in NUMBER.finditer(sections[name]) if is_free(name, match)]
    if not own:
        return None
    targets = [number for number in dict.fromkeys(own) if number not in given] or [own[-1]]
    altered = {number: _other_number(number, rng) for number in targets}
    changed = dict(sections)
    for name in names:
        changed[name] = NUMBER.sub(
            lambda match, own_name=name: altered.get(match[0], match[0]) if is_free(own_name, match) else match[0],  # type: ignore[misc]
            sections[name],
        )
    return changed


def _other_number(number: str, rng: random.Random) -> str:
    """A number written alike, with another value: one or two of its digits are others."""
    digits = [place for place, character in enumerate(number) if character.isdigit()]
    characters = list(number)
    for place in rng.sample(digits, k=min(len(digits), 1 + rng.randrange(2))):
        lowest = 1 if place == digits[0] and len(digits) > 1 else 0
        characters[place] = rng.choice([str(d) for d in range(lowest, 10) if str(d) != characters[place]])
    return "".join(characters)


def _steps_swapped(sections: Sections, rng: random.Random) -> dict[str, str] | None:
    """Two steps of the solution that differ change places; a step is a sentence or a line. Code is left alone."""
    solution = sections["solution"]
    if "```" in solution:
        return None
    borders = [0, *(match.end() for match in STEP_END.finditer(solution)), len(solution)]
    steps = [solution[begin:end] for begin, end in pairwise(borders)]
    spaces = [step[len(step.rstrip()) :] for step in steps]
    contents = [step.rstrip() for step in steps]
    places = [place for place, content in enumerate(contents) if re.search(r"\w", content)]
    pairs = [(i, j) for i in places for j in places if i < j and contents[i] != contents[j]]
    if len(places) < 3 or not pairs:
        return None
    first, second = rng.choice(pairs)
    contents[first], contents[second] = contents[second], contents[first]
    return {**sections, "solution": "".join(map(str.__add__, contents, spaces))}


def _answer_of(sections: Sections, other: Sections | None) -> dict[str, str] | None:
    """The problem with the solution and answer of another one."""
    if other is None or other["solution"] == sections["solution"]:
        return None
    return {name: other.get(name, text) if name != "problem" else text for name, text in sections.items()}


def _digest(seed: int, purpose: str, document_id: str) -> bytes:
    return hashlib.sha256(f"{seed} {purpose} {document_id}".encode("utf-8", "surrogatepass")).digest()

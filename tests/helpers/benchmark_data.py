"""Benchmarks of made-up questions, in the files and forms in which the real ones are published.

The questions mean nothing; their text is English or Chinese as the benchmark's is, of uneven length, and the same at
every call. Chosen subjects only: a whole MMLU would be 114 files.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

NUM_ITEMS = 50
LOG_LIKELIHOOD_TASKS = (
    "mmlu_anatomy", "mmlu_astronomy", "ceval_accountant", "ceval_logic", "cmmlu_agronomy", "cmmlu_chinese_history",
    "sat_math", "scieval", "sciq", "gaokao", "arc_easy", "arc_challenge", "aqua_rat",
)  # fmt: skip
"""Tasks by log-likelihood whose data `write_benchmarks` makes."""
GENERATION_TASKS = ("math_algebra", "math_geometry", "gsm8k", "asdiv", "mawps", "humaneval", "mbpp")
"""Tasks by generation whose data it makes."""

ENGLISH = [
    "the", "a", "of", "in", "energy", "water", "cell", "force", "river", "market", "theory", "sum", "angle", "which",
    "many", "large", "small", "light", "number", "every", "between", "under", "carbon", "law", "planet", "memory",
    "value", "growth", "field", "acid", "system", "ratio", "wave", "trade",
]  # fmt: skip
CHINESE = (
    "的一在是了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下"
    "过子说产种面而方后多定行学法所民得经"
)

Rows = list[dict[str, Any]]


def write_benchmarks(folder: Path, num_items: int = NUM_ITEMS) -> Path:
    """Write the files of `LOG_LIKELIHOOD_TASKS` and `GENERATION_TASKS` to a data folder, and return it.

    Args:
        num_items: of each task, beside the examples for prompts.
    """
    for subject in ("anatomy", "astronomy"):
        _splits(folder, f"mmlu/{{0}}/{subject}_{{0}}.csv", _mmlu(subject), {"dev": 5, "test": num_items}, header=False)
    for subject in ("accountant", "logic"):
        made = _lettered_chinese(f"ceval {subject}", "question", "answer")
        _splits(folder, f"ceval/{{0}}/{subject}_{{0}}.csv", made, {"dev": 5, "val": num_items})
    for subject in ("agronomy", "chinese_history"):
        made = _lettered_chinese(f"cmmlu {subject}", "Question", "Answer", index="")
        _splits(folder, f"cmmlu/{{0}}/{subject}.csv", made, {"dev": 5, "test": num_items})
    _agieval(folder, num_items)
    for subject in ("algebra", "geometry"):
        _math(folder / "math", subject, num_items)
    _splits(folder, "gsm8k/{0}.jsonl", _gsm8k, {"train": 12, "test": num_items})
    _splits(folder, "asdiv/{0}.jsonl", _asdiv, {"test": num_items})
    for part in ("addsub", "multiarith", "singleeq", "singleop"):
        rows = [_mawps(rng) for rng in _seeds(f"mawps {part}", (num_items + 3) // 4)]
        _write(folder / f"mawps/{part}.jsonl", rows)
    _write(folder / "humaneval/HumanEval.jsonl", [_humaneval(n, rng) for n, rng in enumerate(_seeds("he", num_items))])
    _write(folder / "mbpp/mbpp.jsonl", [_mbpp(n, rng) for n, rng in enumerate(_seeds("mbpp", num_items + 10), start=1)])
    _write(folder / "scieval/scieval-dev.json", [row for kind in SCIEVAL_KINDS for row in _scieval("dev", kind, 5)])
    valid = [row for n, kind in enumerate(SCIEVAL_KINDS) for row in _scieval("valid", kind, _share(num_items, n))]
    _write(folder / "scieval/scieval-valid.json", valid)
    _splits(folder, "sciq/{0}.json", _sciq, {"train": 8, "test": num_items})
    for part in ("ARC-Easy", "ARC-Challenge"):
        rows = [_arc(f"{part}_{n}", rng) for n, rng in enumerate(_seeds(part, num_items))]
        _write(folder / f"arc/{part}/{part}-Test.jsonl", rows)
    for split, count in (("dev", 6), ("test", num_items)):  # JSON lines under the name .json, as it is published
        _write(folder / f"aqua_rat/{split}.json", [_aqua(rng) for rng in _seeds(f"aqua {split}", count)], lines=True)
    return folder


def english(rng: random.Random, low: int, high: int) -> str:
    """A sentence of so many words."""
    return " ".join(rng.choice(ENGLISH) for _ in range(rng.randint(low, high))).capitalize()


def chinese(rng: random.Random, low: int, high: int) -> str:
    """A phrase of so many characters."""
    return "".join(rng.choice(CHINESE) for _ in range(rng.randint(low, high)))


def _seeds(name: str, count: int) -> Iterator[random.Random]:
    return (random.Random(f"{name} {number}") for number in range(count))


def _splits(
    folder: Path,
    pattern: str,
    row: Callable[[random.Random], dict[str, Any]],
    splits: dict[str, int],
    header: bool = True,
) -> None:
    for split, count in splits.items():
        rows = [row(rng) for rng in _seeds(f"{pattern} {split}", count)]
        _write(folder / pattern.format(split), rows, header=header)


def _write(path: Path, rows: Sequence[dict[str, Any]], *, header: bool = True, lines: bool | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([list(rows[0])] if header else [])
            writer.writerows(row.values() for row in rows)
    elif lines or (lines is None and path.suffix == ".jsonl"):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(list(rows), ensure_ascii=False, indent=1), encoding="utf-8")


def _mmlu(subject: str) -> Callable[[random.Random], dict[str, Any]]:
    return lambda rng: {
        "question": f"{english(rng, 5, 30)} {subject}?",
        **{letter: english(rng, 1, 8) for letter in "ABCD"},
        "answer": rng.choice("ABCD"),
    }


def _lettered_chinese(
    name: str, question: str, answer: str, index: str = "id"
) -> Callable[[random.Random], dict[str, Any]]:
    def row(rng: random.Random) -> dict[str, Any]:
        asked = {index: rng.randrange(10**6), question: f"{chinese(rng, 8, 40)}，____"}
        return {**asked, **{letter: chinese(rng, 1, 10) for letter in "ABCD"}, answer: rng.choice("ABCD")}

    return row


AGIEVAL_ENGLISH = ("sat-math",)
AGIEVAL_CHINESE = ("gaokao-mathqa", "gaokao-chemistry", "gaokao-biology")


def _agieval(folder: Path, num_items: int) -> None:
    names = [*AGIEVAL_ENGLISH, *AGIEVAL_CHINESE]
    for name in names:
        rows = [_agieval_row(name, rng) for rng in _seeds(name, num_items)]
        _write(folder / f"agieval/{name}.jsonl", rows)
    table = []
    for number in range(5):
        examples = [repr(_agieval_row(name, random.Random(f"{name} example {number}"))) for name in names]
        table.append({"": f"sample {number + 1}", **dict(zip(names, examples, strict=True))})
        table.append({"": f"explanation {number + 1}", **{name: "It is said so." for name in names}})
    _write(folder / "agieval/few_shot_prompts.csv", table)


def _agieval_row(name: str, rng: random.Random) -> dict[str, Any]:
    text = english if name in AGIEVAL_ENGLISH else chinese
    options = [f"({letter}){text(rng, 1, 8)}" for letter in "ABCD"]
    passage = "" if name in AGIEVAL_ENGLISH else None
    return {
        "passage": passage, "question": text(rng, 6, 30), "options": options, "label": rng.choice("ABCD"),
        "answer": None, "other": {"source": "made up"},
    }  # fmt: skip


def _math(folder: Path, subject: str, num_items: int) -> None:
    for split, count in (("train", 12), ("test", num_items)):
        for number, rng in enumerate(_seeds(f"math {subject} {split}", count), start=1):
            one, other = rng.randint(1, 99), rng.randint(1, 99)
            row = {
                "problem": f"What is ${one}$ plus $\\frac{{{other}}}{{2}}$?",
                "level": "Level 1", "type": subject.title(),
                "solution": f"Twice it is ${2 * one}+{other}$, so it is $\\boxed{{\\frac{{{2 * one + other}}}{{2}}}}$.",
            }  # fmt: skip
            path = folder / split / subject / f"{number}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(row, indent=4), encoding="utf-8")


def _gsm8k(rng: random.Random) -> dict[str, Any]:
    one, other = rng.randint(2, 90), rng.randint(2, 90)
    question = f"Ann has {one} coins and finds {other} more. How many does she have?"
    return {
        "question": question,
        "answer": f"She has {one}+{other}=<<{one}+{other}={one + other}>>{one + other}.\n#### {one + other}",
    }


def _asdiv(rng: random.Random) -> dict[str, Any]:
    one, other = rng.randint(2, 90), rng.randint(2, 90)
    return {
        "body": f"Ben has {one} apples and {other} pears.", "question": "How many pieces of fruit has he?",
        "solution_type": "Addition", "answer": f"{one + other} (pieces)", "formula": f"{one}+{other}={one + other}",
    }  # fmt: skip


def _mawps(rng: random.Random) -> dict[str, Any]:
    one, other = rng.randint(20, 90), rng.randint(2, 19)
    return {
        "input": f"Tim had {one} books . He gave away {other} . How many has he now ?",
        "target": float(one - other),
    }


def _humaneval(number: int, rng: random.Random) -> dict[str, Any]:
    plus = rng.randint(1, 99)
    head = f'def add_{number}(x: int) -> int:\n    """{english(rng, 3, 9)}: x plus {plus}."""\n'
    return {
        "task_id": f"HumanEval/{number}", "prompt": head, "entry_point": f"add_{number}",
        "canonical_solution": f"    return x + {plus}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {plus + 1}\n    assert candidate(-{plus}) == 0\n",
    }  # fmt: skip


def _mbpp(number: int, rng: random.Random) -> dict[str, Any]:
    plus = rng.randint(1, 99)
    tests = [f"assert plus({value}) == {value + plus}" for value in (0, 1, 7)]
    return {
        "text": f"Write a function to add {plus} to a number.", "code": f"def plus(x):\r\n  return x + {plus}",
        "task_id": number, "test_setup_code": "", "test_list": tests, "challenge_test_list": [],
    }  # fmt: skip


SCIEVAL_KINDS = (
    ("physics", "SocraticQA", "Base Knowledge", "multiple-choice"),
    ("chemistry", "SocraticQA", "Scientific Calculation", "multiple-choice"),
    ("chemistry", "reagent selection", "Knowledge Application", "filling"),
    ("biology", "MedQA", "Knowledge Application", "multiple-choice"),
    ("biology", "PubMedQA", "Research Ability", "judge"),
)
ASKED = {
    "multiple-choice": "Given a question and four options, please select the right answer.",
    "judge": 'Given a context, and a question, please answer. Your answer should be "yes", "no" or "maybe".',
    "filling": "Only return the reagent.",
}


def _share(num_items: int, number: int) -> int:
    """Each category has `num_items`; chemistry's and biology's are of two kinds each, of which one is not asked."""
    return [num_items, num_items, 3, num_items - num_items // 3, num_items // 3][number]


def _scieval(split: str, kind: tuple[str, str, str, str], count: int) -> Iterator[dict[str, Any]]:
    category, task, ability, form = kind
    for number, rng in enumerate(_seeds(f"scieval {split} {kind}", count)):
        choices = "\n".join(f"{letter}. {english(rng, 1, 6)}" for letter in "ABCD") + "\n"
        answer = rng.choice(
            {"multiple-choice": ["A", "B", "C", "D"], "judge": ["yes", "no", "maybe"], "filling": ["x"]}[form]
        )
        yield {
            "question": f"{english(rng, 5, 20)}?\n\n{choices if form == 'multiple-choice' else ''}\nAnswer:",
            "answer": [answer], "category": category, "topic": None, "ability": ability, "type": form,
            "task_name": task, "prompt": ASKED[form], "cot_prompt": "", "id": f"{split}-{category}-{form}-{number}",
        }  # fmt: skip


def _sciq(rng: random.Random) -> dict[str, Any]:
    names = ("distractor1", "distractor2", "distractor3", "correct_answer")
    return {
        "question": f"{english(rng, 4, 12)}?", **{name: english(rng, 1, 5).lower() for name in names},
        "support": english(rng, 0, 40) if rng.random() > 0.1 else "",
    }  # fmt: skip


def _arc(identity: str, rng: random.Random) -> dict[str, Any]:
    labels = rng.choice(["ABCD", "ABCD", "1234", "ABC", "ABCDE"])
    choices = [{"text": english(rng, 1, 9), "label": label} for label in labels]
    return {
        "id": identity,
        "question": {"stem": f"{english(rng, 5, 25)}?", "choices": choices},
        "answerKey": rng.choice(labels),
    }


def _aqua(rng: random.Random) -> dict[str, Any]:
    options = [f"{letter}){rng.randint(1, 999)}" for letter in "ABCDE"]
    return {
        "question": f"{english(rng, 6, 20)}?",
        "options": options,
        "rationale": "So it is.",
        "correct": rng.choice("ABCDE"),
    }

"""Items of each benchmark, made of rows as they are published. The YAML files in ``tasks/`` name these readers.

A reader returns the splits that its task asks for: the one to score, and the one whose first items are the examples.
Items hold what a prompt shows and what decides the score, and nothing else: an explanation never reaches a prompt by
mistake, and two items are the same where all their fields are. What is published where: ``tasks/README.md``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_synE.config.json_fields import JsonFields, is_finite
from megatron_synE.evaluation.tasks.data_files import REMEDY, Form, Item, Items, read_split

Splits = dict[str, Items]

LETTERS = "ABCDEFGHIJ"
SEVERAL = -1
"""Gold of a question with several right letters: no single letter answers it, as AGIEval scores it."""
MAWPS_PARTS = ("addsub", "multiarith", "singleeq", "singleop")
NUMBER = re.compile(r"-?(\d[\d,]*)?\.?\d+")


def mmlu(data_dir: Path, folder: str) -> Splits:
    """MMLU's subject: Hendrycks' CSV without a header, or the Parquet files on Hugging Face."""

    def of_csv(row: JsonFields) -> Item:
        return _lettered(_filled(row, "question"), _four(row), _letter(row, "answer", 4))

    def of_parquet(row: JsonFields) -> Item:
        choices = row.texts("choices")
        if len(choices) != 4:
            raise row.wrong("choices", f"are {len(choices)}, not 4")
        return _lettered(_filled(row, "question"), choices, row.integer("answer", 0, 3))

    columns = ("question", "A", "B", "C", "D", "answer")
    splits = {}
    for split in ("dev", "test"):
        csv_form = Form(f"mmlu/{split}/{{folder}}_{split}.csv", "data.tar of hendrycks/test", of_csv, columns)
        parquet = Form(f"mmlu/{{folder}}/{split}-*.parquet", "cais/mmlu on Hugging Face", of_parquet)
        splits[split] = read_split(data_dir, [csv_form, parquet], folder)
    return splits


def ceval(data_dir: Path, folder: str) -> Splits:
    """C-Eval's subject; scored on the validation split, as the labels of the test split are hidden."""
    return _four_column_splits(data_dir, folder, "ceval", {"dev": "_dev", "val": "_val"}, ("question", "answer"))


def cmmlu(data_dir: Path, folder: str) -> Splits:
    """CMMLU's subject."""
    return _four_column_splits(data_dir, folder, "cmmlu", {"dev": "", "test": ""}, ("Question", "Answer"))


def _four_column_splits(
    data_dir: Path, folder: str, name: str, suffixes: dict[str, str], fields: tuple[str, str]
) -> Splits:
    source = {"ceval": "ceval/ceval-exam", "cmmlu": "haonan-li/cmmlu"}[name]

    def item(row: JsonFields) -> Item:
        return _lettered(_filled(row, fields[0]), _four(row), _letter(row, fields[1], 4))

    splits = {}
    for split, suffix in suffixes.items():
        csv_form = Form(f"{name}/{split}/{{folder}}{suffix}.csv", f"the zip file of {source} on Hugging Face", item)
        parquet = Form(f"{name}/{{folder}}/{split}-*.parquet", f"{source} on Hugging Face", item)
        splits[split] = read_split(data_dir, [csv_form, parquet], folder)
    return splits


def math(data_dir: Path, folder: str) -> Splits:
    """Hendrycks' MATH, one of its seven subjects: a folder of JSON files, JSON lines, or Parquet."""

    def item(row: JsonFields) -> Item:
        solution = _filled(row, "solution")
        if "\\boxed" not in solution and "\\fbox" not in solution:
            raise row.wrong("solution", "has no \\boxed{…} with the answer")
        return {"problem": _filled(row, "problem"), "solution": solution}

    splits = {}
    for split in ("train", "test"):
        forms = [
            Form(f"math/{split}/{{folder}}/*.json", "MATH.tar of hendrycks/math", item),
            Form(f"math/{{folder}}/{split}.jsonl", "the same as JSON lines", item),
            Form(f"math/{{folder}}/{split}-*.parquet", "EleutherAI/hendrycks_math on Hugging Face", item),
        ]
        splits[split] = read_split(data_dir, forms, folder)
    return splits


def gsm8k(data_dir: Path) -> Splits:
    """GSM8K; the answer's number stands after ``####``."""

    def item(row: JsonFields) -> Item:
        answer = _filled(row, "answer")
        number = answer.rpartition("####")[2].strip()
        if "####" not in answer or not NUMBER.fullmatch(number):
            raise row.wrong("answer", "does not end with #### and a number")
        return {"question": _filled(row, "question"), "answer": answer, "final": number}

    splits = {}
    for split in ("train", "test"):
        forms = [
            Form(f"gsm8k/{split}.jsonl", "grade_school_math/data of openai/grade-school-math", item),
            Form(f"gsm8k/main/{split}-*.parquet", "openai/gsm8k on Hugging Face", item),
        ]
        splits[split] = read_split(data_dir, forms)
    return splits


def asdiv(data_dir: Path) -> Splits:
    """ASDiv; problems that want several values are not asked, as is the field's custom (2,215 of 2,305 are)."""

    def of_xml(row: JsonFields) -> Item | None:
        return item(row, "Body", "Question", "Answer")

    def of_json(row: JsonFields) -> Item | None:
        return item(row, "body", "question", "answer")

    def item(row: JsonFields, body: str, question: str, answer: str) -> Item | None:
        if ";" in _filled(row, answer):
            return None
        final = re.sub(r"\s*\([^()]*\)\s*$", "", row.text(answer)).strip()
        if not final:
            raise row.wrong(answer, "has nothing before its unit")
        return {"question": f"{_filled(row, body).strip()} {_filled(row, question).strip()}", "final": final}

    forms = [
        Form("asdiv/ASDiv.xml", "chaochun/nlu-asdiv-dataset", of_xml),
        Form("asdiv/test.jsonl", "the same as JSON lines", of_json),
        Form("asdiv/validation-*.parquet", "EleutherAI/asdiv on Hugging Face", of_json),
    ]
    return {"test": read_split(data_dir, forms)}


def mawps(data_dir: Path) -> Splits:
    """MAWPS: the original JSON of the repository, or the four files of JSON lines that are used since."""

    def of_lines(row: JsonFields) -> Item:
        return {"question": _filled(row, "input").strip(), "final": _number(row, "target")}

    def of_original(row: JsonFields) -> Item:
        return {"question": _filled(row, "sQuestion").strip(), "final": _number(row, "lSolutions")}

    forms = [
        Form("|".join(f"mawps/{name}.jsonl" for name in MAWPS_PARTS), "src/data/mawps of microsoft/ToRA", of_lines),
        Form("mawps/mawps.json", "what sroy9/mawps exports: sQuestion and lSolutions", of_original),
    ]
    return {"test": read_split(data_dir, forms)}


def humaneval(data_dir: Path) -> Splits:
    """HumanEval."""

    def item(row: JsonFields) -> Item:
        names = ("prompt", "entry_point", "test")
        return {"id": _filled(row, "task_id")} | {name: _filled(row, name) for name in names}

    forms = [
        Form("humaneval/HumanEval.jsonl", "openai/human-eval", item),
        Form("humaneval/HumanEval.jsonl.gz", "data of openai/human-eval", item),
        Form("humaneval/openai_humaneval/test-*.parquet", "openai/openai_humaneval on Hugging Face", item),
    ]
    return {"test": read_split(data_dir, forms)}


def mbpp(data_dir: Path) -> Splits:
    """MBPP: scored on tasks 11 to 510, with tasks 2, 3 and 4 as examples, as its authors did (arXiv 2108.07732)."""

    def among(ids: range) -> Callable[[JsonFields], Item | None]:
        return lambda row: item(row) if row.integer("task_id") in ids else None

    def item(row: JsonFields) -> Item:
        tests = row.texts("test_list")
        if len(tests) < 3:
            raise row.wrong("test_list", f"holds {len(tests)} tests; the prompt shows three")
        setup = row.text("test_setup_code") if row.has("test_setup_code") else ""
        texts = {name: _filled(row, name) for name in ("text", "code")}
        return {"id": row.integer("task_id"), **texts, "test_list": tests, "test_setup_code": setup}

    splits = {}
    for split, ids, files in (("prompt", range(2, 5), "prompt"), ("test", range(11, 511), "test")):
        forms = [
            Form("mbpp/mbpp.jsonl", "mbpp of google-research/google-research", among(ids)),
            Form(f"mbpp/full/{files}-*.parquet", "google-research-datasets/mbpp on Hugging Face", among(ids)),
        ]
        splits[split] = read_split(data_dir, forms)
    return splits


def scieval(data_dir: Path, folder: str) -> Splits:
    """SciEval's category: questions with letters and those of yes, no and maybe; those to be filled in are not asked.

    Examples are the development split's of the same task, ability and prompt, as in OpenDFM's own script. On the
    validation split this asks 1,286 questions (physics 164, chemistry 643, biology 479).
    """

    def item(row: JsonFields) -> Item | None:
        kind = row.text("type")
        if row.text("category") != folder or kind == "filling":
            return None
        choices = {"multiple-choice": ["A", "B", "C", "D"], "judge": ["yes", "no", "maybe"]}.get(kind)
        if choices is None:
            raise row.wrong("type", f"is {kind!r}, not multiple-choice, judge or filling")
        answers = row.texts("answer")
        if len(answers) != 1 or answers[0] not in choices:
            raise row.wrong("answer", f"is {answers!r}, not one of {', '.join(choices)}")
        group = "-".join([row.text("task_name"), row.text("ability"), row.text("prompt")])
        asked = {"question": _filled(row, "question").strip(), "instruction": _filled(row, "prompt").strip()}
        return {
            "id": _filled(row, "id"),
            **asked,
            "choices": choices,
            "gold": choices.index(answers[0]),
            "group": group,
        }

    splits = {}
    for split in ("dev", "valid"):
        forms = [
            Form(f"scieval/scieval-{split}.json", "OpenDFM/SciEval", item),
            Form(f"scieval/bai-scieval-{split}.json", "OpenDFM/SciEval, older name", item),
        ]
        splits[split] = read_split(data_dir, forms)
    return splits


def sciq(data_dir: Path) -> Splits:
    """SciQ. The right answer comes last among the choices, which no prompt shows."""

    def item(row: JsonFields) -> Item:
        names = ("distractor1", "distractor2", "distractor3", "correct_answer")
        choices = [_filled(row, name) for name in names]
        return {"support": row.text("support"), "question": _filled(row, "question"), "choices": choices, "gold": 3}

    splits = {}
    for split, file in (("train", "train"), ("test", "test")):
        forms = [
            Form(f"sciq/{file}.json", "the SciQ data set of allenai.org", item),
            Form(f"sciq/data/{file}-*.parquet", "allenai/sciq on Hugging Face", item),
        ]
        splits[split] = read_split(data_dir, forms)
    return splits


def arc(data_dir: Path, folder: str) -> Splits:
    """ARC-Easy or ARC-Challenge: three to five choices, labelled A to E or 1 to 5."""

    def of_jsonl(row: JsonFields) -> Item:
        question = row.inner("question")
        choices = question.inner_list("choices")
        return item(row, _filled(question, "stem"), [_filled(choice, "text") for choice in choices],
                    [choice.text("label") for choice in choices])  # fmt: skip

    def of_parquet(row: JsonFields) -> Item:
        choices = row.inner("choices")
        return item(row, _filled(row, "question"), choices.texts("text"), choices.texts("label"))

    def item(row: JsonFields, question: str, choices: list[str], labels: list[str]) -> Item:
        answer = row.text("answerKey")
        if len(choices) != len(labels) or not all(choice.strip() for choice in choices):
            raise row.wrong("choices", "are not as many texts as labels, or one is empty")
        if labels.count(answer) != 1:
            raise row.wrong("answerKey", f"is {answer!r}, not one of {', '.join(labels)}")
        return {"id": _filled(row, "id"), "question": question, "choices": choices, "gold": labels.index(answer)}

    forms = [
        Form("arc/{folder}/{folder}-Test.jsonl", "ARC-V1-Feb2018 of allenai.org", of_jsonl),
        Form("arc/{folder}/test-*.parquet", "allenai/ai2_arc on Hugging Face", of_parquet),
    ]
    return {"test": read_split(data_dir, forms, folder)}


def aqua_rat(data_dir: Path) -> Splits:
    """AQuA-RAT: options as they are published, ``A)…`` to ``E)…``."""

    def item(row: JsonFields) -> Item:
        options = row.texts("options")
        for letter, option in zip(LETTERS, options, strict=False):
            if not option.startswith(f"{letter})"):
                raise row.wrong("options", f"has {option!r} in the place of {letter})…")
        return _lettered(_filled(row, "question"), options, _letter(row, "correct", len(options)))

    splits = {}
    for split, file, parquet in (("dev", "dev", "validation"), ("test", "test", "test")):
        forms = [
            Form(f"aqua_rat/{file}.json", "google-deepmind/AQuA", item),
            Form(f"aqua_rat/raw/{parquet}-*.parquet", "deepmind/aqua_rat on Hugging Face", item),
        ]
        splits[split] = read_split(data_dir, forms)
    return splits


def agieval(data_dir: Path, folder: str) -> Splits:
    """A choice task of AGIEval; its examples are the five that its authors publish for it."""

    def item(row: JsonFields) -> Item:
        options = row.texts("options")
        if not 2 <= len(options) <= len(LETTERS):
            raise row.wrong("options", f"are {len(options)}, not 2 to {len(LETTERS)}")
        passage = row.text("passage") if row.has("passage") else ""
        label = re.sub(r"\s", "", _filled(row, "label"))
        if not set(label) <= set(LETTERS[: len(options)]):
            raise row.wrong("label", f"is {label!r}, not of {LETTERS[: len(options)]}")
        gold = LETTERS.index(label) if len(label) == 1 else SEVERAL
        return {"passage": passage, **_lettered(_filled(row, "question"), options, gold)}

    test = read_split(data_dir, [Form("agieval/{folder}.jsonl", "data/v1 of ruixiangcui/AGIEval", item)], folder)
    prompts = [Form("agieval/few_shot_prompts.csv", "data of ruixiangcui/AGIEval", _agieval_example(folder, item))]
    return {"dev": read_split(data_dir, prompts), "test": test}


def _agieval_example(folder: str, item: Callable[[JsonFields], Item]) -> Callable[[JsonFields], Item | None]:
    """Reads a row of the table of examples: Python dictionaries as text, and explanations in between."""

    def of_cell(row: JsonFields) -> Item | None:
        cell = row.text(folder)
        if not cell.startswith("{"):
            return None
        try:
            content = ast.literal_eval(cell)  # knows constants only
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise row.wrong(folder, f"is no Python dictionary of constants ({error})") from error
        return item(JsonFields(content, f"{row.where}{folder}.", REMEDY))

    return of_cell


def _lettered(question: str, choices: Sequence[str], gold: int) -> Item:
    return {"question": question, "choices": list(choices), "letters": list(LETTERS[: len(choices)]), "gold": gold}


def _four(row: JsonFields) -> list[str]:
    return [row.text(letter) for letter in "ABCD"]


def _letter(row: JsonFields, name: str, num_choices: int) -> int:
    """The place of a letter among the first letters."""
    letter = row.text(name).strip()
    if len(letter) != 1 or letter not in LETTERS[:num_choices]:
        raise row.wrong(name, f"is {row.text(name)!r}, not one of {', '.join(LETTERS[:num_choices])}")
    return LETTERS.index(letter)


def _filled(row: JsonFields, name: str) -> str:
    if not row.text(name).strip():
        raise row.wrong(name, "is empty")
    return row.text(name)


def _number(row: JsonFields, name: str) -> str:
    """A number as it is written, 43.0 as 43."""
    value = row.content.get(name)
    if isinstance(value, list) and len(value) == 1:
        [value] = value
    if value is None or not is_finite(value):
        raise row.wrong(name, f"is {value!r}, not one number")
    return str(int(value)) if float(value).is_integer() else str(value)

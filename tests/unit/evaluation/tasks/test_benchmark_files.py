"""Data files: every published form reads alike; what is missing or broken is told with its file, row and field."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_synE.evaluation.tasks import items
from tests.helpers.benchmark_data import write_benchmarks

READERS: dict[str, Callable[[Path], items.Splits]] = {
    "mmlu": lambda folder: items.mmlu(folder, "anatomy"),
    "ceval": lambda folder: items.ceval(folder, "logic"),
    "cmmlu": lambda folder: items.cmmlu(folder, "agronomy"),
    "math": lambda folder: items.math(folder, "algebra"),
    "gsm8k": items.gsm8k,
    "asdiv": items.asdiv,
    "mawps": items.mawps,
    "humaneval": items.humaneval,
    "mbpp": items.mbpp,
    "scieval": lambda folder: items.scieval(folder, "biology"),
    "sciq": items.sciq,
    "arc": lambda folder: items.arc(folder, "ARC-Easy"),
    "aqua_rat": items.aqua_rat,
    "agieval": lambda folder: items.agieval(folder, "sat-math"),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("published"), num_items=12)


@pytest.fixture
def data_dir(published: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(published, tmp_path / "data")


def csv_rows(path: Path, *columns: str) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, columns or None))


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def to_parquet(folder: Path, target: str, split: str, rows: list[dict[str, Any]], num_files: int = 1) -> None:
    """Write `TARGET/SPLIT-00000-of-0000N.parquet`."""
    (folder / target).mkdir(parents=True, exist_ok=True)
    per_file = -(-len(rows) // num_files)
    for number in range(num_files):
        table = pyarrow.Table.from_pylist(rows[number * per_file : (number + 1) * per_file])
        pyarrow.parquet.write_table(table, folder / target / f"{split}-{number:05d}-of-{num_files:05d}.parquet")


def mmlu_parquet(folder: Path) -> None:
    for split in ("dev", "test"):
        rows = csv_rows(folder / f"mmlu/{split}/anatomy_{split}.csv", "question", *"ABCD", "answer")
        rows = [
            {"question": row["question"], "subject": "anatomy", "choices": [row[letter] for letter in "ABCD"],
             "answer": "ABCD".index(row["answer"])}
            for row in rows
        ]  # fmt: skip
        to_parquet(folder, "mmlu/anatomy", split, rows, num_files=2)
        (folder / f"mmlu/{split}/anatomy_{split}.csv").unlink()


def ceval_parquet(folder: Path) -> None:
    for split in ("dev", "val"):
        path = folder / f"ceval/{split}/logic_{split}.csv"
        to_parquet(folder, "ceval/logic", split, csv_rows(path))
        path.unlink()


def cmmlu_parquet(folder: Path) -> None:
    for split in ("dev", "test"):
        path = folder / f"cmmlu/{split}/agronomy.csv"
        to_parquet(folder, "cmmlu/agronomy", split, csv_rows(path))
        path.unlink()


def math_lines(folder: Path) -> None:
    for split in ("train", "test"):
        rows = [
            path.read_text()
            for path in sorted((folder / f"math/{split}/algebra").iterdir(), key=lambda path: int(path.stem))
        ]
        (folder / "math/algebra").mkdir(exist_ok=True)
        (folder / f"math/algebra/{split}.jsonl").write_text("".join(json.dumps(json.loads(row)) + "\n" for row in rows))
        shutil.rmtree(folder / f"math/{split}/algebra")


def humaneval_gzip(folder: Path) -> None:
    path = folder / "humaneval/HumanEval.jsonl"
    (folder / "humaneval/HumanEval.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def arc_parquet(folder: Path) -> None:
    path = folder / "arc/ARC-Easy/ARC-Easy-Test.jsonl"
    rows = [
        {"id": row["id"], "question": row["question"]["stem"], "answerKey": row["answerKey"],
         "choices": {key: [choice[key] for choice in row["question"]["choices"]] for key in ("text", "label")}}
        for row in json_lines(path)
    ]  # fmt: skip
    to_parquet(folder, "arc/ARC-Easy", "test", rows)
    path.unlink()


def asdiv_xml(folder: Path) -> None:
    path = folder / "asdiv/test.jsonl"
    problems = "".join(
        f"<Problem ID='{number}'><Body>{row['body']}</Body><Question>{row['question']}</Question>"
        f"<Answer>{row['answer']}</Answer></Problem>"
        for number, row in enumerate(json_lines(path))
    )
    (folder / "asdiv/ASDiv.xml").write_text(f"<Corpus><ProblemSet>{problems}</ProblemSet></Corpus>")
    path.unlink()


def simple_parquet(name: str, target: str, splits: dict[str, str]) -> Callable[[Path], None]:
    """Rows as they are, from `NAME/SPLIT.json` or `.jsonl` to `NAME/TARGET/SPLIT-*.parquet`."""

    def change(folder: Path) -> None:
        for file, split in splits.items():
            path = folder / name / file
            text = path.read_text(encoding="utf-8")
            to_parquet(
                folder, f"{name}/{target}", split, json.loads(text) if text.startswith("[") else json_lines(path)
            )
            path.unlink()

    return change


@pytest.mark.parametrize(
    "name, change",
    [
        ("mmlu", mmlu_parquet),
        ("ceval", ceval_parquet),
        ("cmmlu", cmmlu_parquet),
        ("math", math_lines),
        ("humaneval", humaneval_gzip),
        ("arc", arc_parquet),
        ("asdiv", asdiv_xml),
        ("asdiv", simple_parquet("asdiv", ".", {"test.jsonl": "validation"})),
        ("gsm8k", simple_parquet("gsm8k", "main", {"train.jsonl": "train", "test.jsonl": "test"})),
        ("sciq", simple_parquet("sciq", "data", {"train.json": "train", "test.json": "test"})),
        ("aqua_rat", simple_parquet("aqua_rat", "raw", {"dev.json": "validation", "test.json": "test"})),
        ("humaneval", simple_parquet("humaneval", "openai_humaneval", {"HumanEval.jsonl": "test"})),
    ],
)
def test_all_forms_of_a_benchmark_hold_the_same_items(
    published: Path, data_dir: Path, name: str, change: Callable[[Path], None]
) -> None:
    change(data_dir)
    expected, found = READERS[name](published), READERS[name](data_dir)
    assert found == expected
    assert all(set(found[split].files) != set(expected[split].files) for split in found)


def test_a_csv_file_with_a_byte_order_mark_is_read(published: Path, data_dir: Path) -> None:
    path = data_dir / "mmlu/test/anatomy_test.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert READERS["mmlu"](data_dir) == READERS["mmlu"](published)


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_is_told_with_its_place_and_form(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"data is missing: put it at {tmp_path}/{name}/.* \(.+\).*tasks/README.md"):
        READERS[name](tmp_path)


def broken(message: str, file: str, change: Callable[[str], str]) -> Any:
    return pytest.param(file.split("/")[0], file, change, message, id=f"{file}: {message[:50]}")


def first_row(**changes: Any) -> Callable[[str], str]:
    """Changes fields of a file's first row; None takes a field away."""

    def change(text: str) -> str:
        is_whole = text.startswith(("[", "{\n"))
        content = json.loads(text) if is_whole else [json.loads(line) for line in text.splitlines()]
        rows = content if isinstance(content, list) else [content]
        rows[0] = {key: value for key, value in {**rows[0], **changes}.items() if value is not None}
        return json.dumps(rows) if is_whole else "\n".join(map(json.dumps, rows))

    return change


def one_column_more(text: str) -> str:
    """One column too many in the third row."""
    rows = text.splitlines()
    return "\n".join([*rows[:2], rows[2] + ",x", *rows[3:]])


def wrong_letter(text: str) -> str:
    row, _, rest = text.partition("\n")
    return f"{row.rpartition(',')[0]},F\n{rest}"


def short_tests(text: str) -> str:
    rows = [json.loads(line) for line in text.splitlines()]
    return "\n".join(json.dumps(row | {"test_list": row["test_list"][:1]}) for row in rows)


@pytest.mark.parametrize(
    "name, file, change, message",
    [
        broken("is empty; fetch the file again", "gsm8k/test.jsonl", lambda text: ""),
        broken("holds no item to ask", "gsm8k/test.jsonl", lambda text: "\n\n"),
        broken("test.jsonl line 2: is no JSON", "gsm8k/test.jsonl", lambda text: text.replace("\n{", "\n", 1)),
        broken("valid.json: is no JSON", "scieval/scieval-valid.json", lambda text: text[:-40]),
        broken("line 1: question is missing", "gsm8k/test.jsonl", first_row(question=None)),
        broken("line 1: question is 3, not a string", "gsm8k/test.jsonl", first_row(question=3)),
        broken("line 1: question is empty", "gsm8k/test.jsonl", first_row(question=" ")),
        broken("line 1: answer does not end with #### and", "gsm8k/test.jsonl", first_row(answer="It is 3.")),
        broken("line 1: answer does not end with #### and", "gsm8k/test.jsonl", first_row(answer="#### three")),
        broken("test.jsonl line 3: not a JSON object but 5", "gsm8k/test.jsonl", lambda text: "\n\n5\n"),
        broken("anatomy_test.csv line 3: has 7 columns, not 6", "mmlu/test/anatomy_test.csv", one_column_more),
        broken("line 1: answer is 'F', not one of A, B, C, D", "mmlu/test/anatomy_test.csv", wrong_letter),
        broken("is no CSV", "mmlu/test/anatomy_test.csv", lambda text: text + '"never closed'),
        broken("Answer is missing", "cmmlu/test/agronomy.csv", lambda text: text.replace("Answer", "answer", 1)),
        broken("solution has no \\boxed", "math/test/algebra/7.json", first_row(solution="It is 5.")),
        broken("7.json row 1: problem is missing", "math/test/algebra/7.json", first_row(problem=None)),
        broken("target is None, not one number", "mawps/addsub.jsonl", first_row(target=None)),
        broken("target is 'x', not one number", "mawps/addsub.jsonl", first_row(target="x")),
        broken("answer has nothing before its unit", "asdiv/test.jsonl", first_row(answer="(apples)")),
        broken("test_list holds 1 tests", "mbpp/mbpp.jsonl", short_tests),
        broken("id 'HumanEval/0' is that of", "humaneval/HumanEval.jsonl", lambda text: text + text),
        broken("id 2 is that of", "mbpp/mbpp.jsonl", lambda text: text + text),
        broken("row 1: type is 'essay'", "scieval/scieval-valid.json", first_row(type="essay", category="biology")),
        broken("answer is ['E'], not one of A, B, C, D", "scieval/scieval-valid.json",
               first_row(type="multiple-choice", category="biology", answer=["E"])),
        broken("row 1: distractor2 is empty", "sciq/test.json", first_row(distractor2="")),
        broken("answerKey is 'Z', not one of", "arc/ARC-Easy/ARC-Easy-Test.jsonl", first_row(answerKey="Z")),
        broken("line 1: options has 'C)3' in the place of B)", "aqua_rat/test.json", first_row(options=["A)1", "C)3"])),
        broken("line 1: correct is 'E', not one of A", "aqua_rat/test.json", first_row(options=["A)1"], correct="E")),
        broken("line 1: label is 'E', not of ABCD", "agieval/sat-math.jsonl", first_row(label="E")),
        broken("options are 1, not 2 to 10", "agieval/sat-math.jsonl", first_row(options=["(A)"])),
        broken("sat-math is no Python dictionary of constants", "agieval/few_shot_prompts.csv",
               lambda text: text.replace("'passage': ''", "'passage': open('x')", 1)),
    ],
)  # fmt: skip
def test_a_broken_row_is_told_with_file_row_and_field(
    data_dir: Path, name: str, file: str, change: Callable[[str], str], message: str
) -> None:
    path = data_dir / file
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        READERS[name](data_dir)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "name, file, content, message",
    [
        ("ceval", "ceval/val/logic_val.csv", "id,question\n0,问题".encode("gb18030"), "is not UTF-8; convert the file"),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", b"no gzip", "is no gzip file"),
        ("gsm8k", "gsm8k/main/test-00000-of-00001.parquet", b"PAR1 torn", "is no Parquet file"),
        ("asdiv", "asdiv/ASDiv.xml", b"<Problem><Body>", "is no XML"),
    ],
)
def test_bytes_of_another_format_are_told(data_dir: Path, name: str, file: str, content: bytes, message: str) -> None:
    for other in (data_dir / file).parent.glob("*") if "parquet" not in file else (data_dir / "gsm8k").glob("test*"):
        other.unlink()
    (data_dir / file).parent.mkdir(exist_ok=True)
    (data_dir / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{data_dir / file}.*{message}"):
        READERS[name](data_dir)


def test_two_forms_of_the_same_data_are_refused(data_dir: Path) -> None:
    path = data_dir / "humaneval/HumanEval.jsonl"
    (data_dir / "humaneval/HumanEval.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path} and {path}.gz are the same data in two forms: keep one"):
        items.humaneval(data_dir)


def test_a_part_that_is_missing_is_told(data_dir: Path) -> None:
    (data_dir / "mawps/singleop.jsonl").unlink()
    with pytest.raises(ValueError, match=r"mawps/singleop.jsonl: 0 of the files are there; fetch the others"):
        items.mawps(data_dir)
    mmlu_parquet(data_dir)
    (data_dir / "mmlu/anatomy/test-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"mmlu/anatomy/test-\*.parquet: 1 of the files are there; fetch the others"):
        READERS["mmlu"](data_dir)


def test_the_hash_is_that_of_the_bytes_that_were_read(data_dir: Path) -> None:
    before = READERS["gsm8k"](data_dir)["test"].files
    path = data_dir / "gsm8k/test.jsonl"
    path.write_bytes(path.read_bytes() + b"\n")
    assert before.keys() == READERS["gsm8k"](data_dir)["test"].files.keys() == {"gsm8k/test.jsonl"}
    assert before != READERS["gsm8k"](data_dir)["test"].files


def test_a_folder_of_many_files_has_one_hash(tmp_path: Path) -> None:
    data_dir = write_benchmarks(tmp_path, num_items=30)
    before = READERS["math"](data_dir)["test"].files
    assert list(before) == ["math/test/algebra/"]
    path = data_dir / "math/test/algebra/3.json"
    path.write_bytes(path.read_bytes() + b"\n")
    assert READERS["math"](data_dir)["test"].files != before


def test_questions_that_no_single_letter_answers_are_lost(data_dir: Path) -> None:
    path = data_dir / "agieval/sat-math.jsonl"
    path.write_text(first_row(label="A D")(path.read_text()))
    assert items.agieval(data_dir, "sat-math")["test"][0]["gold"] == items.SEVERAL < 0

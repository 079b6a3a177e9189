"""What becomes of an answer: parsed strictly, checked, and named where something is wrong with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synE.config.answers import AnswersConfig
from megatron_synE.synthesis.checks import is_in_language
from megatron_synE.synthesis.parse import boxed, code_blocks, parse_sections
from megatron_synE.synthesis.prompts import load_prompts, read_prompt
from megatron_synE.synthesis.task import Accepted, ContentError, Rejected, Snippet
from megatron_synE.synthesis.tasks import PromptTask, PromptTasks

PROMPTS = load_prompts()
SNIPPET = Snippet("web:1:0-9", "Apples grow on trees in the orchard behind the old mill.", {}, "mathematics", "en")
HEADINGS = {"problem": "### Problem", "solution": "### Solution"}
PROBLEM = "A crate holds 12 rows of 8 apples each. How many apples do three such crates hold together?"
SOLUTION = (
    "One crate holds as many apples as its rows times the apples of a row: 12 x 8 = 96. Three crates hold three times "
    "as many, as all are equal: 3 x 96 = 288. So the apples number \\boxed{288}."
)
GOOD = f"### Problem\n{PROBLEM}\n\n### Solution\n{SOLUTION}\n"
GOOD_ZH = (
    "### 题目\n一个箱子里有12行苹果，每行8个。三个这样的箱子一共有多少个苹果？\n### 解答\n"
    "一个箱子里的苹果数等于行数乘以每行的个数，即12×8=96个。三个箱子完全相同，所以一共有3×96=288个苹果。"
    "检查：每行24个，12行共288个，结果一致。用加法再验算一遍，九十六加九十六等于一百九十二，再加九十六等于二百八十八。"
    "答案是\\boxed{288}。\n"
)
PROGRAM = "def total(rows: int, width: int) -> int:\n    return rows * width\n"
EXAMPLES = "assert total(12, 8) == 96\nassert total(0, 8) == 0\n"


def judge(answer: str, kind: str = "mathematics", language: str = "en", finish: str = "stop", **changes: Any) -> str:
    """`accepted`, the reason of a rejection, or `failed: ` and the reason."""
    snippet = replace(SNIPPET, discipline=kind, language=language)
    task = PromptTasks(PROMPTS, AnswersConfig(**changes)).of(snippet)
    try:
        verdict = task.judge(snippet, answer, finish)
    except ContentError as error:
        return f"failed: {error}"
    return verdict.reason if isinstance(verdict, Rejected) else "accepted"


def code_answer(program: str = PROGRAM, examples: str = EXAMPLES, prose: str = "Multiply, in constant time.") -> str:
    return (
        f"### Problem\n{PROBLEM} Write `total`.\n### Solution\n{prose} " + "It is as simple as it looks at first. " * 1
        + f"\n```python\n{program}```\n### Examples\n```python\n{examples}```\n"
    )  # fmt: skip


def test_a_good_answer_becomes_a_document_with_its_origin() -> None:
    task = PromptTask(PROMPTS["mathematics", "en"], AnswersConfig())
    accepted = task.judge(SNIPPET, GOOD, "stop")
    assert isinstance(accepted, Accepted)
    assert accepted.document == {
        "kind": "mathematics", "language": "en", "task": "question_answer", "prompt_version": 1,
        "prompt_fingerprint": PROMPTS["mathematics", "en"].fingerprint,
        "text": "Problem: {{problem}}\n\nSolution: {{solution}}",
        "sections": {"problem": PROBLEM, "solution": SOLUTION},
    }  # fmt: skip


@pytest.mark.parametrize(
    "answer, finish, verdict",
    [
        (GOOD, "stop", "accepted"),
        ("<think>\n### Problem? Let me think.\n</think>\n\n" + GOOD, "stop", "accepted"),
        (GOOD, "length", "failed: cut by length"),
        (GOOD, "content_filter", "filtered by the server"),
        ("", "stop", "failed: empty answer"),
        ("<think>hm</think>", "stop", "failed: empty answer"),
        ("Sure! " + GOOD, "stop", "failed: text before the first heading"),
        ("Here it is:\n" + GOOD, "stop", "failed: text before the first heading"),
        (f"### Problem\n{PROBLEM}", "stop", "failed: no solution"),
        (f"### Solution\n{SOLUTION}\n### Problem\n{PROBLEM}", "stop", "failed: sections in another order"),
        (GOOD + GOOD, "stop", "failed: heading of problem twice"),
        (f"### Problem\n\n### Solution\n{SOLUTION}", "stop", "failed: empty problem"),
        (GOOD + "<|im_end|>", "stop", "failed: control token in the answer"),
        (GOOD + "```python\nx = 1\n", "stop", "failed: code block without an end"),
        (GOOD.replace("### Solution", "**Solution**"), "stop", "failed: no solution"),
        ("I'm sorry, but I cannot make a problem of this.", "stop", "refused"),
        ("Unfortunately, as an AI language model I have no opinion.", "stop", "refused"),
        (f"### Problem\nI cannot do that, as it would be wrong.\n### Solution\n{SOLUTION}", "stop", "refused"),
        (f"### Problem\nWhy?\n### Solution\n{SOLUTION}", "stop", "failed: problem too short"),
        (f"### Problem\n{PROBLEM}\n### Solution\n\\boxed{{288}}", "stop", "failed: solution too short"),
        (GOOD.replace("together?", "together? " * 500), "stop", "problem too long"),
        (GOOD.replace("\\boxed{288}", "288"), "stop", "no final answer"),
        (GOOD.replace("\\boxed{288}", "\\boxed{ }"), "stop", "no final answer"),
        (GOOD.replace("\\boxed{288}", "\\boxed{288"), "stop", "no final answer"),
        (GOOD.replace("96.", "\\boxed{96}."), "stop", "several final answers"),
        (GOOD.replace("A crate", "In the passage, a crate"), "stop", "problem refers to the snippet"),
        (GOOD_ZH.replace("题目", "Problem").replace("解答", "Solution"), "stop", "not in en"),
        (f"### Problem\n{PROBLEM}\n### Solution\n" + "We try again and again, and then we try it once more. " * 9
         + "\\boxed{1}", "stop", "repeats itself"),
    ],
)  # fmt: skip
def test_each_fault_has_its_name(answer: str, finish: str, verdict: str) -> None:
    assert judge(answer, finish=finish) == verdict


def test_an_answer_that_copies_the_snippet_is_rejected() -> None:
    text = " ".join(f"apple{number}" for number in range(200))
    answer = f"### Problem\n{PROBLEM}\n### Solution\n{text} \\boxed{{1}}"
    task = PromptTask(PROMPTS["mathematics", "en"], AnswersConfig())
    assert task.judge(replace(SNIPPET, text=text), answer, "stop") == Rejected("copies the snippet")
    assert isinstance(task.judge(SNIPPET, answer, "stop"), Accepted)


def test_chinese_answers() -> None:
    assert judge(GOOD_ZH, language="zh") == "accepted"
    assert judge(GOOD.replace("Problem", "题目").replace("Solution", "解答"), language="zh") == "not in zh"
    about = GOOD_ZH.replace("一个箱子里有", "根据上述片段，一箱有")
    assert judge(about, language="zh") == "problem refers to the snippet"
    assert judge("抱歉，我无法完成这个请求。", language="zh") == "refused"


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (code_answer(), "accepted"),
        (code_answer(program="def total(:\n"), "program does not parse"),
        (code_answer(program="x = 1\n"), "program defines nothing"),
        (code_answer(examples="assert other(1)\n"), "examples of something else"),
        (code_answer(examples="assert total(\n"), "examples do not parse"),
        (code_answer(examples="total(1, 2)\n"), "no examples"),
        (code_answer(program=PROGRAM + "# ### Examples\n\n### Examples\n"), "accepted"),
        (code_answer(program=PROGRAM + "```\n\n```python\n" + PROGRAM), "several programs"),
        (code_answer().replace("```python\ndef", "def").replace("width\n```", "width\n"), "no program"),
        (code_answer(program=PROGRAM + "x = " + "(" * 3000 + ")" * 3000 + "\n"), "program does not parse"),
    ],
)
def test_code_parses_and_has_examples_of_its_own(answer: str, verdict: str) -> None:
    assert judge(answer, kind="code") == verdict


@pytest.mark.parametrize(
    "answer, language, verdict",
    [
        ("Topic: law_and_policy", "en", "accepted"),
        ("Topic: law_and_policy\n", "en", "accepted"),
        ("Topic:\nlaw_and_policy", "en", "accepted"),
        ("主题：others", "zh", "accepted"),
        ("law_and_policy", "en", "failed: text before the first heading"),
        ("Topic: law", "en", "failed: no such label"),
        ("Topic: law_and_policy, others", "en", "failed: no such label"),
        ("I cannot say.", "en", "refused"),
    ],
)
def test_labels_are_those_of_the_prompt_file(answer: str, language: str, verdict: str) -> None:
    assert judge(answer, kind="topic_label", language=language) == verdict


def test_the_second_pass_lists_the_labels_the_other_way() -> None:
    task = PromptTask(PROMPTS["topic_label", "en"], AnswersConfig())
    first, second = (task.messages(replace(SNIPPET, source={"pass": number})) for number in (1, 2))
    assert first != second and len(first[-1]["content"]) == len(second[-1]["content"])


def test_the_fingerprint_is_of_prompt_and_checks(tmp_path: Path) -> None:
    prompt = PROMPTS["mathematics", "en"]
    task = PromptTask(prompt, AnswersConfig())
    edited = tmp_path / prompt.path.name
    edited.write_text(prompt.path.read_text(encoding="utf-8").replace("textbook", "book"), encoding="utf-8")
    others = [
        PromptTask(read_prompt(edited), AnswersConfig()),
        PromptTask(prompt, AnswersConfig(min_problem_chars=21)),
        PromptTask(PROMPTS["physics", "en"], AnswersConfig()),
    ]
    assert len({task.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert task.fingerprint == PromptTask(prompt, AnswersConfig()).fingerprint


def test_tasks_of_a_job_have_kinds_of_their_own() -> None:
    tasks = PromptTasks(PROMPTS, AnswersConfig())
    assert len({task.kind for task in tasks.kinds()}) == len(PROMPTS) == 22
    assert tasks.of(SNIPPET).kind == "mathematics.en"
    with pytest.raises(ValueError, match="no prompt of kind 'alchemy' in language 'en'"):
        tasks.of(replace(SNIPPET, discipline="alchemy"))


def test_sections_keep_indentation_and_inner_headings_of_code() -> None:
    answer = "### Problem\n\n    indented\nmore\n\n### Solution\n```\n### Problem\n```\n"
    assert parse_sections(answer, HEADINGS) == {"problem": "    indented\nmore", "solution": "```\n### Problem\n```"}


def test_boxed_knows_braces() -> None:
    assert boxed(r"\boxed{\frac{1}{2}} and \boxed {x \} y}") == [r"\frac{1}{2}", r"x \} y"]
    assert boxed(r"\boxed{1") == []


@pytest.mark.parametrize("text", ["\\boxed{" * 2000, "$" * 12_000, "\\[" * 6000, "```\n" * 3001, "1." * 6000 + "x"])
def test_odd_answers_are_judged_in_no_time(text: str) -> None:
    assert judge(f"### Problem\n{PROBLEM}\n### Solution\n{text}") != "accepted"


LINES = ["### Problem", "### Solution", "```", "```python", "~~~", "x = 1", "", " ", "\\boxed{1}"]


@given(st.lists(st.sampled_from(LINES)))
def test_any_text_is_parsed_or_refused_by_name(lines: list[str]) -> None:
    answer = "\n".join(lines)
    try:
        sections = parse_sections(answer, HEADINGS)
    except ContentError as error:
        assert str(error)
    else:
        assert list(sections) == ["problem", "solution"] and all(sections.values())
        assert all(text in answer for text in sections.values())
        assert "".join(code_blocks(answer)[1]).count("x = 1") <= lines.count("x = 1")


def test_code_blocks_are_pythons() -> None:
    text = "a\n```python\nx = 1\n```\nb\n```json\n{}\n```\n~~~\ny\n```\n~~~"
    assert code_blocks(text) == ("a\nb\n```json\n{}\n```", ["x = 1\n", "y\n```\n"])


@pytest.mark.parametrize(
    "text, languages",
    [
        ("The mass is $m = 3$ kg.", {"en"}),
        ("质量为 3 kg 的物体 mass 受力。", {"zh"}),
        ("Масса тела равна трём.", set()),
        ("`print(x)`", set()),
        ("用 Python 写一个函数 total，返回总数。", {"zh"}),
        ("The word 道 means way, and the word 山 means mountain, in English.", {"en"}),
    ],
)
def test_languages_are_told_by_their_letters(text: str, languages: set[str]) -> None:
    assert {language for language in ("en", "zh") if is_in_language(text, language)} == languages

"""Every task's prompt, against one written by hand: few-shot examples, last question, what is scored or asked for."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_synE.evaluation.tasks.task_files import load_tasks


def requests(data_dir: Path, task: str, number: int = 0) -> tuple[str, list[Any]]:
    """Context of an item, and its continuations or, where it is to be continued, where that ends."""
    made = load_tasks([task], data_dir, run_code=True).task_dict["tasks"][task]
    made.build_all_requests(limit=number + 1)
    own = [request for request in made.instances if request.doc_id == number]
    [context] = {request.args[0] for request in own}
    return context, [
        request.args[1] if made.OUTPUT_TYPE == "multiple_choice" else request.args[1]["until"] for request in own
    ]


def write_lines(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


def write_csv(path: Path, *rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def test_mmlu(tmp_path: Path) -> None:
    examples = [[f"Why {n}?", f"w{n}", f"x{n}", f"y{n}", f"z{n}", "ABCDA"[n]] for n in range(5)]
    write_csv(tmp_path / "mmlu/dev/world_religions_dev.csv", *examples)
    write_csv(
        tmp_path / "mmlu/test/world_religions_test.csv", ["Who\nwas it? ", "Ann", "Bob", "Cid", "Dan, or Eve", "C"]
    )
    assert requests(tmp_path, "mmlu_world_religions") == (
        "The following are multiple choice questions (with answers) about world religions.\n\n"
        "Why 0?\nA. w0\nB. x0\nC. y0\nD. z0\nAnswer: A\n\n"
        "Why 1?\nA. w1\nB. x1\nC. y1\nD. z1\nAnswer: B\n\n"
        "Why 2?\nA. w2\nB. x2\nC. y2\nD. z2\nAnswer: C\n\n"
        "Why 3?\nA. w3\nB. x3\nC. y3\nD. z3\nAnswer: D\n\n"
        "Why 4?\nA. w4\nB. x4\nC. y4\nD. z4\nAnswer: A\n\n"
        "Who\nwas it?\nA. Ann\nB. Bob\nC. Cid\nD. Dan, or Eve\nAnswer:",
        [" A", " B", " C", " D"],
    )


def test_ceval(tmp_path: Path) -> None:
    examples = [[n, f"问{n}____", f"一{n}", f"二{n}", f"三{n}", f"四{n}", "ABCDA"[n], "因为。"] for n in range(5)]
    header = ["id", "question", "A", "B", "C", "D", "answer"]
    write_csv(tmp_path / "ceval/dev/logic_dev.csv", [*header, "explanation"], *examples)
    write_csv(tmp_path / "ceval/val/logic_val.csv", header, [0, "谁是对的？", "甲", "乙", "丙", "丁", "B"])
    assert requests(tmp_path, "ceval_logic") == (
        "以下是中国关于逻辑学的单项选择题，请选出其中的正确答案。\n\n"
        "问0____\nA. 一0\nB. 二0\nC. 三0\nD. 四0\n答案：A\n\n"
        "问1____\nA. 一1\nB. 二1\nC. 三1\nD. 四1\n答案：B\n\n"
        "问2____\nA. 一2\nB. 二2\nC. 三2\nD. 四2\n答案：C\n\n"
        "问3____\nA. 一3\nB. 二3\nC. 三3\nD. 四3\n答案：D\n\n"
        "问4____\nA. 一4\nB. 二4\nC. 三4\nD. 四4\n答案：A\n\n"
        "谁是对的？\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：",
        ["A", "B", "C", "D"],
    )


def test_cmmlu(tmp_path: Path) -> None:
    header = ["", "Question", "A", "B", "C", "D", "Answer"]
    examples = [[n, f"问{n}", f"一{n}", f"二{n}", f"三{n}", f"四{n}", "DCBAD"[n]] for n in range(5)]
    write_csv(tmp_path / "cmmlu/dev/chinese_driving_rule.csv", header, *examples)
    write_csv(tmp_path / "cmmlu/test/chinese_driving_rule.csv", header, [0, "红灯时", "停", "行", "快", "慢", "A"])
    assert requests(tmp_path, "cmmlu_chinese_driving_rule") == (
        "以下是关于中国驾驶规则的单项选择题，请直接给出正确答案的选项。\n\n"
        "问0\nA. 一0\nB. 二0\nC. 三0\nD. 四0\n答案：D\n\n"
        "问1\nA. 一1\nB. 二1\nC. 三1\nD. 四1\n答案：C\n\n"
        "问2\nA. 一2\nB. 二2\nC. 三2\nD. 四2\n答案：B\n\n"
        "问3\nA. 一3\nB. 二3\nC. 三3\nD. 四3\n答案：A\n\n"
        "问4\nA. 一4\nB. 二4\nC. 三4\nD. 四4\n答案：D\n\n"
        "红灯时\nA. 停\nB. 行\nC. 快\nD. 慢\n答案：",
        ["A", "B", "C", "D"],
    )


def write_agieval(data_dir: Path, name: str, row: dict[str, Any], questions: list[str]) -> None:
    rest = {"answer": None, "other": None}
    write_lines(data_dir / f"agieval/{name}.jsonl", {**row, **rest})
    table = [["", name]]
    for number, question in enumerate(questions):
        options = [f"({letter}){letter.lower()}{number}" for letter in "ABCD"]
        example = {"passage": None, "question": question, "options": options, "label": "ABCDA"[number], **rest}
        table += [[f"sample {number + 1}", repr(example)], [f"explanation {number + 1}", "It's so."]]
    write_csv(data_dir / "agieval/few_shot_prompts.csv", *table)


def test_sat_math(tmp_path: Path) -> None:
    row = {"passage": "Two cars. ", "question": "How $x$?", "options": ["(A)1", "(B)2", "(C)3"], "label": "C"}
    write_agieval(tmp_path, "sat-math", row, [f"Is {n}?" for n in range(5)])
    assert requests(tmp_path, "sat_math") == (
        "Q: Is 0? Answer Choices: (A)a0 (B)b0 (C)c0 (D)d0\nA: Among A through D, the answer is A\n\n"
        "Q: Is 1? Answer Choices: (A)a1 (B)b1 (C)c1 (D)d1\nA: Among A through D, the answer is B\n\n"
        "Q: Is 2? Answer Choices: (A)a2 (B)b2 (C)c2 (D)d2\nA: Among A through D, the answer is C\n\n"
        "Q: Is 3? Answer Choices: (A)a3 (B)b3 (C)c3 (D)d3\nA: Among A through D, the answer is D\n\n"
        "Q: Is 4? Answer Choices: (A)a4 (B)b4 (C)c4 (D)d4\nA: Among A through D, the answer is A\n\n"
        "Two cars. Q: How $x$? Answer Choices: (A)1 (B)2 (C)3\nA: Among A through C, the answer is",
        [" A", " B", " C"],
    )


@pytest.mark.parametrize("subject", ["mathqa", "chemistry", "biology"])
def test_gaokao(tmp_path: Path, subject: str) -> None:
    row = {"passage": None, "question": "几个？", "options": ["(A)一", "(B)二", "(C)三", "(D)四"], "label": "B"}
    write_agieval(tmp_path, f"gaokao-{subject}", row, [f"问{n}" for n in range(5)])
    assert requests(tmp_path, f"gaokao_{subject}") == (
        "问题：问0 选项：(A)a0 (B)b0 (C)c0 (D)d0\n答案：从A到D, 我们应选择A\n\n"
        "问题：问1 选项：(A)a1 (B)b1 (C)c1 (D)d1\n答案：从A到D, 我们应选择B\n\n"
        "问题：问2 选项：(A)a2 (B)b2 (C)c2 (D)d2\n答案：从A到D, 我们应选择C\n\n"
        "问题：问3 选项：(A)a3 (B)b3 (C)c3 (D)d3\n答案：从A到D, 我们应选择D\n\n"
        "问题：问4 选项：(A)a4 (B)b4 (C)c4 (D)d4\n答案：从A到D, 我们应选择A\n\n"
        "问题：几个？ 选项：(A)一 (B)二 (C)三 (D)四\n答案：从A到D, 我们应选择",
        ["A", "B", "C", "D"],
    )


def test_aqua_rat(tmp_path: Path) -> None:
    options = ["A)1", "B)2", "C)3", "D)4", "E)5"]
    rows = [{"question": f"Is {n}?", "options": options, "rationale": "-", "correct": "ABCDE"[n]} for n in range(5)]
    write_lines(tmp_path / "aqua_rat/dev.json", *rows)
    write_lines(
        tmp_path / "aqua_rat/test.json", {**rows[0], "question": "How far?", "options": [*options[:4], "E)None"]}
    )
    assert requests(tmp_path, "aqua_rat") == (
        "Q: Is 0? Answer Choices: (A)1 (B)2 (C)3 (D)4 (E)5\nA: Among A through E, the answer is A\n\n"
        "Q: Is 1? Answer Choices: (A)1 (B)2 (C)3 (D)4 (E)5\nA: Among A through E, the answer is B\n\n"
        "Q: Is 2? Answer Choices: (A)1 (B)2 (C)3 (D)4 (E)5\nA: Among A through E, the answer is C\n\n"
        "Q: Is 3? Answer Choices: (A)1 (B)2 (C)3 (D)4 (E)5\nA: Among A through E, the answer is D\n\n"
        "Q: Is 4? Answer Choices: (A)1 (B)2 (C)3 (D)4 (E)5\nA: Among A through E, the answer is E\n\n"
        "Q: How far? Answer Choices: (A)1 (B)2 (C)3 (D)4 (E)None\nA: Among A through E, the answer is",
        [" A", " B", " C", " D", " E"],
    )


def scieval_row(number: int, question: str, answer: str, **fields: str) -> dict[str, Any]:
    row = {
        "category": "biology",
        "topic": None,
        "ability": "Research Ability",
        "type": "judge",
        "task_name": "PubMedQA",
    }
    asked = {"question": f"{question}\n\nAnswer:", "answer": [answer], "prompt": "Say yes or no.", "cot_prompt": ""}
    return {**row, **asked, "id": f"{question} {number}", **fields}


def test_scieval(tmp_path: Path) -> None:
    """An item's examples are those of its own task and ability, and it is asked in the words published with it."""
    letters = {"type": "multiple-choice", "task_name": "MedQA", "prompt": "Answer with a letter."}
    dev = [scieval_row(n, f"Which {n}?\n\nA. a\nB. b", "ABCDA"[n], **letters) for n in range(5)]
    dev += [scieval_row(n, f"Text {n}.\n\nSo?", ["yes", "no", "maybe", "no", "yes"][n]) for n in range(6) if n < 5]
    valid = [scieval_row(9, "Cells.\n\nDo they?", "no"), scieval_row(9, "What?\n\nA. x\nB. y", "B", **letters)]
    for name, rows in (("dev", dev), ("valid", valid)):
        path = tmp_path / f"scieval/scieval-{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows))
    assert requests(tmp_path, "scieval_biology", 0) == (
        "Say yes or no.\n\n"
        "Text 0.\n\nSo?\n\nAnswer: yes\n\n"
        "Text 1.\n\nSo?\n\nAnswer: no\n\n"
        "Text 2.\n\nSo?\n\nAnswer: maybe\n\n"
        "Text 3.\n\nSo?\n\nAnswer: no\n\n"
        "Text 4.\n\nSo?\n\nAnswer: yes\n\n"
        "Cells.\n\nDo they?\n\nAnswer:",
        [" yes", " no", " maybe"],
    )
    assert requests(tmp_path, "scieval_biology", 1) == (
        "Answer with a letter.\n\n"
        "Which 0?\n\nA. a\nB. b\n\nAnswer: A\n\n"
        "Which 1?\n\nA. a\nB. b\n\nAnswer: B\n\n"
        "Which 2?\n\nA. a\nB. b\n\nAnswer: C\n\n"
        "Which 3?\n\nA. a\nB. b\n\nAnswer: D\n\n"
        "Which 4?\n\nA. a\nB. b\n\nAnswer: A\n\n"
        "What?\n\nA. x\nB. y\n\nAnswer:",
        [" A", " B", " C", " D"],
    )


def test_sciq(tmp_path: Path) -> None:
    wrong = {"distractor1": "ice", "distractor2": "fog", "distractor3": "rain"}
    rows = [{"question": f"Q{n}?", **wrong, "correct_answer": f"a {n}", "support": f" S{n}."} for n in range(6)]
    for name, own in (("train", rows[:5]), ("test", [{**rows[5], "support": ""}])):
        path = tmp_path / f"sciq/{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(own))
    assert requests(tmp_path, "sciq") == (
        "S0.\nQuestion: Q0?\nAnswer: a 0\n\n"
        "S1.\nQuestion: Q1?\nAnswer: a 1\n\n"
        "S2.\nQuestion: Q2?\nAnswer: a 2\n\n"
        "S3.\nQuestion: Q3?\nAnswer: a 3\n\n"
        "S4.\nQuestion: Q4?\nAnswer: a 4\n\n"
        "\nQuestion: Q5?\nAnswer:",
        [" ice", " fog", " rain", " a 5"],
    )


@pytest.mark.parametrize("task, folder", [("arc_easy", "ARC-Easy"), ("arc_challenge", "ARC-Challenge")])
def test_arc(tmp_path: Path, task: str, folder: str) -> None:
    choices = [{"text": text, "label": label} for text, label in (("a cat", "1"), ("Dogs", "2"), ("6 °C", "3"))]
    row = {"id": "x", "question": {"stem": "What is warm?", "choices": choices}, "answerKey": "2"}
    write_lines(tmp_path / f"arc/{folder}/{folder}-Test.jsonl", row)
    assert requests(tmp_path, task) == ("Question: What is warm?\nAnswer:", [" a cat", " Dogs", " 6 °C"])


def test_gsm8k(tmp_path: Path) -> None:
    rows = [{"question": f"How many {n}?", "answer": f"It is <<{n}+1={n + 1}>>.\n#### {n + 1}"} for n in range(9)]
    write_lines(tmp_path / "gsm8k/train.jsonl", *rows)
    write_lines(tmp_path / "gsm8k/test.jsonl", {"question": "How tall?", "answer": "Tall.\n#### 1,200"})
    assert requests(tmp_path, "gsm8k") == (
        "Question: How many 0?\nAnswer: It is <<0+1=1>>.\n#### 1\n\n"
        "Question: How many 1?\nAnswer: It is <<1+1=2>>.\n#### 2\n\n"
        "Question: How many 2?\nAnswer: It is <<2+1=3>>.\n#### 3\n\n"
        "Question: How many 3?\nAnswer: It is <<3+1=4>>.\n#### 4\n\n"
        "Question: How many 4?\nAnswer: It is <<4+1=5>>.\n#### 5\n\n"
        "Question: How many 5?\nAnswer: It is <<5+1=6>>.\n#### 6\n\n"
        "Question: How many 6?\nAnswer: It is <<6+1=7>>.\n#### 7\n\n"
        "Question: How many 7?\nAnswer: It is <<7+1=8>>.\n#### 8\n\n"
        "Question: How tall?\nAnswer:",
        [["Question:"]],
    )


CHAIN_OF_THOUGHT = (
    "Q: There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, "
    "there will be 21 trees. How many trees did the grove workers plant today?\nA: There are 15 trees originally. Then "
    "there were 21 trees after some more were planted. So there must have been 21 - 15 = 6. The answer is 6.\n\n"
    "Q: If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?\nA: There "
    "are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The answer is 5.\n\n"
    "Q: Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left in total?\nA: "
    "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating 35, they "
    "had 74 - 35 = 39. The answer is 39.\n\n"
    "Q: Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many lollipops did Jason "
    "give to Denny?\nA: Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny "
    "20 - 12 = 8. The answer is 8.\n\n"
    "Q: Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many toys does he have now?"
    "\nA: Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more toys. 5 + 4 = 9. "
    "The answer is 9.\n\n"
    "Q: There were nine computers in the server room. Five more computers were installed each day, from monday to "
    "thursday. How many computers are now in the server room?\nA: There were originally 9 computers. For each of 4 "
    "days, 5 more computers were added. So 5 * 4 = 20 computers were added. 9 + 20 is 29. The answer is 29.\n\n"
    "Q: Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. How many golf "
    "balls did he have at the end of wednesday?\nA: Michael started with 58 golf balls. After losing 23 on tuesday, he "
    "had 58 - 23 = 35. After losing 2 more, he had 35 - 2 = 33 golf balls. The answer is 33.\n\n"
    "Q: Olivia has $23. She bought five bagels for $3 each. How much money does she have left?\nA: Olivia had 23 "
    "dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has 23 - 15 dollars left. 23 - 15 is 8. "
    "The answer is 8.\n\n"
)


def test_asdiv(tmp_path: Path) -> None:
    xml = (
        '<?xml version="1.0" encoding="UTF-8" ?><Machine-Reading-Corpus-File><ProblemSet>'
        '<Problem ID="1" Grade="1"><Body>Two &amp; two.</Body><Question>Which? </Question>'
        "<Answer>4 (years old); 5 (years old)</Answer></Problem>"
        '<Problem ID="2" Grade="1"><Body> Ben has 3 eggs. </Body><Question>How many?</Question>'
        "<Answer>3 (eggs)</Answer></Problem></ProblemSet></Machine-Reading-Corpus-File>"
    )
    (tmp_path / "asdiv").mkdir()
    (tmp_path / "asdiv/ASDiv.xml").write_text(xml)
    assert requests(tmp_path, "asdiv") == (CHAIN_OF_THOUGHT + "Q: Ben has 3 eggs. How many?\nA:", [["Q:"]])


def test_mawps(tmp_path: Path) -> None:
    rows = [{"iIndex": 1, "sQuestion": "Tim has 5 . How many ?", "lEquations": ["X=5"], "lSolutions": [5.0]}]
    (tmp_path / "mawps").mkdir()
    (tmp_path / "mawps/mawps.json").write_text(json.dumps(rows))
    assert requests(tmp_path, "mawps") == (CHAIN_OF_THOUGHT + "Q: Tim has 5 . How many ?\nA:", [["Q:"]])


def test_math(tmp_path: Path) -> None:
    for number in (2, 10, 33, 4, 100, 7):  # by number, not by name: 2, 4, 7, 10, 33
        row = {
            "problem": f"Find ${number}$.",
            "level": "Level 5",
            "type": "Algebra",
            "solution": f"$\\boxed{{{number}}}$.",
        }
        write_lines(tmp_path / f"math/train/prealgebra/{number}.json", row)
    row = {"problem": "Find $x$.", "level": "Level 1", "type": "Prealgebra", "solution": "[asy] \\boxed{1} [/asy]"}
    write_lines(tmp_path / "math/test/prealgebra/1.json", row)
    assert requests(tmp_path, "math_prealgebra") == (
        "Problem:\nFind $2$.\n\nSolution: $\\boxed{2}$.\n\n"
        "Problem:\nFind $4$.\n\nSolution: $\\boxed{4}$.\n\n"
        "Problem:\nFind $7$.\n\nSolution: $\\boxed{7}$.\n\n"
        "Problem:\nFind $10$.\n\nSolution: $\\boxed{10}$.\n\n"
        "Problem:\nFind $33$.\n\nSolution: $\\boxed{33}$.\n\n"
        "Problem:\nFind $x$.\n\nSolution:",
        [["Problem:"]],
    )


def test_humaneval(tmp_path: Path) -> None:
    row = {"task_id": "HumanEval/0", "prompt": "\ndef f(x):\n    '''Twice.'''\n", "entry_point": "f", "test": "…"}
    write_lines(tmp_path / "humaneval/HumanEval.jsonl", row)
    ends = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
    assert requests(tmp_path, "humaneval") == ("\ndef f(x):\n    '''Twice.'''\n", [ends])


def test_mbpp(tmp_path: Path) -> None:
    rows = [
        {"text": f"Write {n}.", "code": f"def f():\r\n  return {n}", "task_id": n, "test_setup_code": "",
         "test_list": [f"assert f() == {n}", "assert f()", "assert True", "assert not shown"]}
        for n in (1, 2, 3, 4, 5, 11)
    ]  # fmt: skip
    write_lines(tmp_path / "mbpp/mbpp.jsonl", *rows)
    asked = (
        "You are an expert Python programmer, and here is your task: Write {0}. Your code should pass these tests:\n\n"
    )
    shown = asked + "assert f() == {0}\nassert f()\nassert True\n[BEGIN]\n"
    example = shown + "def f():\r\n  return {0}\n[DONE]\n\n"
    prompt = example.format(2) + example.format(3) + example.format(4) + shown.format(11)
    assert requests(tmp_path, "mbpp") == (prompt, [["[DONE]"]])

"""Prompt files: what is shipped, what a user may add, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_synE.corpus.topics import RECIPE_TOPICS
from megatron_synE.synthesis.prompts import SHIPPED, fill, load_prompts, read_prompt

DISCIPLINES = {
    "mathematics", "physics", "chemistry", "biology", "astronomy", "earth_science", "medical_science",
    "computer_science", "general_education",
}  # fmt: skip
GOOD = """
kind: linguistics
language: en
version: 1
task: question_answer
title: Linguistics
topics: [psychology_and_sociology]
user: |
  Make a problem of {{snippet}} in this form:
  ### Problem
  ### Solution
sections: {problem: "### Problem", solution: "### Solution"}
text: "{{problem}} {{solution}}"
"""


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_nine_disciplines_code_and_topic_labels_are_shipped_in_two_languages() -> None:
    prompts = load_prompts()
    wanted = DISCIPLINES | {"code", "topic_label"}
    assert set(prompts) == {(kind, language) for kind in wanted for language in ("en", "zh")}
    for (kind, language), prompt in prompts.items():
        assert prompt.path.name == f"{kind}.{language}.yaml"


def test_every_topic_of_the_recipe_but_others_leads_to_a_discipline() -> None:
    for language in ("en", "zh"):
        own = [prompt.fields for (_, other), prompt in load_prompts().items() if other == language]
        claimed = {topic for fields in own for topic in fields.topics}
        assert claimed == set(RECIPE_TOPICS) - {"others"}
        for topic in claimed:  # where several take a topic, words decide: each needs some
            candidates = [fields for fields in own if topic in fields.topics]
            assert len(candidates) == 1 or all(fields.keywords for fields in candidates)


def test_topic_labels_are_the_recipes() -> None:
    for language in ("en", "zh"):
        assert tuple(load_prompts()["topic_label", language].fields.labels) == RECIPE_TOPICS


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("code.*")), ids=lambda path: path.stem)
def test_the_worked_examples_of_code_pass_their_own_examples(path: Path) -> None:
    for example in read_prompt(path).fields.examples:
        blocks = re.findall(r"```python\n(.*?)```", example, re.DOTALL)
        assert len(blocks) == 2 and blocks[1].count("assert ") >= 3
        exec("\n".join(blocks), {})


def test_a_chat_has_the_snippet_and_examples_that_depend_on_it() -> None:
    prompt = load_prompts()["code", "en"]
    chats = {number: prompt.messages("x = {{examples}}", f"snippet-{number}") for number in range(6)}
    system, user = chats[0]
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"].endswith("x = {{examples}}")  # what is put in is text, never a placeholder
    assert user["content"].count("### Problem") == 1 + prompt.fields.num_examples
    assert chats[0] == prompt.messages("x = {{examples}}", "snippet-0")
    assert len({chat[1]["content"] for chat in chats.values()}) > 1


def test_labels_are_listed_in_both_orders() -> None:
    prompt = load_prompts()["topic_label", "en"]
    there, back = (prompt.messages("page", "id", reverse_labels=reverse)[1]["content"] for reverse in (False, True))
    assert there.index("law_and_policy:") < there.index("others:")
    assert back.index("law_and_policy:") > back.index("others:")


def test_a_user_adds_a_discipline_by_adding_a_file(tmp_path: Path) -> None:
    write(tmp_path / "own", GOOD)
    prompts = load_prompts([tmp_path / "own"])
    assert prompts["linguistics", "en"].messages("S", "id") == [
        {"role": "user", "content": "Make a problem of S in this form:\n### Problem\n### Solution"}
    ]
    assert len(prompts) == len(load_prompts()) + 1


def test_a_users_file_takes_the_place_of_a_shipped_one(tmp_path: Path) -> None:
    path = write(tmp_path / "own", GOOD.replace("kind: linguistics", "kind: biology"))
    prompts = load_prompts([tmp_path / "own"])
    assert prompts["biology", "en"].path == path and len(prompts) == len(load_prompts())


def test_the_fingerprint_is_of_the_file(tmp_path: Path) -> None:
    first = read_prompt(write(tmp_path, GOOD)).fingerprint
    assert first == read_prompt(write(tmp_path, GOOD, "other.yaml")).fingerprint
    assert first != read_prompt(write(tmp_path, GOOD.replace("Make", "Write"))).fingerprint


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("version: 1\n", "", "version: missing; give it"),
        ("version: 1", "version: one", "version: 'one' is not a whole number"),
        ("title:", "titel:", "titel: unknown; did you mean title?"),
        ("{{snippet}}", "it", r"user: {{snippet}} is missing"),
        ("{{snippet}}", "{{snippet}} {{page}}", "user: {{page}} stands for nothing"),
        ("  ### Solution\n", "", "has no line with the heading '### Solution'"),
        ('solution: "### Solution"', 'answer: "### Solution"', "sections: solution is missing"),
        ('"### Solution"', '"### Problem"', "two have the same heading"),
        ("{{solution}}", "{{answer}}", "text: {{answer}} is no section"),
        ("kind: linguistics", "kind: Linguistics", "kind: 'Linguistics' is not made of"),
        ("title:", "final_answer: section\ntitle:", "final_answer: is section, but sections has no answer"),
        ("title:", "num_examples: 1\ntitle:", "num_examples: 1, but there are 0"),
        ("title:", "labels: {a: b}\ntitle:", "labels: are for task label"),
        (GOOD, "just text", "holds no fields"),
        (GOOD, "a: [", "not YAML"),
        ("title:", "kind: again\ntitle:", "kind is given twice"),
    ],
)
def test_a_prompt_that_cannot_work_is_refused_by_name(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        read_prompt(path)
    assert message in str(error.value)


def test_two_files_of_one_kind_and_a_folder_without_any_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "own", GOOD)
    write(tmp_path / "own", GOOD, "second.yaml")
    with pytest.raises(ValueError, match=r"kind linguistics in language en is in .*mine\.yaml already"):
        load_prompts([tmp_path / "own"])
    with pytest.raises(ValueError, match="no prompt files"):
        load_prompts([tmp_path / "none"])


def test_a_kind_or_language_without_a_prompt_is_named() -> None:
    with pytest.raises(ValueError, match="no prompt of kind 'alchemy', only astronomy"):
        load_prompts().find("alchemy", "en")
    with pytest.raises(ValueError, match="in language 'de', only in en, zh"):
        load_prompts().find("biology", "de")


def test_fill_replaces_once() -> None:
    assert fill("{{a}} {{b}} {a}", {"a": "{{b}}", "b": "2"}) == "{{b}} 2 {a}"

"""An answer's sections, read strictly: it has the form that the prompt asked for, or it is none.

Each fault has one name, so that the journal can count them.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping

from megatron_synE.synthesis.task import ContentError

THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
"""What a reasoning model thinks aloud before it answers, where its server does not keep it apart."""
CONTROL_TOKEN = re.compile(r"<\|\w+\|>|</?s>|\[/?INST\]|<(?:end|start)_of_turn>")
"""Marks of a dialogue: an answer with one of them went on with somebody else's part."""
INLINE = (":", "：")
"""Behind a heading that ends so, the section begins on the same line."""
FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})(.*)")
BOXED = re.compile(r"\\boxed\s*\{")
PYTHON_NAMES = ("python", "python3", "py", "")


def parse_sections(answer: str, headings: Mapping[str, str]) -> dict[str, str]:
    """The sections of an answer, without white space around them.

    Each heading stands once, in the order given, and on a line of its own; no text is before the first. What looks like
    a heading inside a block of code is code.

    Raises:
        ContentError: the answer has another form.
    """
    answer = THOUGHT.sub("", answer, count=1) if THOUGHT.match(answer) else answer
    if not answer.strip():
        raise ContentError("empty answer")
    if CONTROL_TOKEN.search(answer):
        raise ContentError("control token in the answer")
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    fence = ""
    for line in answer.splitlines():
        fence = _fence_after(line, fence)
        name, rest = (None, "") if fence else _heading(line, headings)
        if name is None:
            if current is None and line.strip():
                raise ContentError("text before the first heading")
            if current is not None:
                current.append(line)
            continue
        if name in found:
            raise ContentError(f"heading of {name} twice")
        current = found[name] = [rest]
    if fence:
        raise ContentError("code block without an end")
    for name in headings:
        if name not in found:
            raise ContentError(f"no {name}")
    if list(found) != list(headings):
        raise ContentError("sections in another order")
    sections = {name: _outer_blank_removed(lines) for name, lines in found.items()}
    for name, text in sections.items():
        if not text:
            raise ContentError(f"empty {name}")
    return sections


def code_blocks(text: str) -> tuple[str, list[str]]:
    """The text without its fenced blocks of Python, and their contents.

    A block is Python's where nothing else is said behind the fence.
    """
    prose: list[str] = []
    blocks: list[str] = []
    block: list[str] | None = None
    fence = ""
    for line in text.splitlines():
        was, fence = fence, _fence_after(line, fence)
        if not was and fence:
            match = FENCE.match(line)
            assert match is not None
            block = [] if match[2].strip().lower() in PYTHON_NAMES else None
            if block is None:
                prose.append(line)
        elif was and not fence and block is not None:
            blocks.append("\n".join(block) + "\n")
            block = None
        elif block is not None:
            block.append(line)
        else:
            prose.append(line)
    return "\n".join(prose), blocks


def boxed(text: str) -> list[str]:
    """What stands in each ``\\boxed{…}``, inner braces included; behind one whose brace is not closed, none is seen."""
    found = []
    begin = BOXED.search(text)
    while begin is not None:
        depth, end = 1, begin.end()
        while end < len(text) and depth:
            if text[end - 1] != "\\":
                depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            break
        found.append(text[begin.end() : end - 1].strip())
        begin = BOXED.search(text, end)
    return found


def parse_python(source: str) -> ast.Module | None:
    """The program's tree, None where it is no Python 3. Nothing of it is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes and comparisons in other people's code
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _heading(line: str, headings: Mapping[str, str]) -> tuple[str | None, str]:
    """Which section a line opens, and what of the section stands on it."""
    stripped = line.strip()
    for name, heading in headings.items():
        if stripped == heading:
            return name, ""
        if heading.endswith(INLINE) and stripped.startswith(heading):
            return name, stripped.removeprefix(heading).strip()
    return None, ""


def _fence_after(line: str, fence: str) -> str:
    """The fence that is open behind a line: its characters, empty for none."""
    match = FENCE.match(line)
    if match is None:
        return fence
    if not fence:
        return match[1] if "`" not in match[2] else ""
    return "" if match[1].startswith(fence) and not match[2].strip() else fence


def _outer_blank_removed(lines: list[str]) -> str:
    """Joined, without blank lines around it; the first line keeps its indentation."""
    return re.sub(r"\A(?:[^\S\n]*\n)+", "", "\n".join(lines)).rstrip().removeprefix("\ufeff")

"""Is a parsed answer worth keeping? Each check looks at one answer, and names what is wrong with it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

import numpy as np

from megatron_synE.config.answers import AnswersConfig
from megatron_synE.corpus.ngrams import ngram_hashes, word_hashes, words
from megatron_synE.synthesis.parse import boxed, code_blocks, parse_python
from megatron_synE.synthesis.task import ContentError

COPY_NGRAM, REPEAT_NGRAM = 13, 8
HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
LATIN = re.compile(r"[A-Za-zÀ-ɏ]")
LETTER = re.compile(r"[^\W\d_]")
FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$|\\\[.+?\\\]|\\\(.+?\\\)|\\boxed\s*\{[^{}]*\}|`[^`\n]+`", re.DOTALL)
LATIN_PER_HAN = 4
"""A word has about so many letters more than one Chinese character."""
REFUSAL = re.compile(
    r"\b(?:I(?:'m| am)? (?:sorry|cannot|can't|unable|not able)|as an AI\b|I (?:apologi[sz]e|must decline))|"
    r"抱歉|对不起|作为(?:一个|一名)?(?:人工智能|AI|语言模型)|我(?:无法|不能)(?:提供|回答|完成|生成|创建|帮)",
    re.IGNORECASE,
)
ABOUT_THE_SNIPPET = re.compile(
    r"\b(?:in|from|to|by|of|on|with) (?:the|this) (?:(?:given|provided|above|following) )?"
    r"(?:passage|snippet|excerpt|web ?page|source text|article above)\b|"
    r"\b(?:the|this) (?:passage|snippet|excerpt) (?:says|states|mentions|describes|above|below)\b|"
    r"\b(?:the text (?:above|below)|as mentioned above)\b|"
    r"(?:上述|以上|本|该|这个|这段|给定的?)(?:片段|网页|短文|材料)|(?:片段|文中|上文)(?:中|里|提到|所述|指出|介绍)",
    re.IGNORECASE,
)


def is_refusal(text: str, *, within_chars: int) -> bool:
    """Whether the words of a model that will not begin so near to a text's beginning."""
    match = REFUSAL.search(text, 0, within_chars + 100)
    return match is not None and match.start() < within_chars


def check_lengths(sections: Mapping[str, str], config: AnswersConfig) -> str | None:
    """The reason to reject, None for none.

    Raises:
        ContentError: problem or solution are too short.
    """
    for name in ("problem", "solution"):
        low, high = getattr(config, f"min_{name}_chars"), getattr(config, f"max_{name}_chars")
        if len(sections[name]) < low:
            raise ContentError(f"{name} too short")
        if len(sections[name]) > high:
            return f"{name} too long"
    return None


def check_text(sections: Mapping[str, str], language: str, snippet: str, config: AnswersConfig) -> str | None:
    """Language, independence of the snippet, repetition: the reason to reject, None for none."""
    if config.check_language and any(not is_in_language(sections[name], language) for name in ("problem", "solution")):
        return f"not in {language}"
    if ABOUT_THE_SNIPPET.search(sections["problem"]):
        return "problem refers to the snippet"
    whole = word_hashes(words("\n".join(sections.values())))
    if share_within(ngram_hashes(whole, REPEAT_NGRAM)) > config.max_repeated_share:
        return "repeats itself"
    given = word_hashes(words(snippet))
    if share_in(ngram_hashes(whole, COPY_NGRAM), ngram_hashes(given, COPY_NGRAM)) > config.max_copied_share:
        return "copies the snippet"
    return None


def check_final_answer(sections: Mapping[str, str], where: str) -> str | None:
    """Whether there is one result, where the prompt wants it: the reason to reject, None for none."""
    if where == "section":
        return None if re.search(r"\w", sections["answer"]) else "no final answer"
    if where == "boxed":
        results = set(boxed(sections["solution"]))
        if not any(map(str.strip, results)):
            return "no final answer"
        return "several final answers" if len(results) > 1 else None
    return None


def check_code(sections: Mapping[str, str]) -> str | None:
    """One program that parses, and examples that are assertions about it: the reason to reject, None for none."""
    prose, programs = code_blocks(sections["solution"])
    if len(programs) != 1:
        return "no program" if not programs else "several programs"
    tree = parse_python(programs[0])
    if tree is None:
        return "program does not parse"
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    if not defined:
        return "program defines nothing"
    if not prose.strip():
        return "program without an explanation"
    _, examples = code_blocks(sections["examples"])
    if len(examples) != 1:
        return "no examples"
    statements = parse_python(examples[0])
    if statements is None:
        return "examples do not parse"
    if not any(isinstance(node, ast.Assert) for node in statements.body):
        return "no examples"
    called = {node.id for node in ast.walk(statements) if isinstance(node, ast.Name)}
    return None if called & defined else "examples of something else"


def is_in_language(text: str, language: str) -> bool:
    """Whether the prose of a text (not its code and formulas) is in a language. Others than en and zh are not known."""
    prose = FORMULA.sub(" ", code_blocks(text)[0])
    num_han, num_latin, num_letters = (len(pattern.findall(prose)) for pattern in (HAN, LATIN, LETTER))
    if language == "en":
        return num_latin >= 0.9 * num_letters and num_latin > 0
    if language == "zh":
        return num_han > 0 and num_han >= num_latin / LATIN_PER_HAN and num_han + num_latin >= 0.9 * num_letters
    return True


def share_within(hashes: np.ndarray) -> float:
    """The part of n-grams [N] that repeat an earlier one."""
    return 1 - len(np.unique(hashes)) / len(hashes) if len(hashes) else 0.0


def share_in(hashes: np.ndarray, others: np.ndarray) -> float:
    """The part of n-grams [N] that are among others."""
    return float(np.isin(hashes, others).mean()) if len(hashes) else 0.0

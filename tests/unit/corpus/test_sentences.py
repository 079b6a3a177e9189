"""Where sentences end, in Chinese, English and both."""

from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_synE.corpus.sentences import SentenceSplitter


@pytest.mark.parametrize(
    "sentences",
    [
        ["今天下雨。", "我们留在家里！", "为什么？"],
        ["他说：“我不去。”", "她走了。"],
        ["他说“好。”，就走了。", "门开着。"],
        ["（这是注释。）", "正文开始了。"],
        ["真的吗？！", "当然……", "也许吧…", "好。」", "完了"],
        ["他喊:\"走！\"", "\"好。\"", "她答。"],
        ["你好!", "你呢?", "价格是3.14元。", "版本2.0。"],
        ["第一段没有句号", "第二段。"],
        ["GPT-4 was released in 2023.", "它很强大。", "See the paper.", "Then try it!"],
        ["We met Wang… and he said yes.", "Well… I think so."],
        ["It rains.", "We stay here!", "Why?"],
    ],
)
def test_sentences(sentences: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    split = SentenceSplitter()
    between = "\n\n" if sentences[0].endswith("句号") else "" if sentences[0][0] > "\u2fff" else " "
    assert split(between.join(sentences)) == sentences


def test_no_character_but_white_space_is_lost() -> None:
    text = "他说。 \n She said: “no.”  “Yes！”他答…… 然后……\n\n结束 end. 。。！\u3000好"
    sentences = SentenceSplitter()(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() for sentence in sentences)


def test_the_trained_model_is_used_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nltk finds it in its usual places; without it, an abbreviation ends a sentence."""
    import nltk

    text = "He met Mr. Wang in Beijing. They talked."
    monkeypatch.setattr(nltk.data, "path", [])
    untrained = SentenceSplitter()
    assert untrained.model == "untrained" and untrained(text) == ["He met Mr.", "Wang in Beijing.", "They talked."]
    model = tmp_path / "tokenizers" / "punkt_tab" / "english"
    model.mkdir(parents=True)
    for name, content in (("abbrev_types.txt", "mr\n"), ("collocations.tab", ""), ("sent_starters.txt", ""),
                          ("ortho_context.tab", "")):  # fmt: skip
        (model / name).write_text(content)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    trained = SentenceSplitter()
    assert trained.model == "punkt_tab/english" and trained(text) == ["He met Mr. Wang in Beijing.", "They talked."]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="ab A.!? \n\t\r\x1c\x85\u3000\"'”’）)】。！？…，、；中文", max_size=40))
def test_any_text_has_sentences(text: str) -> None:
    sentences = splitter()(text)
    assert bool(sentences) == bool(text.strip())
    assert all(sentence and not sentence.isspace() for sentence in sentences)
    assert "".join("".join(sentences).split()) == "".join(text.split())


@lru_cache
def splitter() -> SentenceSplitter:
    return SentenceSplitter()

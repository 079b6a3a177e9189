"""Cutting documents into snippets, their ids, duplicates and disciplines, and the files they are in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_synE.config.snippets import SnippetsConfig, SnippetSource
from megatron_synE.corpus.tokenizers import CorpusTokenizer, build_tokenizer
from megatron_synE.corpus.topics import LinearClassifier
from megatron_synE.synthesis.duplicates import SeenTexts
from megatron_synE.synthesis.folder import JobFolder, SnippetShards
from megatron_synE.synthesis.prompts import load_prompts
from megatron_synE.synthesis.snippets import SnippetCutter, SnippetManifest, prepare_snippets
from megatron_synE.synthesis.task import Snippet
from tests.helpers.commands import SAMPLE, tokenised_sample

TOKENIZER = str(SAMPLE / "tokenizer")
TEXT = "One planet moves around its star. " * 3 + "Another star shines.\n\nThe orbit is a circle. It is done."


@pytest.fixture(scope="module")
def tokenizer() -> CorpusTokenizer:
    return build_tokenizer("auto", TOKENIZER)


def lines(path: Path, *texts: str, **more: Any) -> str:
    rows = [json.dumps({"text": text, "url": f"page-{number}", **more}) for number, text in enumerate(texts)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


def source(*inputs: str, **more: Any) -> SnippetSource:
    return SnippetSource(**{"inputs": list(inputs), "tokenizer": TOKENIZER, "discipline": "physics", **more})


def prepared(job: Path, config: SnippetsConfig) -> tuple[SnippetManifest, list[Snippet]]:
    folder = JobFolder(job)
    manifest = prepare_snippets(config, load_prompts(), folder)
    shards = SnippetShards.open(folder)
    return manifest, [snippet for number in range(shards.num_shards) for snippet in shards.read(number)]


def short(**sources: SnippetSource) -> SnippetsConfig:
    return SnippetsConfig(sources=sources, min_tokens=4, max_tokens=40)


@pytest.mark.parametrize("low, high", [(1, 20), (8, 30), (30, 60), (100, 400)])
def test_pieces_are_whole_sentences_within_the_range(tokenizer: CorpusTokenizer, low: int, high: int) -> None:
    rows = [line for name in ("web_en", "web_zh") for line in (SAMPLE / f"{name}.jsonl").read_bytes().splitlines()]
    texts = [json.loads(line)["text"] for line in rows[::8]]
    for text, spans in zip(texts, SnippetCutter(tokenizer, low, high).cut(texts), strict=True):
        end_before = 0
        for begin, end in spans:
            piece = text[begin:end]
            assert begin >= end_before and piece == piece.strip()
            assert low <= len(tokenizer.encode_batch([piece])[0]) <= high
            # it begins and ends where a sentence does: behind a mark, a heading or a quotation
            assert piece[-1] in '.?!。？！”…"' or text[end : end + 1] in ("", "\n")
            end_before = end


def test_a_sentence_that_is_too_long_is_in_no_piece(tokenizer: CorpusTokenizer) -> None:
    text = "It is short. " + "And so on, word by word, " * 30 + "to the end. It is short too."
    (spans,) = SnippetCutter(tokenizer, 3, 20).cut([text])
    assert [text[begin:end] for begin, end in spans] == ["It is short.", "It is short too."]


def test_ids_name_file_line_and_span(tmp_path: Path) -> None:
    path = lines(tmp_path / "pages.jsonl", TEXT)
    _, snippets = prepared(tmp_path / "job", short(web=source(path, id_key="url")))
    (snippet,) = snippets
    begin, end = snippet.source["begin"], snippet.source["end"]
    assert snippet.id == f"web:{path}:1:{begin}-{end}"
    assert snippet.text == TEXT[begin:end]
    assert snippet.source == {"corpus": path, "document": 1, "begin": begin, "end": end, "document_id": "page-0"}
    assert (snippet.discipline, snippet.language) == ("physics", "en")


def test_bad_lines_are_counted_and_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = Path(lines(tmp_path / "pages.jsonl", "The moon is bright tonight.", "The sun is brighter still."))
    path.write_text("not json\n\n" + path.read_text())
    manifest, snippets = prepared(tmp_path / "job", short(web=source(str(path))))
    assert [snippet.source["document"] for snippet in snippets] == [3, 4]
    assert manifest.counts["bad lines"] == 1


def test_repetitions_are_dropped_within_and_across_sources(tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", "The moon is bright tonight, they say.", "the MOON is bright tonight they say")
    second = lines(tmp_path / "b.jsonl", "The moon is bright tonight,  they say!", "The sun is brighter, they say.")
    _, snippets = prepared(tmp_path / "job", short(a=source(first), b=source(second)))
    assert [snippet.text[:8] for snippet in snippets] == ["The moon", "The sun "]


def test_several_pieces_of_a_document_and_a_limit(tmp_path: Path) -> None:
    texts = [" ".join(f"The {name} number {i} is in its orbit." for i in range(9)) for name in ("planet", "comet")]
    path = lines(tmp_path / "pages.jsonl", *texts)

    def config(seed: int = 0, most: int | None = None) -> SnippetsConfig:
        return SnippetsConfig({"web": source(path)}, 4, 24, max_per_document=2, seed=seed, max_snippets=most)

    _, snippets = prepared(tmp_path / "all", config())
    assert [snippet.source["document"] for snippet in snippets] == [1, 1, 2, 2]
    assert [snippet.source["begin"] for snippet in snippets[:2]] == sorted(s.source["begin"] for s in snippets[:2])
    assert prepared(tmp_path / "three", config(most=3))[1] == snippets[:3]
    assert any(prepared(tmp_path / f"seed{n}", config(seed=n))[1] != snippets for n in range(1, 4))


def test_each_page_twice_for_two_opinions(tmp_path: Path) -> None:
    path = lines(tmp_path / "pages.jsonl", TEXT)
    config = SnippetsConfig({"web": source(path, discipline="topic_label")}, 4, 40, passes=2)
    _, (first, second) = prepared(tmp_path / "job", config)
    assert first.text == second.text and first.id.removesuffix("#1") == second.id.removesuffix("#2")
    assert [first.source["pass"], second.source["pass"]] == [1, 2]


def test_shards_have_equal_numbers_of_rows_and_are_always_the_same(tmp_path: Path) -> None:
    def config() -> SnippetsConfig:
        return SnippetsConfig({"web": source(str(SAMPLE / "web_en.jsonl"))}, 16, 64, shard_rows=100)

    manifest, snippets = prepared(tmp_path / "a", config())
    files = sorted((tmp_path / "a" / "snippets").glob("*.jsonl"))
    assert [path.name for path in files] == ["00000.jsonl", "00001.jsonl", "00002.jsonl"]
    assert [path.read_text().count("\n") for path in files] == [100, 100, len(snippets) - 200]
    assert manifest.num_snippets == len(snippets) == len({snippet.id for snippet in snippets})
    prepared(tmp_path / "b", config())
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / "snippets" / path.name).read_bytes()


def test_what_is_prepared_is_taken_up_and_other_inputs_or_options_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "pages.jsonl", TEXT)
    manifest, _ = prepared(tmp_path / "job", short(web=source(path)))
    shard = tmp_path / "job" / "snippets" / "00000.jsonl"
    inode = shard.stat().st_ino
    assert prepared(tmp_path / "job", short(web=source(path)))[0] == manifest
    os.utime(path, ns=(0, 0))  # as a copy may have it
    assert prepared(tmp_path / "job", short(web=source(path)))[0] == manifest
    assert shard.stat().st_ino == inode
    with pytest.raises(ValueError, match=r"manifest.json: the snippets were made with other options \(max_tokens\)"):
        prepared(tmp_path / "job", SnippetsConfig({"web": source(path)}, 4, 41))
    lines(tmp_path / "pages.jsonl", TEXT + " And more of it.")
    with pytest.raises(ValueError, match=r"the snippets were made with other inputs \(web\)"):
        prepared(tmp_path / "job", short(web=source(path)))


def test_a_killed_preparation_starts_again(tmp_path: Path) -> None:
    path = lines(tmp_path / "pages.jsonl", TEXT)
    _, snippets = prepared(tmp_path / "job", short(web=source(path)))
    folder = tmp_path / "job" / "snippets"
    (folder / "manifest.json").unlink()
    (folder / "00000.jsonl").write_text("half a row")
    (folder / "00001.jsonl.tmp-1").write_text("what a killed process was writing")
    assert prepared(tmp_path / "job", short(web=source(path)))[1] == snippets
    assert not list(folder.glob("*.tmp-*"))


def test_a_tokenised_corpus_gives_topics_and_ids(tmp_path: Path) -> None:
    pages = [
        ("a", "mathematics_and_physics", "A comet comes near the Sun, and its tail of gas points away from it."),
        ("b", "mathematics_and_physics", "A triangle with two equal sides has two equal angles, as we have seen."),
        ("c", "medicine_and_health", "Take the tablets in the morning, with a glass of water, for one week."),
        ("d", "others", "This hat, and that coat, and many other things are cheap this week."),
        ("e", "mathematics_and_physics", "There is nothing at all in this that would tell what it is about."),
    ]
    rows = [{"url": url, "topic": topic, "text": text} for url, topic, text in pages]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from megatron_synE.corpus.preprocess import PreprocessOptions, preprocess

    tokenizer = build_tokenizer("auto", TOKENIZER)
    options = PreprocessOptions(label_key="topic", append_eod=True, id_key="url")
    preprocess([tmp_path / "web.jsonl"], str(tmp_path / "web"), tokenizer, options)
    prefix = str(tmp_path / "web_text_document")
    manifest, snippets = prepared(tmp_path / "job", short(web=SnippetSource(prefix=prefix)))
    assert [(s.discipline, s.source["document"], s.source["document_id"]) for s in snippets] == [
        ("astronomy", 0, "a"), ("mathematics", 1, "b"), ("medical_science", 2, "c"),
    ]  # fmt: skip
    assert [snippet.text for snippet in snippets] == [row["text"] for row in rows[:3]]
    assert manifest.counts["pieces without a discipline"] == 2
    assert snippets[0].id == f"web:0:0-{len(rows[0]['text'])}"


def test_a_corpus_without_topics_says_so(tmp_path: Path) -> None:
    prefix = tokenised_sample(tmp_path, "book_en")["book_en"]
    with pytest.raises(ValueError, match="no annotation 'topic'"):
        prepared(tmp_path / "job", short(books=SnippetSource(prefix=str(prefix))))


def test_a_classifier_filters_by_discipline(tmp_path: Path) -> None:
    stars, cells = "the star and the planet in their orbit", "the cell and its membrane in the leaf"
    texts = [f"{stars} {n}" for n in range(8)] + [f"{cells} {n}" for n in range(8)]
    classifier = LinearClassifier.train(texts, np.repeat([0, 1], 8), ["astronomy", "biology"])
    classifier.save(tmp_path / "classifier")
    path = lines(tmp_path / "pages.jsonl", f"Here are {stars}.", f"Here are {cells}.")
    own = source(path, discipline=None, classifier=str(tmp_path / "classifier"), min_probability=0.6)
    assert [s.discipline for s in prepared(tmp_path / "a", short(web=own))[1]] == ["astronomy", "biology"]
    strict = source(path, discipline=None, classifier=str(tmp_path / "classifier"), min_probability=1.0)
    with pytest.raises(ValueError, match="no snippet in web: 2 documents, 2 pieces, 2 pieces without a discipline"):
        prepared(tmp_path / "b", short(web=strict))
    LinearClassifier.train(texts, np.repeat([0, 1], 8), ["cats", "dogs"]).save(tmp_path / "pets")
    pets = source(path, discipline=None, classifier=str(tmp_path / "pets"))
    with pytest.raises(ValueError, match=r"none of its labels \(cats, dogs\) is a discipline"):
        prepared(tmp_path / "c", short(web=pets))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"inputs": ["missing.jsonl"]}, "missing.jsonl: no such file"),
        ({"inputs": ["-"]}, "standard input cannot be read by every start"),
        ({"discipline": "alchemy"}, "no prompt of kind 'alchemy'"),
        ({"language": "fr"}, "in language 'fr', only in en, zh"),
        ({"text_key": "content"}, "pages.jsonl:1: missing key 'content'"),
        ({"tokenizer": "missing"}, "--tokenizer-model missing: no such file"),
        ({"tokenizer": None}, "web.tokenizer: is missing"),
        ({"discipline": None}, "files have no topics"),
        ({"prefix": "corpus"}, "and not both"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    own = source(**{"inputs": [lines(tmp_path / "pages.jsonl", TEXT)], **changes})
    with pytest.raises(ValueError) as error:
        prepared(tmp_path / "job", short(web=own))
    assert message in str(error.value)
    assert not (tmp_path / "job" / "snippets" / "manifest.json").exists()


def test_seen_texts_remembers_all_of_them() -> None:
    seen = SeenTexts()
    for start in range(0, 5000, 37):
        assert all(seen.add([f"text {number}" for number in range(start, start + 37)]))
    assert not any(seen.add([f"Text, {number}!" for number in range(5000)]))
    assert seen.add(["new", "new", "text 3"]) == [True, False, False]
    assert len(seen._levels) < 14

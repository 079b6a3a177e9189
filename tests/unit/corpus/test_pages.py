"""The test's documents are of other pages than those that were trained on."""

from __future__ import annotations

import random

import numpy as np
import pytest

from megatron_synE.corpus import pages as pages_module
from megatron_synE.corpus.pages import page_groups, split_by_page
from tests.helpers.progress import is_complete, recorded_bars

WORDS = [f"{a}{b}{c}" for a in "bdgklmn" for b in "aeiou" for c in ("", "r", "st", "n")]


def page(number: int, words: int = 200) -> str:
    return " ".join(random.Random(number).choices(WORDS, k=words))


def edited(text: str, every: int) -> str:
    """The text with one word in `every` replaced."""
    return " ".join("CHANGED" if number % every == 0 else word for number, word in enumerate(text.split(" ")))


def test_near_duplicates_are_of_one_page_and_others_are_not() -> None:
    texts = [page(number) for number in range(50)]
    copies = ["  " + texts[0].upper().replace(" ", "\n\t"), edited(texts[1], 20), texts[2] + " and a new end"]
    groups = page_groups([*texts, *copies], None, max_chars=4000)
    assert groups[50:].tolist() == groups[:3].tolist()
    assert len(set(groups[:50].tolist())) == 50
    assert page_groups([texts[1], edited(texts[1], 3)], None, max_chars=4000).tolist() == [0, 1]


def test_only_the_beginning_is_compared() -> None:
    same, other = page(0), page(1)
    assert len(set(page_groups([same + other, same], None, max_chars=len(same)).tolist())) == 1
    assert len(set(page_groups([same + other * 9, same], None, max_chars=10**6).tolist())) == 2


def test_short_and_odd_texts_are_only_like_themselves() -> None:
    texts = ["a", "b", "a", "", "", "\ud800 alone", "甲乙丙", "甲乙丙 "]
    groups = page_groups(texts, None, max_chars=4000).tolist()
    assert groups[0] == groups[2] and groups[6] == groups[7]
    assert len(set(groups)) == 6


def test_a_page_is_a_url_without_its_fragment_or_an_id() -> None:
    texts = [page(number) for number in range(5)]
    pages = ["https://a.org/x#one", "https://a.org/x#two", "https://a.org/y", "id#1", "id#2"]
    assert len(set(page_groups(texts, pages, max_chars=4000).tolist())) == 4
    assert page_groups(texts, pages, max_chars=4000)[0] == page_groups(texts, pages, max_chars=4000)[1]
    assert len(set(page_groups(texts, ["http://[broken"] * 5, max_chars=4000).tolist())) == 1


def test_pages_and_near_duplicates_chain() -> None:
    """0 and 1 name one page, 1 and 2 are near-duplicates."""
    texts = [page(0), page(1), page(1) + " end"]
    assert len(set(page_groups(texts, ["p", "p", "q"], max_chars=4000).tolist())) == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_split_keeps_groups_whole_and_topics_in_proportion(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 300, 1000)
    groups = np.unique(groups, return_inverse=True)[1]
    labels = (groups % 3) if seed % 2 else rng.integers(0, 3, 1000)
    train, heldout = split_by_page(labels, groups, 0.1, seed)
    assert sorted([*train.tolist(), *heldout.tolist()]) == list(range(1000))
    assert not set(groups[train]) & set(groups[heldout])
    if seed % 2:
        for topic in range(3):
            assert 0.08 < (labels[heldout] == topic).sum() / (labels == topic).sum() <= 0.105
    again = split_by_page(labels, groups, 0.1, seed)
    assert (again[1] == heldout).all()


def test_topics_of_few_pages() -> None:
    """One page: all of it trains. Two large ones: the smaller is the test."""
    labels, groups = np.array([0] * 10 + [1] * 9), np.array([0] * 10 + [1] * 5 + [2] * 4)
    train, heldout = split_by_page(labels, groups, 0.1, 0)
    assert heldout.tolist() == [15, 16, 17, 18] and len(train) == 15
    with pytest.raises(ValueError, match="--heldout-fraction 1: must be between"):
        split_by_page(labels, groups, 1, 0)


def test_comparing_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = recorded_bars(monkeypatch, pages_module)
    page_groups([page(number) for number in range(5)], None, max_chars=4000)
    assert is_complete(bars[0])

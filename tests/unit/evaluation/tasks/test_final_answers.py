"""Numbers at the end of worked solutions: hand cases, and properties of their notation."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_synE.evaluation.tasks.final_answers import after_answer_is, after_hashes, number, same_number


@pytest.mark.parametrize(
    "solution, final, exact, flexible",
    [
        ("5+67=72.\n#### 72", "72", 1, 1),
        ("#### 1,234", "1234", 1, 1),
        ("#### $72.00 dollars", "72", 1, 1),
        ("#### 72.", "72", 1, 1),
        ("####72\n\nThen 5 more.", "72", 1, 0),
        ("#### -3", "-3", 1, 1),
        ("#### 73", "72", 0, 0),
        ("It is 72", "72", 0, 1),
        ("#### x = 72", "72", 0, 1),
        ("#### 72\n#### 73", "72", 1, 0),
        ("", "72", 0, 0),
        ("####", "72", 0, 0),
        ("#### 1/0", "0", 0, 0),
    ],
)
def test_gsm8k(solution: str, final: str, exact: int, flexible: int) -> None:
    assert after_hashes({"final": final}, [solution]) == {"exact_match": exact, "flexible_match": flexible}


@pytest.mark.parametrize(
    "solution, final, right",
    [
        ("3 + 2 = 5. The answer is 5.", "5", 1),
        ("The answer is 5 apples, not 6.", "5", 1),
        ("The answer is 4. No: the answer is $5.00.", "5", 1),
        ("The answer is 2 + 3 = 5.", "5", 1),
        ("The answer is 1,500", "1500", 1),
        ("So there are 5", "5", 1),
        ("The answer is 6.", "5", 0),
        ("", "5", 0),
        ("The answer is 0.5", "1/2", 1),
        ("The answer is Yes.", "Yes", 1),
        ("The answer is no", "Yes", 0),
        ("The answer is 5:6.", "5:6", 1),
        ("The answer is 3:30 p.m.", "3:30 p.m.", 1),
        ("", "Yes", 0),
    ],
)
def test_asdiv_and_mawps(solution: str, final: str, right: int) -> None:
    assert after_answer_is({"final": final}, [solution]) == {"exact_match": right}


@pytest.mark.parametrize("text", ["", "x", "1.2.3", "1e5", "--1", "1/", "/2", "1/0", "½", "9" * 5000])
def test_what_is_no_number(text: str) -> None:
    assert number(text) is None


@given(st.integers(-(10**12), 10**12))
def test_commas_currency_and_full_stops_do_not_count(value: int) -> None:
    for written in (f"{value:,}", f"${value}", f"{value}.", f"{value:,}.00", f" {value} %"):
        assert number(written) == Fraction(value)
        assert same_number(written, str(value)) and not same_number(written, str(value + 1))
    assert after_hashes({"final": str(value)}, [f"So.\n#### {value:,}\n"]) == {
        "exact_match": 1.0,
        "flexible_match": 1.0,
    }


@given(st.text(max_size=300), st.sampled_from(["7", "-1.5", "Yes", "1/2"]))
def test_every_text_has_a_score(text: str, final: str) -> None:
    assert after_answer_is({"final": final}, [text])["exact_match"] in (0.0, 1.0)
    assert set(after_hashes({"final": "7"}, [text]).values()) <= {0.0, 1.0}

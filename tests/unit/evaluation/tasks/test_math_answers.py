"""MATH's answers: where they stand in a solution, and when two are the same."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_synE.evaluation.tasks import expression
from megatron_synE.evaluation.tasks.expression import NotAnExpression, value
from megatron_synE.evaluation.tasks.math_answers import boxed, final_answer, same_answer


@pytest.mark.parametrize(
    "solution, answer",
    [
        (r"So $x=\boxed{5}$.", "5"),
        (r"\boxed{1}, no: \boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"$\boxed 7$ it is.", "7"),
        (r"\fbox{9}", "9"),
        (r"\boxed{8} and then \boxed{", "8"),
        (r"Final Answer: The final answer is $[2,5)$. I hope it is correct.", "[2,5)"),
        ("The answer is 12. So it is.", "12"),
        ("It is $3$, or $4$", "4"),
        ("Nothing.", None),
        ("", None),
    ],
)
def test_where_the_answer_stands(solution: str, answer: str | None) -> None:
    assert final_answer(solution) == answer


SAME = [
    (r"\frac12", r"\frac{1}{2}"),
    (r"\dfrac{1}{2}", r"\tfrac12"),
    ("0.5", r"\frac12"),
    (".5", "1/2"),
    ("3.50", r"\frac72"),
    (r"3\frac{1}{2}", r"\frac{7}{2}"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"\frac{3}{6}", "0.5"),
    (r"10,\!080", "10080"),
    ("10,080", "10080"),
    ("1{,}000", "1000"),
    (r"\$4,\!000", "4000"),
    (r"\$1,234.50", "1234.5"),
    (r"50\%", "50"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", "90"),
    ("x=5", "5"),
    (r"x \in [1,2]", "[1,2]"),
    ("5.", "5"),
    (r"10\text{ cm}^2", "10"),
    (r"\frac{3}{4}\pi\text{ inches}", r"\frac{3\pi}{4}"),
    (r"8\sqrt{3} \text { feet}", r"8\sqrt3"),
    (r"\sqrt{50}", r"5\sqrt{2}"),
    (r"\frac{1}{\sqrt3}", r"\frac{\sqrt3}{3}"),
    (r"\sqrt[3]{-8}", "-2"),
    (r"\sqrt[3]{54}", r"3\sqrt[3]2"),
    (r"\frac{2\pi}{3}", r"\frac23\pi"),
    ("2^{10}", "1024"),
    ("2^10", "1024"),
    ("10^{-3}", "0.001"),
    ("4^{3/2}", "8"),
    ("2x+2", "2(x+1)"),
    ("x^2-1", "(x-1)(x+1)"),
    (r"2 \cdot 3", "6"),
    (r"6 \div 4", "1.5"),
    ("|{-3}|", "3"),
    ("a-b", "-(b-a)"),
    ("(1,2)", r"\left( 1, \frac42 \right)"),
    ("1,2", "2, 1"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"12\text{ and }13", "12, 13"),
    (r"(-\infty, 2)\cup[3,\infty)", r"\left(-\infty,2\right) \cup \left[3,\infty\right)"),
    (r"1\pm\sqrt2", r"1-\sqrt2, 1+\sqrt2"),
    (r"\frac{1 \pm \sqrt{19}}{2}", r"\frac{1-\sqrt{19}}{2},\frac{1+\sqrt{19}}2"),
    (r"\{1\pm\sqrt5,-2\}", r"\{-2,1+\sqrt5,1-\sqrt5\}"),
    (r"\begin{pmatrix} 1/2 & 0 \\ 1 & 2 \end{pmatrix}", r"\begin{bmatrix}\frac12&0\\1&2\end{bmatrix}"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{(A)}", "A"),
    (r"\mbox{even}", r"\text{Even}"),
    ("25_{6}", "25_6"),
    (r"\cos 13^\circ", r"\cos13"),
]
DIFFERENT = [
    ("5", "6"),
    ("5", "-5"),
    ("", "5"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("(1,2]", "(1,2)"),
    ("1,2", "1,2,3"),
    ("12", "1,2"),
    (r"\text{cat}", r"\text{act}"),
    (r"\text{cat}", "act"),
    ("25_6", "25_7"),
    (r"\text{9 a.m.}", r"\text{9 p.m.}"),
    (r"9\text{ a.m.}", r"9\text{ p.m.}"),
    ("x^2", "2x"),
    ("a+b", "ab"),
    (r"\frac{1}{0}", "0"),
    (r"\frac10", r"\frac20"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "1,2"),
    (r"\cos 13^\circ", r"\cos 31^\circ"),
    ("2:3", "3:2"),
    ("9^{9^{9^9}}", "1"),
    ("100000000000000000001", "100000000000000000000"),
    (r"\sqrt{2}", "1.41421"),
    (r"\text{(A)}", "B"),
    ("0.333", r"\frac13"),
]


@pytest.mark.parametrize("one, other", SAME)
def test_the_same(one: str, other: str) -> None:
    assert same_answer(one, other) and same_answer(other, one)


@pytest.mark.parametrize("one, other", DIFFERENT)
def test_not_the_same(one: str, other: str) -> None:
    assert not same_answer(one, other) and not same_answer(other, one)


def test_a_solution_is_right_where_its_answer_is() -> None:
    item = {"solution": r"So $\boxed{\frac{1}{2}}$."}
    assert boxed(item, [r"It is $\boxed{0.5}$."]) == {"exact_match": 1.0}
    assert boxed(item, [r"It is $\boxed{5}$."]) == boxed(item, ["No idea"]) == {"exact_match": 0.0}


fractions = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=10**4)


@given(fractions, fractions)
def test_arithmetic_is_exact(one: Fraction, other: Fraction) -> None:
    left, right = (rf"\frac{{{part.numerator}}}{{{part.denominator}}}" for part in (one, other))
    assert value(f"{left}+{right}") == one + other
    assert value(f"{left}-{right}") == one - other
    assert value(f"({left})({right})") == one * other
    assert value(f"{left}^2") == Fraction(one.numerator, one.denominator) ** 2
    assert same_answer(left, right) == (one == other)


letters = st.sampled_from(
    [
        "1",
        "12",
        ".",
        "/",
        "*",
        "^",
        "_",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "|",
        "+",
        "-",
        "x",
        "i",
        ",",
        " ",
        r"\frac",
        r"\sqrt",
        r"\pi",
        r"\cdot",
        r"\pm",
        r"\cup",
        r"\text{a}",
        r"\infty",
        r"\\",
        "&",
        "$",
        "¶",
        "\n",
    ]
)


@given(st.lists(letters, max_size=60).map("".join), st.lists(letters, max_size=20).map("".join))
@example("9^" * 100 + "9", "1")
@example("(" * 300, ")" * 300)
@example(r"\frac" * 150, r"\sqrt" * 150)
@example("9" * 4000, "9" * 4000 + "1")
@example("(((((((((9^{300})^{300})^{300})^{300})^{300})^{300})^{300})^{300})^{300})^{300}", "0")
@example("1,\\pm" * 60, "2,\\pm" * 60)
def test_every_pair_of_texts_has_an_answer_which_is_the_same_both_ways(one: str, other: str) -> None:
    assert same_answer(one, one)
    assert same_answer(one, other) == same_answer(other, one)


@given(st.text(max_size=200))
def test_every_solution_is_read(text: str) -> None:
    for solution in (text, text.replace("a", r"\boxed").replace("b", "{").replace("c", "}")):
        found = final_answer(solution)
        assert found is None or found.strip() in solution


@pytest.mark.parametrize(
    "text", ["", "x y z __import__", "1+", "(1", r"\frac{1}", r"\sin x", "2_3", "3!", "2^{xy}", "2^{1000}", "é"]
)
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(NotAnExpression):
        value(text)


def test_depth_is_bounded_before_python_s_own_bound_is_met() -> None:
    assert value("(" * 30 + "1" + ")" * 30) == 1
    with pytest.raises(NotAnExpression):
        value("(" * 60 + "1" + ")" * 60)


def test_letters_have_values_of_their_own() -> None:
    values = [value(letter) for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    assert len(set(values)) == 52
    assert expression.same_value("xy", "yx") and not expression.same_value("xy", "x+y")

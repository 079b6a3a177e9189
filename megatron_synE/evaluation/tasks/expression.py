r"""The value of a LaTeX expression: numbers, fractions, roots, powers, π and letters, by a parser that only computes.

Letters stand for fixed numbers, so that `2x+2` and `2(x+1)` have one value. Values are exact (`Fraction`) as long as no
root or π is in them, and floats from there on. Sizes are bounded: no answer makes it compute for long.

    sum     = term { (+ | -) term }
    term    = factor { [\cdot | \times | * | / | \div] factor }
    factor  = - factor | base [^ exponent]
    base    = number | letter | \pi | \frac{…}{…} | \sqrt[n]{…} | (sum) | [sum] | {sum} | |sum|
"""

from __future__ import annotations

import cmath
import math
import re
from fractions import Fraction

Value = Fraction | complex

TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\\[a-zA-Z]+|[a-zA-Z]|[-+*/^()\[\]{}|_!]")
TIMES, DIVIDED_BY = ("*", r"\cdot", r"\times"), ("/", r"\div")
BRACKETS = {"(": ")", "[": "]", "{": "}", "|": "|"}
MAX_TOKENS, MAX_DEPTH, MAX_EXPONENT, MAX_BITS = 200, 40, 300, 4000
TOLERANCE = 1e-9
"""Relative, once there are floats."""


class NotAnExpression(Exception):
    """The text is not of this grammar, or its value is out of bounds."""


def same_value(one: str, other: str) -> bool:
    """Whether two expressions have the same value; no where one is none."""
    try:
        left, right = value(one), value(other)
    except (NotAnExpression, ArithmeticError, ValueError):
        return False
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    return cmath.isclose(complex(left), complex(right), rel_tol=TOLERANCE, abs_tol=1e-12)


def value(text: str) -> Value:
    """The value of an expression.

    Raises:
        NotAnExpression: it is none.
        ArithmeticError: it has none, as 1/0.
    """
    reader = _Reader(text)
    found = reader.sum()
    if reader.place < len(reader.tokens):
        raise NotAnExpression(text)
    return found


class _Reader:
    def __init__(self, text: str) -> None:
        self.tokens = TOKEN.findall(text)
        self.place = 0
        self.depth = 0
        if not self.tokens or len(self.tokens) > MAX_TOKENS or "".join(self.tokens) != re.sub(r"\s+", "", text):
            raise NotAnExpression(text)

    def peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token != wanted):
            raise NotAnExpression(token)
        self.place += 1
        return token

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotAnExpression("too deep")
        total = self.term()
        while self.peek() in ("+", "-"):
            total = _bounded(total + self.term() if self.take() == "+" else total - self.term())
        self.depth -= 1
        return total

    def term(self) -> Value:
        product = self.factor()
        while True:
            token = self.peek()
            if token in TIMES:
                self.take()
                product = _bounded(product * self.factor())
            elif token in DIVIDED_BY:
                self.take()
                product = _bounded(product / self.factor())
            elif token and (token.isalpha() or token in (r"\pi", r"\frac", r"\sqrt", "(") or token == "{"):
                product = _bounded(product * self.factor())
            else:
                return product

    def factor(self) -> Value:
        sign = 1
        while self.peek() in ("-", "+"):
            sign = -sign if self.take() == "-" else sign
        base = self.base()
        if self.peek() == "^":
            self.take()
            base = _power(base, self.exponent())
        return -base if sign < 0 else base

    def exponent(self) -> Value:
        if self.peek() == "{":
            return self.base()
        sign = -1 if self.peek() == "-" and self.take() else 1
        exponent = self.base()
        return -exponent if sign < 0 else exponent

    def base(self, *, one_digit: bool = False) -> Value:
        r"""A value that stands alone.

        Args:
            one_digit: of ``\frac12`` the numerator is 1, as TeX has it.
        """
        token = self.take()
        if token in BRACKETS:
            inner = self.sum()
            self.take(BRACKETS[token])
            if token != "|":
                return inner
            return abs(inner) if isinstance(inner, Fraction) else complex(abs(inner))
        if token == r"\frac":
            numerator = self.base(one_digit=True)
            return _bounded(numerator / self.base(one_digit=True))
        if token == r"\sqrt":
            return self.root()
        if token == r"\pi":
            return complex(math.pi)
        if token[0].isdigit() or token[0] == ".":
            return self.number(token, one_digit=one_digit)
        if len(token) == 1 and token.isalpha():
            return _letter(token)
        raise NotAnExpression(token)

    def number(self, token: str, *, one_digit: bool) -> Value:
        if one_digit and len(token) > 1:
            self.tokens[self.place - 1 : self.place] = [token[0], token[1:]]
            return Fraction(token[0])
        whole = Fraction(token)
        if self.peek() != r"\frac" or "." in token or one_digit:
            return whole
        start = self.place
        part = self.base()
        if (
            isinstance(part, Fraction)
            and 0 < part < 1
            and all(not token.isalpha() for token in self.tokens[start : self.place])
        ):
            return whole + part  # a mixed number: 3\frac12
        return _bounded(whole * part)

    def root(self) -> Value:
        degree = Fraction(2)
        if self.peek() == "[":
            found = self.base()
            if not isinstance(found, Fraction) or found.denominator != 1 or not 2 <= found <= 10:
                raise NotAnExpression("root")
            degree = found
        return _power(self.base(one_digit=True), 1 / degree)


def _letter(letter: str) -> Fraction:
    """A number of its own for each letter, far from those of answers."""
    return Fraction(10007 + 97 * ord(letter), 1009)


def _power(base: Value, exponent: Value) -> Value:
    if not isinstance(exponent, Fraction) or abs(exponent) > MAX_EXPONENT:
        raise NotAnExpression("exponent")
    if isinstance(base, Fraction) and exponent.denominator == 1:
        if base == 0 and exponent <= 0:
            raise ZeroDivisionError
        if (base.numerator.bit_length() + base.denominator.bit_length()) * abs(exponent) > MAX_BITS:
            raise NotAnExpression("size")
        return Fraction(base ** int(exponent))
    if isinstance(base, Fraction) and base >= 0 and exponent > 0:
        exact = _exact_root(base, exponent.denominator)
        if exact is not None:
            return _power(exact, Fraction(exponent.numerator))
    if isinstance(base, Fraction) and base < 0 and exponent.denominator % 2 == 1:
        return (
            -complex(float(-base) ** float(exponent))
            if exponent.numerator % 2
            else complex(float(-base) ** float(exponent))
        )
    return _bounded(complex(base) ** float(exponent))


def _exact_root(base: Fraction, degree: int) -> Fraction | None:
    """The root where it is a fraction."""
    parts = [round(part ** (1 / degree)) if part < 2**50 else None for part in (base.numerator, base.denominator)]
    if None in parts or parts[0] ** degree != base.numerator or parts[1] ** degree != base.denominator:  # type: ignore[operator]
        return None
    return Fraction(parts[0] or 0, parts[1] or 1)


def _bounded(found: Value) -> Value:
    if isinstance(found, Fraction):
        if found.numerator.bit_length() + found.denominator.bit_length() > MAX_BITS:
            raise NotAnExpression("size")
    elif not cmath.isfinite(found):
        raise NotAnExpression("size")
    return found

# ruff: noqa: E501
"""Python files of the sample: small, correct functions with docstrings and checks, varied in names, constants and order."""

from collections.abc import Callable
from random import Random

ITEMS = ["record", "order", "sample", "parcel", "ticket", "sensor", "page", "invoice", "track", "book"]
FIELDS = ["weight", "price", "length", "score", "delay", "size", "rank", "level"]
UNITS = [("metres", "feet", 3.28084), ("kilograms", "pounds", 2.20462), ("kilometres", "miles", 0.621371), ("litres", "gallons", 0.264172)]


def _total(r: Random) -> str:
    item, field, limit = r.choice(ITEMS), r.choice(FIELDS), r.randint(5, 500)
    return f'''def total_{field}(rows: list[dict[str, float]], limit: float = {limit}.0) -> float:
    """Return the sum of ``{field}`` over all rows, leaving out each {item} above ``limit``."""
    return sum(row["{field}"] for row in rows if row["{field}"] <= limit)


assert total_{field}([{{"{field}": 1.0}}, {{"{field}": {limit + 1}.0}}]) == 1.0'''


def _convert(r: Random) -> str:
    source, target, factor = r.choice(UNITS)
    return f'''{source.upper()}_TO_{target.upper()} = {factor}


def {source}_to_{target}(value: float) -> float:
    """Convert ``value`` from {source} to {target}; a negative value is refused."""
    if value < 0:
        raise ValueError(f"{source} must not be negative, got {{value}}")
    return value * {source.upper()}_TO_{target.upper()}'''


def _record(r: Random) -> str:
    item, (a, b) = r.choice(ITEMS), r.sample(FIELDS, 2)
    name = item.capitalize()
    return f'''@dataclass(frozen=True)
class {name}:
    """One {item} of the daily list."""

    name: str
    {a}: float
    {b}: float = 0.0

    def is_heavier_than(self, other: "{name}") -> bool:
        """Compare by {a}, and by {b} where the first is equal."""
        return (self.{a}, self.{b}) > (other.{a}, other.{b})'''


def _search(r: Random) -> str:
    item = r.choice(ITEMS)
    return f'''def find_{item}(keys: list[int], wanted: int) -> int | None:
    """Binary search: the position of ``wanted`` in the sorted ``keys``, or None."""
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < len(keys) and keys[low] == wanted else None


assert find_{item}([{", ".join(str(k) for k in sorted(r.sample(range(100), 5)))}], 1000) is None'''


def _window(r: Random) -> str:
    field, width = r.choice(FIELDS), r.randint(2, 24)
    return f'''def moving_{field}(values: list[float], width: int = {width}) -> list[float]:
    """Mean {field} over a sliding window; one pass, constant work per step."""
    means, running = [], 0.0
    for i, value in enumerate(values):
        running += value
        if i >= width:
            running -= values[i - width]
        means.append(running / min(i + 1, width))
    return means'''


def _group(r: Random) -> str:
    item, field = r.choice(ITEMS), r.choice(FIELDS)
    return f'''def {item}s_by_{field}({item}s: Iterable[dict]) -> dict[int, list[dict]]:
    """Group the {item}s by their {field}, each group in the order of arrival."""
    groups: dict[int, list[dict]] = {{}}
    for {item} in {item}s:
        groups.setdefault({item}["{field}"], []).append({item})
    return groups'''


def _retry(r: Random) -> str:
    item, tries = r.choice(ITEMS), r.randint(2, 9)
    return f'''def send_{item}(send: Callable[[], bool], tries: int = {tries}) -> int:
    """Call ``send`` until it succeeds and return how often it was called."""
    for attempt in range(1, tries + 1):
        if send():
            return attempt
    raise TimeoutError(f"the {item} was not accepted in {{tries}} attempts")'''


PIECES: list[Callable[[Random], str]] = [_total, _convert, _record, _search, _window, _group, _retry]


def source_file(r: Random) -> str:
    """One Python file: a docstring, imports and three to five pieces."""
    item = r.choice(ITEMS)
    head = f'"""Reading and checking of {item} lists."""\n\nfrom collections.abc import Callable, Iterable\nfrom dataclasses import dataclass'
    return "\n\n\n".join([head, *(make(r) for make in r.sample(PIECES, r.randint(3, 5)))]) + "\n"

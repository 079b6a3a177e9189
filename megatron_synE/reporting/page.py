"""A report as one HTML page that needs nothing beside itself: style, script, plotly.js and all numbers are in it.

Values are put in by jinja2 with autoescape; the numbers stand a second time, as JSON, in the element `#report`, from
which the charts are drawn. A Content-Security-Policy in the page forbids it every connection.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
MINUS = "−"
BREAKS = re.compile(r"([/_])")
"""After these a long name may be broken."""


def render(report: Mapping[str, Any], made: datetime | None = None) -> bytes:
    """The page of a report (`run_report`, `comparison_report`), in UTF-8.

    Args:
        made: when, for its foot; now by default.

    Raises:
        ValueError: plotly or jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup, escape
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install plotly jinja2") from None
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(FILTERS)
    environment.filters["breakable"] = lambda text: Markup(BREAKS.sub(r"\1<wbr>", str(escape(text))))
    page = environment.get_template(f"{report['kind']}.html").render(
        report=report,
        made=(made or datetime.now(UTC)).timestamp(),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
        embedded=Markup(embedded_json(report)),
    )
    return page.encode("utf-8", errors="backslashreplace")  # halves of characters, which JSON can name, have no form


def embedded_json(content: Any) -> str:
    """JSON for a script element: no text in it can end the element, or begin a comment."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _or_dash(write: Callable[..., str]) -> Callable[..., str]:
    def written(value: Any, *options: Any) -> str:
        return "–" if value is None else write(value, *options)

    return written


def integer(value: float) -> str:
    """12,345"""
    return f"{value:,.0f}".replace("-", MINUS)


def fixed(value: float, digits: int = 4) -> str:
    """1.2346; large and tiny ones with an exponent."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    return f"{value:,.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 4) -> str:
    """+0.1234, −0.1234"""
    return ("+" if value >= 0 else "") + fixed(value, digits)


def percent(value: float, digits: int = 1) -> str:
    """12.3 %"""
    return f"{100 * value:.{digits}f} %".replace("-", MINUS)


def short(value: float) -> str:
    """245.8 k, 1.23 B: three or four figures and a unit."""
    for size, unit in UNITS:
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.{max(0, 3 - len(str(int(abs(scaled)))))}f} {unit}"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """12.3 s, 5 min 3 s, 2 h 5 min, 3 d 4 h"""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 60:
        return f"{math.floor(minutes)} min {math.floor(seconds % 60)} s"
    if hours < 48:
        return f"{math.floor(hours)} h {math.floor(minutes % 60)} min"
    return f"{math.floor(hours / 24)} d {math.floor(hours % 24)} h"


def moment(timestamp: float) -> str:
    """2026-11-21 20:59 UTC"""
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M} UTC"


FILTERS: dict[str, Callable[..., str]] = {
    write.__name__: _or_dash(write) for write in (integer, fixed, signed, percent, short, duration, moment)
}

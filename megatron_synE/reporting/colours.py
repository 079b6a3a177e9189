"""Colours of components: a source has a hue, its topics are shades of it."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

HUES = (0.58, 0.08, 0.36, 0.0, 0.76, 0.14, 0.88, 0.48, 0.66, 0.25)
"""One for each source, in this order; more sources share them out anew."""

Colour = tuple[float, float, float]
"""Red, green and blue, 0 to 1."""


def colours(
    components: Sequence[str], *, lightest: float = 0.8, darkest: float = 0.3, saturation: float = 0.65
) -> dict[str, Colour]:
    """A colour for each component, from dark to light among the topics of a source."""
    topics: dict[str, list[str]] = {}
    for name in components:
        topics.setdefault(name.partition("/")[0], []).append(name)
    found = {}
    for number, names in enumerate(topics.values()):
        hue = HUES[number] if len(topics) <= len(HUES) else number / len(topics)
        for place, name in enumerate(names):
            alone = len(names) == 1
            lightness = (darkest + lightest) / 2 if alone else darkest + (lightest - darkest) * place / (len(names) - 1)
            found[name] = colorsys.hls_to_rgb(hue, lightness, saturation)
    return found


def css(colour: Colour) -> str:
    """As `#rrggbb`."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)

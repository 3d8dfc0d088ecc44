"""Learning curves as SVG, drawn without a script: lines told apart by colour, dashes and marks."""

import math
from collections.abc import Mapping, Sequence
from html import escape


# Of Okabe and Ito, dark enough on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8a6d00", "#56B4E9", "#000000")
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_WIDTH, _HEIGHT, _LEFT, _FOOT, _TOP = 460, 230, 46, 34, 12


def panel(lines: Mapping[str, Sequence[tuple[float, float]]], *, title: str, unit: str) -> str:
    """
    Several lines over the steps of a training.

    Args:
        lines (`Mapping[str, Sequence[tuple[float, float]]]`): By label `(step, value)`, finite.
        title (`str`): Over them.
        unit (`str`): Of the values.

    Returns:
        `str`: HTML: a figure with its legend; nothing where there are no points.
    """
    lines = {label: points for label, points in lines.items() if points}
    if not lines:
        return ""
    across = [x for points in lines.values() for x, _ in points]
    up = [y for points in lines.values() for _, y in points]
    xs, ys = _ticks(min(across), max(across)), _ticks(min(up), max(up))
    low, high = min(ys[0], *up), max(ys[-1], *up)

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - min(across)) / ((max(across) - min(across)) or 1)
        return _LEFT + right * (_WIDTH - _LEFT - 14), _TOP + (1 - (y - low) / ((high - low) or 1)) * (
            _HEIGHT - _FOOT - _TOP
        )

    parts = []
    for y in ys:
        _, at = place(xs[0], y)
        parts.append(f"<line x1='{_LEFT}' x2='{_WIDTH - 14}' y1='{at:.1f}' y2='{at:.1f}' stroke='#dde3ea'/>")
        parts.append(f"<text x='{_LEFT - 5}' y='{at + 4:.1f}' text-anchor='end'>{_short(y)}</text>")
    for x in xs:
        at, _ = place(x, low)
        if min(across) <= x <= max(across):
            parts.append(f"<text x='{at:.1f}' y='{_HEIGHT - _FOOT + 15}' text-anchor='middle'>{_short(x)}</text>")
    parts.append(f"<text x='{(_WIDTH + _LEFT) / 2}' y='{_HEIGHT - 4}' text-anchor='middle'>step</text>")
    legend = []
    for number, (label, points) in enumerate(lines.items()):
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS) % len(_DASHES)]
        placed = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        look = f"stroke='{colour}' stroke-dasharray='{dash}'"
        parts.append(f"<polyline points='{placed}' fill='none' stroke-width='2' {look}/>")
        if len(points) == 1:
            parts.append("<circle cx='{:.1f}' cy='{:.1f}' r='3' fill='{}'/>".format(*place(*points[0]), colour))
        last = f"{points[-1][1]:.4g}"
        legend.append(
            f"<li><svg class='key' viewBox='0 0 24 8' aria-hidden='true'><line x1='0' x2='24' y1='4' y2='4' "
            f"stroke-width='3' {look}/></svg>{escape(label)} <span>{last} at the end</span></li>"
        )
    name = f"{title}, {unit}"
    return (
        f"<figure><figcaption>{escape(title)} <small>({escape(unit)})</small></figcaption>"
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{escape(name, quote=True)}'>"
        f"{''.join(parts)}</svg><ul class='legend'>{''.join(legend)}</ul></figure>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from one end to the other, four to seven of them."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, last + 1)]


def _short(value: float) -> str:
    return f"{value:.6g}"

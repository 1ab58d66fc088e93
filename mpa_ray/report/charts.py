"""Small charts as inline SVG. Positions are in percent, so that a chart is as wide as its place and
its marks keep their shape.
"""

from collections.abc import Iterable, Sequence
from math import ceil, floor
from typing import NamedTuple

from markupsafe import Markup

_BINS = 240
_RANGE = Markup('<line class="range {}" x1="{}" x2="{}" y1="50%" y2="50%"/>')


class Axis(NamedTuple):
    """The ends of an axis of scores, in percent; both are tens."""

    low: int
    high: int

    def at(self, value: float) -> str:
        """Where `value` is, in percent of the chart's width; a value beyond an end is at that
        end.
        """
        return _percent(value - self.low, self.high - self.low)


def axis_of(scores: Iterable[float]) -> Axis:
    """The axis around `scores` (percent), rounded outwards to tens and at least 20 wide.

    It ends above 100 only where a score is above 100, as CIDEr's may be.
    """
    # A mean of ones may be 100.00000000000001 percent.
    values = [round(score, 6) for score in scores] or [0.0, 100.0]
    low, high = 10 * floor(min(values) / 10), 10 * ceil(max(values) / 10)
    if high - low < 20:
        high = low + 20 if high > 100 else min(100, low + 20)
        low = min(low, high - 20)
    return Axis(low, high)


def _percent(value: float, top: float) -> str:
    return f"{min(100.0, max(0.0, 100 * value / top)):.2f}%"


def bar(value: float, top: float, kind: str = "") -> Markup:
    """A bar from 0, of a class `kind`; a value above 0 is never too thin to see."""
    width = _percent(value, top or 1)
    least = 2 if value else 0
    return Markup(
        '<svg class="chart bar" aria-hidden="true"><rect class="track" width="100%" height="100%"'
        ' rx="3"/>'
        '<rect class="fill {}" width="{}" height="100%" rx="3"/><rect class="fill {}" width="{}"'
        ' height="100%" rx="1"/></svg>'
    ).format(kind, width, kind, least)


def stacked(parts: Sequence[tuple[float, str]]) -> Markup:
    """Shares of a whole beside each other: (value, class) each."""
    whole = sum(value for value, _ in parts) or 1
    cells, left = [], 0.0
    for value, kind in parts:
        cell = Markup('<rect class="fill {}" x="{}" width="{}" height="100%"/>')
        cells.append(cell.format(kind, _percent(left, whole), _percent(value, whole)))
        left += value
    return Markup('<svg class="chart bar" aria-hidden="true">{}</svg>').format(
        Markup("").join(cells)
    )


def interval(value: float, bounds: Sequence[float] | None, axis: Axis, kind: str = "") -> Markup:
    """A score as a dot and its 95% interval as a line."""
    line = Markup("")
    if bounds:
        line = _RANGE.format(kind, axis.at(bounds[0]), axis.at(bounds[1]))
    dot = Markup('<circle class="dot {}" cx="{}" cy="50%" r="5"/>').format(kind, axis.at(value))
    return _on(axis, line + dot)


def change(before: float, after: float, ceiling: float | None, axis: Axis) -> Markup:
    """Before as a ring, after as a dot, the way between them, and the L-VLM as a tick."""
    kind = "up" if after > before else "down" if after < before else "same"
    marks = _RANGE.format(kind, axis.at(before), axis.at(after))
    if ceiling is not None:
        marks += Markup('<line class="tick lvlm" x1="{0}" x2="{0}" y1="18%" y2="82%"/>').format(
            axis.at(ceiling)
        )
    marks += Markup('<circle class="ring" cx="{}" cy="50%" r="4.5"/>').format(axis.at(before))
    return _on(
        axis,
        marks
        + Markup('<circle class="dot {}" cx="{}" cy="50%" r="5"/>').format(kind, axis.at(after)),
    )


def _on(axis: Axis, marks: Markup) -> Markup:
    line = Markup('<line class="grid" x1="{0}" x2="{0}" y1="0" y2="100%"/>')
    tens = Markup("").join(
        line.format(axis.at(score)) for score in range(axis.low, axis.high + 1, 10)
    )
    return Markup('<svg class="chart marks" aria-hidden="true">{}{}</svg>').format(tens, marks)


def binned(points: Sequence[tuple[float, float]], bins: int = _BINS) -> list[tuple[float, float]]:
    """At most `bins` points: the means of neighbours."""
    size = -(-len(points) // bins) or 1
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk))
        for chunk in chunks
    ]


def curve(points: Sequence[tuple[float, float]]) -> Markup:
    """A line through `points`, from 0 upwards, stretched over its place; the axes' figures are the
    page's to write.
    """
    shown = binned(points)
    right = max((x for x, _ in shown), default=1) or 1
    left = min((x for x, _ in shown), default=0)
    top = max((y for _, y in shown), default=1) or 1
    path = " ".join(
        f"{100 * (x - left) / ((right - left) or 1):.2f},{100 - 100 * y / top:.2f}"
        for x, y in shown
    )
    grid = Markup("").join(
        Markup('<line class="grid" x1="0" x2="100" y1="{0}" y2="{0}"/>').format(at)
        for at in (0, 25, 50, 75, 100)
    )
    return Markup(
        '<svg class="chart curve" viewBox="0 0 100 100" preserveAspectRatio="none"'
        ' aria-hidden="true">{}<polyline points="{}"/></svg>'
    ).format(grid, path)

"""Line charts as SVG that needs no script and takes its colours from the page.

A chart shows a few lines over training steps or FLOPs. A noisy line is drawn twice, as it is (faint) and smoothed
(bold); values that stand still between decisions are drawn as stairs. Each axis is fitted to the values. Pointing at a
chart shows the values there.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

from rld.reporting.series import Point, axis_ticks, change_points, envelope, log_ticks, number, segments, smooth

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 8, 22
"""Margins around the plot, for the numbers on its axes."""

_NUM_BANDS = 40
"""Vertical bands of a chart that show their values when pointed at; at most one for each step."""

_LOG_RATIO = 50.0
"""A chart that may be logarithmic is so where its highest value is at least this many times its lowest."""

_SMALLEST = 1e-300
"""Values below are drawn as this one on a logarithmic axis."""

_FLAT = 0.01
"""Values that differ by less than this share of the largest are drawn as a level line."""

_OUTLIERS = 1 / 40
"""Share of the lowest and of the highest values of a line that the axis need not hold."""


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        css: The CSS classes that colour it.
        num_lost: Logged values that were not numbers.
        parts: The curves of which this is the mean, drawn faint.
    """

    name: str
    css: str
    points: Sequence[Point]
    num_lost: int = 0
    parts: Sequence[Sequence[Point]] = ()


@dataclass(frozen=True)
class Chart:
    """Lines on common axes.

    Attributes:
        low: The vertical axis never begins below. None: no limit.
        high: The vertical axis never ends above.
        stairs: Whether values stand still between points.
        may_be_log: Whether the vertical axis is logarithmic where values differ much.
        marks: Steps at which something happened, and a text about each.
        is_small: Whether it is one of many that are alike.
        x_name: The name of the horizontal axis.
    """

    title: str
    lines: Sequence[Line]
    low: float | None = None
    high: float | None = None
    stairs: bool = False
    may_be_log: bool = False
    marks: Sequence[tuple[float, str]] = ()
    is_small: bool = False
    x_name: str = "step"

    @property
    def size(self) -> tuple[int, int]:
        return (260, 160) if self.is_small else (400, 210)


@dataclass(frozen=True)
class _Curve:
    """How a line is drawn: pieces, with no stroke between them."""

    line: Line
    faint: Sequence[Sequence[Point]]
    bold: Sequence[Sequence[Point]]

    @property
    def last(self) -> float:
        return self.bold[-1][-1][1]


@dataclass(frozen=True)
class _Plot:
    """The rectangle between the axes, in SVG units, and where steps and values are in it."""

    width: float
    height: float
    first: float
    last: float
    low: float
    high: float
    log: bool

    def x(self, step: float) -> float:
        return self.width * (step - self.first) / ((self.last - self.first) or 1)

    def y(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, _SMALLEST))
        return self.height * (high - value) / (high - low)

    def path(self, points: Sequence[Point], stairs: bool) -> str:
        """Return the `d` attribute of a path; a single point becomes a short stroke, which has round ends."""
        x, y = self.x(points[0][0]), self.y(points[0][1])
        parts = [f"M{x:.1f} {y:.1f}"]
        for step, value in points[1:]:
            x, y = self.x(step), self.y(value)
            parts.append(f"H{x:.1f}V{y:.1f}" if stairs else f"L{x:.1f} {y:.1f}")
        return "".join(parts) if len(points) > 1 else f"{parts[0]}h.01"


def figure(chart: Chart) -> str:
    """Draw `chart` as an HTML figure: title, legend with the last values, and SVG.

    The style sheet has the classes `grid`, `axis`, `faint`, `bold`, `dot`, `band`, `mark`, `lost` and the lines' own.
    """
    log = _is_log(chart)
    curves = [_curve(line, chart.stairs, log) for line in chart.lines if line.points]
    plot = _fit(chart, curves, log) if curves else None
    title = escape(chart.title) + ("<small>log scale</small>" if log else "")
    if len(curves) == 1 and curves[0].line.name == chart.title:
        head = f"<figcaption>{title}<span>{number(curves[0].last)}</span></figcaption>"
    else:
        head = f"<figcaption>{title}</figcaption><ul>{''.join(map(_legend, curves))}</ul>"
    nan_notes = "".join(_nan_note(line) for line in chart.lines if line.num_lost)
    return f"<figure>{head}{_svg(chart, plot, curves) if plot else ''}{nan_notes}</figure>"


def _nan_note(line: Line) -> str:
    total = line.num_lost + len(line.points)
    return f'<p class="lost">{escape(line.name)}: {line.num_lost} of {total} logged values were not numbers</p>'


def _legend(curve: _Curve) -> str:
    return f'<li class="{curve.line.css}"><i></i>{escape(curve.line.name)} <b>{number(curve.last)}</b></li>'


def _svg(chart: Chart, plot: _Plot, curves: Sequence[_Curve]) -> str:
    shapes = [*_strokes(plot, curves, chart.stairs), *_bands(plot, curves, chart), *_marks(plot, chart.marks)]
    label = escape(f"{chart.title}; at the end " + ", ".join(f"{c.line.name} {number(c.last)}" for c in curves))
    width, height = chart.size
    # The inner svg clips what leaves the plot; it is 2 units larger, so that a line along an edge is seen whole.
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{_axes(plot, chart.x_name)}'
        f'<svg x="{_LEFT - 2}" y="{_TOP - 2}" width="{plot.width + 4}" height="{plot.height + 4}" '
        f'viewBox="-2 -2 {plot.width + 4} {plot.height + 4}">{"".join(shapes)}</svg></svg>'
    )


def _is_log(chart: Chart) -> bool:
    values = _typical_values(chart)
    is_positive = all(value > 0 for line in chart.lines for _, value in line.points)
    return chart.may_be_log and is_positive and bool(values) and max(values) >= _LOG_RATIO * min(values)


def _typical_values(chart: Chart) -> list[float]:
    """Return the values of all lines without the outliers of each."""
    values = []
    for line in chart.lines:
        ordered = sorted(value for _, value in line.points)
        num_outliers = int(len(ordered) * _OUTLIERS)
        values += ordered[num_outliers : len(ordered) - num_outliers]
    return values


def _curve(line: Line, stairs: bool, log: bool) -> _Curve:
    if stairs:
        return _Curve(line, [], [change_points(line.points)])
    pieces = segments(line.points)
    bold = [smooth(piece, geometric=log) for piece in pieces]
    return _Curve(line, [*line.parts, *(envelope(piece) for piece in pieces if len(piece) > 1)], bold)


def _fit(chart: Chart, curves: Sequence[_Curve], log: bool) -> _Plot:
    """Fit the axes around all that is drawn bold, and around the rest without outliers, within the chart's limits."""
    values = _typical_values(chart) + [value for curve in curves for piece in curve.bold for _, value in piece]
    low, high = min(values), max(values)
    if log:
        low, high = low / 1.2, high * 1.2
    else:
        low = 0.0 if 0 < low < 0.5 * high else low  # the axis begins at 0 where that is not far
        is_flat = high - low < _FLAT * max(abs(low), abs(high))
        margin = (0.1 * abs(high) if is_flat else 0.06 * (high - low)) or 1.0
        low, high = low - margin * (low != 0), high + margin
    if chart.low is not None:
        low = max(low, chart.low)
    if chart.high is not None:
        high = min(high, chart.high)
    steps = [step for line in chart.lines for step, _ in line.points]
    width, height = chart.size
    return _Plot(
        width - _LEFT - _RIGHT, height - _TOP - _BOTTOM, first=min(steps), last=max(steps), low=low, high=high, log=log
    )


def _axes(plot: _Plot, x_name: str) -> str:
    parts = []
    for value in log_ticks(plot.low, plot.high) if plot.log else axis_ticks(plot.low, plot.high, 4):
        y = _TOP + plot.y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}h{plot.width}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.7:.1f}" text-anchor="end">{number(value)}</text>')
    bottom = _TOP + plot.height
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}h{plot.width}"/>')
    parts.append(f'<text x="{_LEFT - 6}" y="{bottom + 17}" text-anchor="end">{x_name}</text>')
    most = 5 if plot.last < 1e5 or x_name != "step" else 3
    steps = axis_ticks(plot.first, plot.last, most) if plot.last > plot.first else [plot.first]
    for step in filter(float.is_integer, map(float, steps)):
        x = _LEFT + plot.x(step)
        anchor = "end" if x > _LEFT + plot.width - 12 else "start" if x < _LEFT + 12 else "middle"
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v3"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="{anchor}">{_x_text(step, x_name)}</text>')
    return "".join(parts)


def _x_text(x: float, x_name: str) -> str:
    return f"{x:.0f}" if x_name == "step" else number(x)


def _strokes(plot: _Plot, curves: Sequence[_Curve], stairs: bool) -> list[str]:
    """All faint strokes, then all bold ones on top."""
    pieces = [("faint", curve, piece) for curve in curves for piece in curve.faint]
    pieces += [("bold" if len(piece) > 1 else "bold dot", curve, piece) for curve in curves for piece in curve.bold]
    return [f'<path class="{kind} {c.line.css}" d="{plot.path(piece, stairs)}"/>' for kind, c, piece in pieces]


def _bands(plot: _Plot, curves: Sequence[_Curve], chart: Chart) -> list[str]:
    """Return invisible bands whose titles show the values within them."""
    steps = sorted({step for curve in curves for step, _ in curve.line.points})
    num_bands = min(_NUM_BANDS, len(steps))
    bands, left = [], 0.0
    for i in range(num_bands):
        begin, end = len(steps) * i // num_bands, len(steps) * (i + 1) // num_bands
        right = plot.x((steps[end - 1] + steps[end]) / 2) if end < len(steps) else plot.width
        bands.append(
            f'<rect class="band" x="{left:.1f}" width="{right - left:.1f}" height="{plot.height}">'
            f"<title>{escape(_values_text(curves, chart, steps[begin], steps[end - 1]))}</title></rect>"
        )
        left = right
    return bands


def _values_text(curves: Sequence[_Curve], chart: Chart, first: float, last: float) -> str:
    """Return a line with the range of steps, and one with the mean of each curve in it, or of stairs the last value."""
    texts = [_x_text(step, chart.x_name) for step in (first, last)]
    lines = [f"{chart.x_name} {texts[0]}"]
    if first != last:
        lines = [f"{chart.x_name.removesuffix('s')}s {texts[0]} to {texts[1]}"]
    for curve in curves:
        points = curve.line.points
        values = [value for _, value in points[bisect_left(points, (first,)) : bisect_left(points, (last, math.inf))]]
        if values:
            lines.append(f"{curve.line.name} {number(values[-1] if chart.stairs else fmean(values))}")
    return "\n".join(lines)


def _marks(plot: _Plot, marks: Sequence[tuple[float, str]]) -> list[str]:
    return [
        f'<g class="mark"><title>step {number(step)}: {escape(text)}</title>'
        f'<path d="M{plot.x(step):.1f} 0v{plot.height}"/><path d="M{plot.x(step) - 4:.1f} 0h8l-4 6z"/></g>'
        for step, text in marks
    ]

"""Line charts as SVG that needs no script and takes its colours from the page.

A chart shows a few lines over the training steps. Noisy lines are drawn twice, as they are (faint) and smoothed
(bold); what stands still between decisions is drawn as stairs. Hovering a slice of a chart shows its values.
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
"""Slices that can be hovered."""

_LOG_FROM = 50.0
"""A chart that may be logarithmic is so where its highest value is this many times its lowest."""


@dataclass(frozen=True)
class Line:
    """One curve; `css` is the CSS class that colours it."""

    name: str
    css: str
    points: Sequence[Point]
    num_lost: int = 0
    """Logged values that were not numbers."""
    behind: Sequence[Sequence[Point]] = ()
    """Curves that the line sums up, drawn faint."""


@dataclass(frozen=True)
class Chart:
    """What one frame shows: lines that have points."""

    title: str
    lines: Sequence[Line]
    low: float | None = None
    """Where the vertical axis begins. None: by the values."""
    high: float | None = None
    stairs: bool = False
    may_be_log: bool = False
    marks: Sequence[tuple[float, str]] = ()
    """Steps at which something happened, and what."""
    is_small: bool = False
    """One of many alike."""
    along: str = "step"
    """What the horizontal axis counts."""

    @property
    def size(self) -> tuple[int, int]:
        return (260, 160) if self.is_small else (400, 210)


@dataclass(frozen=True)
class _Curve:
    """How a line is drawn: pieces with nothing between them."""

    line: Line
    faint: Sequence[Sequence[Point]]
    bold: Sequence[Sequence[Point]]

    @property
    def last(self) -> float:
        return self.bold[-1][-1][1]


@dataclass(frozen=True)
class _Plot:
    """The plane that the axes span, and where steps and values lie on it."""

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
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-300))
        return self.height * (high - value) / (high - low)

    def path(self, points: Sequence[Point], stairs: bool) -> str:
        """Return the `d` of a path; a single point is a stroke too short to see but for its round ends."""
        x, y = self.x(points[0][0]), self.y(points[0][1])
        parts = [f"M{x:.1f} {y:.1f}"]
        for step, value in points[1:]:
            x, y = self.x(step), self.y(value)
            parts.append(f"H{x:.1f}V{y:.1f}" if stairs else f"L{x:.1f} {y:.1f}")
        return "".join(parts) if len(points) > 1 else f"{parts[0]}h.01"


def figure(chart: Chart) -> str:
    """Draw `chart` as an HTML figure: title, legend with the last values, and SVG.

    The page styles `.grid`, `.axis`, `.faint`, `.bold`, `.dot`, `.band`, `.mark` and `.lost`, and each line's `css`.
    """
    log = _is_log(chart)
    curves = [_curve(line, chart.stairs, log) for line in chart.lines if line.points]
    plot = _fit(chart, curves, log) if curves else None
    title = escape(chart.title) + ("<small>log scale</small>" if log else "")
    if len(curves) == 1 and curves[0].line.name == chart.title:
        head = f"<figcaption>{title}<span>{number(curves[0].last)}</span></figcaption>"
    else:
        head = f"<figcaption>{title}</figcaption><ul>{''.join(map(_legend, curves))}</ul>"
    lost = "".join(_lost(line) for line in chart.lines if line.num_lost)
    return f"<figure>{head}{_svg(chart, plot, curves) if plot else ''}{lost}</figure>"


def _lost(line: Line) -> str:
    total = line.num_lost + len(line.points)
    return f'<p class="lost">{escape(line.name)}: {line.num_lost} of {total} logged values were not numbers</p>'


def _legend(curve: _Curve) -> str:
    return f'<li class="{curve.line.css}"><i></i>{escape(curve.line.name)} <b>{number(curve.last)}</b></li>'


def _svg(chart: Chart, plot: _Plot, curves: Sequence[_Curve]) -> str:
    drawn = [*_strokes(plot, curves, chart.stairs), *_bands(plot, curves, chart), *_marks(plot, chart.marks)]
    spoken = escape(f"{chart.title}; at the end " + ", ".join(f"{c.line.name} {number(c.last)}" for c in curves))
    width, height = chart.size
    # The inner svg clips what leaves the plot; it is 2 units larger, so that a line along an edge is seen whole.
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{spoken}">{_axes(plot, chart.along)}'
        f'<svg x="{_LEFT - 2}" y="{_TOP - 2}" width="{plot.width + 4}" height="{plot.height + 4}" '
        f'viewBox="-2 -2 {plot.width + 4} {plot.height + 4}">{"".join(drawn)}</svg></svg>'
    )


def _is_log(chart: Chart) -> bool:
    values = _tame(chart)
    is_positive = all(value > 0 for line in chart.lines for _, value in line.points)
    return chart.may_be_log and is_positive and bool(values) and max(values) >= _LOG_FROM * min(values)


def _tame(chart: Chart) -> list[float]:
    """The values of all lines but the wildest twentieth of each."""
    values = []
    for line in chart.lines:
        ordered = sorted(value for _, value in line.points)
        wild = len(ordered) // 40
        values += ordered[wild : len(ordered) - wild]
    return values


def _curve(line: Line, stairs: bool, log: bool) -> _Curve:
    if stairs:
        return _Curve(line, [], [change_points(line.points)])
    pieces = segments(line.points)
    bold = [smooth(piece, geometric=log) for piece in pieces]
    return _Curve(line, [*line.behind, *(envelope(piece) for piece in pieces if len(piece) > 1)], bold)


def _fit(chart: Chart, curves: Sequence[_Curve], log: bool) -> _Plot:
    """Fit the axes around all that is bold and what is tame of the rest."""
    values = _tame(chart) + [value for curve in curves for piece in curve.bold for _, value in piece]
    low, high = min(values), max(values)
    if log:
        low, high = low / 1.2, high * 1.2
    else:
        low = 0.0 if 0 < low < 0.5 * high else low  # the axis begins at 0 where that is not far
        margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        low, high = low - margin * (low != 0), high + margin
    steps = [step for line in chart.lines for step, _ in line.points]
    width, height = chart.size
    return _Plot(
        width - _LEFT - _RIGHT,
        height - _TOP - _BOTTOM,
        min(steps),
        max(steps),
        low if chart.low is None else chart.low,
        high if chart.high is None else chart.high,
        log,
    )


def _axes(plot: _Plot, along: str) -> str:
    parts = []
    for value in log_ticks(plot.low, plot.high) if plot.log else axis_ticks(plot.low, plot.high, 4):
        y = _TOP + plot.y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}h{plot.width}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.7:.1f}" text-anchor="end">{number(value)}</text>')
    bottom = _TOP + plot.height
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}h{plot.width}"/>')
    parts.append(f'<text x="{_LEFT - 6}" y="{bottom + 17}" text-anchor="end">{along}</text>')
    most = 5 if plot.last < 1e5 or along != "step" else 3
    steps = axis_ticks(plot.first, plot.last, most) if plot.last > plot.first else [plot.first]
    for step in filter(float.is_integer, map(float, steps)):
        x = _LEFT + plot.x(step)
        anchor = "end" if x > _LEFT + plot.width - 12 else "start" if x < _LEFT + 12 else "middle"
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v3"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="{anchor}">{_place(step, along)}</text>')
    return "".join(parts)


def _place(x: float, along: str) -> str:
    return f"{x:.0f}" if along == "step" else number(x)


def _strokes(plot: _Plot, curves: Sequence[_Curve], stairs: bool) -> list[str]:
    """All faint strokes, then all bold ones on top."""
    pieces = [("faint", curve, piece) for curve in curves for piece in curve.faint]
    pieces += [("bold" if len(piece) > 1 else "bold dot", curve, piece) for curve in curves for piece in curve.bold]
    return [f'<path class="{kind} {c.line.css}" d="{plot.path(piece, stairs)}"/>' for kind, c, piece in pieces]


def _bands(plot: _Plot, curves: Sequence[_Curve], chart: Chart) -> list[str]:
    """Invisible slices whose titles tell each line's mean within them, or of stairs the last value."""
    steps = sorted({step for curve in curves for step, _ in curve.line.points})
    num = min(_NUM_BANDS, len(steps))
    bands, left = [], 0.0
    for i in range(num):
        inside = steps[len(steps) * i // num : len(steps) * (i + 1) // num]
        first, last = inside[0], inside[-1]
        places = [_place(step, chart.along) for step in (first, last)]
        told = [
            f"{chart.along} {places[0]}"
            if first == last
            else f"{chart.along.removesuffix('s')}s {places[0]} to {places[1]}"
        ]
        for curve in curves:
            points = curve.line.points
            values = [
                value for _, value in points[bisect_left(points, (first,)) : bisect_left(points, (last, math.inf))]
            ]
            if values:
                told.append(f"{curve.line.name} {number(values[-1] if chart.stairs else fmean(values))}")
        after = len(steps) * (i + 1) // num
        right = plot.x((last + steps[after]) / 2) if after < len(steps) else plot.width
        title = escape("\n".join(told))
        bands.append(
            f'<rect class="band" x="{left:.1f}" width="{right - left:.1f}" height="{plot.height}">'
            f"<title>{title}</title></rect>"
        )
        left = right
    return bands


def _marks(plot: _Plot, marks: Sequence[tuple[float, str]]) -> list[str]:
    return [
        f'<g class="mark"><title>step {number(step)}: {escape(what)}</title>'
        f'<path d="M{plot.x(step):.1f} 0v{plot.height}"/><path d="M{plot.x(step) - 4:.1f} 0h8l-4 6z"/></g>'
        for step, what in marks
    ]

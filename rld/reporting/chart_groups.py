"""Which charts a stage gets. `metric_names` says which chart shows a metric; this module says how each chart looks.

Every signal, skill, teacher and reward has one colour on the whole page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from rld.reporting.charts import Chart, Line
from rld.reporting.history import LoggedEvent, RunHistory, StageHistory
from rld.reporting.metric_names import find_metric
from rld.types import SIGNALS

NUM_COLOURS = 9
"""Colours that the page defines, as classes `colour0`, `colour1` and so on."""

_PLAIN = ("plain", "plain dashed", "plain dotted")
"""The classes of lines that belong to no signal, skill, teacher or reward, in their order."""

_OTHER = "Other metrics"


@dataclass(frozen=True)
class ChartGroup:
    """Charts under one heading, with a sentence on what they show."""

    title: str
    about: str
    charts: list[Chart]


@dataclass(frozen=True)
class ChartStyle:
    """How a chart is drawn.

    Attributes:
        title: As `Metric.chart` names it.
        layout: One chart with all lines; a small chart for each line; or a small chart for each skill and one for the
            mean over skills.
        low: No axis begins below. None: no limit.
        high: No axis ends above.
        stairs: Whether values stand still between decisions.
        may_be_log: Whether the axis is logarithmic where values differ much.
        events: First words of the kinds of events that are marked in it.
        neutral: The chart is left out where all values are this one.
    """

    title: str
    layout: Literal["all lines", "each line", "each skill"] = "all lines"
    low: float | None = None
    high: float | None = None
    stairs: bool = False
    may_be_log: bool = False
    events: tuple[str, ...] = ()
    neutral: float | None = None


SIGNAL_EVENTS = ("signal", "phase", "skill")

GROUPS: tuple[tuple[str, str, tuple[ChartStyle, ...]], ...] = (
    (
        "Progress",
        "How many answers are correct, on held-out rows and in training, and what the curriculum asks for.",
        (
            ChartStyle("Held-out score", low=0, high=1),
            ChartStyle("Success rate", low=0, high=1, events=("change",)),
            ChartStyle("Curriculum level", stairs=True, events=("level", "change")),
            ChartStyle("Share of prompts", low=0, high=1),
            ChartStyle("Gold answers", low=0, high=1),
        ),
    ),
    (
        "Signals",
        "The weight of each signal on each skill, as the controller decided.",
        (ChartStyle("Signal weights", "each skill", 0, 1, stairs=True, events=SIGNAL_EVENTS),),
    ),
    (
        "Teachers",
        "Each teacher's share of what a skill is taught; 0 for all where no teacher teaches the skill.",
        (ChartStyle("Teacher weights", "each skill", 0, 1, stairs=True, events=("teacher",)),),
    ),
    (
        "Losses",
        "The total is the weighted and scaled sum; the losses of the signals are neither weighted nor scaled.",
        (
            ChartStyle("Loss, nats per token", may_be_log=True),
            ChartStyle("Total", "each line"),
            ChartStyle("Loss", "each line", may_be_log=True),
            ChartStyle("Scale", "all lines", stairs=True, neutral=1.0),
        ),
    ),
    (
        "Distances",
        "How far the student is from its teachers, and how large the gradient of each signal is.",
        (
            ChartStyle("Divergence, nats per token", may_be_log=True),
            ChartStyle("Distance of hidden states", may_be_log=True),
            ChartStyle("Gradient at the last hidden states", may_be_log=True),
        ),
    ),
    (
        "Constraints",
        "How much of the protected skills is retained, how strongly they are replayed, and what the audit found.",
        (
            ChartStyle("Retained success", low=0, events=("retention",)),
            ChartStyle("Weight of the earlier student", low=0, stairs=True, events=("retention",)),
            ChartStyle("Confirmed successes", low=0, high=1, events=("audit",)),
        ),
    ),
    (
        "Rollouts",
        "What the student generated in training.",
        (
            ChartStyle("Reward"),
            ChartStyle("Entropy, nats per token"),
            ChartStyle("Weight of the entropy bonus"),
            ChartStyle("Tokens so far", low=0, stairs=True),
            ChartStyle("Prompts so far", low=0, stairs=True),
        ),
    ),
    (
        _OTHER,
        "Metrics that rld does not know, such as those of your own curriculum.",
        (ChartStyle(_OTHER, "each line"),),
    ),
)
"""Heading, explanation and charts of each group, in the order of the page."""


class Colours:
    """Gives each signal, teacher, skill and reward one colour on the whole page, different while there are enough."""

    def __init__(self, *histories: RunHistory) -> None:
        stages = [stage for history in histories for stage in history.plan.stages]
        teachers = dict.fromkeys(name for stage in stages for name in stage.teachers)
        self._names: dict[str, list[str]] = {
            "signal": [*SIGNALS],
            "teacher": [*teachers],
            "skill": list(dict.fromkeys(skill for history in histories for skill in history.plan.skills)),
            "reward": [],
        }
        sizes = accumulate(map(len, self._names.values()), initial=0)
        self._first = dict(zip(self._names, sizes, strict=False))

    def place(self, kind: str, name: str) -> int:
        """Return the index of `name` among its kind; a name that the recipe does not have gets the next one."""
        names = self._names.setdefault(kind, [])
        if name not in names:
            names.append(name)
        return names.index(name)

    def css(self, kind: str, name: str) -> str:
        """Return the CSS classes of `name`; of two with the same colour and kind, the later is dashed."""
        if not kind:
            return _PLAIN[0]
        place = self.place(kind, name)
        if kind not in self._first:
            return _PLAIN[place % len(_PLAIN)]
        return f"colour{(self._first[kind] + place) % NUM_COLOURS}" + " dashed" * (place >= NUM_COLOURS)


@dataclass(frozen=True)
class _Series:
    """A logged metric: its name in the log, and whose line it is in which chart.

    Attributes:
        kind: Of what the line stands for: `signal`, `teacher`, `skill` and so on, or empty.
        label: The line's name; empty for the only line of its chart.
        skill: The skill whose chart it belongs to; None for the mean over skills and where a line is a skill.
    """

    key: str
    chart: str
    kind: str
    label: str
    skill: str | None


def chart_groups(stage: StageHistory, skills: Iterable[str], colours: Colours) -> list[ChartGroup]:
    """Return the groups of charts of a stage; what it did not log is left out."""
    charts = _StageCharts(stage, list(skills), colours)
    groups = [
        ChartGroup(title, about, [chart for style in styles for chart in charts.of(style)])
        for title, about, styles in GROUPS
    ]
    return [group for group in groups if group.charts]


class _StageCharts:
    """Makes charts of one stage's metrics."""

    def __init__(self, stage: StageHistory, skills: list[str], colours: Colours) -> None:
        self.stage, self.skills, self.colours = stage, skills, colours
        keys = stage.metric_names()
        if any(stage.series(key) == stage.series("loss") for key in keys if key.startswith("loss/")):
            keys.remove("loss")  # a total of one loss is that loss
        self.series = [_series(key) for key in keys]

    def of(self, style: ChartStyle) -> list[Chart]:
        """Return the charts of one style: none where nothing of it was logged, or where all values are neutral."""
        series = [metric for metric in self.series if metric.chart == style.title]
        series.sort(key=lambda metric: self.colours.place(metric.kind, metric.label) if metric.kind else 0)
        lines = [(metric, self._line(metric, style)) for metric in series]
        values = [value for _, line in lines for _, value in line.points]
        if not lines or (style.neutral is not None and all(value == style.neutral for value in values)):
            return []
        base = Chart("", [], style.low, style.high, style.stairs, style.may_be_log)
        if style.layout == "each line":
            return [replace(base, title=line.name, lines=[line], is_small=True) for _, line in lines]
        if style.layout == "each skill":
            return self._per_skill(replace(base, is_small=True), lines, style.events)
        marks = self._marks(style.events)
        return [replace(base, title=style.title, lines=[line for _, line in lines], marks=marks)]

    def _line(self, series: _Series, style: ChartStyle) -> Line:
        points, num_lost = self.stage.series(series.key)
        is_named = series.kind or (series.label and style.layout == "each line")
        name = series.label if is_named else style.title
        return Line(name, self.colours.css(series.kind, series.label), points, num_lost)

    def _per_skill(self, style: Chart, lines: Sequence[tuple[_Series, Line]], events: Sequence[str]) -> list[Chart]:
        """Return the chart of the mean alone where all skills are alike, else it and one for each skill."""
        mean = replace(style, title="Mean over skills", lines=_of_skill(lines, None), marks=self._marks(events))
        charts = [
            replace(style, title=skill, lines=_of_skill(lines, skill), marks=self._marks(events, skill))
            for skill in self.skills
            if _of_skill(lines, skill)
        ]
        if all(_same_points(chart, charts[0]) for chart in charts):
            return [replace(mean, title="All skills", is_small=False)]
        return [mean, *charts]

    def _marks(self, topics: Sequence[str], skill: str | None = None) -> list[tuple[float, str]]:
        """The events whose kind begins with one of `topics`, of one skill or of all."""
        events = [event for event in self.stage.events if event.kind.split()[0] in topics]
        return [_mark(event) for event in events if skill in (None, event.skill)]


def _series(key: str) -> _Series:
    listed = find_metric(key)
    if listed is None:
        return _Series(key, _OTHER, "", key, None)
    metric, names = listed
    skill = names.get("skill")
    others = [(kind, label) for kind, label in names.items() if kind != "skill"]
    if others:
        (kind, label), *_ = others
        return _Series(key, metric.chart, kind, label, skill)
    if skill is not None:
        return _Series(key, metric.chart, "skill", skill, None)
    return _Series(key, metric.chart, "", key.partition("/")[2], None)


def _of_skill(lines: Sequence[tuple[_Series, Line]], skill: str | None) -> list[Line]:
    return [line for series, line in lines if series.skill == skill]


def _mark(event: LoggedEvent) -> tuple[float, str]:
    return event.step, event.sentence


def _same_points(first: Chart, second: Chart) -> bool:
    return [line.points for line in first.lines] == [line.points for line in second.lines]

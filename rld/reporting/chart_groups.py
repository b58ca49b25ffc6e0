"""Which charts a stage gets: the curves that a person would look for, each signal, skill and teacher in its colour."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate

from rld.reporting.charts import Chart, Line
from rld.reporting.history import LoggedEvent, RunHistory, StageHistory
from rld.types import SIGNALS

NUM_INKS = 9
"""Colours that the page defines, as classes `ink0`, `ink1` and so on."""

_PLAIN = "plain"
"""The ink of what is no signal, skill, teacher or reward."""

_WEIGHT = "weight/(?!reference)([^/]+)"
"""Weights that sum to 1; that of an earlier self comes on top."""


@dataclass(frozen=True)
class ChartGroup:
    """Charts to be looked at together."""

    title: str
    about: str
    charts: list[Chart]


class Colours:
    """Gives every signal, teacher and skill one colour on the whole page, its own while there are enough."""

    def __init__(self, history: RunHistory) -> None:
        teachers = dict.fromkeys(name for stage in history.plan.stages for name in stage.teachers)
        self._names: dict[str, list[str]] = {
            "signal": [*SIGNALS],
            "teacher": [*teachers],
            "skill": [*history.plan.skills],
            "reward": [],
        }
        sizes = accumulate(map(len, self._names.values()), initial=0)
        self._first = dict(zip(self._names, sizes, strict=False))

    def place(self, kind: str, name: str) -> int:
        """Return which of its kind `name` is, from 0; names that the recipe does not have come last."""
        if name not in self._names[kind]:
            self._names[kind].append(name)
        return self._names[kind].index(name)

    def css(self, kind: str, name: str) -> str:
        """Return the classes of `name`; of two with the same colour and kind, the later is dashed."""
        place = self.place(kind, name)
        return f"ink{(self._first[kind] + place) % NUM_INKS}" + " dashed" * (place >= NUM_INKS)


def groups(stage: StageHistory, skills: Iterable[str], inks: Colours) -> list[ChartGroup]:
    """Return the groups of charts of a stage; what it did not log is left out."""
    found = _StageCharts(stage, list(skills), inks)
    if stage.plan.run == "sft":
        all_groups = [ChartGroup("Loss", "", found.single("Loss, nats per token", "loss/sft"))]
    else:
        all_groups = [
            ChartGroup(
                "Progress",
                "What the verifier accepts of the student's completions, and what it is asked.",
                found.skills(),
            ),
            ChartGroup("Signals", "How much each signal counts, as the controller decided.", found.weights()),
            ChartGroup(
                "Teachers",
                "Whose advice counts, as shares; 0 everywhere where no teacher is worth hearing.",
                found.teachers(),
            ),
            ChartGroup(
                "Losses",
                "The total is weighted and scaled, which evens out gradients; the signals' own are not.",
                found.losses(),
            ),
            ChartGroup(
                "Distances",
                "How far the student is from its teachers, and how hard each signal pulls.",
                found.distances(),
            ),
            ChartGroup(
                "Constraints",
                "What must not be forgotten, and how strongly it is replayed; and what an audit says of the reward.",
                found.constraints(),
            ),
            ChartGroup("Rollouts", "What the student generated.", found.rollouts()),
        ]
    return [group for group in all_groups if group.charts]


class _StageCharts:
    """Makes charts of one stage's metrics. Each method returns those for which there is something to draw."""

    def __init__(self, stage: StageHistory, skills: list[str], inks: Colours) -> None:
        self.stage, self.names, self.inks = stage, skills, inks
        self.keys = stage.keys()

    def _line(self, key: str, name: str, css: str) -> Line:
        points, num_lost = self.stage.series(key)
        return Line(name, css, points, num_lost)

    def _lines(self, kind: str, pattern: str) -> list[Line]:
        """The lines of all keys that match; the pattern's group is the name."""
        matches = [match for key in self.keys if (match := re.fullmatch(pattern, key))]
        matches.sort(key=lambda match: self.inks.place(kind, match[1]))
        return [self._line(match[0], match[1], self.inks.css(kind, match[1])) for match in matches]

    def _chart(self, chart: Chart) -> list[Chart]:
        return [chart] if chart.lines else []

    def single(self, title: str, key: str) -> list[Chart]:
        return [Chart(title, [self._line(key, title, _PLAIN)])] if key in self.keys else []

    def skills(self) -> list[Chart]:
        shares = Chart("Share of prompts", self._lines("skill", "share/(.+)"), 0)
        success = Chart("Success rate", self._lines("skill", "progress/(.+)"), 0, 1, marks=self._marks("change"))
        levels = self._lines("skill", "level/(.+)")
        return [
            *self._chart(Chart("Held-out score", self._lines("skill", "score/(.+)"), 0, 1)),
            *self._chart(success),
            *self._chart(Chart("Curriculum level", levels, stairs=True, marks=self._marks("level", "change"))),
            *self._chart(shares),
        ]

    def weights(self) -> list[Chart]:
        mean = Chart("Mean over skills", self._lines("signal", _WEIGHT), 0, 1, stairs=True)
        return self._per_skill(mean, "signal", _WEIGHT + "/{}")

    def teachers(self) -> list[Chart]:
        mean = Chart("Mean over skills", self._lines("teacher", "teacher/(.+)/weight"), 0, 1, stairs=True)
        return self._per_skill(mean, "teacher", "teacher/(.+)/weight/{}")

    def _marks(self, *topics: str, skill: str | None = None) -> list[tuple[float, str]]:
        """The events whose kind begins with one of `topics`, of one skill or of all."""
        events = [event for event in self.stage.events if event.kind.split()[0] in topics]
        return [_mark(event) for event in events if skill in (None, event.skill)]

    def _per_skill(self, mean: Chart, kind: str, pattern: str) -> list[Chart]:
        """The mean alone where all skills are alike, else it and a chart per skill, all small."""
        topics = ("teacher",) if kind == "teacher" else ("signal", "phase", "skill")
        mean = replace(mean, marks=self._marks(*topics))
        charts = []
        for skill in self.names:
            if lines := self._lines(kind, pattern.format(re.escape(skill))):
                charts.append(replace(mean, title=skill, lines=lines, marks=self._marks(*topics, skill=skill)))
        if all(_values(chart) == _values(charts[0]) for chart in charts):
            return self._chart(replace(mean, title="All skills"))
        return [_small(chart) for chart in (mean, *charts)]

    def losses(self) -> list[Chart]:
        charts = self.single("Total", "loss")
        charts += [Chart(line.name, [line], may_be_log=True) for line in self._lines("signal", "loss/(.+)")]
        scales = self._lines("signal", "scale/(.+)")
        if any(value != 1 for line in scales for _, value in line.points):
            charts.append(Chart("Scale", scales, stairs=True))
        return [_small(chart) for chart in charts]

    def distances(self) -> list[Chart]:
        charts = [
            Chart("Divergence, nats per token", self._lines("teacher", "divergence/(.+)"), may_be_log=True),
            Chart("Distance of hidden states", self._lines("teacher", "distance/(.+)"), may_be_log=True),
            Chart("Gradient at the last hidden states", self._lines("signal", "grad/(.+)"), may_be_log=True),
        ]
        return [chart for chart in charts if chart.lines]

    def constraints(self) -> list[Chart]:
        kept, audited = self._lines("skill", "retention/(.+)"), self._lines("skill", "audit/(.+)")
        marks = self._marks("retention")
        weights = self._lines("skill", "weight/reference/(.+)")
        return [
            *self._chart(Chart("Success relative to the start", kept, 0, marks=marks)),
            *self._chart(Chart("Weight of the earlier self", weights, 0, stairs=True, marks=marks)),
            *self._chart(Chart("Audited successes that are right", audited, 0, 1, marks=self._marks("audit"))),
        ]

    def rollouts(self) -> list[Chart]:
        kinds = [key for key in ("tokens/generated", "tokens/scored", "tokens/saved") if key in self.keys]
        tokens = [
            self._line(key, key.removeprefix("tokens/"), css)
            for key, css in zip(kinds, (_PLAIN, f"{_PLAIN} dashed", f"{_PLAIN} dotted"), strict=False)
        ]
        return [
            *self._chart(Chart("Reward", self._lines("reward", "reward/(.+)"))),
            *self.single("Entropy, nats per token", "entropy"),
            *self.single("Weight of the entropy bonus", "entropy_coef"),
            *self._chart(Chart("Tokens so far", tokens, 0, stairs=True)),
        ]


def _mark(event: LoggedEvent) -> tuple[float, str]:
    why = "; ".join(filter(None, (event.measured, event.rule)))
    return event.step, f"{event.skill}: {event.kind}: {event.about} ({why})"


def _values(chart: Chart) -> list[tuple[str, object]]:
    return [(line.name, line.points) for line in chart.lines]


def _small(chart: Chart) -> Chart:
    return replace(chart, is_small=True)

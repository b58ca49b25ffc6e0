"""What a run has cost and when its student has paid for itself, in the terminal and as a page of HTML."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from rld.recipe.prices import MACHINE_TIME, Prices
from rld.reporting.break_even import SECONDS_PER_DAY, Band, Comparison, Service, StageSpending
from rld.reporting.charts import Chart, Line, figure
from rld.reporting.html import page, scrolling, table
from rld.reporting.score_records import are_shares_of_answers
from rld.reporting.series import number
from rld.reporting.spending import energy, energy_note
from rld.utils.console import SafeConsole
from rld.utils.messages import tell

_MILLION = 1e6

_POINTS = 21
"""Of a curve, which is straight: as many as can be pointed at, and too few to be smoothed."""

_CALM_SPREAD = 1.5
"""How many times longer a request may take in the slowest measurements than in the fastest on an idle machine."""

_NEVER_SHOWN = 1e6
"""Requests that a chart shows where a student never pays for itself."""


class _Section(NamedTuple):
    """A table with its title."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class CostReport:
    """The spending of a run's stages, and the comparisons of its student with its teachers.

    Attributes:
        cautions: What the costs leave out although it was to be paid, one sentence each.
    """

    stages: Sequence[StageSpending]
    prices: Prices
    requests_per_day: float
    comparisons: list[Comparison] = field(default_factory=list)
    cautions: Sequence[str] = ()

    def show(self) -> None:
        """Print tables, assumptions, verdicts and cautions."""
        console = SafeConsole(highlight=False)
        for section in self._sections():
            terminal_table = Table(title=Text(f"\n{section.title}"), title_justify="left")
            for i, head in enumerate(section.heads):
                terminal_table.add_column(Text(head), justify="right" if i else "left", no_wrap=not i)
            for row in section.rows:
                terminal_table.add_row(*map(Text, row))
            console.print(terminal_table)
        for text in [*self._assumptions(), *self.verdicts()]:
            console.print(f"- {text}", markup=False, soft_wrap=True)
        for caution in self._cautions():
            tell(f"caution: {caution}")

    def page(self, name: str) -> str:
        """Return the page of a run with this name."""
        parts = [f"<h1>{escape(name)}: what it costs</h1>"]
        parts.append(f'<ul class="verdict">{"".join(f"<li>{escape(text)}</li>" for text in self.verdicts())}</ul>')
        if charts := "".join(figure(_chart(compared)) for compared in self.comparisons if not compared.no_verdict):
            about = "all that is paid until so many requests are answered; faint: the ends of the band"
            parts.append(f'<h2>Break-even<small>{about}</small></h2><div class="charts">{charts}</div>')
        for section in self._sections():
            heads = [(escape(head), "" if i else "left") for i, head in enumerate(section.heads)]
            rows = [[escape(cell) for cell in row] for row in section.rows]
            parts.append(f"<h2>{escape(section.title)}</h2>{scrolling(table(heads, rows))}")
        items = "".join(f"<li>{escape(text)}</li>" for text in [*self._cautions(), *self._assumptions()])
        parts.append(f"<h2>Assumptions</h2><ul>{items}</ul>")
        return page(f"{name}: rld cost", "".join(parts))

    def verdicts(self) -> list[str]:
        """Return a sentence for each comparison."""
        if not self.comparisons:
            return ["No teacher could be served in the student's place, so there is no break-even."]
        return [self._verdict(comparison) for comparison in self.comparisons]

    def _verdict(self, comparison: Comparison) -> str:
        requests = comparison.requests
        head = f"Against {comparison.teacher.title}, {_at_once(comparison.batch)}: "
        if comparison.no_verdict:
            return f"{head}{_no_verdict(comparison)}."
        if math.isinf(requests.middle):
            reason = (
                f"{comparison.fallback:.0%} of the requests fall back to it, and what the others save is less than that"
                if comparison.student.cost(comparison.batch, self.prices).middle < comparison.teacher_cost.middle
                else "a request costs no less at the student"
            )
            if math.isinf(requests.low):
                return f"{head}never, for {reason}."
            favourable = "with the student at the cheap end of its band and the teacher at the dear end"
            return f"{head}never, for {reason}; {favourable} it pays after {number(requests.low)} requests."
        return f"{head}{self._payment(comparison)}. {_scores(comparison)}."

    def _payment(self, comparison: Comparison) -> str:
        """Return after how many requests, tokens and days the student has paid for itself."""
        requests, student = comparison.requests, comparison.student
        tokens = number(requests.middle * (student.read.middle + student.written.middle))
        days, per_day = requests.map(lambda count: count / self.requests_per_day), number(self.requests_per_day)
        if math.isinf(requests.high):
            return (
                f"pays after {number(requests.middle)} requests by the middle of the measurements; at the expensive "
                f"end never, at the cheap end after {number(requests.low)}. The middle is {tokens} tokens of the "
                f"student, at {per_day} a day {number(days.middle)} days"
            )
        text = f"pays after {_band(requests)} requests, {tokens} tokens of the student; "
        return f"{text}at {per_day} a day after {_band(days)} days"

    def _cautions(self) -> list[str]:
        """Return the cautions, with one for models whose repeated measurements are far apart."""
        spreads: dict[str, float] = {}
        for comparison in self.comparisons:
            for service in (comparison.student, comparison.teacher):
                spread = service.spread(comparison.batch)
                if spread > _CALM_SPREAD:
                    spreads[service.title] = max(spread, spreads.get(service.title, 0.0))
        if not spreads:
            return list(self.cautions)
        models = ", ".join(f"of {name} by {spread:.1f} times" for name, spread in spreads.items())
        text = f"this machine is busy: repeated measurements differ, those {models}; run it again when it is idle"
        return [*self.cautions, text]

    def _sections(self) -> Iterator[_Section]:
        yield self._spending()
        if self.comparisons:
            yield self._requests()
            yield self._break_even()
            yield self._sensitivity()

    def _spending(self) -> _Section:
        prices = self.prices
        heads = ["stage", "minutes", "kWh", prices.currency, "points gained", f"{prices.currency} a point"]
        rows = []
        for stage in self.stages:
            per_point = stage.cost_per_point(prices)
            gain = "-" if stage.gain is None else f"{stage.gain:+.1f}"
            cells = [number(stage.seconds / 60), energy(stage.kilowatt_hours(prices)), number(stage.cost(prices)), gain]
            rows.append([stage.name, *cells, "-" if per_point is None else number(per_point)])
        seconds = sum(stage.seconds for stage in self.stages)
        total_energy = energy(sum(stage.kilowatt_hours(prices) for stage in self.stages))
        total = sum(stage.cost(prices) for stage in self.stages)
        rows.append(["all stages", number(seconds / 60), total_energy, number(total), "", ""])
        return _Section("What the stages cost", heads, rows)

    def _requests(self) -> _Section:
        heads = ["model", "at once", "tokens", "tokens/s", "MB", "busy", f"{self.prices.currency} a million"]
        rows = []
        for comparison in self.comparisons:
            for service in (comparison.student, comparison.teacher):
                row = self._request(service, comparison.batch)
                if row not in rows:
                    rows.append(row)
        return _Section("What a request takes: tokens read / written, and the share of a day", heads, rows)

    def _request(self, service: Service, batch: int) -> list[str]:
        cost = service.cost(batch, self.prices).map(lambda value: value * _MILLION)
        cells = [service.title, str(batch), f"{number(service.read.middle)} / {number(service.written.middle)}"]
        timing = service.timing(batch)
        if timing is None:
            return [*cells, "-", "-", "-", _band(cost)]
        busy = service.seconds(batch).middle * self.requests_per_day / SECONDS_PER_DAY
        speeds = f"{number(1 / timing.prefill_seconds.middle)} / {number(1 / timing.decode_seconds.middle)}"
        return [*cells, speeds, f"{timing.num_bytes / _MILLION:.3g}", f"{busy:.2%}", _band(cost)]

    def _break_even(self) -> _Section:
        currency = self.prices.currency
        heads = ["against", "at once", "scores", "fall back", f"{currency} first", "requests", "days"]
        rows = []
        for comparison in self.comparisons:
            scores = f"{comparison.student.score:.3f} / {comparison.teacher.score:.3f}"
            fallback, days = f"{comparison.fallback:.0%}", _count(comparison.requests.middle / self.requests_per_day)
            requests = _band(comparison.requests)
            if comparison.no_verdict:
                fallback, requests, days = "-", f"- ({comparison.no_verdict})", "-"
            cells = [scores, fallback, number(comparison.investment), requests, days]
            rows.append([comparison.teacher.title, str(comparison.batch), *cells])
        return _Section("When the student has paid for itself: scores of both, and what is paid first", heads, rows)

    def _sensitivity(self) -> _Section:
        rows = []
        for comparison in self.comparisons:
            changes = {change: _count(requests) for change, requests in comparison.sensitivity().items()}
            if comparison.no_verdict:
                changes = {"-": f"- ({comparison.no_verdict})"}
            head = [comparison.teacher.title, str(comparison.batch)]
            rows += [[*head, change, requests] for change, requests in changes.items()]
        return _Section("What if prices or utilisation are others", ["against", "at once", "with", "requests"], rows)

    def _about_scores(self) -> list[str]:
        names = sorted({item for comparison in self.comparisons for item in comparison.score_names.items()})
        used = ", ".join(f"{score} of {skill}" for skill, score in names)
        return (
            [f"A model's score is the mean of the main scores of the skills that are compared: {used}."] if used else []
        )

    def _assumptions(self) -> list[str]:
        prices, currency = self.prices, self.prices.currency
        rent = f"An hour of this machine costs {number(prices.machine_per_hour)} {currency}, busy or not"
        if prices == MACHINE_TIME:
            rent = "Costs are hours of this machine"
        texts = [
            f"{rent}; serving keeps it busy for {prices.utilisation:.0%} of the time, with other work where these "
            "requests are too few."
        ]
        if note := energy_note(self.stages, prices):
            of_energy = (
                f" A kWh costs {number(prices.per_kilowatt_hour)} {currency}." if prices.per_kilowatt_hour else ""
            )
            texts.append(note + of_energy)
        for name, price in prices.apis.items():
            input_price, output_price = map(number, (price.input_per_million_tokens, price.output_per_million_tokens))
            texts.append(
                f"{name} is an API: {input_price} {currency} a million tokens read, {output_price} written. A stage "
                "pays it for the tokens that it scored, its answers to the gate included; those to probes come on top."
            )
        if not self.comparisons:
            return texts
        return [
            *texts,
            *self._about_scores(),
            f"Data costs {number(prices.data)} {currency}, all else that is paid once {number(prices.fixed)}.",
            "Requests and answers are as long as the held-out rows and each model's stored answers to them, of the "
            "skills that a teacher does better than the student before its stage, or is to teach.",
            "Both models are served on this machine by transformers, greedily; a band goes from the fastest to the "
            "slowest measurement, and over the 95% intervals of the lengths.",
            "The investment is all stages, with their scoring, but those that train the teacher, which it needs too.",
            f"A student more than {100 * prices.tolerance:g} points behind hands requests on to the teacher: "
            + (
                "those that it does not answer correctly, which takes a verifier."
                if prices.fallback_share is None
                else f"{prices.fallback_share:.0%} of them."
            ),
        ]


def _chart(comparison: Comparison) -> Chart:
    requests, invested = comparison.requests, comparison.investment
    last = 2 * requests.middle if 0 < requests.middle < math.inf else _NEVER_SHOWN
    counts = [last * i / (_POINTS - 1) for i in range(_POINTS)]

    def line(name: str, css: str, start: float, cost: Band) -> Line:
        def points(per_request: float) -> list[tuple[float, float]]:
            return [(count, start + count * per_request) for count in counts]

        return Line(name, css, points(cost.middle), parts=[points(cost.low), points(cost.high)])

    lines = [
        line("the student", "colour0", invested, comparison.student_cost),
        line(comparison.teacher.title, "colour1", 0.0, comparison.teacher_cost),
    ]
    title = f"against {comparison.teacher.title}, {_at_once(comparison.batch)}, {comparison.prices.currency}"
    return Chart(title, lines, low=0.0, x_name="requests")


def _no_verdict(comparison: Comparison) -> str:
    """Return why there is no verdict, and what to do about it."""
    if comparison.both_fail:
        return f"no verdict, for both score 0 on the held-out rows{_of_scores(comparison)}"
    names = [
        f"{skill}'s score {name}" for skill, name in comparison.score_names.items() if not are_shares_of_answers([name])
    ]
    points = 100 * (comparison.teacher.score - comparison.student.score)
    return (
        f"set fallback_share in the prices: {', '.join(names) or 'the score'} is no share of correct answers, and the "
        f"student is {points:.1f} points behind"
    )


def _scores(comparison: Comparison) -> str:
    student, teacher = comparison.student, comparison.teacher
    text = f"The student scores {student.score:.3f}, {teacher.title} {teacher.score:.3f}{_of_scores(comparison)}"
    return text + (f", so {comparison.fallback:.0%} of the requests fall back" if comparison.fallback else "")


def _of_scores(comparison: Comparison) -> str:
    names = ", ".join(dict.fromkeys(comparison.score_names.values()))
    return f" ({names})" if names else ""


def _at_once(batch: int) -> str:
    return "one request at a time" if batch == 1 else f"{batch} requests at once"


def _count(value: float) -> str:
    return "never" if math.isinf(value) else number(value)


def _band(quantity: Band) -> str:
    """Return a quantity with the ends of its band, where they differ."""
    low, middle, high = map(_count, quantity)
    return middle if low == high else f"{middle} ({low} to {high})"

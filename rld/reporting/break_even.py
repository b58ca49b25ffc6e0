"""When a student has paid for itself: after how many requests serving it has saved what training it has cost.

    N* = investment / (c_T - (c_S + phi c_T)),  c = (p * prefill + n * decode) * price of a second

c_T and c_S are the costs of a request at the teacher and at the student, p and n the tokens that a model reads and
writes for it, prefill and decode its seconds a token, and phi the share of requests that fall back to the teacher. The
investment is what the stages cost that serving the teacher would not need, with data and all else that is paid once.
Where a student saves nothing N* is infinite; where the scores do not tell it, it is not a number. Plain numbers in,
plain numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median, stdev
from typing import NamedTuple

from rld.recipe.prices import Prices
from rld.reporting.score_records import REACH

_MILLION = 1e6

_ROUNDING = 1e-9
"""By how much the difference of two scores may be off: 0.9 - 0.88 is above 0.02."""

SECONDS_PER_DAY = 86400.0


class Band(NamedTuple):
    """A quantity and the ends of its band."""

    low: float
    middle: float
    high: float

    @classmethod
    def of_repeats(cls, values: Sequence[float]) -> Band:
        """Return the median of repeated measurements between the least and the largest."""
        return cls(min(values), median(values), max(values))

    @classmethod
    def of_mean(cls, values: Sequence[float]) -> Band:
        """Return the mean of samples with its 95% interval, which does not reach below the least sample."""
        mean = fmean(values)
        error = REACH * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return cls(max(mean - error, min(values)), mean, mean + error)

    def map(self, function: Callable[[float], float]) -> Band:
        """Return what a rising function makes of each."""
        return Band(*(function(value) for value in self))


class Timing(NamedTuple):
    """How fast a machine serves a model with so many requests at once."""

    batch: int
    prefill_seconds: Band
    """For a token that it reads."""
    decode_seconds: Band
    """For a token that it writes."""
    num_bytes: int
    """Of weights, keys and values."""


@dataclass(frozen=True)
class Service:
    """A model that answers requests like the held-out rows.

    Attributes:
        score: Its mean score on them.
        failures: Share of them that it does not answer correctly. None: the score does not tell it.
        read: Tokens that it reads for a request.
        written: Tokens that it writes.
        timings: How fast this machine serves it, by the number of requests at once; none for an API.
        stage: The stage that it taught, where other stages have other teachers of its name.
    """

    name: str
    score: float
    failures: float | None
    read: Band
    written: Band
    timings: Sequence[Timing]
    stage: str = ""

    @property
    def title(self) -> str:
        """Its name as tables and sentences have it."""
        return f"{self.name} of {self.stage}" if self.stage else self.name

    def timing(self, batch: int) -> Timing | None:
        """Return what was measured with so many requests at once; None for an API."""
        return next((timing for timing in self.timings if timing.batch == batch), None)

    def seconds(self, batch: int) -> Band:
        """Return the seconds of the machine for a request, with so many at once."""
        timing = self.timing(batch)
        assert timing is not None, "an API takes no time of the machine"
        bands = zip(self.read, timing.prefill_seconds, self.written, timing.decode_seconds, strict=True)
        return Band(*(read * prefill + written * decode for read, prefill, written, decode in bands))

    def spread(self, batch: int) -> float:
        """Return how many times longer a request took in the slowest measurements than in the fastest; 1 for an API."""
        timing = self.timing(batch)
        if timing is None:
            return 1.0
        read, written = self.read.middle, self.written.middle
        fast, _, slow = (
            read * prefill + written * decode
            for prefill, decode in zip(timing.prefill_seconds, timing.decode_seconds, strict=True)
        )
        return slow / fast

    def cost(self, batch: int, prices: Prices) -> Band:
        """Return the cost of a request."""
        price = prices.apis.get(self.name)
        if price is None:
            return self.seconds(batch).map(lambda seconds: seconds * prices.serving_second)
        per_input, per_output = price.input_per_million_tokens / _MILLION, price.output_per_million_tokens / _MILLION
        return Band(*(p * per_input + n * per_output for p, n in zip(self.read, self.written, strict=True)))


@dataclass(frozen=True)
class StageSpending:
    """What a finished stage took.

    Attributes:
        gain: By how much it raised the mean score, in points of 100. None: it trains no model.
        teacher_tokens: Tokens that each of its teachers read.
        watts: The mean power of the GPUs by their own counters. None: not measured.
    """

    name: str
    seconds: float
    gain: float | None
    teacher_tokens: Mapping[str, float] = field(default_factory=dict)
    watts: float | None = None

    def kilowatt_hours(self, prices: Prices) -> float:
        """Return its energy: as it was measured, or else by the power that the prices state."""
        return prices.kilowatt_hours(self.seconds, self.watts)

    def cost(self, prices: Prices) -> float:
        """Return its cost: of the machine, its energy and the tokens that APIs read."""
        return self.machine_cost(prices) + sum(self.api_cost(name, prices) for name in self.teacher_tokens)

    def machine_cost(self, prices: Prices) -> float:
        """Return the cost of the machine and its energy."""
        return prices.machine_seconds(self.seconds) + self.kilowatt_hours(prices) * prices.per_kilowatt_hour

    def api_cost(self, teacher: str, prices: Prices) -> float:
        """Return what the tokens cost that a teacher read; 0 where no API serves it."""
        price = prices.apis.get(teacher)
        tokens = self.teacher_tokens.get(teacher, 0.0)
        return 0.0 if price is None else tokens / _MILLION * price.input_per_million_tokens

    def cost_per_point(self, prices: Prices) -> float | None:
        """Return its cost for each point that it gained; None where it gained none."""
        return self.cost(prices) / self.gain if self.gain is not None and self.gain > 0 else None


@dataclass(frozen=True)
class Comparison:
    """A student in the place of a teacher.

    Attributes:
        stages: The stages that serving the teacher would not need.
        batch: Requests that a machine answers at once.
        score_names: The main score of each skill that is compared, whose mean is the score of both.
    """

    student: Service
    teacher: Service
    stages: Sequence[StageSpending]
    batch: int
    prices: Prices
    score_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def investment(self) -> float:
        """What has to be paid before the first request is answered."""
        return sum(stage.cost(self.prices) for stage in self.stages) + self.prices.data + self.prices.fixed

    @property
    def both_fail(self) -> bool:
        """Whether neither model scores above 0."""
        return self.student.score <= 0 and self.teacher.score <= 0

    @property
    def no_verdict(self) -> str:
        """Why the scores do not tell when the student has paid for itself, in a few words; empty: they do."""
        if self.both_fail:
            return "both score 0"
        return "no fallback_share" if math.isnan(self.fallback) else ""

    @property
    def fallback(self) -> float:
        """The share of requests that the teacher answers after the student; not a number where nothing tells it."""
        if self.teacher.score - self.student.score <= self.prices.tolerance + _ROUNDING:
            return 0.0
        share = self.student.failures if self.prices.fallback_share is None else self.prices.fallback_share
        return math.nan if share is None else share

    @property
    def teacher_cost(self) -> Band:
        """The cost of a request that the teacher answers."""
        return self.teacher.cost(self.batch, self.prices)

    @property
    def student_cost(self) -> Band:
        """The cost of a request that the student answers, with those that fall back."""
        pairs = zip(self.student.cost(self.batch, self.prices), self.teacher_cost, strict=True)
        return Band(*(student + self.fallback * teacher for student, teacher in pairs))

    @property
    def requests(self) -> Band:
        """The requests after which the student has paid for itself; infinite: never; not a number: no verdict.

        Its band is that of a teacher at its dearest and a student at its cheapest, and the other way round.
        """
        if self.no_verdict:
            return Band(math.nan, math.nan, math.nan)
        student, teacher = self.student.cost(self.batch, self.prices), self.teacher_cost
        costs = (teacher.high, student.low), (teacher.middle, student.middle), (teacher.low, student.high)
        return Band(
            *(
                requests_until_paid(self.investment, teacher_cost, student_cost + self.fallback * teacher_cost)
                for teacher_cost, student_cost in costs
            )
        )

    def sensitivity(self) -> dict[str, float]:
        """Return the requests with half and with double the utilisation and the prices, by what is changed."""
        changed = dict[str, Prices]()
        for factor in (0.5, 2.0):
            prices = self.prices.scaled(utilisation=factor)
            changed[f"utilisation {prices.utilisation:.0%}"] = prices
        for word, factor in (("half", 0.5), ("double", 2.0)):
            changed[f"{word} the price of the machine"] = self.prices.scaled(machine=factor)
        for word, factor in (("half", 0.5), ("double", 2.0)) if self.teacher.name in self.prices.apis else ():
            changed[f"{word} the price of {self.teacher.name}"] = self.prices.scaled(apis=factor)
        return {name: replace(self, prices=prices).requests.middle for name, prices in changed.items()}


def requests_until_paid(investment: float, teacher: float, student: float) -> float:
    """Return the number of requests after which a student has saved an investment; infinite where it saves nothing.

    Args:
        investment: What was paid once.
        teacher: The cost of a request at the teacher.
        student: The cost of a request at the student, with those that fall back to the teacher.
    """
    return investment / (teacher - student) if teacher > student else math.inf

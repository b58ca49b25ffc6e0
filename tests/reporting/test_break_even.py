"""When a student has paid for itself, against figures that are worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from rld.recipe.prices import ApiPrice, Prices
from rld.reporting.break_even import Band, Comparison, Service, StageSpending, Timing
from rld.reporting.cost_page import CostReport

EURO = Prices(currency="EUR", machine_per_hour=3.6, watts=500, per_kilowatt_hour=0.4, utilisation=0.5, fixed=10)
STAGES = [StageSpending("first", 1000, 20.0), StageSpending("second", 4000, -1.0, {"large": 3e6, "small": 9e6})]


def exact(value: float) -> Band:
    return Band(value, value, value)


def service(
    name: str, seconds: float, *, written: float = 50, score: float = 0.9, failures: float | None = 0.1
) -> Service:
    """A model that reads 100 tokens in no time and writes each of its tokens in so many seconds."""
    timing = Timing(1, exact(1e-12), exact(seconds), 10)
    return Service(name, score, failures, exact(100), exact(written), [timing])


def compared(student: Service, teacher: Service, prices: Prices = EURO) -> Comparison:
    return Comparison(student, teacher, STAGES, 1, prices)


def test_the_requests_are_those_of_the_hand():
    """Training: 5,000 s at (3.6 + 0.5 * 0.4) / 3600 EUR. Serving: a second costs (3.6 / 0.5 + 0.2) / 3600 EUR."""
    both = compared(service("student", 0.01), service("large", 0.04, written=100))
    assert both.investment == pytest.approx(5000 * 3.8 / 3600 + 10)
    assert both.teacher_cost.middle == pytest.approx(4.0 * 7.4 / 3600)
    assert both.student_cost.middle == pytest.approx(0.5 * 7.4 / 3600)
    assert both.requests.middle == pytest.approx((5000 * 3.8 / 3600 + 10) / (3.5 * 7.4 / 3600))
    changed = both.sensitivity()
    assert changed["utilisation 25%"] == pytest.approx((5000 * 3.8 / 3600 + 10) / (3.5 * 14.6 / 3600))
    assert changed["double the price of the machine"] == pytest.approx((5000 * 7.6 / 3600 + 10) / (3.5 * 14.8 / 3600))
    assert changed.keys() == {
        *("utilisation 25%", "utilisation 100%"),
        *("half the price of the machine", "double the price of the machine"),
    }


def test_an_api_is_paid_by_the_token_in_training_and_in_serving():
    """The teacher reads 100 and writes 200 tokens a request, and has scored 3 million."""
    prices = EURO.model_copy(
        update={"apis": {"large": ApiPrice(input_per_million_tokens=2, output_per_million_tokens=8)}}
    )
    both = compared(service("student", 0.01), service("large", 0.0, written=200), prices)
    assert both.teacher_cost.middle == pytest.approx((100 * 2 + 200 * 8) / 1e6)
    assert both.investment == pytest.approx(5000 * 3.8 / 3600 + 10 + 3 * 2)
    expected = (5000 * 3.8 / 3600 + 10 + 3 * 2 * 2) / ((100 * 4 + 200 * 16) / 1e6 - 0.5 * 7.4 / 3600)
    assert both.sensitivity()["double the price of large"] == pytest.approx(expected)


def test_a_student_that_is_worse_hands_requests_on():
    """It is 0.03 behind, more than the tolerance of 0.02, and fails at 0.4 of the requests."""
    worse, teacher = service("student", 0.01, score=0.87, failures=0.4), service("large", 0.04)
    both = compared(worse, teacher)
    assert both.student_cost.middle == pytest.approx((0.5 + 0.4 * 2.0) * 7.4 / 3600)
    assert compared(worse, teacher, EURO.model_copy(update={"fallback_share": 0.1})).fallback == 0.1
    assert compared(worse, teacher, EURO.model_copy(update={"tolerance": 0.04})).fallback == 0
    assert compared(service("student", 0.01, score=0.88), teacher).fallback == 0, "0.02 behind is not more than that"
    hopeless = compared(service("student", 0.02, score=0.3, failures=0.7), teacher)
    assert math.isinf(hopeless.requests.middle)
    (sentence,) = CostReport(STAGES, EURO, 10_000, [hopeless]).verdicts()
    assert sentence.startswith("Against large, one request at a time: never, for 70% of the requests fall back")


def test_never_where_nothing_is_saved():
    slow = compared(service("student", 0.04), service("large", 0.04))
    report = CostReport(STAGES, EURO, 10_000, [slow])
    assert math.isinf(slow.requests.middle)
    assert report.verdicts() == [
        "Against large, one request at a time: never, for a request costs no less at the student."
    ]
    assert "never" in report.page("run")


def test_the_band_goes_from_the_best_to_the_worst_case():
    student = Service("student", 1.0, 0.0, exact(0), Band(9, 10, 11), [Timing(1, exact(0), Band(0.9, 1, 1.2), 1)])
    teacher = Service("large", 1.0, 0.0, exact(0), exact(10), [Timing(1, exact(0), Band(1.3, 2, 3), 1)])
    prices = Prices(currency="hours", machine_per_hour=3600, utilisation=1.0)
    requests = Comparison(student, teacher, [StageSpending("all", 100, 5.0)], 1, prices).requests
    assert requests == pytest.approx((100 / (30 - 8.1), 100 / (20 - 10), math.inf))
    equal = Service("student", 1.0, 0.0, exact(0), exact(10), [Timing(1, exact(0), Band(1, 2, 3), 1)])
    one = Comparison(equal, teacher, [StageSpending("all", 100, 5.0)], 1, prices)
    (sentence,) = CostReport([], prices, 10_000, [one]).verdicts()
    assert "never, for a request costs no less at the student; with the student at the cheap end" in sentence
    assert sentence.endswith("it pays after 5 requests.")


def test_no_verdict_where_neither_is_ever_correct():
    """A student that is as wrong as its teacher, and cheaper, has not paid for anything: no figure says otherwise."""
    both = compared(service("student", 0.01, score=0.0, failures=1.0), service("large", 0.04, score=0.0, failures=1.0))
    assert all(map(math.isnan, [*both.requests, *both.sensitivity().values()]))
    report = CostReport(STAGES, EURO, 10_000, [both])
    assert report.verdicts() == [
        "Against large, one request at a time: no verdict, for both score 0 on the held-out rows."
    ]
    page = report.page("run")
    assert "<figure>" not in page and "Break-even" not in page and "nan" not in page
    assert page.count(">- (both score 0)</td>") == 2, "requests until paid, and what if prices are others"


def test_a_score_that_is_no_share_of_correct_answers_tells_no_share_that_falls_back():
    """The student is 0.03 behind: within a tolerance of 0.04 nothing falls back, and else a share is to be stated."""
    worse, teacher = service("student", 0.01, score=0.87, failures=None), service("large", 0.04)
    both = Comparison(worse, teacher, STAGES, 1, EURO, score_names={"copy": "solved", "essays": "rouge_l"})
    assert math.isnan(both.fallback) and math.isnan(both.requests.middle)
    (sentence,) = CostReport(STAGES, EURO, 10_000, [both]).verdicts()
    assert sentence == (
        "Against large, one request at a time: set fallback_share in the prices: essays's score rouge_l is no share of "
        "correct answers, and the student is 3.0 points behind."
    )
    patient = replace(both, prices=EURO.model_copy(update={"tolerance": 0.04}))
    assert patient.requests.middle == pytest.approx((5000 * 3.8 / 3600 + 10) / (1.5 * 7.4 / 3600))
    stated = replace(both, prices=EURO.model_copy(update={"fallback_share": 0.25}))
    assert stated.student_cost.middle == pytest.approx((0.5 + 0.25 * 2.0) * 7.4 / 3600)
    (sentence,) = CostReport(STAGES, stated.prices, 10_000, [stated]).verdicts()
    assert sentence.endswith(
        "The student scores 0.870, large 0.900 (solved, rouge_l), so 25% of the requests fall back."
    )


def test_a_band_that_ends_in_never_says_so():
    """A request takes the student 9 s to 13 s and the teacher 12 s to 30 s, and training took 100 s."""
    student = Service("student", 1.0, 0.0, exact(0), exact(10), [Timing(1, exact(1), Band(0.9, 1, 1.3), 1)])
    teacher = Service("large", 1.0, 0.0, exact(0), exact(10), [Timing(1, exact(1), Band(1.2, 2, 3), 1)])
    prices = Prices(currency="hours", machine_per_hour=3600, utilisation=1.0)
    both = Comparison(student, teacher, [StageSpending("all", 100, 5.0)], 1, prices)
    report = CostReport([], prices, 5, [both])
    assert report.verdicts() == [
        "Against large, one request at a time: pays after 10 requests by the middle of the measurements; at the "
        "expensive end never, at the cheap end after 4.76. The middle is 100 tokens of the student, at 5 a day 2 days. "
        "The student scores 1.000, large 1.000."
    ]
    assert (
        "this machine is busy: repeated measurements differ, those of large by 2.5 times; run it again when it is idle"
    ) in report.page("run")


@pytest.mark.parametrize(("slowest", "is_busy"), [(1.5, False), (1.6, True)])
def test_repeats_that_differ_by_more_than_half_make_a_caution(slowest, is_busy, capsys):
    """Reading takes 100 tokens of 0.01 s and writing 50 of 0.02 s: 2 s, and the slowest so many times as long."""
    timing = Timing(16, Band(0.01, 0.01, 0.01 * slowest), Band(0.02, 0.02, 0.02 * slowest), 10)
    student = Service("the student", 0.9, 0.1, exact(100), exact(50), [timing])
    assert student.spread(16) == pytest.approx(slowest)
    prices = EURO.model_copy(
        update={"apis": {"large": ApiPrice(input_per_million_tokens=2, output_per_million_tokens=8)}}
    )
    teacher = Service("large", 0.9, 0.1, exact(100), exact(50), [])
    CostReport(STAGES, prices, 10_000, [Comparison(student, teacher, STAGES, 16, prices)], ["A first caution"]).show()
    told = capsys.readouterr().err
    assert "caution: A first caution" in told
    assert ("this machine is busy" in told) == is_busy


def test_a_kilowatt_hour_has_a_price_only_where_one_is_stated():
    free = EURO.model_copy(update={"per_kilowatt_hour": 0.0})
    paid, unpaid = (CostReport(STAGES, prices, 10_000).page("run") for prices in (EURO, free))
    assert "500 W, which the prices state. A kWh costs 0.4 EUR." in paid
    assert "500 W, which the prices state." in unpaid and "A kWh costs" not in unpaid


def test_a_point_has_a_price_where_there_is_one():
    first, second = STAGES
    assert first.cost_per_point(EURO) == pytest.approx(1000 * 3.8 / 3600 / 20)
    assert second.cost_per_point(EURO) is None
    assert Band.of_mean([1.0, 3.0]).high == pytest.approx(2 + 1.96 * math.sqrt(2) / math.sqrt(2))

"""Statistics of an ablation, against values worked out by hand."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from statistics import fmean

import pytest

from rld.ablation import statistics
from rld.ablation.outcomes import RunOutcome, compare


def test_an_interval_of_two_pairs_is_their_range():
    """The mean of two draws from {a, b} is a, (a + b) / 2 or b with chances 1/4, 1/2 and 1/4."""
    assert statistics.bootstrap([0.1, 0.3]) == pytest.approx((0.1, 0.3))
    assert statistics.bootstrap([0.2, 0.2, 0.2]) == pytest.approx((0.2, 0.2))
    assert statistics.bootstrap([0.2]) is None


def test_an_interval_covers_about_as_often_as_it_says():
    rng = random.Random(0)
    hits = 0
    for _ in range(200):
        low, high = statistics.bootstrap([rng.gauss(0.3, 1) for _ in range(30)], draws=1000) or (0, 0)
        hits += low < 0.3 < high
    assert 0.89 < hits / 200 < 0.99


def test_sign_flips_count_all_patterns():
    assert statistics.sign_flips([1.0]) == 1.0
    assert statistics.sign_flips([1.0, 2.0, 3.0]) == 2 / 8
    # |sum| >= 4 for +++, ++- is 0, +-+ is 2, -++ is 4, and the same with all signs turned
    assert statistics.sign_flips([1.0, 2.0, 3.0][::-1]) == statistics.sign_flips([1.0, 2.0, 3.0])
    assert statistics.sign_flips([-1.0, 2.0, 3.0]) == 4 / 8
    assert statistics.sign_flips([0.0, 0.0]) == 1.0


def test_many_pairs_are_flipped_at_random_to_nearly_the_same():
    rng = random.Random(1)
    values = [rng.gauss(0.4, 1) for _ in range(14)]
    patterns = itertools.product([1, -1], repeat=14)
    far = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) >= abs(sum(values)) for signs in patterns]
    assert statistics.sign_flips(values) == pytest.approx(fmean(far), abs=0.02)


def test_holm():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert statistics.holm([]) == []


def test_curves():
    curve = [(0.0, 0.0), (2.0, 0.4), (4.0, 0.2), (6.0, 1.0)]
    assert statistics.value_at(curve, 1.0) == pytest.approx(0.2)
    assert statistics.value_at(curve, 9.0) == 1.0
    assert statistics.area(curve, 0.0, 4.0) == pytest.approx((0.4 + 0.6) / 4)
    assert statistics.area(curve, 0.0, 1.0) == pytest.approx(0.1)
    assert statistics.area([(2.0, 0.5), (4.0, 0.7)], 2.0, 4.0) == pytest.approx(0.6)
    assert statistics.reached(curve, 0.3) == pytest.approx(1.5)
    assert statistics.reached(curve, 0.6) == pytest.approx(5.0)
    assert statistics.reached(curve, 0.0) == 0.0
    assert statistics.reached(curve, 1.1) is None
    assert statistics.mean_curve([[(0, 0.0), (4, 1.0)], [(0, 0.0), (2, 1.0), (3, 1.0)]]) == [
        (0, pytest.approx(0.0)),
        (2, pytest.approx(0.75)),
        (3, pytest.approx(0.875)),
    ]


def outcome(arm, seed, *points):
    curve = [(x, {"a": y, "b": y / 2}) for x, y in points]
    return RunOutcome(arm, seed, Path(f"seed-{seed}") / arm, curve[-1][1], curve, num_scored=10 * seed)


def test_arms_are_compared_at_equal_compute_and_on_the_seeds_that_both_have():
    runs = [
        outcome("one", 0, (0, 0.0), (10, 0.4)),
        outcome("one", 1, (0, 0.0), (10, 0.8)),
        outcome("two", 0, (0, 0.0), (20, 1.0)),
        outcome("two", 1, (0, 0.0), (20, 0.8)),
        outcome("three", 1, (0, 0.0), (20, 0.0)),
    ]
    result = compare("r", {"one": [], "none": [], "two": [], "three": []}, [0, 1], runs)
    assert result.flops == 10
    one, two, three = result.summaries
    assert (one.final.mean, two.final.mean) == (pytest.approx(0.45), pytest.approx(0.675))
    assert two.final.deviation == pytest.approx(0.75 * 0.1 * 2**0.5)
    assert two.worst.mean == pytest.approx(0.45)
    assert (one.at_equal_flops.mean, two.at_equal_flops.mean) == (pytest.approx(0.45), pytest.approx(0.3375))
    assert (one.mean_to_equal_flops.mean, two.mean_to_equal_flops.mean) == (
        pytest.approx(0.225),
        pytest.approx(0.16875),
    )
    assert result.target == pytest.approx(0.9 * 0.675)
    # two is at 0.6075 after 16.2 of 20 on seed 0, and on seed 1, which ends at 0.6, never; the median is infinite
    assert (two.flops_to_target, two.num_reached) == (None, 1)
    assert (three.final.deviation, three.num_seeds) == (None, 1)
    final = {d.arm: d for d in result.differences if d.measure == "final"}
    assert final["two"].mean == pytest.approx(0.225)
    assert final["two"].interval == pytest.approx((0.0, 0.45))
    assert (final["two"].num_better, final["two"].p) == (1, 1.0)
    assert (final["three"].num_seeds, final["three"].mean) == (1, pytest.approx(-0.6))
    assert final["three"].interval is None


def test_compute_spent_before_the_compared_stage_is_no_head_start():
    """Nothing is known of an arm before its stage begins: equal compute starts where the last one begins."""
    early, late = outcome("early", 0, (0, 0.0), (10, 1.0)), outcome("late", 0, (8, 0.8), (20, 0.8))
    result = compare("r", {"early": [], "late": []}, [0], [early, late])
    assert (result.start, result.flops) == (8, 10)
    one, two = result.summaries
    assert (one.mean_to_equal_flops.mean, two.mean_to_equal_flops.mean) == (
        pytest.approx(0.75 * 0.9),
        pytest.approx(0.75 * 0.8),
    )
    later = outcome("late", 0, (11, 0.8), (20, 0.8))
    result = compare("r", {"early": [], "late": []}, [0], [early, later])
    assert [(s.at_equal_flops, s.mean_to_equal_flops) for s in result.summaries] == [(None, None)] * 2
    assert {d.measure for d in result.differences} == {"final"}

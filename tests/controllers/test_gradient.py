"""Controllers by gradients as state machines: their formulas against a search, scale, and what is missing."""

from __future__ import annotations

import itertools
import json
import math
import random
from typing import Any

import pytest

from rld.controllers.gradient import GradientAlignmentController, GradientNoiseController, minimise_on_simplex
from rld.controllers.observation import GradientStats, Observation, SkillObservation, Weights
from rld.types import SIGNALS, Signal

NAMES: list[Signal] = list(SIGNALS)


def dot(one: list[float], two: list[float]) -> float:
    return sum(a * b for a, b in zip(one, two, strict=True))


def measured(vectors: dict[Signal, list[float]], noise: dict[Signal, float], **aligned: float) -> SkillObservation:
    """What was seen of a skill whose signals have these mean gradients."""
    inner = {s: {t: dot(vectors[s], vectors[t]) for t in vectors} for s in vectors}
    return SkillObservation(40, 20, 10, 5, {}, gradients=GradientStats(inner, noise, aligned))  # type: ignore[arg-type]


def run(controller: Any, ticks: int, news: SkillObservation, signals: list[Signal], **gradients: float) -> Weights:
    state = controller.start(["a"], ["t"], signals)
    weights: Weights = controller.weights(state)
    for tick in range(ticks):
        state, weights, _ = controller.step(state, Observation(tick, {"a": news}, gradients))
        assert sum(weights.signals["a"].values()) == pytest.approx(1)
    return weights


def search(cost: Any, num: int, parts: int) -> list[float]:
    """The best weights on a grid over the simplex."""
    grid = (
        [*(c / parts for c in head), 1 - sum(head) / parts]
        for head in itertools.product(range(parts + 1), repeat=num - 1)
        if sum(head) <= parts
    )
    return min(grid, key=cost)


def test_for_two_signals_noise_goes_to_the_closed_form_which_a_search_finds_too():
    vectors: dict[Signal, list[float]] = {"policy": [1.0, 0.0, 2.0], "response": [1.5, -1.0, 2.0]}
    noise: dict[Signal, float] = {"policy": 0.8, "response": 0.15}
    squared_bias = 1.25 - 0.8 - 0.15  # the measured distance is larger than the true one by both noises
    closed = 0.8 / (0.8 + 0.15 + squared_bias)
    minimum = search(lambda w: w[0] ** 2 * 0.8 + w[1] ** 2 * (0.15 + squared_bias), 2, 10_000)
    assert minimum[1] == pytest.approx(closed, abs=1e-4)
    controller = GradientNoiseController(floor=0.001)
    weights = run(controller, 60, measured(vectors, noise), ["policy", "response"])
    assert weights.signals["a"]["response"] == pytest.approx(0.001 + 0.998 * closed, abs=1e-6)


def test_the_minimum_over_three_weights_is_the_one_that_a_search_finds():
    rng = random.Random(0)
    for _ in range(20):
        rows = [[rng.gauss(0, 1) for _ in range(3)] for _ in range(3)]
        matrix = [[dot(a, b) + 0.05 * (i == j) for j, b in enumerate(rows)] for i, a in enumerate(rows)]

        def cost(w: list[float], matrix: list[list[float]] = matrix) -> float:
            return sum(w[i] * w[j] * matrix[i][j] for i in range(3) for j in range(3))

        weights = minimise_on_simplex(matrix)
        assert min(weights) >= 0
        assert sum(weights) == pytest.approx(1)
        assert cost(weights) <= cost(search(cost, 3, 60)) + 1e-12


def test_a_signal_without_bias_or_noise_gets_all_but_the_floors():
    vectors: dict[Signal, list[float]] = {"policy": [1.0, 0.0], "response": [1.0, 0.1], "feature": [-3.0, 0.0]}
    news = measured(vectors, {"policy": 0.5, "response": 1e-6, "feature": 0.1})
    weights = run(GradientNoiseController(), 100, news, NAMES).signals["a"]
    assert weights == pytest.approx({"policy": 0.02, "response": 0.96, "feature": 0.02}, abs=1e-3)


def test_noise_does_not_depend_on_how_a_loss_is_scaled_if_magnitudes_are_evened_out():
    def at(factor: float, balanced: bool) -> float:
        vectors: dict[Signal, list[float]] = {"policy": [1.0, 0.0], "response": [1.0 * factor, 0.7 * factor]}
        news = measured(vectors, {"policy": 0.3, "response": 0.05 * factor**2})
        gradients = {"policy": 1.0, "response": 1.3 * factor}
        weights = run(
            GradientNoiseController(balance_gradients=balanced), 50, news, ["policy", "response"], **gradients
        )
        return weights.signals["a"]["response"]

    assert at(5.0, balanced=True) == pytest.approx(at(1.0, balanced=True))
    assert at(5.0, balanced=False) < 0.5 * at(1.0, balanced=False)


def test_where_no_group_is_informative_the_policy_goes_to_its_floor_and_comes_back():
    both: dict[Signal, list[float]] = {"policy": [1.0, 0.0], "response": [0.0, 2.0]}
    news = measured(both, {"policy": 0.01, "response": 0.01})
    blind = SkillObservation(
        40, 0, 10, 0, {}, gradients=GradientStats({"response": {"response": 4.0}}, {"response": 0.01})
    )
    controller, signals = GradientNoiseController(), ["policy", "response"]
    state = controller.start(["a"], [], signals)  # type: ignore[arg-type]
    for tick in range(60):
        state, weights, _ = controller.step(state, Observation(tick, {"a": news if tick < 30 else blind}))
        if tick == 29:
            assert weights.signals["a"]["policy"] > 0.95
    assert weights.signals["a"]["policy"] == pytest.approx(0.02, abs=1e-4)
    for tick in range(30):
        state, weights, _ = controller.step(state, Observation(tick, {"a": news}))
    assert weights.signals["a"]["policy"] > 0.95


def test_probe_follows_the_cosines_and_is_held_by_its_prior():
    controller = GradientAlignmentController(cosine_gain=0.4, decay=0.2)
    news = measured({}, {}, policy=0.5, response=-0.5)
    state = controller.start(["a", "b"], [], ["policy", "response"])
    state, weights, _ = controller.step(state, Observation(1, {"a": news}))
    assert math.log(weights.signals["a"]["policy"] / weights.signals["a"]["response"]) == pytest.approx(0.4)
    assert weights.signals["b"] == {"policy": 0.5, "response": 0.5}  # nothing was seen of it
    weights = run(controller, 200, news, ["policy", "response"])
    assert math.log(weights.signals["a"]["policy"] / weights.signals["a"]["response"]) == pytest.approx(0.4 / 0.2)
    lost = measured({}, {}, policy=0.0)
    assert run(controller, 100, lost, ["policy", "response"]).signals["a"]["policy"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "controller",
    [
        GradientNoiseController(max_log_step=0.2),
        GradientAlignmentController(cosine_gain=1.0, max_log_step=0.2, decay=1e-6),
    ],
    ids=lambda c: c.kind,
)
def test_no_news_moves_a_weight_by_more_than_the_cap_or_breaks_it(controller):
    rng = random.Random(1)
    wild = [0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e300, 1e-300]

    def value() -> float:
        return rng.choice(wild) if rng.random() < 0.3 else rng.gauss(0, 1)

    state = controller.start(["a"], ["t"], NAMES)
    before = controller.weights(state).signals["a"]
    for tick in range(1500):
        present = [s for s in NAMES if rng.random() < 0.8]
        inner = {s: {t: value() for t in present} for s in present}
        pulls = GradientStats(inner, {s: value() for s in present}, {s: value() for s in present})
        news = SkillObservation(9, 3, rng.randrange(3), 0, {}, gradients=pulls if rng.random() < 0.9 else None)
        news = SkillObservation(9, 3, news.groups, rng.randint(0, news.groups), {}, gradients=news.gradients)
        state, weights, _ = controller.step(state, Observation(tick, {"a": news}, {"policy": 1.0, "response": value()}))
        after = weights.signals["a"]
        assert sum(after.values()) == pytest.approx(1)
        steps = [math.log(after[s] / before[s]) for s in after if before[s] > 1e-200 and after[s] > 1e-200]
        assert max(steps) - min(steps) <= 2 * 0.2 + 0.01
        before = after
        if tick == 700:
            again = json.loads(json.dumps(state, allow_nan=False))
            assert controller.step(again, Observation(0, {"a": news})) == controller.step(
                state, Observation(0, {"a": news})
            )


@pytest.mark.parametrize("controller", [GradientNoiseController(), GradientAlignmentController()], ids=lambda c: c.kind)
def test_policy_alone_weighs_exactly_one(controller):
    news = measured({"policy": [1.0]}, {"policy": 0.5}, policy=0.3)
    assert run(controller, 9, news, ["policy"]).signals["a"] == {"policy": 1.0}
    assert controller.required_measurements.gradients

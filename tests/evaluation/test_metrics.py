"""The metrics: each equals its library, or a plain formula, on random inputs."""

from __future__ import annotations

import math
from itertools import combinations

import evaluate
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from rld.evaluation import metric as metrics
from rld.evaluation.intervals import interval

WORDS = st.lists(st.sampled_from(["a", "cat", "Cats", "the", "sat.", "down", "ran"]), max_size=8).map(" ".join)
TEXTS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6)
LABELS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=40)


def value(name: str, columns: dict, **options: object) -> float:
    """A metric's only value, from the library's public method."""
    (number,) = metrics.load_metric(name).compute(**columns, **options).values()
    return number


def pairs(rows: list[tuple[str, str]]) -> dict[str, list[str]]:
    return {"predictions": [row[0] for row in rows], "references": [row[1] for row in rows]}


@settings(max_examples=30, deadline=None)
@given(LABELS)
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(rows):
    columns = pairs(rows)
    golds, labels = columns["references"], columns["predictions"]
    assert value("accuracy", columns) == pytest.approx(sklearn.metrics.accuracy_score(golds, labels))
    wanted = sklearn.metrics.f1_score(golds, labels, average="macro", zero_division=0)
    assert value("macro_f1", columns) == pytest.approx(wanted)


@settings(max_examples=20, deadline=None)
@given(TEXTS, st.sampled_from(["rouge1", "rouge2", "rougeL"]))
def test_rouge_is_that_of_rouge_score(rows, kind):
    scorer = RougeScorer([kind], use_stemmer=True)
    wanted = np.mean([scorer.score(gold, text)[kind].fmeasure for text, gold in rows])
    assert value("rouge", pairs(rows), kind=kind) == pytest.approx(wanted)


def test_words_are_compared_as_in_squads_script():
    rows = [("The cat sat.", "a cat sat"), ("cat", "the cat sat down"), ("", "cat"), ("", "the")]
    assert value("word_match", pairs(rows)) == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert value("token_f1", pairs(rows)) == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert value("exact_match", pairs([(" caf\u00e9 ", "cafe\u0301"), ("b", "a")])) == 0.5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=40))
def test_the_calibration_error_is_the_sum_over_bins(rows):
    error = 0.0
    for i in range(15):
        inside = [(hit, p) for hit, p in rows if i / 15 < p <= (i + 1) / 15 or (i == 0 and p == 0)]
        if inside:
            accuracy, confidence = np.mean(inside, axis=0)
            error += len(inside) / len(rows) * abs(accuracy - confidence)
    columns = {"predictions": ["x"] * len(rows), "references": ["x" if hit else "y" for hit, _ in rows]}
    columns["confidences"] = [p for _, p in rows]
    assert value("calibration_error", columns) == pytest.approx(error, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_answer(answers, k):
    k = min(k, len(answers))
    wanted = np.mean([any(subset) for subset in combinations(answers, k)])
    assert value("pass_at_k", {"predictions": [[float(a) for a in answers]]}, k=k) == pytest.approx(wanted)


def test_likelihoods_of_texts():
    columns = {"nats": [3.0, 2.0], "sizes": [9, 1]}
    assert value("nats_per_unit", columns) == pytest.approx(0.5)
    assert value("byte_probability", columns) == pytest.approx(math.exp(-0.5))
    assert value("perplexity", columns) == pytest.approx(math.exp(0.5))
    assert math.isfinite(value("perplexity", {"nats": [1e6], "sizes": [1]}))


@pytest.mark.parametrize("name", ["accuracy", "macro_f1"])
def test_an_interval_holds_the_score_of_the_population_nineteen_times_in_twenty(name):
    rng, num_inside, metric = np.random.default_rng(3), 0, metrics.load_metric(name)
    for _ in range(30):
        golds = rng.integers(2, size=80)
        labels = np.where(rng.random(80) < 0.7, golds, 1 - golds)  # the population's accuracy and F1 are 0.7
        low, high = interval(metric, {"predictions": labels.astype(str), "references": golds.astype(str)}, {})
        assert low < value(name, {"predictions": labels.astype(str), "references": golds.astype(str)}) < high
        num_inside += low <= 0.7 <= high
    assert num_inside >= 25


@pytest.mark.parametrize("name", ["accuracy", "token_f1"])
def test_the_interval_of_rows_that_are_all_right_or_all_wrong_is_wilsons(name):
    metric, words = metrics.load_metric(name), ["cat"] * 20
    assert interval(metric, {"predictions": words, "references": words}, {}) == pytest.approx((0.839, 1), abs=1e-3)
    wrong = {"predictions": ["dog"] * 20, "references": words}
    assert interval(metric, wrong, {}) == pytest.approx((0, 1 - 0.839), abs=1e-3)


def test_the_interval_of_a_calibration_error_is_around_the_error():
    rng, metric = np.random.default_rng(1), metrics.load_metric("calibration_error")
    for num_rows in [20, 100, 400]:
        confidences = rng.uniform(0.3, 1, num_rows)  # of a calibrated model: resamples have a larger error by chance
        golds = np.where(rng.uniform(size=num_rows) < confidences, "a", "b")
        columns = {"predictions": ["a"] * num_rows, "references": list(golds), "confidences": list(confidences)}
        error, (low, high) = value("calibration_error", columns), interval(metric, columns, {})
        assert 0 <= low < error < high
        assert high - error < 2 * (error - low) + 0.01


def test_each_file_is_a_module_of_evaluate():
    for path in metrics.FOLDER.glob("*.py"):
        module = evaluate.load(str(path))
        assert isinstance(module, metrics.ScoreMetric) and module.description

"""A teacher's prior over labels: what it makes of rows, which it keeps, and how a checkpoint holds them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rld.errors import CheckpointError
from rld.rollout.label_priors import NUM_ROWS, LabelPriors
from rld.utils.label_words import LabelWords

LABELS = {"a/b": LabelWords(["x", "y", "z"], [["u"], [], []]), "a": LabelWords(["no", "yes"])}


def priors(rows_NL: Tensor, skill: str = "a/b") -> LabelPriors:
    kept = LabelPriors(LABELS, ["c", "b/c"])
    kept.add([(skill, 0, row_L) for row_L in rows_NL])
    return kept


def test_divided_by_the_prior_the_rows_and_one_uniform_row_per_label_are_even_on_the_mean():
    log_p_NL = (
        torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0, -1])
    ).log_softmax(-1)
    log_prior_L = priors(log_p_NL).log_prior("a/b", 0)
    all_NL = torch.cat([log_p_NL.double(), torch.full((3, 3), -math.log(3.0), dtype=torch.float64)])
    mean_L = (all_NL - log_prior_L).softmax(-1).mean(0)
    assert mean_L.tolist() == pytest.approx([1 / 3] * 3, rel=1e-3)
    assert log_prior_L.argsort().tolist() == [2, 1, 0]


def test_a_label_that_float32_cannot_hold_is_made_even_too():
    log_p_NL = torch.tensor([[0.0, -150.0], [0.0, -130.0], [0.0, -140.0], [0.0, -120.0]] * 20)
    log_prior_L = priors(log_p_NL, "a").log_prior("a", 0)
    shares_L = (log_p_NL.double() - log_prior_L).softmax(-1).mean(0)
    assert shares_L.tolist() == pytest.approx([0.5, 0.5], abs=0.05)


def test_without_a_row_the_prior_is_uniform_and_one_row_moves_it_little():
    kept = LabelPriors(LABELS, ["c"])
    assert kept.log_prior("a", 0).exp().tolist() == pytest.approx([0.5, 0.5])
    kept.add([("a", 0, torch.tensor([0.99, 0.01]).log())])
    assert 0.5 < kept.log_prior("a", 0).exp()[0] < 0.95


def test_the_latest_rows_of_each_teacher_count():
    old_L, new_L = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.2, 0.8]).log()
    kept = priors(torch.stack([old_L, *[new_L] * NUM_ROWS]), "a")
    expected = priors(torch.stack([new_L] * NUM_ROWS), "a")
    assert torch.equal(kept.log_prior("a", 0), expected.log_prior("a", 0))
    assert kept.log_prior("a", 1).exp().tolist() == pytest.approx([0.5, 0.5])
    kept.forget(0)
    assert kept.log_prior("a", 0).exp().tolist() == pytest.approx([0.5, 0.5])


def test_a_checkpoint_holds_the_rows_by_teacher_and_refuses_other_labels(tmp_path: Path):
    rows_NL = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    kept, path = priors(rows_NL), tmp_path / "priors.safetensors"
    kept.save(path)
    rest = LabelPriors(LABELS, ["new", "c"])
    rest.load(path)
    assert torch.equal(rest.log_prior("a/b", 1), kept.log_prior("a/b", 0))
    assert rest.log_prior("a/b", 0).exp().tolist() == pytest.approx([1 / 3] * 3)
    others = {"a": LabelWords(["yes", "no"])}, {"a/b": LabelWords(["x", "y", "z"], [[], ["u"], []])}
    for other in others:
        with pytest.raises(CheckpointError, match="other labels or synonyms"):
            LabelPriors(LABELS | other, ["c"]).load(path)

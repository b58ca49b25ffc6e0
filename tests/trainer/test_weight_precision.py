"""Updates that a data type cannot hold are told."""

from __future__ import annotations

import warnings

import pytest
import torch

from rld.trainer.weight_precision import warn_of_lost_updates
from tests.support import tiny


def test_weights_that_an_optimiser_does_not_change_are_told() -> None:
    model = tiny.model().to(torch.bfloat16)
    with pytest.warns(UserWarning, match=r"\(bfloat16\) cannot change by the learning rate of 1e-06"):
        warn_of_lost_updates(model, 1e-6)
    before = [weight.detach().clone() for weight in model.parameters()]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0)
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    optimiser.step()
    same = torch.cat([(a == b).flatten() for a, b in zip(before, model.parameters(), strict=True)])
    assert same.float().mean() > 0.9, "the warning is true"


@pytest.mark.parametrize(("dtype", "rate"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_updates_that_weights_can_hold_are_not(dtype: torch.dtype, rate: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_lost_updates(tiny.model().to(dtype), rate)

"""Sums of one update of two skills and two teachers, for tests of what reads them."""

from __future__ import annotations

import torch

from rld.controllers.statistics import UpdateStatistics


def statistics(divergence: float = 0.2) -> UpdateStatistics:
    made = UpdateStatistics.zeros(2, 2)
    skills, mask = torch.tensor([0, 1]), torch.ones(2, 4)
    made.add_tokens(skills, mask, num_computed=20, num_padding=3, num_gold=5)
    spoken = torch.tensor([[True, False], [True, True]])[..., None].expand(2, 2, 4)
    made.add_delta(skills, torch.full((2, 4), -3.0), mask, torch.tensor([[True], [False]]).expand(2, 4))
    made.add_divergences(skills, mask, spoken, torch.full((2, 2, 4), divergence), None)
    return made

"""What the response loss holds between forward and backward, in bytes, and for whom."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rld.losses import fused_response, logit_memory
from rld.losses.combination import Mixture
from rld.losses.divergences import JSD
from rld.losses.fused_response import SampledTokens, fused_response_loss
from rld.losses.objective import ResponseObjective
from rld.losses.response import ResponseLoss, ResponseSettings
from rld.losses.teacher_distribution import FullDistribution
from rld.losses.teacher_outputs import TeacherOutputs
from rld.models.heads import LMHead
from tests.support import gold_one_and_two
from tests.trainer.test_rld_trainer import trainer

N, H, V, CHUNK = 600, 256, 32, 64
HEAD_BYTES = 4 * V * H


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(fused_response, "_MAX_LOGITS", CHUNK * V)
    monkeypatch.setattr(fused_response, "_MIN_TOKENS", 1)


class SavedLogits(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of all `[tokens, V]` that autograd saves for a backward pass."""

    def __init__(self) -> None:
        super().__init__(self.count, lambda tensor: tensor)
        self.num_bytes = 0

    def count(self, tensor: torch.Tensor) -> torch.Tensor:
        self.num_bytes += tensor.untyped_storage().nbytes() if tensor.shape[1:] == (V,) else 0
        return tensor


def loss_and_states(
    keeps_logits: bool = True, is_trained: bool = True, num_tokens: int = N
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, weight = random(0, num_tokens, H).requires_grad_(), random(1, V, H).div_(16).requires_grad_(is_trained)
    every = torch.ones(num_tokens, dtype=torch.bool)
    teacher = FullDistribution(
        valid_N=every, head=LMHead(random(2, V, H) / 16, None, 1.0, None), hidden_NH=hidden.detach()
    )
    total, stats = fused_response_loss(
        hidden,
        LMHead(weight, None, 1.0, None),
        [teacher],
        weights_NK=torch.ones(num_tokens, 1),
        counts_N=torch.ones(num_tokens),
        objective=ResponseObjective(JSD(), Mixture(), 1.0),
        sampled_tokens=SampledTokens(torch.arange(num_tokens) % V, 1.0, keeps_logits),
    )
    return total + stats.sampled_logprob_N.sum(), hidden


def bytes_and_gradient(**options: bool) -> tuple[int, Any]:
    saved = SavedLogits()
    with saved:
        loss, hidden = loss_and_states(**options)
    loss.backward()
    return saved.num_bytes, hidden.grad


@pytest.mark.parametrize("is_trained", [True, False])
def test_kept_logits_take_what_the_head_takes_and_no_more_than_the_stated_bound(monkeypatch, is_trained):
    none, expected = bytes_and_gradient(keeps_logits=False, is_trained=is_trained)
    kept, gradient = bytes_and_gradient(is_trained=is_trained)
    assert (none, kept) == (0, HEAD_BYTES * (4 if is_trained else 1))
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    bound = 8 * V * (CHUNK + 10)  # of one chunk, and not of two
    monkeypatch.setattr(logit_memory, "KEPT_BYTES", bound)
    capped, gradient = bytes_and_gradient(is_trained=is_trained)
    assert capped == 8 * V * CHUNK
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("vocabulary", "width"), [(151_936, 1024), (128_256, 4096), (49_152, 576)])
def test_of_real_heads_they_stay_within_the_bound_that_estimates_add(vocabulary, width):
    for is_trained in (True, False):
        num_kept = fused_response._num_kept(torch.empty(vocabulary, width, device="meta"), is_trained)
        assert 0 < num_kept * 8 * vocabulary <= logit_memory.KEPT_BYTES


def test_the_forward_makes_a_gradient_of_the_heads_size_for_tokens_alone_that_are_not_kept(monkeypatch):
    zeros_like, shapes = torch.zeros_like, []

    def recorded(x: torch.Tensor, **options: Any) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return zeros_like(x, **options)

    monkeypatch.setattr(torch, "zeros_like", recorded)
    loss_and_states(num_tokens=2 * H)
    assert (V, H) not in shapes
    loss_and_states(num_tokens=2 * H + 1)
    assert shapes.count((V, H)) == 1


@pytest.mark.parametrize("trains_sampled", [True, False])
def test_logits_are_kept_where_the_sampled_tokens_are_trained(trains_sampled):
    hidden, weight, every = random(0, 1, N, H).requires_grad_(), random(1, V, H), torch.ones(1, N, dtype=torch.bool)
    settings = ResponseSettings(
        ResponseObjective(JSD(), Mixture(), 1.0), torch.ones(1), sampling_temperature=1.0, trains_sampled=trains_sampled
    )
    teacher = TeacherOutputs(LMHead(random(2, V, H), None, 1.0, None), hidden.detach(), None, every)
    loss = ResponseLoss(
        settings, LMHead(weight, None, 1.0, None), [teacher], shares_BK=torch.ones(1, 1), mask_BT=every.long()
    )
    saved = SavedLogits()
    with saved:
        loss._fused(hidden, torch.zeros(1, N, dtype=torch.long))
    assert saved.num_bytes == (HEAD_BYTES if trains_sampled else 0)


@pytest.mark.parametrize("signals", [["response"], ["policy", "response"], ["response", "gold"]])
def test_a_trainer_keeps_them_for_the_policy_and_for_gold_answers_alone(tmp_path, monkeypatch, signals):
    kept: list[bool] = []
    keeps_logits = fused_response._PassInputs.keeps_logits.fget

    def recorded(inputs: Any) -> bool:
        kept.append(keeps_logits(inputs))
        return kept[-1]

    monkeypatch.setattr(fused_response._PassInputs, "keeps_logits", property(recorded))
    if "gold" in signals:
        made = gold_one_and_two.trainer(tmp_path, gold_weight=0.7, response=0.4)
    else:
        made = trainer(tmp_path, signals=signals, feature=None, teacher_reward=0.0)
    made.args.max_steps = 1
    made.train()
    assert set(kept) == {signals != ["response"]}

"""The pass over the vocabulary is the plain formula, in pieces, and TRL's kernel for what was sampled."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from rld.losses import fused_response
from rld.losses.combination import AnyCombination, Geometric, Mixture, Sum, entropy
from rld.losses.divergences import JSD, AnyDivergence, ForwardKL, ReverseKL
from rld.losses.fused_response import PerTokenStats, SampledTokens, fused_response_loss
from rld.losses.objective import ResponseObjective, TopK
from rld.losses.teacher_distribution import FullDistribution
from rld.models import heads
from rld.models.heads import LMHead

DIVERGENCES = [member() for member in get_args(get_args(AnyDivergence)[0])]
COMBINATIONS = [member() for member in get_args(get_args(AnyCombination)[0])]
N, V = 9, 40
EVERYWHERE = torch.ones(N, dtype=torch.bool)


def random(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def student(softcap: float | None = None) -> tuple[torch.Tensor, LMHead]:
    weight, bias = random(1, V, 5).requires_grad_(), random(2, V).requires_grad_()
    return random(0, N, 5).requires_grad_(), LMHead(weight, bias, 0.7, softcap)


def distribution(k: int, valid: torch.Tensor = EVERYWHERE) -> FullDistribution:
    head = LMHead(random(10 + k, V, 6), None, 1.0, None)
    return FullDistribution(valid_N=valid, head=head, hidden_NH=random(20 + k, N, 6))


def log_p(hidden: torch.Tensor, head: LMHead, temperature: float) -> torch.Tensor:
    z = head.scale * (hidden @ head.weight.T + (0 if head.bias is None else head.bias))
    z = z if head.softcap is None else head.softcap * (z / head.softcap).tanh()
    return (z / temperature).log_softmax(-1)


def fused(hidden, head, teachers, weights, counts, objective, **options: Any) -> tuple[torch.Tensor, PerTokenStats]:
    inputs = {"weights_NK": weights, "counts_N": counts, "objective": objective}
    return fused_response_loss(hidden, head, teachers, **inputs, **options)


def run(
    teachers, weights, objective, counts=None, softcap=None, **options: Any
) -> tuple[torch.Tensor, PerTokenStats, list[torch.Tensor]]:
    hidden, head = student(softcap)
    total, stats = fused(
        hidden, head, teachers, weights, torch.ones(N) if counts is None else counts, objective, **options
    )
    return total, stats, list(torch.autograd.grad(total, (hidden, head.weight, head.bias)))


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.fixture(autouse=True, params=[(3 * V, 4), (1 << 23, N)], ids=["pieces, one kept", "whole"])
def piece(request, monkeypatch):
    max_logits, num_kept = request.param
    monkeypatch.setattr(fused_response, "_MAX_LOGITS", max_logits)
    monkeypatch.setattr(fused_response, "_MIN_TOKENS", 1)
    monkeypatch.setattr(fused_response, "_num_kept", lambda weight_VH, is_trained: num_kept)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=repr)
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_it_is_the_plain_formula_with_its_gradients(divergence, combination):
    speaks = torch.arange(N) != 4
    teachers, counts = [distribution(0), distribution(1, speaks)], torch.arange(1.0, N + 1)
    weights = torch.tensor([0.3, 0.7]).expand(N, 2) * torch.stack([torch.ones(N), speaks.float()], 1)
    total, stats, found = run(teachers, weights, ResponseObjective(divergence, combination, 1.5), counts, softcap=3.0)

    hidden, head = student(3.0)
    log_s = log_p(hidden, head, 1.5)
    log_t = torch.stack([log_p(teacher.hidden_NH, teacher.head, 1.5) for teacher in teachers])
    each = torch.stack([divergence(log_s, log_t[k]) for k in range(2)], 1)
    if combination.pools:
        target, strength = combination.target(log_t, weights)
        plain = strength * divergence(log_s, target)
    else:
        plain = (weights * each).sum(1)
    torch.testing.assert_close(total, (counts * plain).sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stats.target_divergence_N, plain.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats.teacher_divergence_NK[speaks], each.detach()[speaks], rtol=1e-4, atol=1e-5)
    assert stats.teacher_divergence_NK[4, 1] == 0
    same(found, list(torch.autograd.grad((counts * plain).sum(), (hidden, head.weight, head.bias))))


@pytest.mark.parametrize("combination", [Mixture(), Sum(), Geometric()], ids=repr)
@pytest.mark.parametrize("divergence", [ForwardKL(), JSD()], ids=repr)
def test_a_softened_target_is_that_of_taid_and_the_teachers_stay_what_is_measured(divergence, combination):
    """Against a reference in float64; tokens whose share is 1 are as if nothing were softened."""
    share = torch.linspace(0.2, 1.0, N)
    teachers, weights = [distribution(0), distribution(1)], torch.tensor([0.3, 0.7]).expand(N, 2)
    objective = ResponseObjective(divergence, combination, 1.5, teacher_share_N=share)
    total, stats, found = run(teachers, weights, objective)
    hard = run(teachers, weights, ResponseObjective(divergence, combination, 1.5))[1]

    hidden, head = student()
    s = log_p(hidden, head, 1.5).double()
    t = torch.stack([log_p(teacher.hidden_NH, teacher.head, 1.5) for teacher in teachers]).double()

    def soft(log_t: torch.Tensor) -> torch.Tensor:
        p = s.detach().exp() ** (1 - share[:, None]) * log_t.exp() ** share[:, None]
        return (p / p.sum(-1, keepdim=True)).log()

    if combination.pools:
        target, strength = combination.target(t, weights.double())
        plain = strength * divergence(s, soft(target))
    else:
        plain = sum(weights[:, k] * divergence(s, soft(t[k])) for k in range(2))
    torch.testing.assert_close(total.double(), plain.sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stats.target_divergence_N.double(), plain.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats.target_divergence_N[-1], hard.target_divergence_N[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats.teacher_divergence_NK, hard.teacher_divergence_NK, rtol=1e-4, atol=1e-5)
    same(found, list(torch.autograd.grad(plain.sum(), (hidden, head.weight, head.bias))))


@pytest.mark.parametrize(("divergence", "beta"), [(ForwardKL(), 0.0), (JSD(beta=0.3), 0.3), (ReverseKL(), 1.0)])
def test_it_agrees_with_trls_kernel(divergence, beta):
    teacher = distribution(0)
    _, stats, found = run([teacher], torch.ones(N, 1), ResponseObjective(divergence, Mixture(), 1.5))
    hidden, head = student()
    theirs, _ = ChunkedDivergenceFunction.apply(
        *(hidden, head.weight, head.bias, teacher.hidden_NH, teacher.head.weight, None),
        *(beta, 1.5, head.scale, None, 1.0, None),
    )
    torch.testing.assert_close(stats.target_divergence_N, theirs.detach(), rtol=1e-4, atol=1e-5)
    same(found, list(torch.autograd.grad(theirs.sum(), (hidden, head.weight, head.bias))))


@pytest.mark.parametrize("bonus", [0.0, 0.3], ids=["policy", "entropy too"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_what_was_sampled_is_scored_as_trls_kernel_does_it(bonus, softcap):
    sampled, advantages = torch.arange(N) * 3, torch.tensor([0.0, 1.0, -2.0] * 3)
    hidden, head = student(softcap)
    given = [distribution(0)], torch.ones(N, 1), torch.full((N,), 0.1), ResponseObjective(ForwardKL(), Mixture(), 1.5)
    response, stats = fused(hidden, head, *given, sampled_tokens=SampledTokens(sampled, 0.7))
    mine = (
        response + (advantages * stats.sampled_logprob_N).sum() - bonus * (stats.sampling_entropy_N * advantages).sum()
    )

    hidden_, head_ = student(softcap)
    kernel = hidden_, head_.weight, head_.bias, sampled, 0.7, 16, softcap, head_.scale, ("log_probs", "entropy")
    log_pi, entropies, *_ = ChunkedLogProbFunction.apply(*kernel)
    alone, _ = fused(hidden_, head_, *given)
    theirs = alone + (advantages * log_pi).sum() - bonus * (entropies * advantages).sum()
    torch.testing.assert_close(stats.sampled_logprob_N, log_pi, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats.sampling_entropy_N, entropies, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(mine, (hidden, head.weight, head.bias), retain_graph=True)
    same(list(gradients), list(torch.autograd.grad(theirs, (hidden_, head_.weight, head_.bias))))
    again = torch.autograd.grad(response, hidden)[0]  # one part alone, after both
    torch.testing.assert_close(again, torch.autograd.grad(fused(hidden_, head_, *given)[0], hidden_)[0])


@pytest.mark.parametrize("combination", COMBINATIONS, ids=repr)
def test_order_does_not_matter_and_a_teacher_without_weight_or_voice_has_no_effect(combination):
    objective = ResponseObjective(ForwardKL(), combination, 1.0)
    weights = torch.tensor([0.3, 0.7]).expand(N, 2)
    total, _, gradients = run([distribution(0), distribution(1)], weights, objective)
    turned, _, turned_gradients = run([distribution(1), distribution(0)], weights.flip(1), objective)
    torch.testing.assert_close(total, turned)
    same(gradients, turned_gradients)
    silent = distribution(2, torch.zeros(N, dtype=torch.bool))
    for third, weight in ((distribution(2), 0.0), (silent, 0.5)):
        more, _, more_gradients = run(
            [distribution(0), distribution(1), third], torch.cat([weights, torch.full((N, 1), weight)], 1), objective
        )
        torch.testing.assert_close(total, more)
        same(gradients, more_gradients)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=repr)
def test_where_no_teacher_speaks_there_is_no_gradient_and_no_nan(combination):
    mute = torch.arange(N) > 3
    weights = torch.tensor([0.3, 0.7]).expand(N, 2)
    total, stats, found = run(
        [distribution(0, mute), distribution(1, mute)], weights, ResponseObjective(ReverseKL(), combination, 1.0)
    )
    assert total.isfinite()
    assert not stats.target_divergence_N[:4].any()
    assert not found[0][:4].any()
    assert all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("pooled", [Mixture(), Geometric(), Sum()], ids=repr)
def test_a_student_equal_to_its_teachers_is_left_alone(pooled):
    hidden, head = student()
    twin_head = LMHead(head.weight.detach(), head.bias.detach(), 0.7, None)
    twin = FullDistribution(valid_N=EVERYWHERE, head=twin_head, hidden_NH=hidden.detach())
    total, _ = fused(
        hidden, head, [twin, twin], torch.full((N, 2), 0.5), torch.ones(N), ResponseObjective(JSD(), pooled, 1.0)
    )
    assert total.item() == pytest.approx(0, abs=1e-5)
    assert torch.autograd.grad(total, hidden)[0].abs().max() < 1e-5


def test_a_frozen_head_gets_no_gradient():
    hidden, head = student()
    frozen = LMHead(head.weight.detach(), None, 1.0, None)
    total, _ = fused(
        hidden, frozen, [distribution(0)], torch.ones(N, 1), torch.ones(N), ResponseObjective(JSD(), Mixture(), 1.0)
    )
    total.backward()
    assert hidden.grad.abs().sum() > 0


@pytest.mark.parametrize("num_teachers", [1, 2])
def test_a_student_that_is_its_teachers_is_no_further_than_0_from_them(num_teachers):
    hidden, head = student()
    itself = FullDistribution(valid_N=EVERYWHERE, head=head.detach(), hidden_NH=hidden.detach())
    weights = torch.full((N, num_teachers), 0.5)
    _, stats = fused(
        hidden, head, [itself] * num_teachers, weights, torch.ones(N), ResponseObjective(ForwardKL(), Mixture(), 1)
    )
    assert (stats.teacher_divergence_NK == 0).all()
    assert (stats.target_divergence_N >= 0).all()
    assert stats.target_divergence_N.max() < (1e-6 if num_teachers > 1 else 1e-30)


def test_a_token_that_nobody_can_say_counts_nothing():
    hidden, head = student()
    bias = torch.zeros(V).index_fill(0, torch.tensor([3]), -float("inf"))
    teacher_head = LMHead(random(10, V, 6), bias, 1.0, None)
    teacher = FullDistribution(valid_N=EVERYWHERE, head=teacher_head, hidden_NH=random(20, N, 6))
    for ours in (head, LMHead(head.weight, bias, 1.0, None)):
        options = torch.ones(N, 1), torch.ones(N), ResponseObjective(ForwardKL(), Mixture(), 1.0)
        total, stats = fused(hidden, ours, [teacher], *options)
        (gradient,) = torch.autograd.grad(total, hidden)
        assert total.isfinite()
        assert stats.teacher_divergence_NK.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("theirs", [V - 7, V + 7], ids=["teacher's inside", "student's inside"])
def test_a_vocabulary_may_lie_inside_the_other(theirs):
    """One of the two has no other tokens: their probability counts as e^-23, and all is finite."""
    teacher, states = LMHead(random(10, theirs, 6), None, 1.0, None), random(20, N, 6)
    both = torch.arange(min(V, theirs))
    both_vocabularies = FullDistribution(valid_N=EVERYWHERE, head=teacher, hidden_NH=states, shared_ids=(both, both))
    total, _, gradients = run([both_vocabularies], torch.ones(N, 1), ResponseObjective(ForwardKL(), Mixture(), 1.0))
    hidden, head = student()
    p_s, p_t = (log_p(h, f, 1.0).detach().double().exp() for h, f in ((hidden, head), (states, teacher)))
    rest_s, rest_t = (p[:, len(both) :].sort(dim=-1, descending=True).values for p in (p_s, p_t))
    tails = (rest.sum(-1, keepdim=True).clamp(min=math.exp(-23)) for rest in (rest_s, rest_t))
    log_s, log_t = (torch.cat([p[:, both], tail], -1).log() for p, tail in zip((p_s, p_t), tails, strict=True))
    ranks = (rest_s.sum(-1) + rest_t.sum(-1)).sum()  # one of them is empty
    torch.testing.assert_close(total.double(), ForwardKL()(log_s, log_t).sum() + 0.5 * ranks, rtol=1e-4, atol=1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_top_k_of_all_tokens_is_the_whole_divergence_and_fewer_never_see_more():
    log_s, log_t = random(0, 5, V).double().log_softmax(-1), random(1, 5, V).double().log_softmax(-1)
    for divergence in (ForwardKL(), ReverseKL(), JSD()):
        whole = divergence(log_s, log_t)
        torch.testing.assert_close(TopK(divergence, V - 1)(log_s, log_t), whole)
        assert (TopK(divergence, 4)(log_s, log_t) <= whole + 1e-12).all()
        assert (TopK(divergence, 4)(log_s, log_t) > 0).all()
        torch.testing.assert_close(TopK(divergence, 4)(log_s, log_s), torch.zeros(5).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("k", [1, 5])
def test_a_tail_that_the_student_rules_out_pulls_it_back(k):
    """As the whole divergence does: forward KL of 0.9 and 0.1 from a student that is 40 nats surer of the first."""
    logits = torch.tensor([[40.0, *[0.0] * 7]]).double().requires_grad_()
    teacher = torch.tensor([[0.9, *[0.1 / 7] * 7]]).double().log()
    for divergence in (ForwardKL(), TopK(ForwardKL(), k)):
        value = divergence(logits.log_softmax(-1), teacher)
        (slope,) = torch.autograd.grad(value.sum(), logits)
        assert value.item() == pytest.approx(ForwardKL()(logits.log_softmax(-1), teacher).item(), abs=0.3)
        assert slope[0, 0].item() == pytest.approx(0.1, abs=1e-6)


def test_the_tail_keeps_the_gradient_of_a_top_k_finite_where_the_teacher_is_sure():
    logits = random(0, 2, V).requires_grad_()
    sure = (1e3 * torch.eye(V)[:2]).log_softmax(-1)
    for divergence in (ForwardKL(), ReverseKL(), JSD()):
        (gradient,) = torch.autograd.grad(TopK(divergence, 3)(logits.log_softmax(-1), sure).sum(), logits)
        assert gradient.isfinite().all()


def test_entropies_are_those_of_student_and_target():
    weights = torch.tensor([0.25, 0.75]).expand(N, 2)
    hidden, head = student()
    own = torch.stack([log_p(t.hidden_NH, t.head, 1.0) for t in (distribution(0), distribution(1))])
    alone = torch.arange(N) % 2 == 0
    for rule, teachers, expected in (
        (Mixture(), [distribution(0), distribution(1)], entropy(Mixture().target(own, weights)[0])),
        (Sum(), [distribution(0), distribution(1)], (weights.T * entropy(own)).sum(0)),
        (
            Sum(),
            [distribution(0), distribution(1, ~alone)],
            torch.where(alone, entropy(own)[0], (weights.T * entropy(own)).sum(0)),
        ),
    ):
        _, stats, _ = run(teachers, weights, ResponseObjective(JSD(), rule, 1.0), with_entropies=True)
        torch.testing.assert_close(stats.target_entropy_N, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stats.student_entropy_N, entropy(log_p(hidden, head, 1.0)).detach())


def test_without_gradients_none_are_computed():
    hidden, head = student()
    with torch.no_grad():
        total, _ = fused(
            hidden, head, [distribution(0)], torch.ones(N, 1), torch.ones(N), ResponseObjective(JSD(), Mixture(), 1.0)
        )
    assert not total.requires_grad


def test_heads_in_half_precision_are_read_as_they_are_where_their_products_are_float32(monkeypatch):
    """As on a GPU, whose products torch computes here in float32; against the plain formula in float64."""
    mm, addmm = torch.mm, torch.addmm
    monkeypatch.setattr(heads, "multiplies_in_half", lambda weight: weight.dtype == torch.bfloat16)
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: mm(a.float(), b.float()))
    monkeypatch.setattr(torch, "addmm", lambda c, a, b, out_dtype, out: addmm(c, a.float(), b.float(), out=out))
    hidden, weight = random(0, N, 5).bfloat16().requires_grad_(), random(1, V, 5).bfloat16().requires_grad_()
    teacher_hidden, teacher_weight = random(20, N, 6).bfloat16(), random(10, V, 6).bfloat16()
    teacher = FullDistribution(
        valid_N=EVERYWHERE, head=LMHead(teacher_weight, None, 1.0, None), hidden_NH=teacher_hidden
    )
    assert teacher.with_float32_logits().head.weight is teacher_weight
    objective, ids = ResponseObjective(ForwardKL(), Mixture(), 1.0), torch.arange(N)
    options = [teacher], torch.ones(N, 1), torch.ones(N), objective
    total, stats = fused(hidden, LMHead(weight, None, 1.0, None), *options, sampled_tokens=SampledTokens(ids, 1.0))
    gradients = torch.autograd.grad(total - stats.sampled_logprob_N.sum(), (hidden, weight))

    log_s = (hidden.double() @ weight.double().T).log_softmax(-1)
    log_t = (teacher_hidden.double() @ teacher_weight.double().T).log_softmax(-1)
    plain = ForwardKL()(log_s, log_t)
    torch.testing.assert_close(stats.target_divergence_N.double(), plain.detach(), rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad((plain - log_s[ids, ids]).sum(), (hidden, weight))
    for one, other in zip(gradients, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other.double()).norm() < 1e-2 * other.double().norm()

"""Teachers that hand over their likeliest tokens: what that is worth in the loss, and how many bytes it takes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tests.support.tiny as tiny
from rld.losses.combination import Mixture, Sum
from rld.losses.divergences import JSD, ForwardKL, ReverseKL, TotalVariation
from rld.losses.fused_response import fused_response_loss
from rld.losses.objective import ResponseObjective
from rld.losses.teacher_distribution import FullDistribution, TopKDistribution
from rld.models.heads import LMHead
from rld.models.logprob_source import ScoredSequence, TopKLogprobs
from rld.teachers.local import LocalLogprobs
from rld.teachers.teacher import Teacher
from rld.teachers.wire_format import PayloadError, pack_logprobs, pack_sequences, unpack_logprobs, unpack_sequences

N, V = 5, 40


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_logprobs(num: int, k: int, vocabulary: int) -> TopKLogprobs:
    log_p = (3 * random(0, num, vocabulary)).log_softmax(-1)
    return TopKLogprobs.of(log_p, torch.randint(vocabulary, (num,), generator=torch.Generator().manual_seed(1)), k)


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), JSD(), TotalVariation()])
def test_top_k_logprobs_teach_as_their_tokens_and_one_outcome_more(divergence):
    """Value and gradient, against the divergence between two distributions over k + 1 outcomes."""
    k, temperature = 6, 1.3
    teacher = (2 * random(0, N, V) / temperature).log_softmax(-1)
    logprobs = TopKLogprobs.of(teacher, torch.zeros(N, dtype=torch.long), k)
    hidden, head = random(1, N, 8).requires_grad_(), LMHead(random(2, V, 8), None, 1.0, None)
    teacher_top_k = TopKDistribution(valid_N=torch.ones(N, dtype=torch.bool), top_k=logprobs)
    counts = torch.rand(N, generator=torch.Generator().manual_seed(3))
    total, stats = fused_response_loss(
        hidden,
        head,
        [teacher_top_k],
        weights_NK=torch.ones(N, 1),
        counts_N=counts,
        objective=ResponseObjective(divergence, Mixture(), temperature),
    )
    (gradient,) = torch.autograd.grad(total, hidden)

    again = hidden.detach().double().requires_grad_()
    p_s = (again @ head.weight.double().T / temperature).softmax(-1)
    p_t, ids = teacher.double().exp(), teacher.topk(k).indices
    ours, theirs = (torch.cat([p.gather(-1, ids), 1 - p.gather(-1, ids).sum(-1, True)], -1).log() for p in (p_s, p_t))
    expected = divergence(ours, theirs)
    (expected_gradient,) = torch.autograd.grad((expected * counts).sum(), again)
    torch.testing.assert_close(stats.target_divergence_N, expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("combination", [Mixture(), Sum()])
def test_logprobs_of_every_token_are_the_distribution(combination):
    """Beside another teacher too, and with tokens that the student lacks."""
    head, hidden = LMHead(random(2, V, 8), None, 1.0, None), random(1, N, 8)
    theirs, states = LMHead(random(4, V, 6), None, 1.0, None), random(5, N, 6)
    log_p = torch.nn.functional.pad(theirs.logits(states).log_softmax(-1), (0, 3), value=-1e4)
    every = TopKLogprobs.of(log_p, torch.zeros(N, dtype=torch.long), V + 3)
    valid = torch.ones(N, dtype=torch.bool)
    other_head = LMHead(random(6, V, 6), None, 1.0, None)
    beside = FullDistribution(valid_N=valid, head=other_head, hidden_NH=random(7, N, 6))
    whole, listed = (
        fused_response_loss(
            hidden,
            head,
            [teacher, beside],
            weights_NK=torch.tensor([[0.3, 0.7]]).expand(N, 2),
            counts_N=torch.ones(N),
            objective=ResponseObjective(JSD(), combination, 1.0),
        )[1]
        for teacher in (
            FullDistribution(valid_N=valid, head=theirs, hidden_NH=states),
            TopKDistribution(valid_N=valid, top_k=every),
        )
    )
    torch.testing.assert_close(listed.target_divergence_N, whole.target_divergence_N)
    torch.testing.assert_close(listed.teacher_divergence_NK, whole.teacher_divergence_NK)


def test_scores_are_those_of_the_plain_model_in_sequences_of_any_length():
    model = tiny.model(seed=1).eval()
    hosted = LocalLogprobs(Teacher(model, "t", tokenizer=tiny.tokenizer()), torch.device("cpu"), top_k=4, batch=20)
    sequences = [
        ScoredSequence([5 + (3 * i + j) % 10 for j in range(n)], m)
        for i, (n, m) in enumerate([(9, 4), (3, 2), (12, 1), (5, 4)])
    ]
    for sequence, said in zip(sequences, hosted.score(sequences, 0.7), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([sequence.ids])).logits[0, -sequence.num_scored - 1 : -1]
        log_p = (logits / 0.7).log_softmax(-1)
        torch.testing.assert_close(said.log_p, log_p.gather(-1, said.ids.long()))
        torch.testing.assert_close(said.log_p.amin(-1), log_p.topk(4).values[:, -1])
        targets = torch.tensor(sequence.ids[-sequence.num_scored :])
        torch.testing.assert_close(said.sampled, log_p[torch.arange(len(targets)), targets])
        torch.testing.assert_close(said.log_p.exp().sum(-1) + said.tail.exp(), torch.ones(len(targets)))


def test_logits_of_a_half_precision_model_are_not_rounded():
    model = tiny.model(seed=1).to(torch.bfloat16).eval()
    sequence = ScoredSequence([5, 6, 7, 8, 9, 10], 5)
    hosted = LocalLogprobs(Teacher(model, "t", tokenizer=tiny.tokenizer()), torch.device("cpu"), top_k=4)
    (said,) = hosted.score([sequence], 1.0)
    with torch.no_grad():
        hidden = model.model(torch.tensor([sequence.ids])).last_hidden_state[0, :-1]
        log_p = (hidden.float() @ model.lm_head.weight.float().T).log_softmax(-1)
    torch.testing.assert_close(said.sampled, log_p[torch.arange(5), sequence.ids[1:]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(said.log_p, log_p.gather(-1, said.ids.long()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocabulary", [15, 49_152, 151_936, 262_144])
def test_top_k_logprobs_survive_as_bytes_in_less_than_300_a_token(vocabulary):
    logprobs = some_logprobs(200, 64, vocabulary)
    data = pack_logprobs(logprobs, {"fingerprint": "abc"})
    back, about = unpack_logprobs(data)
    assert about == {"fingerprint": "abc"}
    assert torch.equal(back.ids, logprobs.ids)
    torch.testing.assert_close(back.log_p.float(), logprobs.log_p, rtol=2**-11, atol=0)
    torch.testing.assert_close(back.sampled, logprobs.sampled, rtol=0, atol=0)
    assert len(data) <= 300 * 200
    assert len(data) == pytest.approx((4 * min(64, vocabulary) + 6 + math.ceil(vocabulary / 65536)) * 200, abs=450)


@given(st.lists(st.tuples(st.lists(st.integers(0, 200_000), min_size=2, max_size=9), st.integers(1, 1)), min_size=1))
def test_sequences_survive_as_bytes(asked):
    sequences = [ScoredSequence(ids, num) for ids, num in asked]
    assert unpack_sequences(pack_sequences(sequences, {"top_k": "3"})) == (sequences, {"top_k": "3"})


@given(st.data())
def test_broken_bytes_are_refused_or_still_hold_log_probabilities(data):
    packed = bytearray(pack_logprobs(some_logprobs(3, 4, 30), {}))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packed)))
    try:
        logprobs, _ = unpack_logprobs(bytes(packed[:cut]))
    except PayloadError:
        return
    assert cut == len(packed)
    assert logprobs.log_p.shape == logprobs.ids.shape == (3, 4)
    assert (logprobs.log_p < 0.01).all() and (logprobs.sampled < 0.01).all()


WRONG = [(field, value) for field in ("log_p", "tail", "sampled") for value in (math.nan, 0.5)]


@pytest.mark.parametrize(("field", "value"), [*WRONG, ("sampled", -math.inf)])
def test_one_value_that_is_no_log_probability_is_refused(field, value):
    good = some_logprobs(3, 4, 30)
    bad = getattr(good, field).clone()
    bad[1] = value
    with pytest.raises(PayloadError, match="no log-probabilities"):
        unpack_logprobs(pack_logprobs(dataclasses.replace(good, **{field: bad}), {}))


@pytest.mark.parametrize("data", [b"", b"garbage" * 9, pack_sequences([ScoredSequence([1, 2], 1)], {})])
def test_bytes_that_hold_no_logprobs_are_refused(data):
    with pytest.raises(PayloadError):
        unpack_logprobs(data)


def test_sequences_need_a_token_before_those_to_be_scored():
    with pytest.raises(PayloadError, match="a token that is scored, and one before it"):
        unpack_sequences(pack_sequences([ScoredSequence([1, 2], 2)], {}))

"""Feature losses, layer maps, and what reads and compares the states of real models."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError

import tests.support.tiny as tiny
from rld.errors import RecipeError, TeacherError
from rld.losses.feature_matching import FeaturePlan, FeatureProjections, LayerPair, feature_distances
from rld.losses.features import CKA, MSE, AnyFeature, Cosine, Lens, Relation, Tokens, layer_pairs
from rld.losses.teacher_outputs import TeacherOutputs
from rld.models.heads import LMHead
from rld.models.hidden_states import InputOf, capture_states

ALL = [
    *(member() for member in get_args(get_args(AnyFeature)[0])),
    Relation(of="hidden", heads=4),
]
each = pytest.mark.parametrize("feature", ALL, ids=repr)
LENGTHS = [5, 0, 7]
HEAD = torch.randn(11, 16, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def states(seed: int, num: int = 12, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, width, generator=generator, dtype=torch.float64)


def readout(h: torch.Tensor) -> torch.Tensor:
    return (h / h.pow(2).mean(-1, keepdim=True).sqrt() @ HEAD.T).log_softmax(-1)


def distance(feature: Any, student: torch.Tensor, teacher: torch.Tensor, lengths: Any = LENGTHS) -> torch.Tensor:
    result: torch.Tensor = feature(student, teacher, Tokens(lengths, readout))
    return result


def through_projections(feature: Any, student: torch.Tensor, layers: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The distance `[B, T]` to one teacher with one mapped layer, from states `[B, T, H]`."""
    norm = torch.nn.RMSNorm(16).double() if feature.needs_readout else None
    plan = FeaturePlan((0,), (LayerPair(0, (0,), 16, 16, (0.0,)),), has_projection=False, readout_norm=norm)
    teacher = TeacherOutputs(LMHead(HEAD, None, 1.0, None), None, layers[:, None], torch.ones_like(mask).bool())
    return feature_distances(feature, FeatureProjections([plan]), {0: student}, [teacher], mask)[:, 0]


@each
def test_it_is_positive_zero_where_equal_and_blind_to_scale(feature):
    student, teacher = states(0), states(1)
    result = distance(feature, student, teacher)
    assert result.shape == (12,) and (result >= 0).all() and result.mean() > 0.01
    torch.testing.assert_close(distance(feature, student, student), torch.zeros_like(result), rtol=0, atol=1e-9)
    torch.testing.assert_close(distance(feature, student * 1000, teacher), result)


@each
def test_its_gradient_is_right(feature):
    student, teacher = states(0).requires_grad_(), states(1)
    weights = torch.linspace(0.5, 2.0, 12, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: (distance(feature, s, teacher) * weights).sum(), student)


@each
@pytest.mark.parametrize("num", [0, 1, 3])
def test_few_tokens_are_no_trouble(feature, num):
    student = states(0, num).requires_grad_()
    result = distance(feature, student, states(1, num), [num, 0])
    result.sum().backward()
    assert result.shape == (num,) and result.isfinite().all() and student.grad.isfinite().all()


@each
def test_padding_changes_nothing_and_the_teacher_is_not_pulled(feature):
    mask = torch.tensor([[1, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]])
    student, teacher = (states(seed, 15).view(3, 5, 16) for seed in (0, 1))
    clean = through_projections(feature, student, teacher, mask)
    assert (clean[mask == 0] == 0).all() and clean.sum() > 0
    spoilt = [torch.where(mask[..., None] == 1, h, float("nan")).requires_grad_() for h in (student, teacher)]
    again = through_projections(feature, *spoilt, mask)
    torch.testing.assert_close(again, clean, rtol=0, atol=0)
    again.sum().backward()
    assert spoilt[0].grad.isfinite().all() and (spoilt[0].grad[mask == 0] == 0).all()
    assert spoilt[1].grad is None


@pytest.mark.parametrize("feature", [f for f in ALL if not f.needs_readout], ids=repr)
def test_a_massive_activation_does_not_drown_the_rest(feature):
    mask = torch.ones(1, 12)
    student, teacher = states(0)[None].clone(), states(1)[None].clone()
    plain = through_projections(feature, student, teacher, mask).mean()
    student[..., 3] = teacher[..., 3] = 1e4
    assert through_projections(feature, student, teacher, mask).mean() > 0.1 * plain


def relation_reference(heads: int, student: torch.Tensor, teacher: torch.Tensor) -> list[float]:
    def relations(h: torch.Tensor, i: int) -> torch.Tensor:
        cut = [row / row.pow(2).mean().sqrt() for row in h]
        return torch.stack([cut[i] @ cut[j] / len(cut[i]) ** 0.5 for j in range(i + 1)]).softmax(0)

    result, start = [], 0
    for length in LENGTHS:
        ours, theirs = (x[start : start + length].chunk(heads, -1) for x in (student, teacher))
        start += length
        for i in range(length):
            total = 0.0
            for a, b in zip(ours, theirs, strict=True):
                p, q = relations(b, i), relations(a, i)
                total += float((p * (p / q).log()).sum()) / heads
            result.append(total)
    return result


def cka_reference(student: torch.Tensor, teacher: torch.Tensor) -> list[float]:
    """By the U-centred kernels of Szekely and Rizzo (2014), whose inner product the unbiased HSIC is."""

    def kernel(h: torch.Tensor) -> torch.Tensor:
        h = h / h.pow(2).mean(-1, keepdim=True).sqrt()
        k, n = h @ h.T, len(h)
        k.fill_diagonal_(0)
        k = k - k.sum(0) / (n - 2) - k.sum(1)[:, None] / (n - 2) + k.sum() / ((n - 1) * (n - 2))
        return k.fill_diagonal_(0)

    a, b = kernel(student), kernel(teacher)
    return [1 - float((a * b).sum() / (a.norm() * b.norm()))] * len(student)


def pointwise_reference(kind: str, student: torch.Tensor, teacher: torch.Tensor) -> list[float]:
    result = []
    for s, t in zip(student, teacher, strict=True):
        cosine = float(s @ t / (s.norm() * t.norm()))
        p, q = (torch.exp(HEAD @ (h / h.norm() * 4)) for h in (t, s))
        p, q = p / p.sum(), q / q.sum()
        result.append({"cosine": 1 - cosine, "mse": 2 - 2 * cosine, "lens": float((p * (p / q).log()).sum())}[kind])
    return result


@pytest.mark.parametrize(
    "feature, reference",
    [
        (Cosine(), lambda s, t: pointwise_reference("cosine", s, t)),
        (MSE(), lambda s, t: pointwise_reference("mse", s, t)),
        (Relation(), lambda s, t: relation_reference(8, s, t)),
        (Relation(of="hidden", heads=2), lambda s, t: relation_reference(2, s, t)),
        (CKA(), cka_reference),
        (Lens(), lambda s, t: pointwise_reference("lens", s, t)),
    ],
    ids=lambda value: "reference" if callable(value) else str(value),
)
def test_it_agrees_with_a_plain_reference(feature, reference):
    result = distance(feature, states(0), states(1))
    torch.testing.assert_close(result.tolist(), reference(states(0), states(1)), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("feature", [CKA(), Relation(heads=4)], ids=repr)
def test_it_compares_any_widths(feature):
    assert distance(feature, states(0, width=8), states(1)).mean() > 0.01


def test_cka_is_blind_to_rotations_and_fair_with_few_tokens():
    student, teacher = states(0), states(1)
    turn = torch.linalg.qr(states(2, 16)).Q
    torch.testing.assert_close(distance(CKA(), 3 * student @ turn, teacher), distance(CKA(), student, teacher))
    torch.testing.assert_close(distance(CKA(), student @ turn, student).mean().item(), 0.0, rtol=0, atol=1e-5)
    # 12 unrelated tokens of width 256 look alike to the plain estimator, whose loss is about 0.1.
    unrelated = [distance(CKA(), states(i, width=256), states(i + 99, width=256))[0] for i in range(40)]
    assert torch.stack(unrelated).mean() > 0.9


def test_the_lens_reads_out_few_tokens_at_a_time():
    seen = []

    def counted(h: torch.Tensor) -> torch.Tensor:
        seen.append(len(h))
        return readout(h)

    student, teacher = states(0, 300).requires_grad_(), states(1, 300)
    result = Lens()(student, teacher, Tokens([300], counted))
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.shape) or t, lambda t: t):
        Lens()(student, teacher, Tokens([300], counted))
    assert max(seen) <= 128 and not [shape for shape in held if shape[-1:] == HEAD.shape[:1]]
    torch.testing.assert_close(result[140:150], distance(Lens(), student[140:150], teacher[140:150], [10]))


def test_mse_is_twice_the_cosine_distance():
    s, t = states(0), states(1)
    torch.testing.assert_close(distance(MSE(), s, t), 2 * distance(Cosine(), s, t))


def test_layer_maps():
    assert layer_pairs("last", 3, 4) == [(3, 4)]
    assert layer_pairs("uniform", 3, 6) == [(1, 2), (2, 4), (3, 6)]
    assert layer_pairs("uniform", 3, 6, origin=[0, 1, 4]) == [(1, 1), (2, 2), (3, 6)], "the layers that they were"
    assert layer_pairs("learned", 2, 2) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert layer_pairs({2: 3, 1: 1}, 3, 4) == [(1, 1), (2, 3)]
    assert layer_pairs({"model.layers.1": "model.layers.3"}, 3, 4) == [("model.layers.1", "model.layers.3")]
    with pytest.raises(ValueError, match="student has layers 0 to 3"):
        layer_pairs({4: 1}, 3, 4)


def test_a_layer_by_name_is_the_layer_by_number():
    model = tiny.model(layers=3)
    with capture_states(model, {1, 2, 3, "model.layers.0", "model.layers.1", InputOf("model.norm")}) as seen:
        model.base_model(input_ids=torch.arange(4)[None])
    torch.testing.assert_close(seen[1], seen["model.layers.0"], rtol=0, atol=0)
    torch.testing.assert_close(seen[2], seen["model.layers.1"], rtol=0, atol=0)
    torch.testing.assert_close(seen[3], model.model.norm(seen[InputOf("model.norm")]), rtol=0, atol=0)
    assert not any(module._forward_hooks for module in model.modules() if type(module).__name__ == "LlamaMLP")


def test_queries_keys_and_values_are_compared_one_by_one():
    plan = FeaturePlan.of(Relation(layers="uniform"), tiny.model(), tiny.model(1, width=64, layers=4), "t")
    assert plan.teacher_keys[:3] == tuple(f"model.layers.1.self_attn.{name}_proj" for name in "qkv")
    assert [(pair.student, pair.teacher) for pair in plan.pairs[3:]] == [
        (f"model.layers.1.self_attn.{name}_proj", (i,)) for i, name in enumerate("qkv", 3)
    ]
    assert [(pair.student_width, pair.teacher_width) for pair in plan.pairs[:3]] == [(32, 64), (16, 32), (16, 32)]
    named = FeaturePlan.of(
        Relation(layers={"model.layers.1": "model.layers.3"}), tiny.model(), tiny.model(1, layers=4), "t"
    )
    assert named.teacher_keys == tuple(f"model.layers.3.self_attn.{name}_proj" for name in "qkv")


def test_the_lens_sees_the_teachers_own_output_at_its_last_layer():
    model = tiny.model()
    ids = torch.arange(4)[None]
    plan = FeaturePlan.of(Lens(), tiny.model(), model, "t")
    with torch.no_grad(), capture_states(model, {2, *plan.teacher_keys}) as seen:
        model.base_model(input_ids=ids)
    log_p = LMHead.of(model).logits(plan.readout_norm(seen[plan.teacher_keys[0]])).log_softmax(-1)
    torch.testing.assert_close(log_p, model(ids).logits.log_softmax(-1))


def test_a_learned_mix_moves_but_leaves_no_layer_behind():
    plan = FeaturePlan.of(Cosine(layers="learned"), tiny.model(layers=2), tiny.model(1, width=48, layers=4), "t")
    assert plan.teacher_keys == (1, 2, 3, 4) and [pair.student for pair in plan.pairs] == [1, 2]
    made = FeatureProjections([plan])
    before = made.mix_shares(0, 0)
    assert before.argmax() == 1  # layer 1 of 2 starts at layer 2 of 4
    torch.testing.assert_close(before.sum(), torch.tensor(1.0))
    layers = torch.randn(6, 4, 48, generator=torch.Generator().manual_seed(0))
    target = torch.nn.functional.normalize(layers[:, 3], dim=-1) @ made.maps[0][0].detach()
    optimizer = torch.optim.Adam([*made.mix_logits.parameters()], lr=1e-3)
    for _ in range(100):  # the student is what the teacher's last layer is
        ours, theirs = next(iter(made.state_pairs(0, {1: target, 2: target}, layers)))
        optimizer.zero_grad()
        Cosine()(ours, theirs, Tokens([6])).sum().backward()
        optimizer.step()
    after = made.mix_shares(0, 0)
    assert after[3] > 1.5 * before[3]
    odds = (after[:, None] / after) / (before[:, None] / before)
    assert odds.max() <= torch.e**2 + 1e-3


@pytest.mark.parametrize(
    "feature, error, words",
    [
        (
            Cosine(layers={"model.layers.7": "model.layers.0"}),
            TeacherError,
            r"'t': cosine: .*no module 'model.layers.7'",
        ),
        (Cosine(layers={"lm_head": "model.norm"}), TeacherError, "'lm_head' .*gives no state per token"),
        (Cosine(layers={1: 9}), RecipeError, "'t': cosine: .*teacher 0 to 2"),
        (Relation(heads=5), RecipeError, "'t': relation: heads: 5 relation heads do not divide the width 32"),
        (Relation(layers={0: 0}), TeacherError, "`of: hidden`"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused_before_training(feature, error, words):
    with pytest.raises(error, match=words):
        FeaturePlan.of(feature, tiny.model(), tiny.model(1), "t")


def test_models_without_the_modules_are_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    other = GPT2LMHeadModel(GPT2Config(vocab_size=15, n_embd=16, n_layer=2, n_head=2, n_positions=16))
    with pytest.raises(TeacherError, match=r"GPT2LMHeadModel has no single q_proj.*`of: hidden`"):
        FeaturePlan.of(Relation(), tiny.model(), other, "t")
    assert FeaturePlan.of(Lens(), tiny.model(), other, "t").teacher_keys == (InputOf("transformer.ln_f"),)
    del other.transformer.ln_f
    with pytest.raises(TeacherError, match="lens needs the norm"):
        FeaturePlan.of(Lens(), tiny.model(), other, "t")


def test_queries_are_not_mixed_over_layers():
    with pytest.raises(ValidationError, match="of: hidden"):
        Relation(layers="learned")

"""Sections on the fused pass: parity, the heads in half precision, the logits, and waits for the device.

Shapes: N tokens, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rld.losses.combination import Mixture
from rld.losses.divergences import JSD, ForwardKL, ReverseKL
from rld.losses.fused_response import SampledTokens, fused_response_loss
from rld.losses.objective import Divergence, ResponseObjective
from rld.losses.teacher_distribution import FullDistribution
from rld.models.heads import LMHead
from tests.gpu.measure import Watch, num_waits, peak_bytes, seconds
from tests.gpu.sizes import Sizes

_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest error of a gradient relative to its norm: of float32 rounding, and of a result rounded to 8 bits."""

_LEAST_TOKENS = 256
"""Tokens of which a pass makes several chunks, with the vocabulary of the small form too."""

_SHARES = 0.4, 0.6
"""Weights of the two teachers."""


class Case:
    """Random states and heads of a student and two teachers; the student's want gradients."""

    def __init__(self, sizes: Sizes, num_tokens: int, vocabulary: int, dtype: torch.dtype) -> None:
        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(*shape, generator=generator, device=sizes.device)).to(dtype)

        generator = torch.Generator(sizes.device).manual_seed(0)
        width, teacher = sizes.student.hidden, sizes.teacher.hidden
        self.states_NH = draw(num_tokens, width).requires_grad_()
        self.weight_VH = draw(vocabulary, width, scale=2 * width**-0.5).requires_grad_()
        self.teachers = [
            (draw(num_tokens, teacher), draw(vocabulary, teacher, scale=2 * teacher**-0.5)) for _ in _SHARES
        ]
        self.ids_N = torch.randint(vocabulary, (num_tokens,), generator=generator, device=sizes.device)
        self.advantages_N = torch.randn(num_tokens, generator=generator, device=sizes.device)

    def fused(self, divergence: Divergence) -> Tensor:
        """Return the loss of policy and response by the pass."""
        size, device = len(self.states_NH), self.states_NH.device
        valid_N = torch.ones(size, dtype=torch.bool, device=device)
        total, stats = fused_response_loss(
            self.states_NH,
            LMHead(self.weight_VH, None, 1.0, None),
            [
                FullDistribution(valid_N=valid_N, head=LMHead(weight, None, 1.0, None), hidden_NH=states)
                for states, weight in self.teachers
            ],
            weights_NK=torch.tensor(_SHARES, device=device).expand(size, -1),
            counts_N=torch.full((size,), 1 / size, device=device),
            objective=ResponseObjective(divergence, Mixture(), 1.0),
            sampled_tokens=SampledTokens(self.ids_N, 1.0),
        )
        return total - (self.advantages_N * stats.sampled_logprob_N).mean()

    def plain(self, divergence: Divergence) -> Tensor:
        """Return the same in float64, with all logits."""
        logits_NV = self.states_NH.double() @ self.weight_VH.double().T
        log_s_NV = logits_NV.log_softmax(-1)
        target_NV = sum(
            share * (states.double() @ weight.double().T).softmax(-1)
            for share, (states, weight) in zip(_SHARES, self.teachers, strict=True)
        )
        assert isinstance(target_NV, Tensor)
        sampled_N = log_s_NV.gather(1, self.ids_N[:, None])[:, 0]
        return divergence(log_s_NV, target_NV.log()).mean() - (self.advantages_N * sampled_N).mean()

    def step(self) -> None:
        """Compute the gradients by the pass."""
        self.states_NH.grad = self.weight_VH.grad = None
        self.fused(ForwardKL()).backward()

    def gradients(self, loss: Callable[[Divergence], Tensor], divergence: Divergence) -> list[Tensor]:
        """Return the loss, and its gradients with respect to states and head, in float64."""
        total = loss(divergence)
        return [x.detach().double() for x in (total, *torch.autograd.grad(total, (self.states_NH, self.weight_VH)))]


def parity(sizes: Sizes) -> dict[str, Any]:
    """The pass in float32 and bf16 against the plain formula in float64 on the same inputs."""
    rows = {}
    for dtype, limit in _LIMITS.items():
        case = Case(sizes, num_tokens=96, vocabulary=min(sizes.vocabulary, 8192), dtype=dtype)
        for divergence in (ForwardKL(), ReverseKL(), JSD()):
            results, expected = (case.gradients(loss, divergence) for loss in (case.fused, case.plain))
            errors = [float((x - y).norm() / y.norm()) for x, y in zip(results, expected, strict=True)]
            name = f"{str(dtype).removeprefix('torch.')}, {type(divergence).__name__}"
            assert max(errors) < limit, f"{name}: {errors} against {limit}"
            rows[name] = dict(zip(("loss", "gradient of states", "gradient of head"), errors, strict=True))
    return {"relative errors": rows, "limits": {str(dtype): limit for dtype, limit in _LIMITS.items()}}


def memory(sizes: Sizes) -> dict[str, Any]:
    """Of a rollout's size: no logits of all tokens, and on a GPU no copy of a bf16 head in float32."""
    num_tokens = max(sizes.num_tokens, _LEAST_TOKENS)
    case = Case(sizes, num_tokens, sizes.vocabulary, sizes.half)
    all_logits = num_tokens * sizes.vocabulary
    with Watch() as watch:
        case.step()
    teachers = watch.float32_shapes[tuple(case.teachers[0][1].shape)]
    student = watch.float32_shapes[tuple(case.weight_VH.shape)]
    assert watch.largest_size < all_logits, f"a tensor {watch.largest} is as large as the logits of all tokens"
    peak = peak_bytes(case.step, sizes.device)
    if sizes.device.type == "cuda":
        assert teachers == 0, f"{teachers} teachers' heads were copied to float32"
        assert student <= 2, f"{student} float32 tensors like the student's head; its gradient needs two"
        assert peak is not None
        assert peak < 4 * all_logits, f"a peak of {peak:,} bytes; the logits of all tokens have {4 * all_logits:,}"
    return {
        "tokens": num_tokens,
        "largest tensor": list(watch.largest),
        "float32 tensors like a teacher's head": teachers,
        "float32 tensors like the student's head": student,
        "bytes of all logits": 4 * all_logits,
        "peak bytes": peak,
        "seconds": seconds(case.step, sizes.repeats),
    }


def waits(sizes: Sizes) -> dict[str, Any]:
    """The host does not wait in the loop over chunks: twice the tokens, no more waits."""
    counts = {}
    for factor in (1, 2):
        case = Case(sizes, factor * max(sizes.num_tokens, _LEAST_TOKENS), sizes.vocabulary, sizes.half)
        counts[factor] = num_waits(case.step, sizes.device)
    assert counts[1] == counts[2], f"{counts[1]} waits, and {counts[2]} with twice the tokens"
    return {"waits of a pass": counts[1], "with twice the tokens": counts[2]}

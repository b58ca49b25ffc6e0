"""One student forward that feeds every signal.

TRL gives the student's `forward` a fused head: called with `fused_lm_head=True` it returns the log-probabilities and
entropies of the labels without storing any logits. `add_signal_head` wraps that forward once more: called with
`signals=` as well, the same single pass through the backbone also gives, per teacher and token, the divergence from
the teacher's distribution and the distance between hidden states. The vocabulary work happens inside the forward, so
that wrappers such as DDP have the parameters at hand.

Shapes: B completions, T completion tokens, H width, L mapped layers, N valid tokens, K teachers.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.trainer.utils import FusedCausalLMOutput

from rld.divergences import AnyDivergence
from rld.features import AnyFeature
from rld.heads import Head, TeacherStates
from rld.matching import Projections, feature_distances
from rld.taps import depth, tapped
from rld.tiles import Projection, TiledDivergence


@dataclass(frozen=True)
class SignalInputs:
    """What the student's forward needs for the response and feature signals."""

    mask_BT: Tensor
    """Completion tokens that count."""
    teachers: Sequence[TeacherStates]
    divergence: AnyDivergence | None
    """None when the response signal is off."""
    temperature: float
    feature: AnyFeature | None
    """None when the feature signal is off."""
    taps: list[Tensor] = field(default_factory=list)
    """The forward leaves the student's last hidden states `[B, S, H]` here, as its head saw them. They can't travel in
    the output: a wrapper that casts outputs would hand back copies that no loss depends on."""


@dataclass
class SignalOutput(FusedCausalLMOutput):
    """TRL's per-token outputs, and the streams of the other signals; 0 where a token or a teacher does not count."""

    divergence: Tensor | None = None
    """`[B, K, T]`, in nats."""
    feature: Tensor | None = None
    """`[B, K, T]`"""


class RecordedStudent:
    """Calls a student with `SignalInputs` added, and keeps what it returned."""

    def __init__(self, model: nn.Module, signals: SignalInputs) -> None:
        self.model, self.signals = model, signals
        self.results: list[SignalOutput] = []

    def __call__(self, **kwargs: Any) -> SignalOutput:
        self.results.append(self.model(**kwargs, signals=self.signals))
        return self.result

    @property
    def result(self) -> SignalOutput:
        """What the student returned in its one call."""
        (result,) = self.results
        return result


def add_signal_head(model: PreTrainedModel) -> None:
    """Let `model(..., fused_lm_head=True, signals=SignalInputs(...))` return a `SignalOutput`.

    `model` must already have TRL's fused head. Without `signals` its forward is unchanged.
    """
    fused_forward = model.forward

    def forward(self: PreTrainedModel, *args: Any, signals: SignalInputs | None = None, **kwargs: Any) -> Any:
        if signals is None:
            return fused_forward(*args, **kwargs)
        projections: Projections | None = getattr(self, "rld_projections", None)
        final = depth(self)
        read = projections.taps if projections is not None and signals.feature is not None else set()
        with tapped(self, read) as states:
            outputs = fused_forward(*args, **kwargs)
        keep = slice(-signals.mask_BT.shape[1] - 1, -1)
        last_BTH = states[final][:, keep]
        signals.taps.append(states[final])
        result = SignalOutput(**outputs)
        if signals.divergence is not None:
            result.divergence = _divergences(Head.of(self), last_BTH, signals, signals.divergence)
        if projections is not None and signals.feature is not None:
            kept = {tap: state[:, keep] for tap, state in states.items()}
            result.feature = feature_distances(signals.feature, projections, kept, signals.teachers, signals.mask_BT)
        if projections is not None:
            assert result.log_probs is not None
            result.log_probs = result.log_probs + projections.touch().to(last_BTH.device)
        return result

    # `generate` checks its arguments against the signature, which must stay the model's own.
    forward.__wrapped__ = type(model).forward  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)


def _divergences(student: Head, hidden_BTH: Tensor, signals: SignalInputs, divergence: AnyDivergence) -> Tensor:
    """Divergence from each teacher over the whole vocabulary, in tiles: `[B, K, T]`."""
    streams = []
    for teacher in signals.teachers:
        valid_BT = signals.mask_BT.bool() & teacher.tokens_BT
        if teacher.hidden_BTH is None:
            streams.append(torch.zeros(valid_BT.shape, device=valid_BT.device))
            continue
        vocabulary = min(student.weight.shape[0], teacher.head.weight.shape[0])
        ours, theirs = student.first(vocabulary), teacher.head.first(vocabulary)
        per_token_N = _tiled(divergence, hidden_BTH[valid_BT], ours, teacher.hidden_BTH[valid_BT], theirs, signals)
        # `masked_scatter` stays connected to the student when no token is valid, so backward still works.
        streams.append(per_token_N.new_zeros(valid_BT.shape).masked_scatter(valid_BT, per_token_N))
    return torch.stack(streams, dim=1)


def _tiled(
    divergence: AnyDivergence, ours_NH: Tensor, ours: Head, theirs_NH: Tensor, theirs: Head, signals: SignalInputs
) -> Tensor:
    """Divergence at each token, `[N]`, by TRL's kernel where it knows the divergence."""
    if divergence.interpolation is None:
        head = Projection(theirs.weight, theirs.bias, theirs.scale, theirs.softcap, signals.temperature)
        student = (ours.scale, ours.softcap)
        tiled: Tensor = TiledDivergence.apply(  # type: ignore[no-untyped-call]
            ours_NH, ours.weight, ours.bias, theirs_NH, student, head, divergence
        )
        return tiled
    per_token_N: Tensor
    per_token_N, _entropy = ChunkedDivergenceFunction.apply(
        ours_NH,
        ours.weight,
        ours.bias,
        theirs_NH,
        theirs.weight,
        theirs.bias,
        divergence.interpolation,
        signals.temperature,
        ours.scale,
        ours.softcap,
        theirs.scale,
        theirs.softcap,
    )
    return per_token_N

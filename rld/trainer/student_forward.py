"""One student forward that feeds every signal.

TRL gives the student's `forward` a fused head: called with `fused_lm_head=True` it returns the log-probabilities and
entropies of the labels without storing any logits. `add_signal_head` wraps that forward once more: called with
`num_tokens=` as well, completions of one prompt share a row (`packing.py`), and with `signals=` the same single pass
through the backbone also gives, per teacher and token, the divergence from the teacher's distribution and the distance
between hidden states. The vocabulary work happens inside the forward, so that wrappers such as DDP have the parameters
at hand.

Shapes: B completions, T completion tokens, H width, L mapped layers, N valid tokens, K teachers.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from rld.losses.feature_matching import FeatureProjections, feature_distances
from rld.losses.features import AnyFeature
from rld.losses.response import ResponseLoss, ResponseSettings
from rld.losses.teacher_outputs import TeacherOutputs
from rld.models.heads import FusedCausalLMOutput, LMHead
from rld.models.hidden_states import capture_states, depth
from rld.models.prompt_sharing import BackboneRows, PromptSharingLayout, untouched_rows

_PLAIN = {"input_ids", "attention_mask", "labels", "fused_lm_head"}


@dataclass(frozen=True)
class StudentInputs:
    """What the student's forward needs for the response and feature signals."""

    mask_BT: Tensor
    """Completion tokens that count."""
    teachers: Sequence[TeacherOutputs]
    shares_BK: Tensor
    """Weight of each teacher on each completion."""
    response: ResponseSettings | None
    """None when the response signal is off."""
    feature: AnyFeature | None
    """None when the feature signal is off."""
    taps: list[Tensor] = field(default_factory=list)
    """The forward leaves the student's last hidden states `[B, T, H]` here, as its head saw them. They can't travel in
    the output: a wrapper that casts outputs would hand back copies that no loss depends on."""


@dataclass
class StudentOutput(FusedCausalLMOutput):
    """TRL's per-token outputs, and the streams of the other signals; 0 where a token or a teacher does not count."""

    response: Tensor | None = None
    """The response signal's weighted sum over tokens, through which its gradient flows."""
    gap: Tensor | None = None
    """`[B, T]`, divergence from the teachers' target, without gradient and unweighted by the signal."""
    divergence: Tensor | None = None
    """`[B, K, T]`, divergence from each teacher in nats, without gradient."""
    feature: Tensor | None = None
    """`[B, K, T]`"""
    num_computed: int | None = None
    """Tokens that went through the backbone."""


class RecordingStudent:
    """Calls a student for its last `num_tokens` columns, with `StudentInputs` if any, and keeps what it returns."""

    def __init__(self, model: nn.Module, num_tokens: int, signals: StudentInputs | None = None) -> None:
        self.model, self.num_tokens, self.signals = model, num_tokens, signals
        self.results: list[StudentOutput] = []

    def __call__(self, **kwargs: Any) -> StudentOutput:
        result: StudentOutput = self.model(**kwargs, num_tokens=self.num_tokens, signals=self.signals)
        self.results.append(result)
        return result

    @property
    def num_computed(self) -> int:
        """Tokens that went through the student's backbone, over all calls."""
        return sum(result.num_computed or 0 for result in self.results)

    @property
    def result(self) -> StudentOutput:
        """What the student returned in its one call."""
        (result,) = self.results
        return result


def add_signal_forward(model: PreTrainedModel, name: str = "the student") -> None:
    """Let `model(..., fused_lm_head=True, num_tokens=T, signals=SignalInputs(...))` return a `StudentOutput`.

    `model` must already have TRL's fused head. Without `num_tokens` its forward is unchanged; with it, only the last T
    columns are scored. `name` is for notices.
    """
    fused_forward = model.forward
    layout = functools.cache(lambda: PromptSharingLayout.of(model, name))  # once the model is where it will run

    def forward(
        self: PreTrainedModel,
        *args: Any,
        num_tokens: int | None = None,
        signals: StudentInputs | None = None,
        **kwargs: Any,
    ) -> Any:
        if num_tokens is None:
            return fused_forward(*args, **kwargs)
        projections: FeatureProjections | None = getattr(self, "rld_projections", None) if signals is not None else None
        read = projections.taps if projections is not None and signals and signals.feature is not None else set()
        rows = _rows(layout, self, kwargs, num_tokens)
        labels_BT = kwargs["labels"][:, -num_tokens:]
        response = None
        if signals is not None and signals.response is not None:
            taught = signals.teachers, signals.shares_BK, signals.mask_BT
            response = ResponseLoss(signals.response, LMHead.of(self), *taught)
        left_BT = labels_BT if response is None else response.left_out(labels_BT)
        kwargs |= rows.inputs | {"labels": None, "shift_labels": left_BT}
        with capture_states(self, read, rows.restore) as states:
            result = StudentOutput(**fused_forward(*args, **kwargs), num_computed=rows.num_computed)
        if signals is None:
            return result
        last_BTH = states[depth(self)]
        signals.taps.append(last_BTH)
        if response is not None:
            result.response, result.gap, result.divergence = response.run(last_BTH, labels_BT, result)
        if projections is not None and signals.feature is not None:
            result.feature = feature_distances(signals.feature, projections, states, signals.teachers, signals.mask_BT)
        if projections is not None:
            assert result.log_probs is not None
            result.log_probs = result.log_probs + projections.touch().to(last_BTH.device)
        return result

    # `generate` checks its arguments against the signature, which must stay the model's own.
    forward.__wrapped__ = type(model).forward  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)


def _rows(
    layout: Callable[[], PromptSharingLayout], model: PreTrainedModel, given: dict[str, Any], num_tokens: int
) -> BackboneRows:
    """Lay out what a student is called with; only plain token ids can share rows."""
    routed = given.get("output_router_logits") or getattr(model.config.get_text_config(), "output_router_logits", False)
    others = {name for name, value in given.items() if value is not None} - _PLAIN
    if others or routed or given.get("input_ids") is None:
        return untouched_rows(num_tokens, given["labels"].numel())
    return layout().rows(given["input_ids"], given["attention_mask"], num_tokens)

"""One forward of the student that computes what every signal needs.

TRL gives the student's `forward` a fused head: called with `fused_lm_head=True` it returns the log-probabilities and
entropies of the labels without storing logits. `add_signal_forward` wraps that forward again. Called with a `recorder`,
completions of one prompt share a row (`models/prompt_sharing.py`), and the same pass through the backbone also gives
the divergence from each teacher's distributions and the distance from its hidden states, per token. The output head is
applied inside the forward, because there wrappers such as DDP or FSDP have the parameters ready. For the same reason
gradients with respect to the last hidden states are measured there: behind it DeepSpeed and FSDP take any gradient that
passes a forward's outputs for the backward pass of an update.

Shapes: B completions, T completion tokens, S prompt and completion tokens, H width, K teachers.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from rld.losses.feature_matching import FeatureProjections, feature_distances
from rld.losses.features import AnyFeature
from rld.losses.response import ResponseLoss, ResponseSettings
from rld.losses.teacher_outputs import TeacherOutputs
from rld.models.heads import FusedCausalLMOutput, LMHead
from rld.models.hidden_states import StateKey, capture_states, depth
from rld.models.prompt_sharing import BackboneRows, PromptSharingLayout, untouched_rows
from rld.trainer.sharding import gather_for_forward

_SHAREABLE_ARGUMENTS = {"input_ids", "attention_mask", "labels", "fused_lm_head"}
"""A forward with any other argument is not rearranged."""


@dataclass(frozen=True)
class StudentInputs:
    """What the response and feature signals need of a micro-batch."""

    mask_BT: Tensor
    """Completion tokens that count."""
    teachers: Sequence[TeacherOutputs]
    shares_BK: Tensor
    """Weight of each teacher on each completion."""
    response: ResponseSettings | None
    """None: the response signal is off."""
    feature: AnyFeature | None
    """None: the feature signal is off."""
    measure: Callable[[StudentOutput, Tensor], None] | None = None
    """Called at the end of the forward with its output and the last hidden states `[B, T, H]` as the head saw them,
    with gradient. None: nothing is measured."""


@dataclass
class StudentOutput(FusedCausalLMOutput):
    """TRL's outputs per token, and those of the other signals; None where a signal is off."""

    response_loss: Tensor | None = None
    """`[]`, the response signal's weighted sum over tokens in nats, through which its gradient flows."""
    target_divergence: Tensor | None = None
    """`[B, T]`, divergence from the teachers' target in nats, without gradient and without the signal's weight."""
    teacher_divergence: Tensor | None = None
    """`[B, K, T]`, divergence from each teacher in nats, without gradient; 0 where the teacher is not valid."""
    feature_distance: Tensor | None = None
    """`[B, K, T]`, distance from each teacher's hidden states, with gradient; 0 where the teacher is not valid."""
    num_computed: int | None = None
    """Tokens that went through the backbone."""
    num_padding: int | None = None
    """Of these, padding."""


class RecordingStudent:
    """Calls a student and records its outputs.

    Args:
        model: The student with its signal forward, with or without wrappers.
        num_tokens: T, the last columns of the input, which are scored.
        signals: What the response and feature signals need. None: both are off.
    """

    def __init__(self, model: nn.Module, num_tokens: int, signals: StudentInputs | None = None) -> None:
        self.model, self.num_tokens, self.signals = model, num_tokens, signals
        self.results: list[StudentOutput] = []

    def __call__(self, **kwargs: Any) -> StudentOutput:
        result: StudentOutput = self.model(**kwargs, recorder=self)
        self.results.append(result)
        return result

    @property
    def num_computed(self) -> int:
        """Tokens that went through the student's backbone, over all calls."""
        return sum(result.num_computed or 0 for result in self.results)

    @property
    def num_padding(self) -> int:
        """Of these, padding."""
        return sum(result.num_padding or 0 for result in self.results)

    @property
    def result(self) -> StudentOutput:
        """The output of the student's one call."""
        (result,) = self.results
        return result


def add_signal_forward(
    model: PreTrainedModel, projections: FeatureProjections | None = None, *, name: str = "the student"
) -> None:
    """Let `model(..., fused_lm_head=True, recorder=RecordingStudent(...))` return a `StudentOutput`.

    Args:
        model: A model that already has TRL's fused head. Without a recorder its forward is unchanged.
        projections: The feature signal's; None without that signal.
        name: What notices call the model.
    """
    fused_forward = model.forward
    gather_for_forward(model, () if projections is None else projections.parameters())
    layout = functools.cache(lambda: PromptSharingLayout.of(model, name))  # once the model is on its device

    def forward(self: PreTrainedModel, *args: Any, recorder: RecordingStudent | None = None, **kwargs: Any) -> Any:
        if recorder is None:
            return fused_forward(*args, **kwargs)
        signals, labels_BT = recorder.signals, kwargs["labels"][:, -recorder.num_tokens :]
        response = None if signals is None else _response_loss(self, signals)
        rows = _rows(layout, self, kwargs, recorder.num_tokens)
        trl_labels_BT = labels_BT if response is None else response.labels_for_trl(labels_BT)
        kwargs |= rows.inputs | {"labels": None, "shift_labels": trl_labels_BT}
        with capture_states(self, _state_keys(signals, projections), rows.restore) as states:
            result = StudentOutput(**fused_forward(*args, **kwargs), num_computed=rows.num_computed)
        result.num_padding = rows.num_padding
        if signals is None:
            return result
        last_BTH = states[depth(self)]
        if response is not None:
            terms = response.compute(last_BTH, labels_BT, result)
            result.response_loss, result.target_divergence, result.teacher_divergence = terms
        if projections is not None:
            _add_feature_distance(result, projections, signals, states)
        if signals.measure is not None:
            signals.measure(result, last_BTH)
        return replace(result)  # whose values are all in its dictionary, where wrappers look for tensors to watch

    # `generate` checks its arguments against the signature, which must stay the model's own.
    forward.__wrapped__ = type(model).forward  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)


def _add_feature_distance(
    result: StudentOutput, projections: FeatureProjections, signals: StudentInputs, states: dict[StateKey, Tensor]
) -> None:
    """Add the feature distances to a student's output; projections that have no part in them get a gradient of 0."""
    if signals.feature is not None:
        result.feature_distance = feature_distances(
            signals.feature, projections, states, signals.teachers, signals.mask_BT
        )
    assert result.log_probs is not None
    result.log_probs = result.log_probs + projections.zero().to(result.log_probs.device)


def _response_loss(model: PreTrainedModel, signals: StudentInputs) -> ResponseLoss | None:
    if signals.response is None or signals.response.over_labels:
        return None
    return ResponseLoss(
        signals.response, LMHead.of(model), signals.teachers, shares_BK=signals.shares_BK, mask_BT=signals.mask_BT
    )


def _state_keys(signals: StudentInputs | None, projections: FeatureProjections | None) -> set[StateKey]:
    """The student's states that the feature signal compares."""
    if projections is None or signals is None or signals.feature is None:
        return set()
    return projections.student_keys


def _rows(
    layout: Callable[[], PromptSharingLayout], model: PreTrainedModel, arguments: dict[str, Any], num_tokens: int
) -> BackboneRows:
    """Lay out the rows of a forward; completions share prompts only if it has plain token ids and no router loss."""
    config = model.config.get_text_config()
    routed = arguments.get("output_router_logits") or getattr(config, "output_router_logits", False)
    others = {name for name, value in arguments.items() if value is not None} - _SHAREABLE_ARGUMENTS
    if others or routed or arguments.get("input_ids") is None:
        real, size = arguments.get("attention_mask"), arguments["labels"].numel()
        return untouched_rows(num_tokens, size, 0 if real is None else int((real == 0).sum()))
    return layout().rows(arguments["input_ids"], arguments["attention_mask"], num_tokens)

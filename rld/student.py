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
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from rld.align import span_gaps
from rld.combine import AnyTokenWeights
from rld.features import AnyFeature
from rld.heads import Head, TeacherStates
from rld.matching import Projections, feature_distances
from rld.packing import Layout, Rows, as_they_are
from rld.taps import depth, tapped
from rld.vocabulary import Matching, Said, match

_PLAIN = {"input_ids", "attention_mask", "labels", "fused_lm_head"}


@dataclass(frozen=True)
class SignalInputs:
    """What the student's forward needs for the response and feature signals."""

    mask_BT: Tensor
    """Completion tokens that count."""
    teachers: Sequence[TeacherStates]
    shares_BK: Tensor
    """Weight of each teacher on each completion."""
    response: Response | None
    """None when the response signal is off."""
    feature: AnyFeature | None
    """None when the feature signal is off."""
    taps: list[Tensor] = field(default_factory=list)
    """The forward leaves the student's last hidden states `[B, T, H]` here, as its head saw them. They can't travel in
    the output: a wrapper that casts outputs would hand back copies that no loss depends on."""


@dataclass(frozen=True)
class Response:
    """How the response signal is computed for a batch."""

    matching: Matching
    tokens: AnyTokenWeights | None
    """How much each token counts. None: all alike."""
    weight_B: Tensor
    """Weight of the signal on each completion."""


@dataclass
class SignalOutput(FusedCausalLMOutput):
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


class RecordedStudent:
    """Calls a student for its last `num_tokens` columns, with `SignalInputs` if any, and keeps what it returns."""

    def __init__(self, model: nn.Module, num_tokens: int, signals: SignalInputs | None = None) -> None:
        self.model, self.num_tokens, self.signals = model, num_tokens, signals
        self.results: list[SignalOutput] = []

    def __call__(self, **kwargs: Any) -> SignalOutput:
        result: SignalOutput = self.model(**kwargs, num_tokens=self.num_tokens, signals=self.signals)
        self.results.append(result)
        return result

    @property
    def num_computed(self) -> int:
        """Tokens that went through the student's backbone, over all calls."""
        return sum(result.num_computed or 0 for result in self.results)

    @property
    def result(self) -> SignalOutput:
        """What the student returned in its one call."""
        (result,) = self.results
        return result


def add_signal_head(model: PreTrainedModel, name: str = "the student") -> None:
    """Let `model(..., fused_lm_head=True, num_tokens=T, signals=SignalInputs(...))` return a `SignalOutput`.

    `model` must already have TRL's fused head. Without `num_tokens` its forward is unchanged; with it, only the last T
    columns are scored. `name` is for notices.
    """
    fused_forward = model.forward
    layout = functools.cache(lambda: Layout.of(model, name))  # once the model is where it will run

    def forward(
        self: PreTrainedModel,
        *args: Any,
        num_tokens: int | None = None,
        signals: SignalInputs | None = None,
        **kwargs: Any,
    ) -> Any:
        if num_tokens is None:
            return fused_forward(*args, **kwargs)
        projections: Projections | None = getattr(self, "rld_projections", None) if signals is not None else None
        read = projections.taps if projections is not None and signals and signals.feature is not None else set()
        rows = _rows(layout, self, kwargs, num_tokens)
        kwargs |= rows.inputs | {"labels": None, "shift_labels": kwargs["labels"][:, -num_tokens:]}
        with tapped(self, read, rows.restore) as states:
            result = SignalOutput(**fused_forward(*args, **kwargs), num_computed=rows.num_computed)
        if signals is None:
            return result
        last_BTH = states[depth(self)]
        signals.taps.append(last_BTH)
        if signals.response is not None:
            _respond(Head.of(self), last_BTH, signals, signals.response, result)
        if projections is not None and signals.feature is not None:
            result.feature = feature_distances(signals.feature, projections, states, signals.teachers, signals.mask_BT)
        if projections is not None:
            assert result.log_probs is not None
            result.log_probs = result.log_probs + projections.touch().to(last_BTH.device)
        return result

    # `generate` checks its arguments against the signature, which must stay the model's own.
    forward.__wrapped__ = type(model).forward  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)


def _rows(layout: Callable[[], Layout], model: PreTrainedModel, given: dict[str, Any], num_tokens: int) -> Rows:
    """Lay out what a student is called with; only plain token ids can share rows."""
    routed = given.get("output_router_logits") or getattr(model.config.get_text_config(), "output_router_logits", False)
    others = {name for name, value in given.items() if value is not None} - _PLAIN
    if others or routed or given.get("input_ids") is None:
        return as_they_are(num_tokens, given["labels"].numel())
    return layout().rows(given["input_ids"], given["attention_mask"], num_tokens)


def _respond(head: Head, hidden_BTH: Tensor, signals: SignalInputs, response: Response, result: SignalOutput) -> None:
    """Add the response signal to `result`: distributions that are matched, and likelihoods of spans."""
    run = [k for k, teacher in enumerate(signals.teachers) if teacher.was_run]
    spans = [k for k in run if signals.teachers[k].align == "likelihood"]
    gap_BT, total, apart = _match(head, hidden_BTH, signals, response, [k for k in run if k not in spans])
    divergence_BKT = gap_BT.new_zeros(len(gap_BT), len(signals.teachers), gap_BT.shape[1])
    for k, stream_BT in apart.items():
        divergence_BKT[:, k] = stream_BT
    for k in spans:
        stream_BT = _span_gaps(result, signals.teachers[k], signals.mask_BT)
        divergence_BKT[:, k] = stream_BT.detach()
        weighted_BT = signals.shares_BK[:, k, None] * stream_BT
        gap_BT = gap_BT + weighted_BT.detach()
        total = total + (response.weight_B[:, None] * weighted_BT).sum()
    result.response, result.gap, result.divergence = total, gap_BT, divergence_BKT


def _span_gaps(result: SignalOutput, teacher: TeacherStates, mask_BT: Tensor) -> Tensor:
    assert result.log_probs is not None
    assert teacher.spans_BT is not None
    assert teacher.span_scores_BT is not None
    log_p_BT = result.log_probs[:, -mask_BT.shape[1] :]
    return span_gaps(log_p_BT, teacher.spans_BT.masked_fill(mask_BT == 0, -1), teacher.span_scores_BT)


def _match(
    head: Head, hidden_BTH: Tensor, signals: SignalInputs, response: Response, chosen: list[int]
) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """Match the distributions of the chosen teachers.

    Returns:
        The divergence from their target `[B, T]`, the weighted sum through which the gradient flows, and by teacher
        the divergence from it `[B, T]`.
    """
    teachers = [signals.teachers[k] for k in chosen]
    valid_BT = signals.mask_BT.bool()
    spoken_BT = torch.zeros_like(valid_BT)
    for teacher in teachers:
        spoken_BT = spoken_BT | teacher.tokens_BT
    valid_BT = valid_BT & spoken_BT
    same = [len(teacher.head.weight) for teacher in teachers if teacher.head and teacher.vocabulary is None]
    ours = head.first(min([len(head.weight), *same]))
    said = [_said(teacher, len(ours.weight), valid_BT) for teacher in teachers]
    shares_NK = signals.shares_BK[:, None].expand(*valid_BT.shape, -1)[valid_BT][:, chosen]
    counts_BT = response.weight_B[:, None].expand(valid_BT.shape)

    def spread(stream_N: Tensor) -> Tensor:
        return stream_N.new_zeros(valid_BT.shape).masked_scatter(valid_BT, stream_N)

    if response.tokens is not None:
        matching = replace(response.matching, entropies=True)
        with torch.no_grad():
            _, seen = match(hidden_BTH[valid_BT], ours, said, shares_NK, counts_BT[valid_BT], matching)
        gap, theirs, own = (spread(x) for x in (seen.gap_N, seen.target_entropy_N, seen.student_entropy_N))
        counts_BT = counts_BT * response.tokens(gap, theirs, own, valid_BT)
    total, streams = match(hidden_BTH[valid_BT], ours, said, shares_NK, counts_BT[valid_BT], response.matching)
    apart = {k: spread(streams.divergence_NK[:, i]) for i, k in enumerate(chosen)}
    return spread(streams.gap_N), total, apart


def _said(teacher: TeacherStates, vocabulary: int, valid_BT: Tensor) -> Said:
    speaks_N = teacher.tokens_BT[valid_BT]
    if teacher.shortlist is not None:
        return Said(teacher.shortlist[valid_BT], speaks_N)
    assert teacher.head is not None
    assert teacher.hidden_BTH is not None
    hidden_NH = teacher.hidden_BTH[valid_BT]
    if teacher.vocabulary is None:
        return Said((teacher.head.first(vocabulary), hidden_NH), speaks_N)
    ours_V, theirs_V = teacher.vocabulary
    kept_V = ours_V < vocabulary  # a teacher of the student's tokenizer may have cut the student's head
    return Said((teacher.head, hidden_NH), speaks_N, (ours_V[kept_V], theirs_V[kept_V]))

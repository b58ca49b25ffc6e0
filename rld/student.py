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
from rld.tiles import Projection, TiledDivergence


@dataclass(frozen=True)
class Head:
    """A language model's output head: `softcap(scale * (h @ weight.T + bias))`."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """Read the head off `model`, with the logit transforms that its configuration names."""
        config = model.config.get_text_config()
        output = model.get_output_embeddings()
        scales = (getattr(config, name, None) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"))
        scale = next((value for value in scales if value is not None), None)
        divisor = getattr(config, "logits_scaling", None)
        if scale is None and divisor is not None:
            scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(output.weight, output.bias, 1.0 if scale is None else scale, softcap)

    def first(self, size: int) -> Head:
        """The head over the first `size` tokens: padded vocabularies of one tokenizer differ only behind those."""
        if self.weight.shape[0] == size:
            return self
        return Head(self.weight[:size], None if self.bias is None else self.bias[:size], self.scale, self.softcap)


@dataclass(frozen=True)
class TeacherStates:
    """What one teacher says about a batch of completions."""

    head: Head
    hidden_BTH: Tensor | None
    """Last hidden states at the positions that predict the completion tokens; None when it was not run at all."""
    layers_BLTH: Tensor | None
    """Hidden states of the mapped layers; None when it was not run, or the feature signal is off."""
    tokens_BT: Tensor
    """The tokens on which this teacher speaks; elsewhere its states mean nothing."""


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


class Projections(nn.Module):
    """Learned maps from student to teacher width, one per teacher and mapped layer, orthonormal at the start.

    They are trained with the student and kept in its checkpoints, but never in its `state_dict`: what is exported
    is the plain student.
    """

    def __init__(self, student_width: int, layers: Sequence[Sequence[tuple[int, int]]], widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = [list(pairs) for pairs in layers]
        maps = []
        generator = torch.Generator().manual_seed(0)
        for pairs, width in zip(layers, widths, strict=True):
            weights = [nn.Parameter(torch.empty(width, student_width)) for _ in pairs]
            for weight in weights:
                nn.init.orthogonal_(weight, generator=generator)
            maps.append(nn.ParameterList(weights))
        self.maps = nn.ModuleList(maps)

    def forward(self, teacher: int, layer: int, h_NH: Tensor) -> Tensor:
        """Project student states `[N, H]` to the width of `teacher`'s mapped layer number `layer`."""
        maps = self.maps[teacher]
        assert isinstance(maps, nn.ParameterList)
        projected: Tensor = h_NH.float() @ maps[layer].float().T
        return projected

    def touch(self) -> Tensor:
        """A zero that depends on every map, so that DDP finds a gradient for each in every backward."""
        return sum((p.sum() for p in self.parameters()), torch.zeros(())) * 0.0

    @property
    def student_layers(self) -> set[int]:
        return {student for pairs in self.layers for student, _ in pairs}


def attach_projections(model: PreTrainedModel, projections: Projections) -> None:
    """Make `projections` trainable with `model` and invisible in its `state_dict`."""
    model.rld_projections = projections.to(model.device)
    name = "rld_projections."

    def hide(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
        for key in [key for key in state if key.startswith(prefix + name)]:
            del state[key]

    def restore(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for key, value in projections.state_dict().items():
            state.setdefault(prefix + name + key, value)

    model.register_state_dict_post_hook(hide)
    model.register_load_state_dict_pre_hook(restore)


def add_signal_head(model: PreTrainedModel) -> None:
    """Let `model(..., fused_lm_head=True, signals=SignalInputs(...))` return a `SignalOutput`.

    `model` must already have TRL's fused head. Without `signals` its forward is unchanged.
    """
    fused_forward = model.forward

    def forward(self: PreTrainedModel, *args: Any, signals: SignalInputs | None = None, **kwargs: Any) -> Any:
        if signals is None:
            return fused_forward(*args, **kwargs)
        projections: Projections | None = getattr(self, "rld_projections", None)
        depth = self.config.get_text_config().num_hidden_layers
        matches_features = signals.feature is not None and projections is not None
        if projections is not None and matches_features and projections.student_layers != {depth}:
            kwargs["output_hidden_states"] = True
        # The fused forward keeps the backbone's output to itself; a hook for the length of this call reads it.
        seen: list[Any] = []
        hook = self.base_model.register_forward_hook(lambda _module, _args, output: seen.append(output))
        try:
            outputs = fused_forward(*args, **kwargs)
        finally:
            hook.remove()
        keep = slice(-signals.mask_BT.shape[1] - 1, -1)
        last_BTH = seen[0].last_hidden_state[:, keep]
        signals.taps.append(seen[0].last_hidden_state)
        result = SignalOutput(**outputs)
        if signals.divergence is not None:
            result.divergence = _divergences(Head.of(self), last_BTH, signals, signals.divergence)
        if projections is not None and matches_features:
            states = {depth: last_BTH}
            if seen[0].get("hidden_states") is not None:
                states |= {layer: h[:, keep] for layer, h in enumerate(seen[0].hidden_states) if layer != depth}
            result.feature = _feature_distances(projections, states, signals)
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


def _feature_distances(projections: Projections, states: dict[int, Tensor], signals: SignalInputs) -> Tensor:
    """Distance to each teacher's mapped layers, the mean over layers: `[B, K, T]`."""
    assert signals.feature is not None
    streams = []
    for k, teacher in enumerate(signals.teachers):
        valid_BT = signals.mask_BT.bool() & teacher.tokens_BT
        if teacher.layers_BLTH is None:
            streams.append(torch.zeros(valid_BT.shape, device=valid_BT.device))
            continue
        pairs = projections.layers[k]
        distances = [
            signals.feature(projections(k, i, states[layer][valid_BT]), teacher.layers_BLTH[:, i][valid_BT])
            for i, (layer, _) in enumerate(pairs)
        ]
        per_token_N = torch.stack(distances).mean(0)
        streams.append(per_token_N.new_zeros(valid_BT.shape).masked_scatter(valid_BT, per_token_N))
    return torch.stack(streams, dim=1)

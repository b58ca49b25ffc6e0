"""The feature signal: which states are compared, learned maps between them, and their distances.

Shapes: B completions, T completion tokens, H width, L states of a teacher, N tokens that count, K teachers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rld.errors import RecipeError, TeacherError
from rld.losses.features import AnyFeature, Tokens, bounded, layer_pairs, normalised
from rld.losses.teacher_outputs import TeacherOutputs
from rld.models.heads import LMHead
from rld.models.hidden_states import InputOf, StateKey, depth, final_norm, module_at, state_widths, submodule_path
from rld.models.pruning import cut_layers
from rld.utils.tensors import at_least_float32

PROJECTIONS = "rld_projections"
"""Name of the module of a student that has the parameters of its feature signal."""

_MIX_SPEED = 100.0
"""Factor of the mix parameters. Adam moves a parameter by about the learning rate per step, so at 1e-5 a mix moves
across its range in 1000 steps."""


@dataclass(frozen=True)
class LayerPair:
    """One state of the student and the teacher's state, or mix of states, that it is compared with."""

    student: StateKey
    teacher: tuple[int, ...]
    """Indices into `FeaturePlan.teacher_keys`."""
    student_width: int
    teacher_width: int
    prior: tuple[float, ...]
    """Logits of the mix's shares at the start, one per teacher state."""


@dataclass(frozen=True)
class FeaturePlan:
    """Which states of one student and one teacher are compared."""

    teacher_keys: tuple[StateKey, ...]
    """The L states of the teacher."""
    pairs: tuple[LayerPair, ...]
    has_projection: bool
    """Whether the student's states are mapped to the teacher's width."""
    readout_norm: nn.Module | None
    """A copy of the teacher's final norm, not trained, for losses that need the readout. None for the others."""

    @classmethod
    def of(cls, feature: AnyFeature, student: PreTrainedModel, teacher: PreTrainedModel, name: str) -> FeaturePlan:
        """Find in both models the states that `feature` compares.

        Args:
            feature: The feature loss.
            student: The student.
            teacher: The teacher.
            name: What errors call the teacher.

        Raises:
            RecipeError: a layer does not exist, or its width does not fit the loss.
            TeacherError: a model has no such module.
        """
        try:
            sources = _teacher_states(feature, student, teacher)
            teacher_keys = tuple(dict.fromkeys(key for mix in sources.values() for key, _ in mix))
            student_widths = state_widths(student, sources.keys())
            teacher_widths = state_widths(teacher, teacher_keys)
            for width in (*student_widths.values(), *teacher_widths.values()):
                feature.check(width)
            norm = copy.deepcopy(module_at(teacher, final_norm(teacher))).float() if feature.needs_readout else None
        except (RecipeError, TeacherError) as error:
            raise type(error)(f"teacher '{name}': {feature.kind}: {error}") from error
        pairs = [
            LayerPair(
                student=student_key,
                teacher=tuple(teacher_keys.index(key) for key, _ in mix),
                student_width=student_widths[student_key],
                teacher_width=teacher_widths[mix[0][0]],
                prior=tuple(logit for _, logit in mix),
            )
            for student_key, mix in sources.items()
        ]
        return cls(teacher_keys, tuple(pairs), feature.needs_projection, norm)

    def bounded(self, h: Tensor) -> Tensor:
        """`h` without massive activations, for losses that do not apply the teacher's norm and head to it."""
        return bounded(h) if self.readout_norm is None else h


def _teacher_states(
    feature: AnyFeature, student: PreTrainedModel, teacher: PreTrainedModel
) -> dict[StateKey, list[tuple[StateKey, float]]]:
    """For each state of the student, the teacher's states that it is compared with, and the logits of their shares."""
    student_depth, teacher_depth = depth(student), depth(teacher)
    sources: dict[StateKey, list[tuple[StateKey, float]]] = {}
    origin = cut_layers(student, teacher)
    for student_layer, teacher_layer in layer_pairs(feature.layers, student_depth, teacher_depth, origin):
        if feature.submodules:
            for name in feature.submodules:
                teacher_key = submodule_path(teacher, teacher_layer, name)
                sources[submodule_path(student, student_layer, name)] = [(teacher_key, 0.0)]
            continue
        # The last hidden layer comes after the final norm, with which a readout begins.
        is_normed = feature.needs_readout and teacher_layer == teacher_depth
        key: StateKey = InputOf(final_norm(teacher)) if is_normed else teacher_layer
        logit = 0.0
        if isinstance(student_layer, int) and isinstance(teacher_layer, int):
            place = student_layer * teacher_depth / student_depth if origin is None else origin[student_layer - 1] + 1
            logit = -abs(teacher_layer - place)
        sources.setdefault(student_layer, []).append((key, logit))
    return sources


class FeatureProjections(nn.Module):
    """The feature signal's own parameters, per teacher and layer pair.

    - `maps`: linear maps from the student's to the teacher's width, orthonormal at the start, for losses that need
    equal
      widths.
    - `mix_logits`: for `layers: learned`, the shares of the teacher's layers in the mix that a student layer is
    compared
      with. For layer t of T and student layer s of S they are `softmax_t(-|t - s T/S| + tanh(theta_t))`. An
      unconstrained mix would collapse onto the teacher layer that is easiest to match, often the same for all student
      layers. Here the teacher's states are fixed and normalised, so the mix can't shrink to 0, and the odds of two
      layers stay within a factor of e^2 of those at the start.

    They are trained with the student and kept in its checkpoints, but never in its `state_dict`: an exported student
    has no additional parameters.
    """

    def __init__(self, plans: Sequence[FeaturePlan]) -> None:
        super().__init__()
        self.plans = list(plans)
        generator = torch.Generator().manual_seed(0)
        maps, mix_logits = [], []
        for plan in plans:
            projected = plan.pairs if plan.has_projection else ()
            weights = [nn.Parameter(torch.empty(pair.teacher_width, pair.student_width)) for pair in projected]
            for weight in weights:
                nn.init.orthogonal_(weight, generator=generator)
            maps.append(nn.ParameterList(weights))
            sizes = [len(pair.teacher) for pair in plan.pairs if len(pair.teacher) > 1]
            mix_logits.append(nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in sizes]))
        self.maps, self.mix_logits = nn.ModuleList(maps), nn.ModuleList(mix_logits)

    def state_pairs(
        self, k: int, states: Mapping[StateKey, Tensor], layers_NLH: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the student's and teacher k's state `[N, H]` of each layer pair, projected and mixed.

        Args:
            k: Which teacher.
            states: The student's states `[N, H]`.
            layers_NLH: The teacher's states, narrower ones padded with zeros.
        """
        plan, maps, mix_logits = self.plans[k], self.maps[k], self.mix_logits[k]
        assert isinstance(maps, nn.ParameterList) and isinstance(mix_logits, nn.ParameterList)
        mixable_NLH = normalised(plan.bounded(layers_NLH)) if len(mix_logits) else layers_NLH
        for i, pair in enumerate(plan.pairs):
            student_NH = at_least_float32(plan.bounded(states[pair.student]))
            if len(maps):
                student_NH = student_NH @ maps[i].to(student_NH.dtype).T
            if len(mix_logits):
                teacher_NH = torch.einsum("l,nlh->nh", self.mix_shares(k, i).to(mixable_NLH.dtype), mixable_NLH)
            else:
                teacher_NH = plan.bounded(layers_NLH[:, pair.teacher[0], : pair.teacher_width])
            yield student_NH, teacher_NH

    def mix_shares(self, k: int, i: int) -> Tensor:
        """The shares of teacher k's layers in the mix of layer pair i, `[L]`, which sum to 1."""
        mix_logits = self.mix_logits[k]
        assert isinstance(mix_logits, nn.ParameterList)
        prior = torch.tensor(self.plans[k].pairs[i].prior, device=mix_logits[i].device)
        shares: Tensor = (prior + torch.tanh(_MIX_SPEED * mix_logits[i].float())).softmax(-1)
        return shares

    def zero(self) -> Tensor:
        """A zero `[]` that depends on every parameter, so that each has a gradient in every backward, as DDP
        requires."""
        return sum((p.sum() for p in self.parameters()), torch.zeros(())) * 0.0

    @property
    def student_keys(self) -> set[StateKey]:
        """The student's states that are compared."""
        return {pair.student for plan in self.plans for pair in plan.pairs}


def attach_projections(model: PreTrainedModel, projections: FeatureProjections) -> None:
    """Register `projections` as a submodule of `model`, to be trained with it, but keep them out of its
    `state_dict`."""
    model.add_module(PROJECTIONS, projections.to(model.device))
    name = f"{PROJECTIONS}."

    def hide(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
        for key in [key for key in state if key.startswith(prefix + name)]:
            del state[key]

    def restore(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for key, value in projections.state_dict().items():
            state.setdefault(prefix + name + key, value)

    model.register_state_dict_post_hook(hide)
    model.register_load_state_dict_pre_hook(restore)


def feature_distances(
    feature: AnyFeature,
    projections: FeatureProjections,
    states: Mapping[StateKey, Tensor],
    teachers: Sequence[TeacherOutputs],
    mask_BT: Tensor,
) -> Tensor:
    """Return the distance from each teacher's states, the mean over layer pairs, `[B, K, T]`.

    It is 0 where a teacher is not valid, and for a teacher that was not run. It is computed in float32, under autocast
    too.

    Args:
        feature: The feature loss.
        projections: Its parameters, with the plan of each teacher.
        states: The student's states, `[B, T, H]`.
        teachers: The outputs of each teacher for these completions.
        mask_BT: Completion tokens that count.
    """
    distances_BT = []
    for k, teacher in enumerate(teachers):
        valid_BT = mask_BT.bool() & teacher.valid_BT
        if teacher.layers_BLTH is None:
            distances_BT.append(torch.zeros(valid_BT.shape, device=valid_BT.device))
            continue
        plan = projections.plans[k]
        student_states = {pair.student: states[pair.student][valid_BT] for pair in plan.pairs}
        layers_NLH = teacher.layers_BLTH.detach().transpose(1, 2)[valid_BT]
        readout = None
        if plan.readout_norm is not None:
            assert teacher.head is not None  # the teacher's slot adds it if its plan has a norm
            readout = _readout(teacher.head, plan.readout_norm)
        tokens = Tokens(valid_BT.sum(1).tolist(), readout)
        with torch.autocast(valid_BT.device.type, enabled=False):
            distances = [feature(*pair, tokens) for pair in projections.state_pairs(k, student_states, layers_NLH)]
            distance_N = torch.stack(distances).mean(0)
        # `masked_scatter` stays connected to the student if no token is valid, so that backward still works.
        distances_BT.append(distance_N.new_zeros(valid_BT.shape).masked_scatter(valid_BT, distance_N))
    return torch.stack(distances_BT, dim=1)


def _readout(head: LMHead, norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """The map from states `[n, H]` to log-probabilities `[n, V]` by a teacher's final norm and head."""

    frozen = head.detach()

    def log_probabilities(h_nH: Tensor) -> Tensor:
        return frozen.logits(norm.to(h_nH.device)(h_nH)).log_softmax(-1)

    return log_probabilities

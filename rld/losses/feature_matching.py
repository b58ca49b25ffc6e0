"""The feature signal's work: which states are compared, learned maps between them, and their distances.

Shapes: B completions, T completion tokens, H width, L states that a teacher hands over, N valid tokens, K teachers.
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
from rld.utils.tensors import at_least_float32

_MIX_SPEED = 100.0
"""Adam moves a parameter by about the learning rate a step: mixes move across their range in 1000 steps at 1e-5."""


@dataclass(frozen=True)
class LayerPair:
    """One state of the student and what it learns from: one state of a teacher, or a mix of several."""

    student: StateKey
    teacher: tuple[int, ...]
    """Which of the states that the teacher hands over."""
    widths: tuple[int, int]
    """Of the student's and of the teacher's."""
    prior: tuple[float, ...]
    """Logarithms of the mix's shares before anything is learned, up to a constant."""


@dataclass(frozen=True)
class FeaturePlan:
    """How one student learns features from one teacher."""

    taps: tuple[StateKey, ...]
    """What the teacher hands over."""
    links: tuple[LayerPair, ...]
    projected: bool
    """Whether the student's states are mapped to the teacher's width."""
    norm: nn.Module | None
    """A copy of the teacher's final norm, not trained, for losses that read its states out."""

    @classmethod
    def of(cls, feature: AnyFeature, student: PreTrainedModel, teacher: PreTrainedModel, name: str) -> FeaturePlan:
        """Find in both models what `feature` compares; `name` is the teacher's.

        Raises:
            RecipeError: a layer does not exist, or its width does not fit the loss.
            TeacherError: a model has no such module.
        """
        try:
            learners = _learners(feature, student, teacher)
            taps = tuple(dict.fromkeys(tap for theirs in learners.values() for tap, _ in theirs))
            ours_wide, theirs_wide = state_widths(student, learners.keys()), state_widths(teacher, taps)
            for width in (*ours_wide.values(), *theirs_wide.values()):
                feature.check(width)
            norm = copy.deepcopy(module_at(teacher, final_norm(teacher))).float() if feature.reads_out else None
        except (RecipeError, TeacherError) as error:
            raise type(error)(f"teacher '{name}': {feature.kind}: {error}") from error
        links = []
        for ours, theirs in learners.items():
            places, prior = zip(*((taps.index(tap), share) for tap, share in theirs), strict=True)
            links.append(LayerPair(ours, places, (ours_wide[ours], theirs_wide[theirs[0][0]]), prior))
        return cls(taps, tuple(links), feature.projected, norm)

    def bounded(self, h: Tensor) -> Tensor:
        """`h` without massive activations, unless a norm and a head will say what they count."""
        return bounded(h) if self.norm is None else h


def _learners(
    feature: AnyFeature, student: PreTrainedModel, teacher: PreTrainedModel
) -> dict[StateKey, list[tuple[StateKey, float]]]:
    """For each tap on the student, the taps on the teacher that it learns from, and the logarithms of their shares."""
    deep, deeper = depth(student), depth(teacher)
    found: dict[StateKey, list[tuple[StateKey, float]]] = {}
    for ours, theirs in layer_pairs(feature.layers, deep, deeper):
        if feature.parts:
            for part in feature.parts:
                found[submodule_path(student, ours, part)] = [(submodule_path(teacher, theirs, part), 0.0)]
            continue
        # The last hidden layer has been through the norm that a readout begins with.
        tap: StateKey = InputOf(final_norm(teacher)) if feature.reads_out and theirs == deeper else theirs
        numbers = isinstance(ours, int) and isinstance(theirs, int)
        share = -abs(int(theirs) - int(ours) * deeper / deep) if numbers else 0.0
        found.setdefault(ours, []).append((tap, share))
    return found


class FeatureProjections(nn.Module):
    """What the feature signal learns besides the student, per teacher and link.

    - Maps from student to teacher width, orthonormal at the start, for losses that need equal widths.
    - For `layers: learned`, the shares of the teacher's layers in the mix that a student layer learns from, for layer
      t of T and student layer s of S: `softmax_t(-|t - s T/S| + tanh(theta_t))`. A mix that were free would collapse
      onto whichever teacher layer is easiest to match, often one for all student layers. Here it cannot: the
      teacher's states are fixed and normalised, so the mix can't shrink to nothing, and a layer's odds against one
      that is closer to the student's relative depth never leave a factor of e^2 of what they were at the start.

    They are trained with the student and kept in its checkpoints, but never in its `state_dict`: what is exported
    is the plain student.
    """

    def __init__(self, plans: Sequence[FeaturePlan]) -> None:
        super().__init__()
        self.plans = list(plans)
        generator = torch.Generator().manual_seed(0)
        maps, logits = [], []
        for plan in plans:
            weights = [nn.Parameter(torch.empty(*reversed(link.widths))) for link in plan.links if plan.projected]
            for weight in weights:
                nn.init.orthogonal_(weight, generator=generator)
            maps.append(nn.ParameterList(weights))
            mixed = [link for link in plan.links if len(link.teacher) > 1]
            logits.append(nn.ParameterList([nn.Parameter(torch.zeros(len(link.teacher))) for link in mixed]))
        self.maps, self.logits = nn.ModuleList(maps), nn.ModuleList(logits)

    def pairs(self, k: int, states: Mapping[StateKey, Tensor], layers_NLH: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Student and teacher states `[N, H]` to compare with teacher `k`, link by link.

        Args:
            k: Which teacher.
            states: The student's, `[N, H]` by tap.
            layers_NLH: What the teacher handed over, narrower states padded with zeros.
        """
        plan, maps, logits = self.plans[k], self.maps[k], self.logits[k]
        assert isinstance(maps, nn.ParameterList) and isinstance(logits, nn.ParameterList)
        even_NLH = normalised(plan.bounded(layers_NLH)) if len(logits) else layers_NLH
        for i, link in enumerate(plan.links):
            student_NH = at_least_float32(plan.bounded(states[link.student]))
            if len(maps):
                student_NH = student_NH @ maps[i].to(student_NH.dtype).T
            if len(logits):
                teacher_NH = torch.einsum("l,nlh->nh", self.shares(k, i).to(even_NLH.dtype), even_NLH)
            else:
                teacher_NH = plan.bounded(layers_NLH[:, link.teacher[0], : link.widths[1]])
            yield student_NH, teacher_NH

    def shares(self, k: int, link: int) -> Tensor:
        """The shares of teacher `k`'s layers in the mix of a link: `[L]`."""
        logits = self.logits[k]
        assert isinstance(logits, nn.ParameterList)
        prior = torch.tensor(self.plans[k].links[link].prior, device=logits[link].device)
        shares: Tensor = (prior + torch.tanh(_MIX_SPEED * logits[link].float())).softmax(-1)
        return shares

    def zero(self) -> Tensor:
        """A zero `[]` that depends on every parameter, so that each has a gradient in every backward, as DDP
        requires."""
        return sum((p.sum() for p in self.parameters()), torch.zeros(())) * 0.0

    @property
    def student_keys(self) -> set[StateKey]:
        """The student's states that are compared."""
        return {link.student for plan in self.plans for link in plan.links}


def attach_projections(model: PreTrainedModel, projections: FeatureProjections) -> None:
    """Register `projections` as a submodule of `model`, to be trained with it, but keep them out of its
    `state_dict`."""
    model.add_module("rld_projections", projections.to(model.device))
    name = "rld_projections."

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
    """Distance to what each teacher handed over, the mean over links: `[B, K, T]`.

    `states` are the student's, `[B, T, H]` by tap. All is computed in single precision, under autocast too.
    """
    streams = []
    for k, teacher in enumerate(teachers):
        valid_BT = mask_BT.bool() & teacher.tokens_BT
        if teacher.layers_BLTH is None:
            streams.append(torch.zeros(valid_BT.shape, device=valid_BT.device))
            continue
        plan = projections.plans[k]
        ours = {link.student: states[link.student][valid_BT] for link in plan.links}
        layers_NLH = teacher.layers_BLTH.detach().transpose(1, 2)[valid_BT]
        readout = None
        if plan.norm is not None:
            assert teacher.head is not None  # the panel gives it with the norm
            readout = _readout(teacher.head, plan.norm)
        tokens = Tokens(valid_BT.sum(1).tolist(), readout)
        with torch.autocast(valid_BT.device.type, enabled=False):
            distances = [feature(*pair, tokens) for pair in projections.pairs(k, ours, layers_NLH)]
            per_token_N = torch.stack(distances).mean(0)
        # `masked_scatter` stays connected to the student when no token is valid, so backward still works.
        streams.append(per_token_N.new_zeros(valid_BT.shape).masked_scatter(valid_BT, per_token_N))
    return torch.stack(streams, dim=1)


def _readout(head: LMHead, norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """A teacher's states `[n, H]` to log-probabilities `[n, V]`, by its final norm and head."""

    def log_probabilities(h_nH: Tensor) -> Tensor:
        return head.logits(norm.to(h_nH.device)(h_nH)).log_softmax(-1)

    return log_probabilities

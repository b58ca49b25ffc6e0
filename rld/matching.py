"""The feature signal's work: learned maps between widths, and distances between hidden states.

Shapes: B completions, T completion tokens, H width, L mapped layers, N valid tokens, K teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rld.features import AnyFeature
from rld.heads import TeacherStates


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


def feature_distances(
    feature: AnyFeature,
    projections: Projections,
    states: dict[int, Tensor],
    teachers: Sequence[TeacherStates],
    mask_BT: Tensor,
) -> Tensor:
    """Distance to each teacher's mapped layers, the mean over layers: `[B, K, T]`."""
    streams = []
    for k, teacher in enumerate(teachers):
        valid_BT = mask_BT.bool() & teacher.tokens_BT
        if teacher.layers_BLTH is None:
            streams.append(torch.zeros(valid_BT.shape, device=valid_BT.device))
            continue
        pairs = projections.layers[k]
        distances = [
            feature(projections(k, i, states[layer][valid_BT]), teacher.layers_BLTH[:, i][valid_BT])
            for i, (layer, _) in enumerate(pairs)
        ]
        per_token_N = torch.stack(distances).mean(0)
        streams.append(per_token_N.new_zeros(valid_BT.shape).masked_scatter(valid_BT, per_token_N))
    return torch.stack(streams, dim=1)

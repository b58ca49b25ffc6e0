"""How far the student's hidden states are from a teacher's.

Shapes: N tokens, H width. A feature loss is a frozen model that is the callable: on projected student states and
teacher states, both `[N, H]`, it returns `[N]`, never negative, 0 where they agree. Both sides are normalised by
their root mean square first, so that the few huge "massive activations" of a token do not drown the rest, and the
teacher's side is detached, so that it cannot be pulled towards the student.

To add one, write a class and put its name in `AnyFeature`, the last line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from rld.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

LayerMap = Literal["last", "uniform"] | dict[int, int]
"""Which student layer learns from which teacher layer; layer 0 is the embedding, layer n the n-th block's output."""


def layer_pairs(layers: LayerMap, student_depth: int, teacher_depth: int) -> list[tuple[int, int]]:
    """Resolve a layer map into `(student layer, teacher layer)` pairs.

    `last` is the one pair of final layers; `uniform` gives each student layer the teacher layer at the same relative
    depth, `round(l * teacher_depth / student_depth)`; a mapping is taken as written.

    Raises:
        RecipeError: a layer in the mapping does not exist.
    """
    if layers == "last":
        return [(student_depth, teacher_depth)]
    if layers == "uniform":
        return [(s, round(s * teacher_depth / student_depth)) for s in range(1, student_depth + 1)]
    for student, teacher in layers.items():
        if not 0 <= student <= student_depth or not 0 <= teacher <= teacher_depth:
            raise RecipeError(
                f"feature layers {student}: {teacher} do not exist; the student has layers 0 to {student_depth} "
                f"and the teacher 0 to {teacher_depth}"
            )
    return sorted(layers.items())


def _normalised(h_NH: Tensor) -> Tensor:
    h_NH = h_NH.float()
    return h_NH * (h_NH.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()


class _Feature(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    layers: LayerMap = "last"
    """`last`, `uniform`, or a mapping of student layers to teacher layers."""


class Cosine(_Feature):
    """1 - cosine similarity (Sanh et al. 2019, DistilBERT)."""

    kind: Literal["cosine"] = "cosine"

    def __call__(self, student_NH: Tensor, teacher_NH: Tensor) -> Tensor:
        return 1 - (_normalised(student_NH) * _normalised(teacher_NH.detach())).mean(-1)


class MSE(_Feature):
    """Mean squared error between normalised states (Jiao et al. 2020, TinyBERT, on normalised inputs).

    For states of equal norm this is twice the cosine loss: `mean (u - v)^2 = 2 (1 - cos)`.
    """

    kind: Literal["mse"] = "mse"

    def __call__(self, student_NH: Tensor, teacher_NH: Tensor) -> Tensor:
        return (_normalised(student_NH) - _normalised(teacher_NH.detach())).pow(2).mean(-1)


AnyFeature = Annotated[Cosine | MSE, Field(discriminator="kind")]

"""Distances of the student's hidden states from a teacher's.

A feature loss is a frozen pydantic model with a `__call__`: from student and teacher states, `[N, H]` each, and the
`Tokens` that they belong to it returns `[N]`, at least 0, and 0 where they agree. The N tokens are those that count.
The teacher's states are detached, so only the student is trained.

Language models have "massive activations" (Sun et al. 2024): of an ordinary token of SmolLM2 135M, 5 of 576 entries
hold 60% of the squared norm, of one of Gemma 3 270M a single entry holds 85%. Therefore entries are first clipped at a
multiple of their token's median magnitude (`bounded`), and then each state is divided by its root mean square. A loss
that applies the teacher's final norm and head needs no clipping, because these weigh the entries themselves.

Shapes: N tokens, H width, V vocabulary, R relation heads, D width of a relation head, n tokens of one completion or one
chunk. To add a loss, write a class and put its name in `AnyFeature`, the last line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rld.errors import RecipeError
from rld.utils.options import FrozenOptions, OptionError

if TYPE_CHECKING:
    from torch import Tensor
from rld.utils.tensors import at_least_float32

LayerMap = Literal["last", "uniform", "learned"] | dict[int, int] | dict[str, str]
"""Which teacher layer each student layer is compared with. Layer 0 is the embedding, layer n the output of block n. A
mapping of texts names modules, such as `model.layers.2`, whose outputs are compared."""

_MAX_MEDIANS = 9.0
"""Bound of an entry in units of the token's median magnitude: 6 standard deviations of a normal distribution."""

_LENS_CHUNK = 128
"""Tokens of which `lens` holds distributions over the vocabulary at a time."""


def layer_pairs(
    layers: LayerMap, student_depth: int, teacher_depth: int, origin: Sequence[int] | None = None
) -> list[tuple[int | str, int | str]]:
    """Resolve a layer map into `(student layer, teacher layer)` pairs.

    `last` is the pair of the final layers. `uniform` pairs each student layer with the teacher layer at the same
    relative depth, `round(l * teacher_depth / student_depth)`, or with the one that it was cut from. `learned` pairs
    each student layer with all teacher layers. A mapping is taken as it is.

    Args:
        origin: For a student that was cut from the teacher, the teacher's block, counted from 0, of each of its blocks.
            The student's last layer is paired with the teacher's, because both come after the final norm.

    Raises:
        RecipeError: a layer in the mapping does not exist.
    """
    if layers == "last":
        return [(student_depth, teacher_depth)]
    if layers == "uniform" and origin is not None:
        return [*((s, origin[s - 1] + 1) for s in range(1, student_depth)), (student_depth, teacher_depth)]
    if layers == "uniform":
        return [(s, round(s * teacher_depth / student_depth)) for s in range(1, student_depth + 1)]
    if layers == "learned":
        return [(s, t) for s in range(1, student_depth + 1) for t in range(1, teacher_depth + 1)]
    pairs: list[tuple[int | str, int | str]] = [*layers.items()]
    for student, teacher in pairs:
        # Whether a named module exists is checked with the model.
        exists = [isinstance(student, str) or 0 <= student <= student_depth]
        exists += [isinstance(teacher, str) or 0 <= teacher <= teacher_depth]
        if not all(exists):
            raise RecipeError(
                f"feature layers {student}: {teacher} do not exist; the student has layers 0 to {student_depth} "
                f"and the teacher 0 to {teacher_depth}"
            )
    return sorted(pairs)


@dataclass(frozen=True)
class Tokens:
    """What a feature loss may use of its N tokens besides their states."""

    lengths: Sequence[int]
    """Number of tokens of each completion; the N tokens are ordered by completion."""
    readout: Callable[[Tensor], Tensor] | None = None
    """The teacher's final norm and head: from its states `[n, H]` to log-probabilities `[n, V]`. None unless the loss
    has `needs_readout`."""


def bounded(h: Tensor) -> Tensor:
    """`h` with entries clipped at 9 times the median magnitude along the last axis; the bound has no gradient."""
    limit = _MAX_MEDIANS * h.detach().abs().sort(-1).values[..., h.shape[-1] // 2, None]
    limit = limit.masked_fill(limit == 0, float("inf"))  # if most entries are 0, as after a rectifier
    return h.clamp(-limit, limit)


def root_mean_square(h: Tensor) -> Tensor:
    """Root mean square `[..., 1]` along the last axis, above 0."""
    return (at_least_float32(h).pow(2).mean(-1, keepdim=True) + 1e-12).sqrt()


def normalised(h: Tensor) -> Tensor:
    """`h` divided by its root mean square along the last axis."""
    return at_least_float32(h) / root_mean_square(h)


class _Feature(FrozenOptions):
    layers: LayerMap = "last"
    """`last`, `uniform` (same relative depth; for a student that was cut from the teacher, the layer that it was),
    `learned` (each student layer is compared with a learned mix of all teacher layers), or a mapping of student layers
    to teacher layers, by number or by module name."""

    needs_projection: ClassVar[bool] = True
    """Whether it compares states of equal width, so that the student's need a learned projection to the teacher's."""
    needs_readout: ClassVar[bool] = False
    """Whether it applies the teacher's final norm and head."""

    @property
    def submodules(self) -> tuple[str, ...]:
        """Modules inside each mapped layer whose outputs are compared one by one. Empty: the layer's own output."""
        return ()

    def check(self, width: int) -> None:
        """Check that states of this width can be compared.

        Raises:
            RecipeError: they can't.
        """

    def __call__(self, student_NH: Tensor, teacher_NH: Tensor, tokens: Tokens) -> Tensor:
        """Return the distance `[N]`; gradients flow to `student_NH`."""
        raise NotImplementedError


class Cosine(_Feature):
    """1 - cosine similarity (Sanh et al. 2019, DistilBERT)."""

    kind: Literal["cosine"] = "cosine"

    def __call__(self, student_NH: Tensor, teacher_NH: Tensor, tokens: Tokens) -> Tensor:
        return 1 - (normalised(student_NH) * normalised(teacher_NH)).mean(-1)


class MSE(_Feature):
    """Mean squared error between normalised states (Jiao et al. 2020, TinyBERT, without normalisation).

    It is twice the cosine loss: `mean (u - v)^2 = 2 (1 - cos)`.
    """

    kind: Literal["mse"] = "mse"

    def __call__(self, student_NH: Tensor, teacher_NH: Tensor, tokens: Tokens) -> Tensor:
        return (normalised(student_NH) - normalised(teacher_NH)).pow(2).mean(-1)


class Relation(_Feature):
    """Causal self-attention relations between tokens, for any widths (Wang et al. 2021, MiniLMv2).

    States are split into relation heads. Each head of each token is normalised separately, so that a massive activation
    affects its own head only. The relation of token i to the tokens j <= i of its completion is
    `softmax_j(a_i . a_j / sqrt(D))`. The loss is KL(teacher || student) between the relations, the mean over heads.
    Prompts are left out. The loss of a completion's first token is 0, because it relates only to itself.
    """

    kind: Literal["relation"] = "relation"
    of: Literal["queries_keys_values", "hidden"] = "queries_keys_values"
    """The vectors a: queries, keys and values of each mapped layer's attention, each related to its own kind (modules
    `q_proj`, `k_proj` and `v_proj`, before rotary embedding), or hidden states."""
    heads: int = Field(8, gt=0)
    """Relation heads of student and teacher; their number divides the width of the vectors. With grouped-query
    attention the relation heads of keys and values are parts of their smaller width."""

    needs_projection: ClassVar[bool] = False

    @model_validator(mode="after")
    def _mixes_hidden_states_only(self) -> Self:
        if self.layers == "learned" and self.submodules:
            message = "learned mixes layers, whose queries have no common axes; choose `of: hidden`"
            raise OptionError(message, "layers")
        return self

    @property
    def submodules(self) -> tuple[str, ...]:
        return ("q_proj", "k_proj", "v_proj") if self.of == "queries_keys_values" else ()

    def check(self, width: int) -> None:
        if width % self.heads:
            raise RecipeError(f"heads: {self.heads} relation heads do not divide the width {width}")

    def __call__(self, student_NH: Tensor, teacher_NH: Tensor, tokens: Tokens) -> Tensor:
        import torch
        from torch.utils.checkpoint import checkpoint

        # One completion at a time, and again in the backward, so that only one `[R, n, n]` is held in memory.
        lengths = list(tokens.lengths)
        completions = zip(student_NH.split(lengths), teacher_NH.split(lengths), strict=True)
        return torch.cat([checkpoint(self._within, *pair, use_reentrant=False) for pair in completions])

    def _within(self, student_nH: Tensor, teacher_nH: Tensor) -> Tensor:
        log_s_Rnn, log_t_Rnn = self._relations(student_nH), self._relations(teacher_nH)
        return (log_t_Rnn.exp() * (log_t_Rnn - log_s_Rnn)).sum(-1).mean(0)

    def _relations(self, h_nH: Tensor) -> Tensor:
        h_RnD = normalised(h_nH.unflatten(-1, (self.heads, -1))).transpose(0, 1)
        scores_Rnn = h_RnD @ h_RnD.mT * h_RnD.shape[-1] ** -0.5
        later_nn = scores_Rnn.new_ones(scores_Rnn.shape[1:]).triu(1) > 0
        # Finite, because the product of 0 and infinity is NaN.
        relations_Rnn: Tensor = scores_Rnn.masked_fill(later_nn, -1e30).log_softmax(-1)
        return relations_Rnn


class CKA(_Feature):
    """1 - linear centred kernel alignment, for any widths (Kornblith et al. 2019), with an unbiased estimator.

    It is invariant to rotation and scale: it compares how similar tokens are to each other. The biased estimator tends
    to 1 unless there are many more tokens than the width, so the unbiased HSIC of Song et al. (2012) is used.
    That is an inner product of kernels that are centred off their diagonals, so the loss lies in [0, 2]. It needs 4
    tokens; with fewer the loss is 0.

    It is one number for all tokens of a micro-batch, and each token gets it. Unlike the other losses, it is not a sum
    over tokens, so gradient accumulation changes it. Use micro-batches of hundreds of tokens.
    """

    kind: Literal["cka"] = "cka"
    needs_projection: ClassVar[bool] = False

    def __call__(self, student_NH: Tensor, teacher_NH: Tensor, tokens: Tokens) -> Tensor:
        if len(student_NH) < 4:
            return at_least_float32(student_NH).sum(-1) * 0.0
        x_NH, y_NH = _centred(student_NH), _centred(teacher_NH)
        scale = (_hsic(x_NH, x_NH) * _hsic(y_NH, y_NH)).clamp(min=1e-12).sqrt()
        return (1 - _hsic(x_NH, y_NH) / scale).expand(len(student_NH))


def _centred(h_NH: Tensor) -> Tensor:
    """Normalised states minus their mean over tokens, scaled to a squared length of about 1."""
    h_NH = normalised(h_NH) * h_NH.shape[-1] ** -0.5
    return h_NH - h_NH.mean(0)


def _hsic(x_NH: Tensor, y_NH: Tensor) -> Tensor:
    """Unbiased HSIC of the linear kernels of centred states, `[]` (Song et al. 2012).

    With centred states each row of a kernel sums to 0, so that the formula needs no `[N, N]` matrices.
    """
    n = len(x_NH)
    x_N, y_N = x_NH.pow(2).sum(-1), y_NH.pow(2).sum(-1)
    total = (x_NH.T @ y_NH).pow(2).sum() - n / (n - 2) * (x_N * y_N).sum()
    return (total + x_N.sum() * y_N.sum() / ((n - 1) * (n - 2))) / (n * (n - 3))


class Lens(_Feature):
    """Forward KL between the distributions that the teacher's head gives from both states (after nostalgebraist 2020).

    The teacher's final norm and head are applied to the teacher's states and to the projected student's states (the
    "logit lens"), so that only differences that change a prediction count, and vocabularies may differ. The student's
    state is first scaled to the root mean square of the teacher's. The teacher's last layer is taken before the final
    norm, so that its distribution is the teacher's output.
    """

    kind: Literal["lens"] = "lens"
    needs_readout: ClassVar[bool] = True

    def __call__(self, student_NH: Tensor, teacher_NH: Tensor, tokens: Tokens) -> Tensor:
        import torch
        from torch.utils.checkpoint import checkpoint

        readout = tokens.readout
        assert readout is not None

        def divergence(student_nH: Tensor, teacher_nH: Tensor) -> Tensor:
            log_s_nV, log_t_nV = readout(student_nH), readout(teacher_nH)
            return (log_t_nV.exp() * (log_t_nV - log_s_nV)).sum(-1)

        teacher_NH = at_least_float32(teacher_NH)
        student_NH = normalised(student_NH) * root_mean_square(teacher_NH)
        chunks = zip(student_NH.split(_LENS_CHUNK), teacher_NH.split(_LENS_CHUNK), strict=True)
        return torch.cat([checkpoint(divergence, *chunk, use_reentrant=False) for chunk in chunks])


AnyFeature = Annotated[Cosine | MSE | Relation | CKA | Lens, Field(discriminator="kind")]

"""How far the student's hidden states are from a teacher's.

Shapes: N tokens, H width, V vocabulary, R relation heads, D width of a relation head, n tokens of one completion.
A feature loss is a frozen model that is the callable: on student and teacher states, `[N, H]` each, and the `Tokens`
that they belong to, it returns `[N]`, never negative, 0 where they agree. Only valid tokens are among the N, and the
teacher's side comes detached, so that it cannot be pulled towards the student.

Language models have "massive activations": of an ordinary token of SmolLM2 135M, 5 of 576 entries hold 60% of the
squared norm, of one of Gemma 3 270M a single entry 85%. So before anything else entries are cut at a multiple of their
token's median magnitude (`bounded`), except for losses that read states out, where the teacher's own norm and head
decide what an entry counts; then each state is divided by its root mean square.

To add one, write a class and put its name in `AnyFeature`, the last line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rld.errors import RecipeError
from rld.utils.options import FrozenOptions

if TYPE_CHECKING:
    from torch import Tensor
from rld.utils.tensors import at_least_float32

LayerMap = Literal["last", "uniform", "learned"] | dict[int, int] | dict[str, str]
"""Which student layer learns from which teacher layer; layer 0 is the embedding, layer n the n-th block's output.
A mapping of texts names modules, such as `model.layers.2`, whose output is read."""

_BOUND = 9.0
"""Median magnitudes: 6 standard deviations of a normal distribution."""

_LENS_TOKENS = 128
"""Tokens whose distributions over the vocabulary are held at a time."""


def layer_pairs(layers: LayerMap, student_depth: int, teacher_depth: int) -> list[tuple[int | str, int | str]]:
    """Resolve a layer map into `(student layer, teacher layer)` pairs.

    `last` is the one pair of final layers; `uniform` gives each student layer the teacher layer at the same relative
    depth, `round(l * teacher_depth / student_depth)`; `learned` pairs each with all of the teacher's; a mapping is
    taken as written.

    Raises:
        RecipeError: a layer in the mapping does not exist.
    """
    if layers == "last":
        return [(student_depth, teacher_depth)]
    if layers == "uniform":
        return [(s, round(s * teacher_depth / student_depth)) for s in range(1, student_depth + 1)]
    if layers == "learned":
        return [(s, t) for s in range(1, student_depth + 1) for t in range(1, teacher_depth + 1)]
    pairs: list[tuple[int | str, int | str]] = [*layers.items()]
    for student, teacher in pairs:
        # Whether a module exists only the model can tell.
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
    """What a feature loss may know of its N tokens besides their states."""

    lengths: Sequence[int]
    """How many of them each completion has; they stand in order, completion after completion."""
    readout: Callable[[Tensor], Tensor] | None = None
    """The teacher's final norm and head: from its states `[n, H]` to log-probabilities `[n, V]`. Only for losses with
    `reads_out`."""


def bounded(h: Tensor) -> Tensor:
    """`h` with entries cut at 9 times the median magnitude along the last axis, a bound that counts as constant."""
    limit = _BOUND * h.detach().abs().sort(-1).values[..., h.shape[-1] // 2, None]
    limit = limit.masked_fill(limit == 0, float("inf"))  # most entries are 0, as after a rectifier
    return h.clamp(-limit, limit)


def root_mean_square(h: Tensor) -> Tensor:
    """Root mean square along the last axis, which is kept; never 0."""
    return (at_least_float32(h).pow(2).mean(-1, keepdim=True) + 1e-12).sqrt()


def normalised(h: Tensor) -> Tensor:
    """`h` over its root mean square along the last axis."""
    return at_least_float32(h) / root_mean_square(h)


class _Feature(FrozenOptions):
    layers: LayerMap = "last"
    """`last`, `uniform` (same relative depth), `learned` (each student layer learns from a mix of the teacher's), or a
    mapping of student layers to teacher layers, by number or by module name."""

    projected: ClassVar[bool] = True
    """It compares states of equal width: the student's are mapped to the teacher's by a learned projection."""
    reads_out: ClassVar[bool] = False
    """It needs the teacher's readout."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Modules inside each mapped layer whose outputs it compares, one by one. Empty: the layer's own output."""
        return ()

    def check(self, width: int) -> None:
        """Raise a RecipeError if states of this width cannot be compared."""


class Cosine(_Feature):
    """1 - cosine similarity (Sanh et al. 2019, DistilBERT)."""

    kind: Literal["cosine"] = "cosine"

    def __call__(self, student_NH: Tensor, teacher_NH: Tensor, tokens: Tokens) -> Tensor:
        return 1 - (normalised(student_NH) * normalised(teacher_NH)).mean(-1)


class MSE(_Feature):
    """Mean squared error between normalised states (Jiao et al. 2020, TinyBERT, on normalised inputs).

    For states of equal norm this is twice the cosine loss: `mean (u - v)^2 = 2 (1 - cos)`.
    """

    kind: Literal["mse"] = "mse"

    def __call__(self, student_NH: Tensor, teacher_NH: Tensor, tokens: Tokens) -> Tensor:
        return (normalised(student_NH) - normalised(teacher_NH)).pow(2).mean(-1)


class Relation(_Feature):
    """How tokens relate to each other, for any widths (Wang et al. 2021, MiniLMv2), causal.

    States are cut into relation heads, and each head of each token is normalised on its own, so that a massive
    activation drowns its own head at most. A token's relation to itself and those before it in its completion is
    `softmax(a_i . a_j / sqrt(D))`; the loss is the KL divergence of the student's from the teacher's, the mean over
    heads. Prompts are left out. The first token of a completion has only itself to relate to, and no loss.
    """

    kind: Literal["relation"] = "relation"
    of: Literal["queries_keys_values", "hidden"] = "queries_keys_values"
    """What is related: queries with queries, keys with keys and values with values of each mapped layer's attention
    (modules `q_proj`, `k_proj` and `v_proj`, before rotary embedding), or hidden states."""
    heads: int = Field(8, gt=0)
    """Relation heads, for student and teacher alike; they divide the width of what is related. Where keys and values
    are shared by query heads, these are cut out of their whole, smaller width."""

    projected: ClassVar[bool] = False

    @model_validator(mode="after")
    def _mixes_hidden_states_only(self) -> Self:
        if self.layers == "learned" and self.parts:
            raise ValueError("layers: learned mixes layers, whose queries have no common axes; choose `of: hidden`")
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        return ("q_proj", "k_proj", "v_proj") if self.of == "queries_keys_values" else ()

    def check(self, width: int) -> None:
        if width % self.heads:
            raise RecipeError(f"heads: {self.heads} relation heads do not divide the width {width}")

    def __call__(self, student_NH: Tensor, teacher_NH: Tensor, tokens: Tokens) -> Tensor:
        import torch
        from torch.utils.checkpoint import checkpoint

        # One completion at a time, computed again in the backward: `[R, n, n]` is all that is held.
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
        # Finite, because 0 times infinity would be no number.
        relations_Rnn: Tensor = scores_Rnn.masked_fill(later_nn, -1e30).log_softmax(-1)
        return relations_Rnn


class CKA(_Feature):
    """1 - linear centred kernel alignment, for any widths (Kornblith et al. 2019), without its bias for few tokens.

    Blind to rotations and scale: only how similar tokens are to each other counts. The plain estimator comes to 1 by
    itself unless tokens are many more than the width, so the unbiased HSIC of Song et al. (2012) is used. It is an
    inner product of kernels that are centred off their diagonals, so the loss lies in [0, 2]. It needs 4 tokens; with
    fewer the loss is 0.

    It is one number for all tokens of a micro-batch, given to each of them: unlike the other losses, it is not a sum
    over tokens, and gradient accumulation changes it. Use micro-batches of hundreds of tokens.
    """

    kind: Literal["cka"] = "cka"
    projected: ClassVar[bool] = False

    def __call__(self, student_NH: Tensor, teacher_NH: Tensor, tokens: Tokens) -> Tensor:
        if len(student_NH) < 4:
            return at_least_float32(student_NH).sum(-1) * 0.0
        ours, theirs = _centred(student_NH), _centred(teacher_NH)
        scale = (_hsic(ours, ours) * _hsic(theirs, theirs)).clamp(min=1e-12).sqrt()
        return (1 - _hsic(ours, theirs) / scale).expand(len(student_NH))


def _centred(h_NH: Tensor) -> Tensor:
    """Normalised states less their mean over tokens, to a squared length of about 1."""
    h_NH = normalised(h_NH) * h_NH.shape[-1] ** -0.5
    return h_NH - h_NH.mean(0)


def _hsic(x_NH: Tensor, y_NH: Tensor) -> Tensor:
    """Unbiased HSIC of the linear kernels of centred states.

    Once rows are centred each row of a kernel sums to 0, which turns Song's formula into one without `[N, N]` arrays.
    """
    n = len(x_NH)
    x_N, y_N = x_NH.pow(2).sum(-1), y_NH.pow(2).sum(-1)
    total = (x_NH.T @ y_NH).pow(2).sum() - n / (n - 2) * (x_N * y_N).sum()
    return (total + x_N.sum() * y_N.sum() / ((n - 1) * (n - 2))) / (n * (n - 3))


class Lens(_Feature):
    """Forward KL between what teacher and student state mean to the teacher's head (after nostalgebraist 2020).

    Teacher states and projected student states of the mapped layers both go through the teacher's final norm and head
    (the "logit lens"), so that only differences that would change a prediction count, and vocabularies may differ.
    The student's state is first given the teacher state's root mean square. The teacher's last layer is read before
    the final norm, so that there its distribution is its output.
    """

    kind: Literal["lens"] = "lens"
    reads_out: ClassVar[bool] = True

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
        chunks = zip(student_NH.split(_LENS_TOKENS), teacher_NH.split(_LENS_TOKENS), strict=True)
        return torch.cat([checkpoint(divergence, *chunk, use_reentrant=False) for chunk in chunks])


AnyFeature = Annotated[Cosine | MSE | Relation | CKA | Lens, Field(discriminator="kind")]

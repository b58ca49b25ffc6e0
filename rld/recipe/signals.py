"""The options of the policy, response and feature signals, and of learning gold answers beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from rld.losses.combination import AnyCombination, Mixture
from rld.losses.divergences import JSD, AnyDivergence
from rld.losses.features import AnyFeature, Cosine
from rld.losses.token_weights import AnyTokenWeights
from rld.recipe.document import Loc, RecipeProblem
from rld.recipe.names import RecipeNames, items
from rld.utils.options import FrozenOptions


class PolicySignal(FrozenOptions):
    """Reinforcement learning with TRL's GRPO on the student's completions."""

    teacher_reward: float = Field(0.0, ge=0)
    """Weight c of the teacher-scored reward `c * clamp(delta / s, -10, 10)` added to each token's advantage, where
    delta is the teachers' mean log-probability of the sampled token minus the student's, and s the skill's running
    spread of delta. 0: the teachers do not change the advantages."""
    teacher_reward_form: Literal["additive", "sign_preserving"] = "additive"
    """`sign_preserving`: scale each advantage A by `(1 - c) + c * clip(exp(sign(A) * delta), 0.5, 1.5)` instead, with c
    at most 1. This never changes the sign of an advantage, and an advantage of 0 stays 0."""


class ResponseSignal(FrozenOptions):
    """Train the student to match the teachers' token distributions."""

    divergence: AnyDivergence = JSD()
    """Divergence between the distributions of the target and of the student."""
    combine_teachers: AnyCombination = Mixture()
    """How the distributions of several teachers are combined into one target."""
    token_weights: AnyTokenWeights | None = None
    """Weights of the tokens in the loss. None: all tokens have the same weight."""
    temperature: float | None = Field(None, gt=0)
    """Temperature of both distributions. None: the rollout's temperature."""
    calibration: Literal["none", "length", "content_free", "prior_matching"] = "none"
    """How the teachers' distributions over labels are corrected, with `rollout.completions: labels`. `length`: divide a
    label's log-probability by the bytes of its words, relative to the mean of all labels. `content_free`: divide its
    probability by that on prompts without content, `N/A` and `[MASK]` (Zhao et al. 2021, contextual calibration).
    `prior_matching`: divide it by a prior with which the mean over the latest 512 rows is uniform (Liusie et al. 2023),
    which takes the labels for equally frequent."""
    top_k: int | None = Field(None, gt=0)
    """Number of the target's most likely tokens to match; the others are one outcome. None: the whole vocabulary."""


class FeatureSignal(FrozenOptions):
    """Train the student to match the teachers' hidden states, attention relations, or logits from hidden states."""

    loss: AnyFeature = Cosine()


class GoldSignal(FrozenOptions):
    """Learn gold answers token by token, as fine-tuning does, beside the other signals.

    They are `rollout.gold_completions`, or without these the only completions of some prompts of an update, on which
    nothing is sampled and no teacher is asked.
    """

    weight: float = Field(1.0, gt=0)
    """What a token of a gold answer counts, relative to a sampled token with an advantage of 1 and a weight of 1."""
    share: float | None = Field(None, gt=0, le=1)
    """Share of each skill's prompts that have their gold answer alone. None: the controller sets it, to 31/32 while the
    gold answers are new and to c / (1 + c) once they repeat, c being what a sampled completion costs in gold answers;
    none is learnt where it is a bare result, much shorter than the student's own correct completions."""
    answers: Literal["rows", "teachers", "either"] = "rows"
    """Whose answers are learnt. `rows`: those of the rows. `teachers`: greedy answers of the stage's teachers that the
    audit, or the verifier without one, accepts. `either`: those of the rows, and on skills whose rows have none to
    learn from, or bare results, those of the teachers."""


class SignalSpecs(FrozenOptions):
    """The signals in use. Others than `gold` are off where they are not named, unless `gold` alone is named."""

    policy: PolicySignal | None = None
    response: ResponseSignal | None = None
    feature: FeatureSignal | None = None
    gold: GoldSignal | Literal["auto"] | None = "auto"
    """`auto`: beside `policy` and teachers, with the curriculum `fixed:Uniform`, the controller `gap` lets the student
    learn gold answers on some prompts: with `answers: either`, or `rows` where a teacher is on a server or the student
    itself. Elsewhere gold answers are off, as with null."""

    def describe(self, num_teachers: int) -> str:
        """Return a description of the signals."""
        words = []
        if self.policy is not None:
            weight = self.policy.teacher_reward
            words.append("policy" + (f" (teacher-scored reward x {weight:g})" if weight else ""))
        if self.response is not None and num_teachers:
            combination = f", {self.response.combine_teachers.kind} of teachers" if num_teachers > 1 else ""
            words.append(f"response ({self.response.divergence.kind}{combination})")
        if self.feature is not None:
            words.append(f"feature ({self.feature.loss.kind})")
        return ", ".join(words)

    @classmethod
    def check(cls, names: RecipeNames, loc: Loc, raw: Any) -> Iterator[RecipeProblem]:
        """Check that at least one signal is set, and that the stage has teachers if a signal needs them."""
        signals = {name: signal for name, signal in items(raw) if signal not in (None, "auto")}
        if isinstance(raw, dict) and list(raw) != ["gold"] and not signals.keys() - {"gold"}:
            fix = "name policy, response or feature; gold answers alone are learnt by a stage of kind sft"
            yield names.problem(loc, f": no signal takes part; {fix}")
        needing_teachers = [name for name in ("response", "feature") if name in signals]
        match signals.get("gold"):
            case {"answers": "teachers" | "either"}:
                needing_teachers.append("gold.answers")
        match signals.get("policy"):
            case {"teacher_reward": int() | float() as weight} if weight > 0:
                needing_teachers.append("policy.teacher_reward")
        for name in needing_teachers if not names.teachers else ():
            yield names.problem((*loc, *name.split(".")), " needs teachers, and this stage has none")


def with_default_signals(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a stage with the default signals, unless it names others than gold answers.

    They are policy and response, without response where there are no teachers, and without policy where labels are.
    """
    signals = options.get("signals", {})
    if not isinstance(signals, dict) or signals.keys() - {"gold"}:
        return {**options}
    match options.get("rollout"):
        case {"completions": "labels"}:
            names = ["response"]
        case _:
            names = ["policy", "response"] if options.get("teachers") else ["policy"]
    return {**options, "signals": {name: {} for name in names} | signals}

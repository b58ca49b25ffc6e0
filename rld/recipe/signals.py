"""The options of the policy, response and feature signals."""

from __future__ import annotations

from collections.abc import Iterator
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
    """Reinforcement with TRL's GRPO on the student's own completions."""

    teacher_reward: float = Field(0.0, ge=0)
    """Weight c of the teacher-scored reward `c * clamp(delta / s, -10, 10)` added to each token's advantage, where
    delta is the teachers' mean log-probability of the sampled token minus the student's, and s the skill's running
    spread of delta. 0: verifiers only."""
    teacher_reward_form: Literal["additive", "sign_preserving"] = "additive"
    """`sign_preserving`: scale each advantage by `(1 - c) + c * clip(exp(sign(A) * delta), 0.5, 1.5)` instead, c at
    most 1, which never turns an advantage round and adds nothing where all rewards of a group agree."""


class ResponseSignal(FrozenOptions):
    """Match the teachers' token distributions."""

    divergence: AnyDivergence = JSD()
    combine_teachers: AnyCombination = Mixture()
    """How several teachers become one target."""
    token_weights: AnyTokenWeights | None = None
    """How much each token counts. None: all alike."""
    temperature: float | None = Field(None, gt=0)
    """Temperature of both distributions. None: the rollout's."""
    top_k: int | None = Field(None, gt=0)
    """Match the target's likeliest tokens, and all others as one outcome. None: the whole vocabulary."""


class FeatureSignal(FrozenOptions):
    """Match the teachers' hidden states, attention relations, or what hidden states mean to the teachers' heads."""

    loss: AnyFeature = Cosine()


class SignalSpecs(FrozenOptions):
    """Which signals take part; a signal that is not named is off."""

    policy: PolicySignal | None = None
    response: ResponseSignal | None = None
    feature: FeatureSignal | None = None

    def describe(self, num_teachers: int) -> str:
        """Return the signals as one text."""
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
        """Check that a signal takes part, and that there are teachers for those that need them."""
        signals = {name: signal for name, signal in items(raw) if signal is not None}
        if isinstance(raw, dict) and not signals:
            yield names.problem(loc, ": no signal takes part; name policy, response or feature")
        needy = [name for name in ("response", "feature") if name in signals]
        match signals.get("policy"):
            case {"teacher_reward": int() | float() as weight} if weight > 0:
                needy.append("policy.teacher_reward")
        for name in needy if not names.teachers else ():
            yield names.problem((*loc, *name.split(".")), " needs teachers, and this stage has none")

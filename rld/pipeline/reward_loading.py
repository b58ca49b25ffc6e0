"""Load the reward functions of a recipe, with their options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rld.errors import RewardError
from rld.models.placement import move_unless_placed
from rld.models.self_check import require_sound_model
from rld.pipeline.model_loading import Loaded
from rld.pipeline.run import RunContext
from rld.recipe import registry, trl_rewards
from rld.recipe.plugins import RewardSpec, VerifierSpec
from rld.recipe.stages import AnyStage
from rld.rollout.rewards import Reward


@dataclass(frozen=True)
class Rewards:
    """The rewards of a stage.

    Attributes:
        functions: The rewards of the policy signal, with their options.
        weights: The weight of each in the sum.
        verifier: Decides which completions are correct. None: the first reward decides it.
        audit: Checks completions that the verifier accepts. None: no check.
    """

    functions: list[Callable[..., Any]]
    weights: list[float]
    verifier: Reward | None
    audit: Reward | None


class RewardLoader:
    """Loads rewards; rewards that name the same model share one copy of it.

    Args:
        context: The run.
        loads_models: Whether to load the model and the tokenizer that a reward's option `model` names, for a reward
            that takes them. False: the option keeps its value.
    """

    def __init__(self, context: RunContext, loads_models: bool = True) -> None:
        self._context, self._loads_models = context, loads_models
        self._models: dict[str, Loaded] = {}

    def load(self, spec: RewardSpec | VerifierSpec) -> Reward:
        """Return a reward with its options.

        Raises:
            LibraryError: there is no such function.
        """
        options, model = dict(spec.options), spec.options.get("model")
        reward = registry.load("rewards", spec.use, self._context.source.parent)
        takes_model = registry.takes_model(inspect.signature(reward).parameters)
        if self._loads_models and isinstance(model, str) and takes_model:
            options["model"], options["tokenizer"] = self._model(model)
            kwargs = self._context.recipe.prompts.chat_template_kwargs
            if kwargs and "chat_template_kwargs" in inspect.signature(reward).parameters:
                options.setdefault("chat_template_kwargs", kwargs)
        return Reward(trl_rewards.bound(reward, options), spec.success_at, spec.timeout_seconds)

    def load_all(self, stage: AnyStage) -> Rewards:
        """Return the rewards of a stage, with its verifier and its audit."""
        recipe, audit = self._context.recipe, stage.audit_in_use
        return Rewards(
            functions=[self.load(spec) for spec in recipe.rewards],
            weights=[spec.weight for spec in recipe.rewards],
            verifier=self.load(recipe.verifier_in_use) if recipe.has_own_verifier else None,
            audit=None if audit is None else self.load(audit),
        )

    def _model(self, name: str) -> Loaded:
        if name not in self._models:
            model, tokenizer = self._context.models.load(name, dtype="auto")
            model = move_unless_placed(model, self._context.state.device).eval().requires_grad_(False)
            require_sound_model(model, f"the reward's model '{name}'", RewardError)
            self._models[name] = model, tokenizer
        return self._models[name]

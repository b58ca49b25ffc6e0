"""Apply planned changes of teachers, rewards, skills and levels at set steps of a stage.

A resumed run first applies the changes that precede its checkpoint, so it continues like an uninterrupted run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from rld.pipeline.model_loading import Loaded
from rld.recipe.perturbations import AnyPerturbation, LevelShift, RewardChange, SkillJoins, SkillLeaves, TeacherChange
from rld.recipe.plugins import RewardSpec
from rld.rollout.rewards import callable_name
from rld.trainer.rld_trainer import RLDTrainer
from rld.types import Event
from rld.utils.user_calls import REWARD_SECONDS


class PerturbedReward:
    """A reward that can be replaced, and whose values can be flipped at random, during a run.

    Args:
        reward: A function with the signature of TRL's rewards.
        seed: Which values are flipped depends only on the seed, step, position, prompt and completion.
    """

    def __init__(self, reward: Callable[..., Any], seed: int) -> None:
        self.reward, self.seed, self.noise = reward, seed, 0.0
        self.__name__ = callable_name(reward)
        self.success_at = getattr(reward, "success_at", None)
        self.timeout_seconds = getattr(reward, "timeout_seconds", REWARD_SECONDS)

    def __call__(self, prompts: list[Any], completions: list[Any], **batch: Any) -> list[float | None]:
        values = self.reward(prompts=prompts, completions=completions, **batch)
        if not self.noise:
            return list(values)
        step = getattr(batch.get("trainer_state"), "global_step", 0)
        keys = [f"{self.seed}:{step}:{i}:{pair}" for i, pair in enumerate(zip(prompts, completions, strict=True))]
        flips = [random.Random(key).random() < self.noise for key in keys]
        return [1 - r if flip and r is not None else r for r, flip in zip(values, flips, strict=True)]


class Perturbations(TrainerCallback):
    """Applies a stage's planned changes at their steps.

    Args:
        changes: The changes that the recipe lists.
        specs: The recipe's rewards.
        rewards: The reward functions of `specs`, in the same order.
        load: Returns the model and tokenizer that a reference names.
        build: Returns the reward function of a spec.
        seed: The stage's seed.
    """

    def __init__(
        self,
        changes: Sequence[AnyPerturbation],
        specs: Sequence[RewardSpec],
        rewards: Sequence[Callable[..., Any]],
        load: Callable[[str], Loaded],
        build: Callable[[RewardSpec], Callable[..., Any]],
        seed: int,
    ) -> None:
        self.changes = sorted(changes, key=lambda change: change.at)
        self.load, self.build = load, build
        self._slots = {spec.use: i for i, spec in reversed(list(enumerate(specs)))}
        indices = {self._slots[change.reward] for change in changes if isinstance(change, RewardChange)}
        self.rewards = [PerturbedReward(r, seed) if i in indices else r for i, r in enumerate(rewards)]
        """The rewards to train with."""

    def attach(self, trainer: RLDTrainer, first_step: int) -> None:
        """Set the trainer to change, and apply to it the changes that precede `first_step`."""
        self.trainer = trainer
        if trainer.stream is not None:
            moves = [c for c in self.changes if isinstance(c, SkillJoins | SkillLeaves)]
            firsts = {(c.joins if isinstance(c, SkillJoins) else c.leaves): c for c in reversed(moves)}
            trainer.stream.inactive_skills = frozenset(name for name, c in firsts.items() if isinstance(c, SkillJoins))
        for change in self.changes:
            if change.at < first_step:
                self._make(change)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for change in self.changes:
            if change.at == state.global_step:
                subject, description = self._make(change)
                skill = subject if isinstance(change, SkillJoins | SkillLeaves | LevelShift) else "all skills"
                text = f"{subject} {description}"
                event = Event(state.global_step, "change", skill, text, "planned", "the stage's changes")
                self.trainer.events.append(event)

    def _make(self, change: AnyPerturbation) -> tuple[str, str]:
        """Apply a change; return the name of the changed object and a description of the change."""
        match change:
            case TeacherChange():
                return change.teacher, self._change_teacher(change)
            case RewardChange():
                return change.reward, self._change_reward(change)
        stream = self.trainer.stream
        assert stream is not None  # always set in the run of a recipe
        match change:
            case SkillJoins():
                stream.inactive_skills -= {change.joins}
                return change.joins, "joins"
            case SkillLeaves():
                stream.inactive_skills |= {change.leaves}
                return change.leaves, "leaves"
            case LevelShift():
                stream.level_overrides[change.skill] = change.levels
                return change.skill, f"now has levels {change.levels}"

    def _change_teacher(self, change: TeacherChange) -> str:
        trainer = self.trainer
        k = next((k for k, teacher in enumerate(trainer.teachers) if teacher.name == change.teacher), None)
        if k is None:  # an optional teacher that was down when the stage started
            return "is not there, so its change is skipped"
        if change.becomes is None:
            trainer.ensemble.retire(k)
            return "leaves"
        trainer.ensemble.swap(k, *self.load(change.becomes))
        return f"becomes {change.becomes}"

    def _change_reward(self, change: RewardChange) -> str:
        i, words = self._slots[change.reward], []
        reward = self.rewards[i]
        assert isinstance(reward, PerturbedReward)
        if change.becomes is not None:
            reward.reward = self.build(RewardSpec(use=change.becomes, options=change.options))
            words.append(f"becomes {change.becomes}")
        if change.weight is not None:
            self.trainer.reward_weights[i + self.trainer.num_own_verifiers] = change.weight
            words.append(f"has weight {change.weight:g}")
        if change.noise is not None:
            reward.noise = change.noise
            words.append(f"errs in {change.noise:.0%}")
        is_verifier = i == 0 and not self.trainer.num_own_verifiers
        if is_verifier:  # gate and answers keep its results
            for k in range(len(self.trainer.teachers)):
                if self.trainer.gate is not None:
                    self.trainer.gate.forget(k)
                if self.trainer.answers is not None:
                    self.trainer.answers.forget(k)
        return ", ".join(words)

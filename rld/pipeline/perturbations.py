"""What changes on purpose while a stage trains: teachers, rewards, skills and levels, at given steps.

A resumed run makes the changes before its checkpoint again, so it goes on as one that was never stopped.
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


class PerturbedReward:
    """A reward that can be replaced, and whose verdicts can be turned round, while a run goes on.

    Args:
        reward: With TRL's signature.
        seed: Which verdicts are turned round depends on it, the step and the completion alone.
    """

    def __init__(self, reward: Callable[..., Any], seed: int) -> None:
        self.reward, self.seed, self.noise = reward, seed, 0.0
        self.__name__ = callable_name(reward)

    def __call__(self, prompts: list[Any], completions: list[Any], **batch: Any) -> list[float | None]:
        values = self.reward(prompts=prompts, completions=completions, **batch)
        if not self.noise:
            return list(values)
        step = getattr(batch.get("trainer_state"), "global_step", 0)
        keys = [f"{self.seed}:{step}:{i}:{asked}" for i, asked in enumerate(zip(prompts, completions, strict=True))]
        turned = [random.Random(key).random() < self.noise for key in keys]
        return [1 - r if t and r is not None else r for r, t in zip(values, turned, strict=True)]


class Perturbations(TrainerCallback):
    """Makes a stage's changes when their steps come.

    Args:
        planned: The changes, as the recipe has them.
        specs: The recipe's rewards.
        rewards: The same, built.
        load: Gives the model and tokenizer that a reference names.
        build: Builds a reward from its spec.
        seed: Of the stage.
    """

    def __init__(
        self,
        planned: Sequence[AnyPerturbation],
        specs: Sequence[RewardSpec],
        rewards: Sequence[Callable[..., Any]],
        load: Callable[[str], Loaded],
        build: Callable[[RewardSpec], Callable[..., Any]],
        seed: int,
    ) -> None:
        self.planned = sorted(planned, key=lambda change: change.at)
        self.load, self.build = load, build
        self._slots = {spec.use: i for i, spec in reversed(list(enumerate(specs)))}
        changed = {self._slots[change.reward] for change in planned if isinstance(change, RewardChange)}
        self.rewards = [PerturbedReward(r, seed) if i in changed else r for i, r in enumerate(rewards)]
        """The rewards to train with."""

    def attach(self, trainer: RLDTrainer, first_step: int) -> None:
        """Change `trainer` from now on, and make up for the changes before `first_step`."""
        self.trainer = trainer
        if trainer.stream is not None:
            moves = [c for c in self.planned if isinstance(c, SkillJoins | SkillLeaves)]
            firsts = {(c.joins if isinstance(c, SkillJoins) else c.leaves): c for c in reversed(moves)}
            trainer.stream.absent = frozenset(name for name, c in firsts.items() if isinstance(c, SkillJoins))
        for change in self.planned:
            if change.at < first_step:
                self._make(change)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for change in self.planned:
            if change.at == state.global_step:
                about, what = self._make(change)
                skill = about if isinstance(change, SkillJoins | SkillLeaves | LevelShift) else "all skills"
                event = Event(state.global_step, "change", skill, f"{about} {what}", "planned", "the stage's changes")
                self.trainer.events.append(event)

    def _make(self, change: AnyPerturbation) -> tuple[str, str]:
        """Make a change; returns what changed, and how."""
        match change:
            case TeacherChange():
                return change.teacher, self._change_teacher(change)
            case RewardChange():
                return change.reward, self._change_reward(change)
        stream = self.trainer.stream
        assert stream is not None  # a recipe's run always has one
        match change:
            case SkillJoins():
                stream.absent -= {change.joins}
                return change.joins, "joins"
            case SkillLeaves():
                stream.absent |= {change.leaves}
                return change.leaves, "leaves"
            case LevelShift():
                stream.shifted[change.skill] = change.levels
                return change.skill, f"now has levels {change.levels}"

    def _change_teacher(self, change: TeacherChange) -> str:
        trainer = self.trainer
        k = next((k for k, teacher in enumerate(trainer.teachers) if teacher.name == change.teacher), None)
        if k is None:  # it is optional, and was down when the stage started
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
        if is_verifier and self.trainer.gate is not None:  # it asks the verifier, and remembers the answers
            for k in range(len(self.trainer.teachers)):
                self.trainer.gate.forget(k)
        return ", ".join(words)

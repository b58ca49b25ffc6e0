"""The trainer's arguments: TRL's `GRPOConfig` and the options of the other signals."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from trl import GRPOConfig

from rld.controllers.retention_rule import RetentionRule
from rld.data.prompt_stream import PromptStream
from rld.errors import DataError, RecipeError
from rld.losses.features import AnyFeature
from rld.types import SIGNALS, Curriculum, Signal
from rld.utils.options import parse_option


@dataclass
class RLDConfig(GRPOConfig):
    """TRL's `GRPOConfig` and the options of the other signals."""

    signals: list[str] | None = field(
        default=None,
        metadata={
            "help": "Signals that take part: policy, response, feature. None: policy, and response with teachers."
        },
    )
    divergence: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Divergence of the response signal: a kind, or a mapping of kind and options. None: jsd."},
    )
    feature: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Loss of the feature signal: a kind, or a mapping of kind and options. None: cosine."},
    )
    combine: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "How several teachers become one target: a kind, or kind and options. None: mixture."},
    )
    token_weights: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "How much each token counts in the response signal: a kind, or kind and options. None: 1."},
    )
    response_temperature: float | None = field(
        default=None,
        metadata={"help": "Temperature of both distributions in the response signal. None: the sampling temperature."},
    )
    response_top_k: int | None = field(
        default=None,
        metadata={"help": "Match the target's likeliest tokens, and all others as one. None: the whole vocabulary."},
    )
    gate: str = field(
        default="skill",
        metadata={
            "help": "`prompt`: a teacher teaches on the prompts that it answers rightly, by a first reward that gives "
            "1 to right answers. `skill`: wherever the controller gives it weight."
        },
    )
    teach_on: str = field(
        default="all",
        metadata={"help": "`failed`: teachers teach on the completions that the first reward doesn't give 1 alone."},
    )
    gold: int = field(
        default=0,
        metadata={"help": "Completions of each prompt that are its gold answer instead of the student's own."},
    )
    teacher_reward: float = field(
        default=0.0,
        metadata={"help": "Weight of the teacher-scored reward on each token's advantage. 0: none."},
    )
    teacher_reward_form: str = field(
        default="additive",
        metadata={"help": "`additive`, or `sign_preserving`, which scales advantages and never turns one round."},
    )
    skills: list[str] | None = field(
        default=None,
        metadata={"help": "Skills in the `skill` column. None: read off the training set."},
    )
    retain: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Options of `RetentionRule`, which protects the skills of `retain_dataset`. None: its defaults."
        },
    )
    audit_share: float = field(
        default=0.1,
        metadata={"help": "Of the completions that the first reward calls right, the share that `trusted` checks."},
    )

    def __post_init__(self) -> None:
        # TRL refuses groups of one, for which it knows no advantages; gold answers are not compared with one another.
        is_alone = self.gold == self.num_generations == 1
        self.num_generations = 2 if is_alone else self.num_generations
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.num_generations = 1 if is_alone else self.num_generations

    def active_signals(self, has_teachers: bool) -> list[Signal]:
        """The signals that take part, in the order of `SIGNALS`.

        Raises:
            RecipeError: a name is no signal, or a signal needs teachers and there are none.
        """
        names = self.signals if self.signals is not None else ["policy", *(["response"] if has_teachers else [])]
        unknown = [name for name in names if name not in SIGNALS]
        if unknown:
            raise RecipeError(f"signals: {unknown[0]!r} is none of {', '.join(SIGNALS)}")
        if not has_teachers and set(names) & {"response", "feature"}:
            raise RecipeError("signals: response and feature need teachers; pass teachers=[...]")
        if not names:
            raise RecipeError(f"signals: name at least one of {', '.join(SIGNALS)}")
        if self.teacher_reward < 0:
            raise RecipeError(f"teacher_reward should be at least 0, not {self.teacher_reward}")
        if self.gate not in ("prompt", "skill"):
            raise RecipeError(f"gate: {self.gate!r} is none of prompt, skill")
        if self.teach_on not in ("all", "failed"):
            raise RecipeError(f"teach_on: {self.teach_on!r} is none of all, failed")
        if self.teacher_reward_form not in ("additive", "sign_preserving"):
            raise RecipeError(f"teacher_reward_form: {self.teacher_reward_form!r} is none of additive, sign_preserving")
        if self.teacher_reward_form == "sign_preserving" and self.teacher_reward > 1:
            raise RecipeError(f"a sign-preserving teacher_reward should be in [0, 1], not {self.teacher_reward}")
        if self.response_temperature is not None and self.response_temperature <= 0:
            raise RecipeError(f"response_temperature should be above 0, not {self.response_temperature}")
        if self.response_top_k is not None and self.response_top_k < 1:
            raise RecipeError(f"response_top_k should be at least 1, not {self.response_top_k}")
        if not 0 < self.audit_share <= 1:
            raise RecipeError(f"audit_share should be above 0 and at most 1, not {self.audit_share}")
        if not 0 <= self.gold <= (self.num_generations or 0):
            raise RecipeError(f"gold should be at least 0 and at most num_generations, not {self.gold}")
        if self.gold == self.num_generations and "policy" in names:
            raise RecipeError("with gold answers alone there are no attempts to reinforce: leave policy out of signals")
        if self.teacher_reward and not (has_teachers and "policy" in names):
            raise RecipeError("teacher_reward shapes the policy signal's advantages: it needs teachers and policy")
        return [signal for signal in SIGNALS if signal in names]

    @property
    def answer_length(self) -> int:
        """Tokens that a greedy answer may take."""
        return self.max_completion_length or 256

    @property
    def prompts_per_rollout(self) -> int:
        """Prompts of one rollout, over all processes."""
        assert self.generation_batch_size is not None  # TRL sets it
        assert self.num_generations is not None
        return self.generation_batch_size // self.num_generations

    @property
    def updates_per_rollout(self) -> float:
        """Optimiser steps that one rollout serves."""
        assert self.steps_per_generation is not None  # TRL sets it
        return self.steps_per_generation * self.num_iterations / self.gradient_accumulation_steps

    def num_updates(self, num_rows: int) -> int:
        """Optimiser steps: `max_steps`, or what the epochs over `num_rows` prompts come to."""
        if self.max_steps > 0:
            return self.max_steps
        num_rollouts = math.ceil(self.num_train_epochs * num_rows / self.prompts_per_rollout)
        return math.ceil(num_rollouts * self.updates_per_rollout)

    def num_prompts(self) -> int:
        """Prompts that `max_steps` updates ask for at most; a data loader looks ahead, and no epoch should end."""
        return (math.ceil(self.max_steps / self.updates_per_rollout) + 2) * self.prompts_per_rollout

    def stream(self, rows: Any, curriculum: Curriculum | None) -> PromptStream | None:
        """The prompts as a curriculum picks them, and these arguments made to fit; None for rows in TRL's order.

        Raises:
            DataError: a curriculum without a data set of rows, or with workers.
        """
        if curriculum is not None:
            if not isinstance(rows, Dataset):
                raise DataError("a curriculum picks rows by skill and level, so train_dataset must be a Dataset")
            self.max_steps = self.num_updates(len(rows))
            rows = PromptStream.over(rows, curriculum, self.seed, self.num_prompts())
        if not isinstance(rows, PromptStream):
            return None
        if self.dataloader_num_workers:
            raise DataError("a curriculum needs dataloader_num_workers=0: a worker's copy of it would learn nothing")
        rows.together = self.prompts_per_rollout
        self.shuffle_dataset = False  # the curriculum orders the prompts
        return rows

    def retention(self) -> RetentionRule:
        """The rule that `retain` describes."""
        rule: RetentionRule = parse_option("retain", RetentionRule, self.retain or {})
        return rule

    def feature_model(self) -> AnyFeature:
        """The feature loss that `feature` names."""
        feature: AnyFeature = parse_option("feature", AnyFeature, self.feature or "cosine")
        return feature

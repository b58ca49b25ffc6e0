"""The trainer's arguments: TRL's `GRPOConfig` and the options of the other signals."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from rld.controllers.retention_rule import RetentionRule
from rld.errors import RecipeError
from rld.losses.features import AnyFeature
from rld.trainer.label_options import take_labels
from rld.trainer.option_checks import require, require_choice, require_gold_options
from rld.types import SIGNALS, Signal
from rld.utils.label_words import LabelWords
from rld.utils.options import parse_option

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")
"""The policy losses of TRL's `GRPOTrainer`."""

OF_VLLM = {
    "n": "num_generations says how many completions a prompt has",
    "seed": "each rollout, or each completion, would draw the same random numbers",
    "logprobs": "its correction reads the log-probability of the sampled token alone",
    "temperature": "the losses are computed at the trainer's temperature; set that one",
    "max_tokens": "set max_completion_length",
    "stop_token_ids": "completions end where all readers of the prompts end them",
    "ignore_eos": "completions end where all readers of the prompts end them",
}
"""Options of vLLM's `SamplingParams` that `generation_kwargs` may not set, and why."""


@dataclass
class RLDConfig(GRPOConfig):
    """TRL's `GRPOConfig` and the options of the other signals."""

    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Whether a loss that is not finite is left out of the log; such an update stops the run."},
    )
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
    combine_teachers: dict[str, Any] | str | None = field(
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
        default="per_prompt",
        metadata={
            "help": "`per_prompt`: a teacher teaches on the prompts that it answers correctly, as judged by a first "
            "reward that gives 1 to correct answers. `off`, and without such a reward: wherever the controller gives "
            "it weight."
        },
    )
    distill_on: str = field(
        default="all",
        metadata={"help": "`all` completions, or `failed_completions`: the first reward does not give them 1."},
    )
    strip_thinking: bool = field(
        default=False,
        metadata={"help": "Whether rewards, the gate and probes read answers without their thinking part."},
    )
    thinking_markers: list[str] | None = field(
        default=None,
        metadata={"help": "What opens and what closes a thinking part. None: what the chat template has for it."},
    )
    gold_completions: int = field(
        default=0,
        metadata={"help": "Completions of each prompt that are its gold answer instead of the student's own."},
    )
    refill: int = field(
        default=0,
        metadata={
            "help": "How often a prompt is replaced whose completions all got the same reward; needs a curriculum."
        },
    )
    labels: dict[str, list[str]] | None = field(
        default=None,
        metadata={
            "help": "Words of the labels of each skill, in place of sampled completions: those of a prompt are its "
            "labels, and the response signal matches the teachers' distribution over them. num_generations is their "
            "number, with that of `synonyms`. None: completions are sampled."
        },
    )
    synonyms: dict[str, list[list[str]]] | None = field(
        default=None,
        metadata={
            "help": "Of skills with `labels`, further words of each label, in their order, which only teachers are "
            "asked for: a teacher's score of a label is the mean over all of its words."
        },
    )
    label_calibration: str = field(
        default="none",
        metadata={
            "help": "Correction of teachers' distributions over labels: none, length, content_free, prior_matching."
        },
    )
    content_free_prompts: dict[str, list[Any]] | None = field(
        default=None,
        metadata={"help": "Prompts without content of each skill, which `label_calibration: content_free` needs."},
    )
    gold_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the cross-entropy of gold answers beside the signals, per token of the update. Without "
            "gold_completions some prompts have their gold answer alone. 0: it is not learnt."
        },
    )
    gold_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of the prompts that have their gold answer alone. None: the controller sets it, to 31/32 "
            "while the gold answers are new."
        },
    )
    gold_answers: str = field(
        default="rows",
        metadata={
            "help": "Whose answers such prompts have: those of the `rows`; greedy ones of the `teachers` to which the "
            "first reward, or the audit's, gives 1; or `either`: those of teachers on skills whose rows have no "
            "answers, or bare results."
        },
    )
    teacher_reward: float = field(
        default=0.0,
        metadata={"help": "Weight of the teacher-scored reward on each token's advantage. 0: none."},
    )
    teacher_reward_form: str = field(
        default="additive",
        metadata={"help": "`additive`, or `sign_preserving`, which scales advantages and keeps their signs."},
    )
    skills: list[str] | None = field(
        default=None,
        metadata={"help": "Skills in the `skill` column. None: those of the training set."},
    )
    retain: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Options of `RetentionRule`, which protects the skills of `retain_dataset`. None: its defaults."
        },
    )
    audit_share: float = field(
        default=0.1,
        metadata={"help": "Share of the completions that the first reward gives 1 which `audit_reward` checks."},
    )

    def __post_init__(self) -> None:
        if self.labels:
            take_labels(self)
        # TRL refuses groups of one, for which it knows no advantages; gold answers are not compared with one another.
        is_alone = self.gold_completions == self.num_generations == 1
        self.num_generations = 2 if is_alone else self.num_generations
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.num_generations = 1 if is_alone else self.num_generations
        self._check_signals()
        require_gold_options(self)
        require_choice("loss_type", self.loss_type, LOSS_TYPES)  # TRL refuses another one at the first loss only
        if self.thinking_markers is not None and len(list(filter(None, self.thinking_markers))) != 2:
            raise RecipeError("thinking_markers: a list of the marker that opens a thinking part and that which closes")
        require_choice("gate", self.gate, ("per_prompt", "off"))
        require_choice("distill_on", self.distill_on, ("all", "failed_completions"))
        require_choice("teacher_reward_form", self.teacher_reward_form, ("additive", "sign_preserving"))
        require("teacher_reward", self.teacher_reward, self.teacher_reward >= 0, "at least 0")
        if self.teacher_reward_form == "sign_preserving":
            require("a sign-preserving teacher_reward", self.teacher_reward, self.teacher_reward <= 1, "in [0, 1]")
        if self.response_temperature is not None:
            require("response_temperature", self.response_temperature, self.response_temperature > 0, "above 0")
        if self.response_top_k is not None:
            require("response_top_k", self.response_top_k, self.response_top_k >= 1, "at least 1")
        if self.use_vllm:
            self._check_vllm()
        require("audit_share", self.audit_share, 0 < self.audit_share <= 1, "above 0 and at most 1")

    def _check_signals(self) -> None:
        if self.signals is None:
            return
        if not self.signals:
            raise RecipeError(f"signals: name at least one of {', '.join(SIGNALS)}")
        for name in self.signals:
            require_choice("signals", name, SIGNALS)

    def _check_vllm(self) -> None:
        if self.refill:
            raise RecipeError("refill: it samples completions by transformers, and use_vllm by vLLM; leave one out")
        if self.gold_completions == self.num_generations:
            raise RecipeError("use_vllm: all completions are gold answers, and nothing is sampled; leave it out")
        for name in sorted(set(self.generation_kwargs or ()) & OF_VLLM.keys()):
            raise RecipeError(f"generation_kwargs: vLLM should not get {name!r}: {OF_VLLM[name]}")
        length, longest = self.vllm_max_model_length, self.answer_length
        if length is not None and length <= longest:
            raise RecipeError(
                f"vllm_max_model_length: a prompt and a completion of up to {longest} tokens do not fit into {length}"
            )
        if self.loss_type == "vespo" and self.vllm_importance_sampling_correction:
            require_choice(
                "vllm_importance_sampling_mode", self.vllm_importance_sampling_mode, ("token_truncate", "token_mask")
            )

    @classmethod
    def for_model(cls, model: Any) -> RLDConfig:
        """Return the defaults, with an output folder that is called after a model or its name."""
        name = model if isinstance(model, str) else model.config._name_or_path
        return cls(f"{name.rstrip('/').split('/')[-1] or 'student'}-RLD")

    def with_unpaid(self, num_unpaid: int, num_rewards: int) -> RLDConfig:
        """Return these arguments for rewards of which the first `num_unpaid` have weight 0."""
        if not num_unpaid:
            return self
        changed = copy.copy(self)
        weights = self.reward_weights or [1.0] * (num_rewards - num_unpaid)
        changed.reward_weights = [*[0.0] * num_unpaid, *weights]
        return changed

    def active_signals(self, has_teachers: bool) -> list[Signal]:
        """Return the signals that take part, in the order of `SIGNALS`.

        Raises:
            RecipeError: an option needs teachers and there are none.
        """
        names = self.signals if self.signals is not None else ["policy", *(["response"] if has_teachers else [])]
        if not has_teachers and set(names) & {"response", "feature"}:
            raise RecipeError("signals: response and feature need teachers; pass teachers=[...]")
        if self.teacher_reward and not (has_teachers and "policy" in names):
            raise RecipeError("teacher_reward shapes the policy signal's advantages: it needs teachers and policy")
        return [signal for signal in SIGNALS if signal in names]

    @property
    def has_gold_prompts(self) -> bool:
        """Whether some prompts have their gold answer alone, and others sampled completions."""
        return self.gold_weight > 0 and not self.gold_completions and not self.labels

    @property
    def label_words(self) -> dict[str, LabelWords]:
        """The words of each skill's labels with their synonyms; empty where completions are sampled."""
        synonyms = self.synonyms or {}
        return {skill: LabelWords(words, synonyms.get(skill, ())) for skill, words in (self.labels or {}).items()}

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
        return self.micro_batches_per_rollout / self.gradient_accumulation_steps

    @property
    def micro_batches_per_rollout(self) -> int:
        """Micro-batches that one rollout serves; with `num_iterations` each of them counts as often."""
        assert self.steps_per_generation is not None  # TRL sets it
        return self.steps_per_generation * self.num_iterations

    def num_updates(self, num_rows: int) -> int:
        """Optimiser steps: `max_steps`, or what the epochs over `num_rows` prompts come to."""
        if self.max_steps > 0:
            return self.max_steps
        num_rollouts = math.ceil(self.num_train_epochs * num_rows / self.prompts_per_rollout)
        return math.ceil(num_rollouts * self.updates_per_rollout)

    def num_prompts(self) -> int:
        """Prompts that `max_steps` updates ask for at most; a data loader looks ahead, and no epoch should end."""
        return (math.ceil(self.max_steps / self.updates_per_rollout) + 2) * self.prompts_per_rollout

    def retention(self) -> RetentionRule:
        """The rule that `retain` describes."""
        rule: RetentionRule = parse_option("retain", RetentionRule, self.retain or {})
        return rule

    def feature_model(self) -> AnyFeature:
        """The feature loss that `feature` names."""
        feature: AnyFeature = parse_option("feature", AnyFeature, self.feature or "cosine")
        return feature

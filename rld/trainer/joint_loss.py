"""The terms of the loss beside the policy's, the policy's advantages, and measurements of them for the controller.

It works on micro-batches: parts of the dictionary that TRL makes of a rollout, with the teachers' outputs in it.

Shapes: B completions, T completion tokens, H width, K teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from rld.controllers.observation import GradientStats
from rld.controllers.runtime import ControllerRuntime
from rld.controllers.statistics import AttemptCounts, GateCounts, UpdateStatistics
from rld.errors import RecipeError
from rld.losses.features import AnyFeature
from rld.losses.objective import ResponseObjective
from rld.losses.policy import (
    sign_preserving_advantages,
    sum_over_teachers,
    teacher_advantages,
    teacher_delta,
    weighted_sum,
)
from rld.losses.response import ResponseSettings
from rld.rollout.batch import RolloutBatch, gold_tokens, loss_mask, response_mask, signal_weight, taught_share
from rld.teachers.ensemble import TeacherEnsemble
from rld.trainer.gradient_probe import GradientProbe
from rld.trainer.label_loss import LabelTerms, label_counts, label_terms
from rld.trainer.rld_config import RLDConfig
from rld.trainer.student_forward import RecordingStudent, StudentInputs, StudentOutput
from rld.types import Align, Signal


class SignalTerm(NamedTuple):
    """What one signal adds to a micro-batch's loss."""

    total: Tensor
    """`[]`, the weighted sum over tokens, through which the gradient flows."""
    values_BT: Tensor
    """The unweighted values per token, without gradient."""
    mask_BT: Tensor
    """The tokens that its logged mean is over."""
    num_tokens: Tensor
    """`[]`, the tokens of the rollout that the loss is a mean over, over all processes."""


class JointLoss:
    """Computes all terms but the policy's, and the policy's advantages, and measures them for the controller.

    Args:
        args: The signals' options.
        ensemble: Gives the teachers' outputs for a micro-batch.
        runtime: Says when to measure gradients, and has the running root mean square of delta.
        feature: The feature loss. None: the feature signal is off.
        gradient_probe: Measures directions of gradients. None: the controller does not require them.

    Raises:
        RecipeError: an option of the response signal does not exist, or does not fit the teachers.
    """

    def __init__(
        self,
        args: RLDConfig,
        ensemble: TeacherEnsemble,
        runtime: ControllerRuntime,
        *,
        feature: AnyFeature | None,
        gradient_probe: GradientProbe | None,
    ) -> None:
        self.args, self.ensemble, self.runtime = args, ensemble, runtime
        self.feature, self.gradient_probe = feature, gradient_probe
        self.objective = ResponseObjective.from_config(args)
        self._check_options([teacher.align for teacher in ensemble.teachers])
        self.statistics = self._zero_statistics()
        self._clear_label_counts()

    def _check_options(self, align: Sequence[Align | None]) -> None:
        """Refuse options of the response signal that a teacher can't fulfil."""
        rule, weights, temperature = self.objective.combination, self.objective.token_weights, self.args.temperature
        if self.args.labels and getattr(self.runtime.controller, "softens", False):
            raise RecipeError(
                "capacity: {act: soften} softens distributions over tokens, and completions here are the labels of "
                "their prompt; use act: report or reinforce"
            )
        if self.args.labels:  # whose distributions any teacher has, at any temperature
            return
        if self.objective.temperature != temperature and any(teacher.source for teacher in self.ensemble.teachers):
            raise RecipeError(
                f"response temperature: {self.objective.temperature} is not the rollout's, {temperature}, and a "
                "teacher that hands over its likeliest tokens does so at one temperature; leave it out"
            )
        if rule.needs_one_vocabulary and any(align) and len(align) > 1:
            raise RecipeError(
                f"combine_teachers: {rule.kind} compares the teachers' probabilities token by token, and a teacher "
                "with another tokenizer (align) has other tokens; use mixture, sum, route or best_of"
            )
        if weights is not None and "likelihood" in align:
            raise RecipeError(
                f"tokens: {weights.kind} needs distributions, and a teacher with align: likelihood has none; "
                "use align: vocabulary"
            )

    def _zero_statistics(self) -> UpdateStatistics:
        return UpdateStatistics.zeros(len(self.runtime.skills), len(self.runtime.teachers), self.args.device)

    def take_statistics(self) -> UpdateStatistics:
        """This process's sums since the last call."""
        statistics, self.statistics = self.statistics, self._zero_statistics()
        return statistics

    def _clear_label_counts(self) -> None:
        num_skills, device = len(self.runtime.skills), self.args.device
        self._attempts = AttemptCounts.zeros(num_skills, 0, device)
        self._gate_counts = GateCounts.zeros(num_skills, len(self.runtime.teachers), device)

    def take_label_counts(self, accelerator: Accelerator) -> tuple[AttemptCounts, GateCounts]:
        """What student and teachers predicted of gold labels since the last call, over all processes."""
        counts = self._attempts.reduced(accelerator), self._gate_counts.reduced(accelerator)
        self._clear_label_counts()
        return counts

    def non_finite_divergences(self) -> list[str]:
        """Return the names of the divergences whose sums since the last `take_statistics` are not finite."""
        finite_K = self.statistics.divergence_SK.isfinite().all(0).tolist()
        return [f"divergence/{t.name}" for t, ok in zip(self.ensemble.teachers, finite_K, strict=True) if not ok]

    def take_gradient_stats(self) -> tuple[dict[str, GradientStats], int]:
        """`GradientProbe.take_gradient_stats`; without a probe, no statistics and 0 tokens."""
        return ({}, 0) if self.gradient_probe is None else self.gradient_probe.take_gradient_stats()

    def mark_gold(self, batch: RolloutBatch, is_gold_B: Tensor, accelerator: Accelerator) -> None:
        """Add to a rollout which completions are learnt as gold answers, and its tokens over all processes."""
        batch["is_gold"] = is_gold_B.to(accelerator.device)
        batch["num_gold"] = accelerator.reduce(loss_mask(batch).sum(), reduction="sum")

    def count(self, batch: RolloutBatch, num_computed: int, num_padding: int) -> None:
        """Count a micro-batch's completion tokens, and the tokens that went through the student's backbone."""
        num_gold = gold_tokens(batch, num_computed, num_padding) if "is_gold" in batch else 0
        sizes = {"num_computed": num_computed, "num_padding": num_padding, "num_gold": num_gold}
        self.statistics.add_tokens(batch["skill_ids"], loss_mask(batch), **sizes)

    def inputs(self, batch: RolloutBatch, progress: float) -> StudentInputs:
        """What the student's forward needs for the response and feature signals.

        Args:
            batch: The micro-batch.
            progress: The point of training, from 0 at its start to 1 at its end.
        """
        response = None
        if batch["response_on"]:
            objective, weight_B = self.objective.at(progress), signal_weight(batch, "response")
            share_S, over_labels = self.runtime.teacher_share_S, bool(self.args.labels)
            share_B = None if share_S is None else share_S.to(weight_B)[batch["skill_ids"]]
            response = ResponseSettings(
                objective,
                weight_B,
                self.args.temperature,
                trains_sampled=self.runtime.is_active("policy") or "is_gold" in batch,
                over_labels=over_labels,
                teacher_share_B=share_B,
            )
        feature = self.feature if batch["feature_on"] else None
        return StudentInputs(
            loss_mask(batch), self.ensemble.outputs(batch), batch["teacher_weights"], response, feature
        )

    def advantages(self, batch: RolloutBatch, log_pi_BT: Tensor, training: bool) -> Tensor:
        """The policy's advantages, `[B]` or `[B, T]`: with the teacher-scored reward, times the policy's weight.

        Args:
            batch: The micro-batch, with GRPO's advantages.
            log_pi_BT: The student's log-probabilities of the sampled tokens, without gradient.
            training: Whether to add to the controller's statistics.
        """
        advantages = batch["advantages"]
        policy_B = signal_weight(batch, "policy")
        if self.args.teacher_reward and "teacher_scores" in batch:
            advantages = self._with_teacher_reward(batch, log_pi_BT, training)
        if bool((policy_B != 1).any()):
            advantages = advantages * (policy_B if advantages.dim() == 1 else policy_B[:, None])
        return advantages

    def _with_teacher_reward(self, batch: RolloutBatch, log_pi_BT: Tensor, training: bool) -> Tensor:
        log_old_BT = batch.get("old_per_token_logps", log_pi_BT)
        delta_BT, share_BT = teacher_delta(
            batch["teacher_scores"], batch["teacher_spans"], log_old_BT, batch["teacher_weights"]
        )
        taught_BT, weight = share_BT > 0, self.args.teacher_reward
        if training:
            self.statistics.add_delta(batch["skill_ids"], delta_BT, loss_mask(batch), taught_BT)
        if self.args.teacher_reward_form == "sign_preserving":
            return sign_preserving_advantages(batch["advantages"], delta_BT, weight, taught_BT)
        spread_B = self.runtime.delta_rms_S().to(delta_BT.device)[batch["skill_ids"]]
        return teacher_advantages(batch["advantages"], delta_BT, spread_B, weight, taught_BT)

    def terms(
        self, batch: RolloutBatch, recorded: RecordingStudent, training: bool, is_first_pass: bool
    ) -> dict[str, SignalTerm]:
        """The terms of the response and feature signals and of gold answers, of those that are on, by name.

        Args:
            batch: The micro-batch.
            recorded: The student that was called with `inputs(batch)`.
            training: Whether to add to the controller's statistics.
            is_first_pass: Whether the rollout's completions are learnt from for the first time.
        """
        terms: dict[str, SignalTerm] = {}
        labels = self._label_terms(batch, recorded, training and is_first_pass) if self.args.labels else None
        if self.ensemble.teachers:
            terms |= {str(name): term for name, term in self._teacher_terms(batch, recorded, labels, training).items()}
        if "is_gold" in batch:
            terms["gold"] = self._gold_term(batch)
        elif labels is not None and self.args.gold_weight:
            mask_BT, loss_BT = response_mask(batch) & (batch["gold_ids"] >= 0)[:, None], labels.gold_loss_BT
            total = self.args.gold_weight * loss_BT.sum()
            terms["gold"] = SignalTerm(total, loss_BT.detach(), mask_BT, batch["num_gold"])
        return terms

    def _label_terms(self, batch: RolloutBatch, recorded: RecordingStudent, counts: bool) -> LabelTerms:
        """The terms over labels; with `counts`, once in a rollout, what they show of gold labels is counted."""
        assert recorded.signals is not None
        labels = label_terms(batch, recorded.signals.response)
        if counts:
            attempts, gate = label_counts(batch, labels.scores_B, len(self.runtime.skills))
            self._attempts, self._gate_counts = self._attempts + attempts, self._gate_counts + gate
        return labels

    def _gold_term(self, batch: RolloutBatch) -> SignalTerm:
        """Cross-entropy of the tokens of gold completions, `-log pi` in nats."""
        mask_BT = loss_mask(batch).bool() & batch["is_gold"][:, None]
        values_BT = -batch["log_pi"].masked_fill(~mask_BT, 0.0)
        return SignalTerm(self.args.gold_weight * values_BT.sum(), values_BT.detach(), mask_BT, batch["num_gold"])

    def _teacher_terms(
        self, batch: RolloutBatch, recorded: RecordingStudent, labels: LabelTerms | None, training: bool
    ) -> dict[Signal, SignalTerm]:
        out = recorded.result
        if labels is not None and batch["response_on"]:
            out.response_loss, out.target_divergence = labels.response_loss, labels.target_divergence_BT
            out.teacher_divergence = labels.teacher_divergence_BKT
        if training:
            self.statistics.add_divergences(
                batch["skill_ids"],
                response_mask(batch),
                batch["teacher_tokens"],
                out.teacher_divergence,
                out.feature_distance,
            )
        return _signal_terms(batch, out)

    def per_update(self, num_tokens: Tensor, num_processes: int, num_parts: int | None) -> Tensor:
        """Return the tokens of an update over all processes, per process (as TRL's DAPO).

        Args:
            num_tokens: Those of the rollout, over all processes.
            num_processes: The number of processes.
            num_parts: Micro-batches of this update. None: it is an evaluation.
        """
        count: Tensor = num_tokens.clamp(min=1.0) / num_processes
        if num_parts is None:
            return count
        assert self.args.steps_per_generation is not None  # TRL sets it
        return count * num_parts / self.args.steps_per_generation

    def measures(self, training: bool) -> bool:
        """Whether to call `measure_gradients` in the student's forward."""
        return training and bool(self.ensemble.teachers) and self.runtime.measures_gradients

    def measure_gradients(
        self, batch: RolloutBatch, inputs: StudentInputs, output: StudentOutput, hidden_BTH: Tensor
    ) -> None:
        """Measure each signal's gradient with respect to the student's last hidden states, inside its forward.

        Args:
            batch: The micro-batch, without what depends on the student's log-probabilities.
            inputs: What the student was called with.
            output: Its output.
            hidden_BTH: Its last states, as its head saw them.
        """
        assert output.log_probs is not None
        mask_BT = loss_mask(batch)
        batch = cast(RolloutBatch, {**batch, "log_pi": output.log_probs[:, -mask_BT.shape[1] :]})
        advantages = self.advantages(batch, batch["log_pi"].detach(), training=False).reshape(len(mask_BT), -1)
        if self.args.labels and inputs.response is not None:
            labels = label_terms(batch, inputs.response)
            output = replace(output, response_loss=labels.response_loss, target_divergence=labels.target_divergence_BT)
        with torch.autocast(hidden_BTH.device.type, enabled=False):  # as in any backward pass
            self._measure_policy(batch, advantages, hidden_BTH)
            taught_BT = mask_BT * (taught_share(batch) > 0)
            for signal, term in _signal_terms(batch, output).items():
                loss_BT = response_mask(batch) * taught_BT
                self._measure(signal, term.total, hidden_BTH, batch=batch, loss_BT=loss_BT, has_gradient_BT=taught_BT)

    def _measure_policy(self, batch: RolloutBatch, advantages: Tensor, hidden_BTH: Tensor) -> None:
        mask_BT = loss_mask(batch)
        ones_B = torch.ones_like(signal_weight(batch, "policy"))  # its weight is in the advantages
        total = weighted_sum(-advantages * batch["log_pi"], ones_B, mask_BT)
        has_gradient_BT = mask_BT * (advantages != 0)
        self._measure("policy", total, hidden_BTH, batch=batch, loss_BT=mask_BT, has_gradient_BT=has_gradient_BT)

    def _measure(
        self,
        signal: Signal,
        total: Tensor,
        hidden_BTH: Tensor,
        *,
        batch: RolloutBatch,
        loss_BT: Tensor,
        has_gradient_BT: Tensor,
    ) -> None:
        """Measure a signal's gradient with respect to the last hidden states; its loss is a mean over `loss_BT`."""
        weight_B = signal_weight(batch, signal)
        gradient_BTH = self.statistics.add_gradient(signal, total, hidden_BTH, weight_B, has_gradient_BT)
        if self.gradient_probe is not None:
            counts_BT = loss_BT * (weight_B > 0)[:, None]
            self.gradient_probe.add(signal, batch, hidden_BTH.detach(), gradient_BTH=gradient_BTH, counts_BT=counts_BT)


def _signal_terms(batch: RolloutBatch, out: StudentOutput) -> dict[Signal, SignalTerm]:
    """Return the terms of the response and feature signals of a forward's output, of those that are on."""
    mask_BT, num_taught = response_mask(batch), batch["num_taught"]
    terms: dict[Signal, SignalTerm] = {}
    if out.response_loss is not None and out.target_divergence is not None:
        terms["response"] = SignalTerm(out.response_loss, out.target_divergence, mask_BT, num_taught)
    if out.feature_distance is not None:
        distance_BT = sum_over_teachers(out.feature_distance, batch["teacher_weights"])
        total = weighted_sum(distance_BT, signal_weight(batch, "feature"), mask_BT)
        terms["feature"] = SignalTerm(total, distance_BT.detach(), mask_BT, num_taught)
    return terms

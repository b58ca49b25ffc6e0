"""The terms that join the policy's loss, and what the controller gets to know about them.

Works on a micro-batch: the dictionary that TRL makes of a rollout, with what the teachers said in it.

Shapes: B completions, T completion tokens, H width, K teachers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rld.controllers.observation import GradientStats
from rld.controllers.runtime import ControllerRuntime
from rld.controllers.statistics import UpdateStatistics
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
from rld.rollout.batch import RolloutBatch, loss_mask, signal_weight, taught_share
from rld.teachers.ensemble import TeacherEnsemble
from rld.trainer.gradient_probe import GradientProbe
from rld.trainer.rld_config import RLDConfig
from rld.trainer.student_forward import RecordingStudent, StudentInputs
from rld.types import Align, Signal


class JointLoss:
    """Computes the response and feature terms and the policy's advantages, and measures them for the controller."""

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
        self._require_a_fit([teacher.align for teacher in ensemble.teachers])
        self.statistics = self._empty()

    def _require_a_fit(self, align: Sequence[Align | None]) -> None:
        """Refuse options that would be without effect.

        Raises:
            RecipeError: a combination or token weights that a teacher with another tokenizer can't take part in.
        """
        rule, weights, rollout_temperature = (
            self.objective.combination,
            self.objective.token_weights,
            self.args.temperature,
        )
        lists_tokens = any(teacher.lister for teacher in self.ensemble.teachers)
        if lists_tokens and self.objective.temperature != rollout_temperature:
            raise RecipeError(
                f"response temperature: {self.objective.temperature} is not the rollout's, {rollout_temperature}, and "
                "a teacher that hands over its likeliest tokens does so at one temperature; leave it out"
            )
        if rule.needs_one_vocabulary and any(align) and len(align) > 1:
            raise RecipeError(
                f"combine: {rule.kind} lays the teachers' distributions side by side, which those with another "
                "tokenizer (align) don't allow; use mixture, sum, route or best_of"
            )
        if weights is not None and "likelihood" in align:
            raise RecipeError(
                f"tokens: {weights.kind} weighs distributions, and a teacher with align: likelihood gives none; "
                "use align: vocabulary"
            )

    def _empty(self) -> UpdateStatistics:
        return UpdateStatistics.zeros(len(self.runtime.skills), len(self.runtime.teachers), self.args.device)

    def take_statistics(self) -> UpdateStatistics:
        """The measurements since the last call."""
        statistics, self.statistics = self.statistics, self._empty()
        return statistics

    def take_gradient_stats(self) -> tuple[dict[str, GradientStats], int]:
        """`GradientProbe.take_gradient_stats`; without a probe, no statistics and 0 tokens."""
        return ({}, 0) if self.gradient_probe is None else self.gradient_probe.take_gradient_stats()

    def count(self, batch: RolloutBatch, num_computed: int) -> None:
        """Count a micro-batch's tokens, and those that the student computed for them."""
        self.statistics.add_tokens(batch["skill_ids"], loss_mask(batch), num_computed)

    def inputs(self, batch: RolloutBatch, progress: float) -> StudentInputs:
        """What the student's forward needs, at a point of training from 0 to 1."""
        response = None
        if batch["response_on"]:
            objective, weight_B = self.objective.at(progress), signal_weight(batch, "response")
            response = ResponseSettings(objective, weight_B, self.args.temperature)
        feature = self.feature if batch["feature_on"] else None
        return StudentInputs(
            loss_mask(batch), self.ensemble.outputs(batch), batch["teacher_weights"], response, feature
        )

    def advantages(self, batch: RolloutBatch, log_pi_BT: Tensor, training: bool) -> Tensor:
        """The policy's advantages: the teacher-scored reward added, times the skill's policy weight."""
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
        self, batch: RolloutBatch, recorded: RecordingStudent, training: bool
    ) -> dict[Signal, tuple[Tensor, Tensor]]:
        """Weighted sums over tokens of the response and feature signals, each with its values per token `[B, T]`."""
        out, mask_BT = recorded.result, loss_mask(batch)
        terms: dict[Signal, tuple[Tensor, Tensor]] = {}
        if out.response_loss is not None and out.target_divergence is not None:
            terms["response"] = out.response_loss, out.target_divergence
        if out.feature_distance is not None:
            distance_BT = sum_over_teachers(out.feature_distance, batch["teacher_weights"])
            total = weighted_sum(distance_BT, signal_weight(batch, "feature"), mask_BT)
            terms["feature"] = total, distance_BT.detach()
        if training:
            tokens_BKT = batch["teacher_tokens"]
            self.statistics.add_divergences(
                batch["skill_ids"], mask_BT, tokens_BKT, out.teacher_divergence, out.feature_distance
            )
            if self.runtime.measures_gradients:
                assert recorded.last_hidden_states is not None
                self._measure_gradients(batch, recorded.last_hidden_states, terms)
        return terms

    def _measure_gradients(
        self, batch: RolloutBatch, hidden_BTH: Tensor, terms: dict[Signal, tuple[Tensor, Tensor]]
    ) -> None:
        mask_BT = loss_mask(batch)
        advantages = batch["advantages"].reshape(len(mask_BT), -1)  # the policy's weight is in them
        policy = weighted_sum(-advantages * batch["log_pi"], torch.ones_like(signal_weight(batch, "policy")), mask_BT)
        self._measure("policy", policy, hidden_BTH, batch, mask_BT, mask_BT * (advantages != 0))
        taught_BT = mask_BT * (taught_share(batch) > 0)
        for signal, (total, _) in terms.items():
            self._measure(signal, total, hidden_BTH, batch, taught_BT, taught_BT)

    def _measure(
        self,
        signal: Signal,
        total: Tensor,
        hidden_BTH: Tensor,
        batch: RolloutBatch,
        loss_BT: Tensor,
        informative_BT: Tensor,
    ) -> None:
        """Measure a signal's gradient at the tokens that have one; its loss is a mean over those of `loss_BT`."""
        weight_B = signal_weight(batch, signal)
        gradient_BTH = self.statistics.add_gradient(signal, total, hidden_BTH, weight_B, informative_BT)
        if self.gradient_probe is not None:
            counts_BT = loss_BT * (weight_B > 0)[:, None]
            self.gradient_probe.add(signal, batch, hidden_BTH.detach(), gradient_BTH=gradient_BTH, counts_BT=counts_BT)

"""The response signal of a micro-batch: the divergence from the teachers, and log-probabilities of sampled tokens.

If the student's head works in float32, one pass over the vocabulary computes both at the tokens where a teacher is
valid. In half precision, and at all other tokens, TRL's fused head computes the log-probabilities of sampled tokens:
they are compared with those computed after the rollout, so they must be rounded in the same way.

Shapes: B completions, T completion tokens, H width, V vocabulary, N tokens of the micro-batch where a teacher is valid,
K teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rld.losses.cross_tokenizer import span_divergences
from rld.losses.fused_response import PerTokenStats, SampledTokens, fused_response_loss
from rld.losses.objective import ResponseObjective
from rld.losses.teacher_distribution import FullDistribution, TeacherDistribution, TopKDistribution
from rld.losses.teacher_outputs import TeacherOutputs
from rld.models.heads import FusedCausalLMOutput, LMHead

_IGNORED = -100
"""The label that TRL's fused head skips."""


@dataclass(frozen=True)
class ResponseSettings:
    """How the response signal is computed for a micro-batch."""

    objective: ResponseObjective
    weight_B: Tensor
    """Weight of the signal on each completion."""
    sampling_temperature: float | None = None
    """Temperature of the rollout. None: log-probabilities of sampled tokens are not needed."""
    trains_sampled: bool = True
    """Whether a gradient through the log-probabilities of sampled tokens is expected."""
    over_labels: bool = False
    """Whether distributions are those over the labels of a prompt (`losses/labels.py`), not over the next token."""
    teacher_share_B: Tensor | None = None
    """Share of the teachers in each completion's softened target, in (0, 1]. None: no target is softened."""


class ResponseTerms(NamedTuple):
    """The response signal's loss and divergences, in nats."""

    loss: Tensor
    """`[]`, the weighted sum over tokens, through which the gradient flows."""
    target_divergence_BT: Tensor
    """Divergence from the teachers' target, without gradient and without the signal's weight."""
    teacher_divergence_BKT: Tensor
    """Divergence from each teacher, without gradient."""


class ResponseLoss:
    """Computes the response signal in one forward of the student.

    Args:
        settings: Objective, weights and temperature of the rollout.
        head: The student's output head.
        teachers: The outputs of each teacher for these completions.
        shares_BK: Weight of each teacher on each completion.
        mask_BT: Completion tokens that count.
    """

    def __init__(
        self,
        settings: ResponseSettings,
        head: LMHead,
        teachers: Sequence[TeacherOutputs],
        *,
        shares_BK: Tensor,
        mask_BT: Tensor,
    ) -> None:
        self.settings, self.head, self.teachers = settings, head, teachers
        self.shares_BK, self.mask_BT = shares_BK, mask_BT
        self._with_distribution = [k for k, t in enumerate(teachers) if t.was_run and t.align != "likelihood"]
        self._with_spans = [k for k, t in enumerate(teachers) if t.was_run and t.align == "likelihood"]
        taught_BT = torch.zeros_like(mask_BT, dtype=torch.bool)
        for k in self._with_distribution:
            taught_BT = taught_BT | teachers[k].valid_BT
        self.valid_BT = mask_BT.bool() & taught_BT
        self.vocabulary = min([len(head.weight), *self._teacher_vocabularies()])
        is_float32 = head.weight.dtype == torch.float32 and not torch.is_autocast_enabled(head.weight.device.type)
        scores_sampled = is_float32 and self.vocabulary == len(head.weight)
        self._sampling_temperature = settings.sampling_temperature if scores_sampled else None

    def _teacher_vocabularies(self) -> list[int]:
        """Sizes of the heads that share the student's token ids; padded vocabularies of one tokenizer may differ."""
        teachers = [self.teachers[k] for k in self._with_distribution]
        heads = [teacher.head for teacher in teachers if teacher.shared_ids is None and teacher.top_k is None]
        return [len(head.weight) for head in heads if head is not None]

    def labels_for_trl(self, labels_BT: Tensor) -> Tensor:
        """The sampled tokens, with `-100` in place of those whose log-probability this loss computes."""
        return labels_BT if self._sampling_temperature is None else labels_BT.masked_fill(self.valid_BT, _IGNORED)

    def compute(self, hidden_BTH: Tensor, labels_BT: Tensor, output: FusedCausalLMOutput) -> ResponseTerms:
        """Compute the loss, and put the log-probabilities and entropies of sampled tokens into `output`.

        Args:
            hidden_BTH: The student's last hidden states, as its head saw them.
            labels_BT: The sampled tokens.
            output: What TRL's fused head returned for `labels_for_trl`.
        """
        loss, stats = self._fused(hidden_BTH, labels_BT)
        if self._sampling_temperature is not None:
            self._add_sampled(stats, output)
        target_BT = self._spread(stats.target_divergence_N)
        teachers_BKT = target_BT.new_zeros(len(target_BT), len(self.teachers), target_BT.shape[1])
        for i, k in enumerate(self._with_distribution):
            teachers_BKT[:, k] = self._spread(stats.teacher_divergence_NK[:, i])
        for k in self._with_spans:
            divergence_BT = self._span_divergences(self.teachers[k], output)
            teachers_BKT[:, k] = divergence_BT.detach()
            weighted_BT = self.shares_BK[:, k, None] * divergence_BT
            target_BT = target_BT + weighted_BT.detach()
            loss = loss + (self.settings.weight_B[:, None] * weighted_BT).sum()
        return ResponseTerms(loss, target_BT, teachers_BKT)

    def _fused(self, hidden_BTH: Tensor, labels_BT: Tensor) -> tuple[Tensor, PerTokenStats]:
        """The loss and the values per token from all teachers that have distributions."""
        valid_BT, objective = self.valid_BT, self.settings.objective
        if self.settings.teacher_share_B is not None:
            share_BT = self.settings.teacher_share_B[:, None].expand(valid_BT.shape)
            objective = replace(objective, teacher_share_N=share_BT[valid_BT])
        shares_BTK = self.shares_BK[:, None].expand(*valid_BT.shape, -1)
        counts_BT = self.settings.weight_B[:, None].expand(valid_BT.shape)
        compute = partial(
            fused_response_loss,
            hidden_BTH[valid_BT],
            self.head.truncated(self.vocabulary),
            [self._distribution(self.teachers[k]) for k in self._with_distribution],
            weights_NK=shares_BTK[valid_BT][:, self._with_distribution],
            objective=objective,
        )
        if objective.token_weights is not None:
            with torch.no_grad():
                _, stats = compute(counts_N=counts_BT[valid_BT], with_entropies=True)
            counts_BT = counts_BT * objective.token_weights(
                self._spread(stats.target_divergence_N),
                self._spread(stats.target_entropy_N),
                self._spread(stats.student_entropy_N),
                valid_BT,
            )
        sampled_tokens = None
        if self._sampling_temperature is not None:
            sampled_tokens = SampledTokens(
                labels_BT[valid_BT], self._sampling_temperature, keeps_logits=self.settings.trains_sampled
            )
        return compute(counts_N=counts_BT[valid_BT], sampled_tokens=sampled_tokens)

    def _distribution(self, teacher: TeacherOutputs) -> TeacherDistribution:
        valid_N = teacher.valid_BT[self.valid_BT]
        if teacher.top_k is not None:
            return TopKDistribution(valid_N=valid_N, top_k=teacher.top_k[self.valid_BT])
        assert teacher.head is not None
        assert teacher.hidden_BTH is not None
        hidden_NH = teacher.hidden_BTH[self.valid_BT]
        if teacher.shared_ids is None:
            return FullDistribution(valid_N=valid_N, head=teacher.head.truncated(self.vocabulary), hidden_NH=hidden_NH)
        student_V, teacher_V = teacher.shared_ids
        in_head_V = student_V < self.vocabulary  # a teacher with the student's tokenizer may have a smaller head
        shared_ids = student_V[in_head_V], teacher_V[in_head_V]
        return FullDistribution(valid_N=valid_N, head=teacher.head, hidden_NH=hidden_NH, shared_ids=shared_ids)

    def _spread(self, values_N: Tensor) -> Tensor:
        """Values of the valid tokens at their places, `[B, T]`; 0 elsewhere."""
        return values_N.new_zeros(self.valid_BT.shape).masked_scatter(self.valid_BT, values_N)

    def _add_sampled(self, stats: PerTokenStats, output: FusedCausalLMOutput) -> None:
        log_probs, entropies, labelled_BT = output.log_probs, output.entropy, output.label_mask
        assert log_probs is not None
        assert entropies is not None
        assert labelled_BT is not None
        if self.valid_BT.any() and not labelled_BT.any():
            # TRL's head scored no token, but its backward would still allocate a gradient of the head's size.
            log_probs, entropies = log_probs.detach(), entropies.detach()
        output.log_probs = log_probs.masked_scatter(self.valid_BT, stats.sampled_logprob_N)
        output.entropy = entropies.masked_scatter(self.valid_BT, stats.sampling_entropy_N)
        output.label_mask = labelled_BT | self.valid_BT
        output.loss = None  # TRL's mean over its own labels would be wrong now

    def _span_divergences(self, teacher: TeacherOutputs, output: FusedCausalLMOutput) -> Tensor:
        assert output.log_probs is not None
        assert teacher.spans_BT is not None
        assert teacher.span_scores_BT is not None
        spans_BT = teacher.spans_BT.masked_fill(self.mask_BT == 0, -1)
        return span_divergences(output.log_probs, spans_BT, teacher.span_scores_BT)

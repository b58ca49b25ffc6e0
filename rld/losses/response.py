"""The response signal of a micro-batch: a student's distributions matched to its teachers', what it sampled scored.

Where the head works in float32, one pass over the vocabulary does both, at the tokens on which a teacher speaks. In
half precision, and at the other tokens, TRL's fused head scores what was sampled: its rounding must be that of the
log-probabilities taken after the rollout, which new ones are compared with.

Shapes: B completions, T completion tokens, H width, N tokens, K teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rld.losses.cross_tokenizer import span_gaps
from rld.losses.fused_response import PerTokenStats, SampledTokens, fused_response_loss
from rld.losses.objective import ResponseObjective
from rld.losses.teacher_distribution import TeacherDistribution
from rld.losses.teacher_outputs import TeacherOutputs
from rld.models.heads import FusedCausalLMOutput, LMHead


@dataclass(frozen=True)
class ResponseSettings:
    """How the response signal is computed for a batch."""

    objective: ResponseObjective
    weight_B: Tensor
    """Weight of the signal on each completion."""
    sampled_at: float | None = None
    """Temperature of the rollout, at which what was sampled is scored. None: nobody asks for that."""


class ResponseLoss:
    """What one forward of the student needs for the response signal.

    Args:
        response: How it is computed.
        head: The student's.
        teachers: What they say.
        shares_BK: Weight of each teacher on each completion.
        mask_BT: Completion tokens that count.
    """

    def __init__(
        self,
        response: ResponseSettings,
        head: LMHead,
        teachers: Sequence[TeacherOutputs],
        shares_BK: Tensor,
        mask_BT: Tensor,
    ) -> None:
        self.response, self.head, self.shares_BK, self.mask_BT = response, head, shares_BK, mask_BT
        self.teachers = teachers
        self.matched = [k for k, t in enumerate(teachers) if t.was_run and t.align != "likelihood"]
        self.spans = [k for k, t in enumerate(teachers) if t.was_run and t.align == "likelihood"]
        spoken_BT = torch.zeros_like(mask_BT, dtype=torch.bool)
        for k in self.matched:
            spoken_BT = spoken_BT | teachers[k].tokens_BT
        self.valid_BT = mask_BT.bool() & spoken_BT
        same = [t.head for k in self.matched if (t := teachers[k]).vocabulary is None and t.shortlist is None]
        self.vocabulary = min([len(head.weight), *(len(other.weight) for other in same if other is not None)])
        precise = head.weight.dtype == torch.float32 and not torch.is_autocast_enabled(head.weight.device.type)
        self.sampled_at = response.sampled_at if precise and self.vocabulary == len(head.weight) else None

    def left_out(self, labels_BT: Tensor) -> Tensor:
        """The labels without those that this pass scores: -100 in their place."""
        return labels_BT if self.sampled_at is None else labels_BT.masked_fill(self.valid_BT, -100)

    def run(self, hidden_BTH: Tensor, labels_BT: Tensor, scored: FusedCausalLMOutput) -> tuple[Tensor, Tensor, Tensor]:
        """Match distributions, and likelihoods of spans; put the scores of what was sampled into `scored`.

        Args:
            hidden_BTH: The student's last hidden states, as its head saw them.
            labels_BT: What was sampled.
            scored: What TRL's fused head made of the labels that were left.

        Returns:
            The weighted sum through which the gradient flows, and without gradient the divergence from the teachers'
            target `[B, T]` and from each teacher `[B, K, T]`.
        """
        total, gap_BT, apart = self._match(hidden_BTH, labels_BT, scored)
        divergence_BKT = gap_BT.new_zeros(len(gap_BT), len(self.teachers), gap_BT.shape[1])
        for k, stream_BT in apart.items():
            divergence_BKT[:, k] = stream_BT
        for k in self.spans:
            stream_BT = self._span_gaps(self.teachers[k], scored)
            divergence_BKT[:, k] = stream_BT.detach()
            weighted_BT = self.shares_BK[:, k, None] * stream_BT
            gap_BT = gap_BT + weighted_BT.detach()
            total = total + (self.response.weight_B[:, None] * weighted_BT).sum()
        return total, gap_BT, divergence_BKT

    def _span_gaps(self, teacher: TeacherOutputs, scored: FusedCausalLMOutput) -> Tensor:
        assert scored.log_probs is not None
        assert teacher.spans_BT is not None
        assert teacher.span_scores_BT is not None
        spans_BT = teacher.spans_BT.masked_fill(self.mask_BT == 0, -1)
        return span_gaps(scored.log_probs, spans_BT, teacher.span_scores_BT)

    def _match(
        self, hidden_BTH: Tensor, labels_BT: Tensor, scored: FusedCausalLMOutput
    ) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        valid_BT, response = self.valid_BT, self.response
        said = [self._said(self.teachers[k]) for k in self.matched]
        shares_NK = self.shares_BK[:, None].expand(*valid_BT.shape, -1)[valid_BT][:, self.matched]
        counts_BT = response.weight_B[:, None].expand(valid_BT.shape)
        given = hidden_BTH[valid_BT], self.head.first(self.vocabulary), said, shares_NK
        weigh, objective = response.objective.token_weights, response.objective
        if weigh is not None:
            with torch.no_grad():
                _, seen = fused_response_loss(*given, counts_BT[valid_BT], objective, with_entropies=True)
            gap, theirs, own = map(self._spread, (seen.gap_N, seen.target_entropy_N, seen.student_entropy_N))
            counts_BT = counts_BT * weigh(gap, theirs, own, valid_BT)
        sampled = None if self.sampled_at is None else SampledTokens(labels_BT[valid_BT], self.sampled_at)
        total, streams = fused_response_loss(*given, counts_BT[valid_BT], objective, sampled)
        if sampled is not None:
            self._add_scores(streams, scored)
        apart = {k: self._spread(streams.divergence_NK[:, i]) for i, k in enumerate(self.matched)}
        return total, self._spread(streams.gap_N), apart

    def _spread(self, stream_N: Tensor) -> Tensor:
        return stream_N.new_zeros(self.valid_BT.shape).masked_scatter(self.valid_BT, stream_N)

    def _add_scores(self, streams: PerTokenStats, scored: FusedCausalLMOutput) -> None:
        log_probs, entropies, labelled_BT = scored.log_probs, scored.entropy, scored.label_mask
        assert log_probs is not None
        assert entropies is not None
        assert labelled_BT is not None
        if self.valid_BT.any() and not labelled_BT.any():
            # TRL's head scored nothing, and going backwards through it would still fill a gradient of its size.
            log_probs, entropies = log_probs.detach(), entropies.detach()
        scored.log_probs = log_probs.masked_scatter(self.valid_BT, streams.log_pi_N)
        scored.entropy = entropies.masked_scatter(self.valid_BT, streams.entropy_N)
        scored.label_mask = labelled_BT | self.valid_BT
        scored.loss = None  # the mean over TRL's own tokens alone

    def _said(self, teacher: TeacherOutputs) -> TeacherDistribution:
        speaks_N = teacher.tokens_BT[self.valid_BT]
        if teacher.shortlist is not None:
            return TeacherDistribution(teacher.shortlist[self.valid_BT], speaks_N)
        assert teacher.head is not None
        assert teacher.hidden_BTH is not None
        hidden_NH = teacher.hidden_BTH[self.valid_BT]
        if teacher.vocabulary is None:
            return TeacherDistribution((teacher.head.first(self.vocabulary), hidden_NH), speaks_N)
        ours_V, theirs_V = teacher.vocabulary
        kept_V = ours_V < self.vocabulary  # a teacher of the student's tokenizer may have cut the student's head
        return TeacherDistribution((teacher.head, hidden_NH), speaks_N, (ours_V[kept_V], theirs_V[kept_V]))

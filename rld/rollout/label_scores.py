"""The teachers' scores of the labels of a prompt, calibrated.

A score is the log-probability of the words that say a label, in nats, or the mean over these and its synonyms.
Teachers of any tokenizer have one.

Shapes: B completions of this process, T completion tokens, P prompts, W words, L labels, K teachers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from rld.errors import TeacherError
from rld.losses.policy import likelihood
from rld.models.prompting import PromptEncoder
from rld.rollout.batch import RolloutBatch, label_rows, loss_mask
from rld.rollout.label_completions import label_tokens
from rld.rollout.label_priors import LabelPriors
from rld.rollout.record import RolloutRecord
from rld.teachers.ensemble import TeacherEnsemble
from rld.utils.label_words import LabelWords
from rld.utils.tensors import pad_left, pad_right


class LabelScores:
    """Adds the teachers' scores of labels to a rollout.

    The score of a label with synonyms is the mean over all of its words; in a sum of their probabilities the most
    frequent word would have most of the weight.

    Calibration corrects the teachers, from whose distributions the student learns. `length`: the score is divided by
    the bytes of the words, relative to the mean over the words of all labels; bytes are the same for every tokenizer.
    `content_free`: the label's log-probability on prompts without content is subtracted (Zhao et al. 2021, contextual
    calibration: `p(l | x) / p(l | "N/A")`, the mean over such prompts in the denominator). `prior_matching`: the log of
    the teacher's prior over labels is subtracted, as `LabelPriors` finds it on the rows of training so far, those of
    this rollout included. It needs no labels, and takes them for equally frequent.

    Args:
        labels: The words of each skill's labels.
        calibration: Of the teachers' scores.
        prompts: Of each skill, prompts without content, for `content_free`.
        ensemble: The teachers.
        encoder: The student's.
    """

    def __init__(
        self,
        labels: Mapping[str, LabelWords],
        calibration: str,
        prompts: Mapping[str, Sequence[Any]],
        ensemble: TeacherEnsemble,
        encoder: PromptEncoder,
    ) -> None:
        self.labels, self.calibration, self.prompts = labels, calibration, prompts
        names = [str(teacher.name) for teacher in ensemble.teachers]
        self.priors = LabelPriors(labels, names) if calibration == "prior_matching" else None
        """The teachers' priors over labels, for `prior_matching`."""
        self.ensemble, self.encoder = ensemble, encoder
        self._blank_priors: dict[tuple[str, int], Tensor] = {}
        """Log-probabilities `[L]` of the labels of a skill on prompts without content, by skill and teacher."""
        self._num_read = [0] * len(ensemble.slots)
        ensemble.observers.append(self._forget)

    def take_num_read(self) -> list[int]:
        """Return the tokens that each teacher has read on prompts without content since the last call."""
        num_read, self._num_read = self._num_read, [0] * len(self._num_read)
        return num_read

    def _forget(self, k: int) -> None:
        """Forget what is known of teacher k, because its weights have changed."""
        self._blank_priors = {key: prior_L for key, prior_L in self._blank_priors.items() if key[1] != k}
        if self.priors is not None:
            self.priors.forget(k)

    def add(self, batch: RolloutBatch, record: RolloutRecord, needed_BK: Tensor) -> None:
        """Add `teacher_label_scores` to a rollout that has the teachers' scores of its tokens.

        Over labels a teacher has a distribution at each token of a prompt's completions, or at none.

        Args:
            batch: This process's rollout.
            record: Its record.
            needed_BK: The completions that each teacher was to be run on.

        Raises:
            TeacherError: a teacher cannot say the words of a label as a whole.
        """
        mask_BT = loss_mask(batch).bool()
        was_run_BK = needed_BK & batch["teacher_tokens"].any(-1).any(0)
        self._require_whole(batch, record, was_run_BK)
        scores_BK, _ = likelihood(batch["teacher_scores"], batch["teacher_spans"], mask_BT)
        scores_BK = _means(scores_BK * self._factors(record).to(scores_BK)[:, None], record)
        if self.priors is not None and record.is_training:
            self.priors.add(self._distributions(scores_BK, batch, record, was_run_BK))
        batch["teacher_label_scores"] = self._calibrated(scores_BK, record, was_run_BK).masked_fill(~was_run_BK, 0.0)
        batch["teacher_tokens"] = was_run_BK[..., None] & mask_BT[:, None]

    def _require_whole(self, batch: RolloutBatch, record: RolloutRecord, was_run_BK: Tensor) -> None:
        last_B = loss_mask(batch).sum(1).long() - 1
        spans_BK = batch["teacher_spans"].gather(2, last_B[:, None, None].expand(*was_run_BK.shape, 1))[..., 0]
        for b, k in (was_run_BK & (spans_BK < 0)).nonzero().tolist()[:1]:
            text = record.label_completions_B[b][1]
            raise TeacherError(
                f"teacher '{self.ensemble.teachers[k].name}': it has no probability of the label {text!r} as a whole: "
                "it lacks a token of it, or ends answers otherwise than the student; choose other words for the label, "
                "none of which begin those of another one, or set align for the teacher"
            )

    def _distributions(
        self, scores_BK: Tensor, batch: RolloutBatch, record: RolloutRecord, was_run_BK: Tensor
    ) -> list[tuple[str, int, Tensor]]:
        """Return each teacher's log-probabilities of the labels of each prompt, with the skill and teacher's number."""
        return [
            (record.skills[int(record.skill_ids_B[rows_L[0]])], k, scores_BK[rows_L, k].log_softmax(0))
            for rows_PL in label_rows(batch)
            for rows_L in rows_PL
            for k in was_run_BK[rows_L[0]].nonzero().flatten().tolist()
        ]

    def _calibrated(self, scores_BK: Tensor, record: RolloutRecord, was_run_BK: Tensor) -> Tensor:
        if self.calibration in ("none", "length"):
            return scores_BK
        labels_B = record.label_ids_B.clamp(min=0).tolist()
        offsets_BK = torch.zeros_like(scores_BK)
        for b, k in was_run_BK.nonzero().tolist():
            offsets_BK[b, k] = self._prior(record.skills[int(record.skill_ids_B[b])], k)[labels_B[b]]
        return scores_BK - offsets_BK

    def _factors(self, record: RolloutRecord) -> Tensor:
        """Return the factor of each completion's score, `[B]`: the mean bytes of its skill's words by its own."""
        if self.calibration != "length":
            return torch.ones(len(record.rows))
        means = {
            skill: fmean(len(text.encode()) for _, text in label_words.completions)
            for skill, label_words in self.labels.items()
        }
        skills = (record.skills[s] for s in record.skill_ids_B.tolist())
        completions_B = record.label_completions_B
        return torch.tensor([means[s] / len(text.encode()) for s, (_, text) in zip(skills, completions_B, strict=True)])

    @torch.no_grad()
    def _prior(self, skill: str, k: int) -> Tensor:
        """Return the log of a teacher's prior over a skill's labels, `[L]`, by which it is calibrated."""
        if self.priors is not None:
            return self.priors.log_prior(skill, k)
        if (skill, k) not in self._blank_priors:
            prompts, words, completions = self.prompts[skill], self.labels[skill].words, self.labels[skill].completions
            rollout = self._rollout(prompts, words, [text for _, text in completions])
            needed_BK = torch.zeros(len(prompts) * len(completions), len(self.ensemble.slots), dtype=torch.bool)
            needed_BK[:, k] = True
            device = rollout["completion_ids"].device
            repeated = [prompt for prompt in prompts for _ in completions]
            counts = self.ensemble.score(
                rollout, needed_BK.to(device), prompts=repeated, temperature=1.0, rows_per_forward=len(completions)
            )
            self._num_read[k] += counts[k].computed
            scored = rollout | self.ensemble.sampled_scores(rollout, 1.0)
            scores_BK, _ = likelihood(scored["teacher_scores"], scored["teacher_spans"], rollout["completion_mask"])
            means_WP = _means_of(scores_BK[:, k].view(len(prompts), -1).T, [label for label, _ in completions])
            log_p_PL = means_WP[: len(words)].T.log_softmax(-1)
            self._blank_priors[skill, k] = log_p_PL.exp().mean(0).log()
        return self._blank_priors[skill, k]

    def _rollout(self, prompts: Sequence[Any], words: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
        """Return TRL's layout of prompts, each with all texts that say a label, whose own words are `words`."""
        device = self.ensemble.slots[0].student.head_device
        prompt_ids = [self.encoder.encode(prompt) for prompt in prompts for _ in texts]
        label_ids = [label_tokens(self.encoder, prompt, text, words) for prompt in prompts for text in texts]
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        tensors = *pad_left(prompt_ids), *pad_right(label_ids)
        return {name: tensor.to(device) for name, tensor in zip(names, tensors, strict=True)}


def _means(scores_BK: Tensor, record: RolloutRecord) -> Tensor:
    """Return at each completion the mean score over the completions of its prompt that say the same label."""
    groups = zip(record.group_ids_B.tolist(), (label for label, _ in record.label_completions_B), strict=True)
    return _means_of(scores_BK, [*groups])


def _means_of(scores_BK: Tensor, keys: Sequence[Any]) -> Tensor:
    """Return at each row the mean over the rows with an equal key."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    places_B = torch.tensor([numbers[key] for key in keys], device=scores_BK.device)
    sums_GK = scores_BK.new_zeros(len(numbers), scores_BK.shape[1]).index_add(0, places_B, scores_BK)
    return (sums_GK / places_B.bincount()[:, None])[places_B]


def predicted_labels(scores_BK: Tensor, batch: RolloutBatch) -> Tensor:
    """Return the label with the greatest score of each completion's prompt, by teacher: `[B, K]`."""
    predictions_BK = torch.zeros(scores_BK.shape, dtype=torch.long, device=scores_BK.device)
    for rows_PL in label_rows(batch):
        predictions_BK[rows_PL] = scores_BK[rows_PL].argmax(1)[:, None].expand(-1, rows_PL.shape[1], -1)
    return predictions_BK


def label_log_probabilities(batch: RolloutBatch) -> Tensor:
    """Return `log p(label | x)` of each completion by teacher, `[B, K]`; -inf where a teacher was not run."""
    scores_BK = batch["teacher_label_scores"]
    log_p_BK = torch.full_like(scores_BK, -torch.inf)
    for rows_PL in label_rows(batch):
        log_p_BK[rows_PL] = scores_BK[rows_PL].log_softmax(1)
    return log_p_BK.masked_fill(~batch["teacher_tokens"].any(-1), -torch.inf)

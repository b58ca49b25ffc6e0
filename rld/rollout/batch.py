"""Every key that a rollout carries through an update, and masks and weights read from them.

TRL returns a rollout as a dictionary, shuffles it, and splits it into micro-batches. It treats each tensor that has
axes as batch first, and hands on scalars and None unchanged, so whatever rld adds has that form.

Shapes: B completions of this process, P prompts or prompt tokens, T completion tokens, L labels, K teachers, and 3
signals in the order of `SIGNALS`.
"""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor

from rld.types import SIGNALS, Signal


class RolloutBatch(TypedDict, total=False):
    """A rollout or a micro-batch of it: what rld reads of TRL's keys, and what rld adds.

    For each teacher k that was run it also has the tensors of `losses.teacher_outputs.TeacherTensor`, under the keys
    that `teacher_key(k, name)` gives.
    """

    # TRL's
    prompt_ids: Tensor
    """`[B, P]`, padded on the left."""
    prompt_mask: Tensor
    """`[B, P]`, 1 at prompt tokens."""
    completion_ids: Tensor
    """`[B, T]`, padded on the right."""
    completion_mask: Tensor
    """`[B, T]`, 1 at completion tokens."""
    tool_mask: Tensor
    """`[B, T]`, 0 at tokens that a tool returned; only with tools."""
    advantages: Tensor
    """`[B]`, or `[B, T]` once they depend on the token."""
    old_per_token_logps: Tensor
    """`[B, T]`, log-probabilities of the tokens when they were sampled; only where TRL needs them."""

    # every rollout
    skill_ids: Tensor
    """`[B]`, the index of each completion's skill."""
    prompt_numbers: Tensor
    """`[B]`, equal for equal prompts, so that TRL's shuffle can keep them together."""
    signal_weights: Tensor
    """`[B, 3]`, the controller's weight of each signal on the completion's skill; `signal_weight` reads one."""

    # where gold answers are learnt
    is_gold: Tensor
    """`[B]` bool, the completions whose cross-entropy is learnt."""
    num_gold: Tensor
    """`[]`, all tokens of the rollout, over all processes; where completions are labels, the prompts with a label."""

    # where completions are labels
    label_ids: Tensor
    """`[B]`, the number of the label that the completion says; -1 for completions that count nowhere."""
    gold_ids: Tensor
    """`[B]`, the number of the label in the prompt's row, -1 where it has none."""
    is_first_visit: Tensor
    """`[B]` bool, whether the prompt's row has a label that the student has not learnt before; only with a gate."""
    teacher_label_scores: Tensor
    """`[B, K]`, each teacher's score of the label, calibrated: the log-probability of its words in nats. 0 where the
    teacher was not run."""

    # with teachers
    group_ids: Tensor
    """`[B]`, the number of the completion's prompt in the rollout over all processes."""
    response_on: Tensor
    """`[]` bool, whether the response signal is computed."""
    feature_on: Tensor
    """`[]` bool, whether the feature signal is computed."""
    teacher_weights: Tensor
    """`[B, K]`, the weight that each teacher has on the completion after gate, drop-outs and choice."""
    teacher_tokens: Tensor
    """`[B, K, T]` bool, where each teacher has a distribution."""
    teacher_scores: Tensor
    """`[B, K, T]`, log-probability in nats of the sampled token or of the span that it lies in; only for a
    teacher-scored reward or a combination that compares teachers."""
    teacher_spans: Tensor
    """`[B, K, T]`, the number of that span, -1 where there is none; beside `teacher_scores`."""
    num_taught: Tensor
    """`[]`, tokens of the rollout that a teacher with weight teaches on, over all processes."""

    # while a loss is computed
    log_pi: Tensor
    """`[B, T]`, the student's log-probabilities of the tokens."""


def signal_weight(batch: RolloutBatch, signal: Signal) -> Tensor:
    """Return the weight of one signal on each completion, `[B]`."""
    return batch["signal_weights"][:, SIGNALS.index(signal)]


def loss_mask(batch: RolloutBatch) -> Tensor:
    """Return which completion tokens count in a loss: `[B, T]`."""
    mask = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def label_rows(batch: RolloutBatch) -> list[Tensor]:
    """Return the numbers of the completions that say the labels of each prompt, `[P, L]` for each number of labels L.

    The completions of a prompt are all there, in any order.
    """
    rows_B = (batch["label_ids"] >= 0).nonzero()[:, 0]
    groups_B, labels_B = batch["group_ids"][rows_B], batch["label_ids"][rows_B]
    order_B = (groups_B * (int(labels_B.max()) + 1) + labels_B).argsort()
    _, places_B, sizes_P = groups_B[order_B].unique_consecutive(return_inverse=True, return_counts=True)
    rows_B, sizes_B = rows_B[order_B], sizes_P[places_B]
    return [rows_B[sizes_B == size].view(-1, size) for size in sizes_P.unique().tolist()]


def response_mask(batch: RolloutBatch) -> Tensor:
    """Return the tokens that the mean of the response signal is over, `[B, T]` bool.

    They are those of a loss. A distribution over labels counts once per prompt, at the first token of its first label.
    """
    mask_BT = loss_mask(batch).bool()
    if "label_ids" in batch:
        mask_BT = mask_BT & (batch["label_ids"] == 0)[:, None]
        mask_BT[:, 1:] = False
    return mask_BT


def taught_share(batch: RolloutBatch) -> Tensor:
    """Return the summed weight of the teachers that have a distribution at each token: `[B, T]`."""
    return (batch["teacher_weights"][..., None] * batch["teacher_tokens"]).sum(1)


def gold_tokens(batch: RolloutBatch, num_computed: int, num_padding: int) -> int:
    """Return how many tokens of the student's forward on a micro-batch were for gold answers, with a share of padding.

    A prompt is for gold answers where no other completion has it. The last token of a completion predicts none.

    Args:
        batch: The micro-batch.
        num_computed: Tokens of the forward; a prompt is among them once or more often, as the rows were laid out.
        num_padding: Of these, padding.
    """
    is_gold_B, numbers_B = batch["is_gold"], batch["prompt_numbers"]
    num_tokens_B = (batch["completion_mask"].sum(1) - 1).clamp(min=0)
    prompts: dict[int, int] = dict(zip(numbers_B.tolist(), batch["prompt_mask"].sum(1).tolist(), strict=True))
    others = set(numbers_B[~is_gold_B].tolist())
    num_gold = int(num_tokens_B[is_gold_B].sum()) + sum(size for i, size in prompts.items() if i not in others)
    return round(num_gold * num_computed / max(num_computed - num_padding, 1))


def redistributed(weights_BK: Tensor, open_BK: Tensor) -> Tensor:
    """Return teacher weights of which those of closed teachers go to the open ones of the completion, in proportion."""
    open_weights_BK = weights_BK * open_BK
    shares_BK = open_weights_BK / open_weights_BK.sum(1, keepdim=True).clamp(min=1e-12)
    return shares_BK * weights_BK.sum(1, keepdim=True)

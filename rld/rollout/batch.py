"""Every key that a rollout carries through an update, and masks and weights read from them.

TRL returns a rollout as a dictionary, shuffles it, and splits it into micro-batches. It treats each tensor that has
axes as batch first, and hands on scalars and None unchanged, so whatever rld adds has that form.

Shapes: B completions of this process, P prompt tokens, T completion tokens, K teachers, and 3 signals in the order of
`SIGNALS`.
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
    """`[]`, their tokens in the rollout, over all processes."""

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


def taught_share(batch: RolloutBatch) -> Tensor:
    """Return the summed weight of the teachers that have a distribution at each token: `[B, T]`."""
    return (batch["teacher_weights"][..., None] * batch["teacher_tokens"]).sum(1)

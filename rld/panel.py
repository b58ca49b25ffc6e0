"""The teachers of one trainer: they score a rollout once, and answer for what they said.

A teacher is run once per rollout, without gradients, and hands over hidden states; its head is applied to them later.
Shapes: B completions, T completion tokens, P prompt tokens, H width, L layers, K teachers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from rld.errors import TeacherError
from rld.features import AnyFeature
from rld.heads import Head, TeacherStates
from rld.matching import Plan
from rld.taps import Tap, depth, tapped
from rld.teachers import Teacher


@torch.no_grad()
def hidden_states(
    model: PreTrainedModel, ids_BS: Tensor, attention_BS: Tensor, num_tokens: int, taps: Sequence[Tap], batch: int
) -> tuple[Tensor, Tensor | None]:
    """Run a teacher's backbone over prompts and completions.

    Args:
        model: The teacher; only its backbone is run.
        ids_BS: Prompt and completion token ids, `S = P + T`.
        attention_BS: 1 for real tokens.
        num_tokens: T, the completion tokens at the end of each row.
        taps: What to hand over besides the last state.
        batch: Rows per forward.

    Returns:
        Last hidden states `[B, T, H]` and, if `taps` is not empty, the states there, `[B, L, T, H]`, narrower ones
        padded with zeros; both at the positions that predict the completion tokens.
    """
    keep, final = slice(-num_tokens - 1, -1), depth(model)
    last, mapped = [], []
    for ids, attention in zip(ids_BS.split(batch), attention_BS.split(batch), strict=True):
        with tapped(model, taps) as states:
            model.base_model(input_ids=ids, attention_mask=attention, use_cache=False)
        last.append(states[final][:, keep])
        if taps:
            width = max(states[tap].shape[-1] for tap in taps)
            padded = [nn.functional.pad(states[tap][:, keep], (0, width - states[tap].shape[-1])) for tap in taps]
            mapped.append(torch.stack(padded, dim=1))
    return torch.cat(last), torch.cat(mapped) if taps else None


@torch.no_grad()
def log_probabilities(head: Head, hidden_BTH: Tensor, targets_BT: Tensor, temperature: float) -> Tensor:
    """A teacher's log-probability of each sampled token, `[B, T]`, without storing logits."""
    outputs: tuple[Tensor, ...] = ChunkedLogProbFunction.apply(
        hidden_BTH.reshape(-1, hidden_BTH.shape[-1]),
        head.weight,
        head.bias,
        targets_BT.reshape(-1),
        temperature,
        32768,
        head.softcap,
        head.scale,
        (),
    )
    return outputs[0].view(targets_BT.shape)


class Panel:
    """The teachers of one trainer, ready to score rollouts.

    What it adds to a rollout is batch first and survives TRL's shuffling and splitting into micro-batches.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        student: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        feature: AnyFeature | None,
        prepare: Callable[[PreTrainedModel], PreTrainedModel],
    ) -> None:
        names = [teacher.name for teacher in teachers]
        if len(set(names)) < len(names):
            raise TeacherError(f"two teachers share a name: {names}; give them names with Teacher(model, name=...)")
        unknown = [teacher.name for teacher in teachers if not teacher.verified and teacher.skills is None]
        if len(unknown) > 1:
            warnings.warn(
                f"nothing says where teachers {unknown} are right, so all teach everywhere alike, and one that is "
                "wrong on a skill harms the student there; give them Teacher(..., skills=[...]) or verified={...}",
                stacklevel=4,
            )
        for teacher in teachers:
            teacher.require_same_tokenizer(tokenizer)
        # A base model ends with another token than its instruct sibling: what one says of the other's end is noise.
        self._foreign_ends = [sorted(set(ends) - teacher.ends()) for teacher in teachers]
        self.models = [prepare(teacher.load()) for teacher in teachers]
        self.num_parameters = [model.num_parameters() for model in self.models]
        self._vocabulary = student.get_output_embeddings().weight.shape[0]
        named = zip(self.models, names, strict=True)
        self.plans = [Plan.of(feature, student, model, str(name)) for model, name in named] if feature else []

    def head(self, k: int) -> Head:
        """Teacher k's output head over the vocabulary that it shares with the student."""
        head = Head.of(self.models[k])
        return head.first(min(self._vocabulary, head.weight.shape[0]))

    @torch.no_grad()
    def score(self, rollout: dict[str, Any], rows_BK: Tensor, batch: int) -> None:
        """Run each teacher once over the rows that need it, `batch` at a time, and add what it says to `rollout`."""
        ids_BS = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
        attention_BS = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
        num_tokens = rollout["completion_ids"].shape[1]
        rollout["teacher_tokens"] = torch.stack(
            [rows_BK[:, k, None] & self._speaks(k, rollout["completion_ids"]) for k in range(len(self.models))], dim=1
        )
        for k, model in enumerate(self.models):
            rows = rows_BK[:, k].nonzero().squeeze(1)
            if not len(rows):
                continue
            taps = self.plans[k].taps if self.plans else ()
            last, mapped = hidden_states(model, ids_BS[rows], attention_BS[rows], num_tokens, taps, batch)
            rollout[f"teacher_{k}_hidden"] = _at_rows(last, rows, len(ids_BS))
            if mapped is not None:
                rollout[f"teacher_{k}_layers"] = _at_rows(mapped, rows, len(ids_BS))

    def _speaks(self, k: int, ids_BT: Tensor) -> Tensor:
        """Where teacher k's opinion means something: it has the token, and the token is not an end unknown to it."""
        known_BT = ids_BT < self.head(k).weight.shape[0]
        return known_BT & ~torch.isin(ids_BT, torch.tensor(self._foreign_ends[k], device=ids_BT.device))

    def sampled_log_probabilities(self, rollout: dict[str, Any], temperature: float) -> Tensor:
        """Weighted sum over teachers of their log-probability of each sampled token: `[B, T]`."""
        score_BT = torch.zeros(rollout["completion_ids"].shape, device=rollout["completion_ids"].device)
        for k in range(len(self.models)):
            tokens_BT = rollout["teacher_tokens"][:, k]
            rows = tokens_BT.any(1)
            if rows.any():
                head = self.head(k)
                targets_BT = rollout["completion_ids"][rows].clamp(max=head.weight.shape[0] - 1)
                log_p_BT = log_probabilities(head, rollout[f"teacher_{k}_hidden"][rows], targets_BT, temperature)
                log_p_BT = log_p_BT.masked_fill(~tokens_BT[rows], 0.0)
                score_BT[rows] += rollout["teacher_weights"][rows, k, None] * log_p_BT
        return score_BT

    def states(self, inputs: dict[str, Any]) -> list[TeacherStates]:
        """What each teacher said about a micro-batch."""
        return [
            TeacherStates(
                self.head(k),
                inputs.get(f"teacher_{k}_hidden"),
                inputs.get(f"teacher_{k}_layers"),
                inputs["teacher_tokens"][:, k],
            )
            for k in range(len(self.models))
        ]


def _at_rows(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Put `values` at `rows` of a zero tensor with `num_rows` rows."""
    if len(rows) == num_rows:
        return values
    return values.new_zeros(num_rows, *values.shape[1:]).index_copy_(0, rows, values)

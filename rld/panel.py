"""The teachers of one trainer: they score a rollout once, and answer for what they said.

A teacher is run once per rollout, without gradients, and hands over hidden states; its head is applied to them later.
Shapes: B completions, T completion tokens, P prompt tokens, H width, L layers, K teachers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rld.errors import TeacherError
from rld.features import AnyFeature, layer_pairs
from rld.heads import Head, TeacherStates, log_probabilities
from rld.matching import Projections
from rld.teachers import Teacher, share


@torch.no_grad()
def hidden_states(
    model: PreTrainedModel, ids_BS: Tensor, attention_BS: Tensor, num_tokens: int, layers: Sequence[int], batch: int
) -> tuple[Tensor, Tensor | None]:
    """Run a teacher's backbone over prompts and completions.

    Args:
        model: The teacher; only its backbone is run.
        ids_BS: Prompt and completion token ids, `S = P + T`.
        attention_BS: 1 for real tokens.
        num_tokens: T, the completion tokens at the end of each row.
        layers: The hidden layers to hand over besides the last state.
        batch: Rows per forward.

    Returns:
        Last hidden states `[B, T, H]` and, if `layers` is not empty, those layers' `[B, L, T, H]`, both at the
        positions that predict the completion tokens.
    """
    keep = slice(-num_tokens - 1, -1)
    last, mapped = [], []
    for ids, attention in zip(ids_BS.split(batch), attention_BS.split(batch), strict=True):
        output = model.base_model(
            input_ids=ids, attention_mask=attention, use_cache=False, output_hidden_states=bool(layers)
        )
        last.append(output.last_hidden_state[:, keep])
        if layers:
            mapped.append(torch.stack([output.hidden_states[layer][:, keep] for layer in layers], dim=1))
    return torch.cat(last), torch.cat(mapped) if layers else None


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
        config = student.config.get_text_config()
        self._teachers = list(teachers)
        share(teachers)
        for teacher in teachers:
            teacher.require_same_tokenizer(tokenizer)
        # A base model ends with another token than its instruct sibling: what one says of the other's end is noise.
        self._foreign_ends = [sorted(set(ends) - teacher.ends()) for teacher in teachers]
        self.models = [teacher.load() if teacher.offload else prepare(teacher.load()) for teacher in teachers]
        self.num_parameters = [teacher.num_parameters() for teacher in teachers]
        self._output = student.get_output_embeddings()
        self._vocabulary = self._output.weight.shape[0]
        depths = [model.config.get_text_config().num_hidden_layers for model in self.models]
        self.pairs = [layer_pairs(feature.layers, config.num_hidden_layers, d) if feature else [] for d in depths]

    def projections(self, student: PreTrainedModel) -> Projections:
        """Maps from the student's hidden width to each teacher's, for the feature signal."""
        widths = [model.config.get_text_config().hidden_size for model in self.models]
        return Projections(student.config.get_text_config().hidden_size, self.pairs, widths)

    def head(self, k: int) -> Head:
        """Teacher k's output head over the vocabulary that it shares with the student."""
        head = self._teachers[k].head(self._output.weight.device)
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
        for k, teacher in enumerate(self._teachers):
            rows = rows_BK[:, k].nonzero().squeeze(1)
            if not len(rows):
                continue
            layers = [layer for _, layer in self.pairs[k]]
            with teacher.running(ids_BS.device) as model:
                last, mapped = hidden_states(model, ids_BS[rows], attention_BS[rows], num_tokens, layers, batch)
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
    """Put `values` at `rows` of a zero tensor with `num_rows` rows, on their device: a model may end on another."""
    values = values.to(rows.device)
    if len(rows) == num_rows:
        return values
    return values.new_zeros(num_rows, *values.shape[1:]).index_copy_(0, rows, values)

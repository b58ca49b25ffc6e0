"""Rows in which completions share their prompt, so that it is computed once for all of them.

TRL's rows hold one completion each: padding, prompt, completion, padding. Here the completions of one prompt share a
row, `[prompt, c1, ..., cG]`, with hardly any padding. A token attends to the prompt and to the earlier tokens of its
own completion, and positions start again behind the prompt, so that each state is what it would be in a row of its own.
The last token of a completion predicts nothing and is left out. Callers get the states as `[B, T, H]`.

Shapes: B completions, P prompt tokens, T completion tokens, `S = P + T`, R rows of L tokens, H width.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rld.models.row_plan import Part, cheapest_rows, longest, real_tokens
from rld.models.self_check import evaluating
from rld.utils.tensors import pad_right

_KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-2}
"""Tolerance of the self-check, relative to the spread of states over tokens; a GPU may compute float32 in TF32."""

_HALF_PRECISION_TOLERANCE = 0.1

_NO_SEGMENT = -1
"""Segment number of padding."""


@dataclass(frozen=True)
class BackboneRows:
    """The arguments of a backbone, and how its states are read."""

    inputs: dict[str, Tensor]
    restore: Callable[[Tensor], Tensor]
    """Maps states of the backbone's tokens `[R, L, H]` to those that predict the completion tokens, `[B, T, H]`. At
    masked completion tokens the states mean nothing."""
    num_computed: int
    """Tokens that are computed, padding included."""
    num_padding: int = 0
    """Of these, those that are padding."""


class _Segment(NamedTuple):
    """A prompt or a completion at its place in a row."""

    row: int
    start: int
    """The place of its first token in the row."""
    ids: list[int]
    prompt_segment: int
    """The number of its prompt's segment, which for a prompt is its own."""
    completion: int | None
    """The completion's number in the batch; None for a prompt."""


@dataclass(frozen=True)
class PromptSharingLayout:
    """How one model's rows are laid out."""

    shared: bool
    """Whether completions may share a row."""
    positions: bool
    """Whether the model gets `position_ids`; else it counts positions itself."""
    additive: torch.dtype | None
    """Type of an additive attention mask, which eager attention takes; None for a boolean mask."""
    window: int | None
    """Longest row that may be shared: some layers see no further back, which one mask for all layers can't express."""
    balance: int
    """Row length at which attention takes as long as all other layers together."""

    @classmethod
    def of(cls, model: PreTrainedModel, name: str) -> PromptSharingLayout:
        """Return the layout that `model` supports, and warn if it supports no shared rows.

        It is tested on a few tokens. `name` is the model's name in the warning.
        """
        config = model.config.get_text_config()
        windows = [getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size")]
        additive = model.dtype if config._attn_implementation == "eager" else None
        window = min((size for size in windows if size), default=None)
        layout = cls(shared=True, positions=True, additive=additive, window=window, balance=6 * config.hidden_size)
        reason = _unsupported_reason(model) or _self_check(model, layout)
        if reason is None:
            return layout
        warnings.warn(f"{name}: each completion has a row of its own, because {reason}", stacklevel=2)
        return replace(layout, shared=False, positions=False)

    @classmethod
    def unshared(cls, model: PreTrainedModel) -> PromptSharingLayout:
        """Return the layout with a row for each completion, for prompts that all differ."""
        return cls(shared=False, positions=_takes_positions(model), additive=None, window=None, balance=0)

    def rows(self, ids_BS: Tensor, attention_BS: Tensor, num_tokens: int) -> BackboneRows:
        """Lay out a batch.

        Args:
            ids_BS: Prompts, padded on the left, and completions.
            attention_BS: 1 for real tokens.
            num_tokens: T, the columns of completions.
        """
        ids, real = ids_BS.cpu(), attention_BS.cpu().bool()
        trimmed = self._trimmed(ids, real, num_tokens)
        if self.shared and (self.window is None or int(real.sum(1).max()) <= self.window):
            plan = cheapest_rows(ids, real, num_tokens, self._cost)
            if self._cost(len(plan), longest(plan)) < self._cost(*trimmed.inputs["input_ids"].shape):
                return _on(ids_BS.device, self._packed(ids, real, num_tokens, plan))
        return _on(ids_BS.device, trimmed)

    def batches(self, ids_BS: Tensor, num_tokens: int, batch: int) -> Iterator[slice]:
        """Cut a batch into pieces of `batch` completions, or some more where it would separate those of one prompt."""
        prompts_BP = ids_BS[:, :-num_tokens]
        changes = (prompts_BP[1:] != prompts_BP[:-1]).any(1).nonzero().squeeze(1) + 1
        start = 0
        for end in [*(changes.tolist() if self.shared else range(1, len(ids_BS))), len(ids_BS)]:
            if end - start >= batch or end == len(ids_BS):
                yield slice(start, end)
                start = end

    def _cost(self, num_rows: int, length: int) -> int:
        """Return the time of a forward in arbitrary units: linear in the tokens, plus attention."""
        return num_rows * length * (self.balance + length)

    def _trimmed(self, ids_BS: Tensor, real_BS: Tensor, num_tokens: int) -> BackboneRows:
        """Lay out a row for each completion, without the columns that are padding in all of them."""
        num_prompt = ids_BS.shape[1] - num_tokens
        used = real_BS.any(0).nonzero().squeeze(1).tolist() or [num_prompt - 1]
        first, end = min(used[0], num_prompt - 1), max(used[-1], num_prompt)
        ids, attention = ids_BS[:, first:end], real_BS[:, first:end].long()
        inputs = {"input_ids": ids, "attention_mask": attention}
        if self.positions:  # they count from a prompt's first token, as in shared rows
            inputs["position_ids"] = (attention.cumsum(1) - 1).clamp(min=0)
        index_T = (torch.arange(num_tokens) + num_prompt - 1 - first).clamp(max=end - first - 1)
        gather = _Gather(torch.arange(len(ids))[:, None] * ids.shape[1] + index_T)
        return BackboneRows(inputs, gather, ids.numel(), num_padding=int((attention == 0).sum()))

    def _packed(self, ids_BS: Tensor, real_BS: Tensor, num_tokens: int, plan: list[list[Part]]) -> BackboneRows:
        """Lay out the rows of a plan."""
        mask_BT = real_BS[:, -num_tokens:]
        completions = [ids[:-1] for ids in real_tokens(ids_BS[:, -num_tokens:], mask_BT)]
        segments = list(_segments(plan, completions))
        ids, positions, numbers, prompts = ([list[int]() for _ in plan] for _ in range(4))
        for number, segment in enumerate(segments):
            size = len(segment.ids)
            num_before = 0 if segment.completion is None else len(segments[segment.prompt_segment].ids)
            ids[segment.row] += segment.ids
            positions[segment.row] += range(num_before, num_before + size)
            numbers[segment.row] += [number] * size
            prompts[segment.row] += [segment.prompt_segment] * size
        (ids_RL, _), (positions_RL, _) = pad_right(ids), pad_right(positions)
        (segment_RL, _), (prompt_RL, _) = pad_right(numbers, _NO_SEGMENT), pad_right(prompts, _NO_SEGMENT)
        mask = self._mask(segment_RL, prompt_RL)
        inputs = {"input_ids": ids_RL, "attention_mask": mask, "position_ids": positions_RL}
        gather = _Gather(_predicting_tokens(segments, mask_BT, ids_RL.shape[1]))
        num_padding = int((segment_RL == _NO_SEGMENT).sum())
        return BackboneRows(inputs, gather, ids_RL.numel(), num_padding)

    def _mask(self, segment_RL: Tensor, prompt_RL: Tensor) -> Tensor:
        """Return the attention mask `[R, 1, L, L]` from each token's segment and that of its prompt.

        Padding attends to padding, because no row of attention may be empty.
        """
        key_segment_R1L = segment_RL[:, None, :]
        attends_RLL = (key_segment_R1L == segment_RL[:, :, None]) | (key_segment_R1L == prompt_RL[:, :, None])
        attends_R1LL = attends_RLL.tril()[:, None]
        if self.additive is None:
            return attends_R1LL
        mask = torch.zeros(attends_R1LL.shape, dtype=self.additive)
        return mask.masked_fill(~attends_R1LL, torch.finfo(self.additive).min)


def _segments(plan: list[list[Part]], completions: Sequence[list[int]]) -> Iterator[_Segment]:
    """Yield the segments of a plan's rows in their order; `completions` are the token ids of all, `[B]`."""
    number = 0
    for r, row in enumerate(plan):
        start = 0
        for part in row:
            prompt_segment = number
            for b in (None, *part.completions):
                ids = part.prompt if b is None else completions[b]
                yield _Segment(r, start, ids, prompt_segment, b)
                start, number = start + len(ids), number + 1


def _predicting_tokens(segments: Sequence[_Segment], mask_BT: Tensor, row_length: int) -> Tensor:
    """Return for each completion token the place, among all tokens of all rows, of the token that predicts it.

    A completion's first token is predicted by the last token of its prompt, each other one by the token before it.
    Masked tokens inside or after a completion repeat a place.
    """
    prompt_end, start = [0] * len(mask_BT), [0] * len(mask_BT)
    for segment in segments:
        if segment.completion is not None:
            prompt = segments[segment.prompt_segment]
            prompt_end[segment.completion] = prompt.row * row_length + prompt.start + len(prompt.ids) - 1
            start[segment.completion] = segment.row * row_length + segment.start
    prompt_end_B1, start_B1 = torch.tensor(prompt_end)[:, None], torch.tensor(start)[:, None]
    num_before_BT = mask_BT.cumsum(1) - mask_BT.long()
    num_before_BT = num_before_BT.minimum((mask_BT.sum(1, keepdim=True) - 1).clamp(min=0))
    return torch.where(num_before_BT == 0, prompt_end_B1, start_B1 + num_before_BT - 1).clamp(min=0)


@dataclass(frozen=True)
class _Gather:
    """Picks states by the places of their tokens among all tokens of all rows."""

    index_BT: Tensor

    def __call__(self, states_RLH: Tensor) -> Tensor:
        index_BT = self.index_BT.to(states_RLH.device)  # a model may end on another device
        states_NH = states_RLH.flatten(0, 1).index_select(0, index_BT.flatten())
        return states_NH.view(*index_BT.shape, -1)


def untouched_rows(num_tokens: int, num_computed: int, num_padding: int) -> BackboneRows:
    """Return rows of `[B, S]` tokens as they are, for inputs other than token ids."""
    return BackboneRows({}, lambda states: states[:, -num_tokens - 1 : -1], num_computed, num_padding)


def _on(device: torch.device, rows: BackboneRows) -> BackboneRows:
    gather = rows.restore
    assert isinstance(gather, _Gather)
    inputs = {name: value.to(device) for name, value in rows.inputs.items()}
    return replace(rows, inputs=inputs, restore=_Gather(gather.index_BT.to(device)))


def _unsupported_reason(model: PreTrainedModel) -> str | None:
    """Return why completions can't share a row, as far as the model's configuration tells; None if they can."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS
    if getattr(model, "_is_stateful", False) or kinds:
        return f"a {type(model).__name__} carries a state from token to token"
    if "local" in (getattr(config, "attention_layers", None) or ()):  # GPT-Neo's
        return f"a {type(model).__name__} finds a token's neighbours by their places in the row"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention ({config._attn_implementation}) takes no mask of its own; load it with sdpa"
    if not _takes_positions(model):
        return f"a {type(model).__name__} takes no position_ids"
    return None


def _takes_positions(model: PreTrainedModel) -> bool:
    return "position_ids" in inspect.signature(type(model.base_model).forward).parameters


@torch.no_grad()
def _self_check(model: PreTrainedModel, layout: PromptSharingLayout) -> str | None:
    """Compare the states of a few tokens in a shared row with those in rows of their own.

    Returns:
        Why completions can't share a row; None if they can.
    """
    vocabulary = model.config.get_text_config().vocab_size
    ids_BS = torch.randint(vocabulary, (3, 8), generator=torch.Generator().manual_seed(0))
    ids_BS[1, :4] = ids_BS[0, :4]
    changed_BS = ids_BS.clone()
    changed_BS[0, 4:] = (changed_BS[0, 4:] + 1) % vocabulary
    real_BS = torch.ones(3, 8, dtype=torch.bool)
    real_BS[1, 6:], real_BS[2, 0] = False, False
    try:
        with evaluating(model), torch.autocast(model.device.type, enabled=False):
            shared, changed = (_shared_states(model, layout, ids, real_BS) for ids in (ids_BS, changed_BS))
            alone = [_states(model, {"input_ids": ids[real][None]}) for ids, real in zip(ids_BS, real_BS, strict=True)]
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        return f"it can't read a shared row: {str(error).strip().splitlines()[0]}"
    expected = torch.cat([states[0, real[:4].sum() - 1 : -1] for states, real in zip(alone, real_BS, strict=True)])
    spread = (expected - expected.mean(0)).double().norm()
    tolerance = _TOLERANCE.get(expected.dtype, _HALF_PRECISION_TOLERANCE) * spread
    if bool((shared[real_BS[:, 4:]] - expected).double().norm() > tolerance):
        return "its states in a shared row differ from those in rows of their own"
    # Not to the last bit: a mixture of experts sums in another order when other tokens go to its experts.
    if bool((shared[1, :2] - changed[1, :2]).double().norm() > 0.1 * tolerance):
        return "a completion in a shared row attends to other completions"
    return None


def _shared_states(model: PreTrainedModel, layout: PromptSharingLayout, ids_BS: Tensor, real_BS: Tensor) -> Tensor:
    """Return the states of completions of 4 tokens when all share one row."""
    one_row = [part for row in cheapest_rows(ids_BS, real_BS, 4, layout._cost) for part in row]
    rows = layout._packed(ids_BS, real_BS, 4, [one_row])
    return rows.restore(_states(model, rows.inputs))


def _states(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    on_device = {name: value.to(model.device) for name, value in inputs.items()}
    states: Tensor = model.base_model(**on_device, use_cache=False).last_hidden_state
    return states

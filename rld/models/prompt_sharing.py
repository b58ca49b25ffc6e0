"""Rows without repeats: a prompt is computed once for all its completions, and hardly any padding is computed.

TRL's rows hold one completion each: padding, prompt, completion, padding. Here the completions of one prompt share a
row, `[prompt, c1, ..., cG]`: a token sees the prompt and the past of its own completion, and positions start again
behind the prompt. Each state is what it would be in a row of its own. The last token of a completion predicts nothing,
so it is left out. Whoever reads the states gets them back as `[B, T, H]` and need not know.

Shapes: B completions, P prompt tokens, T completion tokens, `S = P + T`, R rows of L tokens, H width.
"""

from __future__ import annotations

import heapq
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

_KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-2}
"""Of the self-check, relative to how much states differ between tokens; a GPU may compute float32 in TF32."""


@dataclass(frozen=True)
class BackboneRows:
    """What a backbone is called with, and how to read what it returns."""

    inputs: dict[str, Tensor]
    restore: Callable[[Tensor], Tensor]
    """From states of the backbone's tokens `[R, L, H]` to those that predict the completion tokens, `[B, T, H]`. Where
    a token is masked its state means nothing."""
    num_computed: int
    """Tokens that are computed, padding included."""


class _Part(NamedTuple):
    """A prompt and some of its completions."""

    prompt: Tensor
    completions: list[int]
    """Their places in the batch."""
    size: int
    """Tokens of all."""


@dataclass(frozen=True)
class PromptSharingLayout:
    """How one model's rows are laid out."""

    shared: bool
    """Whether completions may share a row."""
    positions: bool
    """Whether the model is told positions, or counts them as it does by itself."""
    additive: torch.dtype | None
    """Of the mask: attention that is written out adds it; None where it is boolean."""
    window: int | None
    """Longer sequences are cut off from their past in some layers, which a mask for all layers can't express."""
    balance: int
    """Row length at which attention takes as long as all the rest."""

    @classmethod
    def of(cls, model: PreTrainedModel, name: str) -> PromptSharingLayout:
        """Find out what `model` can read, by running it on a few tokens; `name` is for the notice that it can't."""
        config = model.config.get_text_config()
        windows = [getattr(config, key, None) for key in ("sliding_window", "attention_chunk_size")]
        additive = model.dtype if config._attn_implementation == "eager" else None
        window = min((size for size in windows if size), default=None)
        layout = cls(True, True, additive, window, 6 * config.hidden_size)
        obstacle = _unsupported_reason(model) or _self_check(model, layout)
        if obstacle is None:
            return layout
        warnings.warn(f"{name}: each completion has a row of its own, because {obstacle}", stacklevel=2)
        return replace(layout, shared=False, positions=False)

    @classmethod
    def unshared(cls, model: PreTrainedModel) -> PromptSharingLayout:
        """Rows of their own, for prompts that are all different."""
        return cls(False, _takes_positions(model), None, None, 0)

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
            plan = self._plan(ids, real, num_tokens)
            if self._cost(len(plan), _longest(plan)) < self._cost(*trimmed.inputs["input_ids"].shape):
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
        return num_rows * length * (self.balance + length)

    def _trimmed(self, ids_BS: Tensor, real_BS: Tensor, num_tokens: int) -> BackboneRows:
        """A row for each completion, without the columns that are padding in all of them."""
        num_prompt = ids_BS.shape[1] - num_tokens
        used = real_BS.any(0).nonzero().squeeze(1).tolist() or [num_prompt - 1]
        first, end = min(used[0], num_prompt - 1), max(used[-1], num_prompt)
        ids, attention = ids_BS[:, first:end], real_BS[:, first:end].long()
        inputs = {"input_ids": ids, "attention_mask": attention}
        if self.positions:  # they count from a prompt's first token, as in shared rows
            inputs["position_ids"] = (attention.cumsum(1) - 1).clamp(min=0)
        index_T = (torch.arange(num_tokens) + num_prompt - 1 - first).clamp(max=end - first - 1)
        return BackboneRows(inputs, _Gather(torch.arange(len(ids))[:, None] * ids.shape[1] + index_T), ids.numel())

    def _plan(self, ids_BS: Tensor, real_BS: Tensor, num_tokens: int) -> list[list[_Part]]:
        """Which parts share a row, at the least cost."""
        lengths = (real_BS[:, -num_tokens:].sum(1) - 1).clamp(min=0).tolist()
        groups: dict[tuple[int, ...], list[int]] = {}
        for b, (row, real) in enumerate(zip(ids_BS[:, :-num_tokens], real_BS[:, :-num_tokens], strict=True)):
            groups.setdefault(tuple(row[real].tolist()), []).append(b)
        parts = []
        for prompt, completions in groups.items():
            tokens = torch.tensor(prompt, dtype=torch.long)
            splits = (_split(tokens, completions, lengths, n) for n in range(1, len(completions) + 1))
            parts += min(splits, key=lambda split: sum(self._cost(1, part.size) for part in split))
        spreads = (_spread(parts, n) for n in range(1, len(parts) + 1))
        return min(spreads, key=lambda rows: self._cost(len(rows), _longest(rows)))

    def _packed(self, ids_BS: Tensor, real_BS: Tensor, num_tokens: int, plan: list[list[_Part]]) -> BackboneRows:
        shape = len(plan), _longest(plan)
        ids_RL, positions_RL = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        own_RL, prompt_RL = torch.full(shape, -1), torch.full(shape, -1)
        """Which segment a token lies in, and which is its prompt."""
        before_B, start_B = (torch.zeros(len(ids_BS), 1, dtype=torch.long) for _ in range(2))
        mask_BT = real_BS[:, -num_tokens:]
        for r, row in enumerate(plan):
            at = segment = 0
            for part in row:
                prompt, behind = segment, len(part.prompt)
                for b in (None, *part.completions):
                    tokens = part.prompt if b is None else ids_BS[b, -num_tokens:][mask_BT[b]][:-1]
                    place = slice(at, at + len(tokens))
                    ids_RL[r, place], own_RL[r, place], prompt_RL[r, place] = tokens, segment, prompt
                    positions_RL[r, place] = torch.arange(len(tokens)) + (0 if b is None else behind)
                    if b is None:
                        end = r * shape[1] + at + behind - 1
                    else:
                        before_B[b], start_B[b] = end, r * shape[1] + at
                    at, segment = at + len(tokens), segment + 1
        past_BT = mask_BT.cumsum(1) - mask_BT.long()
        past_BT = past_BT.minimum((mask_BT.sum(1, keepdim=True) - 1).clamp(min=0))
        index_BT = torch.where(past_BT == 0, before_B, start_B + past_BT - 1).clamp(min=0)
        mask = self._mask(own_RL, prompt_RL)
        inputs = {"input_ids": ids_RL, "attention_mask": mask, "position_ids": positions_RL}
        return BackboneRows(inputs, _Gather(index_BT), ids_RL.numel())

    def _mask(self, own_RL: Tensor, prompt_RL: Tensor) -> Tensor:
        """What each token sees: `[R, 1, L, L]`. Padding sees padding, because no row of attention may be empty."""
        seen_R1L = own_RL[:, None, :]
        sees_RLL = (seen_R1L == own_RL[:, :, None]) | (seen_R1L == prompt_RL[:, :, None])
        sees_RLL = sees_RLL.tril()[:, None]
        if self.additive is None:
            return sees_RLL
        hidden = torch.finfo(self.additive).min
        return torch.zeros(sees_RLL.shape, dtype=self.additive).masked_fill(~sees_RLL, hidden)


@dataclass(frozen=True)
class _Gather:
    index_BT: Tensor

    def __call__(self, states_RLH: Tensor) -> Tensor:
        index_BT = self.index_BT.to(states_RLH.device)  # a model may end on another device
        states_NH = states_RLH.flatten(0, 1).index_select(0, index_BT.flatten())
        return states_NH.view(*index_BT.shape, -1)


def untouched_rows(num_tokens: int, num_computed: int) -> BackboneRows:
    """Rows of `[B, S]` tokens that are left alone, for inputs that are more than token ids."""
    return BackboneRows({}, lambda states: states[:, -num_tokens - 1 : -1], num_computed)


def _on(device: torch.device, rows: BackboneRows) -> BackboneRows:
    gather = rows.restore
    assert isinstance(gather, _Gather)
    inputs = {name: value.to(device) for name, value in rows.inputs.items()}
    return BackboneRows(inputs, _Gather(gather.index_BT.to(device)), rows.num_computed)


def _longest(rows: Sequence[Sequence[_Part]]) -> int:
    return max(sum(part.size for part in row) for row in rows)


def _split(prompt: Tensor, completions: list[int], lengths: list[int], num_parts: int) -> list[_Part]:
    """Share a prompt's completions out to parts, each with the prompt before them."""
    count, parts = len(completions), []
    for i in range(num_parts):
        chosen = completions[i * count // num_parts : (i + 1) * count // num_parts]
        parts.append(_Part(prompt, chosen, len(prompt) + sum(lengths[b] for b in chosen)))
    return parts


def _spread(parts: Sequence[_Part], num_rows: int) -> list[list[_Part]]:
    """Put each part, the longest first, into the row that is shortest so far."""
    rows: list[list[_Part]] = [[] for _ in range(num_rows)]
    filled = [(0, r) for r in range(num_rows)]
    for part in sorted(parts, key=lambda part: -part.size):
        size, r = heapq.heappop(filled)
        rows[r].append(part)
        heapq.heappush(filled, (size + part.size, r))
    return rows


def _unsupported_reason(model: PreTrainedModel) -> str | None:
    """Why completions can't share a row, as far as the model's description says."""
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
    """Run a few packed tokens and see whether their states are those of rows of their own, and stay apart."""
    vocabulary = model.config.get_text_config().vocab_size
    ids_BS = torch.randint(vocabulary, (3, 8), generator=torch.Generator().manual_seed(0))
    ids_BS[1, :4] = ids_BS[0, :4]
    other_BS = ids_BS.clone()
    other_BS[0, 4:] = (other_BS[0, 4:] + 1) % vocabulary
    real_BS = torch.ones(3, 8, dtype=torch.bool)
    real_BS[1, 6:], real_BS[2, 0] = False, False
    training = model.training
    model.eval()
    try:
        with torch.autocast(model.device.type, enabled=False):
            packed, changed = (_packed_states(model, layout, ids, real_BS) for ids in (ids_BS, other_BS))
            alone = [_states(model, {"input_ids": ids[real][None]}) for ids, real in zip(ids_BS, real_BS, strict=True)]
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        return f"it can't read a packed row: {str(error).strip().splitlines()[0]}"
    finally:
        model.train(training)
    expected = torch.cat([states[0, real[:4].sum() - 1 : -1] for states, real in zip(alone, real_BS, strict=True)])
    found = packed[real_BS[:, 4:]]
    spread = (expected - expected.mean(0)).double().norm()
    tolerance = _TOLERANCE.get(expected.dtype, 0.1) * spread
    if bool((found - expected).double().norm() > tolerance):
        return "in a packed row its states are other ones than in rows of their own"
    # Not to the last bit: a mixture of experts sums in another order when other tokens go to its experts.
    if bool((packed[1, :2] - changed[1, :2]).double().norm() > 0.1 * tolerance):
        return "in a packed row it sees other completions"
    return None


def _packed_states(model: PreTrainedModel, layout: PromptSharingLayout, ids_BS: Tensor, real_BS: Tensor) -> Tensor:
    one_row = [part for row in layout._plan(ids_BS, real_BS, 4) for part in row]
    rows = layout._packed(ids_BS, real_BS, 4, [one_row])
    return rows.restore(_states(model, rows.inputs))


def _states(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    on_device = {name: value.to(model.device) for name, value in inputs.items()}
    states: Tensor = model.base_model(**on_device, use_cache=False).last_hidden_state
    return states

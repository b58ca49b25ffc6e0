"""How fast models read and write on a device.

Shapes: B rows, P tokens of a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from rld.errors import ModelError
from rld.models.decoding import contiguous_head_input, only_generation_config
from rld.models.placement import move_unless_placed
from rld.models.self_check import context_length, evaluating

_REPEATS = 5
"""Measurements, after one that is not counted because it also sets up kernels and memory."""

_STEPS = 8, 64
"""The fewest and the most tokens that are written in a measurement."""


class Load(NamedTuple):
    """A model, and the requests that it is to answer."""

    model: PreTrainedModel
    num_read: float
    """Tokens of a prompt."""
    num_written: float
    """Tokens of an answer; some 8 to 64 are timed, as many as the context has room for."""


class Throughput(NamedTuple):
    """Repeated measurements of a batch."""

    prefill_seconds: list[float]
    """For a token that is read, of any of the rows."""
    decode_seconds: list[float]
    """For a token that is written."""
    num_bytes: int
    """Of weights, keys and values."""


class _Turn(NamedTuple):
    """One measurement of a batch, with the same units."""

    prefill_seconds: float
    decode_seconds: float
    num_bytes: int


class _Clock(LogitsProcessor):
    """Notes when the logits of each new token are there."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.times = device, list[float]()
        self.note()

    def note(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        self.times.append(time.perf_counter())

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.note()
        return scores


def measure_throughput(loads: Sequence[Load], batch: int, device: torch.device) -> list[Throughput]:
    """Measure how fast models read prompts and write greedy answers, by transformers' `generate`.

    They are measured in turn, once each and then again, so that other work of the machine slows all of them down.

    Args:
        loads: The models with the lengths of their requests.
        batch: Rows that are answered at once.
        device: Where the models compute; one that is not spread over devices is there for its turns alone.

    Raises:
        ModelError: a context has no room for a prompt and two tokens of an answer.
    """
    lengths = [_lengths(load) for load in loads]
    rounds = []
    for _ in range(_REPEATS + 1):
        turns = []
        for load, (num_read, num_written) in zip(loads, lengths, strict=True):
            model = move_unless_placed(load.model, device)
            turns.append(_measure(model, num_read, num_written, batch))
            move_unless_placed(model, torch.device("cpu"))
        rounds.append(turns)
    results = []
    for first, *repeats in zip(*rounds, strict=True):
        prefill, decode = [turn.prefill_seconds for turn in repeats], [turn.decode_seconds for turn in repeats]
        results.append(Throughput(prefill, decode, first.num_bytes))
    return results


def _lengths(load: Load) -> tuple[int, int]:
    """Return the tokens of a prompt and of an answer that are measured.

    Raises:
        ModelError: the context has no room for them.
    """
    steps = min(max(round(load.num_written), _STEPS[0]), _STEPS[1])
    length = max(round(load.num_read), 1)
    limit = context_length(load.model.config)
    if limit is not None:
        length = max(min(length, limit - steps), 1)
        steps = min(steps, limit - length)
        if steps < 2:
            raise ModelError(f"a context of {limit} tokens has no room for an answer whose speed could be measured")
    return length, steps


def _measure(model: PreTrainedModel, num_read: int, num_written: int, batch: int) -> _Turn:
    """Return what a model takes to answer a batch of rows."""
    ids_BP = torch.arange(batch * num_read, device=model.device).view(batch, num_read) % model.config.vocab_size
    config = GenerationConfig(do_sample=False, max_new_tokens=num_written, pad_token_id=0, return_dict_in_generate=True)
    hook = contiguous_head_input(model)
    try:
        with evaluating(model), torch.inference_mode(), only_generation_config(model, config):
            clock = _Clock(model.device)
            generated: Any = model.generate(  # type: ignore[operator]  # transformers types it as a tensor
                input_ids=ids_BP,
                attention_mask=torch.ones_like(ids_BP),
                logits_processor=LogitsProcessorList([clock]),
            )
    finally:
        hook.remove()
    begin, first, *_, last = clock.times
    decode = (last - first) / (batch * (len(clock.times) - 2))
    return _Turn((first - begin) / (batch * num_read), decode, _num_bytes(model, generated.past_key_values))


def _num_bytes(model: PreTrainedModel, cache: Any) -> int:
    """Return the bytes of a model's weights and of what its cache holds."""
    tensors = [*model.parameters(), *model.buffers()]
    for layer in getattr(cache, "layers", []):
        tensors += [value for value in vars(layer).values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

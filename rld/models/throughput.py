"""How fast a model reads and writes on its device.

Shapes: B rows, P tokens of a prompt.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from rld.errors import ModelError
from rld.models.decoding import contiguous_head_input, only_generation_config
from rld.models.self_check import context_length, evaluating

_REPEATS = 5
"""Measurements, after one that is not counted because it also sets up kernels and memory."""

_STEPS = 8, 64
"""The fewest and the most tokens that are written in a measurement."""


class Throughput(NamedTuple):
    """Repeated measurements of a batch."""

    prefill_seconds: list[float]
    """For a token that is read, of any of the rows."""
    decode_seconds: list[float]
    """For a token that is written."""
    num_bytes: int
    """Of weights, keys and values."""


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


def measure_throughput(model: PreTrainedModel, num_read: float, num_written: float, batch: int) -> Throughput:
    """Measure how fast a model reads prompts and writes greedy answers, by transformers' `generate`.

    Args:
        model: A model on its device.
        num_read: Tokens of a prompt.
        num_written: Tokens of an answer; some 8 to 64 are timed, as many as the context has room for.
        batch: Rows that are answered at once.

    Raises:
        ModelError: the context has no room for a prompt and two tokens of an answer.
    """
    steps = min(max(round(num_written), _STEPS[0]), _STEPS[1])
    length = max(round(num_read), 1)
    limit = context_length(model.config)
    if limit is not None:
        length = max(min(length, limit - steps), 1)
        steps = min(steps, limit - length)
        if steps < 2:
            raise ModelError(f"a context of {limit} tokens has no room for an answer whose speed could be measured")
    ids_BP = torch.arange(batch * length, device=model.device).view(batch, length) % model.config.vocab_size
    config = GenerationConfig(do_sample=False, max_new_tokens=steps, pad_token_id=0, return_dict_in_generate=True)
    prefill, decode, num_bytes = list[float](), list[float](), 0
    hook = contiguous_head_input(model)
    try:
        with evaluating(model), torch.inference_mode(), only_generation_config(model, config):
            for repeat in range(_REPEATS + 1):
                clock = _Clock(model.device)
                generated: Any = model.generate(  # type: ignore[operator]  # transformers types it as a tensor
                    input_ids=ids_BP,
                    attention_mask=torch.ones_like(ids_BP),
                    logits_processor=LogitsProcessorList([clock]),
                )
                if repeat:
                    begin, first, *_, last = clock.times
                    prefill.append((first - begin) / (batch * length))
                    decode.append((last - first) / (batch * (len(clock.times) - 2)))
                num_bytes = _num_bytes(model, generated.past_key_values)
    finally:
        hook.remove()
    return Throughput(prefill, decode, num_bytes)


def _num_bytes(model: PreTrainedModel, cache: Any) -> int:
    """Return the bytes of a model's weights and of what its cache holds."""
    tensors = [*model.parameters(), *model.buffers()]
    for layer in getattr(cache, "layers", []):
        tensors += [value for value in vars(layer).values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

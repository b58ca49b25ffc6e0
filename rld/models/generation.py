"""Greedy and sampled answers of a model."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rld.models.logprob_source import LogprobSource
from rld.models.prompting import PromptEncoder
from rld.types import Row


def generate(
    model: PreTrainedModel | LogprobSource,
    encoder: PromptEncoder,
    rows: Sequence[Row],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    alone: bool = False,
) -> list[str]:
    """Answer the rows' prompts greedily.

    Args:
        model: A model on its device, whose mode is restored, or a log-probability source that generates.
        encoder: Encodes the prompts for the model.
        rows: The same on every process, each of which answers a share of them, unless `alone`.
        max_new_tokens: Greatest length of an answer.
        batch_size: Rows per forward of a process.
        alone: Whether this process answers all its rows itself, because they are its own.

    Returns:
        The answers of all rows, in their order, on every process.
    """
    prompts = [encoder.encode(row["prompt"]) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))  # prompts of like length need little padding
    state = PartialState()
    numbers = order if alone else order[state.process_index :: state.num_processes]
    share = [prompts[i] for i in numbers]
    if isinstance(model, LogprobSource):
        texts = model.generate(share, max_new_tokens) if share else []
    else:
        texts = complete(model, encoder.tokenizer, share, max_new_tokens=max_new_tokens, batch_size=batch_size)
    answers = list(zip(numbers, texts, strict=True))
    gathered: list[tuple[int, str]] = answers if alone else gather_object(answers)
    return [text for _, text in sorted(gathered)]


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
) -> list[str]:
    """Answer prompts of token ids greedily, `batch_size` at a time; the model's mode is restored."""
    texts = []
    with _generating(model, _greedy(model, tokenizer, max_new_tokens)):
        for start in range(0, len(prompts), batch_size):
            texts += _answer(model, tokenizer, list(prompts[start : start + batch_size]))
    return texts


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 64,
) -> list[list[int]]:
    """Sample a completion of each prompt, `batch_size` at a time.

    A completion depends on `seed` and its prompt alone, not on the batch. The random state is left unchanged.

    Returns:
        Token ids, the end token included where there is one.
    """
    config = _greedy(model, tokenizer, max_new_tokens)
    ends, sampled = set(config.eos_token_id), list[list[int]]()
    with _generating(model, config):
        for start in range(0, len(prompts), batch_size):
            batch = list(prompts[start : start + batch_size])
            sampling = LogitsProcessorList([_SeededSampling(batch, seed, temperature)])
            sampled += _completions(model, tokenizer, batch, logits_processor=sampling).tolist()
    lengths = [next((t + 1 for t, token in enumerate(ids) if token in ends), len(ids)) for ids in sampled]
    return [ids[:length] for ids, length in zip(sampled, lengths, strict=True)]


class _SeededSampling(LogitsProcessor):
    """Samples one token per row with that row's own random generator, by masking all others."""

    def __init__(self, prompts: Sequence[list[int]], seed: int, temperature: float) -> None:
        self._generators = [random.Random(f"{seed} {ids}") for ids in prompts]
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulative_BV = (scores.double() / self._temperature).softmax(-1).cumsum(-1)
        uniform_B1 = cumulative_BV.new_tensor([[generator.random()] for generator in self._generators])
        token_B1 = torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B1.clamp(max=scores.shape[-1] - 1), 0.0)


def _greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """Return a configuration for greedy decoding with the end tokens of model and tokenizer."""
    declared = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None}
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(ends), pad_token_id=padding
    )


@contextmanager
def _generating(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Set a model up for generation, and restore it.

    The configuration replaces the model's own, because `generate` fills gaps in its argument from the model's.
    """
    training, own_config = model.training, model.generation_config
    model.eval()
    model.generation_config = config
    hook = contiguous_head_input(model)
    try:
        with torch.inference_mode():
            yield
    finally:
        hook.remove()
        model.train(training)
        model.generation_config = own_config


def contiguous_head_input(model: PreTrainedModel) -> RemovableHandle:
    """Make the input of a model's output head contiguous, until the returned handle is removed.

    `generate` reads the last position of the prompts, a slice. PyTorch multiplies a slice with frozen weights as a
    batch, and copies the weights once for each row: on a CPU, 64 prompts and a vocabulary of 152,000 took six times as
    long and 17 GB more.
    """
    head = model.get_output_embeddings()
    handle: RemovableHandle = head.register_forward_pre_hook(lambda _head, states: (states[0].contiguous(),))
    return handle


def _answer(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]) -> list[str]:
    texts: list[str] = tokenizer.batch_decode(_completions(model, tokenizer, prompts), skip_special_tokens=True)
    return texts


def _completions(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], **options: Any) -> Tensor:
    """Return the token ids of generated completions, padded on the right."""
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    ids: Tensor = model.generate(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], **options)
    return ids[:, padded["input_ids"].shape[1] :]

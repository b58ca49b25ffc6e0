"""Answers that are sampled for held-out rows, and what the judge gives to them."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from rld.evaluation.predictors.base import Model, PredictionSettings
from rld.evaluation.predictors.text import TextPredictor
from rld.models.generation import sample
from rld.models.logprob_source import LogprobSource
from rld.models.placement import move_unless_placed
from rld.models.prompting import is_chat
from rld.models.self_check import context_length
from rld.recipe.held_out import Samples
from rld.types import Row


def sample_rewards(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    settings: PredictionSettings,
    samples: Samples,
) -> list[list[float]] | None:
    """Return what the judge gives to each row's samples, which are the same in each call.

    Samples of a prompt that is too long for the model's context are empty.

    Args:
        rows: The same on every process, each of which samples for a share of them.

    Returns:
        The rewards of all rows, on every process; None for a model that is elsewhere, which does not sample.
    """
    if isinstance(model, LogprobSource):
        return None
    model, encoder = move_unless_placed(model, settings.device), settings.encoder(model, tokenizer)
    state, limit = PartialState(), context_length(model.config)
    numbers = range(state.process_index, len(rows), state.num_processes)
    prompts = {i: encoder.encode(rows[i]["prompt"]) for i in numbers}
    readable = [i for i in numbers if limit is None or len(prompts[i]) + settings.max_new_tokens <= limit]
    texts: dict[int, list[str]] = {i: [""] * samples.count for i in numbers}
    for number in range(samples.count):  # draws depend on the seed and the prompt alone
        ids = sample(
            model,
            tokenizer,
            [prompts[i] for i in readable],
            ends=encoder.ends(is_chat(rows)),
            max_new_tokens=settings.max_new_tokens,
            seed=number,
            temperature=samples.temperature,
        )
        for i, text in zip(readable, encoder.decode(ids), strict=True):
            texts[i][number] = text
    gathered: list[tuple[int, list[str]]] = gather_object(list(texts.items()))
    by_row = dict(gathered)
    predictor = TextPredictor(settings, {})
    pairs = [(row, text) for i, row in enumerate(rows) for text in by_row[i]]
    rewards = predictor.rewards([row for row, _ in pairs], [text for _, text in pairs], tokenizer)
    return [rewards[start : start + samples.count] for start in range(0, len(rewards), samples.count)]

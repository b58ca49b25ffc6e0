"""What a run will cost: parameters, memory and floating-point operations, before anything is loaded.

Operations are counted as usual: 2 per parameter and token forwards, twice that backwards (Kaplan et al. 2020, section
2.1), attention's quadratic part left out. Memory is that of weights and optimiser; activations come on top.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rld.recipe import registry, third_party_options
from rld.recipe.models import NewModel, PretrainedModel
from rld.recipe.schema import Recipe
from rld.recipe.stages.distill import Distill
from rld.recipe.stages.sft import Sft
from rld.recipe.teachers import TeacherSpec
from rld.utils.flops import forward_flops, frozen_bytes, training_bytes, training_flops

_GATED = {"llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2"}

_SPECIAL_TOKENS = 3  # of a character tokenizer: padding, end and unknown


def parameters(config: Mapping[str, Any]) -> int | None:
    """Count the parameters of a decoder with gated feed-forward blocks, as Llama, Qwen and Gemma are.

    Args:
        config: What its `config.json` holds; an option that is left out has its class's default.

    Returns:
        The count, embeddings included, tied ones once; None for another architecture.
    """
    kind = config.get("model_type", "")
    if kind not in _GATED:
        return None
    c = {**third_party_options.model_defaults(kind), **config}
    width, layers, heads = c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"]
    head = c.get("head_dim") or width // heads
    queries, keys = heads * head, (c.get("num_key_value_heads") or heads) * head
    inner = c["intermediate_size"]
    attention = 2 * width * queries + 2 * width * keys
    if kind == "qwen2":
        attention += queries + 2 * keys
    elif c.get("attention_bias"):
        attention += queries + 2 * keys + width
    if kind == "qwen3":
        attention += 2 * head  # the norms of queries and keys
    feed_forward = 3 * width * inner + (2 * inner + width if c.get("mlp_bias") else 0)
    norms = (4 if kind == "gemma2" else 2) * width
    embeddings = c["vocab_size"] * width * (1 if c.get("tie_word_embeddings") else 2)
    return int(layers * (attention + feed_forward + norms) + width + embeddings)


def config_of(model: str, relative_to: Path) -> dict[str, Any] | None:
    """Return the `config.json` of a folder, or of a hub id in the local cache; None when it is not on this machine."""
    path = registry.model_file(model, "config.json", relative_to)
    if path is None:
        return None
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


@dataclass(frozen=True)
class StageCost:
    """What a stage will cost; None where a model's size is unknown."""

    parameters: int | None
    """Of the model that it trains."""
    teachers: Mapping[str, int | None]
    """Those that are loaded beside it."""
    bytes: int | None
    """Weights, gradients and optimiser of the student, weights of the teachers: a shared base once, no adapters."""
    flops: int | None
    """For answers of the greatest length. Prompts come on top."""


def stage_costs(recipe: Recipe, relative_to: Path) -> dict[str, StageCost]:
    """Return what each stage will cost, by name; paths are looked up from the folder `relative_to`."""
    sizes: dict[str, int | None] = {}

    def size(name: str) -> int | None:
        if name not in sizes:
            config = _config(recipe, name, relative_to)
            sizes[name] = None if config is None else parameters(config)
        return sizes[name]

    costs = {}
    for stage in recipe.stages:
        if isinstance(stage, Sft):
            teacher = None if stage.teacher is None else size(stage.teacher)
            costs[stage.name] = _sft_cost(stage, size(stage.model), teacher, recipe.max_new_tokens)
        else:
            teachers = {name: size(teacher.model) for name, teacher in stage.loaded.items()}
            dtypes = {name: _dtype(recipe, teacher) for name, teacher in stage.loaded.items()}
            costs[stage.name] = _distill_cost(stage, size(stage.student), teachers, dtypes, recipe)
        sizes[stage.name] = costs[stage.name].parameters
    return costs


def _config(recipe: Recipe, name: str, relative_to: Path) -> dict[str, Any] | None:
    model = recipe.models.get(name, name)
    if isinstance(model, NewModel):
        assert recipe.tokenizer is not None  # the reader refuses a new model without one
        vocabulary = len(set(recipe.tokenizer.characters)) + _SPECIAL_TOKENS
        return {"vocab_size": vocabulary, **model.config, "model_type": model.new}
    return config_of(model.path if isinstance(model, PretrainedModel) else model, relative_to)


def _dtype(recipe: Recipe, teacher: TeacherSpec) -> str:
    model = recipe.models.get(teacher.model)
    named = model.init if isinstance(model, PretrainedModel) else {}
    return str({**named, **teacher.init}.get("dtype", "float32"))


def _sft_cost(stage: Sft, size: int | None, teacher: int | None, max_new_tokens: int) -> StageCost:
    if size is None or (stage.teacher is not None and teacher is None):
        return StageCost(size, {}, None, None)
    flops = stage.steps * training_flops(size, stage.batch * max_new_tokens)
    answered = 0 if teacher is None else forward_flops(teacher, stage.num_rows * max_new_tokens)
    return StageCost(size, {}, training_bytes(size), flops + answered)


def _distill_cost(
    stage: Distill,
    size: int | None,
    teachers: Mapping[str, int | None],
    dtypes: Mapping[str, str],
    recipe: Recipe,
) -> StageCost:
    known = {name: teacher for name, teacher in teachers.items() if teacher is not None}
    if size is None or len(known) < len(teachers):
        return StageCost(size, teachers, None, None)
    rollout, max_new_tokens = stage.rollout, recipe.max_new_tokens
    tokens = rollout.prompts * rollout.completions * max_new_tokens
    generated = rollout.prompts * (rollout.completions - rollout.gold) * max_new_tokens
    # Behind the gate per prompt a teacher answers each prompt once, and scores all completions at most.
    heard = tokens + (rollout.prompts * max_new_tokens if stage.gate == "prompt" else 0)
    flops = stage.steps * (
        forward_flops(size, generated)
        + training_flops(size, tokens)
        + sum(forward_flops(teacher, heard) for teacher in known.values())
    )
    if stage.retain is not None:  # replayed at every step at most
        replayed = len(stage.protected(recipe.skills)) * stage.retain.batch * max_new_tokens
        flops += stage.steps * training_flops(size, replayed)
    frozen = {spec.base: frozen_bytes(known[name], dtypes[name]) for name, spec in stage.loaded.items()}
    return StageCost(size, teachers, training_bytes(size) + sum(frozen.values()), flops)

"""Tell whether a recipe is so plain that no library needs to be asked about it; no tensor library is imported.

`rld check` asks TRL, PEFT and transformers what `rld train` asks them before the first stage (`pipeline.run_checks`).
Importing them takes seconds, so it is left out where nothing that they could refuse is in the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rld.data.skill_rows import SkillRows
from rld.errors import RldError
from rld.losses.features import layer_pairs
from rld.pipeline.curriculum_loading import try_curriculum
from rld.pipeline.gold_answers import gold_rewards
from rld.recipe import registry, third_party_options
from rld.recipe.models import NewModel, PretrainedModel, PrunedModel
from rld.recipe.plugins import RewardSpec, VerifierSpec
from rld.recipe.schema import Recipe
from rld.recipe.sizes import parameters
from rld.recipe.stages.base import TrainingStage
from rld.recipe.stages.distill import Distill
from rld.recipe.stages.export import Export
from rld.recipe.stages.merge import Merge
from rld.recipe.stages.prune import Prune
from rld.recipe.tokenizer_files import lone_tokenizer
from rld.types import Row

_PLAIN_CONFIG = frozenset(
    {
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("head_dim", "tie_word_embeddings", "max_position_embeddings", "initializer_range", "attention_bias"),
    }
)
"""Options of a configuration that cannot be wrong by themselves, if they are positive numbers."""

_PLAIN_TRAINER = frozenset(
    {
        *("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
        *("warmup_steps", "activation_checkpointing", "bf16", "num_iterations", "beta"),
    }
)
"""Options of a trainer whose ranges `recipe.trainer_options` knows."""

_PLAIN_SCHEDULES = frozenset({"constant", "constant_with_warmup", "cosine", "linear"})


def absent_models(recipe: Recipe, folder: Path) -> list[str]:
    """Return the models of stages that are not on this machine, as a hub id or folder."""
    paths = [_path(recipe, name) for stage in recipe.stages for name in stage.references()]
    model_paths = [path for path in dict.fromkeys(paths) if path is not None and lone_tokenizer(path, folder) is None]
    absent = [path for path in model_paths if registry.model_file(path, "config.json", folder) is None]
    return [path for path in absent if not registry.is_adapter(path, folder)]


def reason_to_ask_libraries(recipe: Recipe, source: Path, skill_rows: Mapping[str, SkillRows]) -> str | None:
    """Return the first thing in a recipe that only the libraries can tell; None if there is none."""
    return next(_reasons(recipe, source, skill_rows), None)


def _reasons(recipe: Recipe, source: Path, skill_rows: Mapping[str, SkillRows]) -> Iterator[str]:
    folder = source.parent
    absent = absent_models(recipe, folder)
    yield from (f"the evaluator {options.kind}" for options in recipe.evaluation if options.kind != "held_out")
    for training in recipe.training_stages:
        yield from _trainer_reasons(training)
        if training.lora is not None and _path(recipe, training.student) not in absent:
            yield f"the adapter of stage '{training.name}'"
    for stage in recipe.stages:
        if isinstance(stage, Export | Merge | Prune):
            yield f"the models of stage '{stage.name}'"
        for name in stage.references():
            path = _path(recipe, name)
            if path is not None and path not in absent:
                yield f"the model {name}"
    for name, model in recipe.models.items():
        if isinstance(model, NewModel) and not _is_plain(model):
            yield f"the configuration of '{name}'"
    for skill in recipe.labels:
        yield f"the labels of skill '{skill}'"
    if not absent:
        yield from _row_reasons(recipe, skill_rows)
    for stage in recipe.stages:
        if isinstance(stage, Distill):
            yield from _distill_reasons(recipe, stage, source, skill_rows)


def _path(recipe: Recipe, name: str) -> str | None:
    """Return the hub id or folder of a model, or of the one that it is made from; None for a new model without any."""
    name = recipe.origin(name)
    model = recipe.models.get(name, name)
    if isinstance(model, NewModel):
        return None if model.tokenizer is None else _path(recipe, model.tokenizer)
    if isinstance(model, PrunedModel):
        return _path(recipe, model.prune)
    return model.path if isinstance(model, PretrainedModel) else model


def _is_plain(model: NewModel) -> bool:
    """Return whether a new model's configuration cannot be refused, from its arithmetic."""
    config = {**third_party_options.model_defaults(model.new), **model.config, "model_type": model.new, "vocab_size": 1}
    if not model.config.keys() <= _PLAIN_CONFIG or parameters(config) is None:
        return False
    sizes = [value for value in model.config.values() if not isinstance(value, bool)]
    if not all(isinstance(value, (int, float)) and value > 0 for value in sizes):
        return False
    width, heads = config["hidden_size"], config["num_attention_heads"]
    return bool(width % heads == 0 and heads % (config.get("num_key_value_heads") or heads) == 0)


def _trainer_reasons(stage: TrainingStage) -> Iterator[str]:
    options = dict(stage.trainer)
    if options.pop("lr_scheduler_type", "cosine") not in _PLAIN_SCHEDULES:
        yield f"the schedule of stage '{stage.name}'"
    for key in sorted(options.keys() - _PLAIN_TRAINER):
        yield f"the option {key} of stage '{stage.name}'"


def _row_reasons(recipe: Recipe, skill_rows: Mapping[str, SkillRows]) -> Iterator[str]:
    """Yield a reason if a row may not fit the character tokenizer, the length of answers or the shortest context."""
    configs = [config for name in recipe.models if (config := _config(recipe, name)) is not None]
    context = min((config.get("max_position_embeddings") or 0 for config in configs), default=0)
    characters = set(recipe.tokenizer.characters) if recipe.tokenizer is not None else set()
    for skill, source in skill_rows.items():
        max_new_tokens = recipe.blocks.get(skill, recipe.max_new_tokens)
        for place, row in source.examples():
            prompt, answer = str(row["prompt"]), row["answer"]
            longest = max(len(answer) + 1, max_new_tokens)
            is_short = len(answer) + 1 <= max_new_tokens and len(prompt) + longest <= context
            if not answer.strip() or not is_short or not set(prompt + answer) <= characters:
                yield f"row {place} of skill '{skill}'"
                return


def _distill_reasons(
    recipe: Recipe, stage: Distill, source: Path, skill_rows: Mapping[str, SkillRows]
) -> Iterator[str]:
    for name, teacher in stage.teachers.items():
        if teacher.prompt is not None:
            yield f"the prompt of teacher '{name}'"
    if not _features_exist(recipe, stage):
        yield f"the feature layers of stage '{stage.name}'"
    num_levels = {skill: skill_rows[skill].num_levels for skill in stage.skills or recipe.skills}
    try:
        try_curriculum(stage, num_levels, source)
    except RldError:
        yield f"the curriculum of stage '{stage.name}'"
    rows = [rows.held_out()[0] for rows in skill_rows.values() if rows.held_out()]
    for spec in (*recipe.rewards, recipe.verifier_in_use, stage.audit_in_use):
        if spec is not None and not _pays(spec, rows, source.parent):
            yield f"the reward {spec.use}"


def _features_exist(recipe: Recipe, stage: Distill) -> bool:
    """Return whether the arithmetic of new models shows that all layers of the feature signal exist and fit."""
    feature = stage.signals.feature
    configs = [_config(recipe, name) for name in stage.references()]
    if feature is None or None in configs:
        return True  # an absent model's layers cannot be looked at, and one that is here is a reason by itself
    if feature.loss.submodules:
        return False
    try:
        for config in configs:
            feature.loss.check((config or {})["hidden_size"])
        for config in configs[1:]:
            depths = (configs[0] or {})["num_hidden_layers"], (config or {})["num_hidden_layers"]
            pairs = layer_pairs(feature.loss.layers, *depths)
            if not all(isinstance(layer, int) for pair in pairs for layer in pair):
                return False
    except (RldError, KeyError):
        return False
    return True


def _config(recipe: Recipe, name: str) -> dict[str, Any] | None:
    """Return the configuration of the new model that a name refers to; None for another model."""
    model = recipe.models.get(recipe.origin(name))
    if not isinstance(model, NewModel):
        return None
    return {**third_party_options.model_defaults(model.new), **model.config}


def _pays(spec: RewardSpec | VerifierSpec, rows: list[Row], folder: Path) -> bool:
    """Return whether a reward returns numbers for gold answers."""
    try:
        if not registry.can_judge(spec.use, folder):
            return False
        rewards = gold_rewards(spec, rows, folder)
    except Exception:
        return False  # the libraries are asked, and tell what is wrong
    return len(rewards) == len(rows) and all(value is None or isinstance(value, (int, float)) for value in rewards)

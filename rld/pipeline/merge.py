"""Run a `merge` stage: merge the weights of models into one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rld.errors import ModelError, RecipeError
from rld.evaluation.held_out import Evaluation
from rld.models.adapters import add_adapter, require_mergeable, with_adapter
from rld.models.merging import Weights, linear, require_same_shapes, slerp, task_arithmetic
from rld.pipeline.model_card import write_model_card
from rld.pipeline.model_loading import Loaded
from rld.pipeline.run import RunContext
from rld.pipeline.run_inputs import record_revisions
from rld.pipeline.stage_results import NOT_SCORED, plain_scores, stage_record, store_result
from rld.recipe.stages.merge import Merge


def dry_run(context: RunContext, stage: Merge) -> None:
    """Compare the shapes and the tokenizers of the models, and try the adapters, without weights, if they are here.

    Raises:
        RecipeError: they cannot be merged.
    """
    adapters = _adapters(context, stage)
    skeletons = {name: context.models.skeleton(name) for name in stage.references() if name not in adapters}
    present = {name: model for name, model in skeletons.items() if model is not None}
    tokenizers = [context.models.encoder(name)[0].tokenizer for name in present]
    _require_alike(context, stage, list(present), list(present.values()), tokenizers)
    base = present.get(stage.origin)
    for name in adapters if base is not None else []:
        assert base is not None
        with _adapter_mistakes(context, stage, name):
            add_adapter(base, context.models.path(name))
            require_mergeable(base)


def run(context: RunContext, stage: Merge) -> None:
    """Merge the models, and score and store the result."""
    models = {name: _load(context, stage, name) for name in dict.fromkeys(stage.references())}
    record_revisions(context)
    names = list(models)
    _require_alike(
        context, stage, names, [model for model, _ in models.values()], [tokenizer for _, tokenizer in models.values()]
    )
    parts = {name: _scored(context, name, model) for name, model in models.items()}
    weights = {name: model.state_dict() for name, (model, _) in models.items()}
    merged = _merged(stage, weights)
    model, tokenizer = models[stage.origin]
    model.load_state_dict(merged)
    after = context.evaluate(model, tokenizer)
    record = stage_record(context, stage, model.num_parameters(), context.evaluator, after=after)
    record["merged"] = {
        name: {"parameters": models[name][0].num_parameters(), "scores": evaluation.scores}
        for name, evaluation in parts.items()
    }
    scorings = {f"merged/{name}": evaluation for name, evaluation in parts.items()}
    record["scorings"] |= {name: plain_scores(evaluation) for name, evaluation in scorings.items()}

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_model_card(folder, context, stage, record)

    store_result(context, stage, record, context.evaluator, evaluations=(NOT_SCORED, after), save=save, parts=scorings)


def _adapters(context: RunContext, stage: Merge) -> list[str]:
    """Return those of the stage's models that are PEFT adapters."""
    return [name for name in dict.fromkeys(stage.models) if context.models.is_adapter(name)]


def _load(context: RunContext, stage: Merge, name: str) -> Loaded:
    """Return a model of the stage; of an adapter its base with the adapter in its weights."""
    if not context.models.is_adapter(name):
        return context.models.load(name)
    assert stage.base is not None  # the recipe was validated
    model, tokenizer = context.models.load(stage.base)
    with _adapter_mistakes(context, stage, name):
        return with_adapter(model, context.models.path(name)), tokenizer


@contextmanager
def _adapter_mistakes(context: RunContext, stage: Merge, name: str) -> Iterator[None]:
    with context.mistakes_in(stage, "models"):
        try:
            yield
        except (ValueError, ModelError) as error:
            raise RecipeError(f"the adapter {name} cannot be merged into {stage.base}: {error}") from error


def _scored(context: RunContext, name: str, loaded: Loaded) -> Evaluation:
    return context.earlier_evaluation(name) or context.evaluate(*loaded)


def _merged(stage: Merge, weights: dict[str, Weights]) -> Weights:
    models, shares = [weights[name] for name in stage.models], stage.weights_in_use
    match stage.method:
        case "linear":
            return linear(models, shares)
        case "slerp":
            return slerp(models, shares[1] / sum(shares))
        case "task_arithmetic":
            assert stage.base is not None  # the recipe was validated
            return task_arithmetic(weights[stage.base], models, shares)


def _require_alike(
    context: RunContext, stage: Merge, names: list[str], models: Sequence[Any], tokenizers: Sequence[Any]
) -> None:
    """Raise a `RecipeError` that names the first model of another architecture or another tokenizer."""
    with context.mistakes_in(stage, "models"):
        for name, model, tokenizer in zip(names, models, tokenizers, strict=True):
            pair = f"{names[0]} and {name} cannot be merged"
            types = models[0].config.model_type, model.config.model_type
            if types[0] != types[1]:
                raise RecipeError(f"{pair}: they are of types {types[0]} and {types[1]}")
            if tokenizer.get_vocab() != tokenizers[0].get_vocab():
                raise RecipeError(f"{pair}: they have different tokenizers")
        require_same_shapes(names, models)

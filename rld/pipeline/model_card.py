"""Write the model card of a stage's student: what trained it, on what, how it scores, and the recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from rld.pipeline.run import RunContext
from rld.recipe import registry
from rld.recipe.models import NewModel, PretrainedModel, PrunedModel
from rld.recipe.names import is_hub_id
from rld.recipe.stages.base import Stage, TrainingStage
from rld.recipe.stages.distill import Distill
from rld.recipe.stages.merge import Merge
from rld.recipe.stages.prune import Prune
from rld.recipe.stages.sft import Sft
from rld.reporting.score_records import about_scores
from rld.reporting.series import number
from rld.types import SIGNALS
from rld.utils import files
from rld.utils.flops import training_flops
from rld.utils.versions import package_versions


def write_model_card(
    folder: Path, context: RunContext, stage: Stage, record: Mapping[str, Any], steps: int = 0
) -> None:
    """Write `README.md` into the folder of a stage's model.

    Args:
        record: The stage's record, as in `summary.json`.
        steps: Updates that the stage made; 0 for one that does not train.
    """
    base = _base_model(context, stage.origin)
    data = ModelCardData(
        base_model=base if base is not None and is_hub_id(base) and not _is_folder(context, base) else None,
        library_name="transformers",
        license=_license(context, base),
        pipeline_tag="text-generation",
        tags=_tags(stage),
        datasets=None,
        model_name=f"{context.recipe.name}-{stage.name}",
    )
    body = "\n".join(_body(context, stage, record, steps=steps, base=base))
    files.write_text(folder / "README.md", str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")))


def _body(
    context: RunContext, stage: Stage, record: Mapping[str, Any], *, steps: int, base: str | None
) -> Iterator[str]:
    recipe = context.recipe
    start = _code(base) if base is not None else "random weights"
    yield f"# {recipe.name}: {stage.name}"
    how = f"trained with `rld` from {start}"
    if isinstance(stage, Merge):
        how = f"merged with `rld` by `{stage.method}`"
    elif isinstance(stage, Prune):
        how = f"cut with `rld` out of {_code(stage.model)} ({stage.words()})"
    yield f"\nThis model was {how}, as stage {context.stage_number(stage.name)} of "
    yield f"{len(recipe.stages)} (kind `{stage.kind}`) of the recipe `{recipe.name}` with seed {recipe.seed}."
    yield from _teachers(stage, record)
    yield from _weights(context, stage)
    yield from _merged_models(stage, record)
    yield from _scores(context, record)
    yield "\n## Cost\n"
    yield "| what | amount |\n|---|---|"
    yield from [f"| updates | {steps} |"] if steps else []
    for name, count in _tokens(context, stage, record).items():
        yield f"| {name} | {count} |"
    yield f"| FLOPs | {number(record['flops'])} |\n| seconds | {record['seconds']} |"
    yield f"\nIt ran as {context.launch}. Versions: "
    yield ", ".join(f"{name} {version}" for name, version in package_versions().items()) + "."
    yield "\n## Recipe\n\nWith all defaults; secrets are masked.\n"
    text = yaml.safe_dump(files.read_json(context.paths.recipe), sort_keys=False, allow_unicode=True, width=110)
    fence = "`" * max(3, _longest_run(text) + 1)
    yield f"{fence}yaml\n{text}{fence}"


def _code(text: str) -> str:
    """Return a text as code in Markdown, which none of its characters ends."""
    fence = "`" * (_longest_run(text) + 1)
    space = " " if "`" in text else ""
    return f"{fence}{space}{' '.join(text.split())}{space}{fence}"


def _code_of_cell(text: str) -> str:
    """Return a text as code in the cell of a table."""
    return _code(text).replace("|", r"\|")


def _longest_run(text: str) -> int:
    """Return the length of the longest run of backticks in a text."""
    return max(map(len, re.findall("`+", text)), default=0)


def _teachers(stage: Stage, record: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(stage, Distill) and stage.teachers:
        yield "\n## Teachers\n\n| teacher | where | parameters | mean score |\n|---|---|---|---|"
        for name, spec in stage.teachers.items():
            result = record["teachers"].get(name)
            cells = (number(result["parameters"]), _mean(result["scores"])) if result else ("-", "-")
            yield f"| {name} | {_code_of_cell(spec.place)} | {cells[0]} | {cells[1]} |"
    elif getattr(stage, "teacher", None) is not None:
        yield f"\n## Teachers\n\nIt was fine-tuned on answers of {_code(str(getattr(stage, 'teacher', '')))}."


def _merged_models(stage: Stage, record: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(stage, Merge):
        return
    yield "\n## Merged models\n\n| model | weight | parameters | mean score |\n|---|---|---|---|"
    weights = zip(stage.models, stage.weights_in_use, strict=True)
    for name, weight in [*([(stage.base, "base")] if stage.base is not None else []), *weights]:
        part = record["merged"][name]
        yield f"| {_code_of_cell(name)} | {weight} | {number(part['parameters'])} | {_mean(part['scores'])} |"


def _mean(scores: Mapping[str, float]) -> str:
    return f"{fmean(scores.values()):.3f}" if scores else "-"


def _weights(context: RunContext, stage: Stage) -> Iterator[str]:
    """Yield the mean weight of each signal over the stage's logged updates."""
    means = {}
    for signal in SIGNALS:
        values = _logged(context, stage, f"weight/{signal}")
        if values:
            means[signal] = fmean(values)
    if means:
        yield "\n## Signals\n\n| signal | mean weight over the updates |\n|---|---|"
        yield from (f"| {signal} | {mean:.3f} |" for signal, mean in means.items())


def _scores(context: RunContext, record: Mapping[str, Any]) -> Iterator[str]:
    rows = context.evaluator.rows
    main = [next(iter(scores)) for scores in record["scorings"]["after"].values()]
    yield f"\n## Scores\n\nOf each skill: {about_scores(main)}."
    yield "\n| skill | items | before | after |\n|---|---|---|---|"
    for skill, after in record["after"].items():
        num_items = sum(row["skill"] == skill for row in rows)
        before = f"{record['before'][skill]:.3f}" if skill in record["before"] else "-"
        yield f"| {skill} | {num_items} | {before} | {after:.3f} |"


def _tokens(context: RunContext, stage: Stage, record: Mapping[str, Any]) -> dict[str, int]:
    """Return the tokens of a stage by what was done with them."""
    if isinstance(stage, Sft):
        flops = record["flops_by_account"]["student"]
        return {"tokens that the student read": round(flops / training_flops(record["student"]["parameters"], 1))}
    if not isinstance(stage, Distill):
        return {}
    generated = _logged(context, stage, "tokens/generated")
    tokens = {"tokens that the student generated": int(generated[-1])} if generated else {}
    if record["teacher_tokens"] is not None:
        tokens["tokens that teachers scored"] = int(record["teacher_tokens"]["scored"])
    return tokens


def _logged(context: RunContext, stage: Stage, metric: str) -> list[float]:
    """Return the values of a metric that a stage logged; what is no number, as in a damaged line, is left out."""
    records, _ = files.read_jsonl(context.paths.metrics)
    values = [record.get(metric) for record in records if record.get("stage") == stage.name]
    return [value for value in values if files.is_number(value)]


def _base_model(context: RunContext, reference: str) -> str | None:
    """Return the folder or hub id from whose weights a reference started; None: random weights."""
    reference = context.recipe.origin(reference)
    match context.recipe.models.get(reference, reference):
        case NewModel():
            return None
        case PretrainedModel() as model:
            return model.path
        case PrunedModel() as model:
            return _base_model(context, model.prune)
        case str(name):
            return name
    return None


def _is_folder(context: RunContext, name: str) -> bool:
    return registry.find_path(name, context.source.parent) is not None


def _license(context: RunContext, base: str | None) -> str | None:
    """Return the licence that the base model's own card names, where that card is on this machine."""
    path = None if base is None else registry.model_file(base, "README.md", context.source.parent)
    if path is None:
        return None
    try:
        name = ModelCard.load(path).data.get("license")
    except (ValueError, yaml.YAMLError):  # another kind of README
        return None
    return str(name) if name else None


def _tags(stage: Stage) -> list[str]:
    tags = ["rld", "trl", stage.kind]
    if isinstance(stage, Distill):
        tags += [name for name in SIGNALS if getattr(stage.signals, name) is not None]
    return tags + (["lora"] if isinstance(stage, TrainingStage) and stage.lora is not None else [])

"""Write the model card of a stage's model: what it learned from, how it scores, what it cost, how to make it anew."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from rld.pipeline.licences import base_model, licence_fields, licence_of_model, licence_of_teacher
from rld.pipeline.run import RunContext
from rld.pipeline.summary import command_line
from rld.recipe import registry
from rld.recipe.names import is_hub_id
from rld.recipe.prices import Prices
from rld.recipe.skills import DatasetSkill
from rld.recipe.stages.base import Stage, TrainingStage
from rld.recipe.stages.distill import Distill
from rld.recipe.stages.merge import Merge
from rld.recipe.stages.prune import Prune
from rld.recipe.stages.sft import Sft
from rld.reporting.history import PlannedStage
from rld.reporting.purposes import ABOUT, HEADS, cells, money, purposes
from rld.reporting.score_records import ScoreRecord, about_scores, with_interval
from rld.reporting.series import number
from rld.reporting.spending import energy_note, stage_spending
from rld.reporting.summary_records import StageResult
from rld.reporting.verdict import NUM_ERRORS, SMALLEST_CHANGE, Estimate, losses_of_skills
from rld.types import SIGNALS
from rld.utils import files
from rld.utils.flops import training_flops
from rld.utils.messages import one_line
from rld.utils.versions import package_versions


def write_model_card(
    folder: Path, context: RunContext, stage: Stage, record: Mapping[str, Any], steps: int = 0
) -> None:
    """Write `README.md` into the folder of a stage's model.

    Args:
        record: The stage's record, as in `summary.json`.
        steps: Updates that the stage made; 0 for one that does not train.
    """
    base = base_model(context, stage.origin)
    skills = [context.recipe.skills[name] for name in context.skills(stage)]
    data = ModelCardData(
        base_model=base if base is not None and is_hub_id(base) and not _is_folder(context, base) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=_tags(stage),
        datasets=sorted({skill.dataset for skill in skills if isinstance(skill, DatasetSkill)}) or None,
        model_name=f"{context.recipe.name}-{stage.name}",
        **({} if base is None else licence_fields(context, base)),
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
    if base is not None:
        yield f"Licence of the weights from which it started: {_cell(licence_of_model(context, stage.origin))}."
    yield from _learning(context, stage, steps)
    yield from _teachers(context, stage, record)
    yield from _weights(context, stage)
    yield from _merged_models(context, stage, record)
    yield from _data(context, stage)
    yield from _scores(context, record)
    yield from _forgotten(context, stage, record)
    yield from _cost(context, stage, record, steps)
    yield f"\nIt ran as {context.launch}. Versions: "
    yield ", ".join(f"{name} {version}" for name, version in package_versions().items()) + "."
    yield f"\n## How to make it anew\n\n{_fenced('sh', command_line())}\n"
    yield "Without the recipe's file, save this recipe beside the files that it names, and give its path instead."
    yield "It has all overrides and defaults; secrets are masked.\n"
    text = yaml.safe_dump(files.read_json(context.paths.recipe), sort_keys=False, allow_unicode=True, width=110)
    yield _fenced("yaml", text.rstrip("\n"))


def _fenced(language: str, text: str) -> str:
    """Return a text as a block of code in Markdown, which none of its lines ends."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _code(text: str) -> str:
    """Return a text as code in Markdown, which none of its characters ends."""
    fence = "`" * (_longest_run(text) + 1)
    space = " " if "`" in text else ""
    return f"{fence}{space}{one_line(text)}{space}{fence}"


def _code_of_cell(text: str) -> str:
    """Return a text as code in the cell of a table."""
    return _code(text).replace("|", r"\|")


def _longest_run(text: str) -> int:
    """Return the length of the longest run of backticks in a text."""
    return max(map(len, re.findall("`+", text)), default=0)


def _learning(context: RunContext, stage: Stage, steps: int) -> Iterator[str]:
    """Yield from what this stage and those whose models it was made from have learned."""
    yield "\n## What it learned from\n\n| stage | kind | from | updates |\n|---|---|---|---|"
    for origin in context.recipe.way_to(stage.name):
        earlier = None if origin.name == stage.name else context.paths.stage_record(origin.name)
        updates = steps if earlier is None else earlier.get("steps", 0)
        yield f"| {origin.name} | {origin.kind} | {_learned_from(context, origin)} | {updates or '-'} |"


def _learned_from(context: RunContext, stage: Stage) -> str:
    skills = ", ".join(context.skills(stage))
    if isinstance(stage, Sft):
        answers = "gold answers" if stage.teacher is None else f"answers of {_code_of_cell(stage.teacher)}"
        return f"{answers}: {skills}"
    if not isinstance(stage, Distill):
        models = list(dict.fromkeys(stage.references()))
        return f"no rows; the weights of {', '.join(map(_code_of_cell, models))}"
    parts = []
    if stage.signals.policy is not None:
        rewards = ", ".join(f"{_code_of_cell(spec.use)} x {spec.weight:g}" for spec in context.recipe.rewards)
        parts.append(f"rewards {rewards} (policy)")
    taught = [name for name in SIGNALS if name != "policy" and getattr(stage.signals, name) is not None]
    if stage.teachers and taught:
        parts.append(f"teachers {', '.join(map(_code_of_cell, stage.teachers))} ({', '.join(taught)})")
    if _logged(context, stage, "loss/gold"):  # with `signals.gold: auto` the run decides
        parts.append("gold answers")
    return f"{'; '.join(parts)}: {skills}"


def _teachers(context: RunContext, stage: Stage, record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the teachers of this stage and of those whose models it was made from, with their licences."""
    rows = []
    for origin in context.recipe.way_to(stage.name):
        results = record if origin.name == stage.name else context.paths.stage_record(origin.name) or {}
        rows += [f"| {origin.name} | {row}" for row in _teachers_of(context, origin, results.get("teachers", {}))]
    if rows:
        yield "\n## Teachers\n\nLicences are those that the models' own cards name, where these are on this machine."
        yield "\n| stage | teacher | where | licence | parameters | mean score |\n|---|---|---|---|---|---|"
        yield from rows


def _teachers_of(context: RunContext, stage: Stage, results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the cells of each teacher of a stage."""
    if isinstance(stage, Sft) and stage.teacher is not None:
        name = _code_of_cell(stage.teacher)
        yield f"its answers | {name} | {_cell(licence_of_model(context, stage.teacher))} | - | - |"
    for name, spec in stage.teachers.items() if isinstance(stage, Distill) else ():
        result = results.get(name)
        cells = (number(result["parameters"]), _mean(result["scores"])) if result else ("-", "-")
        licence = _cell(licence_of_teacher(context, spec))
        yield f"{name} | {_code_of_cell(spec.place)} | {licence} | {cells[0]} | {cells[1]} |"


def _cell(text: str) -> str:
    """Return a text that another model's card has, without what Markdown reads as more than text."""
    return re.sub(r"[|<>`*\[\]\\]", "", one_line(text))


def _merged_models(context: RunContext, stage: Stage, record: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(stage, Merge):
        return
    yield "\n## Merged models\n\n| model | weight | licence | parameters | mean score |\n|---|---|---|---|---|"
    weights = zip(stage.models, stage.weights_in_use, strict=True)
    for name, weight in [*([(stage.base, "base")] if stage.base is not None else []), *weights]:
        part = record["merged"][name]
        licence = _cell(licence_of_model(context, name))
        cells = f"{weight} | {licence} | {number(part['parameters'])} | {_mean(part['scores'])}"
        yield f"| {_code_of_cell(name)} | {cells} |"


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


def _data(context: RunContext, stage: Stage) -> Iterator[str]:
    """Yield where the rows come from, of the skills on which the stage has learned and was scored."""
    learned = context.skills(stage) if isinstance(stage, TrainingStage) else []
    yield "\n## Data\n\n| skill | rows from | rows | in this stage | held-out rows |\n|---|---|---|---|---|"
    for name, skill in context.recipe.skills.items():
        num_rows = context.skill_rows[name].num_rows
        rows = "as many as needed" if num_rows is None else f"{num_rows}"
        use = "learned and scored" if name in learned else "scored"
        yield f"| {name} | {_code_of_cell(skill.origin)} | {rows} | {use} | {_num_held_out(context, name)} |"


def _num_held_out(context: RunContext, skill: str) -> str:
    return str(sum(row["skill"] == skill for row in context.evaluator.rows) or "-")


def _scores(context: RunContext, record: Mapping[str, Any]) -> Iterator[str]:
    scorings = record["scorings"]
    main = [next(iter(scores)) for scores in scorings["after"].values()]
    yield f"\n## Scores\n\nThe first of each skill: {about_scores(main)}. With 95% intervals over the held-out rows."
    yield "\n| skill | score | held-out rows | before | after |\n|---|---|---|---|---|"
    for skill, after in scorings["after"].items():
        before = scorings.get("before", {}).get(skill, {})
        for name, score in after.items():
            old = ScoreRecord(**before[name]) if name in before else None
            cells = f"{with_interval(old)} | {with_interval(ScoreRecord(**score))}"
            yield f"| {skill} | {name} | {_num_held_out(context, skill)} | {cells} |"


def _forgotten(context: RunContext, stage: Stage, record: Mapping[str, Any]) -> Iterator[str]:
    """Yield on which skills the model is worse than the one with which the first stage on the way to it began."""
    records = _records_of_way(context, stage, record)
    first = next((entry for entry in records if "before" in entry["scorings"]), None)
    if first is None or isinstance(stage, Merge):
        return
    yield f"\n## What was forgotten\n\nCompared with the scores before stage `{first['name']}`; what is no skill of the"
    yield "recipe was not measured. "
    before, after = (_main_scores(entry["scorings"][key]) for entry, key in ((first, "before"), (record, "after")))
    losses = losses_of_skills(_estimates(before), _estimates(after))
    chance = f"{NUM_ERRORS:g} standard errors and {SMALLEST_CHANGE:g}"
    if not losses:
        yield f"No score fell by more than chance ({chance})."
        return
    yield f"Listed are the scores that fell by more than chance ({chance})."
    yield "\n| skill | before | after | change, with its 95% interval |\n|---|---|---|---|"
    for skill in losses:
        change = after[skill].change_from(before[skill]).within(-1.0, 1.0)
        interval = f"{change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
        yield f"| {skill} | {before[skill].value:.3f} | {after[skill].value:.3f} | {interval} |"


def _records_of_way(context: RunContext, stage: Stage, record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the records of the stages whose models this one was made from, in order, and its own."""
    earlier = [origin.name for origin in context.recipe.way_to(stage.name) if origin.name != stage.name]
    return [*filter(None, map(context.paths.stage_record, earlier)), record]


def _main_scores(scoring: Mapping[str, Mapping[str, Any]]) -> dict[str, ScoreRecord]:
    return {skill: ScoreRecord(**next(iter(scores.values()))) for skill, scores in scoring.items()}


def _estimates(scores: Mapping[str, ScoreRecord]) -> dict[str, Estimate]:
    return {skill: Estimate(score.value, score.error) for skill, score in scores.items()}


def _cost(context: RunContext, stage: Stage, record: Mapping[str, Any], steps: int) -> Iterator[str]:
    yield "\n## Cost\n\n| what | this stage |\n|---|---|"
    yield from [f"| updates | {steps} |"] if steps else []
    for name, count in _tokens(context, stage, record).items():
        yield f"| {name} | {count} |"
    yield f"| FLOPs | {number(record['flops'])} |\n| seconds | {record['seconds']} |"
    result = StageResult.model_validate(record)
    prices, spending = context.recipe.prices, stage_spending(result)
    if prices is not None:
        energy, cost = number(spending.kilowatt_hours(prices)), number(spending.cost(prices))
        yield f"| kWh | {energy} |\n| {prices.currency} | {cost} |"
    records = _records_of_way(context, stage, record)
    if len(records) > 1:
        flops, seconds = (sum(entry[key] for entry in records) for key in ("flops", "seconds"))
        yield f"\nWith the stages that its weights went through: {number(flops)} FLOPs, {seconds:.1f} seconds."
    if prices is None:
        yield "\nThe recipe has no prices; `rld cost RUN --prices prices.yaml` computes money and energy from the time."
    elif note := energy_note([spending], prices):
        yield f"\n{note}"
    yield from _spent_on(PlannedStage.model_validate(stage.model_dump(mode="json")), result, prices)


def _spent_on(plan: PlannedStage, result: StageResult, prices: Prices | None) -> Iterator[str]:
    """Yield the table of what the stage's operations were for, if that is more than one thing."""
    stage_purposes, spending = purposes(result, plan), stage_spending(result)
    if len(stage_purposes) < 2:
        return
    heads = [*HEADS, *([] if prices is None else [prices.currency, f"{prices.currency} a point"])]
    yield f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
    for purpose in stage_purposes:
        row = cells(purpose, result) + ([] if prices is None else money(purpose, result, spending, prices))
        yield f"| {' | '.join(map(_cell, row))} |"
    yield f"\n{ABOUT}"


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


def _is_folder(context: RunContext, name: str) -> bool:
    return registry.find_path(name, context.source.parent) is not None


def _tags(stage: Stage) -> list[str]:
    tags = ["rld", "trl", stage.kind]
    if isinstance(stage, Distill):
        tags += [name for name in SIGNALS if getattr(stage.signals, name) is not None]
    return tags + (["lora"] if isinstance(stage, TrainingStage) and stage.lora is not None else [])

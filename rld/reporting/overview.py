"""Show a recipe before it runs: its models, skills and stages, and what each will cost."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rld.recipe.cost import StageCost, stage_costs
from rld.recipe.schema import Recipe
from rld.recipe.skills import FileSkill, GeneratedSkill
from rld.recipe.stages.distill import Distill
from rld.recipe.stages.sft import Sft
from rld.recipe.teachers import ServedTeacher


def overview(recipe: Recipe, relative_to: Path) -> RenderableType:
    """Return what `rld check` prints; paths in the recipe are looked up from the folder `relative_to`."""
    costs = stage_costs(recipe, relative_to)
    parts: list[RenderableType] = [_skills(recipe)]
    parts += [_stage(number, stage, costs[stage.name], recipe) for number, stage in enumerate(recipe.stages, 1)]
    known = [cost.flops for cost in costs.values() if cost.flops is not None]
    total = sum(known) if len(known) == len(costs) else None
    notes = (
        f"FLOPs in all: about {quantity(total)}, for answers of {recipe.max_new_tokens} tokens; prompts and scoring "
        "come on top. Memory is that of weights, gradients and AdamW in float32; activations come on top."
    )
    if total is None:
        notes += " A size is unknown where a model is not on this machine yet, or rld cannot tell it for its kind."
    return Group(*parts, Text(f"\n{notes}"))


def quantity(number: int | None) -> str:
    """Return a number with the prefix that keeps it short.

    >>> quantity(862_400)
    '862k'
    """
    if number is None:
        return "unknown"
    value, prefixes = float(number), iter(("", "k", "M", "G", "T", "P", "E", "Z"))
    while (prefix := next(prefixes)) != "Z" and value >= 999.5:
        value /= 1000
    return f"{value:.3g}{prefix}"


def _skills(recipe: Recipe) -> Table:
    table = Table(
        "skill", "rows from", "levels", "held out", title=f"{recipe.name} (seed {recipe.seed})", title_justify="left"
    )
    for name, skill in recipe.skills.items():
        if isinstance(skill, FileSkill):
            table.add_row(Text(name), Text(skill.rows), "in the file", str(skill.held_out))
        else:
            origin = skill.generator if isinstance(skill, GeneratedSkill) else f"reasoning-gym {skill.reasoning_gym}"
            table.add_row(Text(name), Text(origin), str(len(skill.levels)), str(skill.held_out))
    return table


def _stage(number: int, stage: Sft | Distill, cost: StageCost, recipe: Recipe) -> Table:
    table = Table(box=None, show_header=False, title=f"\n{number}. {stage.name}: {stage.run}")
    table.title_justify = "left"
    lora = ", a LoRA adapter" if stage.lora is not None else ""
    if isinstance(stage, Sft):
        table.add_row("trains", Text(f"{stage.model}, {quantity(cost.parameters)} parameters{lora}"))
        table.add_row("on", Text(f"{_listed(stage.skills)}; {stage.steps} steps of {stage.batch} rows"))
    else:
        table.add_row("trains", Text(f"{stage.student}, {quantity(cost.parameters)} parameters{lora}"))
        for name, teacher in stage.teachers.items():
            taught = "where it proves better" if teacher.skills is None else f"for {_listed(teacher.skills)}"
            if isinstance(teacher, ServedTeacher):
                table.add_row("teacher", Text(f"{name}: at {teacher.url}, {taught}"))
                continue
            size = f"{quantity(cost.teachers[name])} parameters"
            adapted = f" with adapter {teacher.adapter}" if teacher.adapter is not None else ""
            table.add_row("teacher", Text(f"{name}: {teacher.model}{adapted}, {size}, {taught}"))
        table.add_row("signals", Text(_signals(stage)))
        if stage.signals.policy is not None or stage.gate == "prompt":
            table.add_row("rewards", Text(", ".join(f"{spec.use} x {spec.weight:g}" for spec in recipe.rewards)))
        if stage.teachers:
            gated = "per prompt, by the teacher's own answer to it" if stage.gate == "prompt" else "none per prompt"
            table.add_row("gate", Text(gated + (", on failed completions" if stage.teach_on == "failed" else "")))
        table.add_row("controller", Text(f"{stage.controller.kind}, every {stage.controller.every} steps"))
        table.add_row("curriculum", Text(stage.curriculum.use))
        if stage.audit is not None:
            table.add_row("audit", Text(f"{stage.audit.reward} checks {stage.audit.share:.0%} of the successes"))
        if stage.retain is not None:
            kept, rule = _listed(stage.protected(recipe.skills)), stage.retain
            replayed = f"{rule.probes} probes each, {rule.batch} completions replayed a step"
            table.add_row("retains", Text(f"{kept}: {rule.drop:g} below the start at most; {replayed}"))
        if stage.changes:
            table.add_row("changes", Text(f"{len(stage.changes)} on purpose"))
        rollout = f"{stage.rollout.prompts} prompts x {stage.rollout.completions} completions"
        table.add_row("on", Text(f"{_listed(stage.skills)}; {stage.steps} steps of {rollout}"))
    table.add_row("costs", f"FLOPs: about {quantity(cost.flops)}; bytes of memory: {quantity(cost.bytes)}")
    return table


def _listed(skills: list[str] | None) -> str:
    return "all skills" if skills is None else ", ".join(skills)


def _signals(stage: Distill) -> str:
    signals, words = stage.signals, []
    if signals.policy is not None:
        shaped = signals.policy.teacher_reward
        words.append("policy" + (f" (teacher-scored reward x {shaped:g})" if shaped else ""))
    if signals.response is not None and stage.teachers:
        several = f", {signals.response.combine.kind} of teachers" if len(stage.teachers) > 1 else ""
        words.append(f"response ({signals.response.divergence.kind}{several})")
    if signals.feature is not None:
        words.append(f"feature ({signals.feature.loss.kind})")
    return ", ".join(words)

"""Show a recipe before it runs: its models, skills and stages, and what each will cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rld.recipe.cost import stage_costs
from rld.recipe.hardware import Cards, Estimate, estimate
from rld.recipe.prices import Prices
from rld.recipe.registry import can_judge
from rld.recipe.schema import Recipe
from rld.recipe.sizes import Lengths, StageCost, quantity
from rld.recipe.stages import AnyStage
from rld.recipe.stages.distill import Distill
from rld.reporting import series

_RANGE = "from completions as long as gold answers to wrong ones as long as max_new_tokens"
"""What the range of a stage's FLOPs goes over."""

_LONGEST = 200
"""Characters of a prompt or an answer that are shown."""


def overview(
    recipe: Recipe,
    relative_to: Path,
    rows: Mapping[str, Lengths] | None = None,
    cards: Cards | None = None,
    prices: Prices | None = None,
) -> RenderableType:
    """Return what `rld check` prints of a recipe.

    Args:
        recipe: The recipe.
        relative_to: The folder that paths in the recipe are relative to.
        rows: The lengths of each skill's rows. None: prompts of no tokens and the longest answers.
        cards: The GPUs whose time and memory are estimated too. None: no GPU.
        prices: What the machine with these GPUs costs. None: no money is estimated.
    """
    costs = stage_costs(recipe, relative_to, rows)
    parts: list[RenderableType] = [_skills(recipe)]
    if any(stage.uses_rewards for stage in recipe.stages):
        parts.append(_rewards(recipe))
    parts.append(_judge(recipe, relative_to))
    skills = list(recipe.skills)
    stages = enumerate(recipe.stages, 1)
    parts += [_stage(number, stage, costs[stage.name], skills, cards, prices) for number, stage in stages]
    flops = [cost.flops for cost in costs.values() if cost.flops is not None]
    total = sum(flops) if len(flops) == len(costs) else None
    notes = (
        f"FLOPs in all: about {quantity(total)}, for answers as long as the gold answers, or as max_new_tokens "
        "where a skill has none; held-out scores come on top. Memory is that of weights, gradients and AdamW in "
        "float32; activations come on top."
    )
    if total is None:
        notes += " A size is unknown where a model is not on this machine yet, or rld cannot tell it for its kind."
    return Group(*parts, Text(f"\n{notes}"))


def skill_tables(skills: Sequence[Any]) -> RenderableType:
    """Return a table of the rows that were read, and one of a prompt with its gold answer per skill.

    Args:
        skills: The summaries of the skills, of `pipeline.skill_summary`.
    """
    texts = [skill for skill in skills if hasattr(skill, "num_blocks")]
    others = [skill for skill in skills if skill not in texts]
    tables = ([_row_tables(others)] if others else []) + ([_text_table(texts)] if texts else [])
    return Group(*tables)


def label_table(labels: Sequence[Any]) -> RenderableType:
    """Return a table of labels with the words that say them, and their tokens in each tokenizer.

    Args:
        labels: A `pipeline.label_summary.LabelSummary` for each label.
    """
    models = list(labels[0].tokens)
    headers = "skill", "label", "words", "rows", *(f"tokens of {model}" for model in models)
    table = Table(*headers, title="\nlabels", title_justify="left")
    for label in labels:
        spelt = [" ".join(map(repr, label.tokens[model])) for model in models]
        words = ", ".join(map(repr, [label.words, *label.synonyms]))
        row = label.skill, _one_line(label.label), words, f"{label.num_rows:,}", *spelt
        table.add_row(*map(Text, row))
    return table


def own_prompt_table(examples: Sequence[Any]) -> Table:
    """Return a table of prompts that teachers read in place of the student's.

    Args:
        examples: `pipeline.own_prompt_examples.OwnPromptExample`s.
    """
    table = Table("stage", "teacher", "skill", "its own prompt", title="\nteachers' prompts", title_justify="left")
    for example in examples:
        table.add_row(Text(example.stage), Text(example.teacher), Text(example.skill), Text(_one_line(example.prompt)))
    return table


def _text_table(texts: Sequence[Any]) -> Table:
    table = Table(
        "skill", "documents", "tokens", "blocks", "the first one begins", title="\ntexts", title_justify="left"
    )
    for text in texts:
        sizes = f"about {quantity(text.num_tokens)}", f"about {quantity(text.num_blocks)}"
        table.add_row(Text(text.skill), f"{text.num_rows:,}", *sizes, Text(_one_line(text.beginning)))
    return table


def _row_tables(skills: Sequence[Any]) -> RenderableType:
    heads = "skill", "levels", "rows read", "questions", "longest answer"
    rows = Table(*heads, title="\ndata", title_justify="left")
    examples = Table("skill", "prompt", "gold answer", title="\nexamples", title_justify="left")
    for skill in skills:
        longest = f"{skill.longest_answer} characters"
        counts = map(str, (skill.num_levels, skill.num_rows, skill.num_questions))
        rows.add_row(Text(skill.skill), *counts, longest)
        examples.add_row(Text(skill.skill), Text(_one_line(skill.prompt)), Text(_one_line(skill.answer)))
    return Group(rows, examples)


def _one_line(text: str) -> str:
    """Return a text of a data file for a terminal, which would obey control characters, and shorten it."""
    line = "".join(part if part.isprintable() else part.encode("unicode_escape").decode() for part in text)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


def _skills(recipe: Recipe) -> Table:
    title = f"{recipe.name} (seed {recipe.seed})"
    table = Table("skill", "rows from", "held out", title=title, title_justify="left")
    for name, skill in recipe.skills.items():
        held_out = f"{skill.held_out:g}" if isinstance(skill.held_out, (int, float)) else skill.held_out.origin
        table.add_row(Text(name), Text(skill.origin), Text(held_out))
    return table


def _rewards(recipe: Recipe) -> Text:
    rewards = ", ".join(f"{spec.use} x {spec.weight:g}" for spec in recipe.rewards)
    return Text(f"rewards: {rewards}\nverifier: {recipe.verifier_in_use.use}")


def _judge(recipe: Recipe, relative_to: Path) -> Text:
    """Say what decides which answers are correct outside of training."""
    use = recipe.judge_in_use.use
    if can_judge(use, relative_to):
        return Text(f"judge of held-out answers: {use}")
    return Text(
        f"judge of held-out answers: comparison with the gold answers, because {use} reads a model or is asynchronous"
    )


def _stage(
    number: int, stage: AnyStage, cost: StageCost, skills: list[str], cards: Cards | None, prices: Prices | None
) -> Table:
    table = Table(box=None, show_header=False, title=f"\n{number}. {stage.name}: {stage.kind}")
    table.title_justify = "left"
    for name, text in stage.describe(cost, skills):
        table.add_row(name, Text(text))
    parts = {account: flops for account, flops in (cost.flops_by_account or {}).items() if flops}
    by_account = f" ({', '.join(f'{account} {quantity(flops)}' for account, flops in parts.items())})"
    flops = f"about {quantity(cost.flops)}{by_account if len(parts) > 1 else ''}"
    table.add_row("costs", f"FLOPs: {flops}; bytes of memory: {quantity(cost.bytes)}")
    if cost.flops_range is not None:
        refill = stage.rollout.refill if isinstance(stage, Distill) else 0
        replaced = f", with each prompt replaced {refill} times" if refill else ""
        table.add_row("", f"FLOPs are {' to '.join(map(quantity, cost.flops_range))} {_RANGE}{replaced}")
    if cards is not None and cost.demand is not None and cost.flops_by_account is not None:
        total = estimate(cost.flops_by_account, cost.demand, cards)
        table.add_row(f"on {cards}", _on_cards(total, cards))
        if prices is not None:
            table.add_row("paid", Text(_cost_text(total.total_seconds, prices)))
    return table


def _on_cards(total: Estimate, cards: Cards) -> str:
    """Say how long a stage takes on cards, what takes longest, and whether it fits."""
    parts = ", ".join(f"{account} {series.duration(time)}" for account, time in total.seconds.items())
    memory = f"{quantity(round(total.whole_bytes))}B of each card's {quantity(round(cards.card.memory))}B"
    if cards.number > 1:
        memory += f", {quantity(round(total.sharded_bytes))}B with FSDP2 or ZeRO-3"
    short = "" if total.sharded_bytes <= cards.card.memory else "; it does not fit: see docs/scaling.md"
    return f"at least {series.duration(total.total_seconds)} ({parts}), most for {total.bottleneck}; {memory}{short}"


def _cost_text(seconds: float, prices: Prices) -> str:
    """Say what a stage that takes so many seconds costs, without what an API asks."""
    energy = f", {series.number(prices.kilowatt_hours(seconds))} kWh" if prices.watts else ""
    return f"at least {series.number(seconds * prices.training_second)} {prices.currency}{energy}"

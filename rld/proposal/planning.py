"""Chooses steps, batch and held-out rows for a stated time, and what saves memory, by the costs that a check plans."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rld.proposal.draft import Draft
from rld.proposal.plan import Plan
from rld.recipe.cost import stage_costs
from rld.recipe.hardware import SAMPLING_SHARE, SCORING_SHARE, estimate
from rld.recipe.reading import read_recipe
from rld.recipe.sizes import StageCost

_SCORING_TIME = 0.25
"""Share of the time for scores on held-out rows; the rest is for training."""

_MOST_HELD_OUT = 200

_ENOUGH_STEPS = 50
"""Steps below which updates are made smaller, so that there are more of them."""

_PASSES = 3
"""Over the rows: what is read more often is learnt by heart."""

_MEMORY_SHARE = 0.8
"""Of the free memory, for what can be planned."""

_SCORING_BATCH = 64
"""Rows of a forward when a model is scored."""

_DRAFT_STEPS = 100
"""Steps of the recipe whose costs are planned."""


class Seconds(NamedTuple):
    """How long a stage takes."""

    fixed: float
    """Before its first step."""
    step: float


def make_plan(draft: Draft) -> tuple[Draft, Plan]:
    """Return a draft that samples if it has the time, and the numbers of its recipe."""
    plan, costs = Plan(), dict[str, StageCost]()
    choices = [(samples, rows) for samples in ((True, False) if draft.can_sample else (False,)) for rows in (16, 8, 4)]
    for samples, rows in choices:
        draft = replace(draft, samples=samples)
        plan, costs = _fitted(draft, Plan(rows, steps=dict.fromkeys(draft.teaching.stages, _DRAFT_STEPS)))
        if any(cost.flops is None for cost in costs.values()):
            return draft, replace(plan, held_out=_held_out(draft, num_affordable=_SCORING_BATCH))
        plan, are_enough = _timed(draft, plan, costs)
        if are_enough:
            break
    num_affordable = int(60 * draft.minutes * _SCORING_TIME / _row_seconds(draft, costs))
    return draft, replace(plan, held_out=_held_out(draft, num_affordable))


def _timed(draft: Draft, plan: Plan, costs: dict[str, StageCost]) -> tuple[Plan, bool]:
    """Return a plan with the steps that the time allows, and whether they are enough, or read all rows."""
    steps, step_seconds, are_enough = {}, {}, True
    for stage, share in draft.teaching.stages.items():
        time = _stage_seconds(draft, costs[stage])
        available = 60 * draft.minutes * (1 - _SCORING_TIME) * share - time.fixed
        most = most_steps(draft, plan, stage)
        steps[stage] = max(1, min(int(available / time.step), most))
        are_enough &= steps[stage] >= min(_ENOUGH_STEPS, most)
        step_seconds[stage] = time.step
    return replace(plan, steps=steps, step_seconds=step_seconds), are_enough


def most_steps(draft: Draft, plan: Plan, stage: str) -> int:
    """Return the steps that a stage needs for all its passes over the rows, at least one."""
    return max(_PASSES * draft.measured.num_items // draft.teaching.rows_per_step(stage, plan.rows), 1)


def _stage_seconds(draft: Draft, cost: StageCost) -> Seconds:
    assert cost.flops_by_account is not None
    assert cost.demand is not None
    seconds = estimate(cost.flops_by_account, cost.demand, draft.cards).seconds
    fixed = seconds.get("answers", 0.0)
    return Seconds(fixed, (sum(seconds.values()) - fixed) / _DRAFT_STEPS)


def _row_seconds(draft: Draft, costs: dict[str, StageCost]) -> float:
    """Return how long all the scorings of one held-out row take, those of teachers included."""
    card, last = draft.cards.card, [*costs.values()][-1]
    lengths, kind = draft.measured.lengths, draft.kind
    is_sampled = kind.name in ("question_answer", "conversation")
    answer = draft.max_new_tokens if is_sampled else lengths.answer * max(len(kind.labels), 1)
    parameters = (len(costs) + 1) * (last.parameters or 0) + sum(size or 0 for size in last.teachers.values())
    operations = 2 * parameters * (lengths.prompt + answer) / (card.flops * SCORING_SHARE)
    reading = 4 * parameters * answer / _SCORING_BATCH / (card.bandwidth * SAMPLING_SHARE) if is_sampled else 0.0
    return max(operations, reading)


def _held_out(draft: Draft, num_affordable: int) -> float:
    """Return how many rows are held out: those that there is time to score, a tenth of all at most."""
    measured = draft.measured
    most = max(2, min(num_affordable, _MOST_HELD_OUT))
    if measured.num_documents == 1:
        shares = (share for share in (0.1, 0.05, 0.02) if share * measured.num_items <= most)
        return next(shares, 0.01)
    if measured.num_documents:
        blocks = measured.num_items / measured.num_documents
        return max(1, min(int(most / blocks), measured.num_documents // 10))
    return max(2, min(most, measured.num_items // 10))


def _fitted(draft: Draft, plan: Plan) -> tuple[Plan, dict[str, StageCost]]:
    """Return a plan whose updates fit into memory as far as possible, and its costs."""
    costs = _costs(draft, plan)
    while all(cost.demand is not None for cost in costs.values()):
        num_bytes = max(_bytes(draft, plan, stage, cost) for stage, cost in costs.items())
        if num_bytes <= _MEMORY_SHARE * draft.cards.card.memory:
            break
        smaller = _smaller(draft, plan)
        if smaller is None:
            break
        plan, costs = smaller, _costs(draft, smaller)
    return plan, costs


def _smaller(draft: Draft, plan: Plan) -> Plan | None:
    """Return a plan that takes less memory; None if there is none."""
    if 2 * plan.accumulation < plan.rows:
        return replace(plan, accumulation=2 * plan.accumulation)
    if not plan.has_adapter:
        return replace(plan, has_adapter=True)
    if draft.teachers and not plan.is_offloaded and draft.has_gpu:
        return replace(plan, is_offloaded=True)
    return None


def _bytes(draft: Draft, plan: Plan, stage: str, cost: StageCost) -> float:
    """Return the memory of a stage: what `rld check` plans, and float32 logits with their gradient.

    They count as those of this model's vocabulary; `hardware.estimate` counts the most that any takes on a GPU.
    """
    demand = cost.demand
    assert demand is not None
    tokens = plan.rows / draft.teaching.parts(stage, plan) * draft.measured.lengths.total
    logits = 8 * tokens * draft.student.num_token_rows
    frozen = 0 if plan.is_offloaded else demand.frozen_bytes
    return demand.state_bytes + frozen + max(demand.activation_bytes + logits, demand.cache_bytes)


def _costs(draft: Draft, plan: Plan) -> dict[str, StageCost]:
    """Return the cost of each stage of the recipe."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(draft.text(plan, path.parent), encoding="utf-8")
        return stage_costs(read_recipe(path), path.parent, {draft.name: draft.measured.lengths})

"""Run a `distill` stage: teachers, rewards and a controller train one student."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from accelerate.utils import broadcast_object_list
from transformers import set_seed

from rld.controllers.capacity import CapacityMonitor
from rld.controllers.observation import Controller
from rld.controllers.target import TRANSFER_ROWS, TargetedController
from rld.data.items import Item
from rld.data.ordered_rows import OrderedRows
from rld.data.prompt_stream import PromptStream
from rld.data.reserved_rows import WithoutRows, reserved_rows
from rld.data.skill_rows import SkillRows
from rld.pipeline.callbacks import EventLog
from rld.pipeline.curriculum_loading import load_curriculum, rows_in_levels, try_curriculum
from rld.pipeline.gold_answers import may_answer
from rld.pipeline.gold_prompts import GoldRows
from rld.pipeline.model_loading import Loaded
from rld.pipeline.perturbations import Perturbations
from rld.pipeline.reward_loading import RewardLoader, Rewards
from rld.pipeline.reward_probe import probe_rewards
from rld.pipeline.run import RunContext
from rld.pipeline.stage_checks import (
    require_features,
    require_gold_of_target,
    require_trainable,
    require_verified_answers,
)
from rld.pipeline.stage_training import StageTraining
from rld.pipeline.teacher_loading import ProbedTeacher, TeacherLoader
from rld.pipeline.teacher_losses import order_by_loss
from rld.pipeline.trainer_arguments import distillation_arguments, lora_config
from rld.recipe.stages.distill import Distill
from rld.trainer import checkpoints
from rld.trainer.rld_config import RLDConfig
from rld.trainer.rld_trainer import RLDTrainer
from rld.types import Row
from rld.utils.label_words import LabelWords

_CONTENT_FREE = ("N/A", "[MASK]")
"""Questions without content, of Zhao et al. 2021; their third, the empty one, leaves some prompts without a token."""

Sources: TypeAlias = Mapping[str, SkillRows | WithoutRows | OrderedRows]
"""The rows of each skill that a stage trains on."""


def dry_run(context: RunContext, stage: Distill) -> None:
    """Build what the stage's options describe, without weights, and try the curriculum and the rewards on a row each.

    Raises:
        RldError: an option cannot be used.
    """
    rewards = RewardLoader(context, loads_models=False).load_all(stage)
    probe_rewards(context, stage, rewards)
    arguments = _arguments(context, stage, rewards.weights)
    with context.mistakes_in(stage, "curriculum.levels_by" if stage.target is None else "target"):
        sources = _sources(context, stage)
        for rows in _ordered(sources).values():
            rows.require_gold()
    with context.mistakes_in(stage, "curriculum"):
        try_curriculum(stage, _num_levels(sources), context.source)
    require_gold_of_target(context, stage)
    _stream(context, stage, arguments, sources)
    require_trainable(context, stage, arguments)
    require_features(context, stage)
    require_verified_answers(context, stage)


def run(context: RunContext, stage: Distill) -> None:
    """Run the stage, starting from its last checkpoint if there is one."""
    set_seed(context.seed(stage.name))
    model, tokenizer = context.models.load(stage.student)
    before = context.earlier_evaluation(stage.student) or context.evaluate(model, tokenizer)
    size = model.num_parameters()
    teachers, events = TeacherLoader(context).load(stage, (model, tokenizer))
    set_seed(context.seed(stage.name))  # the initial weights of an adapter must not depend on the teachers
    loader = RewardLoader(context)
    rewards = loader.load_all(stage)
    perturbations = Perturbations(
        stage.experiment.perturbations,
        context.recipe.rewards,
        rewards.functions,
        load=lambda reference: context.models.load(reference, dtype="auto"),
        build=loader.load,
        seed=context.seed(stage.name),
    )
    rewards = replace(rewards, functions=perturbations.rewards)
    sources = _sources(context, stage)
    with context.mistakes_in(stage):
        trainer = _trainer(context, stage, (model, tokenizer), teachers, rewards, sources)
    trainer.events += events
    scoring = functools.partial(trainer.timer.part, "scoring")
    training = StageTraining(
        context,
        stage,
        trainer,
        size,
        tokens=lambda: trainer.totals.tokens_trained,
        teachers=teachers,
        evaluation_time=scoring,
    )
    checkpoint = training.last_checkpoint()
    if checkpoint is None and trainer.stream is not None and (ordered_rows := _ordered(sources)):
        trainer.events += order_by_loss(context, ordered_rows, teachers, context.encoder(model, tokenizer))
        trainer.stream.restart()
    perturbations.attach(trainer, checkpoints.step(checkpoint) if checkpoint else 0)
    training.train(checkpoint, first=[perturbations], last=[EventLog(trainer, training.log)])
    training.finish(before, trainer.totals if teachers else None)


def fill_cache(context: RunContext, stage: Distill) -> dict[str, tuple[int, int]]:
    """Store the teachers' log-probabilities of the gold answers that the stage trains on.

    Returns:
        For each teacher, the number of tokens that it teaches on, and how many of them were not in the cache.
    """
    student, stages = stage.student, {other.name: other for other in context.recipe.stages}
    while student in stages and context.paths.stage_record(student) is None:
        student = stages[student].origin  # an unfinished stage has the tokenizer of the model that it starts from
    args = _arguments(context, stage, [spec.weight for spec in context.recipe.rewards])
    stream = _stream(context, stage, args, _sources(context, stage))
    stream.prompts_per_update = args.prompts_per_rollout
    return TeacherLoader(context).fill_cache(stage, list(stream.dataset), context.models.load(student), args)


def _trainer(
    context: RunContext,
    stage: Distill,
    student: Loaded,
    teachers: list[ProbedTeacher],
    rewards: Rewards,
    sources: Sources,
) -> RLDTrainer:
    args, (model, tokenizer) = _arguments(context, stage, rewards.weights), student
    controller = _controller(stage, context.seed(stage.name), [str(probed.teacher.name) for probed in teachers])
    required = controller.required_measurements
    num_gold = max(required.gold_rows, TRANSFER_ROWS if required.target else 0)
    target = _target_rows(context, stage)
    stream = _stream(context, stage, args, sources)
    # What the main process finds: the user's verifier might answer another one otherwise.
    gold = GoldRows(*broadcast_object_list([*GoldRows.of(context, stage, context.encoder(model, tokenizer))]))
    stream.gold_rows, stream.answerable_rows = gold.num_gold, gold.num_answerable
    trainer = RLDTrainer(
        model,
        rewards.functions,
        args,
        stream,
        processing_class=tokenizer,
        peft_config=lora_config(stage.lora),
        teachers=[probed.teacher for probed in teachers],
        controller=controller,
        verifier=rewards.verifier,
        audit_reward=rewards.audit,
        retain_dataset=_retained_rows(context, stage),
        gold_rows=[row for source in sources.values() for row in source.probe(num_gold)],
        target_rows=[row for rows in target.values() for row in rows],
        flop_meter=context.flop_meter,
    )
    trainer.events += gold.events
    return trainer


def _controller(stage: Distill, seed: int, teachers: list[str]) -> Controller:
    controller: Controller = stage.controller.seeded(seed).for_teachers(teachers)
    if stage.target is not None:
        controller = TargetedController(controller, tuple(stage.target))
    return controller if stage.capacity is None else CapacityMonitor(controller, stage.capacity)


def _arguments(context: RunContext, stage: Distill, reward_weights: list[float]) -> RLDConfig:
    options: dict[str, Any] = distillation_arguments(stage)
    labels: dict[str, LabelWords] = {}
    recipe, folder, skills = context.recipe, context.source.parent, context.skills(stage)
    if stage.learns_labels:
        labels = {skill: recipe.label_words[skill] for skill in skills}
        options["labels"] = {skill: label_words.words for skill, label_words in labels.items()}
        options["synonyms"] = {skill: label_words.synonyms for skill, label_words in labels.items()}
        options["content_free_prompts"] = {skill: _content_free(context.skill_rows[skill]) for skill in skills}
    if stage.learns_teachers and not any(may_answer(recipe, folder, stage, skill) for skill in skills):
        options["gold_answers"] = "rows"
    markers = recipe.prompts.strip_thinking
    return context.arguments(
        RLDConfig,
        stage,
        stage.rollout.prompts
        * stage.rollout.num_completions(len(label_words.completions) for label_words in labels.values()),
        max_completion_length=max([recipe.max_new_tokens, *recipe.blocks.values()]),
        chat_template_kwargs=dict(recipe.prompts.chat_template_kwargs),
        strip_thinking=bool(markers),
        thinking_markers=markers if isinstance(markers, list) else None,
        reward_weights=reward_weights,
        **options,
    )


def _content_free(rows: SkillRows) -> list[Any]:
    """Return prompts whose question has no content, by which distributions over labels are calibrated."""
    return [rows.row(Item(text, None), 0)["prompt"] for text in _CONTENT_FREE]


def _stream(context: RunContext, stage: Distill, args: RLDConfig, sources: Sources) -> PromptStream:
    """Return the stage's prompts in the order in which its curriculum draws them."""
    curriculum = load_curriculum(stage, _num_levels(sources), context.source)
    return PromptStream(sources, curriculum, context.seed(stage.name), args.num_prompts())


def _sources(context: RunContext, stage: Distill) -> Sources:
    """Return the rows of each skill that the stage trains on: all but those by which its target is measured."""
    target = _target_rows(context, stage)
    sources: dict[str, SkillRows | WithoutRows | OrderedRows] = {}
    for skill in context.skills(stage):
        rows = context.skill_rows[skill]
        sources[skill] = rows_in_levels(stage, skill, rows)
        if skill in target:
            sources[skill] = WithoutRows(rows, target[skill])
    return sources


def _ordered(sources: Sources) -> dict[str, OrderedRows]:
    """Return the rows that are put into levels by a teacher's loss."""
    return {skill: rows for skill, rows in sources.items() if isinstance(rows, OrderedRows)}


def _target_rows(context: RunContext, stage: Distill) -> dict[str, list[Row]]:
    """Return the rows of each target skill by which transfer to it is measured."""
    return {skill: reserved_rows(context.skill_rows[skill], TRANSFER_ROWS) for skill in stage.target or ()}


def _num_levels(sources: Sources) -> dict[str, int]:
    return {skill: rows.num_levels for skill, rows in sources.items()}


def _retained_rows(context: RunContext, stage: Distill) -> list[Row] | None:
    """Return the probe rows and the replay rows of the skills that the stage protects."""
    if stage.retain is None:
        return None
    rows: list[Row] = []
    for skill in stage.protected(context.skill_rows):
        source = context.skill_rows[skill]
        rows += source.probe(stage.retain.probe_prompts)
        rows += source.rows(stage.retain.prompts, context.seed(stage.name), gold=False)
    return rows

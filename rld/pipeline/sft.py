"""Run an `sft` stage: fine-tune a student on gold answers, or on a teacher's."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback, set_seed
from trl import SFTConfig

from rld.data.sft import sft_dataset
from rld.models.generation import declare_ends
from rld.models.packed_rows import reason_against_packing
from rld.models.prompting import PromptEncoder
from rld.models.taken_over import taken_over
from rld.pipeline.callbacks import EventLog
from rld.pipeline.model_loading import Loaded
from rld.pipeline.run import RunContext
from rld.pipeline.stage_checks import require_trainable
from rld.pipeline.stage_training import StageTraining
from rld.pipeline.trainer_arguments import lora_config
from rld.recipe.stages.sft import Sft
from rld.rollout.verifier import is_success
from rld.trainer.packing import NO_LABEL, PackedCollator, packed
from rld.trainer.sft_trainer import SFTTrainer
from rld.trainer.trl_patches import skip_unlabelled_positions
from rld.trainer.weight_precision import warn_of_lost_updates
from rld.types import Answer, Row
from rld.utils.flops import FlopMeter, training_flops


def dry_run(context: RunContext, stage: Sft) -> None:
    """Build what the stage's options describe, without weights.

    Raises:
        RldError: an option cannot be used.
    """
    require_trainable(context, stage, _arguments(context, stage))


def run(context: RunContext, stage: Sft) -> None:
    """Run the stage, starting from its last checkpoint if there is one."""
    set_seed(context.seed(stage.name))
    model, tokenizer = context.models.load(stage.student)
    before = context.earlier_evaluation(stage.student) or context.evaluate(model, tokenizer)
    skip_unlabelled_positions()
    encoder = context.encoder(model, tokenizer)
    declare_ends(model, encoder, context.recipe.prompt_style == "chat")
    dataset, collator = _packed(context, stage, model, _dataset(context, stage, encoder))
    with context.mistakes_in(stage):
        trainer = SFTTrainer(
            model,
            _arguments(context, stage),
            data_collator=collator,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=lora_config(stage.lora),
        )
    warn_of_lost_updates(model, trainer.args.learning_rate)
    size = model.num_parameters()
    training = StageTraining(
        context, stage, trainer, size, tokens=lambda: trainer.state.num_input_tokens_seen, is_supervised=True
    )
    training.train(
        training.last_checkpoint(),
        first=[CountFlops(context.flop_meter, size)],  # before the callbacks that read the meter
        last=[EventLog(trainer, training.log)],
    )
    training.finish(before)


def _arguments(context: RunContext, stage: Sft) -> SFTConfig:
    return context.arguments(
        SFTConfig,
        stage,
        stage.batch,
        max_steps=stage.steps,
        max_length=None,
        completion_only_loss=True,
        include_num_input_tokens_seen="non_padding",
    )


def _encoded(
    encoder: PromptEncoder, prompts: Sequence[Any], answers: Sequence[Answer], *, learns_prompts: bool = False
) -> list[dict[str, list[int]]]:
    """Return the token ids and labels of rows, encoded as in a rollout, so that TRL applies no template.

    TRL would make the labels too, one row at a time.
    """
    examples = []
    pairs = encoder.encode_rows(prompts, [answer.text for answer in answers])
    for prompt, answer, (prompt_ids, ids) in zip(prompts, answers, pairs, strict=True):
        end = [encoder.required_end(prompt)]
        whole = ids + end if answer.is_complete else ids
        labels = prompt_ids if learns_prompts else [NO_LABEL] * len(prompt_ids)
        examples.append({"input_ids": prompt_ids + whole, "labels": labels + whole})
    return examples


def _dataset(context: RunContext, stage: Sft, encoder: PromptEncoder) -> Dataset:
    """Return the stage's training set; its teacher is loaded for as long as it answers."""
    teacher, learns_prompts = None, not stage.trainer.get("completion_only_loss", True)
    if stage.teacher is not None:
        loaded = context.models.load(stage.teacher, dtype="auto")
        teacher = functools.partial(_answers, context, stage.teacher, loaded, encoder)
    return sft_dataset(
        stage,
        context.skill_rows,
        context.skills(stage),
        seed=context.seed(stage.name),
        encode=functools.partial(_encoded, encoder, learns_prompts=learns_prompts),
        teacher=teacher,
        verdicts=functools.partial(_verdicts, context, encoder.tokenizer),
        require=functools.partial(context.row_checks.require_learnt, stage),
    )


def _packed(
    context: RunContext, stage: Sft, model: PreTrainedModel, dataset: Dataset
) -> tuple[Dataset, PackedCollator | None]:
    """Return rows that hold several pieces of text, with what makes batches of them, if the stage learns texts alone.

    A model that can't keep them apart has a row for each piece, and so have other rows.
    """
    blocks = [context.recipe.blocks.get(skill) for skill in context.skills(stage)]
    if None in blocks:
        return dataset, None
    reason = reason_against_packing(model)
    if reason is not None:
        warnings.warn(f"stage '{stage.name}': each piece of text has a row of its own, because {reason}", stacklevel=2)
        return dataset, None
    pad_token_id = model.config.get_text_config().pad_token_id
    return packed(dataset, max(block for block in blocks if block), stage.name), PackedCollator(pad_token_id or 0)


def _answers(
    context: RunContext, name: str, teacher: Loaded, student: PromptEncoder, rows: Sequence[Row]
) -> list[Answer]:
    """Return a teacher's greedy answers to rows of one skill, as the student would write them.

    Of labelled rows an answer is the words of the label that the teacher finds likeliest.
    """
    if any(context.recipe.skills[row["skill"]].predicts == "label" for row in rows[:1]):
        return [Answer(prediction.answer, is_complete=True) for prediction in context.predict(name, *teacher, rows)]
    prompts = [row["prompt"] for row in rows]
    answers, encoder = context.answer(name, *teacher, rows), context.encoder(*teacher)
    return taken_over(answers, prompts, writer=encoder, writer_prompts=prompts, learner=student)


def _verdicts(context: RunContext, tokenizer: Any, rows: Sequence[Row], texts: Sequence[str]) -> list[bool]:
    """Return for each answer to rows of one skill whether the run's judge accepts it as correct.

    A label is correct if it is the row's, or the row's is not known.
    """
    if any(context.recipe.skills[row["skill"]].predicts == "label" for row in rows[:1]):
        return [row["answer"] in ("", text) for row, text in zip(rows, texts, strict=True)]
    return [is_success(reward) for reward in context.texts.rewards(rows, texts, tokenizer)]


class CountFlops(TrainerCallback):
    """Counts the FLOPs of fine-tuning a model from the number of tokens that the trainer has read.

    The sum is set, not added to, because a resumed trainer knows the tokens from its start.
    """

    def __init__(self, flop_meter: FlopMeter, num_parameters: int) -> None:
        self.flop_meter, self.num_parameters = flop_meter, num_parameters

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._count(state.num_input_tokens_seen)  # not 0 after a resume

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._count(state.num_input_tokens_seen)

    def _count(self, num_tokens: int) -> None:
        self.flop_meter.parts["student"]["updates"] = training_flops(self.num_parameters, num_tokens)

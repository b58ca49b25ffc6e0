"""Checks before training: the student is read as it is, its texts fit into its context, and teachers have prompts."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from rld.errors import ModelError, RecipeError, TeacherError
from rld.models.generation import unused_options
from rld.models.prompting import PromptEncoder
from rld.models.self_check import context_length, require_context, require_sound_model, require_token_rows
from rld.rollout.verifier import no_reward
from rld.trainer.rld_config import RLDConfig
from rld.trainer.weight_precision import warn_of_lost_updates
from rld.utils.templates import has_answer, rollout_fields

_NUM_PROMPTS = 16
"""The longest prompts by their characters, of which the tokens are counted."""


def require_resumable(args: RLDConfig) -> None:
    """Refuse a reference model that follows the student where checkpoints are written, which have none.

    Raises:
        RecipeError: it does.
    """
    if args.sync_ref_model and args.save_strategy != "no":
        raise RecipeError(
            "sync_ref_model: no checkpoint has the reference model that follows the student, so a training that is "
            "resumed would start from the first one; leave it out, or set save_strategy='no'"
        )


def require_sound_student(model: PreTrainedModel, encoder: PromptEncoder, rows: Any, args: RLDConfig) -> None:
    """Refuse a student that cannot be trained.

    Args:
        model: The student without wrappers.
        encoder: Encodes its prompts.
        rows: The training set. The prompts of a `Dataset` are measured; others when they are drawn.
        args: With the number of tokens of a completion.

    Raises:
        ModelError: no weight is trainable; its logits are not those of its head, or not finite; its embedding lacks
            tokens of its tokenizer; or the longest prompt with a completion does not fit into its context.
    """
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ModelError("the student: none of its weights is trainable; call requires_grad_(True)")
    require_sound_model(model, "the student", ModelError, is_student=True)
    require_token_rows(model, encoder.tokenizer, "the student", kind=ModelError)
    warn_of_lost_updates(model, args.learning_rate)
    if args.signals is None or "policy" in args.signals:
        _warn_of_dropout(model)
    options = unused_options(model)
    if options and not args.use_vllm:
        warnings.warn(
            f"the student's generation configuration sets {', '.join(options)}, which rollouts and scores do not use: "
            "they follow the student's own probabilities. To sample with them, set generation_kwargs",
            stacklevel=2,
        )
    if isinstance(rows, Dataset) and "prompt" in rows.column_names and context_length(model.config) is not None:
        prompts = heapq.nlargest(_NUM_PROMPTS, rows["prompt"], key=lambda prompt: len(str(prompt)))
        require_prompts_fit(model, [encoder.encode(prompt) for prompt in prompts], args)


def require_own_prompts(trainer: Any) -> None:
    """Refuse an `RLDTrainer` whose teachers' own prompts cannot be made, or whose student cannot be its own teacher.

    Raises:
        TeacherError: it is such a trainer.
    """
    args, rows = trainer.args, trainer.train_dataset
    for teacher in trainer.teachers:
        reasons = dict[str, bool]()
        if teacher.prompt is not None:
            is_known = trainer.stream is None and isinstance(rows, Dataset)  # a stream's rows are not drawn yet
            has_no_answers = is_known and "answer" not in rows.column_names
            reasons |= {
                "is not for label_calibration: content_free, whose prompts are the student's": (
                    args.label_calibration == "content_free"
                ),
                "is not for images and environments, which have their own": trainer._is_vlm
                or trainer.environment_factories is not None,
                "shows {answer}, and the rows have no column 'answer'": has_answer(teacher.prompt) and has_no_answers,
            }
            reasons |= _reasons_against_attempts(trainer, rollout_fields(teacher.prompt), rows if is_known else None)
        if teacher.is_student:
            shared = trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()
            reasons |= {
                "is read with whole weights of the student, which FSDP and ZeRO-3 share out": shared,
                "goes without the feature signal, which learns maps to the states of a teacher that stays": "feature"
                in trainer._signals,
                "is read with the student's weights at the rollout, so no update may lie inside a rollout: let "
                "gradient_accumulation_steps be a multiple of steps_per_generation * num_iterations (leave both "
                "out)": args.gradient_accumulation_steps % args.micro_batches_per_rollout != 0,
            }
        for reason, holds in reasons.items():
            if holds:
                raise TeacherError(f"teacher '{teacher.name}': its prompt {reason}")


def _reasons_against_attempts(trainer: Any, fields: Sequence[str], rows: Dataset | None) -> dict[str, bool]:
    """Return reasons why a teacher's prompt cannot show fields of a rollout, and whether they hold.

    Args:
        trainer: The trainer.
        fields: The fields.
        rows: The training rows. None: they are not known.
    """
    args, columns = trainer.args, [] if rows is None else rows.column_names
    reasons = {
        f"shows {{{field}}} of a rollout, and the rows have a column of that name": field in columns for field in fields
    }
    if not fields:
        return reasons
    clause = f"shows {{{fields[0]}}} of a rollout, and"
    of_rewards = [field for field in fields if field != "attempt"]
    has_rewards = getattr(trainer.reward_funcs[0], "__name__", "") != no_reward.__name__
    others = trainer.num_generations - args.gold_completions
    return reasons | {
        f"shows {{{of_rewards[0] if of_rewards else ''}}}, and there is no reward": bool(of_rewards)
        and not has_rewards,
        f"{clause} with labels there is none": bool(args.labels),
        f"{clause} gold_answers asks teachers for answers before there is one": args.gold_answers != "rows",
        f"{clause} with gold answers alone the student tries nothing (gold_completions)": not args.labels
        and others < 1,
    }


def _warn_of_dropout(model: nn.Module) -> None:
    """Warn if the student has dropout, with which it neither samples nor answers.

    The policy's importance ratios, and the teachers' scores relative to the student's, are those of another policy than
    the one that sampled; with dropout of 0.3 a twentieth of the ratios is clipped before the first update.
    """
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    rates += [float(getattr(module, "attention_dropout", None) or 0) for module in model.modules()]
    if max(rates, default=0.0) > 0:
        warnings.warn(
            f"the student has dropout of up to {max(rates):g} in its losses and none where it samples, so that the "
            "policy's importance ratios are noisy: set disable_dropout=True (trainer.disable_dropout in a recipe), and "
            "attention_dropout=0 in its configuration",
            stacklevel=2,
        )


def require_prompts_fit(model: PreTrainedModel, prompt_ids: list[list[int]], args: RLDConfig) -> None:
    """Refuse prompts that do not fit into the student's context, or into vLLM's, together with a completion.

    Raises:
        ModelError: the longest does not fit.
    """
    longest = max(map(len, prompt_ids), default=0)
    text = f"the longest prompt ({longest} tokens) with a completion of up to {args.answer_length}"
    require_context(model, longest + args.answer_length, name="the student", text=text, kind=ModelError)
    limit = args.vllm_max_model_length if args.use_vllm else None
    if limit is not None and longest + args.answer_length > limit:
        raise ModelError(f"vllm_max_model_length is {limit}, and {text} has {longest + args.answer_length}; raise it")

"""Options of libraries that a recipe cannot set, because rld sets them, and what to set instead."""

from __future__ import annotations

_STEPS = "set the stage's steps instead"

_EVERY = "set the stage's checkpoint_every instead"

_LOGGED = "the run's metrics and FLOPs are those of every step"

_RESUMED = "a resumed run would not be the uninterrupted one"

_TEXT = "set the recipe's prompts, or the model's own tokenizer; training, rollouts and scores read the same"

_SCORED = "rld scores held-out rows itself; set held_out of a skill instead"

TRAINER = {
    "output_dir": "use --output instead",
    "resume_from_checkpoint": "use --resume instead",
    "seed": "set the recipe's seed instead",
    "max_steps": _STEPS,
    "num_train_epochs": _STEPS,
    "save_steps": _EVERY,
    "save_strategy": _EVERY,
    "save_total_limit": _EVERY,
    "eval_strategy": _SCORED,
    "eval_steps": _SCORED,
    "logging_steps": _LOGGED,
    "logging_strategy": _LOGGED,
    "logging_nan_inf_filter": "rld stops at a loss that is not finite",
    "save_only_model": _RESUMED,
    "ignore_data_skip": _RESUMED,
    "restore_callback_states_from_checkpoint": _RESUMED,
    "sync_ref_model": f"no checkpoint has a reference model, so {_RESUMED}; set retain to hold the student back",
    "include_num_input_tokens_seen": _LOGGED,
    "eos_token": _TEXT,
    "pad_token": _TEXT,
    "chat_template_path": _TEXT,
    "dataset_text_field": "a skill's file has the columns question and answer",
    "chat_template_kwargs": "set it in the recipe's prompts, where scores and all stages read it",
    "max_length": "set the recipe's max_new_tokens instead",
    "model_init_kwargs": "write the model as a mapping with path and init instead",
    "remove_unused_columns": "rewards need the columns, so rld sets it",
    "shuffle_dataset": "rld orders the rows itself",
    "dataloader_num_workers": "a worker's copy of the curriculum would learn nothing, so rld uses none",
}

COLUMNS_OF_REWARDS = ("question", "answer", "skill", "level", "entry")
"""The columns of a row that a reward gets; `entry` has all others, as JSON text."""

GIVEN_TO_REWARDS = {
    *(
        "prompts",
        "completions",
        "completion_ids",
        "whole_completions",
        "trainer_state",
        "log_extra",
        "log_metric",
        "environments",
    ),
    *COLUMNS_OF_REWARDS,
}

GYM = {"seed": "rld sets it, so that training and held-out rows differ", "size": "rld draws as many as it needs"}

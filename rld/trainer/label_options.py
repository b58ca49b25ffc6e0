"""Checks the arguments of a trainer whose completions are labels, and sets those that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rld.errors import RecipeError
from rld.trainer.option_checks import require_choice
from rld.utils.label_words import LabelWords

_CALIBRATIONS = "none", "length", "content_free", "prior_matching"


def take_labels(args: Any) -> None:
    """Let the completions of a prompt be its labels, and refuse what needs sampled ones.

    Args:
        args: An `RLDConfig` with `labels`, before TRL has checked it.

    Raises:
        RecipeError: an option does not go with labels, or the labels are wrong.
    """
    args.signals = ["response"] if args.signals is None else args.signals
    options = {
        "signals": (args.signals != ["response"], "response alone; there are no samples to reinforce"),
        "temperature": (args.temperature != 1, "1; response_temperature is that of the distributions over labels"),
        "gold_completions": (args.gold_completions, "0; gold_weight teaches the gold labels"),
        "refill": (args.refill, "0"),
        "distill_on": (args.distill_on != "all", "all"),
        "token_weights": (args.token_weights, "left out"),
        "mask_truncated_completions": (args.mask_truncated_completions, "off"),
        "use_vllm": (args.use_vllm, "off"),
    }
    for name, (is_refused, fix) in options.items():
        if is_refused:
            raise RecipeError(f"{name}: where completions are labels it should be {fix}")
    require_choice("label_calibration", args.label_calibration, _CALIBRATIONS)
    _check_words(args.label_words, args.synonyms or {})
    for skill in args.labels if args.label_calibration == "content_free" else ():
        if not (args.content_free_prompts or {}).get(skill):
            raise RecipeError(f"content_free_prompts: skill {skill!r} has none, for label_calibration: content_free")
    args.num_generations = max(len(words.completions) for words in args.label_words.values())
    if args.per_device_train_batch_size % args.num_generations:
        size = f"{args.per_device_train_batch_size} is no multiple of {args.num_generations}"
        fix = "in a recipe, let rollout.prompts be a multiple of processes times accumulation steps"
        raise RecipeError(
            f"per_device_train_batch_size: all words of a prompt's labels are in one micro-batch, and {size}; {fix}"
        )


def _check_words(labels: Mapping[str, LabelWords], synonyms: Mapping[str, Any]) -> None:
    """Refuse labels that cannot be told apart, and synonyms that are none of a label."""
    unknown = sorted(synonyms.keys() - labels.keys())
    if unknown:
        raise RecipeError(f"synonyms: the skill {unknown[0]!r} has no labels")
    for skill, label_words in labels.items():
        if len({text.strip() for text in label_words.words}) < max(len(label_words.words), 2):
            raise RecipeError(f"labels: skill {skill!r} needs two different labels at least, not {label_words.words}")
        problem = label_words.problem()
        if problem is not None:
            raise RecipeError(f"synonyms: skill {skill!r}: {problem}")
